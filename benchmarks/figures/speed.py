"""Tables of tools on a CPU: INT8, folder runs, grouping, reading."""

from collections.abc import Sequence

from figures.table import NONE, Table, interval, percent, points, result

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
    "d edgelung int8": "`edgelung infer` INT8",
    "f edgelung early exit": "**`edgelung infer` INT8 with an early exit**",
    "e decode alone": "decoding alone",
    "e engine alone int8": "INT8 engine alone",
    "e engine alone early exit": "engine with an early exit alone",
    "a timm-style fp32 160": "160 px: Pillow, torchvision, PyTorch FP32 behind a DataLoader",
    "g edgelung 160 int8": "160 px: `edgelung infer` INT8",
    "h edgelung 160 early exit": "160 px: `edgelung infer` INT8 with an early exit",
    "e decode alone 160": "160 px: decoding alone",
    "e engine alone 160 int8": "160 px: INT8 engine alone",
    "e engine alone 160 early exit": "160 px: engine with an early exit alone",
}
WAYS = {
    "d edgelung int8": "INT8",
    "f edgelung early exit": "INT8 with an early exit",
    "g edgelung 160 int8": "160 px, INT8",
    "h edgelung 160 early exit": "160 px, INT8 with an early exit",
}


def folder() -> Table:
    """The folder run against what people write themselves; tiles a second."""
    return _folder("folder.json")


def folder_160() -> Table:
    """The same with a student of 160 px, on another machine."""
    return _folder("folder-160.json")


def _folder(name: str) -> Table:
    content = result(name)
    sets = [content["sets"][size] for size in ("768", "224")]
    rows = [
        [text, *(f"{found['tiles_per_second'][key]:,.1f}" for found in sets)]
        for key, text in FOLDER.items()
        if key in sets[0]["tiles_per_second"]
    ]
    for key, text in WAYS.items():
        if key not in sets[0]["ways"]:
            continue
        ways = [found["ways"][key] for found in sets]
        rows.append(
            [
                f"{text}: times the first row (each round)",
                *(f"{way['times_a']:.1f} × ({written(way['rounds_times_a'])})" for way in ways),
            ]
        )
        if all("times_a_160" in way for way in ways):
            same = [f"{way['times_a_160']:.1f} ×" for way in ways]
            rows.append([f"{text}: times that row of the same student", *same])
        rows.append(
            [
                f"{text}: time over its floor, decoding + engine",
                *(f"{way['wall_over_floor']:.2f}" for way in ways),
            ]
        )
    header = ["tiles a second, from file to row"]
    header += [f"{found['files']:,} files of {size} px" for size, found in content["sets"].items()]
    return Table(header, rows, {name: content})


def written(ratios: Sequence[float]) -> str:
    """Ratios of rounds."""
    return ", ".join(f"{ratio:.1f}" for ratio in ratios)


def decoders() -> Table:
    """JPEG decoders on one core."""
    content = result("decoders.json")
    sets = [content["sets"][size]["decoders"] for size in ("768", "224")]
    rows = []
    for name in sets[0]:
        cells = [f"{found[name]['milliseconds']:.2f} ms" for found in sets]
        difference = sets[0][name].get("largest_difference")
        ratio = f"{sets[0][name]['times_simplejpeg']:.2f}"
        rows.append([name, *cells, ratio, NONE if difference is None else str(difference)])
    header = ["decoder", "file of 768 px", "file of 224 px", "× simplejpeg, 768 px"]
    return Table([*header, "largest difference, levels"], rows, {"decoders.json": content})


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


def calibrations() -> Table:
    """Time and memory of INT8 calibration by the number of tiles."""
    content = result("quantization.json")
    rows = [
        [f"{row['tiles']:,}", f"{row['seconds']:.0f} s", f"{row['peak_mb']} MB", row["method"]]
        for row in content["calibrations"]
    ]
    header = ["calibration tiles", "both files written in", "peak memory", "method chosen"]
    return Table(header, rows, {"quantization.json": content})


def without_copies() -> Table:
    """Grouping of tiles none of which shares tissue with another."""
    content = result("audit.json")
    rows = [
        [
            f"{row['tiles']:,}",
            f"{row['seconds']:.0f}",
            f"{row['peak_bytes'] / 1e9:.2f} GB",
            f"{row['groups']:,}",
        ]
        for row in content["without_copies"]["sets"]
    ]
    header = ["tiles without copies", "seconds", "peak memory", "groups found"]
    machine = content["machine"] | {"commit": content["without_copies"]["commit"]}
    return Table(header, rows, {"audit.json": {"machine": machine}})


def startup() -> Table:
    """How long the command line takes to answer."""
    content = result("startup.json")
    seconds = [content[f"{key}_seconds"] for key in ("median", "min", "max")]
    rows = [[f"`{content['command']}`", *(f"{1000 * value:.0f} ms" for value in seconds)]]
    header = [f"{content['repeats']} starts", "median", "fastest", "slowest"]
    return Table(header, rows, {"startup.json": content})


def int8_without_vnni() -> Table:
    """INT8 with exact sums and with sums that saturate."""
    content = result("int8-without-vnni.json")
    names = {"openvino": "OpenVINO", "onnxruntime": "ONNX Runtime"}
    rows = []
    for way in content["ways"]:
        score, speed, left = (way[k] for k in ("score_to_exact", "tiles_per_second", "left_early"))
        is_int8 = way["precision"] != "fp32"
        sums = ("saturated" if way["saturated"] else "**exact**") if is_int8 else NONE
        span = f"{score['least']:.2f} … {score['largest']:.2f}"
        rows.append(
            [
                f"{names[way['engine']]} {way['precision']}",
                sums,
                percent(way["same_label_as_fp32"], 2),
                percent(way["balanced_accuracy"]),
                percent(way["unknown"]),
                NONE if left is None else percent(left, 0),
                span if is_int8 and way["saturated"] else NONE,
                f"{speed['median']:.0f} ({speed['least']:.0f} … {speed['largest']:.0f})",
            ]
        )
    header = ["engine, variant", "INT8 sums", "same label as FP32", "balanced accuracy", "unknown"]
    header += ["left early", "score ÷ exact score", "tiles/s"]
    return Table(header, rows, {"int8-without-vnni.json": content})


def pairs() -> Table:
    """Two versions in turns on the same folder."""
    content = result("pairs.json")
    rows = []
    for case in content["results"]:
        for clock, name in (("wall", "wall"), ("cpu", "CPU")):
            ratio = case[clock]["ratio"]
            spread = f"{ratio['least']:.2f} … {ratio['most']:.2f}"
            seconds = [f"{case[clock][which]:.2f} s" for which in ("before", "now")]
            files = f"{case['tiles']} tile{'s' if case['tiles'] > 1 else ''}"
            rows.append([files, name, *seconds, f"{ratio['median']:.3f}", spread])
    versions = [content["versions"][which] for which in ("before", "now")]
    header = ["`edgelung infer`, start included", "time", *versions, "ratio", "spread of the pairs"]
    return Table(header, rows, {"pairs.json": content})


TABLES = {
    "quantization": quantization,
    "folder": folder,
    "folder-160": folder_160,
    "decoders": decoders,
    "memory": memory,
    "latency": latency,
    "audit": audit,
    "joined-pairs": joined_pairs,
    "demo": demo,
    "reader": reader,
    "loader": loader,
    "calibrations": calibrations,
    "without-copies": without_copies,
    "startup": startup,
    "pairs": pairs,
    "int8-without-vnni": int8_without_vnni,
}
