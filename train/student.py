"""The student while it is trained: a DeiT that can be shown windows of a tile."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn

from edgelung.train.exits import ExitHeads
from edgelung.train.models import Model


class StudentLogits(NamedTuple):
    """Logits (B, classes) of the class token and of the distillation token."""

    class_token: Tensor
    distillation_token: Tensor


class StudentModule(nn.Module, ABC):
    """Holds a timm DeiT and treats a small view as a window of the tile, at the tile's scale.

    The window's patches get the position embeddings of a random place in the tile's grid. So every
    position is trained, and nothing has to be learnt again when whole tiles follow: a patch shows
    as much tissue as before, at the same place. For training only; `model` is what is evaluated.
    With `exits` its output is an `exits.OutputWithExits`.
    """

    def __init__(self, model: Model) -> None:
        super().__init__()
        self.model = model
        self.exits: ExitHeads | None = None

    def forward(self, images: Tensor) -> object:
        """Answer for normalised images (B, 3, H, W)."""
        outputs = self.block_outputs(images)  # (B, 2 + patches, D) each
        answer = self.answer(outputs, images)
        return answer if self.exits is None else self.exits(answer, outputs)

    @abstractmethod
    def answer(self, outputs: Sequence[Tensor], images: Tensor) -> object:
        """The output without exits, from the tokens after each block."""

    def no_weight_decay(self) -> set[str]:
        """Names of the parameters that timm's optimizers must not decay."""
        return {f"model.{name}" for name in self.model.no_weight_decay()}

    def block_outputs(self, images: Tensor) -> list[Tensor]:
        """Tokens (B, 2 + patches, D) after each transformer block, for images (B, 3, H, W)."""
        model = self.model
        patches = model.patch_embed(images)  # (B, rows, columns, D)
        batch, rows, columns, _ = patches.shape
        prefix = torch.cat([model.cls_token, model.dist_token], dim=1)  # (1, 2, D)
        tokens = torch.cat([prefix.expand(batch, -1, -1), patches.flatten(1, 2)], dim=1)
        tokens = tokens + self._positions(rows, columns)
        outputs = []
        for block in model.blocks:
            tokens = block(tokens)
            outputs.append(tokens)
        return outputs

    def logits(self, tokens: Tensor) -> Tensor | tuple[Tensor, Tensor]:
        """Logits from the last block's tokens: of both heads in distillation, else their mean."""
        logits: Tensor | tuple[Tensor, Tensor] = self.model.forward_head(self.model.norm(tokens))
        return logits

    def _positions(self, rows: int, columns: int) -> Tensor:
        """Position embeddings (1, 2 + rows · columns, D) of a window at a random place."""
        positions: Tensor = self.model.pos_embed  # (1, 2 + all patches, D)
        grid_rows, grid_columns = self.model.patch_embed.grid_size
        if (rows, columns) == (grid_rows, grid_columns):
            return positions
        top = int(torch.randint(grid_rows - rows + 1, ()))
        left = int(torch.randint(grid_columns - columns + 1, ()))
        count = self.model.num_prefix_tokens
        grid = positions[:, count:].view(1, grid_rows, grid_columns, -1)
        window = grid[:, top : top + rows, left : left + columns].flatten(1, 2)
        return torch.cat([positions[:, :count], window], dim=1)


class UnguidedStudent(StudentModule):
    """A student that learns from labels, or from labels and a teacher's logits."""

    def answer(self, outputs: Sequence[Tensor], images: Tensor) -> StudentLogits | Tensor:
        """Logits of both heads in distillation, else their mean (B, classes)."""
        logits = self.logits(outputs[-1])
        return StudentLogits(*logits) if isinstance(logits, tuple) else logits
