"""Device, precision and processes: one process, or the several that `torchrun` started.

With several processes (DistributedDataParallel) each takes every n-th tile of the global batch and
losses are averaged over all of it. Only the main process (rank 0) reads folders and writes files.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from edgelung.core.errors import EdgelungError, one_line
from edgelung.train.cpu import has_bf16

T = TypeVar("T")


@dataclass(frozen=True)
class DistributedContext:
    """The device and precision to compute with, and this process's rank of `world_size`."""

    device: torch.device
    precision: str  # fp32 | bf16 | fp16
    rank: int = 0
    world_size: int = 1

    @property
    def is_main(self) -> bool:
        """True for the process that writes files."""
        return self.rank == 0

    def in_fp32(self) -> "DistributedContext":
        """The same context without mixed precision."""
        return replace(self, precision="fp32")

    def autocast(self) -> torch.autocast:
        """Context manager for mixed precision; does nothing for fp32."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32")

    def broadcast_from_main(self, model: nn.Module) -> None:
        """Overwrite the weights and statistics of `model` in every process with the main one's."""
        if self.world_size > 1:
            for tensor in model.state_dict().values():
                packed = tensor.contiguous()  # broadcast needs it; a channels-last weight is not
                dist.broadcast(packed, src=0)
                tensor.copy_(packed)

    def gather_rows(self, local: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.float32]:
        """Collect all `count` rows in order; rank r of n holds the rows r, r + n, r + 2n, …"""
        if self.world_size == 1:
            return local
        parts: list[npt.NDArray[np.float32]] = [local] * self.world_size
        dist.all_gather_object(parts, local)
        rows = np.empty((count, *local.shape[1:]), local.dtype)
        for rank, part in enumerate(parts):
            rows[rank :: self.world_size] = part
        return rows


@contextmanager
def process_group() -> Iterator[None]:
    """Join the process group if `torchrun` started this process; leave it at the end."""
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield
        return
    if torch.cuda.is_available():
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
        dist.init_process_group("cpu:gloo,cuda:nccl")
    else:
        dist.init_process_group("gloo")
    try:
        yield
    finally:
        dist.destroy_process_group()


def run_on_main(work: Callable[[], T]) -> T:
    """Run `work` on rank 0 and broadcast its result, or its EdgelungError or OSError, to all."""
    if not dist.is_initialized():
        return work()
    message: list[object] = [None, None]  # result, error
    if dist.get_rank() == 0:
        try:
            message[0] = work()
        except (EdgelungError, OSError) as error:
            message[1] = str(error) if isinstance(error, EdgelungError) else one_line(error)
    dist.broadcast_object_list(message, src=0)
    result, error_text = message
    if error_text is not None:
        raise EdgelungError(str(error_text))
    return cast(T, result)


def run_main_first(work: Callable[[], T]) -> T:
    """Run `work` on rank 0, then on the others; an error on rank 0 is raised on all.

    For work that downloads files: the other ranks find them in the cache.
    """
    results: list[T] = []
    run_on_main(lambda: results.append(work()))
    return results[0] if results else work()


def mean_over_processes(local: Tensor) -> Tensor:
    """Average a tensor over all processes."""
    if not dist.is_initialized():
        return local
    total = local.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def create_context(precision: str) -> DistributedContext:
    """Use the GPU if there is one. Precision `auto` is BF16 where it is native, else FP16 or FP32.

    Raises EdgelungError for fp16 on a CPU.
    """
    rank, world_size = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if torch.cuda.is_available():
        best = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        device = torch.device("cuda", torch.cuda.current_device())
        _make_deterministic()
    else:
        if precision == "fp16":
            raise EdgelungError(
                "precision fp16 needs a CUDA device; use auto, bf16 or fp32 on a CPU"
            )
        best = "bf16" if has_bf16() else "fp32"
        device = torch.device("cpu")
    return DistributedContext(device, best if precision == "auto" else precision, rank, world_size)


def _make_deterministic() -> None:
    """Make training on a GPU repeatable, and FP32 real FP32.

    By default cuDNN, cuBLAS and attention choose kernels by speed, and convolutions round to TF32.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS first starts
    torch.use_deterministic_algorithms(True)
    # Only makes reads of uninitialized memory repeatable, and costs time.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.allow_tf32 = False


def insist_on_determinism() -> None:
    """Refuse anew what `allow_nondeterministic` allowed in an earlier run of this process."""
    if torch.are_deterministic_algorithms_enabled():
        torch.use_deterministic_algorithms(True)


def allow_nondeterministic(error: RuntimeError) -> str | None:
    """Allow the operation that `error` refused for having no deterministic form; returns its name.

    Returns None if the error is about something else.
    """
    strict = torch.are_deterministic_algorithms_enabled()
    if not strict or torch.is_deterministic_algorithms_warn_only_enabled():
        return None
    if "determinis" not in str(error):
        return None
    torch.use_deterministic_algorithms(True, warn_only=True)
    return one_line(str(error).split(" does not have", 1)[0], 120)
