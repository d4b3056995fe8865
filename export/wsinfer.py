"""A model folder for WSInfer and its QuPath extension: config.json, TorchScript, README.md.

Both cut squares of `patch_size_pixels` × `spacing_um_px` micrometres from a slide, resize them with
filters of their own, normalise them, run the program and apply softmax. `agreement.json` says how
far the result is from full precision of the bundle with edgelung's own reader.

The format is that of the model zoo: wsinfer_zoo/schemas/model-config.schema.json, version 1.0.
"""

import importlib
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import numpy as np
import torch
from msgspec import Struct
from PIL import Image

from edgelung.artifacts.bundle import Bundle
from edgelung.artifacts.run import RunFolder
from edgelung.core import typed_json
from edgelung.core.errors import EdgelungError
from edgelung.core.files import atomic_folder
from edgelung.core.precision import FULL_PRECISION
from edgelung.core.terminal import progress
from edgelung.engines.base import Probabilities
from edgelung.evaluation.concerns import bundle_concerns
from edgelung.export.inputs import ExportInputs, read_inputs
from edgelung.export.predict import predict
from edgelung.export.student import Student
from edgelung.export.tiles import BATCH, TileSet
from edgelung.export.torchscript import build_torchscript, load_torchscript
from edgelung.report.render import render
from edgelung.tiles.reader import ReaderSpec, read_pixels

transforms = importlib.import_module("torchvision.transforms")  # has no types
CONFIG, PROGRAM, AGREEMENT, README = (
    *("config.json", "torchscript_model.pt", "agreement.json", "README.md"),
)
SPEC_VERSION = "1.0"  # the only one in the schema
MEASURED_TILES = 256  # some seconds
FULL_SIZE = ReaderSpec(size=4096)  # a JPEG of fewer pixels is not decoded at a smaller scale
# Largest difference of a probability between the program and the bundle on the same pixels.
PROGRAM_TOLERANCE = 1e-4


