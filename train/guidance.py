"""Feature guidance: the features of trained models teach a transformer that starts from scratch.

Few tiles do not teach a transformer to see locally, but a CNN trained on them already does, and so
does a ViT trained on many pictures. So the student's patch tokens also predict the feature maps of
the teacher's models (Li et al., 'Locality Guidance for Improving Vision Transformers on Tiny
Datasets', ECCV 2022), and the mean of its class and distillation token predicts what their
classifiers are given. The projections that make these predictions are dropped after training.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
import torch.nn.functional as F
from timm.models.vision_transformer import VisionTransformer
from torch import Tensor, nn

from edgelung.core.errors import EdgelungError
from edgelung.train.distributed import mean_over_processes
from edgelung.train.models import Model
from edgelung.train.student import StudentLogits, StudentModule
from edgelung.train.vit_probe import VIT_DEPTHS, last_blocks

# What guides the tokens at a fraction of the student's depth: of a CNN the maps of a stride. Of a
# ViT it is the patch tokens at the same fraction of its own depth.
CNN_STRIDES = {2 / 3: 16, 1.0: 32}


@dataclass(frozen=True)
class GuidingLayer:
    """A module of a teacher's model whose output guides the student's tokens at a depth."""

    module: nn.Module
    channels: int
    depth: float  # fraction of the student's depth


@dataclass(frozen=True)
class FeatureModules:
    """The modules of a teacher's model whose features guide.

    `prefix_tokens`: of a ViT, the number of tokens before those of the patches; None for a CNN.
    """

    layers: list[GuidingLayer]
    classifier: nn.Linear  # its input is the feature of the whole view
    prefix_tokens: int | None = None


class Features(NamedTuple):
    """Features of a view in one model of the teacher, or the student's predictions of them."""

    maps: list[Tensor]  # (B, C, H, W) for each layer; predicted ones (B, patches, C), row by row
    view: Tensor  # (B, C), the classifier's input


class GuidedOutput(NamedTuple):
    """Logits of a guided student, and its predictions of the features of each guiding model."""

    logits: StudentLogits
    features: list[Features]
    grid: tuple[int, int]  # rows and columns of patches


class GuidedStudent(StudentModule):
    """A student with the projections from its tokens to the features of the guiding models."""

    def __init__(self, model: Model, guides: Sequence[FeatureModules]) -> None:
        super().__init__(model)
        width, depth = model.embed_dim, len(model.blocks)
        layers = [layer for guide in guides for layer in guide.layers]
        self._blocks = [round(depth * layer.depth) - 1 for layer in layers]
        self._map_counts = [len(guide.layers) for guide in guides]
        self._view_channels = [guide.classifier.in_features for guide in guides]
        self.to_maps = nn.ModuleList(_projection(width, layer.channels) for layer in layers)
        self.to_view = _projection(width, sum(self._view_channels))

    def answer(self, outputs: Sequence[Tensor], images: Tensor) -> GuidedOutput:
        """Predict logits and features from the tokens (B, 2 + patches, D) after each block."""
        logits = StudentLogits(*self.logits(outputs[-1]))
        maps = iter(
            to_map(outputs[block][:, 2:])
            for to_map, block in zip(self.to_maps, self._blocks, strict=True)
        )
        views = self.to_view(outputs[-1][:, :2].mean(dim=1)).split(self._view_channels, dim=1)
        features = [
            Features([next(maps) for _ in range(count)], view)
            for count, view in zip(self._map_counts, views, strict=True)
        ]
        patch = self.model.patch_embed.patch_size[0]
        return GuidedOutput(
            logits, features, (images.shape[-2] // patch, images.shape[-1] // patch)
        )


def guidance_loss(student: GuidedOutput, teacher: Sequence[Features]) -> Tensor:
    """Mean over the guiding models of the error of their predicted maps plus that of the view.

    Errors are mean squares; that of the maps is their mean. Targets are standardised per channel
    over the batch, so either term is about 1 before anything is learnt.
    """
    losses = [
        _feature_loss(predicted, features, student.grid)
        for predicted, features in zip(student.features, teacher, strict=True)
    ]
    return torch.stack(losses).mean()


def _feature_loss(predicted: Features, features: Features, grid: tuple[int, int]) -> Tensor:
    maps = [
        F.mse_loss(guess.float(), map_targets(target, grid))
        for guess, target in zip(predicted.maps, features.maps, strict=True)
    ]
    view = F.mse_loss(predicted.view.float(), standardise(features.view.float()))
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


def feature_modules(model: Model) -> FeatureModules:
    """The modules of a teacher's model that guide: of a CNN by timm's `feature_info`, or of a ViT.

    Raises EdgelungError if the model has none: it is neither a ViT nor a CNN of the usual five
    stages, or has no linear classifier.
    """
    classifier = model.get_classifier()
    layers, prefix = None, None
    if isinstance(model, VisionTransformer):
        blocks, prefix = model.blocks, model.num_prefix_tokens
        layers = [
            GuidingLayer(blocks[block], model.embed_dim, depth)
            for block, depth in zip(last_blocks(model), VIT_DEPTHS, strict=True)
        ]
    else:
        last = {entry["reduction"]: entry for entry in getattr(model, "feature_info", [])}
        if all(stride in last for stride in CNN_STRIDES.values()):
            layers = [
                GuidingLayer(
                    model.get_submodule(last[stride]["module"]), last[stride]["num_chs"], depth
                )
                for depth, stride in CNN_STRIDES.items()
            ]
    if layers is None or not isinstance(classifier, nn.Linear):
        raise EdgelungError(
            f"teacher {model.pretrained_cfg['architecture']} has no feature maps of strides "
            f"{' and '.join(map(str, CNN_STRIDES.values()))} before a linear classifier; expected "
            "a CNN, a ViT, or distill.guidance=0"
        )
    return FeatureModules(layers, classifier, prefix)


def _projection(width: int, channels: int) -> nn.Sequential:
    return nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels))
