"""config.json beside the weights of a model: its architecture, in the format of timm."""

from msgspec import Struct

from edgelung.core.typed_json import Json


class PretrainedConfig(Struct, frozen=True, kw_only=True):
    """The fields of timm's `pretrained_cfg` that a run needs. Mean and std of pixels in 0…1."""

    input_size: tuple[int, int, int]  # channels, height, width
    fixed_input_size: bool
    interpolation: str
    crop_pct: float
    crop_mode: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    num_classes: int
    pool_size: Json
    first_conv: str | list[str]
    classifier: str | list[str]


class StudentShape(Struct, frozen=True, kw_only=True, omit_defaults=True):
    """Values that the export cannot derive from the weights; None for models other than DeiT."""

    num_heads: int | None = None
    patch_size: int | None = None  # pixels


class ModelConfig(Struct, frozen=True, kw_only=True):
    """config.json. `timm.create_model('local-dir:RUN')` can read it.

    Not so for a ViT with a probe: its classifier reads other features (`train/vit_probe.py`).
    """

    architecture: str
    num_classes: int
    num_features: int
    label_names: list[str]
    model_args: dict[str, int]
    pretrained_cfg: PretrainedConfig
    edgelung: StudentShape
