"""The position of a run, and the checkpoint that holds it."""

import io
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from timm.utils import ModelEmaV3
from torch import nn

from edgelung.artifacts.run import EpochRecord
from edgelung.core import typed_json
from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.files import atomic_write

CHECKPOINT_SECONDS = 60.0  # bounds the work that a kill loses …
CHECKPOINT_COST = 30.0  # … but writing takes at most about a thirtieth of the time


@dataclass
class Progress:
    """Where a run stands: its stage, the steps done in it, and the losses of the current epoch."""

    stage: str
    step: int = 0
    history: list[EpochRecord] = field(default_factory=list)  # one per finished epoch
    losses: dict[str, float] = field(default_factory=dict)  # sums over the current epoch
    seconds: float = 0.0  # of the current epoch

    def begin_stage(self, stage: str) -> None:
        """Move on to the first step of another stage."""
        self.stage, self.step = stage, 0

    def begin_epoch(self) -> None:
        """Forget the sums of the previous epoch."""
        self.losses, self.seconds = {}, 0.0

    def add_losses(self, losses: dict[str, float]) -> None:
        """Add the losses of a step."""
        for name, value in losses.items():
            self.losses[name] = self.losses.get(name, 0.0) + value


@dataclass(frozen=True)
class TrainingState:
    """The parts of a training whose state a checkpoint holds."""

    module: nn.Module
    optimizer: torch.optim.Optimizer
    scaler: torch.amp.GradScaler
    ema: ModelEmaV3 | None

    def save(self, path: Path, progress: Progress) -> None:
        """Replace the checkpoint atomically."""
        state = {name: part.state_dict() for name, part in self._parts().items()}
        # Through memory: torch's own writer would hide the system's message about a full disk.
        buffer = io.BytesIO()
        torch.save({**state, "progress": typed_json.plain(progress)}, buffer)
        with atomic_write(path) as file:
            file.write(buffer.getbuffer())

    def load(self, path: Path) -> None:
        """Load what `save` wrote; each part moves its tensors to its own device.

        Raises EdgelungError if an older edgelung wrote it for another form of the model.
        """
        state = torch.load(path, map_location="cpu", weights_only=True)
        for name, part in self._parts().items():
            try:
                part.load_state_dict(state[name])
            except (RuntimeError, KeyError, ValueError) as error:
                if isinstance(error, torch.OutOfMemoryError) or "not enough memory" in str(error):
                    raise  # the run explains it, and the state is good
                raise EdgelungError(
                    f"the state {path} does not fit the {name} of this recipe and version "
                    f"({one_line(error, 90)}); start anew in another folder"
                ) from error

    def _parts(self) -> dict[str, Any]:
        parts = {"model": self.module, "optimizer": self.optimizer, "scaler": self.scaler}
        return parts if self.ema is None else {**parts, "ema": self.ema}


class CheckpointTimer:
    """Tells when the next checkpoint is due."""

    def __init__(self) -> None:
        self.restart(cost=0.0)

    def restart(self, cost: float) -> None:
        """Start to wait again, longer where writing a checkpoint took many seconds (`cost`)."""
        self._due = time.monotonic() + max(CHECKPOINT_SECONDS, CHECKPOINT_COST * cost)

    def is_due(self) -> bool:
        """True once the time has passed."""
        return time.monotonic() > self._due


def load_progress(path: Path) -> Progress:
    """Read where the run stands from its checkpoint; raises EdgelungError if that is unreadable."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
        return typed_json.convert(state["progress"], Progress)
    except Exception as error:
        raise EdgelungError(
            f"cannot read the state {path} ({one_line(error, 90)}); start anew in another folder"
        ) from error
