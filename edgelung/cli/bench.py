"""`edgelung bench`."""

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from edgelung import RESEARCH_USE_ONLY
from edgelung.cli.options import EngineOption, PrecisionOption, Threads


def bench(
    bundle: Annotated[
        Path | None,
        typer.Argument(help="Bundle that `edgelung export` wrote; the starter by default."),
    ] = None,
    folder: Annotated[
        Path | None,
        typer.Argument(help="Tiles to measure with; the bundle's golden tiles by default."),
    ] = None,
    engine: EngineOption = None,
    precision: PrecisionOption = None,
    threads: Threads = None,
    seconds: Annotated[float, typer.Option(min=0.1, max=3600, help="Length of each run.")] = 10.0,
    bound_ms: Annotated[
        float, typer.Option(min=0.1, help="Server: what 99 % of queries must stay under.")
    ] = 100.0,
    out: Annotated[Path | None, typer.Option(help="Also write the figures here, as JSON.")] = None,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print the figures as JSON on standard output.")
    ] = False,
) -> None:
    """Measure a bundle here: latency, a server's load, throughput. Research use only."""
    from edgelung.artifacts.bench_result import check_bench_path, write_bench
    from edgelung.artifacts.bundle import open_bundle, starter_bundle
    from edgelung.core.terminal import note, progress
    from edgelung.core.typed_json import plain
    from edgelung.tools.bench import bench as measure

    if out:
        check_bench_path(out)
    opened = open_bundle(bundle or starter_bundle())
    with progress("bench") as advance:
        result = measure(
            opened,
            folder,
            engine=engine,
            precision=precision,
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
    note(RESEARCH_USE_ONLY)


def _print(result: dict[str, Any]) -> None:
    from rich.table import Table

    from edgelung.core.terminal import out

    samples = result["samples"]
    out.print(
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
    out.print(table)
    loop = single["fixed_loop"]
    out.print(
        f"a fixed loop on one thread has {loop['p99_ms'] / loop['p50_ms']:.2f}: what this machine "
        "scatters by itself"
    )
