"""The rows of each table that `tables.py` writes, from the files in benchmarks/results."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
RESULTS = ROOT / "benchmarks" / "results"
NONE = "–"


@dataclass(frozen=True)
class Table:
    """A table: header, rows of cells, the content of its files, and a line to stand above it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    sources: dict[str, dict[str, Any]]
    note: str = ""


def result(name: str) -> dict[str, Any]:
    """The content of a result file."""
    content: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return content


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction in per cent."""
    return NONE if value is None else f"{100 * value:.{digits}f} %"


def points(value: float, digits: int = 1) -> str:
    """A difference of fractions in points, with its sign."""
    return f"{100 * value:+.{digits}f}".replace("-", "−")


def interval(bounds: Sequence[float] | None, form: Callable[[float], str] | None = None) -> str:
    """Two bounds; in per cent without a unit, or in `form`."""
    if bounds is None:
        return NONE
    form = form or (lambda value: f"{100 * value:.1f}")
    return f"{form(bounds[0])} … {form(bounds[1])}"


def difference(found: dict[str, Any]) -> str:
    """A paired difference in points and its interval."""
    return f"{points(found['difference'])} ({interval(found['difference_interval'], points)})"


def tested(test: dict[str, Any]) -> list[str]:
    """Balanced accuracy of a test set and its interval."""
    bounds = test.get("intervals", {}).get("balanced_accuracy")
    return [percent(test["balanced_accuracy"]), interval(bounds)]


def overview() -> Table:
    """README: what the shipped starter has, and what it is compared with."""
    names = ("starter.json", "random-split.json", "distillation.json")
    starter, random_split, distillation = map(result, names)
    metrics, int8 = starter["metrics"], starter["variants"]["int8"]
    worst = int8["gate"]["checks"]["disagreement"]
    test = metrics["student"]["test"]
    where = f"{test['tiles']:,} test tiles of {test['groups']} unseen groups"
    folder = result("folder.json")["sets"]["768"]
    rates = folder["tiles_per_second"]
    rows = [
        [f"starter, FP32; {where}", *tested(test), names[0]],
        ["starter, INT8 in ONNX Runtime; the same tiles", *tested(int8["test"]), names[0]],
        ["its CNN teacher; the same tiles", *tested(metrics["teacher"]["test"]), names[0]],
        [
            "student without a teacher; the same tiles",
            *tested(distillation["metrics"]["student"]["test"]),
            names[2],
        ],
        [
            "same recipe, **random** split: each test tile has a copy of its source in training",
            *tested(random_split["metrics"]["student"]["test"]),
            names[1],
        ],
        [
            f"labels that INT8 changes, {int8['gate']['tiles']:,} gate tiles",
            percent(worst["loss"], 2),
            f"worst case {percent(worst['high'], 2)} (90 %)",
            names[0],
        ],
        [
            f"folder run, INT8, {folder['files']:,} files of 768 px, 2 CPU cores",
            f"{rates['d edgelung int8']:.0f} tiles/s",
            "one run",
            "folder.json",
        ],
    ]
    rows = [[*row[:3], f"[{row[3]}]({row[3]})"] for row in rows]
    header = ["what", "balanced accuracy, or as said", "95 % interval", "file"]
    return Table(header, rows, {})


def starter() -> Table:
    """The shipped starter, model by model."""
    content = result("starter.json")
    metrics, int8 = content["metrics"], content["variants"]["int8"]
    openvino = content["infer_openvino_int8_on_test"]
    models = [
        ("teacher tf_efficientnet_lite2", metrics["teacher"], NONE),
        ("student FP32", metrics["student"], NONE),
    ]
    rows = [
        [
            name,
            percent(model["val"]["balanced_accuracy"]),
            *tested(model["test"]),
            percent(model["test"]["accuracy"]),
            agreement,
        ]
        for name, model, agreement in models
    ]
    rows.append(
        [
            "student INT8, ONNX Runtime",
            NONE,
            *tested(int8["test"]),
            percent(int8["test"]["accuracy"]),
            percent(int8["test"]["agreement_with_fp32"], 2),
        ]
    )
    rows.append(
        [
            "student INT8, OpenVINO",
            NONE,
            percent(openvino["labelled"]["balanced_accuracy"]),
            NONE,
            percent(openvino["labelled"]["accuracy"]),
            percent(openvino["verify"]["agreement"], 2),
        ]
    )
    header = ["model", "validation, balanced", "test, balanced", "95 % interval", "test, accuracy"]
    return Table([*header, "same label as FP32"], rows, {"starter.json": content})


def starter_classes() -> Table:
    """Recall and errors of the starter by class."""
    content = result("starter.json")
    classes = content["metrics"]["classes"]
    test = content["metrics"]["student"]["test"]
    rows = [
        [name, percent(recall), percent(precision), *map(str, confusion)]
        for name, recall, precision, confusion in zip(
            classes, test["recall"], test["precision"], test["confusion"], strict=True
        )
    ]
    header = ["true class", "recall", "precision", *(f"predicted {name}" for name in classes)]
    return Table(header, rows, {"starter.json": content})


def starter_gate() -> Table:
    """What the gate found of the starter's INT8."""
    content = result("starter.json")
    gate = content["variants"]["int8"]["gate"]
    rows = [
        [name, *(percent(check[key], 2) for key in ("loss", "low", "high", "limit"))]
        for name, check in gate["checks"].items()
    ]
    header = ["loss", "measured", "best case", "worst case", "limit"]
    return Table(header, rows, {"starter.json": content})


