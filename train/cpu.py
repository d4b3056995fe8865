"""Settings that make training on a CPU faster; `benchmarks/train.py` measures them.

They change no result beyond rounding. Nothing here affects a GPU.
"""

import ctypes
from collections.abc import Iterable
from types import MethodType

import torch
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of glibc's mallopt (malloc.h)
LARGEST = 2**31 - 1  # mallopt takes an int

SHORT_SEQUENCE = 320  # tokens; for more, the matrices of plain attention take much memory


def tune_for_cpu(modules: Iterable[nn.Module]) -> None:
    """Set up this process and the modules to train on a CPU.

    Convolutions: the backward pass of a depthwise one is slower in BF16 than in FP32. Attention:
    PyTorch's fused one is slower in BF16 than plain matrix products, above all backward.
    """
    keep_freed_memory()
    for part in (part for module in modules for part in module.modules()):
        if isinstance(part, nn.Conv2d) and part.groups == part.in_channels > 1:
            part.forward = MethodType(_forward_in_fp32, part)  # type: ignore[method-assign]
        elif isinstance(part, VisionTransformer) and part.pos_embed.shape[1] <= SHORT_SEQUENCE:
            for block in part.blocks:
                block.attn.fused_attn = False


def keep_freed_memory() -> None:
    """Keep freed blocks for the next step; does nothing where the C library is not glibc.

    By default glibc maps blocks above 32 MiB anew each time and unmaps them when they are freed.
    The activations of a step are such blocks, so the kernel clears all their pages in every step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, LARGEST)


def _forward_in_fp32(self: nn.Conv2d, images: Tensor) -> Tensor:
    """`forward` of a depthwise convolution, in FP32 while it is trained."""
    forward = type(self).forward
    if not self.training:
        return forward(self, images)
    with torch.autocast("cpu", enabled=False):
        return forward(self, images.float())
