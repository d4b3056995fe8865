"""`edgelung gpu-check`."""

from pathlib import Path
from typing import Annotated

import typer

from edgelung.cli.options import INPUT, OUTPUT, SPEED


def gpu_check(
    bundle: Annotated[
        Path | None,
        typer.Option(
            metavar="BUNDLE",
            rich_help_panel=INPUT,
            help="Bundle with fp32, fp16 and int8.  [default: the starter, which has no fp16]",
        ),
    ] = None,
    tiles: Annotated[
        Path | None,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=INPUT,
            help="Tiles, best of 768 px; without them no folder is run.",
        ),
    ] = None,
    out: Annotated[
        Path,
        typer.Option(
            metavar="FOLDER",
            rich_help_panel=OUTPUT,
            help="Folder for gpu-<card>.json and the same as Markdown.",
        ),
    ] = Path(),
    seconds: Annotated[
        float,
        typer.Option(min=1, metavar="S", rich_help_panel=SPEED, help="Seconds for all parts."),
    ] = 540,
) -> None:
    """What do the engines and kernels do on this GPU?

    Measures everything that only a GPU can prove, offline, part by part. A part that cannot run, or
    hangs, gives its reason. Some parts need `pip install 'edgelung[train,gpu]'`.
    """
    from edgelung.artifacts.bundle import starter_bundle
    from edgelung.core.terminal import out as console
    from edgelung.tools.gpu_check.check import gpu_check as check

    path = check(bundle or starter_bundle(), tiles, out, seconds)
    console().print(f"wrote {path} and {path.with_suffix('.md').name}")