def splits() -> Table:
    """The same recipe by groups and at random."""
    groups, mixed = result("starter.json"), result("random-split.json")
    rows = [
        [name, role, *tested(content["metrics"][role]["test"])]
        for name, content in (("by group", groups), ("at random", mixed))
        for role in ("teacher", "student")
    ]
    sources = {"starter.json": groups, "random-split.json": mixed}
    return Table(["split", "model", "test, balanced", "95 % interval"], rows, sources)


def comparisons() -> Table:
    """Paired differences to the starter's student on the same test tiles."""
    names = ("starter.json", "distillation.json", "training-nvidia-h200.json")
    starter, alone, h200 = map(result, names)
    seed, card = starter["second_seed"], h200["recipe starter from the labels alone"]
    rows = [
        [
            "labels alone, on a CPU",
            *tested(alone["metrics"]["student"]["test"]),
            points(alone["difference"]),
            interval(alone["difference_interval"], points),
        ],
        [
            "labels alone, on an H200",
            percent(card["balanced_accuracy"]),
            interval(card["interval"]),
            points(card["minus_the_starter"]),
            interval(card["minus_the_starter_interval"], points),
        ],
        [
            "another seed of the student",
            percent(seed["balanced_accuracy"]),
            interval(seed["interval"]),
            points(seed["minus_seed_0"]),
            interval(seed["minus_seed_0_interval"], points),
        ],
    ]
    header = ["student", "test, balanced", "95 % interval", "minus the starter, points", "95 %"]
    return Table(header, rows, dict(zip(names, (starter, alone, h200), strict=True)))


def outside() -> Table:
    """Confidence on tissue that the starter does not know."""
    content = result("starter.json")
    found = content["outside"]
    tests = content["metrics"]["student"]["test"]["tiles"]
    rows = [
        [
            f"lung test tiles (n = {tests:,})",
            f"{found['median_confidence_on_test']:.3f}",
            percent(found["share_above_0.9_on_test"]),
        ],
        [
            f"colon tiles (n = {found['tiles']})",
            f"{found['median_confidence']:.3f}",
            percent(found["share_above_0.9"]),
        ],
    ]
    header = ["tiles", "median confidence", "confidence above 0.9"]
    return Table(header, rows, {"starter.json": content})


def quick() -> Table:
    """Recipe quick on real tiles, from training to inference."""
    content = result("real-tiles-cpu.json")
    teacher = content["teacher"]["test"]["balanced_accuracy"]
    rows = [["teacher tf_efficientnet_lite0", NONE, percent(teacher), NONE, NONE, NONE]]
    for row in content["test"]:
        verdict = content["gate"][row["precision"]]["verdict"]
        size = content["bytes"][row["precision"]] / 1e6
        rows.append(
            [
                f"student {row['precision'].upper()}",
                row["engine"],
                percent(row["balanced_accuracy"], 2),
                percent(row["agreement_with_onnxruntime_fp32"], 2),
                f"{verdict}, {size:.1f} MB",
                f"{row['tiles_per_second']:.0f}",
            ]
        )
    header = ["model", "engine", "test, balanced", "same label as FP32", "gate, file", "tiles/s"]
    return Table(header, rows, {"real-tiles-cpu.json": content})


