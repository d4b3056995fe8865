"""Tiles: find the files, decode them, the one resize."""
