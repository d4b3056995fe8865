"""`edgelung export`: a run to a bundle, with the evidence for each variant."""

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx

from edgelung import RESEARCH_USE_ONLY, __version__
from edgelung.bundle import FULL_PRECISION, Bundle, open_bundle, write_manifest
from edgelung.engines.choose import available_cores
from edgelung.engines.onnxruntime import OnnxRuntimeEngine
from edgelung.errors import EdgelungError
from edgelung.evidence.gate import gate
from edgelung.evidence.intervals import intervals
from edgelung.evidence.metrics import TEMPERATURES, Floats, evaluate, fit_temperature, roc_auc
from edgelung.export.calibrate import HALF_LIMIT, Observed, input_scales, observe
from edgelung.export.graph import build_graph, linear_names
from edgelung.export.student import Student, read_student
from edgelung.export.tiles import Labelled, TileSet, halve_by_group, read_split
from edgelung.files import atomic_folder, new_folder, sha256_file
from edgelung.report.pages import bundle_page, model_card
from edgelung.terminal import progress
from edgelung.tiles.find import find_files
from edgelung.tiles.reader import ReaderSpec

GOLDEN_PER_CLASS = 3
# Probabilities of the torch model at the end of training against the exported FP32 graph.
TORCH_TOLERANCE = 1e-3
CALIBRATION_ADVICE = 500  # tiles; NVIDIA's advice

Probabilities = npt.NDArray[np.float32]
Say = Callable[[str], None]


def export_run(
    run: Path,
    out: Path,
    *,
    half: bool,
    int8: bool,
    data: Path | None = None,
    outside: Path | None = None,
    say: Say = lambda text: None,
) -> Bundle:
    """Write the bundle of a finished run; returns it opened and verified.

    `half` and `int8` add the FP16 and INT8 variants to full precision. `outside` is a folder of
    tiles of none of the classes: the bundle then says how sure the model is of those. Raises
    EdgelungError where the run or its tiles cannot be read, or where the graph does not reproduce
    the trained model.
    """
    new_folder(out, "bundle")
    strangers = _tiles_outside(outside) if outside else None
    student = read_student(run)
    config = _read_config(run)
    spec = ReaderSpec(size=student.size)
    subsets = read_split(run, data or config["data"], student.classes)
    validation, test = subsets["val"], subsets["test"]
    # Only INT8 calibrates; without it all of validation is evidence.
    calibration, gate_tiles = (
        halve_by_group(validation, config["seed"]) if int8 else (validation, validation)
    )

    with atomic_folder(out) as folder:
        temperature = _fit_temperature(student, run, validation, spec, folder)
        say(f"temperature {temperature:.3f} from {len(validation)} validation tiles")
        if min(abs(np.log(temperature) - np.log(TEMPERATURES))) < 1e-3:
            say("the temperature stands at its bound: too few validation tiles are wrong to fit it")
        observed = None
        if half or int8:
            with progress("calibrate", len(calibration)) as advance:
                batches = calibration.batches(spec, available_cores())
                observed = observe(student, batches, available_cores(), advance)
        _write_variants(student, temperature, observed, half, int8, folder)
        variants = _judge(folder, student, spec, gate_tiles, test, observed, say)
        if strangers:
            graph = folder / variants[FULL_PRECISION]["file"]
            inside = _predict(graph, test, spec, "test").max(axis=1)
            beyond = _predict(graph, strangers, spec, "outside").max(axis=1)
        golden = _write_golden(folder, student, spec, gate_tiles, variants)
        if int8 and len(calibration) < CALIBRATION_ADVICE:
            say(
                f"calibrated on {len(calibration)} tiles; {CALIBRATION_ADVICE} or more are "
                "advised, and ranges of fewer may clip what other slides hold"
            )
        sets = subsets | {"gate, of val": gate_tiles}
        if int8:
            sets["calibration, of val"] = calibration
        manifest = {
            "name": f"{student.architecture} of {run.name}",
            "notice": RESEARCH_USE_ONLY,
            "classes": list(student.classes),
            "preprocessing": spec.to_json(),
            "temperature": temperature,
            "variants": variants,
            "golden": golden,
            "outside": compare_confidence(inside, beyond) if strangers else None,
            "provenance": _provenance(run, student, config, sets),
        }
        (folder / "report.html").write_text(bundle_page(manifest), encoding="utf-8")
        (folder / "MODEL_CARD.md").write_text(model_card(manifest), encoding="utf-8")
        write_manifest(folder, manifest)
    return open_bundle(out)


def _fit_temperature(
    student: Student, run: Path, validation: TileSet, spec: ReaderSpec, folder: Path
) -> float:
    """T from the validation set; on the way, proves the graph against the trained model."""
    plain = folder / "plain.onnx"
    onnx.save(build_graph(student), plain)
    found = _predict(plain, validation, spec, "validation")
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


