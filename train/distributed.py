"""Where and how precisely to compute: one process or the several that `torchrun` started.

With several (DistributedDataParallel) each process takes every n-th tile of the global batch, the
losses are averages over all of it, and the first process alone reads folders and writes files.
"""

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
import torch
import torch.distributed as dist
from torch import Tensor, nn

from edgelung.core.errors import EdgelungError, one_line

T = TypeVar("T")


@dataclass(frozen=True)
class Machine:
    """A device, a precision, and this process's place among all (`rank` of `processes`)."""

    device: torch.device
    precision: str  # fp32 | bf16 | fp16
    rank: int = 0
    processes: int = 1

    @property
    def first(self) -> bool:
        """Whether this process is the one that writes."""
        return self.rank == 0

    def autocast(self) -> torch.autocast:
        """Mixed precision where it was chosen."""
        dtype = torch.float16 if self.precision == "fp16" else torch.bfloat16
        return torch.autocast(self.device.type, dtype, enabled=self.precision != "fp32")

    def mean(self, values: dict[str, float]) -> dict[str, float]:
        """The averages over all processes."""
        if self.processes == 1:
            return values
        own = torch.tensor(list(values.values()), dtype=torch.float64, device=self.device)
        return dict(zip(values, mean_of_all(own).tolist(), strict=True))

    def share_out(self, model: nn.Module) -> None:
        """Give every process the first one's weights and statistics."""
        if self.processes > 1:
            for tensor in model.state_dict().values():
                packed = tensor.contiguous()  # a channels-last weight is none
                dist.broadcast(packed, src=0)
                tensor.copy_(packed)

    def collect(self, own: npt.NDArray[np.float32], count: int) -> npt.NDArray[np.float32]:
        """All `count` rows in order, where process r of n has the rows r, r + n, r + 2n, …"""
        if self.processes == 1:
            return own
        parts: list[Any] = [None] * self.processes
        dist.all_gather_object(parts, own)
        rows = np.empty((count, *own.shape[1:]), own.dtype)
        for rank, part in enumerate(parts):
            rows[rank :: self.processes] = part
        return rows


@contextmanager
def process_group() -> Iterator[None]:
    """Join the processes that `torchrun` started, if it did; leave them at the end."""
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


def from_first(work: Callable[[], T]) -> T:
    """What `work` gives in the first process, in all of them; its mistakes to mend too."""
    if not dist.is_initialized():
        return work()
    answer: list[Any] = [None, None]
    if dist.get_rank() == 0:
        try:
            answer[0] = work()
        except (EdgelungError, OSError) as error:
            answer[1] = str(error) if isinstance(error, EdgelungError) else one_line(error)
    dist.broadcast_object_list(answer, src=0)
    if answer[1] is not None:
        raise EdgelungError(answer[1])
    result: T = answer[0]
    return result


def mean_of_all(own: Tensor) -> Tensor:
    """The average over all processes of each one's tensor."""
    if not dist.is_initialized():
        return own
    total = own.clone()
    dist.all_reduce(total)
    return total / dist.get_world_size()


def choose_machine(precision: str) -> Machine:
    """The GPU where there is one; BF16 where the device computes it natively, else FP16 or FP32."""
    place = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    if torch.cuda.is_available():
        best = "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
        device = torch.device("cuda", torch.cuda.current_device())
        _exact()
        return Machine(device, best if precision == "auto" else precision, *place)
    native = any("bf16" in flag for flag in _cpu_flags())  # avx512_bf16, amx_bf16; bf16 on ARM
    if precision == "fp16":
        raise EdgelungError("precision fp16 needs a CUDA device; use auto, bf16 or fp32 on a CPU")
    automatic = "bf16" if native else "fp32"
    return Machine(torch.device("cpu"), automatic if precision == "auto" else precision, *place)


def _exact() -> None:
    """On a GPU: same seed, same card, same weights, and FP32 means FP32.

    Left alone, cuDNN, cuBLAS and attention choose by speed, and convolutions round to TF32.
    """
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # read when cuBLAS first starts
    torch.use_deterministic_algorithms(True)
    # Would cost time to make mistakes of torch's own repeatable.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]
    torch.backends.cudnn.allow_tf32 = False


def allow_unrepeatable(error: RuntimeError) -> str | None:
    """The operation that `error` refuses because it has no repeatable form; from now on it may run.

    None where the error is about something else.
    """
    strict = torch.are_deterministic_algorithms_enabled()
    if not strict or torch.is_deterministic_algorithms_warn_only_enabled():
        return None
    if "determinis" not in str(error):
        return None
    torch.use_deterministic_algorithms(True, warn_only=True)
    return one_line(str(error).split(" does not have", 1)[0], 120)


def _cpu_flags() -> list[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []
    return next((line.split() for line in lines if line.startswith(("flags", "Features"))), [])
