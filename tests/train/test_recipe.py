"""Recipes: shipped ones are valid, the paper's is the paper's, mistakes are named."""

from pathlib import Path

import pytest
import timm

from edgelung.core.errors import EdgelungError
from edgelung.train.recipe import load_recipe, shipped_recipes, validate_recipe
from edgelung.train.setting_names import setting
from edgelung.train.stages import create_modules


@pytest.mark.parametrize("name", shipped_recipes())
def test_shipped_recipes_are_valid_and_name_real_models(name: str) -> None:
    recipe = load_recipe(name)
    assert recipe.description
    assert timm.is_model(recipe.teacher.model)
    assert "distilled" in recipe.student.model
    assert timm.is_model(recipe.student.model)


def test_other_students_are_recipe_quick_but_for_what_their_names_say() -> None:
    """So that their figures can be compared."""
    changes = {
        "quick-exits": {"exits": (3, 6)},
        "quick-160": {"size": 160, "low_size": 80},
        "quick-160-exits": {"size": 160, "low_size": 80, "exits": (3, 6)},
        "quick-160-small": {
            "size": 160,
            "low_size": 80,
            "model": "deit_small_distilled_patch16_224",
        },
    }
    quick = load_recipe("quick")
    assert shipped_recipes() == [
        "demo",
        "paper",
        "quick",
        *sorted(changes),
        "starter",
        "starter-160",
    ]
    for name, change in changes.items():
        recipe = load_recipe(name)
        expected = {"student": quick.student.model_copy(update=change)}
        expected["description"] = recipe.description
        assert recipe == quick.model_copy(update=expected), name


def test_the_paper_recipe_is_the_papers() -> None:
    recipe = load_recipe("paper")
    assert recipe.baseline is not None
    assert {recipe.teacher.model, recipe.baseline.model} == {"vgg16", "resnet50"}
    for schedule in (recipe.teacher, recipe.baseline, recipe.student):
        assert (schedule.warmup_epochs, schedule.clip_norm) == (0, 0)
        assert schedule.weights == "hub"
        assert schedule.optimizer == "adam"
        assert schedule.lr == 1e-5
        assert schedule.batch_size == 64
        assert schedule.epochs == 30
        assert schedule.size == 224
        assert schedule.schedule == "constant"
        assert (schedule.label_smoothing, schedule.weight_decay, schedule.ema_decay) == (0, 0, 0)
    assert recipe.student.model == "deit_base_distilled_patch16_224"
    augment = recipe.augment
    assert (augment.hflip, augment.vflip, augment.rotate) == (0.1, 0.0, 10)
    assert (augment.scale, augment.translate, augment.shear) == ((0.9, 1.1), 0.1, 0.1)
    assert (augment.stain, augment.light) == (0, 0)
    assert (recipe.split.train, recipe.split.val, recipe.split.test) == (0.70, 0.15, 0.15)
    assert recipe.split.by == "random"
    assert recipe.distill.mode == "soft"
    assert recipe.distill.guidance == 0
    assert recipe.student.init == "timm"
    assert recipe.student.low_epochs == 0


def test_overrides_reach_their_fields() -> None:
    recipe = load_recipe(
        "quick",
        ["student.lr=3e-4", "distill.mode=hard", "augment.scale=[0.5, 1.0]", "seed=7"],
    )
    assert recipe.student.lr == 3e-4
    assert recipe.distill.mode == "hard"
    assert recipe.augment.scale == (0.5, 1.0)
    assert recipe.seed == 7
    assert load_recipe("quick").student.lr != 3e-4


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("student.lr=-1", r"student\.lr: .*greater than 0.*found -1"),
        ("student.learning_rate=1", r"no field student\.learning_rate; expected one of .*lr"),
        ("studnet.lr=1", "no field studnet"),
        ("distill.mode=medium", r"distill\.mode: .*'soft', 'hard' or 'none'.*found 'medium'"),
        ("distill={mode = 'none', guidance = 1}", "guidance comes from the teacher"),
        ("split.by=patient", r"split\.by: .*'group' or 'random'"),
        ("distill.guidance=0", "in features_epochs guidance alone teaches: it must be above 0"),
        ("distill.features_epochs=5", "no epoch of 5 is left for the labels"),
        ("student.low_epochs=999", "low_epochs cannot exceed epochs"),
        ("student.low_size=448", "low_size is 448; expected at most size, 224"),
        ("student.exits=[6, 3]", r"exits is \[6, 3\]; expected numbers of blocks .* ascending"),
        ("student.exits=[0]", r"exits is \[0\]; expected numbers of blocks from 1 on"),
        ("student.exit_weight=0", r"student\.exit_weight: .*greater than 0"),
        ("student.exit_weight=nan", r"student\.exit_weight: .*finite number"),
        ("student.lr=inf", r"student\.lr: .*finite number"),
        ("split.train=0.9", "add up to 1"),
        ("augment.scale=[1.2, 0.8]", "low ≤ high"),
        ("student.epochs=many", r"student\.epochs: .*integer.*'many'"),
        ("teacher.model=[]", r"teacher: model is \[\]; expected one, or several of other names"),
        ("teacher.model=['resnet18', 'resnet18.a1']", "several of other names"),
        ("teacher.settings.resnet18.lr=1", "there are settings of resnet18; expected one of tf_"),
        ("teacher.settings.tf_efficientnet_lite0.lr=-1", r"settings of tf_\w+: lr: .* found -1"),
        ("teacher.settings.tf_efficientnet_lite0.rate=1", "settings of .* no field rate; expected"),
        ("teacher.settings.tf_efficientnet_lite0.model=x", "there are settings of tf_efficientnet"),
        ("teacher={model = 'resnet18', fit = 'probe', epochs = 0}", "expected epochs=1"),
        ("teacher.fit=frozen", r"teacher\.fit: .*'finetune' or 'probe'.*found 'frozen'"),
        ("teacher.guides=false", "a model of the teacher must guide"),
        ("student.init=select", "weights of vit_small_patch14_dinov2: expected weights other than"),
        ("student.lr", "expected section.field=value"),
        ("seed.deep=1", "seed is no section"),
    ],
)
def test_mistakes_are_named(override: str, message: str) -> None:
    with pytest.raises(EdgelungError, match=message):
        load_recipe("quick", [override])


