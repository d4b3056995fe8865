"""Feature guidance: the CNN shows a from-scratch transformer what lies where in the tile.

Few tiles do not teach a transformer to see locally, but a CNN trained on them already does. So the
student's patch tokens predict the teacher's feature maps as well (Li et al., 'Locality Guidance for
Improving Vision Transformers on Tiny Datasets', ECCV 2022), and its two answering tokens what the
teacher's classifier sees of the whole view. The projections that do so are thrown away after
training.
"""

from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from timm.task import TokenDistillationTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from edgelung.core.errors import EdgelungError
from edgelung.train.distributed import mean_of_all
from edgelung.train.models import Model

STRIDES = (16, 32)  # teacher maps of these strides guide …
DEPTHS = (2 / 3, 1)  # … the tokens at these fractions of the student's depth
GUIDE = "guide"  # the student's attribute that holds the projections while it is trained


@dataclass(frozen=True)
class Features:
    """What of a teacher guides: modules with feature maps and their channels; its classifier."""

    maps: list[tuple[nn.Module, int]]
    classifier: nn.Linear


class GuidedDistillationTask(TokenDistillationTask):  # type: ignore[misc]  # timm is untyped
    """`answers` · Eq. 8 + `guidance` · (places + whole), mean squared errors.

    Places: projected patch tokens against the teacher's feature maps, resized to the student's grid
    of patches. Whole: the mean of class and distillation token, projected, against what the
    teacher's classifier is given. All targets are standardised per channel over the batch, so each
    term is 1 where nothing has been learnt. `answers` may be set from step to step: at 0 features
    alone teach.
    """

    answers = 1.0

    def __init__(
        self,
        student: Model,
        teacher: nn.Module,
        features: Features,
        guidance: float,
        **options: Any,
    ) -> None:
        self._blocks = [student.blocks[round(len(student.blocks) * d) - 1] for d in DEPTHS]
        width = student.embed_dim
        sizes = [*(size for _, size in features.maps), features.classifier.in_features]
        guides = [nn.Sequential(nn.LayerNorm(width), nn.Linear(width, size)) for size in sizes]
        setattr(student, GUIDE, nn.ModuleList(guides))
        super().__init__(student, teacher, **options)
        self.guidance = guidance
        self._maps = [module for module, _ in features.maps]
        self._classifier = features.classifier
        self._patches = student.patch_embed

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The parts of the loss, `guidance_loss` among them."""
        seen: dict[nn.Module, Tensor] = {}

        def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
            seen[module] = output

        def keep_input(module: nn.Module, inputs: tuple[Tensor]) -> None:
            seen[module] = inputs[0]

        watched = (*self._blocks, *self._maps, self._patches)
        hooks = [module.register_forward_hook(keep) for module in watched]
        hooks.append(self._classifier.register_forward_pre_hook(keep_input))
        try:
            result: dict[str, Tensor] = super().forward(input, target)
        finally:
            for hook in hooks:
                hook.remove()
        *guides, guide = getattr(unwrap_model(self.trainable_module), GUIDE)
        _, height, width, _ = seen[self._patches].shape
        tokens = [seen[block] for block in self._blocks]  # (B, 2 + patches, D) each
        places = [
            F.mse_loss(to_map(own[:, 2:]).float(), targets(seen[module], (height, width)))
            for to_map, own, module in zip(guides, tokens, self._maps, strict=True)
        ]
        whole = F.mse_loss(
            guide(tokens[-1][:, :2].mean(dim=1)).float(),
            standardised(seen[self._classifier].float()),
        )
        result["guidance_loss"] = torch.stack(places).mean() + whole
        result["loss"] = self.answers * result["loss"] + self.guidance * result["guidance_loss"]
        return result


def targets(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Feature map (B, C, H, W) → standardised float32 targets (B, patches, C), row by row."""
    maps = F.interpolate(features.float(), grid, mode="bilinear", antialias=True)
    return standardised(maps.flatten(2).transpose(1, 2))


def standardised(values: Tensor) -> Tensor:
    """Of (…, C): each channel with mean 0 and variance 1 over all else, and over all processes."""
    rest = tuple(range(values.ndim - 1))
    mean = mean_of_all(values.mean(dim=rest))
    variance = mean_of_all((values - mean).square().mean(dim=rest))
    return (values - mean) / (variance.sqrt() + 1e-5)


def teacher_features(teacher: Model) -> Features:
    """Of each stride in STRIDES timm's last module, and the classifier.

    Raises EdgelungError where the teacher has none: it is no CNN of the usual five stages.
    """
    last = {entry["reduction"]: entry for entry in getattr(teacher, "feature_info", [])}
    classifier = teacher.get_classifier()
    if any(stride not in last for stride in STRIDES) or not isinstance(classifier, nn.Linear):
        raise EdgelungError(
            f"teacher {teacher.pretrained_cfg['architecture']} has no feature maps of strides "
            f"{' and '.join(map(str, STRIDES))} before a linear classifier; expected a CNN, or "
            "distill.guidance=0"
        )
    maps = [
        (teacher.get_submodule(last[stride]["module"]), last[stride]["num_chs"])
        for stride in STRIDES
    ]
    return Features(maps, classifier)


def drop_guide(student: Model) -> Model:
    """The student as timm knows it, without the projections."""
    if hasattr(student, GUIDE):
        delattr(student, GUIDE)
    return student
