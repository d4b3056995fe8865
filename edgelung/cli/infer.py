"""`edgelung infer`."""

import json
import os
import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgelung import RESEARCH_USE_ONLY
from edgelung.cli.options import EngineOption, PrecisionOption, Threads

if TYPE_CHECKING:
    from rich.console import Console


def _named_path(text: str) -> Path:
    """An empty name is a script's unset variable, not the current folder."""
    if not text:
        raise typer.BadParameter("the name is empty")
    return Path(text)


def infer(
    folder: Annotated[
        list[Path],
        typer.Argument(
            parser=_named_path,
            metavar="FOLDER...",
            help="Folder of tiles (searched below); several share one output.",
        ),
    ],
    model: Annotated[
        Path | None,
        typer.Option(
            parser=_named_path,
            metavar="BUNDLE",
            help="Bundle that `edgelung export` wrote; the starter that comes with edgelung if "
            "none is named.",
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(help="Rows to write: .csv, .jsonl or .parquet; - is CSV on standard output."),
    ] = Path("predictions.csv"),
    engine: EngineOption = None,
    precision: PrecisionOption = None,
    min_confidence: Annotated[
        float | None,
        typer.Option(
            min=0, max=1, help="Rows less sure than this get status `review` and no label."
        ),
    ] = None,
    verify: Annotated[
        bool, typer.Option("--verify", help="Run full precision on every tile too and compare.")
    ] = False,
    verify_every: Annotated[
        int, typer.Option(min=1, help="With --verify: only on every N-th batch.")
    ] = 1,
    prebuilt: Annotated[
        Path | None,
        typer.Option(
            help="Folder of TensorRT-RTX engines that `edgelung export --engine` wrote. Engines "
            "are programs: name only a folder that you trust."
        ),
    ] = None,
    files: Annotated[
        Path | None,
        typer.Option(
            help="Predict only these: a list of paths (- reads it from standard input; "
            "`find -print0` too), or a CSV with a `path` column. Names from a slow pipe wait until "
            "they fill a batch (see --batch-size)."
        ),
    ] = None,
    subset: Annotated[
        str | None, typer.Option(help="With --files: only the rows of this subset.")
    ] = None,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--restart",
            help="Go on with a run that was stopped, or throw its rows away.",
            show_default=False,
        ),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option("--watch", help="Keep predicting what is dropped into FOLDER, until Ctrl-C."),
    ] = False,
    summary: Annotated[
        Path | None,
        typer.Option(
            help="Where the run's summary goes, as JSON; beside the rows by default.",
            show_default=False,
        ),
    ] = None,
    batch_size: Annotated[
        int | None,
        typer.Option(
            min=1,
            max=1024,
            help="Tiles per batch; 1: each tile as soon as it can be had. [16; on a GPU 32]",
        ),
    ] = None,
    threads: Threads = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON on standard output.")
    ] = False,
) -> None:
    """Predict every tile of a folder: one row per file. Research use only."""
    from edgelung.artifacts.bundle import STARTER_NOTE, open_bundle, starter_bundle
    from edgelung.core.terminal import note, progress
    from edgelung.core.typed_json import plain
    from edgelung.inference.destination import STANDARD_OUTPUT, Destination
    from edgelung.inference.session import Options, infer_folder
    from edgelung.inference.source import Source
    from edgelung.inference.watch import watch_folder

    if as_json and out == STANDARD_OUTPUT:
        raise typer.BadParameter("--json and the rows would share standard output; use --summary")
    if watch and files:
        raise typer.BadParameter("--watch finds its files itself; leave --files out")
    if model is None:
        note(STARTER_NOTE)
    bundle = open_bundle(model or starter_bundle())
    source = Source(tuple(folder), files, subset)
    destination = Destination.parse(out, summary)
    if precision and precision in bundle.variants and not bundle.variants[precision].passed:
        verdict = bundle.variants[precision].gate.verdict
        note(f"the {precision} variant did not pass its gate ({verdict}); used as asked")

    def on_stopped(rows: int, journal: Path) -> None:
        again = [word for word in sys.argv[1:] if word not in ("--resume", "--restart")]
        note(
            f"stopped: {rows} rows are kept in {journal.name}; to go on:\n"
            f"edgelung {shlex.join([*again, '--resume'])}"
        )

    options = Options(
        engine,
        precision,
        batch_size,
        threads,
        prebuilt,
        verify,
        verify_every,
        min_confidence,
    )
    with progress("infer") as advance:
        run = watch_folder if watch else infer_folder
        summary_of_run = run(
            source,
            bundle,
            destination,
            options,
            resume=resume,
            on_rows=advance,
            on_stopped=on_stopped,
        )
    result = plain(summary_of_run)
    try:
        if as_json:
            print(json.dumps(result, indent=2), flush=True)
        else:
            print_summary(result)
    except BrokenPipeError:  # `| head`: the rows are whole, and so is the exit code
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (what Python flushes at its end)
    note(RESEARCH_USE_ONLY)
    raise typer.Exit(summary_of_run.exit_code)


def print_summary(summary: dict[str, Any]) -> None:
    """The run for people, on standard output; on standard error where the rows have that."""
    from edgelung.core.terminal import err, out

    console = err if summary["out"] == "-" else out

    counts = ", ".join(f"{n} {status}" for status, n in sorted(summary["statuses"].items()))
    labels = ", ".join(f"{name} {n}" for name, n in summary["labels"].items())
    lines = [
        f"{summary['files']} files → {summary['out']} ({counts})",
        f"engine    {summary['engine']} {summary['precision']} on {summary['device']} "
        f"({summary['choice']})",
        f"speed     {summary['tiles_per_second']} tiles/s, {summary['seconds']} s",
        f"labels    {labels}",
    ]
    if labelled := summary["labelled"]:
        lines.append(
            f"accuracy  {_percent(labelled['accuracy'])}, balanced "
            f"{_percent(labelled['balanced_accuracy'])} on {labelled['tiles']} labelled tiles"
        )
    if verify := summary["verify"]:
        lines.append(
            f"verify    agreement {_percent(verify['agreement'])} on {verify['tiles']} tiles, "
            f"largest probability difference {verify['max_probability_difference']:.4f}"
            + ("" if verify["passed"] else f"  BELOW {_percent(verify['min_agreement'])}")
        )
        if (variant := verify["variant"]) and (reference := verify["reference"]):
            lines.append(
                f"          accuracy on them {_percent(variant['accuracy'])}, full precision "
                f"{_percent(reference['accuracy'])}"
            )
    for line in lines:
        console.print(line, markup=False)
    if labelled:
        _print_confusion(labelled, console)
    if sys.stdout:  # a service may have closed it
        sys.stdout.flush()


def _print_confusion(labelled: dict[str, Any], console: "Console") -> None:
    from rich.table import Table

    table = Table("truth ↓  predicted →", *labelled["classes"], "recall", title="confusion matrix")
    for name, row, recall in zip(
        labelled["classes"], labelled["confusion"], labelled["recall"], strict=True
    ):
        table.add_row(name, *map(str, row), "–" if recall is None else _percent(recall))
    console.print(table)


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"
