"""Cross-validation: each group is tested once, by models that never saw it."""

import csv
import json
import logging
import shutil
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

import edgelung
from edgelung.artifacts.folds import FoldsFolder
from edgelung.artifacts.run import RunFolder
from edgelung.cli.train import _what_is_kept
from edgelung.core.errors import EdgelungError
from edgelung.evaluation.comparison import compare_runs
from edgelung.export.cross_validation import read_cross_validation
from edgelung.train import folds as folds_module
from edgelung.train import progress, trainer
from edgelung.train.folds import resume_folds, train_folds
from edgelung.train.recipe import Recipe, load_recipe

TINY = [
    "precision=fp32",
    'teacher.model=["test_efficientnet", "test_vit"]',
    "teacher.settings.test_vit.fit=probe",
    "teacher.size=32",
    "student.size=32",
    "student.low_epochs=0",
    "student.epochs=1",
    "student.batch_size=16",
    "teacher.batch_size=16",
]
ROLES = ("teacher", "student", "teacher/test_efficientnet", "teacher/test_vit")


@pytest.fixture
def recipe(small: list[str]) -> Recipe:
    return load_recipe("demo", [*small, *TINY])


@pytest.fixture(scope="module")
def folds(tiles: Path, small: list[str], tmp_path_factory: pytest.TempPathFactory) -> FoldsFolder:
    """A finished cross-validation of three folds; tests that change it copy it first."""
    out = tmp_path_factory.mktemp("folds") / "three"
    recipe = load_recipe("demo", [*small, *TINY])
    train_folds(tiles, out, recipe, folds=3, groups=tiles / "groups.csv")
    return FoldsFolder(out)