@pytest.mark.parametrize(
    ("role", "field", "name"),
    [
        ("student", "lr", "student.lr"),
        ("teacher/resnet18", "lr", "teacher.settings.resnet18.lr"),
        ("teacher/resnet18", "model", "teacher.model"),
    ],
)
def test_messages_name_a_setting_that_can_be_set(role: str, field: str, name: str) -> None:
    assert setting(role, field) == name
    if field == "lr":
        load_recipe("quick", ["teacher.model=['resnet18', 'resnet34']", f"{name}=0.1"])


def test_a_mistake_in_a_section_that_may_be_absent() -> None:
    with pytest.raises(EdgelungError, match=r"no field baseline\.rate; expected one of .*lr"):
        load_recipe("paper", ["baseline.rate=1"])


def test_a_recipe_of_ones_own(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(
        "[teacher]\nmodel = 'resnet18'\nepochs = 1\nlr = 0.1\n"
        "[student]\nmodel = 'deit_tiny_distilled_patch16_224'\nepochs = 1\nlr = 0.1\n"
    )
    assert load_recipe(str(path)).teacher.model == "resnet18"
    path.write_text("[teacher]\nmodel = 'resnet18'\n")
    with pytest.raises(EdgelungError, match=r"teacher\.epochs: Field required"):
        load_recipe(str(path))
    path.write_text("not toml")
    with pytest.raises(EdgelungError, match="not valid TOML"):
        load_recipe(str(path))
    with pytest.raises(EdgelungError, match=r"expected demo, paper, quick, .* or a TOML"):
        load_recipe("qick")


def test_a_recipe_that_extends_another_holds_only_what_differs(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('extends = "quick-160"\nseed = 3\n[student]\nlr = 0.1\n')
    base, recipe = load_recipe("quick-160"), load_recipe(str(path), ["student.epochs=9"])
    student = base.student.model_copy(update={"lr": 0.1, "epochs": 9})
    changes = {"seed": 3, "student": student, "description": ""}
    assert recipe == base.model_copy(update=changes), "it describes another training"
    path.write_text('extends = "mine"\n')
    with pytest.raises(EdgelungError, match=r"extends 'mine'; expected one of demo, paper, quick"):
        load_recipe(str(path))


def test_a_teacher_of_several_models_has_settings_for_each() -> None:
    words = ["teacher.model=['tf_efficientnet_lite2', 'vit_small_patch14_dinov2.lvd142m']"]
    words += ["teacher.settings.vit_small_patch14_dinov2={fit = 'probe', size = 224}"]
    recipe = load_recipe("quick", words)
    cnn, vit = recipe.teacher.members
    assert (cnn.model, cnn.fit, cnn.size, cnn.epochs) == (
        "tf_efficientnet_lite2",
        "finetune",
        160,
        2,
    )
    assert (vit.model, vit.fit, vit.size) == ("vit_small_patch14_dinov2.lvd142m", "probe", 224)
    roles = ["teacher/tf_efficientnet_lite2", "teacher/vit_small_patch14_dinov2"]
    assert recipe.roles == [*roles, "student"]
    assert recipe.schedule(roles[1]) == vit
    assert recipe.averages
    assert validate_recipe(recipe.model_dump(mode="json"), "run.json") == recipe


def test_a_teacher_of_one_model_is_as_ever() -> None:
    recipe = load_recipe("quick", ["teacher.model=['resnet18']"])
    assert recipe.roles == ["teacher", "student"]
    assert not recipe.averages
    (member,) = recipe.teacher.members
    assert recipe.schedule("teacher") == member
    assert (member.model, member.fit) == ("resnet18", "finetune")


def test_the_smaller_starter_names_the_files_that_it_goes_on_from() -> None:
    """Without them it would train for one epoch from scratch."""
    recipe = load_recipe("starter-160")
    assert (recipe.student.size, recipe.student.epochs, recipe.teacher.epochs) == (160, 1, 0)
    with pytest.raises(EdgelungError, match="no weights file"):
        create_modules(recipe, 3, fresh=recipe.roles)
