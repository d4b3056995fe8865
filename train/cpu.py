"""Settings that make training on a CPU faster; `benchmarks/train.py` measures them.

In BF16 depthwise convolutions round less, and plain attention rounds its scores once more. On a CPU
without BF16, Muon rounds less. All else changes only speed and memory. Nothing here affects a GPU.
"""

import ctypes
from collections.abc import Iterable
from functools import partial
from types import MethodType

import torch
from timm.models.vision_transformer import VisionTransformer
from timm.optim import muon
from timm.optim.muon import zeropower_via_newtonschulz
from torch import Tensor, nn

from edgelung.core.system import cpu_flags

M_TRIM_THRESHOLD, M_MMAP_MAX = -1, -4  # parameters of glibc's mallopt (malloc.h)

SHORT_SEQUENCE = 320  # tokens; for more, the matrices of plain attention take much memory


def tune_for_cpu(modules: Iterable[nn.Module], *, bf16: bool) -> None:
    """Set up the modules to train on a CPU, and the memory of this process for as long as it lives.

    In BF16 two things are slower than necessary: the backward pass of a depthwise convolution,
    which is faster in FP32, and PyTorch's fused attention, which is slower than plain matrix
    products, above all backward. Muon computes in BF16 whatever the precision, which is slow on a
    CPU without BF16.
    """
    keep_freed_memory()
    if not has_bf16():
        orthogonalise_in_fp32()
    if not bf16:
        return
    for part in (part for module in modules for part in module.modules()):
        if isinstance(part, nn.Conv2d) and part.groups == part.in_channels > 1:
            # Copied with the module by `copy.deepcopy`, as for averaged weights; not by `pickle`.
            part.forward = MethodType(_forward_in_fp32, part)  # type: ignore[method-assign]
        elif isinstance(part, VisionTransformer) and _has_short_sequence(part):
            _unfuse_attention(part)


def has_bf16() -> bool:
    """True if the CPU multiplies in BF16: avx512_bf16 or amx_bf16; bf16 on ARM."""
    return any("bf16" in flag for flag in cpu_flags())


def orthogonalise_in_fp32() -> None:
    """Let timm's Muon orthogonalise its updates in FP32, for the rest of this process.

    Muon does this in BF16. timm's function takes a type, but its optimizer does not pass one on. A
    CPU without BF16 emulates it: one step of the optimizer for DeiT-tiny takes seconds.
    """
    muon.zeropower_via_newtonschulz = partial(zeropower_via_newtonschulz, dtype=torch.float32)


def keep_freed_memory() -> None:
    """Keep freed blocks for the next step; does nothing where the C library is not glibc.

    By default glibc maps blocks above 32 MiB anew each time and unmaps them when they are freed.
    The activations of a step are such blocks, so the kernel clears all their pages in every step.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        mallopt(M_MMAP_MAX, 0)
        mallopt(M_TRIM_THRESHOLD, -1)


def release_freed_memory() -> None:
    """Give freed blocks back to the system. Between two models: the next one may need less.

    Does nothing where the C library is not glibc.
    """
    malloc_trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if malloc_trim is not None:
        malloc_trim(ctypes.c_size_t(0))


def _has_short_sequence(model: VisionTransformer) -> bool:
    """True if the model has position embeddings for few tokens."""
    return model.pos_embed is not None and model.pos_embed.shape[1] <= SHORT_SEQUENCE


def _unfuse_attention(model: nn.Module) -> None:
    """Compute attention by matrix products in all blocks, of whichever of timm's types they are."""
    for part in model.modules():
        if hasattr(part, "fused_attn"):
            part.fused_attn = False  # type: ignore[assignment]


def _forward_in_fp32(self: nn.Conv2d, images: Tensor) -> Tensor:
    """`forward` of a depthwise convolution, in the type of its weights while it is trained."""
    forward = type(self).forward
    if not self.training:
        return forward(self, images)
    with torch.autocast("cpu", enabled=False):
        return forward(self, images.to(self.weight.dtype))
