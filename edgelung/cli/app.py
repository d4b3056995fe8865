"""The command line: puts the commands together and turns errors into lines and exit codes."""

import io
import sys
from types import TracebackType

import typer
import typer.exceptions

from edgelung import RESEARCH_USE_ONLY, __version__
from edgelung.cli.audit import audit
from edgelung.cli.bench import bench
from edgelung.cli.command import Command, usage_message
from edgelung.cli.compare import compare
from edgelung.cli.demo import demo
from edgelung.cli.doctor import doctor
from edgelung.cli.evaluate import evaluate
from edgelung.cli.export import export
from edgelung.cli.gpu_check import gpu_check
from edgelung.cli.infer import infer
from edgelung.cli.keygen import keygen
from edgelung.cli.merge import merge
from edgelung.cli.serve import serve
from edgelung.cli.sign import sign
from edgelung.cli.slide import slide
from edgelung.cli.train import train
from edgelung.cli.view import view
from edgelung.core.deadlines import ending_on_deadlines
from edgelung.core.errors import EdgelungError, ExitCode, visible
from edgelung.core.interrupts import ending_on_signals

app = typer.Typer(
    name="edgelung",
    help="From labelled lung-histology tiles to a verified low-latency classifier on your own "
    "workstation. " + RESEARCH_USE_ONLY,
    epilog="Exit codes: 0 all well · 1 an internal error · 2 wrong usage or bad input · "
    "3 finished, but some files failed · 4 an accuracy gate or an evaluation failed or was "
    "inconclusive.",
    context_settings={"help_option_names": ["-h", "--help"]},
    no_args_is_help=True,
    add_completion=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would double the time that --help takes
)
for command in (
    *(audit, train, compare, export, evaluate, infer, merge, slide, serve, view),
    *(bench, doctor, demo, keygen, sign),
):
    app.command(cls=Command)(command)
app.command("gpu-check", cls=Command)(gpu_check)


def _print_version(requested: bool) -> None:
    if requested:
        print(f"edgelung {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_print_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit code 2."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")  # the terminal may not be able to show an arrow
    sys.excepthook = _print_traceback
    with ending_on_signals(), ending_on_deadlines():
        sys.exit(_run())


def _print_traceback(
    kind: type[BaseException], error: BaseException, trace: TracebackType | None
) -> None:
    """Print the traceback of a bug; names in it may hold control characters."""
    import traceback

    lines = traceback.format_exception(kind, error, trace)
    print(visible("".join(lines), "\n"), end="", file=sys.stderr)


def _run() -> int:
    """Run the command; returns its exit code."""
    try:
        return int(app(prog_name="edgelung", standalone_mode=False) or ExitCode.OK)
    except typer.exceptions.TyperException as error:
        print(usage_message(error), file=sys.stderr)
    except EdgelungError as error:
        print(f"edgelung: {error}", file=sys.stderr)
    except OSError as error:  # a full disk, a folder without permission, a lost network share
        if error.errno is None:  # no errno: raised by our code, not by the OS
            raise
        from edgelung.core.files import describe_os_error

        print(f"edgelung: {visible(describe_os_error(error))}", file=sys.stderr)
    return ExitCode.USAGE
