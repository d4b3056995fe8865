"""The folder run: from files to one row each."""
