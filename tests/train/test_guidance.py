"""Guidance: the student predicts what lies where in the features of the teacher's models."""

from dataclasses import dataclass
from typing import Any

import pytest
import timm
import torch
from torch import nn

from edgelung.core.errors import EdgelungError
from edgelung.train.guidance import (
    Features,
    GuidedStudent,
    feature_modules,
    guidance_loss,
    map_targets,
    standardise,
)
from edgelung.train.preprocess import normalise
from edgelung.train.teachers import FrozenModel

CNN, VIT = "test_efficientnet", "test_vit2"


@dataclass(frozen=True)
class Guided:
    """A student, and the frozen models whose features it predicts."""

    module: GuidedStudent
    models: list[FrozenModel]

    def features(self, images: torch.Tensor) -> list[Features]:
        return [features for model in self.models if (features := model(images)[1]) is not None]


def guided(student: nn.Module, *names: str) -> Guided:
    models: list[Any] = []
    for name in names or (CNN,):
        options = {"img_size": 32, "dynamic_img_size": True} if name == VIT else {}
        models.append(timm.create_model(name, num_classes=3, **options))
    guides = [feature_modules(model) for model in models]
    frozen = [FrozenModel(m, 64, student, g) for m, g in zip(models, guides, strict=True)]
    return Guided(GuidedStudent(student, guides).train(), frozen)


@pytest.mark.parametrize("names", [(CNN,), (VIT,), (CNN, VIT)])
def test_each_term_is_about_one_before_anything_is_learnt(parts, names: tuple[str, ...]) -> None:
    student, _, images, _ = parts
    both = guided(student, *names)
    shown = normalise(images, student)
    loss = guidance_loss(both.module(shown), both.features(shown))
    assert 1.6 < float(loss.detach()) < 6


def test_no_hook_stays_on_the_teacher(parts) -> None:
    student, _, images, _ = parts
    both = guided(student, CNN, VIT)
    both.features(normalise(images, student))
    parts_of_both = [part for model in both.models for part in model.modules()]
    assert [m for m in parts_of_both if m._forward_hooks or m._forward_pre_hooks] == []


@pytest.mark.parametrize("name", [CNN, VIT])
def test_the_view_feature_is_what_the_teachers_classifier_is_given(parts, name: str) -> None:
    student, _, images, _ = parts
    both = guided(student, name)
    shown = normalise(images, student)
    output, (seen,) = both.module(shown), both.features(shown)
    model: Any = both.models[0].model
    # The models have the student's input size here and another normalisation.
    config = model.pretrained_cfg
    mean, std = (torch.tensor(config[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    views = (images - mean) / std
    expected = model.forward_head(model.forward_features(views), pre_logits=True)
    torch.testing.assert_close(seen.view, expected.detach(), atol=1e-4, rtol=1e-4)
    before = guidance_loss(output, [seen])
    right = output.features[0]._replace(view=standardise(seen.view))
    after = guidance_loss(output._replace(features=[right]), [seen])
    assert 0.5 < float((before - after).detach()) < 3


@pytest.mark.parametrize("name", [CNN, VIT])
def test_guidance_teaches_what_the_teacher_sees(parts, name: str) -> None:
    student, _, images, _ = parts
    both = guided(student, name)
    shown = normalise(images, student)
    optimizer = torch.optim.AdamW(both.module.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        loss = guidance_loss(both.module(shown), both.features(shown))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_several_models_guide_alike(parts) -> None:
    """The loss is the mean of those with either model alone, however many channels each has."""
    student, _, images, _ = parts
    both = guided(student, CNN, VIT)
    shown = normalise(images, student)
    output, seen = both.module(shown), both.features(shown)
    alone = [
        guidance_loss(output._replace(features=[output.features[i]]), [seen[i]]) for i in (0, 1)
    ]
    torch.testing.assert_close(guidance_loss(output, seen), (alone[0] + alone[1]) / 2)
    assert [len(features.maps) for features in output.features] == [2, 3]


def test_blocks_of_a_vit_guide_the_student_at_the_same_depth(parts) -> None:
    student, *_ = parts
    vit = timm.create_model("vit_tiny_patch16_224", num_classes=3)
    guide = feature_modules(vit)
    assert [layer.module for layer in guide.layers] == [vit.blocks[i] for i in (5, 8, 11)]
    assert guide.prefix_tokens == 1
    assert GuidedStudent(student, [guide])._blocks == [5, 8, 11]


@torch.no_grad()
def test_patch_tokens_keep_their_places_in_the_map(parts) -> None:
    """A picture with one bright patch: the map of a ViT is highest where that patch is."""
    student, *_ = parts
    vit: Any = timm.create_model("test_vit2", num_classes=3, img_size=64, dynamic_img_size=True)
    vit.pos_embed.zero_()
    for block in vit.blocks:  # tokens pass through, so that each stays its patch's
        block.ls1.gamma.zero_()
        block.ls2.gamma.zero_()
    model = FrozenModel(vit, 64, student, feature_modules(vit))
    images = torch.zeros(1, 3, 64, 64)
    images[:, :, 16:32, 48:64] = 2.0  # row 1, column 3 of 4 × 4 patches
    _, features = model(images)
    for layer in features.maps:
        background = layer[0, :, 0, 0]
        different = (layer[0] - background[:, None, None]).abs().sum(dim=0) > 1e-3
        assert different.nonzero().tolist() == [[1, 3]]


@torch.no_grad()
def test_a_vit_is_shown_whole_patches_and_no_enlarged_window(parts) -> None:
    student, *_ = parts
    vit: Any = timm.create_model("test_vit2", num_classes=3, img_size=64, dynamic_img_size=True)
    seen: list[int] = []
    vit.patch_embed.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape[-1]))
    model = FrozenModel(vit, 64, student)
    for side in (224, 64, 56, 32, 20):
        model(torch.zeros(1, 3, side, side))
    assert seen == [64, 64, 48, 32, 16]


def test_the_student_stays_as_timm_knows_it(parts) -> None:
    student, *_ = parts
    names, kind = set(student.state_dict()), type(student)
    module = guided(student).module
    assert set(module.state_dict()) > {f"model.{name}" for name in names}  # the projections
    assert set(module.model.state_dict()) == names
    assert type(module.model) is kind
    assert kind.__module__ == "timm.models.deit"


def test_targets_keep_their_places_and_have_unit_scale() -> None:
    features = torch.randn(8, 5, 4, 4) * 3 + 2
    targets = map_targets(features, (4, 4))  # (B, patches, C)
    assert targets.shape == (8, 16, 5)
    expected = features.flatten(2).transpose(1, 2)
    expected = (expected - expected.mean((0, 1))) / expected.std((0, 1), correction=0)
    torch.testing.assert_close(targets, expected, atol=1e-3, rtol=1e-3)


@pytest.mark.parametrize("name", ["test_vit_relpos", "deit_tiny_distilled_patch16_224"])
def test_a_teacher_without_feature_maps_is_named(name: str) -> None:
    """A model without maps of stride 32, and one with two classifiers."""
    with pytest.raises(EdgelungError, match=r"no feature maps.*expected a CNN, a ViT"):
        feature_modules(timm.create_model(name, num_classes=3))
