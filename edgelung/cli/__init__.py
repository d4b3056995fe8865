"""The command line: one file a command, which parses options, calls a room and prints."""

import signal
import sys

from edgelung.core.platforms import refusal


def main() -> None:
    """Run the command line. Ctrl-C ends it from the first moment, without a traceback."""
    if line := refusal(sys.platform):
        print(line, file=sys.stderr)
        sys.exit(2)
    earlier = signal.getsignal(signal.SIGINT)
    # While modules are imported, Python's own handler would print a traceback of them.
    silent = earlier is signal.default_int_handler
    if silent:
        signal.signal(signal.SIGINT, signal.SIG_DFL)
    from edgelung.cli import app

    if silent:
        signal.signal(signal.SIGINT, earlier)
    app.main()
