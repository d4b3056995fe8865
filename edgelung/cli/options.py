"""Options that several commands share, and how their values are parsed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Generic

import typer

from edgelung.core.choice import E, parse_choice
from edgelung.core.errors import EdgelungError
from edgelung.core.precision import Precision
from edgelung.engines.names import EngineName
from edgelung.tiles.physical_size import check_mpp, check_tile_um


class Choice(Generic[E]):
    """What `--engine` or `--precision` says; the value is None for 'auto'."""

    def __init__(self, value: E | None) -> None:
        self.value = value


def choice_parser(kind: type[E]) -> Callable[[str], Choice[E]]:
    """Return a parser for one of the values of `kind`, or 'auto'."""

    def parse(text: str) -> Choice[E]:
        try:
            return Choice(parse_choice(kind, text))
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    return parse


def engine_name(text: str) -> EngineName:
    """Parse the name of one engine."""
    try:
        return EngineName(text)
    except ValueError:
        raise typer.BadParameter(
            f"{text!r} is unknown; expected one of {', '.join(EngineName)}"
        ) from None


def chosen(choice: Choice[E] | None, default: E | None = None) -> E | None:
    """Return what the command line chose, or the default if it says nothing."""
    return default if choice is None else choice.value


def named_path(text: str) -> Path:
    """Parse a path; an empty name is a script's unset variable, not the current folder."""
    if not text:
        raise typer.BadParameter("the name is empty")
    return Path(text)


def number_parser(check: Callable[[float], float]) -> Callable[[str], float]:
    """Return a parser for a number that `check` accepts."""

    def parse(text: str) -> float:
        try:
            number = float(text)
        except ValueError:
            raise typer.BadParameter(f"{text!r} is no number") from None
        try:
            return check(number)
        except ValueError as error:
            raise typer.BadParameter(str(error)) from error

    return parse


@contextmanager
def training_extra(command: str) -> Iterator[None]:
    """Turn the import error of a package of `edgelung[train]` into one line."""
    try:
        yield
    except ModuleNotFoundError as error:
        raise EdgelungError(
            f"{command} needs {error.name}, which is not installed: pip install 'edgelung[train]'"
        ) from error


MODEL, INPUT, OUTPUT, CHECKS, SPEED = "Model", "Input", "Output", "Checks", "Speed"

EngineOption = Annotated[
    Choice[EngineName] | None,
    typer.Option(
        parser=choice_parser(EngineName),
        metavar="NAME",
        rich_help_panel=MODEL,
        help="Engine that runs the model: auto, tensorrt, tensorrt-rtx, onnxruntime-cuda, "
        "onnxruntime-tensorrt, openvino or onnxruntime.  [default: auto]",
    ),
]
PrecisionOption = Annotated[
    Choice[Precision] | None,
    typer.Option(
        parser=choice_parser(Precision),
        metavar="NAME",
        rich_help_panel=MODEL,
        help="Variant of the bundle: auto, fp32, fp16, int8, int8-fp16, fp8, int8-early-exit or "
        "fp16-early-exit.  [default: auto]",
    ),
]
FollowLinksOption = Annotated[
    bool,
    typer.Option(
        "--follow-links",
        rich_help_panel=INPUT,
        help="Follow links in FOLDER that lead out of it.",
    ),
]
TileUmOption = Annotated[
    float | None,
    typer.Option(
        parser=number_parser(check_tile_um),
        metavar="U",
        rich_help_panel=INPUT,
        help="Side of a training tile in micrometres: how much tissue it shows. Slides need it.",
    ),
]
MppOption = Annotated[
    float | None,
    typer.Option(
        parser=number_parser(check_mpp),
        metavar="M",
        rich_help_panel=INPUT,
        help="Micrometres per pixel of the training tiles, if all have one size; in place of "
        "--tile-um.",
    ),
]
MinConfidenceOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        metavar="P",
        rich_help_panel=OUTPUT,
        help="Tiles below this confidence get status `review` and no label.",
    ),
]
StrictSizeOption = Annotated[
    bool | None,
    typer.Option(
        "--strict-size/--no-strict-size",
        rich_help_panel=OUTPUT,
        help="Tiles whose size in pixels is far from the training tiles get status "
        "`other-size` and no label.",
        show_default=False,
    ),
]
CoverageOption = Annotated[
    float | None,
    typer.Option(
        min=0,
        max=1,
        metavar="P",
        rich_help_panel=OUTPUT,
        help="Add to each row the classes that cannot be excluded; the true one is among them "
        "for this share of tiles, such as 0.99.",
    ),
]
DeviceOption = Annotated[
    int | None,
    typer.Option(
        min=0,
        metavar="N",
        rich_help_panel=SPEED,
        help="Number of the GPU to use, as nvidia-smi counts, or the position in "
        "CUDA_VISIBLE_DEVICES; stops if no GPU engine works.  [default: the first, else the CPU]",
    ),
]
RayOption = Annotated[
    str | None,
    typer.Option(
        "--ray",
        metavar="ADDRESS",
        rich_help_panel=SPEED,
        help="Predict on all nodes of a Ray cluster that this machine is a node of: auto, or "
        "HOST:PORT of its head. Needs the extra cluster, and the same files under the same path on "
        "all nodes. --threads is then the most per node.",
    ),
]
BatchSizeOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1024,
        metavar="N",
        rich_help_panel=SPEED,
        help="Tiles per batch; with 1, each tile is predicted as soon as it is read.  [default: "
        "16; on a GPU 32]",
    ),
]
ThreadsOption = Annotated[
    int | None,
    typer.Option(
        min=1,
        max=1024,
        metavar="N",
        rich_help_panel=SPEED,
        help="CPU threads.  [default: all cores]",
    ),
]
