"""An early exit made from a bundle's INT8 variant: accuracy, groups, foreign tissue, speed.

    python benchmarks/early_exit.py TILES RUN [--colon FOLDER] [--bundle OUT] [--repeats N]

RUN: what `benchmarks/starter_run.py` makes of TILES. The exit is fitted as `edgelung export
--early-exit` fits it, on the starter's own INT8 graph, which is cut in two. Full precision, INT8
and the cascade then predict the gate tiles, the test tiles and foreign tissue in OpenVINO. Speed is
CPU time on one core, INT8 and the cascade in turns on the same tiles. `--bundle` writes the starter
with the new variant. Writes results/early-exit.json.
"""

import argparse
import json
import shutil
import time
from collections.abc import Callable
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import machine
import numpy as np
import onnx
from msgspec import structs
from onnx.utils import Extractor

from edgelung.artifacts.bundle import MANIFEST, Bundle, graph_name, open_bundle, write_bundle
from edgelung.artifacts.manifest import BundleManifest, EarlyExit
from edgelung.artifacts.run import RunFolder
from edgelung.artifacts.trust import OWN_WORK
from edgelung.core.precision import FULL_PRECISION, Precision
from edgelung.core.typed_json import convert, plain
from edgelung.engines.base import Engine, GraphBytes, Output, Tiles
from edgelung.engines.early_exit import early_exit_of, load_model
from edgelung.engines.onnxruntime import OnnxRuntimeEngine
from edgelung.engines.openvino import OpenVinoEngine
from edgelung.evaluation.early_exit import lost_groups
from edgelung.evaluation.gate import gate
from edgelung.evaluation.metrics import evaluate
from edgelung.evaluation.shares import share_of
from edgelung.export import early_exit
from edgelung.export.graph import ModelWriter
from edgelung.export.graph_stages import ExitHead, write_head
from edgelung.export.graph_writer import float_info, pixels_info
from edgelung.export.inputs import ExportInputs, read_inputs
from edgelung.export.predict import predict_with
from edgelung.tiles.reader import read_tile

HERE = Path(__file__).parent
STARTER = HERE.parent / "edgelung" / "starter"
RESULT = HERE / "results" / "early-exit.json"
EARLY = Precision.INT8_EARLY_EXIT
BATCH, SPEED_TILES, LATENCIES = 16, 320, 400


