"""Stages: models are created once, from their own seeds, and checked before the run folder."""

from pathlib import Path

import pytest
import torch

from edgelung.core.errors import EdgelungError
from edgelung.train.models import create_student
from edgelung.train.recipe import load_recipe
from edgelung.train.seeds import seed_weights
from edgelung.train.stages import (
    absolute_weights,
    create_checked_modules,
    create_modules,
    create_stage,
    timm_model,
)


def test_a_model_that_cannot_take_the_size_is_told_at_once() -> None:
    words = ["teacher.model=deit_tiny_patch16_224", "teacher.weights=none", "teacher.size=100"]
    with pytest.raises(EdgelungError, match="deit_tiny_patch16_224 does not take tiles of 100 px"):
        create_checked_modules(load_recipe("quick", words), 3)


SWIN = ["teacher.model=swin_tiny_patch4_window7_224", "teacher.weights=none", "teacher.size=224"]
NO_GUIDANCE = ["distill.guidance=0", "distill.features_epochs=0"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (SWIN, r"teacher swin_tiny_\w+ does not take views of 112 px .* student.low_epochs=0"),
        ([*SWIN, *NO_GUIDANCE], "does not take views of 112 px"),
        ([*SWIN, "student.low_epochs=0"], r"feature maps of the shape \[1, 14, 14, 384\]"),
    ],
)
def test_a_teacher_that_cannot_teach_is_told_before_it_is_trained(
    changes: list[str], words: str
) -> None:
    with pytest.raises(EdgelungError, match=words):
        create_checked_modules(load_recipe("quick", changes), 3)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            ["teacher.epochs=0", "teacher.weights=none"],
            "teacher.epochs is 0 and teacher.weights is",
        ),
        (
            ["distill.mode=none", *NO_GUIDANCE, "teacher.features=f"],
            r"distill\.mode is none; expected soft or hard",
        ),
    ],
)
def test_settings_that_teach_nothing_are_refused_in_a_new_run_alone(
    changes: list[str], words: str
) -> None:
    recipe = load_recipe("quick", changes)  # a run that was begun with it can be finished
    with pytest.raises(EdgelungError, match=words):
        create_checked_modules(recipe, 3)


def test_a_model_that_is_never_shown_a_window_need_not_take_one() -> None:
    """Where guidance alone teaches on windows, and this model does not guide."""
    name = "swin_tiny_patch4_window7_224"
    words = [f"teacher.model=['test_efficientnet', '{name}']", "teacher.weights=none"]
    words += [f"teacher.settings.{name}.{field}" for field in ("guides=false", "size=224")]
    create_checked_modules(load_recipe("quick", words), 3)
    with pytest.raises(EdgelungError, match=f"teacher/{name} .* does not take views of 112 px"):
        create_checked_modules(load_recipe("quick", [*words, "distill.features_epochs=3"]), 3)


def test_a_teacher_of_one_size_teaches_without_windows_and_guidance() -> None:
    recipe = load_recipe("quick", [*SWIN, *NO_GUIDANCE, "student.low_epochs=0"])
    modules = create_checked_modules(recipe, 3)
    assert all(p.requires_grad for module in modules.values() for p in module.parameters())


@pytest.mark.parametrize(
    ("size", "shown"), [(64, [64, 32]), (96, [96, 48]), (40, [40, 32]), (24, [24, 24])]
)
def test_a_view_is_shrunk_for_a_teacher_that_is_smaller_than_it(
    small: list[str], size: int, shown: list[int]
) -> None:
    """The student has 64 px; one view serves it and a larger teacher."""
    recipe = load_recipe("demo", [*small, f"teacher.size={size}", "student.low_epochs=1"])
    modules = create_checked_modules(recipe, 3)
    stage = create_stage(recipe, "student", modules["student"], modules)
    assert stage.full_view == max(size, 64)
    seen: list[int] = []
    modules["teacher"].register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-1]))
    for window in (1.0, 0.5):
        side = round(stage.full_view * window)
        stage.loss.teacher(torch.zeros(2, 3, side, side), torch.arange(2))
    assert seen == shown


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
    stage = create_stage(recipe, "student", modules["student"], modules)
    assert [stage.uses_label_loss(epoch) for epoch in (0, 1)] == [False, True]
    assert [stage.input_size(epoch) for epoch in (0, 1)] == [32, 64]
    assert stage.restart is not None
    assert (stage.restart.epoch, stage.restart.lr) == (1, 1.0)


