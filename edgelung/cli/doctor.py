"""`edgelung doctor`."""

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from edgelung.tools.doctor import Examination

MARKS = {"ok": "✓", "missing": "✗", "none": "–"}


def doctor(
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            help="The bundle whose edgelung.toml is shown, and whose golden tiles --selftest runs."
            "  [default: the starter]",
        ),
    ] = None,
    selftest: Annotated[
        bool,
        typer.Option("--selftest", help="Run the golden tiles on every engine that is available."),
    ] = False,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the findings as JSON on standard output.")
    ] = False,
) -> None:
    """What can this machine infer with, and what does it lack?

    For what is missing it names the command that installs it. Exit code 4: an engine runs and does
    not reproduce the golden tiles.
    """
    from edgelung.artifacts.bundle import open_bundle, starter_bundle
    from edgelung.cli.defaults import describe_defaults
    from edgelung.core.errors import ExitCode
    from edgelung.core.typed_json import plain
    from edgelung.tools.doctor import examine_machine, run_selftest

    tests = run_selftest(open_bundle(model or starter_bundle())) if selftest else None
    result = examine_machine(describe_defaults(model), tests)
    if as_json:
        print(json.dumps(plain(result), indent=2))
    else:
        _print(result)
    if any(test.state == "wrong" for test in tests or []):
        raise typer.Exit(ExitCode.GATE)


def _print(result: "Examination") -> None:
    from rich.markup import escape
    from rich.table import Table

    from edgelung.core.terminal import out

    table = Table("", "what", "found", "to fix it")
    for finding in result.findings:
        cells = (finding.what, finding.found, finding.remedy)
        table.add_row(MARKS[finding.state], *map(escape, cells))
    out().print(table)
    out().print(f"infer would run {result.choice}", markup=False)
    if result.selftest is None:
        return
    tests = Table("engine", "variant", "golden tiles", "largest difference")
    for test in result.selftest:
        difference = test.golden_difference
        tests.add_row(
            test.engine,
            test.precision if test.state != "unavailable" else "",
            escape(test.state if test.state == "ok" else f"{test.state}: {test.reason}"),
            "" if difference is None else f"{difference:.2g}",
        )
    out().print(tests)
