"""Options that several commands share, and how their values are parsed."""

from collections.abc import Callable
from enum import StrEnum
from typing import Annotated, TypeVar

import typer

from edgelung.core.precision import Precision
from edgelung.engines.names import EngineName

AUTO = "auto"
E = TypeVar("E", bound=StrEnum)


def choice_or_auto(kind: type[E]) -> Callable[[str], E | None]:
    """A parser for one of the values of `kind`, or 'auto', which is None."""

    def parse(text: str) -> E | None:
        if text == AUTO:
            return None
        try:
            return kind(text)
        except ValueError as error:
            names = ", ".join([AUTO, *kind])
            raise typer.BadParameter(f"{text!r} is unknown; expected one of {names}") from error

    return parse


EngineOption = Annotated[
    EngineName | None,
    typer.Option(
        parser=choice_or_auto(EngineName),
        metavar="NAME",
        show_default=AUTO,
        help="auto, tensorrt, tensorrt-rtx, onnxruntime-cuda, onnxruntime-tensorrt, openvino "
        "or onnxruntime.",
    ),
]
PrecisionOption = Annotated[
    Precision | None,
    typer.Option(
        parser=choice_or_auto(Precision),
        metavar="NAME",
        show_default=AUTO,
        help="auto, fp32, fp16, int8, int8-fp16 or fp8.",
    ),
]
Threads = Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads; all by default.")]
