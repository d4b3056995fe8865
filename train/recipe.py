"""Recipes: every setting of a run, typed, validated, overridable.

A recipe is a TOML file, in `recipes/` or elsewhere. With `extends = "quick"` it holds only what
differs from that shipped recipe. `--set student.lr=1e-4` overrides a field.
"""

from collections.abc import Sequence
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from edgelung.artifacts.run import ROLES
from edgelung.core.errors import EdgelungError
from edgelung.core.typed_json import Json, parse_toml

Fraction = Annotated[float, Field(ge=0, le=1)]
Pixels = Annotated[int, Field(ge=16, le=1024)]


class _Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Split(_Section):
    """Shares of the tiles, split by whole groups or, as the paper does, at random.

    In a random split a test tile may have a near copy in training; the run reports how many do.
    """

    by: Literal["group", "random"] = "group"
    seed: int = Field(0, ge=0)  # a separate seed: runs of several seeds share a test set
    train: Fraction = 0.70
    val: Fraction = 0.15
    test: Fraction = 0.15

    @model_validator(mode="after")
    def _sum(self) -> "Split":
        if (
            abs(self.train + self.val + self.test - 1) > 1e-6
            or min(self.train, self.val, self.test) <= 0
        ):
            raise ValueError("train, val and test must be above 0 and add up to 1")
        return self


class Augment(_Section):
    """Random geometry and colour of every view of a tile (see `augment.py`)."""

    hflip: Fraction = 0.0  # probability
    vflip: Fraction = 0.0  # probability
    rotate: float = Field(0.0, ge=0, le=180)  # degrees, ±
    scale: tuple[float, float] = (1.0, 1.0)  # side of the crop as a fraction of the tile's side
    translate: Fraction = 0.0  # fraction of the side, ±
    shear: Fraction = 0.0  # tangent of the shear angle, ±
    stain: float = Field(0.0, ge=0, le=1)  # σ of the haematoxylin/eosin amounts
    light: float = Field(0.0, ge=0, le=1)  # σ of contrast; half of it for brightness

    @model_validator(mode="after")
    def _ordered(self) -> "Augment":
        if not 0.1 <= self.scale[0] <= self.scale[1] <= 2:
            raise ValueError("scale must be [low, high] with 0.1 ≤ low ≤ high ≤ 2")
        return self


class _Training(_Section):
    """The settings of a training."""

    model: str | tuple[str, ...]  # timm name; several for a teacher of several models
    weights: str = "none"  # none | hub | pypi | a file | timm's name (docs/reference/weights.md)
    size: Pixels = 224  # input, pixels
    epochs: int = Field(ge=0)
    batch_size: int = Field(64, ge=2)  # BatchNorm needs two tiles
    optimizer: str = "adamw"  # timm name
    lr: float = Field(gt=0)
    min_lr: float = Field(0.0, ge=0)  # end of the cosine
    schedule: Literal["cosine", "constant"] = "cosine"
    warmup_epochs: float = Field(0.0, ge=0)
    weight_decay: float = Field(0.0, ge=0)
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.0
    clip_norm: float = Field(0.0, ge=0)  # 0: off
    ema_decay: Annotated[float, Field(ge=0, lt=1)] = 0.0  # per step; 0: off


class Schedule(_Training):
    """How one model is trained."""

    model: str  # timm name


class _Teaching(_Training):
    """The settings of a teacher's model.

    A probe leaves the model frozen and fits a linear classifier to its features of `epochs` views
    of each training tile. Of the other settings it uses `weights`, `size` and `batch_size` alone.
    """

    lr: float = Field(1e-3, gt=0)
    fit: Literal["finetune", "probe"] = "finetune"
    guides: bool = True  # its features guide the student if `distill.guidance` is above 0


class Member(_Teaching, Schedule):
    """One model of the teacher."""

    model: str

    @property
    def name(self) -> str:
        """timm name without address and tag: `resnet18` of `hf_hub:timm/resnet18.a1_in1k`."""
        return _short_name(self.model)

    @model_validator(mode="after")
    def _views(self) -> "Member":
        if self.fit == "probe" and not self.epochs:
            raise ValueError(
                "a probe is fitted on one view of each tile or more: expected epochs=1"
            )
        return self


