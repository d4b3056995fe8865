"""`edgelung export`: a run to a bundle, with the evidence for each variant."""

import csv
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgelung import RESEARCH_USE_ONLY, __version__
from edgelung.artifacts.bundle import Bundle, BundleManifest, open_bundle, write_bundle
from edgelung.artifacts.run import RunFolder
from edgelung.core.errors import EdgelungError
from edgelung.core.files import atomic_folder, new_folder, sha256_file
from edgelung.core.precision import FULL_PRECISION
from edgelung.core.typed_json import convert, plain
from edgelung.evaluation.gate import LIMITS, STRICT
from edgelung.evaluation.metrics import TEMPERATURES, Floats, fit_temperature, roc_auc
from edgelung.export.graph import build_graph
from edgelung.export.judge import Judge, Say
from edgelung.export.predict import Probabilities, predict
from edgelung.export.quantize import AUTO, Plan, check_method, observe_tiles, plan_int8
from edgelung.export.student import Student, read_student
from edgelung.export.tiles import Labelled, TileSet, read_split, set_aside
from edgelung.report.pages import bundle_page, model_card
from edgelung.report.variants import variant_figures
from edgelung.tiles.find import FoundFile, find_files
from edgelung.tiles.reader import ReaderSpec, TileError, read_tile

GOLDEN_PER_CLASS = 3
# Probabilities of the torch model at the end of training against the exported FP32 graph.
TORCH_TOLERANCE = 1e-3
CALIBRATION_TILES = 512  # NVIDIA advises 500 or more


def export_run(
    run: Path,
    out: Path,
    *,
    half: bool,
    int8: bool,
    fp8: bool = False,
    qat: bool = False,
    data: Path | None = None,
    outside: Path | None = None,
    calibration: str = AUTO,
    calibration_tiles: int = CALIBRATION_TILES,
    strict: bool = False,
    say: Say = lambda text: None,
) -> Bundle:
    """Write the bundle of a finished run; returns it opened and verified.

    `half`, `int8` and `fp8` add those variants to full precision. `calibration`: 'auto' or
    one of `calibrate.METHODS`, on about `calibration_tiles` validation tiles, whole groups, at most
    half of them; all others judge. `qat`: where INT8 does not pass, train it on the training tiles
    (`edgelung.export.qat`; needs torch). `strict`: balanced accuracy of 99.9 % of full precision
    instead of 99 %. `outside` is a folder of tiles of none of the classes: the bundle then says how
    sure the model is of those. Raises EdgelungError where the run or its tiles cannot be read, or
    where the graph does not reproduce the trained model.
    """
    check_method(calibration)
    new_folder(out, "bundle")
    student = read_student(run)
    spec = ReaderSpec(size=student.size)
    strangers = _tiles_outside(outside, spec) if outside else None
    config = _read_config(run)
    subsets = read_split(run, data or config["data"], student.classes)
    validation, test = subsets["val"], subsets["test"]
    # Only eight bits calibrate; without them all of validation is evidence.
    eight_bit = int8 or fp8
    to_calibrate, gate_tiles = (
        set_aside(validation, calibration_tiles, config["seed"])
        if eight_bit
        else (validation, validation)
    )
    refine = _refiner(subsets["train"], to_calibrate, spec) if qat else None

    with atomic_folder(out) as folder:
        temperature = _fit_temperature(student, run, validation, spec, folder)
        say(f"temperature {temperature:.3f} from {len(validation)} validation tiles")
        if min(abs(np.log(temperature) - np.log(TEMPERATURES))) < 1e-3:
            say("the temperature stands at its bound: too few validation tiles are wrong to fit it")
        limits = STRICT if strict else LIMITS
        judge = Judge(folder, student, temperature, spec, gate_tiles, test, limits, say)
        judge.full_precision()
        plan = plan_int8(student, to_calibrate, spec, calibration) if eight_bit else None
        if half:
            observed = observe_tiles(student, to_calibrate, spec, "range") if not plan else None
            judge.half_precision(plan.plain_peak if plan else observed.peak if observed else 0.0)
        if plan:
            _say_plan(judge, plan, to_calibrate)
        ranking = judge.int8(plan, to_calibrate, refine) if plan and int8 else None
        if plan and fp8:
            judge.fp8(plan)
        variants = judge.variants
        if strangers:
            graph = folder / variants[FULL_PRECISION]["file"]
            inside = predict(graph, test, spec, "test").max(axis=1)
            beyond = predict(graph, strangers, spec, "outside").max(axis=1)
        golden = _write_golden(folder, student, spec, gate_tiles, variants)
        sets = subsets | {"gate, of val": gate_tiles}
        if eight_bit:
            sets["calibration, of val"] = to_calibrate
        content = {
            "name": f"{student.architecture} of {run.name}",
            "notice": RESEARCH_USE_ONLY,
            "classes": list(student.classes),
            "preprocessing": spec.to_json(),
            "temperature": temperature,
            "variants": variants,
            "sensitivity": ranking,
            "golden": golden,
            "outside": compare_confidence(inside, beyond) if strangers else None,
            "provenance": _provenance(run, student, config, sets, plan),
        }
        manifest = convert(content, BundleManifest)
        page = bundle_page(manifest, _figures(judge, manifest.sensitivity))
        (folder / "report.html").write_text(page, encoding="utf-8")
        (folder / "MODEL_CARD.md").write_text(model_card(manifest), encoding="utf-8")
        write_bundle(folder, manifest)
    return open_bundle(out)


