"""Distillation is what Eq. 8 says it is."""

import pytest
import torch
import torch.nn.functional as F
from timm.task import TokenDistillationTask
from torch import nn

from edgelung.train.fit import normalise, resize_views
from edgelung.train.models import create_student
from edgelung.train.recipe import Student
from edgelung.train.stages import ResizedTeacher


class Teacher(nn.Module):
    """Logits from the mean colour, and a record of what it was shown."""

    num_classes = 3
    pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen = images
        return self.linear(images.mean(dim=(2, 3)))


@pytest.fixture
def parts() -> tuple[nn.Module, Teacher, torch.Tensor, torch.Tensor]:
    torch.manual_seed(0)
    values = {"model": "deit_tiny_distilled_patch16_224", "epochs": 1, "lr": 1e-3, "size": 32}
    student = create_student(Student(**values), 3)
    return student, Teacher(), torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 1])


@pytest.mark.parametrize("mode", ["soft", "hard"])
def test_loss_is_alpha_supervised_plus_beta_distillation(parts, mode: str) -> None:
    student, teacher, images, labels = parts
    task = TokenDistillationTask(
        student,
        ResizedTeacher(teacher, 24),
        criterion=nn.CrossEntropyLoss(),
        distill_type=mode,
        task_loss_weight=0.3,
        distill_loss_weight=0.9,
        temperature=2.0,
        verbose=False,
    ).train()
    shown = normalise(images, student)
    result = task(shown, labels)
    class_logits, distill_logits = student(shown)
    teacher_logits = teacher.linear(resize_views((images - 0.5) / 0.5, 24).mean(dim=(2, 3)))
    supervised = F.cross_entropy(class_logits, labels)
    if mode == "soft":
        p, q = (teacher_logits / 2).softmax(1), (distill_logits / 2).log_softmax(1)
        distillation = 4 * (p * (p.log() - q)).sum(1).mean()
    else:
        distillation = F.cross_entropy(distill_logits, teacher_logits.argmax(1))
    expected = 0.3 * supervised + 0.9 * distillation
    torch.testing.assert_close(result["loss"], expected, atol=1e-5, rtol=1e-5)


def test_the_teacher_sees_its_own_size_and_normalisation(parts) -> None:
    student, teacher, images, labels = parts
    task = TokenDistillationTask(
        student, ResizedTeacher(teacher, 24), criterion=nn.CrossEntropyLoss(), verbose=False
    )
    task(normalise(images, student), labels)["loss"].backward()
    assert teacher.seen.shape[-2:] == (24, 24)
    expected = (resize_views(images, 24) - 0.5) / 0.5
    torch.testing.assert_close(teacher.seen, expected, atol=1e-4, rtol=0)
    assert all(p.grad is None for p in teacher.parameters())
