"""TensorRT-RTX engines built ahead of time: a folder that `edgelung export --engine` writes.

    engines.json                  one `PrebuiltEngine` per engine
    <variant>.<target>.engine     the serialized engine
    <variant>.2.<target>.engine   the second one, behind an early exit
    bundle.sig                    a signature over all other files, if the folder is signed

Engines are executable code, so they are kept outside the bundle: with `infer --prebuilt` the user
vouches for the folder, or one of the keys that this machine trusts does. The hashes detect damage
and mix-ups, the signature detects forgery.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec import Struct

from edgelung.artifacts.bundle import Bundle, Variant
from edgelung.artifacts.bundle_files import (
    MAX_FILE_BYTES,
    MAX_MANIFEST_BYTES,
    MAX_SIGNATURE_BYTES,
    SIGNATURE,
    BundleFile,
    BundleFiles,
    open_folder,
)
from edgelung.artifacts.trust import SignatureCheck, Trust, choose_trust
from edgelung.core import typed_json
from edgelung.core.errors import EdgelungError
from edgelung.core.files import atomic_folder, sha256_bytes
from edgelung.core.own_folders import ENGINES_MANIFEST
from edgelung.core.precision import Precision
from edgelung.engines.base import Graph
from edgelung.engines.tensorrt.build import NetworkSummary, Profile, build_engine, check_targets
from edgelung.engines.tensorrt.flavour import Flavour

MANIFEST = ENGINES_MANIFEST
SCHEMA_VERSION = 1
REMEDY = "expected a folder that edgelung export --engine tensorrt-rtx wrote"


class PrebuiltEngine(Struct, frozen=True):
    """One engine of the folder.

    Attributes:
        file: the engine's file name.
        variant: the precision of the bundle's variant.
        graph: SHA-256 of the variant's ONNX file.
        target: the architecture it was built for, such as 'sm_86'.
        flavour: always 'tensorrt-rtx'.
        version: the version of TensorRT-RTX, which must run it too.
        profile: smallest, best and largest batch, as '1/32/128'.
        sha256: SHA-256 of the engine's file.
        bytes: size of the engine's file.
        contents: what the parsed network held.
    """

    file: str
    variant: str
    graph: str
    target: str
    flavour: str
    version: str
    profile: str
    sha256: str
    bytes: int
    contents: NetworkSummary


class Manifest(Struct, frozen=True):
    """The contents of engines.json."""

    engines: list[PrebuiltEngine]
    schema_version: int = SCHEMA_VERSION


def build_ahead(
    bundle: Bundle,
    out: Path,
    flavour: Flavour,
    targets: Sequence[str],
    on_built: Callable[[], object] | None = None,
) -> list[PrebuiltEngine]:
    """Build every variant that passed its gate for every target. Needs no GPU.

    Args:
        bundle: the bundle to build from.
        out: the new folder to write.
        flavour: a TensorRT-RTX.
        targets: architectures such as 'sm_86'.
        on_built: called after each variant for each target.

    Raises:
        EdgelungError: if a target or a graph is refused; then nothing is written.
    """
    engines: list[PrebuiltEngine] = []
    with atomic_folder(out) as folder:
        for variant, target in planned_builds(bundle, check_targets(flavour, targets)):
            engines += _build(bundle, variant, flavour, target, folder)
            if on_built:
                on_built()
        typed_json.write(folder / MANIFEST, Manifest(engines))
    return engines


def planned_builds(bundle: Bundle, targets: Sequence[str]) -> list[tuple[Variant, str]]:
    """List the variants that passed their gate with each target that has their arithmetic.

    One with an early exit is two engines.
    """
    return [
        (variant, target)
        for variant in bundle.variants.values()
        for target in targets
        if variant.passed and int(target.removeprefix("sm_")) >= variant.precision.about.least_sm
    ]


@dataclass(frozen=True)
class PrebuiltFolder:
    """A folder of engines, checked as a whole. Made by `open_prebuilt`.

    Attributes:
        path: the folder.
        engines: what engines.json lists; a file of it may have been left out.
        files: the files of the folder: their digests, and the bytes of the signature.
        signature: who signed the folder.
    """

    path: Path
    engines: Sequence[PrebuiltEngine]
    files: BundleFiles
    signature: SignatureCheck

    def find(self, flavour: Flavour, target: str, graph: Graph) -> bytes:
        """Return the engine of `graph` for `target`: the bytes that were checked.

        Raises:
            EdgelungError: if the folder has no such engine, or it was changed meanwhile.
        """
        of_graph = [engine for engine in self.engines if engine.graph == graph.sha256]
        if not of_graph:
            raise EdgelungError(
                f"{self.path} holds no engine of {graph.name}: it was built from another bundle; "
                "build it from this one with edgelung export --engine tensorrt-rtx"
            )
        matching = [e for e in of_graph if e.target == target and e.version == flavour.version]
        if not matching:
            available = ", ".join(f"{e.target} (TensorRT-RTX {e.version})" for e in of_graph)
            raise EdgelungError(
                f"{self.path} holds engines for {available}; this machine needs {target} and "
                f"{flavour.title}: build one for it, or leave out --prebuilt"
            )
        engine = matching[0]
        return BundleFile(self.path, engine.file, engine.sha256, engine.bytes).read()


def open_prebuilt(folder: Path, trust: Trust | None = None) -> PrebuiltFolder:
    """Check who signed a folder of engines, and every engine against engines.json.

    `trust`: whose engines are accepted. None: what the configuration of this machine says.

    Raises:
        EdgelungError: if the folder is not trusted, is no folder of engines, or is damaged.
    """
    with open_folder(folder, None) as opened:
        if not opened.holds(MANIFEST):
            raise EdgelungError(f"{folder} holds no {MANIFEST}; {REMEDY}")
        data = opened.read(MANIFEST, MAX_MANIFEST_BYTES)
        names = set(opened.names()) - {MANIFEST, SIGNATURE}
        digests = {name: opened.hash(name, MAX_FILE_BYTES)[0] for name in sorted(names)}
        signed = opened.holds(SIGNATURE)
        signature = opened.read(SIGNATURE, MAX_SIGNATURE_BYTES) if signed else None
    digests[MANIFEST] = sha256_bytes(data)
    check = (choose_trust() if trust is None else trust).check(folder, digests, signature)
    engines = _parse_manifest(folder / MANIFEST, data)
    if unlisted := sorted(names - {engine.file for engine in engines}):
        raise EdgelungError(
            f"{str(folder / unlisted[0])!r} is not listed in {MANIFEST}; a folder of engines holds "
            "only what `edgelung export --engine` wrote: remove it"
        )
    for engine in engines:
        if digests.get(engine.file, engine.sha256) != engine.sha256:  # it may have been left out
            raise EdgelungError(
                f"{folder / engine.file} is damaged: its SHA-256 is not the one in {MANIFEST}; "
                "copy it again"
            )
    return PrebuiltFolder(folder, engines, BundleFiles(digests, signature), check)


def _build(
    bundle: Bundle, variant: Variant, flavour: Flavour, target: str, folder: Path
) -> list[PrebuiltEngine]:
    """Build the one graph of a variant, or the two with an early exit between them."""
    profile, engines = Profile(), []
    graphs = {f"{variant.precision}.{target}.engine": variant.graph}
    if variant.second is not None:
        graphs[f"{variant.precision}.2.{target}.engine"] = variant.second
    for name, graph in graphs.items():
        built = build_engine(flavour, graph, profile, target=target)
        (folder / name).write_bytes(built.plan)
        engines.append(
            PrebuiltEngine(
                file=name,
                variant=variant.precision,
                graph=graph.sha256,
                target=target,
                flavour=flavour.name,
                version=flavour.version,
                profile=str(profile),
                sha256=sha256_bytes(built.plan),
                bytes=len(built.plan),
                contents=built.contents,
            )
        )
    _check_linears(bundle, variant.precision, [engine.contents for engine in engines])
    return engines


def _parse_manifest(path: Path, data: bytes) -> list[PrebuiltEngine]:
    manifest = typed_json.decode(path, data, Manifest, REMEDY, SCHEMA_VERSION)
    for engine in manifest.engines:
        if Path(engine.file).name != engine.file:
            raise EdgelungError(f"{path} names a file outside the folder: {engine.file!r}")
    return manifest.engines


def _check_linears(
    bundle: Bundle, precision: Precision, contents: Sequence[NetworkSummary]
) -> None:
    """Check that all quantized linear layers arrived as such: the gate judged them so."""
    expected = bundle.variant(precision).entry.quantized_linears
    found = sum(summary.quantized_linears for summary in contents)
    if found != expected:
        raise EdgelungError(
            f"TensorRT-RTX sees {found} quantized linears in {precision}, "
            f"the bundle says {expected}; export the bundle again"
        )