def main() -> None:
    """Fit, judge, measure, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tiles", type=Path)
    parser.add_argument("run", type=Path)
    parser.add_argument("--colon", type=Path, help="folder of foreign tiles")
    parser.add_argument("--bundle", type=Path)
    parser.add_argument("--repeats", type=int, default=7)
    options = parser.parse_args()
    starter = open_bundle(STARTER, OWN_WORK)
    inputs = read_inputs(
        RunFolder(options.run), data=options.tiles, calibrates=True, calibration_tiles=512
    )
    whole = load(starter, FULL_PRECISION)
    reference = {
        name: predict_with(whole, tiles, inputs.reader, f"fp32, {name}")
        for name, tiles in {**inputs.judging_sets, "calibration": inputs.calibration}.items()
    }
    first, second, entry = make_exit(starter, inputs, reference["calibration"])
    cascade = partial(load_cascade, first, second, entry)
    int8 = partial(load, starter, Precision.INT8)
    result: dict[str, Any] = {"machine": machine.describe(), "rule": plain(entry)}
    judged = judge(inputs, cascade(OpenVinoEngine), reference)
    in_onnxruntime = judge(inputs, cascade(OnnxRuntimeEngine), reference)
    result["openvino"], result["onnxruntime"] = judged, in_onnxruntime
    threshold = starter.variants[Precision.INT8].entry.known.threshold
    if options.colon:
        result["foreign"] = foreign(
            options.colon, inputs, cascade(OpenVinoEngine), int8(), threshold
        )
    test = inputs.reader.read(inputs.test.every(SPEED_TILES))
    result["batch_independent"] = batch_independent(cascade(OpenVinoEngine), test)
    result["speed"] = speed(int8(), cascade(OpenVinoEngine), test, options.repeats)
    if options.bundle:
        write_starter(options.bundle, starter, first, second, entry, inputs, cascade)
    RESULT.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    print(json.dumps(result, indent=2))


def load(bundle: Bundle, precision: Precision) -> Engine:
    """A variant on one core in OpenVINO, as `infer` runs it."""
    variant = bundle.variants[precision]
    bf16 = variant.gate.openvino is not None and variant.gate.openvino.floating_point == "bf16"
    return OpenVinoEngine(variant.graph, 1, bf16=bf16)


def load_cascade(first: bytes, second: bytes, entry: EarlyExit, factory: Any) -> Engine:
    """The cascade on one core."""
    if factory is OpenVinoEngine:
        factory = partial(OpenVinoEngine, bf16=True)
    return load_model(factory, GraphBytes(first), early_exit_of(entry, GraphBytes(second)), 1)


def make_exit(
    starter: Bundle, inputs: ExportInputs, reference: Output
) -> tuple[bytes, bytes, EarlyExit]:
    """Cut the INT8 graph, fit the exit, add its head: as `early_exit_candidate`."""
    block = inputs.student.depth // early_exit.BLOCKS_PER_EXIT
    front, second = cut(onnx.load_from_string(starter.variants["int8"].graph.read()), block)
    writer = writer_of(front, inputs)
    writer.mean_patch("tokens", "features")
    pixels = [pixels_info("tiles", inputs.student.size)]
    features = [float_info("features", ["N", inputs.student.width])]
    graph = writer.model("features", pixels, features).SerializeToString()
    train, calibration = inputs.train.every(early_exit.FIT_TILES), inputs.calibration
    fitted = early_exit.fit_exit(
        early_exit.ExitTiles(
            early_exit.exit_features(graph, train, inputs.reader)[0], train.labels, train.groups
        ),
        early_exit.ExitTiles(
            early_exit.exit_features(graph, calibration, inputs.reader)[0],
            reference.probabilities.argmax(axis=1),
            calibration.groups,
        ),
        block,
        starter.variants["int8"].entry.known.threshold,
    )
    assert fitted is not None
    head, rule = fitted
    first = with_head(front, head, inputs)
    entry = EarlyExit(
        file=graph_name(EARLY, stage=2),
        bytes=len(second),
        block=block,
        tokens=inputs.student.tokens,
        width=inputs.student.width,
        confidence=rule.confidence,
        known_up_to=rule.known_up_to,
        fitted_on=train.size,
        calibrated_on=calibration.size,
        max_changed_labels=early_exit.MAX_CHANGED,
        max_lost_groups=early_exit.MAX_LOST,
    )
    return first, second, entry


def cut(model: onnx.ModelProto, block: int) -> tuple[onnx.ModelProto, bytes]:
    """The graph up to the tokens after `block` blocks, and the graph from them."""
    norm = f"blocks.{block}.norm1.weight"
    tokens = next(n.input[0] for n in model.graph.node if norm in n.input)
    for node in model.graph.node:
        for names in (node.input, node.output):
            for i, name in enumerate(names):
                names[i] = "tokens" if name == tokens else name
    extractor = Extractor(onnx.shape_inference.infer_shapes(model))
    front = extractor.extract_model(["tiles"], ["tokens"])
    back = extractor.extract_model(["tokens"], ["probs", "ood"])
    for part in (front, back):
        del part.graph.value_info[:]
    return front, back.SerializeToString()


def writer_of(front: onnx.ModelProto, inputs: ExportInputs) -> ModelWriter:
    writer = ModelWriter(inputs.student, Precision.INT8, {}, {})
    writer.nodes = list(front.graph.node)
    writer.constants = {tensor.name: tensor for tensor in front.graph.initializer}
    return writer


def with_head(front: onnx.ModelProto, head: ExitHead, inputs: ExportInputs) -> bytes:
    """The first graph, as `graph_stages.build_exit_stages` writes it."""
    student, writer = inputs.student, writer_of(front, inputs)
    write_head(writer, "tokens", head)
    outputs = [
        float_info("probs", ["N", len(student.classes)]),
        float_info("ood", ["N"]),
        float_info("tokens", ["N", student.tokens, student.width]),
    ]
    model = writer.model("stage 1", [pixels_info("tiles", student.size)], outputs)
    data: bytes = model.SerializeToString()
    return data


def judge(inputs: ExportInputs, engine: Engine, reference: dict[str, Output]) -> dict[str, Any]:
    """The cascade against full precision, by set."""
    result = {}
    for name, tiles in inputs.judging_sets.items():
        output = predict_with(engine, tiles, inputs.reader, f"cascade, {name}")
        ours, theirs = output.probabilities, reference[name].probabilities
        verdict = gate(ours, theirs, tiles.labels, tiles.groups, classes=inputs.student.classes)
        accuracy = [evaluate(p, tiles.labels).balanced_accuracy for p in (ours, theirs)]
        result[name] = {
            "tiles": len(tiles),
            "left": plain(share_of(output.stage == 1, tiles.groups)),
            "left_of_tiles": float((output.stage == 1).mean()),
            "agreement": float((ours.argmax(1) == theirs.argmax(1)).mean()),
            "balanced_accuracy": accuracy[0],
            "balanced_accuracy_fp32": accuracy[1],
            "groups": plain(lost_groups(ours.argmax(1) != theirs.argmax(1), tiles.groups)),
            "gate": plain(structs.replace(verdict, limits=None)),
        }
    engine.close()
    return result


def foreign(
    folder: Path, inputs: ExportInputs, cascade: Engine, int8: Engine, threshold: float
) -> dict[str, Any]:
    """What is told of tissue that the model was not made for, by kind of tile."""
    colon = sorted(path for path in folder.rglob("colon*/*") if path.is_file())
    lung = sorted(path for path in folder.rglob("lung*/*") if path.is_file())
    rng, some = np.random.default_rng(0), inputs.reader.read(inputs.test.every(100))
    sets = {
        "colon": np.stack([read_tile(path, inputs.reader.spec) for path in colon]),
        "lung, 768 px": np.stack([read_tile(path, inputs.reader.spec) for path in lung]),
        "lung, blue and green exchanged": np.ascontiguousarray(some[..., [0, 2, 1]]),
        "lung, negative": 255 - some,
        "lung, 4 x 4 mosaic": np.ascontiguousarray(np.tile(some[:, ::4, ::4], (1, 4, 4, 1))),
        "noise": rng.integers(0, 256, some.shape, np.uint8),
    }
    result = {}
    for name, tiles in sets.items():
        ours, theirs = in_batches(cascade, tiles), in_batches(int8, tiles)
        early = ours.stage == 1
        result[name] = {
            "tiles": len(tiles),
            "left_early": int(early.sum()),
            "unknown": int((~early & (ours.ood > threshold)).sum()),
            "unknown_int8": int((theirs.ood > threshold).sum()),
            "unknown_to_int8_but_left_early": int((early & (theirs.ood > threshold)).sum()),
        }
    return result


def in_batches(engine: Engine, tiles: Tiles, size: int = BATCH) -> Output:
    """The output for all tiles."""
    parts = [engine.infer(tiles[i : i + size]) for i in range(0, len(tiles), size)]
    columns = zip(*parts, strict=True)
    return Output(*(None if c[0] is None else np.concatenate(c) for c in columns))


def batch_independent(engine: Engine, tiles: Tiles) -> dict[str, bool]:
    """Whether every number is the same, to the last bit, at each batch size."""
    alone = in_batches(engine, tiles, 1)
    same = {}
    for size in (7, 16, 64):
        found = in_batches(engine, tiles, size)
        same[str(size)] = all(
            np.array_equal(a, b) for a, b in zip(alone, found, strict=True) if a is not None
        )
    return same


def speed(int8: Engine, cascade: Engine, tiles: Tiles, repeats: int) -> dict[str, Any]:
    """CPU milliseconds per tile in batches, and milliseconds of a single tile; in turns."""
    engines = {"int8": int8, "cascade": cascade}
    runs: dict[str, list[float]] = {name: [] for name in engines}
    for _ in range(repeats + 1):  # the first one warms up
        for name, engine in engines.items():
            seconds = cpu_seconds(partial(in_batches, engine, tiles))
            runs[name].append(1e3 * seconds / len(tiles))
    single: dict[str, list[float]] = {name: [] for name in engines}
    for i in range(LATENCIES):
        for name, engine in engines.items():
            tile = tiles[i % len(tiles)][None]
            seconds = cpu_seconds(partial(engine.infer, tile))
            single[name].append(1e3 * seconds)
    ratios = [a / b for a, b in zip(runs["int8"][1:], runs["cascade"][1:], strict=True)]
    return {
        "tiles": len(tiles),
        "cpu_ms_per_tile": {name: values[1:] for name, values in runs.items()},
        "ratio": float(np.median(ratios)),
        "ratio_range": [min(ratios), max(ratios)],
        "single_tile_cpu_ms": {
            name: {f"p{p}": float(np.percentile(values[20:], p)) for p in (50, 90, 99)}
            for name, values in single.items()
        },
    }


def cpu_seconds(work: Callable[[], object]) -> float:
    """CPU time of this process: other programs on the machine count less than in wall time."""
    start = time.process_time()
    work()
    return time.process_time() - start


def write_starter(
    out: Path,
    starter: Bundle,
    first: bytes,
    second: bytes,
    entry: EarlyExit,
    inputs: ExportInputs,
    cascade: Callable[[Any], Engine],
) -> None:
    """The starter with the new variant, its golden tiles predicted by ONNX Runtime."""
    shutil.copytree(starter.folder, out)
    (out / graph_name(EARLY)).write_bytes(first)
    (out / entry.file).write_bytes(second)
    int8 = starter.variants[Precision.INT8].entry
    golden = np.stack(
        [read_tile(out / g.file, inputs.reader.spec) for g in starter.manifest.golden]
    )
    with closing(cascade(OnnxRuntimeEngine)) as engine:
        output = in_batches(engine, golden)
    variant = structs.replace(int8, file=graph_name(EARLY), bytes=len(first), early_exit=entry)
    manifest = json.loads((out / MANIFEST).read_text(encoding="utf-8"))
    manifest["variants"][EARLY] = plain(variant)
    for number, tile in enumerate(manifest["golden"]):
        tile["probabilities"][EARLY] = output.probabilities[number].tolist()
        tile["ood"][EARLY] = float(output.ood[number])
    for key in ("schema_version", "files"):
        del manifest[key]
    write_bundle(out, convert(manifest, BundleManifest))
    open_bundle(out, OWN_WORK)


if __name__ == "__main__":
    main()
