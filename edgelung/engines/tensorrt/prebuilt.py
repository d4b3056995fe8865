"""TensorRT-RTX engines built ahead of time: a folder that `edgelung export --engine` writes.

    engines.json                  one `PrebuiltEngine` per engine
    <variant>.<target>.engine     the serialized engine
    bundle.sig                    a signature over all other files, if somebody signed the folder

Engines are executable code, so they are kept outside the bundle: with `infer --prebuilt` the user
vouches for the folder, or a key does that this machine trusts. The hashes detect damage and
mix-ups, the signature detects forgery.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from msgspec import Struct

from edgelung.artifacts.bundle import Bundle, Variant
from edgelung.artifacts.digests import read_digests
from edgelung.artifacts.trust import SignatureCheck, Trust, choose_trust
from edgelung.core import typed_json
from edgelung.core.errors import EdgelungError
from edgelung.core.files import atomic_folder, sha256_bytes, sha256_file
from edgelung.core.own_folders import ENGINES_MANIFEST
from edgelung.core.precision import Precision
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
        on_built: called after each engine.

    Raises:
        EdgelungError: if a target or a graph is refused; then nothing is written.
    """
    engines: list[PrebuiltEngine] = []
    with atomic_folder(out) as folder:
        for variant, target in planned_builds(bundle, check_targets(flavour, targets)):
            engines.append(_build_one(bundle, variant, flavour, target, folder))
            if on_built:
                on_built()
        typed_json.write(folder / MANIFEST, Manifest(engines))
    return engines


def planned_builds(bundle: Bundle, targets: Sequence[str]) -> list[tuple[Variant, str]]:
    """List the variants that passed their gate with each target that has their arithmetic."""
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
        engines: what engines.json lists.
        digests: POSIX path → SHA-256 in hexadecimal, of every file but bundle.sig.
        signature: who signed the folder.
    """

    path: Path
    engines: Sequence[PrebuiltEngine]
    digests: Mapping[str, str]
    signature: SignatureCheck

    def find(self, flavour: Flavour, target: str, graph: Path) -> bytes:
        """Return the engine of `graph` for `target`: the bytes that were checked.

        Raises:
            EdgelungError: if the folder has no such engine, or it was changed meanwhile.
        """
        graph_hash = sha256_file(graph)
        of_graph = [engine for engine in self.engines if engine.graph == graph_hash]
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
        path = self.path / matching[0].file
        try:
            plan = path.read_bytes()
        except OSError as error:
            raise EdgelungError(f"cannot read {path}: {error.strerror}") from error
        if sha256_bytes(plan) != matching[0].sha256:
            raise EdgelungError(f"{path} was changed after it was checked; copy it again")
        return plan


def open_prebuilt(folder: Path, trust: Trust | None = None) -> PrebuiltFolder:
    """Check who signed a folder of engines, and every engine against engines.json.

    `trust`: whose engines are accepted; None: what the configuration of this machine says.

    Raises:
        EdgelungError: if the folder is not trusted, is no folder of engines, or is damaged.
    """
    engines = _read_manifest(folder)
    digests, signature = read_digests(folder)
    check = (choose_trust() if trust is None else trust).check(folder, digests, signature)
    for engine in engines:
        if digests.get(engine.file, engine.sha256) != engine.sha256:  # it may have been left out
            raise EdgelungError(
                f"{folder / engine.file} is damaged: its SHA-256 is not the one in {MANIFEST}; "
                "copy it again"
            )
    return PrebuiltFolder(folder, engines, digests, check)


def _build_one(
    bundle: Bundle, variant: Variant, flavour: Flavour, target: str, folder: Path
) -> PrebuiltEngine:
    profile = Profile()
    built = build_engine(flavour, variant.path, profile, target=target)
    _check_linears(bundle, variant.precision, built.contents)
    name = f"{variant.precision}.{target}.engine"
    (folder / name).write_bytes(built.plan)
    return PrebuiltEngine(
        file=name,
        variant=variant.precision,
        graph=sha256_file(variant.path),
        target=target,
        flavour=flavour.name,
        version=flavour.version,
        profile=str(profile),
        sha256=sha256_bytes(built.plan),
        bytes=len(built.plan),
        contents=built.contents,
    )


def _read_manifest(folder: Path) -> list[PrebuiltEngine]:
    path = folder / MANIFEST
    manifest = typed_json.read(path, Manifest, REMEDY)
    if manifest.schema_version > SCHEMA_VERSION:
        raise EdgelungError(
            f"{path} has schema version {manifest.schema_version}, this edgelung reads "
            f"{SCHEMA_VERSION}; update edgelung"
        )
    for engine in manifest.engines:
        if Path(engine.file).name != engine.file:
            raise EdgelungError(f"{path} names a file outside the folder: {engine.file!r}")
    return manifest.engines


def _check_linears(bundle: Bundle, precision: Precision, contents: NetworkSummary) -> None:
    """Check that all quantized linear layers arrived as such: the gate judged them so."""
    expected = bundle.variant(precision).entry.quantized_linears
    if contents.quantized_linears != expected:
        raise EdgelungError(
            f"TensorRT-RTX sees {contents.quantized_linears} quantized linears in {precision}, "
            f"the bundle says {expected}; export the bundle again"
        )
