"""Tables of GPUs."""

from collections.abc import Sequence
from typing import Any

from figures.table import NONE, Table, percent, result

BATCHES = (1, 8, 32, 128)
NOT_MEASURED = "not measured"


def card() -> Table:
    """An H200: latency of the starter's student in ONNX Runtime CUDA."""
    content = result("gpu-nvidia-h200.json")
    rows = []
    for precision in ("fp32", "fp16", "int8", "int8-fp16"):
        latencies = content["parts"][f"bundle {precision} latency, no graphs"]
        rows.append([precision, *(f"{latencies[f'batch {n}']['p50']:.1f} ms" for n in BATCHES)])
    header = ["variant", *(f"batch {n}, p50" for n in BATCHES)]
    return Table(header, rows, {"gpu-nvidia-h200.json": content})


def card_throughput() -> Table:
    """An H200: DeiT-base in FP16 and the folder run."""
    content = result("gpu-nvidia-h200.json")
    parts = content["parts"]
    engine = parts["DeiT-B FP16 throughput"]["onnxruntime-cuda"]
    torch, run = parts["DeiT-B torch FP16"], parts["folder run"]
    compiled = torch["compiled batch 128"]["tiles_per_second"]
    rows = [
        [
            "DeiT-base FP16, ONNX Runtime CUDA, uint8 in host memory",
            f"{engine['single_stream_ms']['p50']:.2f} ms",
            f"{engine['offline_tiles_per_second']:,.0f} tiles/s",
            percent(engine["share_of_fp16_peak"], 0),
        ],
        [
            "DeiT-base FP16, torch compiled, tensors on the card already",
            f"{torch['compiled batch 1']['p50']:.2f} ms",
            f"{compiled:,.0f} tiles/s",
            NONE,
        ],
        [
            f"folder run, DeiT-tiny, {run['files']} files, 16 CPU cores",
            NONE,
            f"{run['tiles_per_second']:,.0f} tiles/s",
            NONE,
        ],
    ]
    header = ["what", "batch 1, p50", "throughput", "of the FP16 peak"]
    return Table(header, rows, {"gpu-nvidia-h200.json": content})


def card_parity() -> Table:
    """An H200: the same file on the card and on a CPU."""
    content = result("gpu-nvidia-h200.json")
    rows = []
    parity = content["parts"]["parity with ONNX Runtime CPU"]
    for name, found in parity.items():
        if isinstance(found, dict) and "largest_difference" in found:
            rows.append(
                [
                    name,
                    f"{found['largest_difference']:.1g}",
                    percent(found["agreement_with_same_file_on_cpu"]),
                    percent(found["agreement_with_fp32"]),
                ]
            )
    header = ["engine, variant", "largest probability difference to the CPU"]
    header += ["same label as on the CPU", "same label as FP32"]
    return Table(header, rows, {"gpu-nvidia-h200.json": content}, f"On {parity['note']}:")


def card_kernels() -> Table:
    """An H200: the resize kernels."""
    content = result("gpu-nvidia-h200.json")
    rows = [
        [name, str(found["differing_values"]), f"{found['tiles_per_second']:,.0f} tiles/s"]
        for name, found in content["parts"]["resize kernels"].items()
        if isinstance(found, dict)
    ]
    header = ["random tiles", "values that differ from the reader's", "speed"]
    return Table(header, rows, {"gpu-nvidia-h200.json": content})


def rtx() -> Table:
    """Engines of a trained DeiT-tiny that TensorRT-RTX built without a GPU."""
    content = result("rtx-builds.json")
    rows = [
        [
            row["variant"],
            row["target"],
            f"{row['onnx_bytes'] / 1e6:.1f} MB",
            f"{row['engine_bytes'] / 1e6:.1f} MB",
            ", ".join(f"{count} {kind}" for kind, count in row["linears"].items()),
            f"{row['seconds']:.1f} s",
        ]
        for row in content["engines"]
    ]
    header = ["variant", "for", "ONNX", "engine", "linear layers", "build"]
    return Table(header, rows, {"rtx-builds.json": content})


def card_training() -> Table:
    """Seconds of an epoch on an H200."""
    content = result("training-nvidia-h200.json")
    alone = content["quick alone"]
    paper = content["recipe paper, random weights, two of thirty epochs"]["epochs"]
    rows = [
        [f"recipe quick, alone on the card: {epoch['stage']}", f"{epoch['seconds']:.0f} s"]
        for epoch in alone
    ]
    names = {"teacher": "ResNet50", "baseline": "VGG16", "student": "DeiT-base"}
    rows += [
        [
            f"recipe paper, beside twelve other trainings: {names[epoch['stage']]}",
            f"{epoch['seconds']:.0f} s",
        ]
        for epoch in paper
    ]
    return Table(["epoch", "seconds"], rows, {"training-nvidia-h200.json": content})


def recipe_times() -> Table:
    """How long the recipes take, as far as it was measured."""
    demo, quick = result("demo-cpu.json"), result("real-tiles-cpu.json")
    starter, card = result("starter.json"), result("training-nvidia-h200.json")
    smaller = result("starter-160.json")
    labels_alone = card["recipe starter from the labels alone"]["epochs"]
    paper = card["recipe paper, random weights, two of thirty epochs"]["epochs"]
    rows = [
        ["`demo`", f"{_tiles(demo):,}", _minutes(demo["seconds"]["train"]), NOT_MEASURED],
        [
            "`quick`",
            f"{_tiles(quick):,}",
            _minutes(quick["seconds"]["train"]),
            f"{NOT_MEASURED}; {_span(card['quick alone'])} an epoch",
        ],
        [
            "`starter`",
            f"{_tiles(quick):,}",
            f"{NOT_MEASURED}; the epochs took {_total(starter['epochs'])} on a busy machine",
            f"{NOT_MEASURED}; {len(labels_alone)} epochs without a teacher took "
            f"{_total(labels_alone)} beside other trainings",
        ],
        [
            "`starter-160`, after `starter`",
            f"{_tiles(quick):,}",
            f"{NOT_MEASURED}; the epoch took {_total(smaller['epochs'])}",
            NOT_MEASURED,
        ],
        [
            "`paper`",
            f"{_tiles(quick):,}",
            NOT_MEASURED,
            f"{NOT_MEASURED}; {_span(paper)} an epoch and model beside other trainings",
        ],
    ]
    sources = {
        "demo-cpu.json": demo,
        "real-tiles-cpu.json": quick,
        "starter.json": starter,
        "starter-160.json": smaller,
        "training-nvidia-h200.json": card,
    }
    return Table(["recipe", "tiles", "two CPU cores", "one NVIDIA H200"], rows, sources)


def _tiles(content: dict[str, Any]) -> int:
    counts = content["counts"].values()
    return sum(size["tiles"] for classes in counts for size in classes.values())


def _minutes(seconds: float) -> str:
    return f"{seconds / 60:.0f} minutes"


def _total(epochs: Sequence[dict[str, Any]]) -> str:
    return _minutes(sum(epoch["seconds"] for epoch in epochs))


def _span(epochs: Sequence[dict[str, Any]]) -> str:
    seconds = [epoch["seconds"] for epoch in epochs]
    return f"{min(seconds):.0f} to {max(seconds):.0f} s"


TABLES = {
    "card": card,
    "card-throughput": card_throughput,
    "card-parity": card_parity,
    "card-kernels": card_kernels,
    "rtx": rtx,
    "card-training": card_training,
    "recipe-times": recipe_times,
}
