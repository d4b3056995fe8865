"""From a student and calibration tiles to how INT8 is written: the plan, cached by its content."""

import hashlib
import io
import json
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

import edgelung.export
from edgelung.core.cache import content_key, open_cache
from edgelung.core.errors import EdgelungError
from edgelung.core.files import sha256_bytes
from edgelung.core.system import available_cores, version
from edgelung.core.terminal import progress
from edgelung.evaluation import metrics
from edgelung.evaluation.metrics import agreement
from edgelung.export.calibrate import METHODS, input_scales
from edgelung.export.graph import FP8, INT8, EightBit, build_graph, linear_names
from edgelung.export.predict import Probabilities, predict
from edgelung.export.smoothquant import choose_migration, migrate
from edgelung.export.stats import Observed, observe
from edgelung.export.student import Student
from edgelung.export.tiles import TileSet
from edgelung.tiles import reader
from edgelung.tiles.reader import ReaderSpec

AUTO = "auto"
MIGRATION_TILES = 128  # of the calibration tiles, that choose the migration
SCORED_TILES = 256  # of the calibration tiles, that compare methods

Array = npt.NDArray[Any]


@dataclass(frozen=True)
class Plan:
    """How INT8 is written: the migrated student, the step of every input, the mean inputs
    of the linears whose bias is corrected (none, where that did not pay), and how that came about.

    `peak`, `plain_peak`: largest |activation| of the migrated student, and at least that of the
    original.
    """

    student: Student
    scales: Mapping[str, float]
    means: Mapping[str, Array]
    peak: float
    plain_peak: float
    about: Mapping[str, Any]

    def graph(
        self,
        temperature: float = 1.0,
        half: bool = False,
        given_back: frozenset[str] = frozenset(),
        eight_bit: EightBit = INT8,
    ) -> onnx.ModelProto:
        """The INT8 graph on an FP32 or FP16 base, what is `given_back` left in the base.

        So are the scores of attention on an FP16 base: GPUs have fused attention in FP16 (which of
        the two is faster on a card has not been measured). In FP8 the patch embedding is too: INT8
        holds pixels exactly, FP8 four bits of them.
        """
        if half:
            given_back |= set(self.scales) - set(linear_names(self.student))
        if eight_bit is FP8:
            given_back |= {"patch_embed.proj"}
        return build_graph(
            self.student,
            temperature=temperature,
            half=half,
            input_scales={k: v for k, v in self.scales.items() if k not in given_back},
            input_means=self.means,
            eight_bit=eight_bit,
        )


def check_method(method: str) -> None:
    """Raise EdgelungError for a method of calibration that there is not."""
    if method not in (AUTO, *METHODS):
        raise EdgelungError(
            f"unknown --calibration {method!r}; expected {AUTO}, {', '.join(METHODS)}"
        )


def plan_int8(student: Student, tiles: TileSet, spec: ReaderSpec, method: str) -> Plan:
    """Calibrate on `tiles`; `method` is one of METHODS or 'auto'.

    A plan made before of the same graph, tiles, reader, method, code and versions is read from the
    user's cache (`edgelung.core.cache`).
    """
    check_method(method)
    cache, key = open_cache("calibration"), content_key("plan", _key(student, tiles, spec, method))
    cached = cache.get(key).data
    plan = _read(cached, student) if cached else None
    if plan is None:
        plan = _make(student, tiles, spec, method)
        cache.try_put(key, _bytes(plan, student))
    return plan


