"""INT8 by edgelung and by what people use: the same student, the same tiles, one table.

    python benchmarks/quantization.py RUN --out work/ [--tiles 600] [--stress]

RUN is a finished run whose tiles are where they were. Each tool gets an environment of its own
below --out, set up here, and the same calibration tiles of the validation groups; every file is
then judged on test tiles (all, or --tiles of them spread over the groups) in ONNX Runtime and in
OpenVINO, against full precision in ONNX Runtime. Throughput is a ratio to full precision in the
same engine, measured in turn in one go. --stress adds the student with the three strongest channels
of every LayerNorm scaled by 30 and compensated in the next linear: the same function in full
precision.
"""

import argparse
import json
import os
import subprocess
import sys
import time
import venv
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import machine
import numpy as np
import onnx
from quantizers import TOOLS, peak_mb
from rich.console import Console
from rich.table import Table

from edgelung.artifacts.run import RunFolder
from edgelung.core.precision import Precision
from edgelung.core.system import available_cores
from edgelung.engines.base import Engine, GraphBytes, join_outputs
from edgelung.engines.choose import ENGINES
from edgelung.engines.openvino import OpenVinoEngine
from edgelung.evaluation.gate import gate
from edgelung.evaluation.intervals import paired_intervals
from edgelung.evaluation.metrics import evaluate
from edgelung.export.calibrate import collect_tile_stats, plan_int8
from edgelung.export.graph import build_graph, linear_names
from edgelung.export.ranges import input_scales
from edgelung.export.student import Student, read_student
from edgelung.export.tiles import TileReader, TileSet, read_split, set_aside
from edgelung.tiles.reader import ReaderSpec

JUDGES = ("onnxruntime", "openvino")
OWN, STRESSED, STRESSED_PLAIN = "edgelung", "edgelung, stressed", "min-max alone, stressed"
LINEARS = "edgelung, linears alone"
PLAIN = "min-max alone"
BF16 = "full precision, OpenVINO in BF16"
BATCH = 32
ROUNDS = 8  # that a speed is the best of
GROWTH = (256, 512, 2048)  # calibration tiles that time and memory are measured at


