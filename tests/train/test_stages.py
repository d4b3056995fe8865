"""Stages: models are created once, from their own seeds, and checked before the run folder."""

import pytest
import torch

from edgelung.core.errors import EdgelungError
from edgelung.train.models import create_student
from edgelung.train.recipe import load_recipe
from edgelung.train.seeds import seed_weights
from edgelung.train.stages import (
    create_checked_modules,
    create_modules,
    create_stage,
    timm_model,
)


def test_a_model_that_cannot_take_the_size_is_told_at_once() -> None:
    words = ["teacher.model=deit_tiny_patch16_224", "teacher.weights=none", "distill.guidance=0"]
    words += ["distill.features_epochs=0"]
    with pytest.raises(EdgelungError, match="deit_tiny_patch16_224 does not take tiles of 160 px"):
        create_checked_modules(load_recipe("quick", words), 3)


def test_weights_depend_on_the_seed_and_the_role_alone(small: list[str]) -> None:
    """Not on the models that were created or checked before."""
    recipe = load_recipe("demo", [*small, "student.init=mimetic", "distill.guidance=1"])
    checked = create_checked_modules(recipe, 3)["student"].state_dict()
    created = create_modules(recipe, 3, fresh=recipe.roles)["student"].state_dict()
    assert checked.keys() == created.keys()
    assert [name for name in checked if not torch.equal(checked[name], created[name])] == []
    seed_weights(recipe.seed, "student")
    alone = create_student(recipe.student, 3).state_dict()
    assert [n for n in alone if not torch.equal(alone[n], checked[f"model.{n}"])] == []


def test_without_distillation_no_teacher_is_created(small: list[str]) -> None:
    recipe = load_recipe("demo", [*small, "distill.mode=none", "teacher.model=resnet18"])
    modules = create_checked_modules(recipe, 3)
    assert list(modules) == ["student"]
    assert not timm_model(modules["student"]).distilled_training


def test_guidance_alone_teaches_in_the_first_epochs(small: list[str]) -> None:
    settings = [*small, "distill.guidance=1", "distill.features_epochs=1", "student.restart_lr=1"]
    recipe = load_recipe("demo", settings)
    modules = create_modules(recipe, 3, fresh=recipe.roles)
    stage = create_stage(recipe, "student", modules["student"], modules["teacher"])
    assert [stage.uses_label_loss(epoch) for epoch in (0, 1)] == [False, True]
    assert [stage.input_size(epoch) for epoch in (0, 1)] == [32, 64]
    assert stage.restart is not None
    assert (stage.restart.epoch, stage.restart.lr) == (1, 1.0)
