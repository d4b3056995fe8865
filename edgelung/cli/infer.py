"""`edgelung infer`.

An option is added here, in `inference.session.Options` with the code that uses it, and in
`edgelung.infer_folder`; in `RunIdentity` (with a default) if rows depend on it, and in
`cli/defaults.py` if it may stand in edgelung.toml.
"""

import json
import os
import shlex
import sys
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgelung import RESEARCH_USE_ONLY
from edgelung.cli.cluster import check_ray, on_cluster
from edgelung.cli.command import report
from edgelung.cli.metrics import offer_metrics
from edgelung.cli.model import (
    AllowUnsignedOption,
    ModelOption,
    TrustOption,
    UnknownOption,
    UnknownTiles,
    if_passed,
    open_engines_folder,
    open_model,
    warn_of_gate,
)
from edgelung.cli.options import (
    CHECKS,
    INPUT,
    MODEL,
    OUTPUT,
    BatchSizeOption,
    CoverageOption,
    DeviceOption,
    EngineOption,
    FollowLinksOption,
    MinConfidenceOption,
    PrecisionOption,
    RayOption,
    StrictSizeOption,
    ThreadsOption,
    chosen,
    named_path,
)

if TYPE_CHECKING:
    from edgelung.artifacts.summary import Summary
    from edgelung.inference.destination import Destination
    from edgelung.inference.session import Options


def infer(
    folder: Annotated[
        list[Path],
        typer.Argument(
            parser=named_path,
            metavar="FOLDER",
            help="Folder of tiles, searched with all folders below; several share one output.",
        ),
    ],
    model: ModelOption = None,
    engine: EngineOption = None,
    precision: PrecisionOption = None,
    prebuilt: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=MODEL,
            help="TensorRT-RTX engines that `edgelung export --engine` built. Engines are "
            "programs: name only a folder that you trust, or have it signed.",
        ),
    ] = None,
    trust: TrustOption = None,
    allow_unsigned: AllowUnsignedOption = False,
    files: Annotated[
        Path | None,
        typer.Option(
            metavar="LIST",
            rich_help_panel=INPUT,
            help="Predict only these files: a list of paths (- reads it from standard input, from "
            "`find -print0` too), or a CSV with a `path` column. Names from a slow pipe wait until "
            "they fill a batch (see --batch-size).",
        ),
    ] = None,
    subset: Annotated[
        str | None,
        typer.Option(
            metavar="NAME", rich_help_panel=INPUT, help="With --files: only rows of this subset."
        ),
    ] = None,
    follow_links: FollowLinksOption = False,
    shard: Annotated[
        str | None,
        typer.Option(
            metavar="K/N",
            rich_help_panel=INPUT,
            help="Predict only part K of N, such as 3/8; other processes or machines predict the "
            "others, and `edgelung merge` puts the rows together.",
        ),
    ] = None,
    watch: Annotated[
        bool,
        typer.Option(
            "--watch",
            rich_help_panel=INPUT,
            help="Keep predicting new files in FOLDER until Ctrl-C.",
        ),
    ] = False,
    metrics_port: Annotated[
        int | None,
        typer.Option(
            min=0,
            max=65535,
            metavar="N",
            rich_help_panel=INPUT,
            help="With --watch: offer metrics for Prometheus on this port of this machine; 0: one "
            "that is free.",
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FILE",
            rich_help_panel=OUTPUT,
            help="Rows to write: .csv, .jsonl or .parquet; - is CSV on standard output.",
        ),
    ] = Path("predictions.csv"),
    min_confidence: MinConfidenceOption = None,
    strict_size: StrictSizeOption = None,
    unknown: UnknownOption = UnknownTiles.MARK,
    coverage: CoverageOption = None,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--restart",
            rich_help_panel=OUTPUT,
            help="Continue a run that was stopped, or discard its rows.",
            show_default=False,
        ),
    ] = None,
    summary: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON",
            rich_help_panel=OUTPUT,
            help="The run's summary.  [default: beside the rows]",
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", rich_help_panel=OUTPUT, help="Print the summary as JSON on standard output."
        ),
    ] = False,
    verify: Annotated[
        bool,
        typer.Option(
            "--verify",
            rich_help_panel=CHECKS,
            help="Run full precision on every tile as well, and compare.",
        ),
    ] = False,
    verify_every: Annotated[
        int,
        typer.Option(
            min=1,
            metavar="N",
            rich_help_panel=CHECKS,
            help="With --verify: only on every N-th batch.",
        ),
    ] = 1,
    batch_size: BatchSizeOption = None,
    threads: ThreadsOption = None,
    device: DeviceOption = None,
    ray: RayOption = None,
) -> None:
    """What class is each tile of a folder?

    Writes one row per file and a summary of the run; for the accuracy see `edgelung evaluate`.
    Defaults can stand in edgelung.toml, see `edgelung doctor`. Research use only.
    """
    from edgelung.artifacts.trust import choose_trust
    from edgelung.cli.counting import counting
    from edgelung.cli.defaults import read_defaults
    from edgelung.core.terminal import progress
    from edgelung.inference.destination import Destination
    from edgelung.inference.session import Options, infer_folder
    from edgelung.inference.shards import Shard
    from edgelung.inference.source import Source
    from edgelung.inference.watch import watch_folder

    _check_combination(out, summary, files, shard, metrics_port, watch=watch, as_json=as_json)
    check_ray(ray, {"--watch": watch, "--shard": shard, "--device": device, "--prebuilt": prebuilt})
    defaults = read_defaults(model)
    model = model or (Path(defaults.model) if defaults.model else None)
    policy = choose_trust(trust, allow_unsigned)
    bundle = open_model(model, policy)
    source = Source(tuple(folder), files, subset, follow_links)
    destination = Destination.parse(out, summary)
    options = Options(
        engine=chosen(engine, defaults.engine),
        precision=chosen(precision, if_passed(bundle, defaults.precision)),
        batch_size=batch_size or defaults.batch_size,
        threads=threads or defaults.threads,
        prebuilt=open_engines_folder(prebuilt, policy) if prebuilt else None,
        verify=verify,
        verify_every=verify_every,
        min_confidence=defaults.min_confidence if min_confidence is None else min_confidence,
        strict_size=bool(defaults.strict_size if strict_size is None else strict_size),
        keep_unknown=unknown is UnknownTiles.KEEP,
        coverage=coverage,
        shard=None if shard is None else Shard.parse(shard),
        gpu=device,
    )
    warn_of_gate(bundle, options.precision)
    with (
        on_cluster(ray, allow_unsigned=allow_unsigned) as engines,
        progress("infer") as advance,
        counting(source, destination, advance, options, watch),
    ):
        run = partial(infer_folder, engines=engines)
        if watch:
            run = partial(watch_folder, on_records=offer_metrics(metrics_port))
        result = run(
            source,
            bundle,
            destination,
            options,
            resume=resume,
            on_rows=advance,
            on_stopped=_print_resume_command,
        )
    _report_end(result, destination, summary, options, as_json=as_json)
    raise typer.Exit(result.exit_code)


