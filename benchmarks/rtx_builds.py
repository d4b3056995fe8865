"""What TensorRT-RTX makes of a bundle with no GPU: sizes, seconds, linears; twice the same?

python benchmarks/rtx_builds.py BUNDLE [OUT.json]
"""

import json
import re
import sys
import time
from collections import Counter
from pathlib import Path

import machine
from rich.console import Console
from rich.table import Table

from edgelung.artifacts.bundle import open_bundle
from edgelung.engines.tensorrt.build import Profile, build_engine
from edgelung.engines.tensorrt.flavour import load_flavour

TARGETS = ("sm_86", "sm_89", "sm_120")
GENERATED_NAME = re.compile(rb"__mye\d+")  # numbered as the builder's threads come to them


def fused_attention(plan: bytes) -> dict[str, int]:
    """How many blocks have one kernel for attention, by the type of its products.

    TensorRT-RTX compiles kernels where the engine runs, so their sources stand in the engine.
    """
    kernels = re.findall(
        rb"Kernel_traits = fmha::.*?fmha::\w+?_([a-z]+_\w+)_traits", plan, re.DOTALL
    )
    return dict(Counter(kind.decode() for kind in kernels))


def main() -> None:
    """Build every graph for every target, twice for the first."""
    bundle, flavour = open_bundle(Path(sys.argv[1])), load_flavour("tensorrt-rtx")
    rows = []
    graphs = {
        f"{variant.precision}{'' if graph is variant.graph else ', second stage'}": graph
        for variant in bundle.variants.values()
        for graph in (variant.graph, variant.second)
        if graph is not None
    }
    for name, graph in graphs.items():
        for target in TARGETS:
            start = time.perf_counter()
            built = build_engine(flavour, graph, Profile(), target=target)
            row = {
                "variant": name,
                "target": target,
                "onnx_bytes": graph.size,
                "engine_bytes": len(built.plan),
                "seconds": round(time.perf_counter() - start, 2),
                "linears": built.contents.types,
                "layers": built.contents.layers,
                "fused_attention": fused_attention(built.plan),
            }
            if target == TARGETS[0]:
                again = build_engine(flavour, graph, Profile(), target=target).plan
                pairs = zip(built.plan, again, strict=False)
                row["bytes_that_differ_in_a_second_build"] = sum(a != b for a, b in pairs)
                row["same_but_for_generated_names"] = GENERATED_NAME.sub(
                    b"", built.plan
                ) == GENERATED_NAME.sub(b"", again)
            rows.append(row)
    result = {"flavour": flavour.title, "engines": rows, "machine": machine.describe()}
    default = Path(__file__).parent / "results" / "rtx-builds.json"
    path = Path(sys.argv[2]) if len(sys.argv) > 2 else default
    path.write_text(json.dumps(result, indent=2) + "\n")
    table = Table("variant", "target", "ONNX MB", "engine MB", "seconds", "linears")
    for row in rows:
        linears = ", ".join(f"{n} {kind}" for kind, n in row["linears"].items())
        sizes = [f"{row[key] / 1e6:.1f}" for key in ("onnx_bytes", "engine_bytes")]
        table.add_row(row["variant"], row["target"], *sizes, str(row["seconds"]), linears)
    Console().print(table)


if __name__ == "__main__":
    main()
