"""Distillation is what Eq. 8 says it is."""

from typing import Any

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.task import TokenDistillationTask
from torch import nn

from edgelung.train.guidance import GuidedStudent, feature_modules, guidance_loss
from edgelung.train.losses import DistillationLoss
from edgelung.train.preprocess import normalise, resize_views
from edgelung.train.recipe import Distill
from edgelung.train.student import UnguidedStudent
from edgelung.train.teachers import FrozenModel, FrozenTeacher

TILES = torch.arange(4)  # indices in a run; a teacher of models does not look at them


def frozen(*words: Any) -> FrozenTeacher:
    return FrozenTeacher([FrozenModel(*words)])


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_loss_is_alpha_supervised_plus_beta_distillation(parts, mode: str) -> None:
    student, teacher, images, labels = parts
    recipe = Distill(mode=mode, alpha=0.3, beta=0.9, temperature=2.0)
    loss = DistillationLoss(frozen(teacher, 24, student), recipe, nn.CrossEntropyLoss())
    shown = normalise(images, student)
    output = UnguidedStudent(student).train()(shown)
    result = loss(output, shown, labels, TILES)
    teacher_logits = teacher.linear(resize_views((images - 0.5) / 0.5, 24).mean(dim=(2, 3)))
    supervised = F.cross_entropy(output.class_token, labels)
    if mode == "soft":
        p = (teacher_logits / 2).softmax(1)
        q = (output.distillation_token / 2).log_softmax(1)
        distillation = 4 * (p * (p.log() - q)).sum(1).mean()
    else:
        distillation = F.cross_entropy(output.distillation_token, teacher_logits.argmax(1))
    expected = 0.3 * supervised + 0.9 * distillation
    torch.testing.assert_close(result.loss, expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_the_losses_are_timms_to_the_last_bit(parts, mode: str) -> None:
    student, teacher, images, labels = parts
    recipe = Distill(mode=mode, alpha=0.3, beta=0.9, temperature=2.0)
    loss = DistillationLoss(frozen(teacher, 32, student), recipe, nn.CrossEntropyLoss())
    shown = normalise(images, student)
    result = loss(UnguidedStudent(student).train()(shown), shown, labels, TILES)
    task = TokenDistillationTask(
        student,
        teacher,
        criterion=nn.CrossEntropyLoss(),
        distill_type=mode,
        task_loss_weight=0.3,
        distill_loss_weight=0.9,
        temperature=2.0,
        verbose=False,
    ).train()
    expected = task(shown, labels)
    for name, value in result.parts().items():
        assert float(value) == float(expected[name].detach()), name


def test_the_teacher_sees_its_own_size_and_normalisation(parts) -> None:
    student, teacher, images, labels = parts
    seen_by = frozen(teacher, 24, student)
    loss = DistillationLoss(seen_by, Distill(), nn.CrossEntropyLoss())
    shown = normalise(images, student)
    loss(UnguidedStudent(student).train()(shown), shown, labels, TILES).loss.backward()
    assert teacher.seen.shape[-2:] == (24, 24)
    expected = (resize_views(images, 24) - 0.5) / 0.5
    torch.testing.assert_close(teacher.seen, expected, atol=1e-4, rtol=0)
    assert all(p.grad is None for p in teacher.parameters())
    seen_by(shown[:, :, :16, :16], TILES)
    assert teacher.seen.shape[-2:] == (16, 16)  # a window is not enlarged for it


def guided(student: nn.Module, guidance: float) -> tuple[GuidedStudent, DistillationLoss]:
    teacher = timm.create_model("test_efficientnet", num_classes=3)
    features = feature_modules(teacher)
    seen_by = frozen(teacher, 64, student, features)
    recipe = Distill(guidance=guidance, alpha=1.0, beta=1.0)
    return (
        GuidedStudent(student, [features]).train(),
        DistillationLoss(seen_by, recipe, nn.CrossEntropyLoss()),
    )


def test_guidance_adds_its_weight_times_its_loss(parts) -> None:
    student, _, images, labels = parts
    module, loss = guided(student, 0.7)
    shown = normalise(images, student)
    output = module(shown)
    result = loss(output, shown, labels, TILES)
    expected = result.task_loss + result.distill_loss + 0.7 * result.guidance_loss
    torch.testing.assert_close(result.loss, expected)
    torch.testing.assert_close(
        result.guidance_loss, guidance_loss(output, loss.teacher(shown, TILES).features)
    )
    result.loss.backward()
    assert all(p.grad is not None for p in module.parameters())
    assert all(p.grad is None for p in loss.teacher.parameters())


def test_guidance_alone_teaches_without_the_label_loss(parts) -> None:
    student, _, images, labels = parts
    module, loss = guided(student, 0.7)
    shown = normalise(images, student)
    result = loss(module(shown), shown, labels, TILES, uses_label_loss=False)
    torch.testing.assert_close(result.loss, 0.7 * result.guidance_loss)
    result.loss.backward()
    assert not any(p.grad.any() for p in student.head.parameters())
    assert student.cls_token.grad.any(), "the class token learns what the classifier sees"
