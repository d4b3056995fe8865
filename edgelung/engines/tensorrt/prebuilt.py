"""TensorRT-RTX engines built ahead of time: a folder that `edgelung export --engine` writes.

    engines.json          per engine: variant, graph's SHA-256, target, TensorRT-RTX, own SHA-256
    <variant>.<target>.engine

Engines are executable code, which is why they stand outside the bundle: whoever names such a
folder with `infer --prebuilt` vouches for it. The hashes tell damage and mix-ups, not forgery.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from edgelung.artifacts.bundle import Bundle, Variant
from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.files import atomic_folder, sha256_bytes, sha256_file, write_json
from edgelung.core.precision import Precision
from edgelung.engines.tensorrt.build import Contents, Profile, build_engine, check_targets
from edgelung.engines.tensorrt.flavour import Flavour

MANIFEST = "engines.json"
FIRST_WITH_FP8 = 89
FIELDS = ("file", "variant", "graph", "target", "version", "sha256")


def build_ahead(
    bundle: Bundle, out: Path, flavour: Flavour, targets: Sequence[str], on_built: Any = None
) -> list[dict[str, Any]]:
    """Build every variant that passed its gate for every target into the new folder `out`.

    Needs no GPU. Returns the manifest's entries, with what each engine holds. `on_built()` is
    called after each. Raises EdgelungError where a target or a graph is refused.
    """
    targets = check_targets(flavour, targets)
    entries: list[dict[str, Any]] = []
    with atomic_folder(out) as folder:
        for variant, target in wanted(bundle, targets):
            built = build_engine(flavour, variant.path, Profile(), target=target)
            _check_linears(bundle, variant.precision, built.contents)
            name = f"{variant.precision}.{target}.engine"
            (folder / name).write_bytes(built.plan)
            entries.append(
                {
                    "file": name,
                    "variant": variant.precision,
                    "graph": sha256_file(variant.path),
                    "target": target,
                    "flavour": flavour.name,
                    "version": flavour.version,
                    "profile": str(Profile()),
                    "sha256": sha256_bytes(built.plan),
                    "bytes": len(built.plan),
                    "contents": asdict(built.contents),
                }
            )
            if on_built:
                on_built()
        write_json(folder / MANIFEST, {"engines": entries})
    return entries


def wanted(bundle: Bundle, targets: Sequence[str]) -> list[tuple[Variant, str]]:
    """What passed its gate, for every target that has its arithmetic."""
    return [
        (variant, target)
        for variant in bundle.variants.values()
        for target in targets
        if variant.passed
        and (variant.precision != "fp8" or int(target.removeprefix("sm_")) >= FIRST_WITH_FP8)
    ]


def find_prebuilt(folder: Path, flavour: Flavour, target: str, graph: Path) -> bytes:
    """The engine of `graph` for `target` in the folder; raises EdgelungError where it lacks it."""
    entries = _read(folder)
    own = [entry for entry in entries if entry["graph"] == sha256_file(graph)]
    if not own:
        raise EdgelungError(
            f"{folder} holds no engine of {graph.name}: it was built from another bundle; "
            "build it from this one with edgelung export --engine tensorrt-rtx"
        )
    fitting = [e for e in own if e["target"] == target and e["version"] == flavour.version]
    if not fitting:
        held = ", ".join(f"{e['target']} (TensorRT-RTX {e['version']})" for e in own)
        raise EdgelungError(
            f"{folder} holds engines for {held}; this machine needs {target} and "
            f"{flavour.title}: build one for it, or leave out --prebuilt"
        )
    path = folder / fitting[0]["file"]
    try:
        plan = path.read_bytes()
    except OSError as error:
        raise EdgelungError(f"cannot read {path}: {error.strerror}") from error
    if sha256_bytes(plan) != fitting[0]["sha256"]:
        raise EdgelungError(f"{path} is damaged: its SHA-256 is not the manifest's; copy it again")
    return plan


def _read(folder: Path) -> list[Mapping[str, str]]:
    path = folder / MANIFEST
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["engines"]
        read: list[Mapping[str, str]] = [
            {name: str(entry[name]) for name in FIELDS} for entry in entries
        ]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise EdgelungError(
            f"cannot read {path} ({one_line(error)}); expected a folder that "
            "edgelung export --engine tensorrt-rtx wrote"
        ) from error
    for entry in read:
        if Path(entry["file"]).name != entry["file"]:
            raise EdgelungError(f"{path} names a file outside the folder: {entry['file']!r}")
    return read


def _check_linears(bundle: Bundle, precision: Precision, contents: Contents) -> None:
    """An INT8 engine whose linears did not all arrive as INT8 is not the one that was judged."""
    expected = bundle.variant(precision).entry.quantized_linears
    if contents.quantized_linears != expected:
        raise EdgelungError(
            f"TensorRT-RTX sees {contents.quantized_linears} quantized linears in {precision}, "
            f"the bundle says {expected}; export the bundle again"
        )
