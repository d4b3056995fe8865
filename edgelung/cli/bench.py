"""`edgelung bench`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from edgelung import RESEARCH_USE_ONLY
from edgelung.cli.command import report
from edgelung.cli.options import (
    OUTPUT,
    SPEED,
    EngineOption,
    PrecisionOption,
    ThreadsOption,
    chosen,
)


def bench(
    bundle: Annotated[
        Path | None,
        typer.Argument(
            metavar="BUNDLE", help="Bundle that `edgelung export` wrote.  [default: the starter]"
        ),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Argument(
            metavar="FOLDER", help="Tiles to measure with.  [default: the bundle's golden tiles]"
        ),
    ] = None,
    engine: EngineOption = None,
    precision: PrecisionOption = None,
    threads: ThreadsOption = None,
    seconds: Annotated[
        float,
        typer.Option(
            min=0.1, max=3600, metavar="S", rich_help_panel=SPEED, help="Seconds of each scenario."
        ),
    ] = 10.0,
    bound_ms: Annotated[
        float,
        typer.Option(
            min=0.1,
            metavar="MS",
            rich_help_panel=SPEED,
            help="Server scenario: milliseconds that 99 % of the queries must stay under.",
        ),
    ] = 100.0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="JSON", rich_help_panel=OUTPUT, help="File to write the figures to as well."
        ),
    ] = None,
    as_json: Annotated[
        bool,
        typer.Option(
            "--json", rich_help_panel=OUTPUT, help="Print the figures as JSON on standard output."
        ),
    ] = False,
) -> None:
    """How fast is a bundle on this machine?

    Measures latency, the load a server can take and throughput, as MLPerf's scenarios do but
    shorter: of the model alone, and from file to row. Research use only.
    """
    from edgelung.artifacts.bench_result import check_bench_path, write_bench
    from edgelung.artifacts.bundle import open_bundle, starter_bundle
    from edgelung.core.terminal import progress
    from edgelung.core.typed_json import plain
    from edgelung.tools.bench import bench as measure

    if out:
        check_bench_path(out)
    opened = open_bundle(bundle or starter_bundle())
    with progress("bench") as advance:
        result = measure(
            opened,
            folder,
            engine=chosen(engine),
            precision=chosen(precision),
            threads=threads,
            seconds=seconds,
            bound_ms=bound_ms,
            on_step=lambda text: advance(0, text),
        )
    if out:
        write_bench(out, result)
    if as_json:
        print(json.dumps(plain(result), indent=2))
    else:
        _print(plain(result))
    report(RESEARCH_USE_ONLY)


def _print(result: dict[str, Any]) -> None:
    from rich.table import Table

    from edgelung.core.terminal import out

    samples = result["samples"]
    out().print(
        f"{result['engine']} {result['precision']} on {result['device']}, {result['threads']} "
        f"threads, {samples['files']} tiles ({samples['origin']})",
        markup=False,
    )
    table = Table("MLPerf-style scenario", "model", "end to end")
    single = result["single_stream"]
    for name in ("p50", "p90", "p99"):
        values = [f"{single[kind][f'{name}_ms']:.2f} ms" for kind in ("model", "end_to_end")]
        table.add_row(f"SingleStream {name}", *values)
    scatter = (
        f"{single[kind]['p99_ms'] / single[kind]['p50_ms']:.2f}" for kind in ("model", "end_to_end")
    )
    table.add_row("p99 over p50", *scatter)
    served = [result["server"][kind] for kind in ("model", "end_to_end")]
    table.add_row(
        f"Server, p99 ≤ {served[0]['bound_ms']:g} ms",
        *(f"{one['queries_per_second']:.1f}/s" for one in served),
    )
    offline = result["offline_tiles_per_second"]
    table.add_row("Offline", *(f"{offline[kind]:.1f}/s" for kind in ("model", "end_to_end")))
    out().print(table)
    loop = single["fixed_loop"]
    out().print(
        f"p99 over p50 of a fixed loop on one thread: {loop['p99_ms'] / loop['p50_ms']:.2f}. So "
        "much does this\nmachine's speed vary by itself."
    )
