"""What every room stands on: errors, files, cache, system, terminal."""