class Teacher(_Teaching):
    """One model, or several whose logits are averaged (see `teachers.py`).

    `settings.NAME` holds the fields in which the model NAME of the list differs from the others.
    """

    features: str = ""  # a file of tile features: a probe on them gives the soft labels
    settings: dict[str, dict[str, Json]] = {}

    @property
    def members(self) -> list[Member]:
        """The models, each with its own settings."""
        return [self._member(name) for name in self._models]

    @property
    def _models(self) -> tuple[str, ...]:
        return (self.model,) if isinstance(self.model, str) else self.model

    def _member(self, model: str) -> Member:
        values = self.model_dump(exclude={"features", "settings"}) | {"model": model}
        try:
            return Member.model_validate(values | self.settings.get(_short_name(model), {}))
        except ValidationError as error:
            fault = _describe(error, Member)
            raise ValueError(f"settings of {_short_name(model)}: {fault}") from error

    @model_validator(mode="after")
    def _each_model_once(self) -> "Teacher":
        names = [member.name for member in self.members]
        if not names or len(set(names)) < len(names):
            raise ValueError(
                f"model is {list(self._models)}; expected one, or several of other names"
            )
        if strange := sorted(self.settings.keys() - set(names)):
            raise ValueError(
                f"there are settings of {strange[0]}; expected one of {', '.join(names)}"
            )
        return self


class Student(Schedule):
    """How the DeiT is trained.

    The first `low_epochs` epochs use crops of `low_size` pixels of the augmented tile, at the scale
    of the tile. They are several times cheaper.
    """

    low_epochs: int = Field(0, ge=0)
    low_size: Pixels = 224
    restart_lr: float = Field(0.0, ge=0)  # warm restart after `features_epochs`; 0: none
    # timm, mimetic (`models.py`): without weights; select: of a larger ViT (`selection.py`)
    init: Literal["timm", "mimetic", "select"] = "timm"
    source: str = "vit_small_patch14_dinov2"  # init select: the ViT; `weights` are then its own
    drop_path: Fraction = 0.0
    exits: tuple[int, ...] = ()  # blocks after which a classifier is trained too (`exits.py`)
    exit_weight: float = Field(0.3, gt=0)  # of their loss

    @model_validator(mode="after")
    def _phases(self) -> "Student":
        if self.low_epochs > self.epochs:
            raise ValueError("low_epochs cannot exceed epochs")
        if self.low_epochs and self.low_size > self.size:
            raise ValueError(f"low_size is {self.low_size}; expected at most size, {self.size}")
        return self

    @model_validator(mode="after")
    def _exits(self) -> "Student":
        if list(self.exits) != sorted(set(self.exits)) or any(block < 1 for block in self.exits):
            raise ValueError(
                f"exits is {list(self.exits)}; expected numbers of blocks from 1 on, in ascending "
                "order"
            )
        return self

    @model_validator(mode="after")
    def _source(self) -> "Student":
        if self.init == "select" and self.weights == "none":
            raise ValueError(
                f"init select takes the weights of {self.source}: expected weights other than none"
            )
        return self


class Distill(_Section):
    """L = alpha · supervised(class token) + beta · distillation(distillation token): Eq. 8."""

    # soft: KL to the teacher's probabilities; hard: cross entropy on its argmax; none: labels alone
    mode: Literal["soft", "hard", "none"] = "soft"
    alpha: float = Field(0.5, ge=0)
    beta: float = Field(0.5, ge=0)
    temperature: float = Field(1.0, gt=0)
    guidance: float = Field(0.0, ge=0)  # weight of feature guidance (`guidance.py`); 0: off
    features_epochs: int = Field(0, ge=0)  # first epochs, in which guidance is the only loss

    @model_validator(mode="after")
    def _guided(self) -> "Distill":
        if self.mode == "none" and self.guidance:
            raise ValueError("guidance comes from the teacher: it needs mode soft or hard")
        if self.features_epochs and not self.guidance:
            raise ValueError("in features_epochs guidance alone teaches: it must be above 0")
        return self


class Recipe(_Section):
    """A whole training run."""

    description: str = ""
    seed: int = Field(0, ge=0)
    precision: Literal["auto", "fp32", "bf16", "fp16"] = "auto"
    classes: tuple[str, ...] = ()  # empty: every class folder found
    split: Split = Split()
    augment: Augment = Augment()
    teacher: Teacher
    baseline: Schedule | None = None  # another model for comparison, trained on the labels
    student: Student
    distill: Distill = Distill()

    @property
    def teachers(self) -> dict[str, Member]:
        """The teacher's models that are needed, by role: 'teacher', or 'teacher/NAME' for each.

        Without distillation none is; if tile features give the soft labels, only those that guide.
        """
        members = self.teacher.members if self.distill.mode != "none" else []
        if self.teacher.features:
            members = [member for member in members if member.guides and self.distill.guidance]
        elif len(members) == 1:
            return {"teacher": members[0]}
        return {f"teacher/{member.name}": member for member in members}

    @property
    def learns_from_features(self) -> bool:
        """True if tile features give the soft labels."""
        return bool(self.teacher.features) and self.distill.mode != "none"

    @property
    def averages(self) -> bool:
        """True if the student learns from the average of several models."""
        return len(self.teachers) > 1 and not self.teacher.features

    @property
    def roles(self) -> list[str]:
        """The models to train, in order."""
        others = [role for role in ROLES if role != "teacher" and getattr(self, role) is not None]
        return [*self.teachers, *others]

    def schedule(self, role: str) -> Schedule:
        """How the model of a role is trained."""
        schedule: Schedule | None = self.teachers.get(role) or getattr(self, role)
        assert schedule is not None, f"the recipe has no {role}"
        return schedule

    @model_validator(mode="after")
    def _some_epochs_use_labels(self) -> "Recipe":
        if 0 < self.student.epochs <= self.distill.features_epochs:
            raise ValueError(
                f"distill.features_epochs is {self.distill.features_epochs}: no epoch of "
                f"{self.student.epochs} is left for the labels"
            )
        return self

    @model_validator(mode="after")
    def _somebody_guides(self) -> "Recipe":
        if self.distill.guidance and not any(member.guides for member in self.teacher.members):
            raise ValueError("distill.guidance is above 0: a model of the teacher must guide")
        return self


