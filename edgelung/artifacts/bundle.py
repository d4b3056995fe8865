"""The bundle: the folder that is copied to the workstation. Its reader and writer.

    bundle.json           classes, preprocessing, variants with gate results, provenance, hashes
    bundle.json.sha256    the hash of bundle.json, in the format of `sha256sum -c`
    bundle.sig            a signature over all other files, if the bundle is signed
    model.<variant>.onnx  one file per variant, without external data
    golden/…              a few tiles with known probabilities for each variant
    report.html, MODEL_CARD.md

Nothing else may be in the folder, and no links. Every file is hashed when the bundle is opened, and
what is loaded later are bytes of that hash. Hashes detect damage and mix-ups, but not forgery:
anyone who can write the folder can also write the hashes. Signatures detect it (see `trust`).
"""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from importlib import resources
from pathlib import Path, PurePosixPath

from msgspec import UNSET

from edgelung import __version__
from edgelung.artifacts.bundle_files import (
    MANIFEST,
    MAX_FILE_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_SEAL_BYTES,
    MAX_SIGNATURE_BYTES,
    MAX_TOTAL_BYTES,
    SEAL,
    SIGNATURE,
    UNLISTED,
    BundleFile,
    BundleFiles,
    BundleFolder,
    open_folder,
)
from edgelung.artifacts.manifest import SCHEMA_VERSION, BundleManifest, VariantEntry
from edgelung.artifacts.manifest_checks import check_content, known_variants
from edgelung.artifacts.results import GateResult
from edgelung.artifacts.trust import (
    SignatureCheck,
    SignatureState,
    Trust,
    check_starter,
    choose_trust,
    is_starter,
)
from edgelung.core.cache import Key, open_cache
from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.files import sha256_bytes, sha256_file
from edgelung.core.own_folders import REPORT_PAGE
from edgelung.core.precision import FULL_PRECISION, Precision
from edgelung.core.typed_json import Json, check_version, convert, parse, plain
from edgelung.tiles.reader import ReaderSpec
from edgelung.tiles.sizes import TrainedSizes

__all__ = [
    "GOLDEN_FOLDER",
    "MANIFEST",
    "MODEL_CARD",
    "REPORT",
    "SCHEMA_VERSION",
    "SEAL",
    "SIGNATURE",
    "STARTER_NOTE",
    "Bundle",
    "BundleFiles",
    "GoldenTile",
    "Variant",
    "graph_name",
    "open_bundle",
    "starter_bundle",
    "write_bundle",
]

GOLDEN_FOLDER = "golden"
REPORT = REPORT_PAGE
MODEL_CARD = "MODEL_CARD.md"
GRAPH_RULES = 4  # version of the rules of `graph_profile`; part of the key of a cached verdict
STARTER_NOTE = (
    "no --model: the starter bundle predicts, a model for trying the toolkit, trained on LC25000; "
    "for research only, not for diagnosis"
)


def graph_name(precision: Precision, stage: int = 1) -> str:
    """File name of a variant's graph in the bundle, or of its second one."""
    return f"model.{precision}.onnx" if stage == 1 else f"model.{precision}.{stage}.onnx"


def coverage_key(coverage: float) -> str:
    """The name of a coverage in bundle.json: 0.99 → '0.99'."""
    return f"{coverage:g}"


