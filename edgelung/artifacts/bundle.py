"""The bundle: the folder that is copied to the workstation. Its types, reader and writer.

    bundle.json           classes, preprocessing, variants with gate results, provenance, hashes
    bundle.json.sha256    the hash of bundle.json, in the format of `sha256sum -c`
    model.<variant>.onnx  one file per variant, without external data
    golden/…              a few tiles with known probabilities for each variant
    report.html, MODEL_CARD.md

    bundle.sig            a signature over all other files, if somebody signed the bundle

The hash of every file is checked before the file is used. Hashes detect damage and mix-ups, but not
forgery: anyone who can write the folder can also write the hashes. The signature detects forgery.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path, PurePosixPath

from msgspec import UNSET, Struct, UnsetType, field

from edgelung.artifacts.digests import read_digests
from edgelung.artifacts.results import Concern, GateResult, SetSize, VariantTest
from edgelung.artifacts.trust import OWN_WORK, SignatureCheck, Trust, check_starter, choose_trust
from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.files import sha256_bytes, sha256_file
from edgelung.core.own_folders import BUNDLE_MANIFEST, BUNDLE_SEAL, REPORT_PAGE
from edgelung.core.precision import FULL_PRECISION, Precision
from edgelung.core.typed_json import Json, convert, parse, plain
from edgelung.tiles.reader import ReaderSpec
from edgelung.tiles.sizes import TrainedSizes

SCHEMA_VERSION = 1
MANIFEST, SEAL = BUNDLE_MANIFEST, BUNDLE_SEAL
GOLDEN_FOLDER = "golden"
REPORT = REPORT_PAGE
MODEL_CARD = "MODEL_CARD.md"
STARTER_NOTE = (
    "no --model: the starter bundle predicts, a model for trying the toolkit, trained on LC25000; "
    "for research only, not for diagnosis"
)


def graph_name(precision: Precision) -> str:
    """File name of a variant's graph in the bundle."""
    return f"model.{precision}.onnx"


class MethodScore(Struct, frozen=True, kw_only=True):
    """Loss of a calibration method on the tiles that compare the methods."""

    flipped: int
    mean_probability_difference: float


class QatRecord(Struct, frozen=True, kw_only=True):
    """Quantization-aware training of a variant: tiles used, loss at the start and at the end."""

    tiles: int
    loss_before: float
    loss_after: float


