"""Losses of a stage: cross entropy on the labels, or distillation from a teacher (Eq. 8)."""

from dataclasses import dataclass, replace
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgelung.train.exits import ExitOutput, OutputWithExits
from edgelung.train.guidance import GuidedOutput, guidance_loss, standardise
from edgelung.train.recipe import Distill
from edgelung.train.student import StudentLogits
from edgelung.train.teachers import FrozenTeacher


@dataclass(frozen=True)
class Losses:
    """The loss of a batch and its parts, scalars; a part that the stage does not have is None."""

    loss: Tensor
    task_loss: Tensor | None = None
    distill_loss: Tensor | None = None
    guidance_loss: Tensor | None = None
    exit_loss: Tensor | None = None

    def parts(self) -> dict[str, Tensor]:
        """The parts that the stage has, without gradients."""
        return {name: part.detach() for name, part in vars(self).items() if part is not None}


class StageLoss(Protocol):
    """Computes the losses of a batch."""

    def __call__(
        self,
        output: Any,
        images: Tensor,
        labels: Tensor,
        tiles: Tensor,
        *,
        uses_label_loss: bool = True,
    ) -> Losses:
        """Losses from the output of the trained module.

        Args:
            output: what the stage's module returned.
            images: float32 (B, 3, V, V), the views normalised for the trained model, before they
                were resized to its input.
            labels: int64 (B,).
            tiles: int64 (B,), on the CPU: the index of each view's tile in the run.
            uses_label_loss: False in epochs in which guidance alone teaches.
        """


class LabelLoss(nn.Module):
    """Cross entropy of logits (B, classes) on the labels."""

    def __init__(self, criterion: nn.Module) -> None:
        super().__init__()
        self.criterion = criterion

    def forward(
        self,
        output: Tensor,
        images: Tensor,
        labels: Tensor,
        tiles: Tensor,
        *,
        uses_label_loss: bool = True,
    ) -> Losses:
        """See StageLoss."""
        return Losses(self.criterion(output.float(), labels))


class DistillationLoss(nn.Module):
    """alpha · supervised(class token) + beta · distillation(distillation token): Eq. 8.

    With guidance: plus `guidance` · guidance loss (`guidance.py`). Where guidance alone teaches,
    only the models that guide are run.
    """

    def __init__(self, teacher: FrozenTeacher, recipe: Distill, criterion: nn.Module) -> None:
        super().__init__()
        self.teacher = teacher
        self.criterion = criterion
        self.recipe = recipe

    def forward(
        self,
        output: StudentLogits | GuidedOutput,
        images: Tensor,
        labels: Tensor,
        tiles: Tensor,
        *,
        uses_label_loss: bool = True,
    ) -> Losses:
        """See StageLoss."""
        logits = output.logits if isinstance(output, GuidedOutput) else output
        if isinstance(output, GuidedOutput) and not uses_label_loss:
            guidance = guidance_loss(output, self.teacher.features(images))
            # A weight of 0 keeps every parameter in the graph: DDP waits for all their gradients.
            unused = 0.0 * torch.stack(logits).sum()
            return Losses(self.recipe.guidance * guidance + unused, guidance_loss=guidance)
        task = self.criterion(logits.class_token.float(), labels)
        teacher = self.teacher(images, tiles)
        distill = self._distillation(logits.distillation_token.float(), teacher.logits)
        loss = self.recipe.alpha * task + self.recipe.beta * distill
        if not isinstance(output, GuidedOutput):
            return Losses(loss, task, distill)
        guidance = guidance_loss(output, teacher.features)
        return Losses(loss + self.recipe.guidance * guidance, task, distill, guidance)

    def _distillation(self, student: Tensor, teacher: Tensor) -> Tensor:
        """KL divergence at the recipe's temperature (soft), or cross entropy on argmax (hard)."""
        if self.recipe.mode == "hard":
            return F.cross_entropy(student, teacher.argmax(dim=-1))
        return soft_distillation(student, teacher, self.recipe.temperature)


def soft_distillation(student: Tensor, teacher: Tensor, temperature: float) -> Tensor:
    """KL divergence of softened probabilities, from logits (B, classes)."""
    log_student = F.log_softmax(student / temperature, dim=-1)
    log_teacher = F.log_softmax(teacher / temperature, dim=-1)
    divergence = F.kl_div(log_student, log_teacher, reduction="batchmean", log_target=True)
    return divergence * temperature**2


class ExitLoss(nn.Module):
    """The loss of a student, plus `weight` · the mean loss of its exits (`exits.py`).

    An exit learns the labels, the student's own probabilities after the last block, and the feature
    there (Zhang et al., 'Be Your Own Teacher', ICCV 2019; Xu et al., 'LGViT', ACM MM 2023). The
    last block's are targets without a gradient: it does not learn from the exits. In epochs without
    label loss the feature alone teaches.
    """

    def __init__(
        self, loss: StageLoss, criterion: nn.Module, *, weight: float, temperature: float
    ) -> None:
        super().__init__()
        self.loss, self.criterion = loss, criterion
        self.weight, self.temperature = weight, temperature

    def forward(
        self,
        output: OutputWithExits,
        images: Tensor,
        labels: Tensor,
        tiles: Tensor,
        *,
        uses_label_loss: bool = True,
    ) -> Losses:
        """See StageLoss."""
        losses = self.loss(output.answer, images, labels, tiles, uses_label_loss=uses_label_loss)
        last = _prediction(output.answer).detach().float()  # (B, classes)
        feature = standardise(output.feature.detach().float())  # (B, D)

        def of(one: ExitOutput) -> Tensor:
            logits = one.logits.float()
            known: Tensor = self.criterion(logits, labels)
            known = known + soft_distillation(logits, last, self.temperature)
            # A weight of 0 keeps every parameter in the graph: DDP waits for all their gradients.
            return float(uses_label_loss) * known + F.mse_loss(one.feature.float(), feature)

        exits = torch.stack([of(one) for one in output.exits]).mean()
        return replace(losses, loss=losses.loss + self.weight * exits, exit_loss=exits)


def _prediction(answer: object) -> Tensor:
    """The logits that the student predicts by (B, classes): the mean of both heads."""
    logits = answer.logits if isinstance(answer, GuidedOutput) else answer
    if isinstance(logits, StudentLogits):
        logits = (logits.class_token + logits.distillation_token) / 2
    assert isinstance(logits, Tensor)
    return logits