@dataclass(frozen=True)
class Variant:
    """The model at one precision, with its evidence.

    `second`: the graph behind the early exit; None for a model of one graph.
    """

    precision: Precision
    graph: BundleFile
    entry: VariantEntry
    second: BundleFile | None = None

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
    """A tile in the bundle: by variant its probabilities, (classes,) each, and its score.

    `ood` is empty if the bundle's graphs do not compute it.
    """

    file: BundleFile
    probabilities: Mapping[str, tuple[float, ...]]
    ood: Mapping[str, float]


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
    files: BundleFiles
    signature: SignatureCheck

    @cached_property
    def trained_sizes(self) -> TrainedSizes:
        """The pixel sizes of the tiles that the model was trained on."""
        return TrainedSizes(self.manifest.tile_sizes)

    @property
    def tile_um(self) -> float | None:
        """Side of a training tile in micrometres; None where nobody stated it."""
        return None if self.manifest.tile_um is UNSET else self.manifest.tile_um

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
    """Verify every file and who signed them, then read the bundle.

    `trust`: whose bundles are accepted. None: what the configuration of this machine says.

    Raises:
        EdgelungError: for the first fault.
    """
    with open_folder(folder) as opened:
        data = opened.read(MANIFEST, MAX_MANIFEST_BYTES)
        content = _parse_manifest(folder / MANIFEST, data)
        seal = opened.read(SEAL, MAX_SEAL_BYTES)  # after the version: a newer format may have none
        _check_seal(folder / MANIFEST, content, data, seal)
        manifest, reader = _typed(folder, content)
        signed = _check_names(opened, manifest)
        check_content(folder, manifest, reader.size)
        files = _read_files(opened, manifest, reader.size)
        signature = opened.read(SIGNATURE, MAX_SIGNATURE_BYTES) if signed else None
    digests = {name: file.sha256 for name, file in files.items()}
    digests |= {MANIFEST: sha256_bytes(data), SEAL: sha256_bytes(seal)}
    if folder.resolve() == _starter_folder().resolve():
        check_starter(digests)
    if is_starter(digests):
        check = SignatureCheck(SignatureState.STARTER)
    else:
        check = (choose_trust() if trust is None else trust).check(folder, digests, signature)
    return Bundle(
        folder,
        tuple(manifest.classes),
        reader,
        {
            precision: Variant(
                precision,
                files[entry.file],
                entry,
                files[entry.early_exit.file] if entry.early_exit else None,
            )
            for precision, entry in known_variants(manifest).items()
        },
        tuple(
            GoldenTile(
                files[entry.file],
                {name: tuple(probs) for name, probs in entry.probabilities.items()},
                entry.ood,
            )
            for entry in manifest.golden
        ),
        manifest,
        digests[MANIFEST],
        BundleFiles(digests, signature),
        check,
    )


