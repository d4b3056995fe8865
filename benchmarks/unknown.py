"""Does a model tell tissue that it was not made for? Which score tells it best?

    python benchmarks/unknown.py TILES FOREIGN --run RUN --bundle BUNDLE --left-out RUN…

TILES: folder with a folder of tiles per class. FOREIGN: a folder with `colon_*` (other tissue) and
`lung_*` (the classes, read alike: the control). RUN and BUNDLE: a run and what `edgelung export`
made of it. Each RUN of --left-out was trained without one of the classes:

    edgelung train TILES --out RUN --set 'classes=["lung_n", "lung_scc"]'

Every score is fitted on training tiles; thresholds are those that 99 % of the validation tiles
pass, averaged over groups. The JSON grows by parts: a part that is not named stays as it is.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import machine
import numpy as np
import numpy.typing as npt
from rich.console import Console
from rich.table import Table
from unknown_pictures import colour_changes, made_pictures
from unknown_scores import all_scores, read_features, without_score

from edgelung.artifacts.bundle import Bundle, graph_name, open_bundle
from edgelung.artifacts.run import RunFolder
from edgelung.artifacts.trust import OWN_WORK
from edgelung.core.precision import Precision
from edgelung.engines.base import Engine, GraphBytes
from edgelung.engines.openvino import OpenVinoEngine
from edgelung.evaluation.known import threshold_of
from edgelung.evaluation.metrics import evaluate
from edgelung.evaluation.shares import share_of
from edgelung.export.graph import build_graph
from edgelung.export.student import read_student
from edgelung.export.tiles import TileSet, read_split
from edgelung.tiles.blank import why_blank
from edgelung.tiles.reader import ReaderSpec, read_tile

PARTS = ("left-out", "foreign", "test", "made", "colour", "time")
KNOWN = 0.99
MOST = 2048  # tiles of a set, evenly from all groups
Tile = npt.NDArray[np.uint8]
Result = dict[str, Any]


def main() -> None:
    """Measure the parts that are asked for, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("tiles", type=Path)
    parser.add_argument("foreign", type=Path)
    parser.add_argument("--run", type=Path, required=True)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--left-out", type=Path, nargs="*", default=[])
    parser.add_argument("--parts", nargs="+", default=list(PARTS), choices=PARTS)
    default = Path(__file__).parent / "results" / "unknown.json"
    parser.add_argument("--json", type=Path, default=default)
    options = parser.parse_args()
    result = json.loads(options.json.read_text()) if options.json.is_file() else {}
    bundle = open_bundle(options.bundle, OWN_WORK)
    measure: dict[str, Callable[[], Result]] = {
        "left-out": lambda: left_out(options.left_out, options.tiles),
        "foreign": lambda: foreign(options.run, options.tiles, options.foreign, bundle),
        "test": lambda: accuracy_of_known(bundle, options.run, options.tiles),
        "made": lambda: made(bundle),
        "colour": lambda: colour(bundle, options.run, options.tiles),
        "time": lambda: cost(bundle, options.run),
    }
    for part in options.parts:
        result |= {part: measure[part](), "machine": machine.describe(), "known": KNOWN}
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    _print(result)


