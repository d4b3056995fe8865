"""Shared fixtures: a tiny student with a teacher, and drawn tiles with changed copies."""

import io
from collections.abc import Callable

import cv2
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from edgelung.tiles.reader import ReaderSpec, decode_tile, read_tile
from edgelung.train.groups.keypoints import SIZE
from edgelung.train.models import Model, create_student
from edgelung.train.recipe import Student
from edgelung.train.synthetic import write_dataset


class MeanColourTeacher(nn.Module):
    """Logits from the mean colour, and a record of what it was shown."""

    num_classes = 3
    pretrained_cfg = {"mean": (0.5, 0.5, 0.5), "std": (0.5, 0.5, 0.5)}  # noqa: RUF012

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(3, 3)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        self.seen = images
        return self.linear(images.mean(dim=(2, 3)))


Parts = tuple[Model, MeanColourTeacher, torch.Tensor, torch.Tensor]


@pytest.fixture
def parts() -> Parts:
    """A student in distillation, a teacher, images (4, 3, 32, 32) in 0…1 and labels (4,)."""
    torch.manual_seed(0)
    values = {"model": "deit_tiny_distilled_patch16_224", "epochs": 1, "lr": 1e-3, "size": 32}
    student = create_student(Student(**values), 3)
    student.set_distilled_training(True)
    return student, MeanColourTeacher(), torch.rand(4, 3, 32, 32), torch.tensor([0, 1, 2, 1])


@pytest.fixture(scope="session")
def sources(tmp_path_factory: pytest.TempPathFactory) -> list[np.ndarray]:
    """Twelve tiles of 224 px, each of another piece of (drawn) tissue."""
    folder = write_dataset(
        tmp_path_factory.mktemp("drawn") / "tiles", sources=4, tiles_per_source=1, size=SIZE
    )
    paths = sorted(folder.rglob("*.jpeg"))
    assert len(paths) == 12
    return [read_tile(path, ReaderSpec(size=SIZE)) for path in paths]


Change = Callable[[np.ndarray, float, float, bool], np.ndarray]


@pytest.fixture(scope="session")
def changed() -> Change:
    """What LC25000's augmentation does to a tile, then another white balance and a strong JPEG."""

    def change(tile: np.ndarray, angle: float, scale: float, mirror: bool) -> np.ndarray:
        matrix = cv2.getRotationMatrix2D((SIZE / 2, SIZE / 2), angle, scale)
        turned = cv2.warpAffine(tile, matrix, (SIZE, SIZE), borderMode=cv2.BORDER_REFLECT)
        if mirror:
            turned = turned[:, ::-1]
        tinted = np.clip(turned * np.array([1.05, 0.95, 0.9]) + 4, 0, 255).astype(np.uint8)
        buffer = io.BytesIO()
        Image.fromarray(tinted).save(buffer, "JPEG", quality=60)
        return decode_tile(buffer.getvalue(), ReaderSpec(size=SIZE))

    return change
