"""The teacher in distillation: trained models, or a table of soft labels, that are not trained on.

Several models answer as one: each one's logits are divided by its own temperature, which is fitted
on the validation tiles once the model is trained (`calibrate`), then averaged. So no model weighs
more because it was trained to be more confident. After the softmax this is the normalised geometric
mean of the calibrated probabilities: whether logits or log-probabilities are averaged makes no
difference, since they differ by a number per tile, which the softmax ignores. For the same reason
`distill.temperature` may divide before or after the average. A single model is left as trained.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgelung.core.errors import EdgelungError
from edgelung.evaluation.metrics import fit_temperature
from edgelung.train.guidance import FeatureModules, Features
from edgelung.train.models import Model, patch_size
from edgelung.train.preprocess import renormalise, resize_views

Probabilities = npt.NDArray[np.float32]
Labels = npt.NDArray[np.int64]

SMALLEST = 1e-12  # probability; its logarithm is finite


class TeacherOutput(NamedTuple):
    """What a teacher says of a batch."""

    logits: Tensor  # float32 (B, classes)
    features: list[Features]  # of each guiding model


class FrozenModel(nn.Module):
    """A trained model that is shown the student's views, at its own size and normalisation.

    A view that fits is left as it is: a window, which is small, is neither enlarged nor shrunk to
    the scale that the model was trained at. A ViT is shown whole patches.
    """

    def __init__(
        self, model: Model, size: int, student: Model, guide: FeatureModules | None = None
    ) -> None:
        super().__init__()
        self.model = model.eval()
        self.size = size
        self._patch = patch_size(model)
        self._student = (student,)  # a tuple: the student is no part of the teacher
        self._guide = guide

    @property
    def guides(self) -> bool:
        """True if its features guide the student."""
        return self._guide is not None

    @torch.no_grad()
    def forward(self, images: Tensor) -> tuple[Tensor, Features | None]:
        """Logits float32 (B, classes) of views (B, 3, H, W) that are normalised for the student.

        With `guide`, also the features that guide.
        """
        images = renormalise(images, self._student[0], self.model)
        side = min(self.size, images.shape[-1])
        images = resize_views(images, max(side - side % self._patch, self._patch))
        if self._guide is None:
            return self.model(images).float(), None
        seen: dict[nn.Module, Tensor] = {}

        def keep_output(module: nn.Module, inputs: object, output: Tensor) -> None:
            seen[module] = output

        def keep_input(module: nn.Module, inputs: tuple[Tensor]) -> None:
            seen[module] = inputs[0]

        layers, classifier = self._guide.layers, self._guide.classifier
        hooks = [layer.module.register_forward_hook(keep_output) for layer in layers]
        hooks.append(classifier.register_forward_pre_hook(keep_input))
        try:
            logits = self.model(images).float()
        finally:
            for hook in hooks:
                hook.remove()
        grid = images.shape[-1] // self._patch
        maps = [self._map(seen[layer.module], grid) for layer in layers]
        return logits, Features(maps, seen[classifier])

    def _map(self, output: Tensor, grid: int) -> Tensor:
        """The output of a layer as a map (B, C, H, W)."""
        assert self._guide is not None
        if self._guide.prefix_tokens is None:
            return output
        tokens = output[:, self._guide.prefix_tokens :]  # (B, grid · grid, C)
        # As the next layer reads them: a few tokens with large norms would rule the scale.
        tokens = F.layer_norm(tokens, tokens.shape[-1:])
        return tokens.transpose(1, 2).reshape(len(tokens), -1, grid, grid)


class FrozenTeacher(nn.Module):
    """What teaches the student: the average of trained models, or soft labels of whole tiles.

    Args:
        models: the models; with `soft_labels` only their features teach.
        soft_labels: float32 (N, classes), logits of all tiles of the run.
    """

    def __init__(self, models: Sequence[FrozenModel], soft_labels: Tensor | None = None) -> None:
        super().__init__()
        self.models = nn.ModuleList(models)
        self._soft_labels = soft_labels

    def forward(self, images: Tensor, tiles: Tensor) -> TeacherOutput:
        """What the teacher says of views (B, 3, H, W) that are normalised for the student.

        `tiles`: int64 (B,), the index of each view's tile in the run.
        """
        outputs = [model(images) for model in self.models]
        features = [found for _, found in outputs if found is not None]
        if self._soft_labels is not None:
            return TeacherOutput(self._soft_labels[tiles].to(images.device), features)
        return TeacherOutput(torch.stack([logits for logits, _ in outputs]).mean(dim=0), features)

    def features(self, images: Tensor) -> list[Features]:
        """The features of each guiding model for views (B, 3, H, W); other models are not run."""
        outputs = [model(images) for model in self.models if model.guides]
        return [found for _, found in outputs if found is not None]


@torch.no_grad()
def calibrate(model: Model, probabilities: Probabilities, labels: Labels) -> float:
    """Divide a model's logits by the temperature that fits its probabilities; returns it.

    Its classifier is changed, so that the saved model is calibrated.

    Args:
        model: a timm model with a linear classifier.
        probabilities: float32 (N, classes), what it predicts for the validation tiles.
        labels: int64 (N,), their classes.
    """
    temperature = fit_temperature(np.log(np.maximum(probabilities, SMALLEST)), labels)
    classifier: nn.Linear = model.get_classifier()
    for parameter in classifier.parameters():
        parameter.div_(temperature)
    return temperature


def average(probabilities: Sequence[Probabilities]) -> Probabilities:
    """The normalised geometric mean of probabilities (N, classes): see the module's docstring."""
    logits = np.mean([np.log(np.maximum(part, SMALLEST)) for part in probabilities], axis=0)
    return softmax(logits)


def softmax(logits: npt.NDArray[np.float32]) -> Probabilities:
    """Probabilities float32 (N, classes) of logits (N, classes)."""
    return torch.from_numpy(logits).float().softmax(dim=1).numpy()


def check_member(model: Model) -> None:
    """Raise EdgelungError unless the logits of a model can be divided by a temperature."""
    if not isinstance(model.get_classifier(), nn.Linear):
        raise EdgelungError(
            f"teacher {model.pretrained_cfg['architecture']} has no linear classifier, which a "
            "probe or an average of several models needs; expected another model"
        )
