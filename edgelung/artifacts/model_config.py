"""config.json beside a model's weights: what it is, in the form that timm reads."""

from msgspec import Struct

from edgelung.core.typed_json import Json


class PretrainedConfig(Struct, frozen=True, kw_only=True):
    """timm's `pretrained_cfg`, as far as a run needs it. Mean and std of pixels in 0…1."""

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
    """What the export needs and cannot read off the weights; None for other models."""

    num_heads: int | None = None
    patch_size: int | None = None  # pixels


class ModelConfig(Struct, frozen=True, kw_only=True):
    """config.json: `timm.create_model('local-dir:RUN')` reads it too."""

    architecture: str
    num_classes: int
    num_features: int
    label_names: list[str]
    model_args: dict[str, int]
    pretrained_cfg: PretrainedConfig
    edgelung: StudentShape