def test_students_may_learn_from_one_model_of_a_teacher_of_several(
    folds: FoldsFolder, small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """`benchmarks/students.py --teacher` begins folds whose teacher is that model."""
    monkeypatch.syspath_prepend(Path(__file__).parents[2] / "benchmarks")
    import students

    name = "test_efficientnet"
    recipe = load_recipe("demo", [*small, *TINY, f"teacher={{model = '{name}', epochs = 9}}"])
    with pytest.raises(AssertionError, match="another teacher"):
        students.begin(folds, recipe, tmp_path / "out", name)
    of_folds = folds.read_config().recipe["teacher"]
    assert isinstance(of_folds, dict)
    teacher = recipe.teacher.model_validate({**of_folds, "model": name, "settings": {}})
    alone = recipe.model_copy(update={"teacher": teacher})
    students.begin(folds, alone, tmp_path / "out", name)
    for old, new in zip(folds.fold_runs(), FoldsFolder(tmp_path / "out").fold_runs(), strict=True):
        begun = progress.load_progress(new.checkpoint_path)
        assert begun.stage == "student"
        assert [one.stage for one in begun.history] == ["teacher"] * teacher.epochs
        weights = [
            run.weights_path(role) for run, role in ((old, f"teacher/{name}"), (new, "teacher"))
        ]
        assert weights[0].read_bytes() == weights[1].read_bytes()
        assert new.read_split() == old.read_split()


def copy_of(folds: FoldsFolder, out: Path) -> FoldsFolder:
    return FoldsFolder(Path(shutil.copytree(folds.path, out)))


def test_every_tile_is_predicted_once_by_a_model_that_never_saw_its_group(
    folds: FoldsFolder,
) -> None:
    paths = [row.path for row in folds.read_split()]
    assert len(paths) == 108
    fold_of = folds.read_folds()
    for role in ROLES:
        pooled = folds.read_predictions(role)
        assert list(pooled.paths) == paths
        assert set(pooled.subsets) == {"test"}
        tested: Counter[str] = Counter()
        for number, run in enumerate(folds.fold_runs(), 1):
            own = run.read_predictions(role).subset("test")
            tested.update(own.paths)
            assert {fold_of[path] for path in own.paths} == {number}
            rows = [paths.index(path) for path in own.paths]
            assert np.array_equal(pooled.probabilities[rows], own.probabilities)
            known = {row.group for row in run.read_split() if row.subset != "test"}
            assert known.isdisjoint(own.groups)
            assert {row.path for row in run.read_split()} == set(paths)
        assert set(tested.values()) == {1}


def test_the_metrics_of_the_whole_are_over_all_tiles_and_groups(folds: FoldsFolder) -> None:
    metrics, config = folds.read_metrics(), folds.read_config()
    student = metrics.models["student"].test
    assert (student.tiles, student.groups) == (108, 36)
    assert config.fewest_test_groups == 12
    assert (config.folds, config.split) == (3, "group, 3 folds")
    parts = [run.read_metrics().models["student"].test for run in folds.fold_runs()]
    assert student.accuracy == pytest.approx(sum(p.accuracy * p.tiles for p in parts) / 108)
    assert [fold.accuracy for fold in metrics.folds["student"]] == [p.accuracy for p in parts]
    assert metrics.members["test_vit"].test.tiles == 108
    assert len(metrics.folds["teacher/test_vit"]) == 3
    assert not any(one.kind == "few-validation-groups" for one in metrics.concerns)
    opened = edgelung.open_run(folds.path)
    assert opened.is_finished
    assert len(opened.predictions) == 108
    assert opened.history == []


def test_the_page_shows_folds_groups_and_mistakes(folds: FoldsFolder) -> None:
    page = folds.report_path.read_text("utf-8")
    for text in ("Research use only", "Figures of each fold", "Errors by group", "Groups"):
        assert text in page
    assert page.count('<th scope="row">lung_n:') == 12
    assert "<img" in page
    assert "http://" not in page.replace("http://www.w3.org", "")


def test_killed_within_and_between_folds_and_resumed_gives_the_same_predictions(
    folds: FoldsFolder,
    tiles: Path,
    recipe: Recipe,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO)
    out = FoldsFolder(tmp_path / "killed")
    real, calls = trainer.augment, Counter[str]()

    def stop_in_fold_1(*words: object, **more: object) -> object:
        calls["augment"] += 1
        if calls["augment"] == 4:
            raise KeyboardInterrupt
        return real(*words, **more)

    with monkeypatch.context() as patch:
        patch.setattr(progress, "CHECKPOINT_SECONDS", -1.0)  # after every step
        patch.setattr(progress, "CHECKPOINT_COST", -1.0)
        patch.setattr(trainer, "augment", stop_in_fold_1)
        with pytest.raises(KeyboardInterrupt):
            train_folds(tiles, out.path, recipe, folds=3, groups=tiles / "groups.csv")
    assert out.fold(1).checkpoint_path.is_file()
    assert "the last checkpoint is kept" in _what_is_kept(out.path, 0)

    finish = folds_module.finish_run

    def stop_before_fold_3(run: object) -> object:
        if run.folder.path.name == "fold-3":
            raise KeyboardInterrupt
        return finish(run)

    with monkeypatch.context() as patch:
        patch.setattr(folds_module, "finish_run", stop_before_fold_3)
        with pytest.raises(KeyboardInterrupt):
            resume_folds(tiles, out.path)
    assert _what_is_kept(out.path, 0) == (
        "2 of 3 folds are finished; the split is kept, no training was done yet"
    )
    assert not out.is_finished
    resume_folds(tiles, out.path)
    assert "fold 2 of 3 is already finished" in caplog.messages
    assert _what_is_kept(out.path, 0) is None
    for name in ("split.csv", "folds.csv", "predictions.csv", "teacher/predictions.csv"):
        assert (out.path / name).read_bytes() == (folds.path / name).read_bytes()


def test_tiles_that_changed_since_are_noticed(
    folds: FoldsFolder, tiles: Path, tmp_path: Path
) -> None:
    begun = copy_of(folds, tmp_path / "begun")
    begun.metrics_path.unlink()
    other = Path(shutil.copytree(tiles, tmp_path / "tiles"))
    next(other.glob("lung_n/*")).unlink()
    with pytest.raises(EdgelungError, match="not those that the run was split on"):
        resume_folds(other, begun.path)


def test_a_fold_that_tested_other_tiles_is_noticed(
    folds: FoldsFolder, tiles: Path, tmp_path: Path
) -> None:
    begun = copy_of(folds, tmp_path / "begun")
    begun.metrics_path.unlink()
    shutil.rmtree(begun.fold(1).path)
    shutil.copytree(begun.fold(2).path, begun.fold(1).path)
    with pytest.raises(EdgelungError, match=r"did not test the tiles that folds\.csv names"):
        resume_folds(tiles, begun.path)


def test_two_cross_validations_are_paired_over_all_groups(
    folds: FoldsFolder, tmp_path: Path
) -> None:
    """The copy's student is right on every second group."""
    other = copy_of(folds, tmp_path / "other")
    path = other.predictions_path()
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    groups = sorted({row["group"] for row in rows})
    for row in rows:
        right = groups.index(row["group"]) % 2
        for name in ("lung_aca", "lung_n", "lung_scc"):
            row[f"p_{name}"] = "0.9" if (name == row["class"]) == bool(right) else "0.05"
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, rows[0])
        writer.writeheader()
        writer.writerows(rows)
    models = compare_runs([folds.path, other.path]).models
    assert [model.split for model in models] == ["group, 3 folds"] * 4
    difference = models[3].difference
    assert difference.against.startswith("three: student")
    low, high = difference.interval
    assert low < high
    assert models[3].test.groups == 36