def main() -> None:
    """Quantize with everything, judge everything, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="the training tiles, if the folder has moved")
    parser.add_argument("--tiles", type=int, default=10**9, help="test tiles that judge")
    parser.add_argument("--calibration-tiles", type=int, default=512)
    parser.add_argument("--only", nargs="*", default=list(TOOLS), choices=list(TOOLS))
    parser.add_argument("--stress", action="store_true")
    default = Path(__file__).parent / "results" / "quantization.json"
    parser.add_argument("--json", type=Path, default=default)
    parser.add_argument("--calibrate", type=int, help=argparse.SUPPRESS)  # tiles, and no more
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True)
    os.environ["EDGELUNG_CACHE"] = str(options.out / "no-cache" / str(time.time_ns()))

    run = RunFolder(options.run)
    student, config = read_student(run), run.read_config()
    subsets = read_split(run, options.data or Path(config.data), student.classes)
    reader = TileReader(ReaderSpec(size=student.size))
    if options.calibrate:
        some = subsets["train"].every(options.calibrate)
        _, about = edgelung(student, some, reader, options.out / "growth.onnx")
        print(json.dumps({"tiles": len(some), **about, "peak_mb": peak_mb()}))
        return
    few, _ = set_aside(subsets["val"], options.calibration_tiles, config.seed)
    test = subsets["test"].every(options.tiles)

    files = {"full precision": (options.out / "full.onnx", {})}
    onnx.save(build_graph(student), files["full precision"][0])
    files[OWN] = edgelung(student, few, reader, options.out / "edgelung.onnx")
    files[LINEARS] = linears_alone(student, few, reader, options.out / "linears.onnx")
    files[PLAIN] = min_max(student, few, reader, options.out / "plain.onnx")
    if options.stress:
        harder = stressed(student)
        files[STRESSED] = edgelung(harder, few, reader, options.out / "stressed.onnx")
        files[STRESSED_PLAIN] = min_max(harder, few, reader, options.out / "stressed-plain.onnx")
    np.save(options.out / "calibration.npy", np.concatenate(list(reader.batches(few))))
    for tool in options.only:
        files[tool] = other(tool, options.out)

    calibrations = [growth(tiles) for tiles in GROWTH]
    files[OWN][1]["peak_mb"] = calibrations[1]["peak_mb"]
    rows = {name: {"file_mb": _mb(path), **about} for name, (path, about) in files.items()}
    judge({name: path for name, (path, _) in files.items()}, test, reader, rows)
    result = {
        "student": student.architecture,
        "calibration_tiles": len(few),
        "test_tiles": len(test),
        "test_groups": len({tile.group for tile in test.tiles}),
        "rows": rows,
        "calibrations": calibrations,
        "machine": machine.describe(),
    }
    options.json.parent.mkdir(exist_ok=True)
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


def edgelung(
    student: Student, tiles: TileSet, reader: TileReader, out: Path
) -> tuple[Path, dict[str, Any]]:
    """The default path: `--calibration auto`."""
    start = time.perf_counter()
    plan = plan_int8(student, tiles, reader, "auto")
    onnx.save(plan.graph(), out)
    onnx.save(plan.graph(Precision.INT8_FP16), out.with_suffix(".fp16.onnx"))
    seconds = round(time.perf_counter() - start, 1)
    return out, {"seconds": seconds, "method": plan.calibration.method}


def linears_alone(
    student: Student, tiles: TileSet, reader: TileReader, out: Path
) -> tuple[Path, dict[str, Any]]:
    """The same plan without the scores of attention."""
    plan = plan_int8(student, tiles, reader, "auto")  # from the cache
    scores = frozenset(plan.scales) - set(linear_names(student))
    onnx.save(plan.graph(kept_in_float=scores), out)
    return out, {}


def growth(tiles: int) -> dict[str, Any]:
    """Seconds and peak memory of the default path on so many training tiles, in a process of its
    own (where they come from matters to neither)."""
    words = [sys.executable, __file__, *sys.argv[1:], "--calibrate", str(tiles)]
    done = subprocess.run(words, capture_output=True, text=True, check=True)
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    print(found, flush=True)
    return found


def min_max(
    student: Student, tiles: TileSet, reader: TileReader, out: Path
) -> tuple[Path, dict[str, Any]]:
    """The linears without migration or choice of method."""
    stats = collect_tile_stats(student, tiles, reader, "min-max")
    scales = {name: input_scales(stats, "min-max")[name] for name in linear_names(student)}
    onnx.save(build_graph(student, precision=Precision.INT8, input_scales=scales), out)
    return out, {}


def stressed(student: Student) -> Student:
    """The three strongest channels of every LayerNorm ×30, the linear that reads them ÷30."""
    weights = dict(student.weights)
    for i in range(student.depth):
        for norm, linear in (("norm1", "attn.qkv"), ("norm2", "mlp.fc1")):
            gains = np.abs(weights[f"blocks.{i}.{norm}.weight"])
            places = np.argsort(gains)[-3:]  # they set the range: the hardest choice of three
            for part in ("weight", "bias"):
                name = f"blocks.{i}.{norm}.{part}"
                weights[name] = weights[name].copy()
                weights[name][places] *= np.float32(30)
            name = f"blocks.{i}.{linear}.weight"
            weights[name] = weights[name].copy()
            weights[name][:, places] /= np.float32(30)
    return replace(student, weights=weights)


def other(tool: str, out: Path) -> tuple[Path, dict[str, Any]]:
    """One of TOOLS, in its own environment; a tool that fails is a row that says so."""
    python = out / "environments" / tool / "bin" / "python"
    if not python.is_file():
        venv.create(python.parents[1], with_pip=True)
        words = [python, "-m", "pip", "install", "-q", *TOOLS[tool][1]]
        subprocess.run([*map(str, words)], check=True)
    path = out / f"{tool}.onnx"
    words = [python, Path(__file__).with_name("quantizers.py"), tool]
    words += [out / "full.onnx", out / "calibration.npy", path]
    print("$", *words, flush=True)
    done = subprocess.run([*map(str, words)], capture_output=True, text=True, check=False)
    if done.returncode or not path.is_file():
        last = (done.stderr.strip().splitlines() or ["no output"])[-1]
        return path, {"error": last[:300]}
    about: dict[str, Any] = json.loads(done.stdout.strip().splitlines()[-1])
    return path, about


def judge(
    files: dict[str, Path], test: TileSet, reader: TileReader, rows: dict[str, dict[str, Any]]
) -> None:
    """Labels, probabilities and speed of every file in both engines, into `rows`."""
    truth, groups = test.labels, [tile.group for tile in test.tiles]
    classes = int(truth.max()) + 1
    pixels = list(reader.batches(test, BATCH))
    reference = None
    for name, path in files.items():
        row, found = rows[name], {}
        if "error" in row:
            continue
        for judge_name in JUDGES:
            try:
                engine = load(judge_name, name, path, latency=True)
                outputs = [engine.infer(batch) for batch in pixels]
                found[judge_name] = join_outputs(outputs).probabilities
                engine.close()
            except Exception as error:  # an engine that does not take a tool's file is a finding
                row[f"{judge_name}_error"] = " ".join(str(error).split())[:300]
        if "onnxruntime" not in found and "openvino" not in found:
            continue
        own = found.get("onnxruntime", found.get("openvino"))
        reference = own if reference is None else reference
        metrics = evaluate(own, truth)
        before, after = reference.argmax(axis=1), own.argmax(axis=1)
        row |= {
            "agreement": float((before == after).mean()),
            "accuracy": metrics.accuracy,
            "balanced_accuracy": metrics.balanced_accuracy,
            "balanced_accuracy_change": metrics.balanced_accuracy
            - evaluate(reference, truth).balanced_accuracy,
            "change_interval": paired_intervals(
                before, after, truth, groups, classes
            ).balanced_accuracy,
            "calibration_error": metrics.expected_calibration_error,
            "mean_probability_difference": float(np.abs(own - reference).mean()),
            "gate_on_test": gate(own, reference, truth, groups).verdict,
        }
        if len(found) == 2:
            both = [p.argmax(axis=1) for p in found.values()]
            row["same_label_in_both_engines"] = float((both[0] == both[1]).mean())
    for judge_name in JUDGES:
        measure(judge_name, files, pixels[0], rows)


def load(engine: str, name: str, path: Path, latency: bool = False) -> Engine:
    """OpenVINO may use BF16 beside INT8, whoever wrote the file, as it would unasked."""
    if engine != "openvino" or name == "full precision":
        return ENGINES[engine](
            GraphBytes(path.read_bytes(), path.name), available_cores(), latency=latency
        )
    return OpenVinoEngine(
        GraphBytes(path.read_bytes(), path.name), available_cores(), latency=latency, bf16=True
    )


def measure(
    judge_name: str, files: dict[str, Path], tiles: np.ndarray, rows: dict[str, dict[str, Any]]
) -> None:
    """Tiles/s with every stream of the engine busy, the files in turn again and again, the best of
    each: what else the machine does strikes all alike. The ratio to full precision too."""
    engines: dict[str, Engine] = {}
    for name, path in files.items():
        if "error" not in rows[name] and f"{judge_name}_error" not in rows[name]:
            engines[name] = load(judge_name, name, path)
    if judge_name == "openvino" and len(engines) > 1:
        engines[BF16] = load(judge_name, BF16, files["full precision"])
        rows.setdefault(BF16, {})
    best = dict.fromkeys(engines, float("inf"))
    for _ in range(ROUNDS):
        for name, engine in engines.items():
            best[name] = min(best[name], seconds_per_tile(engine, tiles))
    for name, engine in engines.items():
        engine.close()
        rows[name][f"{judge_name}_tiles_per_second"] = round(1 / best[name], 1)
        rows[name][f"{judge_name}_speedup"] = round(best["full precision"] / best[name], 2)


def seconds_per_tile(engine: Engine, tiles: np.ndarray) -> float:
    """Two batches in each stream, after one to warm up."""
    streams = engine.concurrency
    with ThreadPoolExecutor(streams) as pool:
        list(pool.map(engine.infer, [tiles] * streams))
        start = time.perf_counter()
        list(pool.map(engine.infer, [tiles] * 2 * streams))
        return (time.perf_counter() - start) / (2 * streams * len(tiles))


def _mb(path: Path) -> float | None:
    return round(path.stat().st_size / 1e6, 1) if path.is_file() else None


def show(result: dict[str, Any]) -> None:
    """The table."""
    title = (
        f"{result['student']}, {result['test_tiles']} test tiles in {result['test_groups']} groups"
    )
    columns = ("agreement %", "Δ balanced, points", "ECE", "MB", "same in both %")
    table = Table("INT8 by", *columns, "ORT ×", "OpenVINO ×", "s", "peak MB", title=title)
    for name, row in result["rows"].items():
        if name == BF16:
            table.add_row(name, *("–",) * 6, str(row["openvino_speedup"]))
            continue
        if "agreement" not in row:
            table.add_row(name, row.get("error", row.get("onnxruntime_error", "?"))[:40])
            continue
        table.add_row(
            name,
            f"{100 * row['agreement']:.2f}",
            f"{100 * row['balanced_accuracy_change']:+.2f}",
            f"{row['calibration_error']:.4f}",
            str(row["file_mb"]),
            f"{100 * row['same_label_in_both_engines']:.2f}"
            if "same_label_in_both_engines" in row
            else "–",
            str(row.get("onnxruntime_speedup", "–")),
            str(row.get("openvino_speedup", "–")),
            str(row.get("seconds", "")),
            str(row.get("peak_mb", "")),
        )
    Console(width=None if sys.stdout.isatty() else 130).print(table)


if __name__ == "__main__":
    main()
