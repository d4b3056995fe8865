"""The stages of a run: a CNN teacher on the labels, then the DeiT student from both."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from timm.optim import create_optimizer_v2
from timm.utils import unwrap_model
from torch import nn

from edgelung.core.errors import EdgelungError, one_line
from edgelung.train.guidance import FrozenTeacher, GuidedStudent, feature_modules
from edgelung.train.losses import DistillationLoss, LabelLoss, StageLoss
from edgelung.train.lr_schedule import WarmRestart
from edgelung.train.models import Model, create_classifier, create_student
from edgelung.train.recipe import Augment, Recipe, Schedule
from edgelung.train.seeds import seed_weights
from edgelung.train.student import StudentModule, UnguidedStudent
from edgelung.train.weights import is_file_name

S = TypeVar("S", bound=Schedule)


@dataclass(frozen=True)
class Stage:
    """What one training trains, and how."""

    name: str
    module: nn.Module  # a timm model, or the student with what is trained along with it
    loss: StageLoss
    schedule: Schedule
    augment: Augment
    full_view: int  # pixels of the view of a whole tile
    restart: WarmRestart | None = None  # of the learning rate and of the averaged weights
    window_epochs: int = 0  # the first epochs, which show a window of each tile …
    window: float = 1.0  # … of this fraction of its side, at the same scale
    guidance_epochs: int = 0  # the first epochs, in which guidance alone teaches

    def window_in(self, epoch: int) -> float:
        """The fraction of the tile's side that an epoch shows."""
        return self.window if epoch < self.window_epochs else 1.0

    def input_size(self, epoch: int) -> int:
        """Pixels of the model's input in training."""
        return round(self.schedule.size * self.window_in(epoch))

    def uses_label_loss(self, epoch: int) -> bool:
        """True if labels and the teacher's logits teach in this epoch."""
        return epoch >= self.guidance_epochs


def timm_model(module: nn.Module) -> Model:
    """The timm model in a stage's module, which is evaluated and saved."""
    module = unwrap_model(module)
    return module.model if isinstance(module, StudentModule) else module


def create_modules(recipe: Recipe, classes: int, fresh: list[str]) -> dict[str, nn.Module]:
    """Create what each role of the recipe trains, with initial weights that depend on its seed.

    Pretrained weights are read for the roles in `fresh` only. The others get their weights from a
    checkpoint or from the run folder, and a weights file may be gone by then.
    """
    modules: dict[str, nn.Module] = {}
    for role in recipe.roles:
        seed_weights(recipe.seed, role)
        if role == "student":
            model = create_student(_initial(recipe.student, role in fresh), classes)
            modules[role] = _trainable_student(model, recipe, modules.get("teacher"))
        else:
            schedule = _initial(recipe.schedule(role), role in fresh)
            model = create_classifier(schedule, classes, role)
            modules[role] = model.to(memory_format=torch.channels_last)
    return modules


def create_checked_modules(recipe: Recipe, classes: int) -> dict[str, nn.Module]:
    """Create the modules of a new run and check them before a run folder is made.

    Raises EdgelungError for anything that is wrong with models, weights or optimizers.
    """
    modules = create_modules(recipe, classes, fresh=recipe.roles)
    for role, module in modules.items():
        _check_model(recipe.schedule(role), timm_model(module))
    return modules


def _check_model(schedule: Schedule, model: Model) -> None:
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
            "for example adamw"
        ) from error


def _trainable_student(model: Model, recipe: Recipe, teacher: Model | None) -> StudentModule:
    """The module that trains the student; draws the weights of the projections, if it has any."""
    if teacher is None:
        return UnguidedStudent(model)
    model.set_distilled_training(True)  # in training it returns the logits of both heads
    if recipe.distill.guidance:
        return GuidedStudent(model, feature_modules(teacher))
    return UnguidedStudent(model)


def create_stage(recipe: Recipe, role: str, module: nn.Module, teacher: Model | None) -> Stage:
    """The stage that trains a role; the student needs the trained teacher, if the recipe has one.

    Without a teacher the mean of both heads learns the labels: it is the student's prediction.
    """
    schedule = recipe.schedule(role)
    criterion = nn.CrossEntropyLoss(label_smoothing=schedule.label_smoothing)
    if role != "student":
        return Stage(
            role, module, LabelLoss(criterion), schedule, recipe.augment, full_view=schedule.size
        )
    student, distill = recipe.student, recipe.distill
    full_view = student.size
    loss: StageLoss = LabelLoss(criterion)
    if teacher is not None:
        features = feature_modules(teacher) if distill.guidance else None
        frozen = FrozenTeacher(teacher, recipe.teacher.size, timm_model(module), features)
        loss = DistillationLoss(frozen, distill, criterion)
        full_view = max(student.size, recipe.teacher.size)  # one view, for the larger input
    restarts = distill.features_epochs and student.restart_lr
    return Stage(
        role,
        module,
        loss,
        student,
        recipe.augment,
        full_view,
        restart=WarmRestart(distill.features_epochs, student.restart_lr) if restarts else None,
        window_epochs=student.low_epochs,
        window=student.low_size / student.size,
        guidance_epochs=distill.features_epochs,
    )


def absolute_weights(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths of weights files, so that a run can resume from anywhere."""
    changes: dict[str, Schedule] = {}
    for role in recipe.roles:
        schedule = recipe.schedule(role)
        if is_file_name(schedule.weights):
            weights = str(Path(schedule.weights).absolute())
            changes[role] = schedule.model_copy(update={"weights": weights})
    return recipe.model_copy(update=changes)


def _initial(schedule: S, fresh: bool) -> S:
    return schedule if fresh else schedule.model_copy(update={"weights": "none"})
