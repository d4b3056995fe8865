"""`edgelung infer`."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgelung import RESEARCH_USE_ONLY

if TYPE_CHECKING:
    from edgelung.folder.pipeline import Row


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
            help="Folder of tiles (searched below); several share one CSV.",
        ),
    ],
    model: Annotated[
        Path,
        typer.Option(
            parser=_named_path, metavar="BUNDLE", help="Bundle that `edgelung export` wrote."
        ),
    ],
    out: Annotated[Path, typer.Option(help="CSV to write.")] = Path("predictions.csv"),
    engine: Annotated[
        str,
        typer.Option(
            help="auto, tensorrt, tensorrt-rtx, onnxruntime-cuda, onnxruntime-tensorrt, openvino "
            "or onnxruntime."
        ),
    ] = "auto",
    precision: Annotated[str, typer.Option(help="auto, fp32, fp16 or int8.")] = "auto",
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
        typer.Option(help="Predict only these: a list of paths, or a CSV with a `path` column."),
    ] = None,
    subset: Annotated[
        str | None, typer.Option(help="With --files: only the rows of this subset.")
    ] = None,
    batch_size: Annotated[int, typer.Option(min=1, max=1024, help="Tiles per batch.")] = 32,
    threads: Annotated[
        int | None, typer.Option(min=1, max=1024, help="CPU threads; all by default.")
    ] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the summary as JSON on standard output.")
    ] = False,
) -> None:
    """Predict every tile of a folder: one CSV row per file. Research use only."""
    from edgelung.bundle import open_bundle
    from edgelung.folder.run import gather, infer_folder
    from edgelung.terminal import note, progress

    bundle = open_bundle(model)
    found = gather(folder, files, subset, out)
    if precision in bundle.variants and not bundle.variants[precision].passed:
        verdict = bundle.variants[precision].gate["verdict"]
        note(f"the {precision} variant did not pass its gate ({verdict}); used as asked")
    with progress("infer") as advance:

        def on_row(row: "Row") -> None:
            advance(1)

        summary = infer_folder(
            found,
            bundle,
            out,
            engine=engine,
            precision=precision,
            batch_size=batch_size,
            threads=threads,
            prebuilt=prebuilt,
            verify=verify,
            verify_every=verify_every,
            on_row=on_row,
        )
    try:
        if as_json:
            print(json.dumps(summary, indent=2), flush=True)
        else:
            print_summary(summary)
    except BrokenPipeError:  # `| head`: the CSV is whole, and so is the exit code
        sys.stdout = open(os.devnull, "w")  # noqa: SIM115 (what Python flushes at its end)
    note(RESEARCH_USE_ONLY)
    raise typer.Exit(summary["exit_code"])


def print_summary(summary: dict[str, Any]) -> None:
    """The run for people, on standard output."""
    from edgelung.terminal import out

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
        if reference := verify["reference"]:
            lines.append(f"          full precision: accuracy {_percent(reference['accuracy'])}")
    for line in lines:
        out.print(line, markup=False)
    if labelled:
        _print_confusion(labelled)
    sys.stdout.flush()


def _print_confusion(labelled: dict[str, Any]) -> None:
    from rich.table import Table

    from edgelung.terminal import out

    table = Table("truth ↓  predicted →", *labelled["classes"], "recall", title="confusion matrix")
    for name, row, recall in zip(
        labelled["classes"], labelled["confusion"], labelled["recall"], strict=True
    ):
        table.add_row(name, *map(str, row), "–" if recall is None else _percent(recall))
    out.print(table)


def _percent(value: float) -> str:
    return f"{100 * value:.2f} %"
