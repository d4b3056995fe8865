"""Options that several commands share, and how their values are parsed."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import Annotated, TypeVar

import typer

from edgelung.core.errors import EdgelungError
from edgelung.core.precision import Precision
from edgelung.engines.names import EngineName

E = TypeVar("E", bound=StrEnum)
T = TypeVar("T")


class Auto(StrEnum):
    """Said on the command line or in edgelung.toml: the program chooses."""

    AUTO = "auto"


def choice_or_auto(kind: type[E]) -> Callable[[str], E | Auto]:
    """Return a parser for one of the values of `kind`, or 'auto'."""

    def parse(text: str) -> E | Auto:
        if text == Auto.AUTO:
            return Auto.AUTO
        try:
            return kind(text)
        except ValueError as error:
            names = ", ".join([*Auto, *kind])
            raise typer.BadParameter(f"{text!r} is unknown; expected one of {names}") from error

    return parse


def unless_auto(value: T | Auto | None) -> T | None:
    """Return the value; None for 'auto', which leaves the choice to the program."""
    return None if isinstance(value, Auto) else value


def named_path(text: str) -> Path:
    """Parse a path; an empty name is a script's unset variable, not the current folder."""
    if not text:
        raise typer.BadParameter("the name is empty")
    return Path(text)


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
    EngineName | Auto | None,
    typer.Option(
        parser=choice_or_auto(EngineName),
        metavar="NAME",
        rich_help_panel=MODEL,
        help="Engine that runs the model: auto, tensorrt, tensorrt-rtx, onnxruntime-cuda, "
        "onnxruntime-tensorrt, openvino or onnxruntime.  [default: auto]",
    ),
]
PrecisionOption = Annotated[
    Precision | Auto | None,
    typer.Option(
        parser=choice_or_auto(Precision),
        metavar="NAME",
        rich_help_panel=MODEL,
        help="Variant of the bundle: auto, fp32, fp16, int8, int8-fp16 or fp8.  [default: auto]",
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