def _check_combination(
    out: Path,
    summary: Path | None,
    files: Path | None,
    shard: str | None,
    metrics_port: int | None,
    *,
    watch: bool,
    as_json: bool,
) -> None:
    """Raise a usage error for options that exclude each other."""
    from edgelung.inference.destination import STANDARD_OUTPUT

    if as_json and out == STANDARD_OUTPUT:
        raise typer.BadParameter("--json and the rows would share standard output; use --summary")
    if watch and files:
        raise typer.BadParameter("--watch finds its files itself; leave --files out")
    if metrics_port is not None and not watch:
        raise typer.BadParameter("--metrics-port is for a run that goes on; add --watch")
    if shard is not None and (watch or summary or out == STANDARD_OUTPUT):
        raise typer.BadParameter(
            "--shard writes rows that `edgelung merge` reads with the summary beside them; "
            "expected --out FILE, no --summary and no --watch"
        )


def _report_end(
    result: "Summary",
    destination: "Destination",
    summary: Path | None,
    options: "Options",
    *,
    as_json: bool,
) -> None:
    """Print the summary, and the command that comes next."""
    from edgelung.core.typed_json import plain

    try:
        if as_json:
            print(json.dumps(plain(result), indent=2), flush=True)
        else:
            print_summary(result)
        if options.shard is None:
            _print_view_command(destination, summary)
        else:
            report("once all %d parts have ended: edgelung merge", options.shard.count)
        report(RESEARCH_USE_ONLY)
    except BrokenPipeError:  # `| head`: the rows are complete, and the exit code says so
        sys.stdout = sys.stderr = open(os.devnull, "w")  # noqa: SIM115 (flushed as Python ends)