def left_out(runs: Sequence[Path], tiles: Path) -> Result:
    """AUROC of each score: test tiles of the known classes against the class left out."""
    found: dict[str, dict[str, float]] = {}
    for run in runs:
        classes = RunFolder(run).read_metrics().classes
        (absent,) = {folder.name for folder in tiles.iterdir() if folder.is_dir()} - set(classes)
        sets = read_split(RunFolder(run), tiles, tuple(classes))
        train, known = sets["train"].every(MOST), sets["test"].every(MOST)
        others = sorted((tiles / absent).iterdir())
        graph = build_graph(read_student(RunFolder(run))).SerializeToString()
        scores = _scores(
            graph, train, {"known": _paths(known), "absent": others[:: max(1, len(others) // 1024)]}
        )
        for name, values in scores.items():
            found.setdefault(name, {})[absent] = auroc(values["known"], values["absent"])
    return {
        name: areas | {"mean": float(np.mean(list(areas.values())))}
        for name, areas in found.items()
    }


def foreign(run: Path, tiles: Path, other: Path, bundle: Bundle) -> Result:
    """Each score of the run, and the bundle's own score, on other tissue and on the control."""
    sets = read_split(RunFolder(run), tiles, bundle.classes)
    train, validation, test = (sets[name].every(MOST) for name in ("train", "val", "test"))
    colon, control = (sorted(other.glob(f"{kind}_*/*")) for kind in ("colon", "lung"))
    graph = build_graph(read_student(RunFolder(run))).SerializeToString()
    scores = _scores(
        graph,
        train,
        {
            "validation": _paths(validation),
            "test": _paths(test),
            "colon": colon,
            "control": control,
        },
    )
    rows = {}
    for name, values in scores.items():
        limit = threshold_of(values["validation"], validation.groups, KNOWN)
        rows[name] = {
            "auroc_test": auroc(values["test"], values["colon"]),
            "auroc_control": auroc(values["control"], values["colon"]),
            "colon_told": [int((values["colon"] > limit).sum()), len(colon)],
            "control_told": [int((values["control"] > limit).sum()), len(control)],
            "test_told": 1 - share_of(values["test"] <= limit, test.groups).share,
        }
    return {"scores": rows, "variants": _variants(bundle, test, colon, control)}


def _variants(
    bundle: Bundle, test: TileSet, colon: Sequence[Path], control: Sequence[Path]
) -> Result:
    """The score and the limit of each variant of the bundle, in OpenVINO."""
    rows: Result = {}
    scores: dict[str, npt.NDArray[np.float32]] = {}
    for precision, variant in bundle.variants.items():
        if variant.entry.known is None or precision not in (Precision.FP32, Precision.INT8):
            continue
        engine = OpenVinoEngine(variant.graph, 2, bf16=_bf16(bundle, precision))
        limit = variant.entry.known.threshold
        found = {
            "test": _ood(engine, _pixels(_paths(test))),
            "colon": _ood(engine, _pixels(colon)),
            "control": _ood(engine, _pixels(control)),
        }
        scores[precision] = found["test"]
        told = share_of(found["test"] > limit, test.groups)
        rows[precision] = {
            "floating_point": engine.float_type,
            "limit": limit,
            "auroc_control": auroc(found["control"], found["colon"]),
            "colon_told": [int((found["colon"] > limit).sum()), len(colon)],
            "control_told": [int((found["control"] > limit).sum()), len(control)],
            "test_told": told.share,
            "test_interval": told.interval,
            "test_groups": told.groups,
        }
    if len(scores) == 2:
        first, second = scores.values()
        ranks = [values.argsort().argsort() for values in (first, second)]
        rows["rank_correlation"] = float(np.corrcoef(*ranks)[0, 1])
        limits = [bundle.variants[Precision(p)].entry.known.threshold for p in scores]
        rows["same_verdict"] = float(((first > limits[0]) == (second > limits[1])).mean())
    return rows


def accuracy_of_known(bundle: Bundle, run: Path, tiles: Path) -> Result:
    """Balanced accuracy of all test tiles and of the known ones, in full precision, paired."""
    test = read_split(RunFolder(run), tiles, bundle.classes)["test"]
    variant = bundle.variants[Precision.FP32]
    assert variant.entry.known is not None
    probabilities, scores = _infer(OpenVinoEngine(variant.graph, 2), _pixels(_paths(test)))
    known = scores <= variant.entry.known.threshold
    labels, found = test.labels, probabilities.argmax(axis=1)
    groups = np.array(test.groups)
    rng = np.random.default_rng(0)
    members = [np.flatnonzero(groups == name) for name in np.unique(groups)]
    changes = []
    for _ in range(2000):
        rows = np.concatenate([members[i] for i in rng.integers(len(members), size=len(members))])
        if len(np.unique(labels[rows])) == len(bundle.classes):
            changes.append(_change(labels[rows], found[rows], known[rows]))
    return {
        "tiles": len(test),
        "groups": len(members),
        "unknown": int((~known).sum()),
        "unknown_and_wrong": int((~known & (found != labels)).sum()),
        "balanced_accuracy": evaluate(probabilities, labels).balanced_accuracy,
        "balanced_accuracy_of_known": evaluate(
            probabilities[known], labels[known]
        ).balanced_accuracy,
        "change": _change(labels, found, known),
        "change_interval": np.quantile(changes, [0.025, 0.975]).tolist(),
    }


def _change(labels: npt.ArrayLike, found: npt.ArrayLike, known: npt.ArrayLike) -> float:
    """Balanced accuracy of the known tiles minus that of all."""
    labels, right = np.asarray(labels), np.asarray(found) == np.asarray(labels)
    known = np.asarray(known)
    recalls = [
        right[(labels == label) & known].mean() - right[labels == label].mean()
        for label in np.unique(labels)
    ]
    return float(np.mean(recalls))


def made(bundle: Bundle) -> Result:
    """Pictures that are no tissue: how many are told, by their pixels or by the score."""
    variant = bundle.variants[Precision.FP32]
    engine, known = OpenVinoEngine(variant.graph, 2), variant.entry.known
    rows: Result = {}
    for name, pictures in made_pictures().items():
        tiles = np.stack(pictures)
        blank = np.array([bool(why_blank(tile)) for tile in tiles])
        far = _ood(engine, tiles) > (known.threshold if known else np.inf)
        rows[name] = {"blank": int(blank.sum()), "told": int((blank | far).sum()), "of": len(tiles)}
    return rows


def colour(bundle: Bundle, run: Path, tiles: Path) -> Result:
    """How the share of unknown test tiles and the accuracy of the rest change with the colours."""
    test = read_split(RunFolder(run), tiles, bundle.classes)["test"].every(MOST // 4)
    variant = bundle.variants[Precision.FP32]
    engine, known = OpenVinoEngine(variant.graph, 2), variant.entry.known
    assert known is not None
    pixels = _pixels(_paths(test))
    rows: Result = {}
    for name, change in colour_changes().items():
        changed = np.stack([change(tile) for tile in pixels])
        output = _infer(engine, changed)
        kept = output[1] <= known.threshold
        rows[name] = {
            "unknown": float(1 - share_of(kept, test.groups).share),
            "balanced_accuracy": evaluate(output[0], test.labels).balanced_accuracy,
            "balanced_accuracy_of_known": evaluate(
                output[0][kept], test.labels[kept]
            ).balanced_accuracy
            if kept.any()
            else None,
        }
    return rows


def cost(bundle: Bundle, run: Path, rounds: int = 15) -> Result:
    """Time of the INT8 and the FP32 graph with and without the score: paired, one thread."""
    tiles = np.random.default_rng(0).integers(0, 256, (16, 224, 224, 3), np.uint8)
    rows: Result = {}
    for precision in (Precision.FP32, Precision.INT8):
        data = bundle.variants[precision].graph.read()
        bf16 = _bf16(bundle, precision)
        pair = [
            OpenVinoEngine(GraphBytes(graph, graph_name(precision)), 1, bf16=bf16)
            for graph in (data, without_score(data))
        ]
        ratios = []
        for _ in range(rounds):
            seconds = [_seconds(engine, tiles) for engine in pair]
            ratios.append(seconds[0] / seconds[1])
        rows[precision] = {
            "ratio_median": float(np.median(ratios)),
            "ratio_quartiles": np.quantile(ratios, [0.25, 0.75]).tolist(),
            "bytes_of_score": len(data) - len(without_score(data)),
        }
    return rows


def _seconds(engine: Engine, tiles: Tile) -> float:
    engine.infer(tiles)
    start = time.process_time()
    for _ in range(4):
        engine.infer(tiles)
    return time.process_time() - start


def auroc(known: npt.ArrayLike, other: npt.ArrayLike) -> float:
    """The probability that a foreign tile has the higher score; ties count half."""
    a, b = np.asarray(known)[None], np.asarray(other)[:, None]
    return float((b > a).mean() + 0.5 * (b == a).mean())


def _scores(
    graph: bytes, train: TileSet, sets: dict[str, Sequence[Path]]
) -> dict[str, dict[str, npt.NDArray[np.float64]]]:
    """Score → set → values."""
    fitted = read_features(graph, _paths(train), "training tiles")
    names = list(sets)
    features = read_features(graph, [path for name in names for path in sets[name]], "other tiles")
    ends = np.cumsum([len(sets[name]) for name in names])
    scores = all_scores(fitted, train.labels, features)
    return {
        score: dict(zip(names, np.split(values, ends[:-1]), strict=True))
        for score, values in scores.items()
    }


def _paths(tiles: TileSet) -> list[Path]:
    return [tiles.data / path for path in tiles.paths]


def _pixels(paths: Sequence[Path]) -> Tile:
    spec = ReaderSpec(size=224)
    return np.stack([read_tile(path, spec) for path in paths])


def _infer(engine: Engine, tiles: Tile) -> tuple[npt.NDArray[np.float32], npt.NDArray[np.float32]]:
    outputs = [engine.infer(tiles[i : i + 16]) for i in range(0, len(tiles), 16)]
    scores = [output.ood for output in outputs if output.ood is not None]
    return np.concatenate([output.probabilities for output in outputs]), np.concatenate(scores)


def _ood(engine: Engine, tiles: Tile) -> npt.NDArray[np.float32]:
    return _infer(engine, tiles)[1]


def _bf16(bundle: Bundle, precision: Precision) -> bool:
    check = bundle.variants[precision].gate.openvino
    return check is not None and check.verdict == "pass" and check.floating_point == "bf16"


def _print(result: Result) -> None:
    table = Table("score", "left out, mean", "colon, control", "colon told", "control told")
    rows = result.get("foreign", {}).get("scores", {})
    areas = result.get("left-out", {})
    for name in areas or rows:
        row = rows.get(name, {})
        told = ("/".join(map(str, row.get(f"{kind}_told", []))) for kind in ("colon", "control"))
        mean, area = areas.get(name, {}).get("mean"), row.get("auroc_control")
        table.add_row(name, *("" if v is None else f"{v:.4f}" for v in (mean, area)), *told)
    Console().print(table)
    for part in ("foreign", "made", "colour", "time"):
        if part in result:
            Console().print(part, result[part].get("variants", result[part]))


if __name__ == "__main__":
    main()
