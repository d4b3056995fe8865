"""Guidance: the student predicts what lies where in the teacher's feature maps."""

import pytest
import timm
import torch
from torch import nn

from edgelung.core.errors import EdgelungError
from edgelung.train.guidance import (
    FrozenTeacher,
    GuidedStudent,
    feature_modules,
    guidance_loss,
    map_targets,
    standardise,
)
from edgelung.train.preprocess import normalise


def guided(student: nn.Module) -> tuple[GuidedStudent, FrozenTeacher]:
    teacher = timm.create_model("test_efficientnet", num_classes=3)
    features = feature_modules(teacher)
    return GuidedStudent(student, features).train(), FrozenTeacher(teacher, 64, student, features)


def test_each_term_is_about_one_before_anything_is_learnt(parts) -> None:
    student, _, images, _ = parts
    module, teacher = guided(student)
    shown = normalise(images, student)
    assert 1.6 < float(guidance_loss(module(shown), teacher(shown)).detach()) < 6


def test_no_hook_stays_on_the_teacher(parts) -> None:
    student, _, images, _ = parts
    _, teacher = guided(student)
    teacher(normalise(images, student))
    hooked = [m for m in teacher.modules() if m._forward_hooks or m._forward_pre_hooks]
    assert hooked == []


def test_the_view_feature_is_what_the_teachers_classifier_is_given(parts) -> None:
    student, _, images, _ = parts
    module, teacher = guided(student)
    shown = normalise(images, student)
    output, seen = module(shown), teacher(shown)
    model = teacher.model
    # test_efficientnet has the student's input size here and another normalisation.
    config = model.pretrained_cfg
    mean, std = (torch.tensor(config[k]).view(1, 3, 1, 1) for k in ("mean", "std"))
    views = (images - mean) / std
    expected = model.forward_head(model.forward_features(views), pre_logits=True)
    torch.testing.assert_close(seen.view, expected.detach(), atol=1e-4, rtol=1e-4)
    before = guidance_loss(output, seen)
    after = guidance_loss(output._replace(view=standardise(seen.view)), seen)
    assert 0.5 < float((before - after).detach()) < 3


def test_guidance_teaches_what_the_teacher_sees(parts) -> None:
    student, _, images, _ = parts
    module, teacher = guided(student)
    shown = normalise(images, student)
    optimizer = torch.optim.AdamW(module.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        loss = guidance_loss(module(shown), teacher(shown))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(float(loss.detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_the_student_stays_as_timm_knows_it(parts) -> None:
    student, *_ = parts
    names, kind = set(student.state_dict()), type(student)
    module, _ = guided(student)
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


def test_a_teacher_without_feature_maps_is_named() -> None:
    teacher = timm.create_model("deit_tiny_patch16_224", num_classes=3)
    with pytest.raises(EdgelungError, match="no feature maps"):
        feature_modules(teacher)
