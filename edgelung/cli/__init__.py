"""The command line: one file a command, which parses options, calls a room and prints."""

from edgelung.cli.app import main

__all__ = ["main"]
