"""The stages of a run: the teacher's models on the labels, then the DeiT student from both."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import torch
from timm.optim import create_optimizer_v2
from timm.utils import unwrap_model
from torch import Tensor, nn

from edgelung.core.errors import EdgelungError, one_line
from edgelung.train.exits import ExitHeads
from edgelung.train.guidance import FeatureModules, GuidedStudent, feature_modules
from edgelung.train.losses import DistillationLoss, ExitLoss, LabelLoss, StageLoss
from edgelung.train.lr_schedule import WarmRestart
from edgelung.train.models import Model, create_classifier, create_student
from edgelung.train.recipe import Augment, Recipe, Schedule
from edgelung.train.seeds import seed_weights
from edgelung.train.setting_names import setting
from edgelung.train.student import StudentModule, UnguidedStudent
from edgelung.train.teachers import FrozenModel, FrozenTeacher, check_member
from edgelung.train.weights import NONE, is_file_name

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
            modules[role] = _trainable_student(model, recipe, _guides(recipe, modules))
        else:
            schedule = _initial(recipe.schedule(role), role in fresh)
            model = create_classifier(schedule, classes, role)
            modules[role] = model.to(memory_format=torch.channels_last)
    return modules


def _guides(recipe: Recipe, models: Mapping[str, Model]) -> dict[str, FeatureModules]:
    """What guides the student in the teacher's models, by role."""
    members = recipe.teachers if recipe.distill.guidance else {}
    return {
        role: feature_modules(models[role]) for role, member in members.items() if member.guides
    }


def _full_view(recipe: Recipe) -> int:
    """Pixels of the view of a whole tile that the student and its teacher share."""
    return max([recipe.student.size, *(member.size for member in recipe.teachers.values())])


def _frozen_teachers(
    recipe: Recipe, models: Mapping[str, Model], student: Model
) -> dict[str, FrozenModel]:
    """The teacher's models as the student learns from them, by role."""
    guides = _guides(recipe, models)
    return {
        role: FrozenModel(models[role], member.size, student, guides.get(role))
        for role, member in recipe.teachers.items()
    }


def create_checked_modules(recipe: Recipe, classes: int) -> dict[str, nn.Module]:
    """Create the modules of a new run and check them before a run folder is made.

    Raises EdgelungError for anything that is wrong with models, weights or optimizers.
    """
    _check_use(recipe)
    modules = create_modules(recipe, classes, fresh=recipe.roles)
    for role, module in modules.items():
        _check_model(recipe.schedule(role), timm_model(module))
    for role, member in recipe.teachers.items():
        if member.fit == "probe" or recipe.averages:
            check_member(modules[role])
    _check_teachers(recipe, modules)
    return modules


def _check_use(recipe: Recipe) -> None:
    """Raise EdgelungError for settings that would teach nothing."""
    if recipe.teacher.features and recipe.distill.mode == "none":
        raise EdgelungError(
            "teacher.features give soft labels, and distill.mode is none; expected soft or hard, "
            "or no features"
        )
    for role, member in recipe.teachers.items():
        if not member.epochs and member.weights == NONE:
            raise EdgelungError(
                f"{setting(role, 'epochs')} is 0 and {setting(role, 'weights')} is none, so the "
                "teacher knows nothing; expected epochs, or weights of a trained model"
            )


@torch.no_grad()
def _check_teachers(recipe: Recipe, modules: Mapping[str, nn.Module]) -> None:
    """Show the teacher's models the views of the training, before they are trained for long."""
    guides, view, student = _guides(recipe, modules), _full_view(recipe), recipe.student
    window = round(view * student.low_size / student.size)
    for role, frozen in _frozen_teachers(recipe, modules, timm_model(modules["student"])).items():
        model = f"{role} {recipe.schedule(role).model}"
        # Where guidance alone teaches, the others are not shown anything.
        first = 0 if frozen.guides else recipe.distill.features_epochs
        for side in [view, window] if student.low_epochs > first else [view]:
            try:
                _, features = frozen(torch.zeros(1, 3, side, side))
            except Exception as error:
                raise EdgelungError(
                    f"{model} does not take views of {side} px ({one_line(error, 90)}); expected a "
                    "model for any size"
                    + (", or --set student.low_epochs=0" if side < view else "")
                ) from error
        maps = features.maps if features is not None else []
        for found, layer in zip(maps, guides[role].layers if maps else [], strict=True):
            if found.shape[1] != layer.channels:
                raise EdgelungError(
                    f"{model} has feature maps of the shape {list(found.shape)}; expected "
                    f"{layer.channels} channels before rows and columns: a CNN, a ViT, or "
                    "distill.guidance=0"
                )


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


def _trainable_student(
    model: Model, recipe: Recipe, guides: Mapping[str, FeatureModules]
) -> StudentModule:
    """The module that trains the student; draws the weights of projections and exits, if any."""
    if recipe.distill.mode != "none":
        model.set_distilled_training(True)  # in training it returns the logits of both heads
    module = GuidedStudent(model, list(guides.values())) if guides else UnguidedStudent(model)
    if blocks := recipe.student.exits:
        width, depth = model.embed_dim, len(model.blocks)
        module.exits = ExitHeads(blocks, width=width, depth=depth, classes=model.num_classes)
    return module


def create_stage(
    recipe: Recipe,
    role: str,
    module: nn.Module,
    models: Mapping[str, Model],
    soft_labels: Tensor | None = None,
) -> Stage:
    """The stage that trains a role.

    Without distillation the mean of both heads of the student learns the labels: it is the
    student's prediction.

    Args:
        recipe: the recipe of the run.
        role: what is trained.
        module: the module of the role.
        models: the trained models by role; the student needs those of the teacher.
        soft_labels: logits of all tiles, if tile features teach; see `teachers.FrozenTeacher`.
    """
    schedule = recipe.schedule(role)
    criterion = nn.CrossEntropyLoss(label_smoothing=schedule.label_smoothing)
    if role != "student":
        return Stage(
            role, module, LabelLoss(criterion), schedule, recipe.augment, full_view=schedule.size
        )
    student, distill = recipe.student, recipe.distill
    loss: StageLoss = LabelLoss(criterion)
    if distill.mode != "none":
        frozen = _frozen_teachers(recipe, models, timm_model(module))
        teacher = FrozenTeacher(list(frozen.values()), soft_labels).requires_grad_(False)
        loss = DistillationLoss(teacher, distill, criterion)
    if student.exits:
        temperature = 1.0 if distill.mode == "none" else distill.temperature
        loss = ExitLoss(loss, criterion, weight=student.exit_weight, temperature=temperature)
    restarts = distill.features_epochs and student.restart_lr
    return Stage(
        role,
        module,
        loss,
        student,
        recipe.augment,
        _full_view(recipe),
        restart=WarmRestart(distill.features_epochs, student.restart_lr) if restarts else None,
        window_epochs=student.low_epochs,
        window=student.low_size / student.size,
        guidance_epochs=distill.features_epochs,
    )


def absolute_weights(recipe: Recipe) -> Recipe:
    """The recipe with absolute paths of files, so that a run can resume from anywhere."""
    values = recipe.model_dump()
    teacher = values["teacher"]
    for section in (teacher, *teacher["settings"].values(), values["baseline"], values["student"]):
        if section and is_file_name(weights := section.get("weights", NONE)):
            section["weights"] = str(Path(weights).absolute())
    if teacher["features"]:
        teacher["features"] = str(Path(teacher["features"]).absolute())
    return Recipe.model_validate(values)


def _initial(schedule: S, fresh: bool) -> S:
    return schedule if fresh else schedule.model_copy(update={"weights": "none"})
