"""Read a run's student: safetensors weights and config.json, without torch."""

import json
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from safetensors.numpy import load_file

from edgelung.core.errors import EdgelungError, one_line

Weights = dict[str, npt.NDArray[np.float32]]


@dataclass(frozen=True)
class Student:
    """A distilled DeiT: timm's `VisionTransformerDistilled`, by its timm parameter names.

    `mean` and `std` are per channel, for pixels scaled to 0…1; `size` and `patch` in pixels.
    """

    architecture: str
    classes: tuple[str, ...]
    size: int
    patch: int
    heads: int
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    weights: Weights

    @property
    def width(self) -> int:
        """D, the length of a token."""
        return int(self.weights["pos_embed"].shape[-1])

    @property
    def depth(self) -> int:
        """Number of transformer blocks."""
        return 1 + max(int(k.split(".")[1]) for k in self.weights if k.startswith("blocks."))

    @property
    def tokens(self) -> int:
        """Class token, distillation token and patches."""
        return 2 + (self.size // self.patch) ** 2


def read_student(run: Path) -> Student:
    """Read the student of a run folder; raises EdgelungError where it is no distilled DeiT."""
    config_path, weights_path = run / "config.json", run / "model.safetensors"
    for path in (config_path, weights_path):
        if not path.is_file():
            raise EdgelungError(
                f"{run} is no finished run ({path.name} is missing); expected a folder that "
                "`edgelung train` completed (continue it with --resume)"
            )
    try:
        config = json.loads(config_path.read_text(encoding="utf-8"))
        weights = {k: v.astype(np.float32) for k, v in load_file(weights_path).items()}
        pretrained, own = config["pretrained_cfg"], config["edgelung"]
        student = Student(
            architecture=config["architecture"],
            classes=tuple(config["label_names"]),
            size=int(pretrained["input_size"][-1]),
            patch=int(own["patch_size"]),
            heads=int(own["num_heads"]),
            mean=tuple(pretrained["mean"]),
            std=tuple(pretrained["std"]),
            weights=weights,
        )
    except Exception as error:  # safetensors and json raise types of their own
        raise EdgelungError(f"cannot read the student in {run}: {one_line(error)}") from error
    if student.width % student.heads:
        raise EdgelungError(f"{run}: {student.heads} heads do not divide {student.width} channels")
    if "dist_token" not in weights or "head_dist.weight" not in weights:
        raise EdgelungError(
            f"{student.architecture} in {run} has no distillation token; expected a distilled DeiT"
        )
    if weights["pos_embed"].shape[1] != student.tokens:
        raise EdgelungError(
            f"{run}: {weights['pos_embed'].shape[1]} positions for {student.tokens} tokens of a "
            f"{student.size} px tile; the weights and config.json do not belong together"
        )
    return student
