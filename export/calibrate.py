"""Calibrate: from a student and calibration tiles to the quantization plan, cached by content."""

import hashlib
import json
from pathlib import Path

import numpy as np

import edgelung.export
from edgelung.artifacts.manifest import Calibration, MethodScore
from edgelung.core.cache import content_key, open_cache
from edgelung.core.errors import EdgelungError
from edgelung.core.files import sha256_bytes
from edgelung.core.precision import Precision
from edgelung.core.system import EXPORT_PACKAGES, available_cores, version
from edgelung.core.terminal import progress
from edgelung.engines import onnxruntime
from edgelung.engines.base import Probabilities
from edgelung.evaluation import metrics
from edgelung.evaluation.metrics import agreement
from edgelung.export.eight_bit import Array
from edgelung.export.graph import build_graph, linear_names
from edgelung.export.plan import Plan, read_plan
from edgelung.export.predict import predict
from edgelung.export.ranges import METHODS, input_scales
from edgelung.export.smoothquant import choose_migration, migrate
from edgelung.export.stats import CalibrationStats, collect_stats
from edgelung.export.student import Student
from edgelung.export.tiles import TileReader, TileSet
from edgelung.tiles import reader as tile_reader

AUTO = "auto"
MIGRATION_TILES = 128  # of the calibration tiles; they choose the scale migration
SCORED_TILES = 256  # of the calibration tiles; they compare the methods


def check_method(method: str) -> None:
    """Raise EdgelungError for an unknown method of calibration."""
    if method not in (AUTO, *METHODS):
        raise EdgelungError(
            f"unknown --calibration {method!r}; expected {AUTO}, {', '.join(METHODS)}"
        )


def plan_int8(student: Student, tiles: TileSet, reader: TileReader, method: str) -> Plan:
    """Calibrate on `tiles`; `method` is one of METHODS or 'auto'.

    A plan of the same graph, tiles, reader, method, code and versions is read from the user's cache
    (`edgelung.core.cache`).
    """
    check_method(method)
    cache = open_cache("calibration")
    key = content_key("plan", _cache_key(student, tiles, reader, method))
    cached = cache.get(key).data
    plan = read_plan(cached, student) if cached else None
    if plan is None:
        plan = _calibrate(student, tiles, reader, method)
        cache.try_put(key, plan.to_bytes(student))
    return plan


def collect_tile_stats(
    student: Student, tiles: TileSet, reader: TileReader, title: str, samples: bool = False
) -> CalibrationStats:
    """`collect_stats` over a tile set, on all cores; `title` names the progress bar."""
    with progress(title, len(tiles)) as advance:
        batches = reader.batches(tiles)
        return collect_stats(student, batches, available_cores(), advance, samples)


def _calibrate(student: Student, tiles: TileSet, reader: TileReader, method: str) -> Plan:
    few = tiles.every(MIGRATION_TILES)
    unmigrated = collect_tile_stats(student, few, reader, "activations", samples=True)
    migration, strengths = choose_migration(student, unmigrated)
    migrated = migrate(student, migration)
    stats = collect_tile_stats(migrated, tiles, reader, "calibration")
    scored = tiles.every(SCORED_TILES)
    reference = predict(_serialized(student), scored, reader, "full precision").probabilities

    def score(scales: dict[str, float], means: dict[str, Array]) -> tuple[int, float]:
        """Flipped labels, then the mean change of a probability."""
        graph = build_graph(
            migrated, precision=Precision.INT8, input_scales=scales, input_means=means
        ).SerializeToString()
        probabilities = predict(graph, scored, reader, "methods").probabilities
        flipped = agreement(probabilities, reference).differing_labels
        return flipped, _distance(probabilities, reference)

    methods = list(METHODS) if method == AUTO else [method]
    scales = {name: input_scales(stats, name) for name in methods}
    scores = {name: score(scales[name], {}) for name in methods}
    best = min(methods, key=scores.__getitem__)
    means = {name: stats.inputs[name].mean for name in linear_names(student)[1:]}
    means["patch_embed.proj"] = stats.patch
    corrected = score(scales[best], means)
    correct_biases = corrected < scores[best]
    record = Calibration(
        asked=method,
        method=best,
        tiles=len(tiles),
        groups=tiles.size.groups,
        scores={
            name: MethodScore(flipped=flipped, mean_probability_difference=distance)
            for name, (flipped, distance) in (scores | {f"{best}, biases": corrected}).items()
        },
        scored_tiles=len(scored),
        bias_correction=correct_biases,
        migration_strength=strengths,
    )
    return Plan(
        student=migrated,
        scales=scales[best],
        means=means if correct_biases else {},
        peak=stats.peak,
        # Activations that migration does not touch are the same in both, and `stats` saw all tiles.
        unmigrated_peak=max(unmigrated.peak, stats.peak),
        calibration=record,
    )


def _serialized(student: Student) -> bytes:
    graph: bytes = build_graph(student).SerializeToString()
    return graph


def _distance(probabilities: Probabilities, reference: Probabilities) -> float:
    """Mean absolute difference of two probability arrays; infinite if one holds NaN."""
    return float(np.nan_to_num(np.abs(probabilities - reference), nan=np.inf).mean())


def _cache_key(student: Student, tiles: TileSet, reader: TileReader, method: str) -> bytes:
    """Everything that the plan depends on. The code is part of it, so no version number is needed
    for a change of the code."""
    graph = build_graph(student).SerializeToString(deterministic=True)
    code = hashlib.sha256()
    rooms = (Path(edgelung.export.__file__).parent, Path(tile_reader.__file__).parent)
    modules = [path for room in rooms for path in sorted(room.glob("*.py"))]
    for path in (*modules, Path(metrics.__file__), Path(onnxruntime.__file__)):
        code.update(path.read_bytes())
    parts = {
        "graph": sha256_bytes(graph),
        "tiles": [tile.sha256 for tile in tiles.tiles],
        "reader": reader.spec.to_json(),
        "method": method,
        "code": code.hexdigest(),
        "versions": {name: version(name) for name in ("edgelung", *EXPORT_PACKAGES)},
    }
    return json.dumps(parts, sort_keys=True).encode()