class Transform(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One step from a cut tile to the program's input; `arguments` of torchvision's class."""

    name: str
    arguments: dict[str, int | list[float]] = {}


class WsinferConfig(Struct, frozen=True, kw_only=True):
    """config.json. `spacing_um_px`: micrometres per pixel at which tiles are read."""

    spec_version: str = SPEC_VERSION
    name: str
    architecture: str
    num_classes: int
    class_names: list[str]
    patch_size_pixels: int
    spacing_um_px: float
    transform: list[Transform]


class PixelAgreement(Struct, frozen=True, kw_only=True):
    """The program against the bundle, tile by tile. Fractions and differences of probabilities."""

    same_label: float
    largest_probability_difference: float
    mean_probability_difference: float


class WsinferAgreement(Struct, frozen=True, kw_only=True):
    """agreement.json: the program on pixels that two readers give of the same tiles.

    Attributes:
        subset: 'test', or 'validation' where a run has no test tiles.
        tiles: how many were measured, evenly spread.
        edgelung: pixels of edgelung's reader; differs by rounding alone.
        wsinfer: decoded at full size, then the transform of config.json, as WSInfer 0.6.1 does it.
    """

    subset: str
    tiles: int
    edgelung: PixelAgreement
    wsinfer: PixelAgreement


def write_wsinfer_folder(
    out: Path, run: RunFolder, bundle: Bundle, data: Path | None
) -> WsinferAgreement:
    """Write the model folder of a run that was exported as `bundle`, and measure its agreement.

    Args:
        out: the folder, which must be new.
        run: the run folder.
        bundle: its bundle, which states `tile_um`.
        data: the folder of the tiles, if it has moved.

    Raises:
        EdgelungError: if the program does not reproduce the bundle. Nothing is written then.
    """
    inputs = read_inputs(run, data=data, calibrates=False, calibration_tiles=1)
    config = wsinfer_config(inputs.student, bundle)
    program = build_torchscript(inputs.student, bundle.manifest.temperature)
    agreement = measure_agreement(program, config, inputs, bundle)
    with atomic_folder(out) as folder:
        typed_json.write(folder / CONFIG, config)
        (folder / PROGRAM).write_bytes(program)
        typed_json.write(folder / AGREEMENT, agreement)
        (folder / README).write_text(_readme(config, agreement, bundle), encoding="utf-8")
    return agreement


def wsinfer_config(student: Student, bundle: Bundle) -> WsinferConfig:
    """config.json of a student. Raises EdgelungError if nobody stated the size of a tile."""
    if bundle.tile_um is None:
        raise EdgelungError(
            f"bundle {bundle.folder} does not state how many micrometres a tile shows; expected "
            "--tile-um U with the export"
        )
    side = _patch_side(bundle, student.size)
    return WsinferConfig(
        name=bundle.manifest.name,
        architecture=student.architecture,
        num_classes=len(bundle.classes),
        class_names=list(bundle.classes),
        patch_size_pixels=side,
        spacing_um_px=bundle.tile_um / side,
        transform=[
            Transform(name="Resize", arguments={"size": student.size}),
            Transform(name="ToTensor"),
            Transform(
                name="Normalize",
                arguments={"mean": list(student.mean), "std": list(student.std)},
            ),
        ],
    )


def _patch_side(bundle: Bundle, model_side: int) -> int:
    """Pixels of a patch: as in the training tiles, so that a slide is read at their resolution.

    The size of the model's input if the training tiles have several sizes.
    """
    sizes = bundle.trained_sizes.sizes
    if len(sizes) == 1 and sizes[0][0] == sizes[0][1]:
        return sizes[0][0]
    return model_side


def measure_agreement(
    program: bytes, config: WsinferConfig, inputs: ExportInputs, bundle: Bundle
) -> WsinferAgreement:
    """Compare the program with full precision of the bundle on test tiles.

    Raises:
        EdgelungError: if they differ on the same pixels.
    """
    subset = "test" if len(inputs.test) else "validation"
    tiles = (inputs.test if len(inputs.test) else inputs.validation).every(MEASURED_TILES)
    inputs.reader.keep(tiles, "decode tiles")
    graph = bundle.variant(FULL_PRECISION).graph.read()
    expected = predict(graph, tiles, inputs.reader, "fp32, wsinfer").probabilities
    run_program = _loaded(program, config)
    own = np.concatenate(list(inputs.reader.batches(tiles)))  # (N, size, size, 3)
    same_pixels = _compare(run_program(map(Image.fromarray, own), len(tiles)), expected)
    if not same_pixels.largest_probability_difference <= PROGRAM_TOLERANCE:  # NaN is not
        raise EdgelungError(
            "the TorchScript program does not reproduce the bundle: probabilities differ by up to "
            f"{same_pixels.largest_probability_difference:.3g} on the same pixels (allowed "
            f"{PROGRAM_TOLERANCE:g}); the model folder was not written"
        )
    return WsinferAgreement(
        subset=subset,
        tiles=len(tiles),
        edgelung=same_pixels,
        wsinfer=_compare(run_program(_images(tiles), len(tiles)), expected),
    )


def _loaded(
    program: bytes, config: WsinferConfig
) -> Callable[[Iterator[Image.Image], int], Probabilities]:
    """The program as WSInfer runs it: images → transform → program → softmax, (N, classes)."""
    steps = transforms.Compose(
        [getattr(transforms, step.name)(**step.arguments) for step in config.transform]
    )
    model = load_torchscript(program)

    def run(images: Iterator[Image.Image], count: int) -> Probabilities:
        rows: list[Probabilities] = []
        with progress("torchscript", count) as advance:
            for batch in _batches(images):
                logits = model(torch.stack([steps(image) for image in batch]))
                rows.append(logits.softmax(dim=1).numpy())
                advance(len(batch))
        return np.concatenate(rows)

    return run


def _batches(images: Iterator[Image.Image]) -> Iterator[list[Image.Image]]:
    batch: list[Image.Image] = []
    for image in images:
        batch.append(image)
        if len(batch) == BATCH:
            yield batch
            batch = []
    if batch:
        yield batch


def _images(tiles: TileSet) -> Iterator[Image.Image]:
    """The tiles decoded at their full size, as a slide reader gives them."""
    for tile in tiles.tiles:
        yield Image.fromarray(read_pixels(tiles.data / tile.path, FULL_SIZE))


def _compare(probabilities: Probabilities, expected: Probabilities) -> PixelAgreement:
    difference = np.abs(probabilities - expected)
    same = probabilities.argmax(axis=1) == expected.argmax(axis=1)
    return PixelAgreement(
        same_label=float(same.mean()),
        largest_probability_difference=float(difference.max()),
        mean_probability_difference=float(difference.mean()),
    )


def _readme(config: WsinferConfig, agreement: WsinferAgreement, bundle: Bundle) -> str:
    rows: Sequence[tuple[str, PixelAgreement]] = (
        ("as edgelung does", agreement.edgelung),
        ("as WSInfer does", agreement.wsinfer),
    )
    return render(
        "wsinfer.md.j2",
        name=config.name,
        concerns=bundle_concerns(bundle.manifest),
        origins=bundle.manifest.provenance.origins if bundle.manifest.provenance else [],
        bundle=bundle.sha256,
        config=config,
        side=bundle.tile_um,
        size=bundle.reader.size,
        temperature=bundle.manifest.temperature,
        agreement=agreement,
        rows=rows,
    )