def _refiner(train: TileSet, calibration: TileSet, spec: ReaderSpec) -> Callable[[Plan], Plan]:
    """What trains a plan; raises EdgelungError where that cannot be, before any work is done."""
    try:
        from edgelung.export.qat import refine  # torch: only where it is asked for
    except ModuleNotFoundError as error:
        raise EdgelungError(
            f"--qat needs {error.name}, which is not installed: pip install 'edgelung[train]'"
        ) from error
    if not len(train):
        raise EdgelungError("--qat trains on the run's training tiles; its split.csv has none")
    next(train.every(1).batches(spec, 1))  # they are still there
    return lambda plan: refine(plan, train, calibration, spec)


def _say_plan(judge: Judge, plan: Plan, calibration: TileSet) -> None:
    """What the plan is, and what few tiles cost."""
    about = plan.about
    judge.say(
        f"calibration {about['method']} on {about['tiles']} tiles in {about['groups']} groups, "
        f"{len(about['migration_strength'])} scale migrations"
        + (", biases corrected" if about["bias_correction"] else "")
    )
    if len(calibration) < CALIBRATION_TILES:
        judge.say(
            f"calibrated on {len(calibration)} tiles; {CALIBRATION_TILES} or more are advised: "
            "ranges of fewer may clip what other slides hold, and the choice of method is noisier"
        )


def _figures(judge: Judge, ranking: dict[str, Any] | None) -> dict[str, Any]:
    """Scatter, flipped tiles and sensitivity for the report."""
    sets = {"gate": judge.gate_tiles, "test": judge.test}
    paths = {name: [tile.path for tile in tiles.tiles] for name, tiles in sets.items()}
    labels = {name: tiles.labels for name, tiles in sets.items()}

    def pixels(path: str) -> npt.NDArray[np.uint8]:
        return read_tile(judge.gate_tiles.data / path, judge.spec)

    classes = judge.student.classes
    return variant_figures(judge.probabilities, labels, paths, classes, pixels, ranking)


def _fit_temperature(
    student: Student, run: Path, validation: TileSet, spec: ReaderSpec, folder: Path
) -> float:
    """T from the validation set; on the way, proves the graph against the trained model."""
    plain = folder / "plain.onnx"
    onnx.save(build_graph(student), plain)
    found = predict(plain, validation, spec, "validation")
    plain.unlink()
    expected = _trained_probabilities(run, validation, student.classes)
    difference = float(np.abs(found - expected).max())
    if not difference <= TORCH_TOLERANCE:
        raise EdgelungError(
            f"the exported graph does not reproduce the trained model: probabilities of the "
            f"validation tiles differ by up to {difference:.3g} (allowed {TORCH_TOLERANCE:g}); "
            "nothing was written. The run's weights and predictions.csv may not belong together"
        )
    return fit_temperature(np.log(np.maximum(found, 1e-30)), validation.labels)


def _trained_probabilities(run: Path, tiles: TileSet, classes: Sequence[str]) -> Probabilities:
    path = run / "predictions.csv"
    try:
        with path.open(encoding="utf-8", newline="") as file:
            known = {
                row["path"]: [float(row[f"p_{name}"]) for name in classes]
                for row in csv.DictReader(file)
            }
        return np.array([known[tile.path] for tile in tiles.tiles], np.float32)
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise EdgelungError(f"cannot read the run's {path}: {error}") from error


