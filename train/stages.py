"""The trainings of a run: a CNN teacher on the labels, then the DeiT student from both."""

from pathlib import Path
from typing import Any, TypeVar

import torch
from timm.optim import create_optimizer_v2
from timm.task import ClassificationTask, TokenDistillationTask
from torch import Tensor, nn

from edgelung.core.errors import EdgelungError, one_line
from edgelung.train.guidance import GuidedDistillationTask, teacher_features
from edgelung.train.models import Model, create_classifier, create_student
from edgelung.train.recipe import Recipe, Schedule
from edgelung.train.trainer import Stage, resize_views, seed_weights

S = TypeVar("S", bound=Schedule)


def check_models(recipe: Recipe, classes: int) -> None:
    """Raise EdgelungError for whatever is wrong with models, weights or optimizers.

    Done before a run folder is made, so that a mistake leaves nothing behind.
    """
    models: list[tuple[Schedule, Model]] = [
        (schedule, create_classifier(schedule, classes, role))
        for role, schedule in (("teacher", recipe.teacher), ("baseline", recipe.baseline))
        if schedule
    ]
    if recipe.distill.guidance:
        teacher_features(models[0][1])
    models.append((recipe.student, create_student(recipe.student, classes)))
    for schedule, model in models:
        try:
            with torch.no_grad():
                model.eval()(torch.zeros(1, 3, schedule.size, schedule.size))
        except Exception as error:
            raise EdgelungError(
                f"{schedule.model} does not take tiles of {schedule.size} px: {one_line(error)}"
            ) from error
        try:
            create_optimizer_v2(model, opt=schedule.optimizer, lr=schedule.lr)
        except Exception as error:
            raise EdgelungError(
                f"optimizer {schedule.optimizer!r}: {one_line(error)}; expected one of timm's, "
                "adamw for one"
            ) from error


def label_stage(role: str, schedule: Schedule, recipe: Recipe, classes: int, fresh: bool) -> Stage:
    """The teacher or the baseline, to be trained on the labels.

    Pretrained weights are read if it is `fresh`.
    """
    seed_weights(recipe.seed, role)
    model = create_classifier(_started(schedule, fresh), classes, role)
    criterion = nn.CrossEntropyLoss(label_smoothing=schedule.label_smoothing)
    return Stage(
        role,
        ClassificationTask(model.to(memory_format=torch.channels_last), criterion, verbose=False),
        schedule,
        recipe.augment,
        view_size=schedule.size,
    )


def student_stage(recipe: Recipe, classes: int, fresh: bool, teacher: Model | None) -> Stage:
    """The student, to be distilled from `teacher` (Eq. 8); from the labels alone if there is none.

    Without a teacher the mean of both heads learns the labels: what the student answers with.
    """
    schedule, distill = recipe.student, recipe.distill
    seed_weights(recipe.seed, "student")
    model = create_student(_started(schedule, fresh), classes)
    criterion = nn.CrossEntropyLoss(label_smoothing=schedule.label_smoothing)
    seen_by_teacher = 0
    if teacher is None:
        task = ClassificationTask(model, criterion, verbose=False)
    else:
        resized = ResizedTeacher(teacher, recipe.teacher.size)
        options: dict[str, Any] = {
            "criterion": criterion,
            "distill_type": distill.mode,
            "task_loss_weight": distill.alpha,
            "distill_loss_weight": distill.beta,
            "temperature": distill.temperature,
            "verbose": False,
        }
        seen_by_teacher = recipe.teacher.size
        if distill.guidance:
            features = teacher_features(teacher)
            task = GuidedDistillationTask(model, resized, features, distill.guidance, **options)
        else:
            task = TokenDistillationTask(model, resized, **options)

    def window(epoch: int) -> float:
        return schedule.low_size / schedule.size if epoch < schedule.low_epochs else 1.0

    def answers(epoch: int) -> bool:
        return epoch >= distill.features_epochs

    restarts = distill.features_epochs and schedule.restart_lr
    # Both look at one view, so it has the size of the one that sees more.
    return Stage(
        "student",
        task,
        schedule,
        recipe.augment,
        view_size=max(schedule.size, seen_by_teacher),
        restart=(distill.features_epochs, schedule.restart_lr) if restarts else None,
        window=window,
        answers=answers,
    )


class ResizedTeacher(nn.Module):
    """A frozen teacher that sees views at its own size, or at theirs where that is smaller."""

    def __init__(self, teacher: Model, size: int) -> None:
        super().__init__()
        self.teacher = teacher.requires_grad_(False)
        self.size = size
        self.pretrained_cfg = teacher.pretrained_cfg  # timm's task reads mean and std from it
        self.num_classes = teacher.num_classes

    def forward(self, images: Tensor) -> Tensor:
        """Logits float32 (B, classes) of normalised views (B, 3, H, W)."""
        logits: Tensor = self.teacher(resize_views(images, min(self.size, images.shape[-1])))
        return logits.float()


def absolute_weights(recipe: Recipe) -> Recipe:
    """The recipe with weights files by their absolute paths: a run may go on from elsewhere."""
    changes: dict[str, Any] = {}
    for role in ("teacher", "baseline", "student"):
        schedule: Schedule | None = getattr(recipe, role)
        if schedule and schedule.weights not in ("none", "hub", "pypi"):
            weights = str(Path(schedule.weights).absolute())
            changes[role] = schedule.model_copy(update={"weights": weights})
    return recipe.model_copy(update=changes)


def _started(schedule: S, fresh: bool) -> S:
    """Without weights where a checkpoint brings them: the file or network may be gone by now."""
    return schedule if fresh else schedule.model_copy(update={"weights": "none"})
