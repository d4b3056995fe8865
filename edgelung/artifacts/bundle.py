"""The bundle: the folder that goes to the workstation. Its format, verified opening, and writing.

    bundle.json           classes, preprocessing, variants and their gates, provenance, hashes
    bundle.json.sha256    the hash of bundle.json itself, in the form that `sha256sum -c` reads
    model.<variant>.onnx  one file per variant, no external data
    golden/…              a few tiles whose probabilities under each variant are known
    report.html

Every file's hash is checked before anything in it is used. Hashes tell damage and mix-ups, not
forgery: whoever can write the folder can write the hashes.
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from importlib import resources
from pathlib import Path, PurePosixPath
from typing import Any

from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.files import sha256_bytes, sha256_file
from edgelung.tiles.reader import ReaderSpec

SCHEMA_VERSION = 1
MANIFEST = "bundle.json"
# int8-fp16: INT8 linears between FP16 tensors, for GPUs; int8 has them between FP32 ones, for CPUs.
# fp8: E4M3 linears between FP16 tensors, for GPUs from SM 89 on.
PRECISIONS = ("fp32", "fp16", "int8", "int8-fp16", "fp8")
FULL_PRECISION = "fp32"
STARTER_NOTE = (
    "no --model: the starter bundle predicts, a model for trying the toolkit, trained on LC25000; "
    "for research only, not for diagnosis"
)


@dataclass(frozen=True)
class Variant:
    """One ONNX file of the model at one precision, and what the gate found."""

    precision: str
    path: Path
    gate: Mapping[str, Any]

    @property
    def passed(self) -> bool:
        """Full precision is the reference; the others need evidence."""
        return self.precision == FULL_PRECISION or self.gate.get("verdict") == "pass"


@dataclass(frozen=True)
class GoldenTile:
    """A tile that travels with the bundle and its probabilities per variant, [classes] each."""

    path: Path
    probabilities: Mapping[str, tuple[float, ...]]


@dataclass(frozen=True)
class Bundle:
    """A verified bundle."""

    folder: Path
    classes: tuple[str, ...]
    reader: ReaderSpec
    variants: Mapping[str, Variant]
    golden: tuple[GoldenTile, ...]
    manifest: Mapping[str, Any]

    def variant(self, precision: str) -> Variant:
        """The variant at this precision; raises EdgelungError where the bundle lacks it."""
        if precision not in self.variants:
            raise EdgelungError(
                f"bundle {self.folder} holds no {precision} variant (it holds "
                f"{', '.join(self.variants)}); export it with --{precision.split('-')[0]}"
            )
        return self.variants[precision]


def starter_bundle() -> Path:
    """The folder of the bundle that comes with the package; raises EdgelungError without one."""
    folder = Path(str(resources.files("edgelung"))) / "starter"
    if not (folder / MANIFEST).is_file():
        raise EdgelungError("this installation has no starter bundle; expected --model BUNDLE")
    return folder


def open_bundle(folder: Path) -> Bundle:
    """Verify every hash, then read; raises EdgelungError with the first thing found wrong."""
    manifest = _read_manifest(folder)
    _check_files(folder, manifest)
    try:
        variants = {
            precision: Variant(precision, folder / entry["file"], dict(entry["gate"]))
            for precision, entry in manifest["variants"].items()
            if precision in PRECISIONS
        }
        golden = tuple(
            GoldenTile(
                folder / entry["file"],
                {k: tuple(map(float, v)) for k, v in entry["probabilities"].items()},
            )
            for entry in manifest["golden"]
        )
        names = manifest["classes"]
        reader = ReaderSpec.from_json(manifest["preprocessing"])
        hashed = set(manifest["files"])
        used = {e["file"] for e in (*manifest["variants"].values(), *manifest["golden"])}
    except (KeyError, TypeError, AttributeError, ValueError) as error:
        raise EdgelungError(
            f"{folder / MANIFEST} lacks or misuses {one_line(error)}; export the bundle again"
        ) from error
    if FULL_PRECISION not in variants or not golden:
        raise EdgelungError(
            f"{folder} is no complete bundle: expected an {FULL_PRECISION} variant and golden "
            "tiles; export it again"
        )
    named = isinstance(names, list) and all(isinstance(n, str) and n for n in names)
    if not named or len(set(names)) != len(names) or len(names) < 2:
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
    if used - hashed:
        raise EdgelungError(f"{folder}: {sorted(used - hashed)[0]} has no hash; export it again")
    return Bundle(folder, tuple(names), reader, variants, golden, manifest)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write bundle.json with the hash of every file now in `folder`, and its own hash beside it."""
    files = {
        path.relative_to(folder).as_posix(): {
            "sha256": sha256_file(path),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name not in (MANIFEST, f"{MANIFEST}.sha256")
    }
    text = json.dumps(
        {"schema_version": SCHEMA_VERSION, **manifest, "files": files},
        indent=2,
        ensure_ascii=False,
    )
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    seal = f"{sha256_file(folder / MANIFEST)}  {MANIFEST}\n"
    (folder / f"{MANIFEST}.sha256").write_text(seal, encoding="ascii")


def _read_manifest(folder: Path) -> dict[str, Any]:
    path = folder / MANIFEST
    if not folder.is_dir() or not path.is_file():
        raise EdgelungError(
            f"{folder} is no bundle (no {MANIFEST} in it); "
            "expected a folder that `edgelung export` wrote"
        )
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EdgelungError(f"cannot read {path}: {error.strerror}; copy it again") from error
    try:
        manifest = json.loads(data)
    except (ValueError, RecursionError):
        manifest = None
    # Before the hash: a newer edgelung may seal its manifest in another way.
    version = manifest.get("schema_version") if isinstance(manifest, dict) else None
    if isinstance(version, int | float) and version > SCHEMA_VERSION:
        raise EdgelungError(
            f"{path} has schema version {version}; this edgelung reads up to {SCHEMA_VERSION}: "
            "update edgelung"
        )
    try:
        seal = (folder / f"{MANIFEST}.sha256").read_bytes()
    except OSError as error:
        raise EdgelungError(
            f"cannot read {error.filename}: {error.strerror}; copy the bundle again"
        ) from error
    if seal != f"{sha256_bytes(data)}  {MANIFEST}\n".encode():
        raise EdgelungError(
            f"{path} does not match {MANIFEST}.sha256: one of them is damaged or was edited; "
            "copy or export the bundle again"
        )
    if not isinstance(manifest, dict) or version != SCHEMA_VERSION:
        raise EdgelungError(f"{path} is not a bundle manifest; export the bundle again")
    return manifest


def _check_files(folder: Path, manifest: Mapping[str, Any]) -> None:
    files = manifest.get("files")
    if not isinstance(files, dict) or not files:
        raise EdgelungError(f"{folder / MANIFEST} lists no files; export the bundle again")
    for name, entry in files.items():
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or parts[0] == "/" or {"\\", ":"} & set(name):
            raise EdgelungError(f"{folder / MANIFEST} names a file outside the bundle: {name!r}")
        path = folder / name
        if not path.is_file():
            raise EdgelungError(f"{path} is missing; copy or export the bundle again")
        found = sha256_file(path)
        expected = str(entry.get("sha256")) if isinstance(entry, dict) else "nothing"
        if found != expected:
            raise EdgelungError(
                f"{path} is damaged: its SHA-256 is {found[:12]}…, bundle.json says "
                f"{expected[:12]}…; copy the bundle or export it again"
            )
