"""Options that several commands share."""

from typing import Annotated

import typer

EngineName = Annotated[
    str,
    typer.Option(
        help="auto, tensorrt, tensorrt-rtx, onnxruntime-cuda, onnxruntime-tensorrt, openvino "
        "or onnxruntime."
    ),
]
Precision = Annotated[str, typer.Option(help="auto, fp32, fp16, int8, int8-fp16 or fp8.")]
Threads = Annotated[int | None, typer.Option(min=1, max=1024, help="CPU threads; all by default.")]