def ablation() -> Table:
    """What each part of recipe quick brings in four epochs."""
    content = result("ablation.json")
    rows = []
    for name, variant in content["variants"].items():
        seeds = list(variant["seeds"].values())
        rows.append(
            [
                name,
                ", ".join(percent(seed["val"]) for seed in seeds),
                "; ".join(difference(seed) for seed in seeds if "difference" in seed) or NONE,
                ", ".join(percent(seed["test"]) for seed in seeds),
            ]
        )
    header = ["student, four epochs", "validation, seeds 0 and 1", "minus the first, points (95 %)"]
    return Table([*header, "test"], rows, {"ablation.json": content})


QUANTIZED = {
    "edgelung": "**edgelung** (`auto`)",
    "edgelung, linears alone": "edgelung, linears alone",
    "min-max alone": "min-max of the linears, no migration",
    "ort-dynamic": "ONNX Runtime `quantize_dynamic`",
    "ort-static": "ONNX Runtime `quantize_static`",
    "modelopt": "NVIDIA ModelOpt",
    "nncf": "NNCF, transformer mode",
    "edgelung, stressed": "edgelung, stressed student",
    "min-max alone, stressed": "min-max, stressed student",
}


def quantization() -> Table:
    """INT8 by edgelung and by other tools, on one student."""
    content = result("quantization.json")
    rows = []
    for key, name in QUANTIZED.items():
        row = content["rows"][key]
        rows.append(
            [
                f"{name} {row.get('version', '')}".strip(),
                percent(row["agreement"], 2),
                points(row["balanced_accuracy_change"], 2),
                interval(row["change_interval"], lambda value: points(value, 2)),
                f"{row['mean_probability_difference']:.5f}",
                row["gate_on_test"],
                f"{row['onnxruntime_speedup']:.2f} ×",
                f"{row['openvino_speedup']:.2f} ×",
            ]
        )
    header = ["INT8 by", "same label as FP32", "balanced accuracy, points", "95 %"]
    header += ["mean Δ probability", "gate", "ONNX Runtime", "OpenVINO"]
    note = (
        f"{content['calibration_tiles']:,} calibration tiles, {content['test_tiles']:,} test tiles "
        f"in {content['test_groups']} groups:"
    )
    return Table(header, rows, {"quantization.json": content}, note)


FOLDER = {
    "a timm-style fp32": "Pillow, torchvision, PyTorch FP32 behind a DataLoader",
    "b pillow+ort fp32": "Pillow, ONNX Runtime FP32",
    "c pillow+ort int8": "Pillow, ONNX Runtime INT8",
    "d edgelung fp32": "`edgelung infer` FP32",
    "d edgelung int8": "**`edgelung infer` INT8**",
    "e decode alone": "decoding alone",
    "e engine alone int8": "INT8 engine alone",
}


def folder() -> Table:
    """The folder run against what people write themselves; tiles a second."""
    content = result("folder.json")
    sets = [content["sets"][size] for size in ("768", "224")]
    rows = [
        [name, *(f"{found['tiles_per_second'][key]:,.1f}" for found in sets)]
        for key, name in FOLDER.items()
    ]
    rows.append(
        [
            "floor: 1 / (decoding + engine)",
            *(f"{found['floor_tiles_per_second']:,.1f}" for found in sets),
        ]
    )
    header = ["tiles a second, from file to row"]
    header += [f"{found['files']:,} files of {size} px" for size, found in content["sets"].items()]
    return Table(header, rows, {"folder.json": content})


def memory() -> Table:
    """Peak memory of a folder run."""
    content = result("folder-memory.json")
    rows = [[f"{row['files']:,}", f"{row['peak_mb']:.0f} MB"] for row in content["memory"]]
    return Table(["files", "peak memory"], rows, {"folder-memory.json": content})