SEVERAL = [
    'teacher.model=["test_efficientnet", "test_vit2"]',
    "teacher.settings.test_vit2.fit=probe",
    "teacher.settings.test_vit2.size=48",
]


def test_several_models_are_roles_of_their_own_and_the_view_fits_the_largest(
    small: list[str],
) -> None:
    recipe = load_recipe("demo", [*small, *SEVERAL, "teacher.size=96", "distill.guidance=1"])
    modules = create_checked_modules(recipe, 3)
    assert list(modules) == ["teacher/test_efficientnet", "teacher/test_vit2", "student"]
    assert modules["teacher/test_vit2"].pos_embed.shape == (1, 1 + 9, 64)
    stage = create_stage(recipe, "student", modules["student"], modules)
    assert stage.full_view == 96
    views = torch.rand(2, 3, 96, 96)
    output = stage.loss.teacher(views, torch.arange(2))
    assert [tuple(m.shape[2:]) for m in output.features[1].maps] == [(3, 3)] * 3


def test_a_model_may_give_soft_labels_without_guiding(small: list[str]) -> None:
    words = [*small, *SEVERAL, "distill.guidance=1", "teacher.settings.test_vit2.guides=false"]
    recipe = load_recipe("demo", words)
    modules = create_modules(recipe, 3, fresh=recipe.roles)
    stage = create_stage(recipe, "student", modules["student"], modules)
    images, labels = torch.rand(2, 3, 64, 64), torch.arange(2)
    output = stage.loss.teacher(images, labels)
    assert len(output.features) == 1
    assert output.logits.shape == (2, 3)
    # Where guidance alone teaches, it costs nothing.
    calls: list[object] = []
    _, silent = stage.loss.teacher.models
    silent.register_forward_hook(lambda *call: calls.append(call))
    for uses_label_loss, count in ((False, 0), (True, 1)):
        shown = stage.module.train()(images)
        losses = stage.loss(shown, images, labels, labels, uses_label_loss=uses_label_loss)
        assert len(calls) == count
        assert (losses.distill_loss is None) == (not uses_label_loss)
    silent_loss = stage.loss(shown, images, labels, labels, uses_label_loss=False)
    torch.testing.assert_close(silent_loss.loss, losses.guidance_loss)  # with weight 1
    silent_loss.loss.backward()
    assert [n for n, p in stage.module.named_parameters() if p.grad is None] == []


def test_beside_tile_features_only_models_that_guide_are_trained(small: list[str]) -> None:
    words = [*small, *SEVERAL, "teacher.features=f", "teacher.settings.test_vit2.guides=false"]
    assert load_recipe("demo", words).roles == ["student"]
    recipe = load_recipe("demo", [*words, "distill.guidance=1"])
    assert recipe.roles == ["teacher/test_efficientnet", "student"]
    assert not recipe.averages
    modules = create_modules(recipe, 3, fresh=recipe.roles)
    table = torch.randn(5, 3)
    stage = create_stage(recipe, "student", modules["student"], modules, table)
    output = stage.loss.teacher(torch.rand(2, 3, 64, 64), torch.tensor([4, 1]))
    assert torch.equal(output.logits, table[[4, 1]])
    assert len(output.features) == 1


def test_paths_in_the_settings_of_a_model_become_absolute(
    small: list[str], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.chdir(tmp_path)
    words = [*small, *SEVERAL, "teacher.settings.test_vit2.weights=vit.pth", "teacher.features=f"]
    recipe = absolute_weights(load_recipe("demo", words))
    assert recipe.teacher.members[1].weights == str(tmp_path / "vit.pth")
    assert recipe.teacher.members[0].weights == "none"
    assert recipe.teacher.features == str(tmp_path / "f")