def write_bundle(folder: Path, manifest: BundleManifest) -> None:
    """Write bundle.json with the hashes of all files in `folder`, and the hash of bundle.json."""
    files = {
        path.relative_to(folder).as_posix(): {
            "sha256": sha256_file(path),
            "bytes": path.stat().st_size,
        }
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.relative_to(folder).as_posix() not in UNLISTED
    }
    content = plain(manifest)
    assert isinstance(content, dict)
    text = json.dumps(content | {"files": files}, indent=2, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")
    seal = f"{sha256_file(folder / MANIFEST)}  {MANIFEST}\n"
    (folder / SEAL).write_text(seal, encoding="ascii")


def _parse_manifest(path: Path, data: bytes) -> Json:
    """The plain values of bundle.json; None if it is not JSON. Refuses a newer version."""
    try:
        content = parse(data)
    except ValueError:
        content = None
    check_version(path, content, SCHEMA_VERSION)
    return content


def _check_seal(path: Path, content: Json, data: bytes, seal: bytes) -> None:
    """Raise EdgelungError if bundle.json was changed, or is none."""
    if seal != f"{sha256_bytes(data)}  {MANIFEST}\n".encode():
        raise EdgelungError(
            f"{path} does not match {SEAL}: one of them is damaged or was edited; "
            "copy or export the bundle again"
        )
    if not isinstance(content, dict) or content.get("schema_version") != SCHEMA_VERSION:
        raise EdgelungError(f"{path} is not a bundle manifest; export the bundle again")


def _typed(folder: Path, content: Json) -> tuple[BundleManifest, ReaderSpec]:
    try:
        manifest = convert(content, BundleManifest)
        return manifest, ReaderSpec.from_json(manifest.preprocessing)
    except (ValueError, AttributeError) as error:
        raise EdgelungError(
            f"{folder / MANIFEST} lacks or misuses a field: {one_line(error)}; "
            "export the bundle again"
        ) from error


def _check_names(folder: BundleFolder, manifest: BundleManifest) -> bool:
    """Check that the folder holds what bundle.json lists and no more. Returns True if signed."""
    listed = manifest.files
    if not listed:
        raise EdgelungError(f"{folder.path / MANIFEST} lists no files; export the bundle again")
    for name in listed:
        parts = PurePosixPath(name).parts
        if not parts or ".." in parts or parts[0] == "/" or {"\\", ":"} & set(name):
            raise EdgelungError(
                f"{folder.path / MANIFEST} names a file outside the bundle: {one_line(repr(name))}"
            )
    present = frozenset(folder.names())
    if unlisted := sorted(present - listed.keys() - UNLISTED):
        raise EdgelungError(
            f"{str(folder.path / unlisted[0])!r} is not listed in {MANIFEST}; a bundle holds only "
            "what `edgelung export` wrote: remove it"
        )
    if missing := sorted(listed.keys() - (present - UNLISTED)):
        path = one_line(repr(str(folder.path / missing[0])))
        raise EdgelungError(f"{path} is missing; copy or export the bundle again")
    return SIGNATURE in present


def _read_files(folder: BundleFolder, manifest: BundleManifest, size: int) -> dict[str, BundleFile]:
    """Read all listed files, and check the graphs once on this machine.

    Raises EdgelungError if a file was changed, or a graph is none that edgelung would write.
    """
    listed, files = manifest.files, {}
    if sum(entry.bytes for entry in listed.values()) > MAX_TOTAL_BYTES:
        raise EdgelungError(
            f"{folder.path / MANIFEST} lists more than {MAX_TOTAL_BYTES:,} bytes; "
            "export the bundle again"
        )
    graphs = _graph_ports(manifest, size)
    hashes = " ".join(listed[name].sha256 for name in sorted(graphs))
    rules = {
        "ports": " ".join(str(graphs[name]) for name in sorted(graphs)),
        "rules": f"{__version__} {GRAPH_RULES}",
    }
    cache, key = open_cache("profiles"), Key("profile", {"graphs": hashes}, rules)
    known = cache.get(key).data is not None
    for name, entry in listed.items():
        data = None
        if known or name not in graphs:
            digest, count = folder.hash(name, MAX_FILE_BYTES)
        else:
            data = folder.read(name, MAX_FILE_BYTES)
            digest, count = sha256_bytes(data), len(data)
        if (digest, count) != (entry.sha256, entry.bytes):
            raise EdgelungError(
                f"{folder.path / name} is damaged: its SHA-256 is {digest[:12]}…, bundle.json says "
                f"{entry.sha256[:12]!a}; copy the bundle or export it again"
            )
        if data is not None:
            _check_graph(folder.path / name, data, *graphs[name])
        files[name] = BundleFile(folder.path, name, digest, count)
    if not known:
        cache.try_put(key, b"")
    return files


def _graph_ports(manifest: BundleManifest, size: int) -> dict[str, tuple[str, dict[str, int]]]:
    """The role of each graph (`edgelung.artifacts.graph_profile`) and its sizes, by file name."""
    whole = "classifier" if manifest.known is None else "scored-classifier"
    sizes = {"size": size, "classes": len(manifest.classes)}
    ports = {}
    for entry in known_variants(manifest).values():
        if early := entry.early_exit:
            of_both = sizes | {"tokens": early.tokens, "width": early.width}
            ports[entry.file] = "first-stage", of_both
            ports[early.file] = "second-stage", of_both
        else:
            ports[entry.file] = whole, sizes
    return ports


def _check_graph(path: Path, data: bytes, role: str, sizes: Mapping[str, int]) -> None:
    # Imported here: most runs have the verdict in the cache.
    from edgelung.artifacts.graph_profile import Role, check_graph
    from edgelung.artifacts.onnx_wire import GraphError

    try:
        check_graph(data, Role(role), sizes)
    except GraphError as error:
        raise EdgelungError(
            f"{path} is not a graph that edgelung runs: {one_line(error, 400)}. Export the bundle "
            "with `edgelung export`"
        ) from error
