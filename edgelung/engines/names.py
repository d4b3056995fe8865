"""The names of the engines, as `--engine` takes them.

Apart from `choose.py`, so that the command line can check a name without importing a runtime.
"""

from enum import StrEnum


class EngineName(StrEnum):
    """One name per runtime and device."""

    OPENVINO = "openvino"
    ONNXRUNTIME = "onnxruntime"
    TENSORRT = "tensorrt"
    TENSORRT_RTX = "tensorrt-rtx"
    ONNXRUNTIME_CUDA = "onnxruntime-cuda"
    ONNXRUNTIME_TENSORRT = "onnxruntime-tensorrt"


# Where there is a GPU, `auto` times these.
AUTO_GPU_ENGINES = (EngineName.TENSORRT, EngineName.TENSORRT_RTX, EngineName.ONNXRUNTIME_CUDA)
# All that run on a GPU. onnxruntime-tensorrt builds its engine at every start: only when named.
GPU_ENGINES = (*AUTO_GPU_ENGINES, EngineName.ONNXRUNTIME_TENSORRT)
# Where there is none, `auto` takes the first of these that works.
CPU_ENGINES = (EngineName.OPENVINO, EngineName.ONNXRUNTIME)
