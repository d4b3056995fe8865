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
            help="The bundle whose edgelung.toml and signature are shown, and whose golden tiles "
            "--selftest runs."
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
    from edgelung.cli.defaults import describe_defaults, describe_trust
    from edgelung.core.errors import ExitCode
    from edgelung.core.typed_json import plain
    from edgelung.tools.doctor import examine_machine, run_selftest

    tests = run_selftest(open_bundle(model or starter_bundle())) if selftest else None
    result = examine_machine(describe_trust(model) + describe_defaults(model), tests)
    if as_json:
        print(json.dumps(plain(result), indent=2))
    else:
        _print(result)
    if any(test.state == "wrong" for test in tests or []):
        raise typer.Exit(ExitCode.GATE)


def _print(result: "Examination") -> None:
    """Print the answer first, then a line per finding; what to do stands whole on its own line."""
    from rich.table import Column, Table

    from edgelung.core.terminal import out

    out().print(f"infer would run {result.choice}\n")
    width = max(len(finding.what) for finding in result.findings)
    for finding in result.findings:
        _print_indented(f"{MARKS[finding.state]} {finding.what:{width}}  ", finding.found)
        if finding.remedy:  # not wrapped: it is to be copied
            out().print(f"{'':{width + 4}}to install it: {finding.remedy}", markup=False)
    if result.selftest is None:
        return
    tests = Table(
        *("engine", "variant", Column("golden tiles", no_wrap=True), "largest\ndifference"),
        title="self-test",
    )
    present = {test.engine for test in result.selftest if test.state != "unavailable"}
    for test in result.selftest:
        difference = test.golden_difference
        tests.add_row(
            test.engine,
            test.precision if test.engine in present else "",
            test.state,
            "" if difference is None else f"{difference:.2g}",
        )
    out().print()
    out().print(tests)
    reasons: dict[str, list[str]] = {}
    for test in result.selftest:
        if test.reason:
            reasons.setdefault(test.reason, []).append(test.engine)
    for reason, engines in reasons.items():
        out().print(f"{', '.join(dict.fromkeys(engines))}: {reason}")


def _print_indented(head: str, text: str) -> None:
    """Print `head` and a text that continues below its own beginning."""
    import textwrap

    from edgelung.core.terminal import out

    width = max(out().width - len(head), 20)
    lines = textwrap.wrap(text, width, break_long_words=False, break_on_hyphens=False)
    for number, line in enumerate(lines or [""]):
        out().print((head if not number else " " * len(head)) + line)
