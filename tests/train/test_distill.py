"""Distillation is what Eq. 8 says it is."""

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.task import TokenDistillationTask
from torch import nn

from edgelung.core.errors import EdgelungError
from edgelung.train.guidance import (
    GuidedDistillationTask,
    drop_guide,
    standardised,
    targets,
    teacher_features,
)
from edgelung.train.models import create_student
from edgelung.train.recipe import Student
from edgelung.train.stages import ResizedTeacher
from edgelung.train.trainer import normalise, resize_views


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
    task(normalise(images[:, :, :16, :16], student), labels)
    assert teacher.seen.shape[-2:] == (16, 16)  # a window is not enlarged for it


def guided(student: nn.Module, guidance: float) -> tuple[GuidedDistillationTask, nn.Module]:
    teacher = timm.create_model("test_efficientnet", num_classes=3)
    task = GuidedDistillationTask(
        student,
        ResizedTeacher(teacher, 64),
        teacher_features(teacher),
        guidance,
        criterion=nn.CrossEntropyLoss(),
        verbose=False,
    )
    return task.train(), teacher


def test_guidance_adds_its_weight_times_its_loss(parts) -> None:
    student, _, images, labels = parts
    task, teacher = guided(student, 0.7)
    shown = normalise(images, student)
    result = task(shown, labels)
    parts_sum = result["task_loss"] + result["distill_loss"] + 0.7 * result["guidance_loss"]
    torch.testing.assert_close(result["loss"], parts_sum)
    assert 1.6 < float(result["guidance_loss"].detach()) < 6  # about 2 before anything is learnt
    result["loss"].backward()
    assert all(p.grad is not None for p in student.guide.parameters())
    assert all(p.grad is None for p in teacher.parameters())
    assert not student.blocks[-1]._forward_hooks, "hooks must not stay on the model"


def test_features_alone_teach_when_answers_are_off(parts) -> None:
    student, _, images, labels = parts
    task, _ = guided(student, 0.7)
    task.answers = 0.0
    result = task(normalise(images, student), labels)
    torch.testing.assert_close(result["loss"], 0.7 * result["guidance_loss"])
    result["loss"].backward()
    assert not any(p.grad.any() for p in student.head.parameters())
    assert student.cls_token.grad.any(), "the answering tokens learn what the classifier sees"


def test_the_whole_is_what_the_teachers_classifier_is_given(parts) -> None:
    """The guidance of a student that knows the whole and nothing of the places is theirs alone."""
    student, _, images, labels = parts
    task, teacher = guided(student, 1.0)
    shown = normalise(images, student)
    views = task.teacher.normalize_input(shown, task.student_mean, task.student_std)
    seen = teacher.forward_head(teacher.forward_features(views), pre_logits=True)
    wanted = standardised(seen.detach())

    class Knows(nn.Module):
        def forward(self, tokens: torch.Tensor) -> torch.Tensor:
            assert tokens.shape == (4, student.embed_dim)
            return wanted

    before = task(shown, labels)["guidance_loss"]
    student.guide[-1] = Knows()
    after = task(shown, labels)["guidance_loss"]
    assert 0.5 < float((before - after).detach()) < 3


def test_guidance_teaches_what_the_teacher_sees(parts) -> None:
    student, _, images, labels = parts
    task, _ = guided(student, 1.0)
    shown = normalise(images, student)
    optimizer = torch.optim.AdamW(student.parameters(), lr=1e-3)
    losses = []
    for _ in range(12):
        result = task(shown, labels)
        optimizer.zero_grad()
        result["loss"].backward()
        optimizer.step()
        losses.append(float(result["guidance_loss"].detach()))
    assert losses[-1] < 0.7 * losses[0]


def test_the_student_leaves_as_timm_knows_it(parts) -> None:
    student, _, _images, _ = parts
    names = set(student.state_dict())
    guided(student, 1.0)
    assert set(student.state_dict()) > names
    assert set(drop_guide(student).state_dict()) == names


def test_targets_keep_their_places_and_have_unit_scale() -> None:
    features = torch.randn(8, 5, 4, 4) * 3 + 2
    found = targets(features, (4, 4))  # (B, patches, C)
    assert found.shape == (8, 16, 5)
    expected = features.flatten(2).transpose(1, 2)
    expected = (expected - expected.mean((0, 1))) / expected.std((0, 1), correction=0)
    torch.testing.assert_close(found, expected, atol=1e-3, rtol=1e-3)


def test_a_teacher_without_feature_maps_is_named() -> None:
    teacher = timm.create_model("deit_tiny_patch16_224", num_classes=3)
    with pytest.raises(EdgelungError, match="no feature maps"):
        teacher_features(teacher)


def test_a_window_keeps_the_positions_of_its_place_in_the_tile() -> None:
    """In training a small view stands somewhere in the grid; every place comes up."""
    torch.manual_seed(0)
    student = create_student(
        Student(
            model="deit_tiny_distilled_patch16_224", epochs=2, lr=1, size=64, low_epochs=1,
            low_size=32,
        ),
        3,
    ).train()  # fmt: skip
    seen: list[torch.Tensor] = []
    student.blocks[0].register_forward_pre_hook(lambda module, inputs: seen.append(inputs[0]))
    view = torch.rand(2, 3, 32, 32)
    with torch.no_grad():
        patches = student.patch_embed(view).flatten(1, 2)  # (B, 4, D)
        places = set()
        grid = student.pos_embed[0, 2:].view(4, 4, -1)
        windows = {
            (y, x): grid[y : y + 2, x : x + 2].flatten(0, 1) for y in range(3) for x in range(3)
        }
        for _ in range(100):
            student(view)
            added = seen[-1][0, 2:] - patches[0]
            (place,) = (k for k, v in windows.items() if torch.allclose(v, added, atol=1e-5))
            places.add(place)
        assert len(places) == 9
        whole = torch.rand(2, 3, 64, 64)
        student(whole)
        torch.testing.assert_close(
            seen[-1][:, 2:], student.patch_embed(whole).flatten(1, 2) + student.pos_embed[:, 2:]
        )
        first = torch.cat([student.cls_token, student.dist_token], 1) + student.pos_embed[:, :2]
        torch.testing.assert_close(seen[-1][:, :2], first.expand(2, -1, -1))
        torch.testing.assert_close(seen[0][:, :2], first.expand(2, -1, -1))
