"""The teacher: several models answer as one, whatever scale their logits have; soft labels."""

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from torch import nn

from edgelung.core.errors import EdgelungError
from edgelung.train.preprocess import normalise
from edgelung.train.teachers import (
    FrozenModel,
    FrozenTeacher,
    average,
    calibrate,
    check_member,
    softmax,
)


class Linear(nn.Module):
    """A timm-like model of one linear layer on the mean colour."""

    pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # noqa: RUF012

    def __init__(self, scale: float) -> None:
        super().__init__()
        self.head = nn.Linear(3, 3)
        with torch.no_grad():
            self.head.weight.mul_(scale)

    def get_classifier(self) -> nn.Linear:
        return self.head

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(images.mean(dim=(2, 3)))


def labelled(scale: float) -> tuple[np.ndarray, np.ndarray]:
    """Probabilities (300, 3) that are right at temperature 1 / `scale`, and drawn labels."""
    rng = np.random.default_rng(0)
    true = softmax(rng.normal(0, 2, (300, 3)).astype(np.float32))
    labels = np.array([rng.choice(3, p=p / p.sum()) for p in true.astype(np.float64)])
    return softmax(np.log(true) * scale), labels


def test_the_average_is_of_log_probabilities_and_of_logits_alike() -> None:
    """Softmax ignores a number per tile, which is all that the two differ in."""
    one, other = torch.randn(5, 3) * 3, torch.randn(5, 3) + 7
    of_logits = ((one + other) / 2).softmax(1).numpy()
    of_logs = ((one.log_softmax(1) + other.log_softmax(1)) / 2).softmax(1).numpy()
    found = average([one.softmax(1).numpy(), other.softmax(1).numpy()])
    np.testing.assert_allclose(found, of_logits, rtol=1e-4)
    np.testing.assert_allclose(found, of_logs, rtol=1e-4)


def test_the_temperature_of_the_recipe_may_divide_before_or_after_the_average() -> None:
    one, other = torch.randn(5, 3) * 3, torch.randn(5, 3) + 7
    before = ((one / 2).log_softmax(1) + (other / 2).log_softmax(1)) / 2
    after = (one.log_softmax(1) + other.log_softmax(1)) / 2 / 2
    torch.testing.assert_close(before.softmax(1), after.softmax(1))


@pytest.mark.parametrize("scale", [0.7, 1.0, 3.0])
def test_calibration_undoes_the_scale_of_the_logits(scale: float) -> None:
    """Models of one opinion that differ in confidence alone answer alike once calibrated."""
    probabilities, labels = labelled(scale)
    model = Linear(1.0)
    weight, bias = model.head.weight.clone(), model.head.bias.clone()
    temperature = calibrate(model, probabilities, labels)
    assert temperature == pytest.approx(scale, rel=0.15)
    torch.testing.assert_close(model.head.weight * temperature, weight)
    torch.testing.assert_close(model.head.bias * temperature, bias)
    model = Linear(1.0)
    assert calibrate(model, softmax(np.log(probabilities) / temperature), labels) == pytest.approx(
        1, abs=0.01
    )


def test_a_confident_model_does_not_rule_the_calibrated_average() -> None:
    """Raw logits would follow the model with the larger ones, even if it knows less."""
    probabilities, labels = labelled(1.0)
    noise = np.random.default_rng(1).normal(0, 2, probabilities.shape).astype(np.float32)
    loud = softmax(4 * (np.log(probabilities) + noise))
    temperature = calibrate(Linear(1.0), loud, labels)
    quiet = softmax(np.log(np.maximum(loud, 1e-12)) / temperature)
    truth = probabilities.argmax(1)
    alike = [(average([probabilities, p]).argmax(1) == truth).mean() for p in (loud, quiet)]
    assert alike[0] < 0.75
    assert alike[1] > 0.85


@torch.no_grad()
def test_the_teacher_says_the_mean_of_its_models_logits(parts) -> None:
    student, _, images, _ = parts
    models = [Linear(1.0), Linear(5.0)]
    teacher = FrozenTeacher([FrozenModel(model, 32, student) for model in models])
    output = teacher(normalise(images, student), torch.arange(4))
    expected = [model((images - 0.5) / 0.5) for model in models]
    torch.testing.assert_close(output.logits, (expected[0] + expected[1]) / 2)
    assert output.features == []


@torch.no_grad()
def test_soft_labels_are_those_of_the_tile_whatever_the_view_shows(parts) -> None:
    student, _, images, _ = parts
    table = torch.randn(10, 3)
    teacher = FrozenTeacher([], table)
    tiles = torch.tensor([7, 2, 2, 9])
    for view in (normalise(images, student), images[:, :, :16, :16]):
        assert torch.equal(teacher(view, tiles).logits, table[tiles])


def test_no_gradient_reaches_a_model_of_the_teacher(parts) -> None:
    student, _, images, _ = parts
    model = Linear(1.0)
    teacher = FrozenTeacher([FrozenModel(model, 32, student)])
    loss = F.cross_entropy(
        teacher(normalise(images, student), torch.arange(4)).logits,
        torch.zeros(4, dtype=torch.long),
    )
    assert not loss.requires_grad


def test_a_model_whose_logits_cannot_be_divided_is_refused() -> None:
    with pytest.raises(EdgelungError, match=r"deit_tiny_distilled.* has no linear classifier"):
        check_member(timm.create_model("deit_tiny_distilled_patch16_224", num_classes=3))
    check_member(timm.create_model("test_vit", num_classes=3))