def shipped_recipes() -> list[str]:
    """Names of the recipes that the package contains."""
    folder = resources.files("edgelung.train") / "recipes"
    return sorted(f.name.removesuffix(".toml") for f in folder.iterdir() if f.name[-5:] == ".toml")


def load_recipe(name: str, overrides: Sequence[str] = ()) -> Recipe:
    """Read a shipped recipe or a TOML file and apply `section.field=value` overrides.

    Raises EdgelungError naming the field, what was found and what was expected.
    """
    values = _read(name)
    for override in overrides:
        key, equals, text = override.partition("=")
        if not equals or not key.strip():
            raise EdgelungError(f"--set {override}: expected section.field=value")
        _put(values, key.strip().split("."), _parse(text.strip()), override)
    return validate_recipe(values, name)


def validate_recipe(values: dict[str, Any], name: str) -> Recipe:
    """Check the values of a recipe; raises EdgelungError naming the first field that is wrong."""
    try:
        return Recipe.model_validate(values)
    except ValidationError as error:
        raise EdgelungError(f"recipe {name}: {_describe(error, Recipe)}") from error


def _describe(error: ValidationError, model: type[_Section]) -> str:
    """The first mistake in the values of a section in one line: the field, the fault, the value."""
    first = error.errors()[0]
    field = ".".join(str(part) for part in first["loc"])
    if first["type"] == "extra_forbidden":
        return f"there is no field {field}; {_fields(first['loc'], model)}"
    # These messages already contain the value.
    has_value = first["type"] in ("missing", "value_error") or isinstance(first["input"], dict)
    value = "" if has_value else f", found {first['input']!r}"
    message = first["msg"].removeprefix("Value error, ")
    return f"{field}: {message}{value}" if field else f"{message}{value}"


def _short_name(model: str) -> str:
    return model.rpartition("/")[2].partition(".")[0]


def _read(name: str) -> dict[str, Any]:
    if name in shipped_recipes():
        text = (resources.files("edgelung.train") / "recipes" / f"{name}.toml").read_text("utf-8")
    else:
        path = Path(name)
        if not path.is_file():
            raise EdgelungError(
                f"no recipe {name!r}; expected {', '.join(shipped_recipes())} or a TOML file"
            )
        try:
            text = path.read_text("utf-8")
        except (OSError, UnicodeDecodeError) as error:
            raise EdgelungError(f"cannot read the recipe {name}: {error}") from error
    try:
        values = parse_toml(text)
    except ValueError as error:
        raise EdgelungError(f"recipe {name} is not valid TOML: {error}") from error
    if "extends" not in values:
        return values
    if (base := values.pop("extends")) not in shipped_recipes():
        raise EdgelungError(
            f"recipe {name} extends {base!r}; expected one of {', '.join(shipped_recipes())}"
        )
    inherited = _read(base)
    inherited.pop("description", None)  # it would claim what was measured with another recipe
    return _merged(inherited, values)


def _merged(base: dict[str, Any], changes: dict[str, Any]) -> dict[str, Any]:
    """The values of `base` with those of `changes`, field by field in their sections."""
    merged = dict(base)
    for key, value in changes.items():
        old = base.get(key)
        if isinstance(old, dict) and isinstance(value, dict):
            value = _merged(old, value)
        merged[key] = value
    return merged


def _parse(text: str) -> Any:
    """A TOML value; a bare word is a string."""
    try:
        return parse_toml(f"value = {text}")["value"]
    except ValueError:
        return text


def _put(values: dict[str, Any], keys: list[str], value: Any, override: str) -> None:
    for key in keys[:-1]:
        values = values.setdefault(key, {})
        if not isinstance(values, dict):
            raise EdgelungError(f"--set {override}: {key} is no section")
    values[keys[-1]] = value


def _fields(location: tuple[int | str, ...], section: Any) -> str:
    for part in location[:-1]:
        kind = section.model_fields[str(part)].annotation
        # An optional section is a union: take the section.
        section = next((k for k in get_args(kind) if hasattr(k, "model_fields")), kind)
    return f"expected one of {', '.join(section.model_fields)}"
