"""Feature guidance: the CNN shows a from-scratch transformer what lies where in the tile.

Few tiles do not teach a transformer to see locally, but a CNN trained on them already does. So the
student's patch tokens predict the teacher's feature maps as well (Li et al., 'Locality Guidance for
Improving Vision Transformers on Tiny Datasets', ECCV 2022); the projections that do so are thrown
away after training.
"""

from typing import Any

import torch
import torch.nn.functional as F
from timm.task import TokenDistillationTask
from timm.utils import unwrap_model
from torch import Tensor, nn

from edgelung.errors import EdgelungError
from edgelung.train.machine import mean_of_all
from edgelung.train.models import Model

STRIDES = (16, 32)  # teacher maps of these strides guide …
DEPTHS = (2 / 3, 1)  # … the tokens at these fractions of the student's depth
GUIDE = "guide"  # the student's attribute that holds the projections while it is trained


class GuidedDistillationTask(TokenDistillationTask):  # type: ignore[misc]  # timm is untyped
    """Eq. 8 + `guidance` · mean squared error between projected tokens and teacher features.

    `maps` are modules of the teacher and their channels (see `feature_maps`). Targets are their
    outputs, resized to the student's grid of patches and standardised per channel over the batch,
    so the term is 1 where nothing has been learnt.
    """

    def __init__(
        self,
        student: Model,
        teacher: nn.Module,
        maps: list[tuple[nn.Module, int]],
        guidance: float,
        **options: Any,
    ) -> None:
        blocks = [student.blocks[round(len(student.blocks) * depth) - 1] for depth in DEPTHS]
        width = student.embed_dim
        guides = [
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, channels)) for _, channels in maps
        ]
        setattr(student, GUIDE, nn.ModuleList(guides))
        super().__init__(student, teacher, **options)
        self.guidance = guidance
        self._watched = [*blocks, *(module for module, _ in maps), student.patch_embed]

    def forward(self, input: Tensor, target: Tensor) -> dict[str, Tensor]:
        """The parts of the loss, `guidance_loss` among them."""
        seen: dict[nn.Module, Tensor] = {}

        def keep(module: nn.Module, inputs: object, output: Tensor) -> None:
            seen[module] = output

        hooks = [module.register_forward_hook(keep) for module in self._watched]
        try:
            result: dict[str, Tensor] = super().forward(input, target)
        finally:
            for hook in hooks:
                hook.remove()
        outputs = [seen[module] for module in self._watched]
        tokens, maps = outputs[: len(STRIDES)], outputs[len(STRIDES) : -1]
        student = unwrap_model(self.trainable_module)
        _, height, width, _ = seen[student.patch_embed].shape
        grid = (height, width)
        losses = []
        for guide, own, features in zip(getattr(student, GUIDE), tokens, maps, strict=True):
            wanted = targets(features, grid)
            losses.append(F.mse_loss(guide(own[:, 2:]).float(), wanted))
        result["guidance_loss"] = torch.stack(losses).mean()
        result["loss"] = result["loss"] + self.guidance * result["guidance_loss"]
        return result


def targets(features: Tensor, grid: tuple[int, int]) -> Tensor:
    """Feature map (B, C, H, W) → standardised float32 targets (B, patches, C), row by row."""
    maps = F.interpolate(features.float(), grid, mode="bilinear", antialias=True)
    flat = maps.flatten(2).transpose(1, 2)  # (B, patches, C)
    mean = mean_of_all(flat.mean(dim=(0, 1)))
    variance = mean_of_all((flat - mean).square().mean(dim=(0, 1)))
    return (flat - mean) / (variance.sqrt() + 1e-5)


def feature_maps(teacher: Model) -> list[tuple[nn.Module, int]]:
    """The module of each stride in STRIDES and its channels: timm's last of that stride.

    Raises EdgelungError where the teacher has none: it is no CNN of the usual five stages.
    """
    last = {entry["reduction"]: entry for entry in getattr(teacher, "feature_info", [])}
    if any(stride not in last for stride in STRIDES):
        raise EdgelungError(
            f"teacher {teacher.pretrained_cfg['architecture']} has no feature maps of strides "
            f"{' and '.join(map(str, STRIDES))}; expected a CNN, or distill.guidance=0"
        )
    return [
        (teacher.get_submodule(last[stride]["module"]), last[stride]["num_chs"])
        for stride in STRIDES
    ]


def drop_guide(student: Model) -> Model:
    """The student as timm knows it, without the projections."""
    if hasattr(student, GUIDE):
        delattr(student, GUIDE)
    return student
