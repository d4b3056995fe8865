"""`edgelung doctor`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer


def doctor(
    model: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            help="With --selftest: the bundle whose golden tiles run; the starter by default.",
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
    """Say what this machine has for inference, what it lacks, and how to mend it.

    Exit code 4: an engine runs and does not reproduce the golden tiles.
    """
    from edgelung.artifacts.bundle import open_bundle, starter_bundle
    from edgelung.core.errors import ExitCode
    from edgelung.tools.doctor import as_json as to_json
    from edgelung.tools.doctor import choice, examine
    from edgelung.tools.doctor import selftest as run_selftest

    findings = examine()
    tests = None
    if selftest:
        tests = run_selftest(open_bundle(model or starter_bundle()))
    if as_json:
        print(json.dumps(to_json(findings, tests), indent=2))
    else:
        _print(findings, choice(findings), tests)
    if any(test["state"] == "wrong" for test in tests or []):
        raise typer.Exit(ExitCode.GATE)


def _print(findings: list[Any], choice: str, tests: list[dict[str, Any]] | None) -> None:
    from rich.table import Table

    from edgelung.core.terminal import out

    mark = {"ok": "✓", "missing": "✗", "none": "–"}
    table = Table("", "what", "found", "to mend it")
    for finding in findings:
        table.add_row(mark[finding.state], finding.what, finding.found, finding.mend)
    out.print(table)
    out.print(f"infer would run {choice}", markup=False)
    if tests is None:
        return
    results = Table("engine", "variant", "golden tiles", "largest difference")
    for test in tests:
        difference = test.get("golden_difference")
        results.add_row(
            test["engine"],
            test["precision"] if test["state"] != "unavailable" else "",
            test["state"] if test["state"] == "ok" else f"{test['state']}: {test['reason']}",
            "" if difference is None else f"{difference:.2g}",
        )
    out.print(results)
