"""The keys of edgelung.toml: defaults for the options of `edgelung infer`.

    [infer]
    model = "bundles/first"   # in the user's file only; relative to that file
    engine = "openvino"
    precision = "int8"
    threads = 4
    batch_size = 16
    min_confidence = 0.8
    strict_size = true

A value comes from the command line, else from the file beside the bundle, else from the user's.
`--engine auto` and `--precision auto` leave the choice to the program, whatever the files say.
"""

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from msgspec import Meta, Struct, structs

from edgelung.core.config import (
    BUNDLE_SECTIONS,
    NAME,
    Defaults,
    bundle_config,
    read_section,
    user_config,
)
from edgelung.core.errors import EdgelungError
from edgelung.core.precision import Precision
from edgelung.engines.names import EngineName

if TYPE_CHECKING:
    from edgelung.tools.doctor import Finding

SECTION = "infer"
logger = logging.getLogger(__name__)


class InferDefaults(Struct, frozen=True, kw_only=True):
    """The table [infer]; None: not set. The limits are those of the options."""

    model: str | None = None
    engine: EngineName | None = None
    precision: Precision | None = None
    threads: Annotated[int, Meta(ge=1, le=1024)] | None = None
    batch_size: Annotated[int, Meta(ge=1, le=1024)] | None = None
    min_confidence: Annotated[float, Meta(ge=0, le=1)] | None = None
    strict_size: bool | None = None


def read_defaults(model: Path | None) -> InferDefaults:
    """Read both files and report what they say; `model` is the bundle of the command line.

    Raises:
        EdgelungError: if a file has an unknown key, or a value that the option would refuse.
    """
    merged = InferDefaults()
    user = read_section(user_config(), SECTION, InferDefaults)
    if user:
        merged = user.values
        if merged.model is not None:
            path = user.path.absolute().parent / Path(merged.model).expanduser()
            merged = structs.replace(merged, model=str(path))
    bundle = model or (Path(merged.model) if merged.model else None)
    beside = _read_beside(bundle) if bundle else None
    if beside:
        merged = structs.replace(merged, **_set_values(beside))
    for source in filter(None, (user, beside)):
        logger.info("defaults of %s: %s", source.path, _describe(source))
    return merged


def describe_defaults(model: Path | None) -> "list[Finding]":
    """Return rows for `edgelung doctor`: the files and the values that they give."""
    from edgelung.tools.doctor import Finding

    rows = []
    for what in ("user's", "bundle's"):
        try:
            if what == "user's":
                path = user_config()
                source = read_section(path, SECTION, InferDefaults)
            elif model is not None:
                path, source = bundle_config(model), _read_beside(model)
            else:
                continue
        except EdgelungError as error:
            rows.append(Finding(f"{what} {NAME}", "missing", str(error), "correct the file"))
            continue
        if path is None:
            text = "switched off: EDGELUNG_CONFIG is 'off'"
        else:
            text = f"{path}: {_describe(source) if source else 'not there, or without [infer]'}"
        rows.append(Finding(f"{what} {NAME}", "ok" if source else "none", text))
    return rows


def describe_trust(model: Path | None) -> "list[Finding]":
    """Return rows for `edgelung doctor`: the trusted keys, and who signed the bundle `model`."""
    from edgelung.artifacts.bundle import open_bundle
    from edgelung.artifacts.trust import choose_trust
    from edgelung.tools.doctor import Finding

    what = "trusted keys"
    try:
        trust = choose_trust()
        keys = ", ".join(f"{key.name} ({key.key_id[:12]}…)" for key in trust.keys)
        found = f"{keys}; by {trust.origin}" if keys else "none: bundles of any origin are accepted"
        rows = [Finding(what, "ok" if keys else "none", found)]
        if model is not None:
            what = "bundle's signature"
            check = open_bundle(model, trust).signature
            rows.append(Finding(what, "ok" if check.is_trusted else "none", check.text))
    except EdgelungError as error:
        return [Finding(what, "missing", str(error))]
    return rows


def _read_beside(bundle: Path) -> Defaults[InferDefaults] | None:
    """Read the file beside a bundle, which cannot name a bundle itself, nor trusted keys."""
    source = read_section(bundle_config(bundle), SECTION, InferDefaults, BUNDLE_SECTIONS)
    if source and source.values.model is not None:
        raise EdgelungError(
            f"{source.path} [{SECTION}] names a model; only the user's file can: leave it out"
        )
    return source


def _set_values(source: Defaults[InferDefaults]) -> dict[str, object]:
    values = structs.asdict(source.values)
    return {key: value for key, value in values.items() if value is not None}


def _describe(source: Defaults[InferDefaults]) -> str:
    return ", ".join(f"{key} = {value}" for key, value in _set_values(source).items()) or "no keys"