class Calibration(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """How the 8-bit ranges of a variant were chosen.

    `asked` is the requested method, `method` the one that was used. `scores` holds the loss of each
    method on `scored_tiles` of the calibration tiles. `migration_strength`: SmoothQuant's α of each
    operation whose scale was migrated.
    """

    asked: str
    method: str
    tiles: int
    groups: int
    scores: dict[str, MethodScore]
    scored_tiles: int
    bias_correction: bool
    migration_strength: dict[str, float]
    qat: QatRecord | None = None


class PartSensitivity(Struct, frozen=True, kw_only=True):
    """Divergence of the output if only this part is in INT8, or all but this part; nats."""

    name: str
    linears: list[str]
    alone: float
    all_but: float


class Sensitivity(Struct, frozen=True, kw_only=True):
    """Divergence caused by INT8, most harmful part first; nats, mean over `tiles` tiles."""

    everything: float = field(name="all")
    linears: list[PartSensitivity]
    blocks: list[PartSensitivity]
    tiles: int


class VariantEntry(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """One variant: its file, how it was made, and the evidence for it.

    `kept_in_float`: parts that stay in floating point because the gate failed with them in INT8.
    `tiles_per_second`: speed of the network alone, by CPU engine, on the exporting machine.
    """

    file: str
    bytes: int
    base: str
    meant_for: str
    quantized_linears: int
    judged_by: str
    tiles_per_second: dict[str, float]
    gate: GateResult
    kept_in_float: list[str] | None = field(name="given_back", default=None)
    calibration: Calibration | None = None
    test: VariantTest | None = None


class GoldenEntry(Struct, frozen=True, kw_only=True):
    """A golden tile: its file, its class, and its probabilities by variant."""

    file: str
    label: str = field(name="class")
    probabilities: dict[str, list[float]]


class OutsideConfidence(Struct, frozen=True, kw_only=True):
    """Confidence on tiles of other tissue, compared with the test tiles.

    `roc_auc`: the probability that a test tile gets a higher confidence than such a tile.
    """

    tiles: int
    median_confidence_on_test: float
    median_confidence: float
    share_above_09_on_test: float = field(name="share_above_0.9_on_test")
    share_above_09: float = field(name="share_above_0.9")
    roc_auc: float | None


class Provenance(Struct, frozen=True, kw_only=True):
    """Origin of the model. `recipe` is the recipe as resolved by `edgelung train`."""

    edgelung: str
    created: str
    run: str
    student: str
    weights_sha256: str
    split_sha256: str
    groups: str
    split: str
    recipe: dict[str, Json]
    sets: dict[str, SetSize]
    eight_bits: str | None


class FileEntry(Struct, frozen=True, kw_only=True):
    """A file of the bundle: its hash and its size."""

    sha256: str
    bytes: int


class BundleManifest(Struct, frozen=True, kw_only=True):
    """bundle.json.

    `tile_sizes`: number of training tiles by '<width>x<height>' in pixels; empty in older bundles.
    `concerns`: UNSET in bundles of an older edgelung; `evaluation.concerns.bundle_concerns` then
    derives them.
    """

    schema_version: int = SCHEMA_VERSION
    name: str = ""
    notice: str = ""
    classes: list[str]
    preprocessing: dict[str, Json]
    temperature: float
    variants: dict[str, VariantEntry]
    sensitivity: Sensitivity | None = None
    golden: list[GoldenEntry]
    outside: OutsideConfidence | None = None
    tile_sizes: dict[str, int] = {}
    concerns: list[Concern] | UnsetType = UNSET
    provenance: Provenance | None = None
    files: dict[str, FileEntry] = {}


@dataclass(frozen=True)
class Variant:
    """One ONNX file of the model at one precision, with its evidence."""

    precision: Precision
    path: Path
    entry: VariantEntry

    @property
    def gate(self) -> GateResult:
        """The result of the gate."""
        return self.entry.gate

    @property
    def passed(self) -> bool:
        """True for full precision (the reference) and for a variant that passed its gate."""
        return self.precision == FULL_PRECISION or self.gate.verdict == "pass"


@dataclass(frozen=True)
class GoldenTile:
    """A tile in the bundle, with its probabilities per variant, (classes,) each."""

    path: Path
    probabilities: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle. `sha256` is the hash of bundle.json, which contains all other hashes."""

    folder: Path
    classes: tuple[str, ...]
    reader: ReaderSpec
    variants: Mapping[Precision, Variant]
    golden: tuple[GoldenTile, ...]
    manifest: BundleManifest
    sha256: str
    digests: Mapping[str, str]
    signature: SignatureCheck

    @cached_property
    def trained_sizes(self) -> TrainedSizes:
        """The pixel sizes of the tiles that the model was trained on."""
        return TrainedSizes(self.manifest.tile_sizes)

    def variant(self, precision: Precision) -> Variant:
        """The variant of this precision. Raises EdgelungError if the bundle has none."""
        if precision not in self.variants:
            name = "the starter" if self.is_starter else f"bundle {self.folder}"
            raise EdgelungError(
                f"{name} holds no {precision} variant; expected --precision auto or one of "
                f"{', '.join(self.variants)}. To get a bundle that holds it: `edgelung export RUN "
                f"--out BUNDLE {precision.about.option}`, with a run of your own"
            )
        return self.variants[precision]

    @property
    def is_starter(self) -> bool:
        """True for the bundle in the package."""
        return self.folder.resolve() == _starter_folder().resolve()


def starter_bundle() -> Path:
    """The folder of the bundle in the package. Raises EdgelungError if it is not there."""
    if not ((folder := _starter_folder()) / MANIFEST).is_file():
        raise EdgelungError("this installation has no starter bundle; expected --model BUNDLE")
    return folder


def _starter_folder() -> Path:
    return Path(str(resources.files("edgelung"))) / "starter"


def open_bundle(folder: Path, trust: Trust | None = None) -> Bundle:
    """Verify who made the bundle and every hash, then read it.

    `trust`: whose bundles are accepted; None: what the configuration of this machine says.

    Raises:
        EdgelungError: for the first fault.
    """
    data = _read_sealed(folder)
    content = _checked_json(folder, data)
    _check_files(folder, content)
    digests, signature = read_digests(folder)
    if folder.resolve() == _starter_folder().resolve() and trust is not OWN_WORK:
        check_starter(digests)
    check = (choose_trust() if trust is None else trust).check(folder, digests, signature)
    try:
        manifest = convert(content, BundleManifest)
        reader = ReaderSpec.from_json(manifest.preprocessing)
    except (ValueError, AttributeError) as error:
        raise EdgelungError(
            f"{folder / MANIFEST} lacks or misuses a field: {one_line(error)}; "
            "export the bundle again"
        ) from error
    known = {str(precision) for precision in Precision}
    variants = {
        Precision(name): Variant(Precision(name), folder / entry.file, entry)
        for name, entry in manifest.variants.items()
        if name in known  # a newer edgelung may know more precisions
    }
    golden = tuple(
        GoldenTile(
            folder / entry.file, {name: tuple(probs) for name, probs in entry.probabilities.items()}
        )
        for entry in manifest.golden
    )
    _check_content(folder, manifest, variants, golden)
    classes = tuple(manifest.classes)
    return Bundle(
        folder, classes, reader, variants, golden, manifest, sha256_bytes(data), digests, check
    )


def write_bundle(folder: Path, manifest: BundleManifest) -> None:
    """Write bundle.json with the hashes of all files in `folder`, and the hash of bundle.json."""
    files = {
        path.relative_to(folder).as_posix(): {
            "sha256": sha256_file(path),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, SEAL)
    }
    content = plain(manifest)
    assert isinstance(content, dict)
    text = json.dumps(content | {"files": files}, indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    seal = f"{sha256_file(folder / MANIFEST)}  {MANIFEST}\n"
    (folder / SEAL).write_text(seal, encoding="ascii")


def _read_sealed(folder: Path) -> bytes:
    """Read bundle.json without checking it."""
    path = folder / MANIFEST
    if not folder.is_dir() or not path.is_file():
        raise EdgelungError(
            f"{folder} is no bundle (no {MANIFEST} in it); "
            "expected a folder that `edgelung export` wrote"
        )
    try:
        return path.read_bytes()
    except OSError as error:
        raise EdgelungError(f"cannot read {path}: {error.strerror}; copy it again") from error


def _checked_json(folder: Path, data: bytes) -> dict[str, Json]:
    """Check the version and the seal of bundle.json, and return its plain values."""
    path = folder / MANIFEST
    try:
        content = parse(data)
    except ValueError:
        content = None
    # Checked before the seal: a newer edgelung may use another kind of seal.
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int | float) and version > SCHEMA_VERSION:
        raise EdgelungError(
            f"{path} has schema version {version}; this edgelung reads up to {SCHEMA_VERSION}: "
            "update edgelung"
        )
    try:
        seal = (folder / SEAL).read_bytes()
    except OSError as error:
        raise EdgelungError(
            f"cannot read {error.filename}: {error.strerror}; copy the bundle again"
        ) from error
    if seal != f"{sha256_bytes(data)}  {MANIFEST}\n".encode():
        raise EdgelungError(
            f"{path} does not match {SEAL}: one of them is damaged or was edited; "
            "copy or export the bundle again"
        )
    if not isinstance(content, dict) or version != SCHEMA_VERSION:
        raise EdgelungError(f"{path} is not a bundle manifest; export the bundle again")
    return content


def _check_files(folder: Path, content: Mapping[str, Json]) -> None:
    """Raise EdgelungError if a listed file is outside the bundle, missing or changed."""
    files = content.get("files")
    if not isinstance(files, dict) or not files:
        raise EdgelungError(f"{folder / MANIFEST} lists no files; export the bundle again")
    for name, entry in files.items():
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or parts[0] == "/" or {"\\", ":"} & set(name):
            raise EdgelungError(f"{folder / MANIFEST} names a file outside the bundle: {name!r}")
        path = folder / name
        if not path.is_file():
            raise EdgelungError(f"{path} is missing; copy or export the bundle again")
        actual = sha256_file(path)
        expected = str(entry.get("sha256")) if isinstance(entry, dict) else "nothing"
        if actual != expected:
            raise EdgelungError(
                f"{path} is damaged: its SHA-256 is {actual[:12]}…, bundle.json says "
                f"{expected[:12]}…; copy the bundle or export it again"
            )


def _check_content(
    folder: Path,
    manifest: BundleManifest,
    variants: Mapping[Precision, Variant],
    golden: tuple[GoldenTile, ...],
) -> None:
    """Raise EdgelungError if the parts of the manifest contradict each other."""
    names = manifest.classes
    if FULL_PRECISION not in variants or not golden:
        raise EdgelungError(
            f"{folder} is no complete bundle: expected an {FULL_PRECISION} variant and golden "
            "tiles; export it again"
        )
    if not all(names) or len(set(names)) != len(names) or len(names) < 2:
        raise EdgelungError(
            f"{folder / MANIFEST} has the classes {names}; expected two or more different names"
        )
    for tile in golden:
        for precision in variants:
            if len(tile.probabilities.get(precision, ())) != len(names):
                raise EdgelungError(
                    f"{folder}: golden tile {tile.path.name} does not hold {len(names)} "
                    f"probabilities for {precision}; export the bundle again"
                )
    used = {entry.file for entry in manifest.variants.values()}
    used |= {entry.file for entry in manifest.golden}
    if unlisted := sorted(used - set(manifest.files)):
        raise EdgelungError(f"{folder}: {unlisted[0]} has no hash; export it again")
