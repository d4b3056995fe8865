"""The command line: composes the commands, nothing else."""

import io
import signal
import sys

import typer
import typer.exceptions

from edgelung import RESEARCH_USE_ONLY, __version__
from edgelung.cli.audit import audit
from edgelung.cli.bench import bench
from edgelung.cli.compare import compare
from edgelung.cli.doctor import doctor
from edgelung.cli.export import export
from edgelung.cli.infer import infer
from edgelung.cli.train import train
from edgelung.core.errors import EdgelungError, ExitCode, one_line
from edgelung.core.terminal import show_reports

app = typer.Typer(
    name="edgelung",
    help="Lung-histology tiles to a verified low-latency classifier on your own workstation. "
    + RESEARCH_USE_ONLY,
    epilog="Exit codes: 0 all well · 1 an internal error · 2 wrong usage or bad input · "
    "3 finished, but some files failed · 4 an accuracy gate failed or was inconclusive.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,  # rich would double the time that --help takes
)
app.command()(audit)
app.command()(train)
app.command()(compare)
app.command()(export)
app.command()(infer)
app.command()(bench)
app.command()(doctor)


def _version(asked: bool) -> None:
    if asked:
        print(f"edgelung {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(
        False, "--version", callback=_version, is_eager=True, help="Print the version."
    ),
) -> None:
    pass


def main() -> None:
    """Run the command line; a user's mistake is one line on standard error and exit code 2."""
    for stream in (sys.stdout, sys.stderr):  # a terminal that cannot show an arrow is no error
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="replace")
    if hasattr(signal, "SIGTERM"):  # leave as by sys.exit, so that temporary files go too
        signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    show_reports()
    try:
        code = app(standalone_mode=False)
    except typer.exceptions.TyperException as error:
        text = error.format_message()
        usage = "\n" in text  # the help page, where no command was given
        print(text if usage else f"edgelung: {one_line(text)}; see --help", file=sys.stderr)
        code = ExitCode.USAGE
    except EdgelungError as error:
        print(f"edgelung: {error}", file=sys.stderr)
        code = ExitCode.USAGE
    except OSError as error:  # a full disk, a folder without permission, a share that went away
        if error.errno is None:  # not the system's word: a bug of ours
            raise
        print(f"edgelung: {one_line(error)}", file=sys.stderr)
        code = ExitCode.USAGE
    sys.exit(code)
