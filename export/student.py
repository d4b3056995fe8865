"""Read a run's student: safetensors weights and config.json, without torch."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from edgelung.artifacts.run import RunFolder
from edgelung.core.errors import EdgelungError, one_line
from edgelung.evaluation.known import KnownTissue

Weights = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Student:
    """A distilled DeiT: timm's `VisionTransformerDistilled`, by its timm parameter names.

    `mean` and `std` are per channel, for pixels scaled to 0…1; `size` and `patch` in pixels.
    `known`: what its features of training tiles look like; its graphs then have the output `ood`.
    """

    architecture: str
    classes: tuple[str, ...]
    size: int
    patch: int
    heads: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights: Weights
    known: KnownTissue | None = None

    @property
    def width(self) -> int:
        """D, the number of channels of a token."""
        return int(self.weights["pos_embed"].shape[-1])

    @property
    def depth(self) -> int:
        """Number of transformer blocks."""
        return 1 + max(int(k.split(".")[1]) for k in self.weights if k.startswith("blocks."))

    @property
    def tokens(self) -> int:
        """T: class token, distillation token and patches."""
        return 2 + (self.size // self.patch) ** 2


def read_student(run: RunFolder) -> Student:
    """Read the student of a finished run.

    Raises:
        EdgelungError: if the run is not finished, or its student is not a distilled DeiT.
    """
    for path in (run.model_config_path(), run.weights_path()):
        if not path.is_file():
            raise EdgelungError(
                f"{run.path} is no finished run ({path.name} is missing); expected a folder that "
                "`edgelung train` completed (continue it with --resume)"
            )
    config = run.read_model_config()
    try:
        weights = {k: v.astype(np.float32) for k, v in load_file(run.weights_path()).items()}
    except Exception as error:  # safetensors raises its own type
        raise EdgelungError(f"cannot read {run.weights_path()}: {one_line(error)}") from error
    if "dist_token" not in weights or "head_dist.weight" not in weights:
        raise EdgelungError(
            f"{config.architecture} in {run.path} has no distillation token; expected a distilled "
            "DeiT"
        )
    shape, pretrained = config.edgelung, config.pretrained_cfg
    if shape.patch_size is None or shape.num_heads is None:
        raise EdgelungError(
            f"{run.model_config_path()} lacks the patch size or the number of heads; "
            "expected the config.json that `edgelung train` wrote"
        )
    student = Student(
        architecture=config.architecture,
        classes=tuple(config.label_names),
        size=pretrained.input_size[-1],
        patch=shape.patch_size,
        heads=shape.num_heads,
        mean=pretrained.mean,
        std=pretrained.std,
        weights=weights,
    )
    if student.width % student.heads:
        raise EdgelungError(
            f"{run.path}: {student.heads} heads do not divide {student.width} channels"
        )
    if weights["pos_embed"].shape[1] != student.tokens:
        raise EdgelungError(
            f"{run.path}: {weights['pos_embed'].shape[1]} positions for {student.tokens} tokens of "
            f"a {student.size} px tile; the weights and config.json do not belong together"
        )
    return student
