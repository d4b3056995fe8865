"""`python -m edgelung`."""

from edgelung.cli import main

main()