def _write_variants(
    student: Student,
    temperature: float,
    observed: Observed | None,
    half: bool,
    int8: bool,
    folder: Path,
) -> None:
    graphs = {FULL_PRECISION: build_graph(student, temperature=temperature)}
    if half:
        graphs["fp16"] = build_graph(student, temperature=temperature, half=True)
    if int8 and observed:
        scales = input_scales(observed.ranges)
        graphs["int8"] = build_graph(student, temperature=temperature, input_scales=scales)
    for precision, model in graphs.items():
        onnx.save(model, folder / f"model.{precision}.onnx")


def _judge(
    folder: Path,
    student: Student,
    spec: ReaderSpec,
    gate_tiles: TileSet,
    test: TileSet,
    observed: Observed | None,
    say: Say,
) -> dict[str, dict[str, Any]]:
    """Each variant against full precision: the gate decides on validation, the test set reports."""
    variants: dict[str, dict[str, Any]] = {}
    reference: dict[str, Probabilities] = {}
    for path in sorted(folder.glob("model.*.onnx"), key=lambda p: "fp32" not in p.name):
        precision = path.name.split(".")[1]
        on_gate = _predict(path, gate_tiles, spec, f"{precision} gate")
        on_test = _predict(path, test, spec, f"{precision} test") if len(test) else None
        if precision == FULL_PRECISION:
            reference = {"gate": on_gate}
            verdict: dict[str, Any] = {
                "verdict": "reference",
                "reasons": [],
                **evaluate(on_gate, gate_tiles.labels),
            }
        else:
            verdict = gate(on_gate, reference["gate"], gate_tiles.labels)
            if precision == "fp16" and observed:
                check_half_range(verdict, observed.peak)
            say(f"{precision} gate: {verdict['verdict']} {'; '.join(verdict['reasons'])}".rstrip())
        variants[precision] = {
            "file": path.name,
            "bytes": path.stat().st_size,
            "quantized_linears": len(linear_names(student)) if precision == "int8" else 0,
            "judged_by": "onnxruntime CPU",
            "gate": verdict,
        }
        if on_test is not None and np.isfinite(on_test).all():
            reference.setdefault("test", on_test)
            variants[precision]["test"] = {
                **evaluate(on_test, test.labels),
                "intervals": intervals(
                    on_test.argmax(axis=1),
                    test.labels,
                    [tile.group for tile in test.tiles],
                    len(student.classes),
                ),
                "agreement_with_fp32": float(
                    (on_test.argmax(1) == reference["test"].argmax(1)).mean()
                ),
            }
    return variants


def _predict(graph: Path, tiles: TileSet, spec: ReaderSpec, what: str) -> Probabilities:
    engine = OnnxRuntimeEngine(graph, available_cores())
    found = []
    with progress(what, len(tiles)) as advance:
        for batch in tiles.batches(spec, available_cores()):
            found.append(engine.infer(batch))
            advance(len(batch))
    engine.close()
    return np.concatenate(found)


def _tiles_outside(folder: Path) -> TileSet:
    """Every readable tile below `folder`, whatever it shows."""
    found = [file for file in find_files(folder) if file.is_image and not file.reason]
    tiles = tuple(Labelled(f.path, 0, f.path, sha256_file(f.location)) for f in found)
    if not tiles:
        raise EdgelungError(f"--outside {folder} holds no tile; expected tiles of other tissue")
    return TileSet(folder, tiles)


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
        confidence = _predict(graph, some, spec, "golden").max(axis=1)
        chosen += [some.tiles[i] for i in confidence.argsort()[:GOLDEN_PER_CLASS]]
    golden = TileSet(gate_tiles.data, tuple(chosen))
    found = {
        name: _predict(folder / entry["file"], golden, spec, "golden")
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


def check_half_range(verdict: dict[str, Any], peak: float) -> None:
    """Fail the FP16 variant where an activation nears FP16's largest value.

    CPU runtimes compute FP16 graphs in FP32, so the gate's probabilities show rounding but cannot
    show an overflow; the largest activation that full precision met on the tiles can.
    """
    verdict["largest_activation"] = peak
    if peak > HALF_LIMIT:
        verdict["verdict"] = "fail"
        verdict["reasons"].append(f"an activation of {peak:.0f} is too near FP16's limit of 65504")


def _provenance(
    run: Path, student: Student, config: dict[str, Any], sets: dict[str, TileSet]
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
        "int8": "min-max of the inputs of the linears, symmetric, weights per output channel",
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
    path = run / "run.json"
    try:
        config: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        if not {"data", "seed", "groups", "recipe", "split"} <= set(config):
            raise ValueError("data, seed, groups, split or recipe is missing")
        if sha256_file(run / "split.csv") != config["split_sha256"]:
            raise ValueError("split.csv is not the one that the run was made with")
        config["data"] = Path(config["data"])
    except (OSError, KeyError, TypeError, ValueError) as error:
        raise EdgelungError(f"cannot read {path}: {error}; expected a finished run") from error
    return config