def _tiles_outside(folder: Path, spec: ReaderSpec) -> TileSet:
    """Every readable tile below `folder`, whatever it shows."""
    found = [file for file in find_files(folder) if file.is_image and _readable(file, spec)]
    tiles = tuple(Labelled(f.path, 0, f.path, sha256_file(f.location)) for f in found)
    if not tiles:
        raise EdgelungError(f"--outside {folder} holds no tile; expected tiles of other tissue")
    return TileSet(folder, tiles)


def _readable(file: FoundFile, spec: ReaderSpec) -> bool:
    try:
        read_tile(file.location, spec)
    except TileError:
        return False
    return not file.reason


def compare_confidence(inside: Floats, outside: Floats) -> dict[str, Any]:
    """How sure a model is of test tiles and of tiles that are of none of its classes.

    `inside`, `outside`: the largest probability of each tile. `roc_auc` is the chance that a test
    tile gets the higher one (0.5: confidence tells nothing, 1: it always does).
    """
    both = np.concatenate([inside, outside])
    truth = np.repeat([1, 0], [len(inside), len(outside)])
    return {
        "tiles": len(outside),
        "median_confidence_on_test": float(np.median(inside)),
        "median_confidence": float(np.median(outside)),
        "share_above_0.9_on_test": float((inside > 0.9).mean()),
        "share_above_0.9": float((outside > 0.9).mean()),
        "roc_auc": roc_auc(np.stack([-both, both], axis=1), truth),
    }


def _write_golden(
    folder: Path,
    student: Student,
    spec: ReaderSpec,
    gate_tiles: TileSet,
    variants: dict[str, dict[str, Any]],
) -> list[dict[str, Any]]:
    """Copy a few gate tiles of each class, as files, with their probabilities per variant.

    The least certain of a handful per class: a saturated probability would hide a wrong engine.
    """
    graph = folder / variants[FULL_PRECISION]["file"]
    chosen = []
    for label in range(len(student.classes)):
        own = [tile for tile in gate_tiles.tiles if tile.label == label]
        some = TileSet(gate_tiles.data, tuple(own[:: max(1, len(own) // 16)][:16]))
        confidence = predict(graph, some, spec, "golden").max(axis=1)
        chosen += [some.tiles[i] for i in confidence.argsort()[:GOLDEN_PER_CLASS]]
    golden = TileSet(gate_tiles.data, tuple(chosen))
    found = {
        name: predict(folder / entry["file"], golden, spec, "golden")
        for name, entry in variants.items()
    }
    (folder / "golden").mkdir()
    entries = []
    for i, tile in enumerate(golden.tiles):
        name = f"golden/{i:02d}{Path(tile.path).suffix.lower()}"
        shutil.copyfile(golden.data / tile.path, folder / name)
        entries.append(
            {
                "file": name,
                "class": student.classes[tile.label],
                "probabilities": {p: [float(v) for v in rows[i]] for p, rows in found.items()},
            }
        )
    return entries


def _provenance(
    run: Path,
    student: Student,
    config: dict[str, Any],
    sets: dict[str, TileSet],
    plan: Plan | None,
) -> dict[str, Any]:
    return {
        "edgelung": __version__,
        "created": datetime.now(UTC).isoformat(timespec="seconds"),
        "run": run.name,
        "student": student.architecture,
        "weights_sha256": sha256_file(run / "model.safetensors"),
        "split_sha256": sha256_file(run / "split.csv"),
        "groups": config["groups"],
        "split": config["split"],
        "recipe": _without_folders(config["recipe"]),
        "sets": {
            name: {"tiles": len(tiles), "groups": len({tile.group for tile in tiles.tiles})}
            for name, tiles in sets.items()
        },
        "eight_bits": plan
        and f"inputs of the linears, symmetric ({plan.about['method']}), weights per output "
        "channel, scales migrated from LayerNorm and values into the next linear; on an FP32 base "
        "queries and keys too",
    }


def _without_folders(recipe: dict[str, Any]) -> dict[str, Any]:
    """The recipe with weights files by name: a bundle travels, the trainer's disk does not."""
    return {
        key: value | {"weights": Path(value["weights"]).name}
        if isinstance(value, dict) and "weights" in value
        else value
        for key, value in recipe.items()
    }


def _read_config(run: Path) -> dict[str, Any]:
    found = RunFolder(run).read_config()
    RunFolder(run).check_split(found)
    config = plain(found)
    assert isinstance(config, dict)
    return config | {"data": Path(str(config["data"]))}
