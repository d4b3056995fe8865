"""The model of `edgelung infer` and `edgelung slide`: options, and how the bundle is opened."""

from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgelung.cli.command import report
from edgelung.cli.options import MODEL, OUTPUT, named_path

if TYPE_CHECKING:
    from edgelung.artifacts.bundle import Bundle
    from edgelung.artifacts.trust import Trust
    from edgelung.core.precision import Precision
    from edgelung.engines.tensorrt.prebuilt import PrebuiltFolder

ModelOption = Annotated[
    Path | None,
    typer.Option(
        parser=named_path,
        metavar="BUNDLE",
        rich_help_panel=MODEL,
        help="Bundle that `edgelung export` wrote.  [default: the starter that comes with "
        "edgelung]",
    ),
]
TrustOption = Annotated[
    Path | None,
    typer.Option(
        parser=named_path,
        metavar="KEY",
        rich_help_panel=MODEL,
        help="Run only what one of these keys signed, or the starter: a public key (PEM), or "
        "a folder of them.  [default: the keys of edgelung.toml]",
    ),
]
AllowUnsignedOption = Annotated[
    bool,
    typer.Option(
        "--allow-unsigned",
        rich_help_panel=MODEL,
        help="Run a bundle too that is unsigned or signed by a key that is not trusted.",
    ),
]


class UnknownTiles(StrEnum):
    """What to do with tiles that the model was not made for."""

    MARK = "mark"
    KEEP = "keep"


UnknownOption = Annotated[
    UnknownTiles,
    typer.Option(
        "--unknown",
        metavar="mark|keep",
        rich_help_panel=OUTPUT,
        help="Tiles unlike the training tiles, and tiles without tissue: mark gives them status "
        "`unknown` or `blank` and no label; keep labels them like all others.",
    ),
]


def open_model(model: Path | None, trust: "Trust") -> "Bundle":
    """Open the bundle; without one the starter, which is said."""
    from edgelung.artifacts.bundle import STARTER_NOTE, open_bundle, starter_bundle

    if model is None:
        report(STARTER_NOTE)
    return open_bundle(model or starter_bundle(), trust)


def open_engines_folder(folder: Path, trust: "Trust") -> "PrebuiltFolder":
    """Open a folder of engines that were built ahead of time."""
    from edgelung.engines.tensorrt.prebuilt import open_prebuilt

    return open_prebuilt(folder, trust)


def if_passed(bundle: "Bundle", precision: "Precision | None") -> "Precision | None":
    """A default precision, if that variant passed its gate: only the command line overrules it."""
    variant = bundle.variants.get(precision) if precision else None
    if variant is None or variant.passed:
        return precision
    report(
        "the default precision %s did not pass its gate (%s): not used",
        precision,
        variant.gate.verdict,
    )
    return None


def warn_of_gate(bundle: "Bundle", precision: "Precision | None") -> None:
    """Say so if the variant that was asked for did not pass its gate."""
    variant = bundle.variants.get(precision) if precision else None
    if variant and not variant.passed:
        report(
            "the %s variant did not pass its gate (%s); used as asked",
            *(variant.precision, variant.gate.verdict),
        )