def latency() -> Table:
    """Latency of one tile at a time, on two machines."""
    names = ("bench.json", "bench-steady.json")
    contents = dict(zip(names, map(result, names), strict=True))
    rows = []
    for name, content in contents.items():
        stream = content["single_stream"]
        whole, loop = stream["end_to_end"], stream["fixed_loop"]
        rows.append(
            [
                name,
                *(f"{whole[key]:.1f} ms" for key in ("p50_ms", "p90_ms", "p99_ms")),
                f"{whole['p99_ms'] / whole['p50_ms']:.2f}",
                f"{loop['p99_ms'] / loop['p50_ms']:.2f}",
                f"{content['offline_tiles_per_second']['end_to_end']:.0f} tiles/s",
            ]
        )
    header = ["file", "p50", "p90", "p99", "p99 / p50", "the same of a fixed loop", "Offline"]
    return Table(header, rows, contents)


def audit() -> Table:
    """Grouping of the LC25000 lung tiles."""
    content = result("audit.json")
    rows = [
        [
            f"{row['tiles']:,}",
            f"{row['seconds']:.0f}",
            f"{row['peak_bytes'] / 1e9:.2f} GB",
            str(row["groups"]),
            str(row["known_groups"]),
            percent(row["recall"], 0),
            percent(row["precision"], 0),
            str(row["known_pairs_joined"]),
        ]
        for row in content["sets"]
    ]
    header = ["tiles", "seconds", "peak memory", "groups found", "published", "recall of pairs"]
    header += ["precision", "published pairs joined"]
    return Table(header, rows, {"audit.json": content})


def joined_pairs() -> Table:
    """Published groups that show one piece of tissue."""
    content = result("audit.json")
    by_class: dict[str, list[str]] = {}
    for pair in sorted(content["sets"][-1]["known_pairs"], key=lambda pair: -pair["inliers"]):
        label, _, first = pair["first"].partition(":")
        second = pair["second"].partition(":")[2]
        by_class.setdefault(label, []).append(f"{first} and {second} ({pair['inliers']})")
    rows = [[label, ", ".join(pairs)] for label, pairs in sorted(by_class.items())]
    header = ["class", "published groups that are one (inliers of the linking tiles)"]
    return Table(header, rows, {"audit.json": content})


def demo() -> Table:
    """`make demo` on synthetic tiles."""
    content = result("demo-cpu.json")
    rows = [
        [
            f"student {row['precision'].upper()}, {row['engine']}",
            percent(row["balanced_accuracy"], 2),
            interval(row["balanced_accuracy_interval"]),
            percent(row["agreement_with_onnxruntime_fp32"], 2),
            f"{row['tiles_per_second']:.0f}",
        ]
        for row in content["test"]
    ]
    header = ["model", "test, balanced", "95 % interval", "same label as FP32", "tiles/s"]
    return Table(header, rows, {"demo-cpu.json": content})


def reader() -> Table:
    """The reader on the test files of other projects."""
    content = result("corpora.json")
    rows = [[f"`{status}`", f"{count:,}"] for status, count in content["statuses"].items()]
    rows.append(["errors without a status", str(len(content["exceptions_other_than_TileError"]))])
    rows.append(["lines that decoders printed", str(content["lines_on_stderr"])])
    return Table([f"of {content['files']:,} files", "files"], rows, {"corpora.json": content})


def loader() -> Table:
    """Reading tiles against training on them."""
    content = result("loader.json")
    rows = [
        [name, *(f"{rate[key]:,.0f}" for key in ("median", "slowest", "fastest"))]
        for name, rate in content["tiles_per_second"].items()
    ]
    header = ["tiles a second", "median", "slowest", "fastest"]
    return Table(header, rows, {"loader.json": content})


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


BATCHES = (1, 8, 32, 128)
TABLES: dict[str, Callable[[], Table]] = {
    "overview": overview,
    "starter": starter,
    "starter-classes": starter_classes,
    "starter-gate": starter_gate,
    "splits": splits,
    "comparisons": comparisons,
    "outside": outside,
    "quick": quick,
    "ablation": ablation,
    "quantization": quantization,
    "folder": folder,
    "memory": memory,
    "latency": latency,
    "audit": audit,
    "joined-pairs": joined_pairs,
    "demo": demo,
    "reader": reader,
    "loader": loader,
    "card": card,
    "card-throughput": card_throughput,
    "card-parity": card_parity,
    "card-kernels": card_kernels,
    "rtx": rtx,
}