def _print_resume_command(rows: int, journal: Path) -> None:
    words = [word for word in sys.argv[1:] if word not in ("--resume", "--restart")]
    command = shlex.join(["edgelung", *words, "--resume"])
    report("stopped: %d rows are kept in %s. To continue:\n%s", *(rows, journal.name, command))


def _print_view_command(destination: "Destination", summary: Path | None) -> None:
    """Name the command that shows the rows as pictures; rows on standard output have none."""
    if destination.rows:
        beside = [] if summary is None else ["--summary", str(summary)]
        words = ["edgelung", "view", destination.name, *beside]
        report("to see the tiles: %s", shlex.join(words))


def print_summary(summary: "Summary") -> None:
    """Print the run for people: on standard output, or on standard error if the rows go there."""
    from edgelung.core.errors import visible
    from edgelung.core.terminal import err, out

    console = err() if summary.out == "-" else out()
    counts = ", ".join(f"{n} {status}" for status, n in sorted(summary.statuses.items()))
    labels = ", ".join(f"{name} {n}" for name, n in summary.labels.items())
    lines = [
        *(concern.text for concern in summary.concerns),
        f"{summary.files} files → {summary.out} ({counts})",
        f"engine    {summary.engine} {summary.precision} on {summary.device} ({summary.choice})",
        _speed(summary),
        f"labels    {labels}",
    ]
    if summary.nodes:
        names = ", ".join(sorted({node.host.name for node in summary.nodes}))
        lines.append(f"cluster   {names}; {summary.threads} threads")
    if stages := summary.stages:
        left = stages.get("1", 0)
        lines.append(f"early exit {_percent(left / sum(stages.values()))} of the tiles left there")
    if text := _unknown(summary):
        lines.append(f"unknown   {text}")
    if summary.links_skipped:
        lines.append(
            f"links     {summary.links_skipped} lead out of the folder and were skipped; "
            "--follow-links follows them"
        )
    if summary.signature:
        lines.append(f"signed    {summary.signature.text}")
    if summary.prebuilt_signature:
        lines.append(f"engines   {summary.prebuilt_signature.text}")
    if summary.other_sizes:
        lines.append(
            f"sizes     {summary.other_sizes} tiles are of other sizes than the training tiles "
            f"({summary.trained_sizes})"
        )
    if verify := summary.verify:
        lines.append(
            f"verify    agreement {_percent(verify.agreement)} on {verify.tiles} tiles, "
            f"largest probability difference {verify.max_probability_difference:.4f}"
            + ("" if verify.passed else f"  BELOW {_percent(verify.min_agreement)}")
        )
    for line in lines:
        console.print(visible(line))
    if sys.stdout:  # a service may have closed it
        sys.stdout.flush()


def _speed(summary: "Summary") -> str:
    if summary.parts:
        return f"parts     {len(summary.parts)}, {summary.seconds} s in all"
    part = summary.options.get("--shard")
    of_part = f"; part {part} of {summary.listing.files:,} files" if summary.listing else ""
    return f"speed     {summary.tiles_per_second} tiles/s, {summary.seconds} s{of_part}"


def _unknown(summary: "Summary") -> str:
    """What the run says of tiles that the model was not made for; '' if there are none."""
    from edgelung.tiles.status import PREDICTED, Status

    predicted = sum(n for status, n in summary.statuses.items() if status in PREDICTED)
    unknown, blank = (summary.statuses.get(s, 0) for s in (Status.UNKNOWN, Status.BLANK))
    if not predicted:
        return ""
    if not summary.knows_unknown and not summary.options.get("--unknown keep"):
        return (
            "this bundle cannot tell tissue that it was not made for: an older edgelung made it; "
            "export it again"
        )
    if not unknown + blank:
        return ""
    return (
        f"{_percent(unknown / predicted)} of the tiles are unlike the training tiles, "
        f"{_percent(blank / predicted)} show no tissue: they have no label"
    )


def _percent(value: float | None) -> str:
    return "–" if value is None else f"{100 * value:.2f} %"
