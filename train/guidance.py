"""Feature guidance: a CNN's features teach a transformer that starts from scratch.

Few tiles do not teach a transformer to see locally, but a CNN trained on them already does. So the
student's patch tokens also predict the teacher's feature maps (Li et al., 'Locality Guidance for
Improving Vision Transformers on Tiny Datasets', ECCV 2022), and the mean of its class and
distillation token predicts what the teacher's classifier is given. The projections that make these
predictions are dropped after training.
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from edgelung.core.errors import EdgelungError
from edgelung.train.distributed import mean_over_processes
from edgelung.train.models import Model
from edgelung.train.preprocess import renormalise, resize_views
from edgelung.train.student import StudentLogits, StudentModule

STRIDES = (16, 32)  # teacher maps of these strides guide …
DEPTHS = (2 / 3, 1)  # … the tokens at these fractions of the student's depth


@dataclass(frozen=True)
class FeatureModules:
    """Modules of a teacher whose features guide: one per stride in STRIDES, and the classifier."""

    maps: list[nn.Module]
    map_channels: list[int]
    classifier: nn.Linear  # its input is the feature of the whole view


class TeacherOutput(NamedTuple):
    """What a teacher says of a batch."""

    logits: Tensor  # float32 (B, classes)
    maps: list[Tensor]  # (B, C, H, W) for each of STRIDES; empty without guidance
    view: Tensor | None  # (B, C), the classifier's input


class GuidedOutput(NamedTuple):
    """Logits of a guided student, and its predictions of the teacher's features."""

    logits: StudentLogits
    maps: list[Tensor]  # (B, patches, C) for each of STRIDES, row by row
    view: Tensor  # (B, C)
    grid: tuple[int, int]  # rows and columns of patches


class GuidedStudent(StudentModule):
    """A student with the projections from its tokens to the teacher's features."""

    def __init__(self, model: Model, features: FeatureModules) -> None:
        super().__init__(model)
        width, depth = model.embed_dim, len(model.blocks)
        self._guided_blocks = [round(depth * fraction) - 1 for fraction in DEPTHS]
        self.to_maps = nn.ModuleList(_projection(width, size) for size in features.map_channels)
        self.to_view = _projection(width, features.classifier.in_features)

    def forward(self, images: Tensor) -> GuidedOutput:
        """Predict logits and teacher features from normalised images (B, 3, H, W)."""
        outputs = self.block_outputs(images)
        logits = StudentLogits(*self.logits(outputs[-1]))
        tokens = [outputs[index] for index in self._guided_blocks]  # (B, 2 + patches, D) each
        maps = [to_map(t[:, 2:]) for to_map, t in zip(self.to_maps, tokens, strict=True)]
        view = self.to_view(tokens[-1][:, :2].mean(dim=1))
        patch = self.model.patch_embed.patch_size[0]
        return GuidedOutput(
            logits, maps, view, (images.shape[-2] // patch, images.shape[-1] // patch)
        )


class FrozenTeacher(nn.Module):
    """A trained teacher that is shown the student's views, at its own size and normalisation.

    A view that is smaller than the teacher's input is not enlarged. With `features` the output
    holds the features that guide.
    """

    def __init__(
        self, teacher: Model, size: int, student: Model, features: FeatureModules | None = None
    ) -> None:
        super().__init__()
        self.model = teacher.eval().requires_grad_(False)
        self.size = size
        self._student = (student,)  # a tuple: the student is no part of the teacher
        self._features = features

    @torch.no_grad()
    def forward(self, images: Tensor) -> TeacherOutput:
        """What the teacher says of views (B, 3, H, W) that are normalised for the student."""
        images = renormalise(images, self._student[0], self.model)
        images = resize_views(images, min(self.size, images.shape[-1]))
        if self._features is None:
            return TeacherOutput(self.model(images).float(), [], None)
        seen: dict[nn.Module, Tensor] = {}

        def keep_output(module: nn.Module, inputs: object, output: Tensor) -> None:
            seen[module] = output

        def keep_input(module: nn.Module, inputs: tuple[Tensor]) -> None:
            seen[module] = inputs[0]

        hooks = [module.register_forward_hook(keep_output) for module in self._features.maps]
        hooks.append(self._features.classifier.register_forward_pre_hook(keep_input))
        try:
            logits = self.model(images).float()
        finally:
            for hook in hooks:
                hook.remove()
        maps = [seen[module] for module in self._features.maps]
        return TeacherOutput(logits, maps, seen[self._features.classifier])


def guidance_loss(student: GuidedOutput, teacher: TeacherOutput) -> Tensor:
    """Mean squared error of the predicted maps (mean over strides) plus that of the view feature.

    Targets are standardised per channel over the batch, so either term is about 1 before anything
    is learnt.
    """
    assert teacher.view is not None
    maps = [
        F.mse_loss(predicted.float(), map_targets(features, student.grid))
        for predicted, features in zip(student.maps, teacher.maps, strict=True)
    ]
    view = F.mse_loss(student.view.float(), standardise(teacher.view.float()))
    return torch.stack(maps).mean() + view


def map_targets(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Feature map (B, C, H, W) → standardised float32 targets (B, patches, C), row by row."""
    maps = F.interpolate(features.float(), grid, mode="bilinear", antialias=True)
    return standardise(maps.flatten(2).transpose(1, 2))


def standardise(values: Tensor) -> Tensor:
    """Shift and scale (…, C) so that each channel has mean 0 and variance 1 over all processes."""
    others = tuple(range(values.ndim - 1))
    mean = mean_over_processes(values.mean(dim=others))
    variance = mean_over_processes((values - mean).square().mean(dim=others))
    return (values - mean) / (variance.sqrt() + 1e-5)


def feature_modules(teacher: Model) -> FeatureModules:
    """The last module of each stride in STRIDES, from timm's `feature_info`, and the classifier.

    Raises EdgelungError if the teacher has none: it is not a CNN of the usual five stages.
    """
    last = {entry["reduction"]: entry for entry in getattr(teacher, "feature_info", [])}
    classifier = teacher.get_classifier()
    if any(stride not in last for stride in STRIDES) or not isinstance(classifier, nn.Linear):
        raise EdgelungError(
            f"teacher {teacher.pretrained_cfg['architecture']} has no feature maps of strides "
            f"{' and '.join(map(str, STRIDES))} before a linear classifier; expected a CNN, or "
            "distill.guidance=0"
        )
    return FeatureModules(
        [teacher.get_submodule(last[stride]["module"]) for stride in STRIDES],
        [last[stride]["num_chs"] for stride in STRIDES],
        classifier,
    )


def _projection(width: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels))
