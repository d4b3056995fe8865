"""A bundle with an early exit, from a run with too few groups for `edgelung export` to add it."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from edgelung.artifacts.bundle import MANIFEST, graph_name, open_bundle, write_bundle
from edgelung.artifacts.manifest import BundleManifest
from edgelung.artifacts.run import RunFolder
from edgelung.core.precision import Precision
from edgelung.core.typed_json import convert, plain
from edgelung.engines.base import GraphBytes
from edgelung.engines.early_exit import load_model
from edgelung.engines.onnxruntime import OnnxRuntimeEngine
from edgelung.export import early_exit
from edgelung.export.calibrate import plan_int8
from edgelung.export.candidates import Candidate, SecondStage
from edgelung.export.inputs import read_inputs
from edgelung.export.known import learn_known
from edgelung.tiles.reader import read_tile

EARLY = Precision.INT8_EARLY_EXIT


def make_candidate(run: Path, temperature: float, kept_in_float: tuple[str, ...]) -> Candidate:
    """An early exit at which half of the calibration tiles are sure enough."""
    inputs = read_inputs(RunFolder(run), data=None, calibrates=True, calibration_tiles=512)
    student = learn_known(inputs.student, inputs.train, inputs.reader)
    inputs = replace(inputs, student=student)
    plan = plan_int8(student, inputs.calibration, inputs.reader, "auto")
    reference = np.eye(3, dtype=np.float32)[inputs.calibration.labels]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(early_exit, "MAX_CHANGED", 1.0)
        patch.setattr(early_exit, "MAX_LOST", 1.0)
        patch.setattr(early_exit, "KNOWN", 1.0)
        candidate = early_exit.early_exit_candidate(
            early_exit.int8_base(plan, kept_in_float), inputs, temperature, reference, np.inf
        )
    assert candidate is not None
    assert candidate.second is not None
    tiles = inputs.reader.read(inputs.calibration)
    early = OnnxRuntimeEngine(GraphBytes(candidate.graph), 1).run(tiles)[0]
    sure = float(np.median(early.max(axis=1)))
    entry = structs.replace(candidate.second.entry, confidence=sure)
    return replace(candidate, second=SecondStage(candidate.second.graph, entry))


def add_early_exit(folder: Path, run: Path) -> None:
    """Add it to a bundle of the run, as if it had passed its gate."""
    bundle = open_bundle(folder)
    int8 = bundle.variants[Precision.INT8].entry
    kept = tuple(int8.kept_in_float or ())
    candidate = make_candidate(run, bundle.manifest.temperature, kept)
    assert candidate.second is not None
    (folder / graph_name(EARLY)).write_bytes(candidate.graph)
    (folder / candidate.second.entry.file).write_bytes(candidate.second.graph)
    entry = structs.replace(
        int8,
        file=graph_name(EARLY),
        bytes=len(candidate.graph),
        gate=structs.replace(int8.gate, verdict="pass", openvino=None),
        early_exit=candidate.second.entry,
    )
    graph = GraphBytes(candidate.graph)
    engine = load_model(OnnxRuntimeEngine, graph, candidate.early_exit, 1)
    golden = [read_tile(folder / tile.file, bundle.reader) for tile in bundle.manifest.golden]
    output = engine.infer(np.stack(golden))
    assert output.ood is not None
    manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    manifest["variants"][EARLY] = plain(entry)
    for number, tile in enumerate(manifest["golden"]):
        tile["probabilities"][EARLY] = output.probabilities[number].tolist()
        tile["ood"][EARLY] = float(output.ood[number])
    for key in ("schema_version", "files"):
        del manifest[key]
    write_bundle(folder, convert(manifest, BundleManifest))
