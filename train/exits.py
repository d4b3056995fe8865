"""Early exits that are trained with the student (`student.exits`).

After each named block a classifier learns from the mean patch token, which is what the head of
`edgelung export --early-exit` reads. Its losses are in `losses.ExitLoss`. The classifiers are
dropped after training: `export` fits its own to the tokens of the INT8 graph, because heads that
were fitted to other tokens send most tiles on. What remains of them are the tokens.
"""

from collections.abc import Sequence
from typing import NamedTuple

from torch import Tensor, nn

from edgelung.core.errors import EdgelungError


class ExitOutput(NamedTuple):
    """Logits (B, classes) of an exit, and its prediction of the last block's feature (B, D)."""

    logits: Tensor
    feature: Tensor


class OutputWithExits(NamedTuple):
    """The output of a student with exits.

    `answer`: what the student returns without exits. `feature`: (B, D), the mean of its class and
    distillation token after the last block, which is what its own classifiers read.
    """

    answer: object
    feature: Tensor
    exits: list[ExitOutput]


class ExitHeads(nn.Module):
    """A classifier and a projection for the mean patch token after each of some blocks.

    Raises EdgelungError if the model has no such block before its last one.
    """

    def __init__(self, blocks: Sequence[int], *, width: int, depth: int, classes: int) -> None:
        super().__init__()
        if blocks[-1] >= depth:
            raise EdgelungError(
                f"student.exits names block {blocks[-1]}; expected blocks 1 to {depth - 1}, since "
                f"the model has {depth} and answers after the last"
            )
        self.blocks = tuple(blocks)
        self.norms = nn.ModuleList(nn.LayerNorm(width) for _ in blocks)
        self.classifiers = nn.ModuleList(nn.Linear(width, classes) for _ in blocks)
        self.to_feature = nn.ModuleList(nn.Linear(width, width) for _ in blocks)

    def forward(self, answer: object, outputs: Sequence[Tensor]) -> OutputWithExits:
        """Add the exits to `answer`; `outputs`: tokens (B, 2 + patches, D) after each block."""
        exits = []
        parts = zip(self.blocks, self.norms, self.classifiers, self.to_feature, strict=True)
        for block, norm, classifier, to_feature in parts:
            x = norm(outputs[block - 1][:, 2:].mean(dim=1))  # (B, D)
            exits.append(ExitOutput(classifier(x), to_feature(x)))
        return OutputWithExits(answer, outputs[-1][:, :2].mean(dim=1), exits)