def test_export_names_the_run_of_a_fold(folds: FoldsFolder, tmp_path: Path, cli) -> None:
    refused = cli("export", folds.path, "--out", tmp_path / "bundle")
    assert refused.returncode == 2
    (line,) = refused.stderr.splitlines()
    assert f"{folds.path} is a cross-validation of 3 folds, not one model" in line
    assert f"such as {folds.path / 'fold-1'}" in line
    assert not (tmp_path / "bundle").exists()
    assert RunFolder(folds.path / "fold-1").read_model_config().num_classes == 3


def test_the_command_prints_the_whole_and_the_spread(folds: FoldsFolder, tiles: Path, cli) -> None:
    """Of a finished one: nothing is trained."""
    shown = cli("train", tiles, "--out", folds.path, "--resume")
    assert shown.returncode == 0
    assert "student: recall " in shown.stdout
    assert " % in 3 folds" in shown.stdout
    assert "edgelung export" not in shown.stdout
    printed = json.loads(cli("train", tiles, "--out", folds.path, "--resume", "--json").stdout)
    assert printed["student"]["test"]["tiles"] == 108
    assert len(printed["folds"]["teacher"]) == 3


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--folds", "3"], "already exists"),
        (["--folds", "3", "--split", "random"], "--folds tests whole groups"),
        (["--folds", "3", "--resume"], "leave the other options out"),
        (["--folds", "2"], "'--folds'"),
    ],
)
def test_what_does_not_go_together_is_refused(
    folds: FoldsFolder, tiles: Path, cli, words: list[str], message: str
) -> None:
    refused = cli("train", tiles, "--out", folds.path, *words)
    assert refused.returncode == 2
    assert message in refused.stderr


def as_run(folds: FoldsFolder, folder: Path, **changes: object) -> RunFolder:
    """A run over the tiles of all folds whose recipe has these changes."""
    folder.mkdir()
    run, config = RunFolder(folder), folds.read_config()
    run.write_split(folds.read_split())
    run.write_config(structs.replace(config, recipe=config.recipe | changes, folds=0))
    return run


def test_a_bundle_takes_over_the_figures_of_its_student(folds: FoldsFolder, tmp_path: Path) -> None:
    metrics, config = folds.read_metrics(), folds.read_config()
    same = as_run(folds, tmp_path / "same", seed=7)
    record = read_cross_validation(folds.path, same, metrics.classes)
    test = metrics.student.test
    assert (record.folds, record.tiles, record.groups) == (3, test.tiles, test.groups)
    assert record.balanced_accuracy.value == test.balanced_accuracy
    assert record.balanced_accuracy.interval == test.intervals.balanced_accuracy
    assert record.recipe == config.recipe["description"]
    assert (record.same_recipe, record.same_tiles) == (True, True)
    other = as_run(folds, tmp_path / "other", split={})
    other.write_split(folds.read_split()[1:])
    record = read_cross_validation(folds.path, other, metrics.classes)
    assert (record.same_recipe, record.same_tiles) == (False, False)


def test_the_recipe_of_an_older_edgelung_is_the_same_without_exits(
    folds: FoldsFolder, tmp_path: Path
) -> None:
    student, classes = folds.read_config().recipe["student"], folds.read_metrics().classes
    new = ("exits", "exit_weight")
    older = {key: value for key, value in student.items() if key not in new}
    assert len(older) == len(student) - len(new)
    run = as_run(folds, tmp_path / "older", student=older)
    assert read_cross_validation(folds.path, run, classes).same_recipe
    run = as_run(folds, tmp_path / "exits", student=student | {"exits": [3]})
    assert not read_cross_validation(folds.path, run, classes).same_recipe


def test_another_folder_or_other_classes_are_refused_in_one_line(
    folds: FoldsFolder, tmp_path: Path
) -> None:
    run, classes = as_run(folds, tmp_path / "run"), folds.read_metrics().classes
    for folder in (tmp_path, folds.fold(1).path):
        with pytest.raises(EdgelungError, match="is no finished cross-validation"):
            read_cross_validation(folder, run, classes)
    with pytest.raises(EdgelungError, match="expected those of the run: a, b"):
        read_cross_validation(folds.path, run, ["a", "b"])
    unfinished = copy_of(folds, tmp_path / "unfinished")
    unfinished.metrics_path.unlink()
    with pytest.raises(EdgelungError, match="is no finished cross-validation"):
        read_cross_validation(unfinished.path, run, classes)