def _make(student: Student, tiles: TileSet, spec: ReaderSpec, method: str) -> Plan:
    plain = observe_tiles(student, tiles.every(MIGRATION_TILES), spec, "observe", samples=True)
    migration, strengths = choose_migration(student, plain)
    migrated = migrate(student, migration)
    observed = observe_tiles(migrated, tiles, spec, "calibrate")
    some = tiles.every(SCORED_TILES)
    reference = predict(build_graph(student), some, spec, "full precision")

    def score(scales: dict[str, float], means: dict[str, Array]) -> tuple[int, float]:
        """What the gate would say: flipped labels, then how far the probabilities moved."""
        graph = build_graph(migrated, input_scales=scales, input_means=means)
        found = predict(graph, some, spec, "compare")
        return agreement(found, reference).differing_labels, _distance(found, reference)

    methods = list(METHODS) if method == AUTO else [method]
    scales = {name: input_scales(observed, name) for name in methods}
    results = {name: score(scales[name], {}) for name in methods}
    chosen = min(methods, key=results.__getitem__)
    means: dict[str, Array] = {
        name: observed.inputs[name].mean for name in linear_names(student)[1:]
    } | {"patch_embed.proj": observed.patch}
    corrected = score(scales[chosen], means)
    pays = corrected < results[chosen]
    about = {
        "asked": method,
        "method": chosen,
        "tiles": len(tiles),
        "groups": len({tile.group for tile in tiles.tiles}),
        "scores": {
            name: {"flipped": flips, "mean_probability_difference": distance}
            for name, (flips, distance) in (results | {f"{chosen}, biases": corrected}).items()
        },
        "scored_tiles": len(some),
        "bias_correction": pays,
        "migration_strength": strengths,
    }
    means = means if pays else {}
    # What migration leaves alone is the same in both: all tiles have been seen for that.
    plain_peak = max(plain.peak, observed.peak)
    return Plan(migrated, scales[chosen], means, observed.peak, plain_peak, about)


def observe_tiles(
    student: Student, tiles: TileSet, spec: ReaderSpec, what: str, samples: bool = False
) -> Observed:
    """`observe` over a tile set, with a bar named `what`."""
    with progress(what, len(tiles)) as advance:
        threads = available_cores()
        return observe(student, tiles.batches(spec, threads), threads, advance, samples)


def _distance(found: Probabilities, reference: Probabilities) -> float:
    """Mean change of a probability; no number is as far as can be."""
    return float(np.nan_to_num(np.abs(found - reference), nan=np.inf).mean())


# ---- the cache --------------------------------------------------------------------------------


def _key(student: Student, tiles: TileSet, spec: ReaderSpec, method: str) -> bytes:
    """Everything that the plan is made of; the code included, so that no version needs to be
    remembered."""
    graph = build_graph(student).SerializeToString(deterministic=True)
    code = hashlib.sha256()
    own = sorted(Path(edgelung.export.__file__).parent.glob("*.py"))
    for path in (*own, Path(reader.__file__), Path(metrics.__file__)):
        code.update(path.read_bytes())
    parts = {
        "graph": sha256_bytes(graph),
        "tiles": [tile.sha256 for tile in tiles.tiles],
        "reader": spec.to_json(),
        "method": method,
        "code": code.hexdigest(),
        "versions": {name: version(name) for name in RUNTIMES},
    }
    return json.dumps(parts, sort_keys=True).encode()


RUNTIMES = ("edgelung", "numpy", "onnx", "onnxruntime-gpu", "onnxruntime", "pillow", "simplejpeg")


def _bytes(plan: Plan, student: Student) -> bytes:
    """Everything of the plan but the weights that it left as they were."""
    changed = {k: v for k, v in plan.student.weights.items() if v is not student.weights[k]}
    meta = {
        "scales": dict(plan.scales),
        "peak": plan.peak,
        "plain_peak": plan.plain_peak,
        "about": dict(plan.about),
    }
    arrays = {f"weight:{k}": v for k, v in changed.items()}
    arrays |= {f"mean:{k}": v for k, v in plan.means.items()}
    arrays["meta"] = np.frombuffer(json.dumps(meta).encode(), np.uint8)
    whole = io.BytesIO()
    np.savez(whole, **arrays)  # type: ignore[arg-type]  # its stub takes keywords for flags
    return whole.getvalue()


def _read(data: bytes, student: Student) -> Plan | None:
    """The plan in the bytes; None where it is damaged."""
    try:
        with np.load(io.BytesIO(data), allow_pickle=False) as found:
            meta = json.loads(found["meta"].tobytes())
            parts: dict[str, dict[str, Array]] = {"weight": {}, "mean": {}}
            for name in found.files:
                kind, _, key = name.partition(":")
                if key:
                    parts[kind][key] = found[name]
        weights = student.weights | parts["weight"]
        migrated = replace(student, weights=weights)
        return Plan(migrated, means=parts["mean"], **meta)
    except Exception:  # zipfile, json and numpy raise types of their own for damaged files
        return None
