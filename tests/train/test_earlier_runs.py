"""Weights of an earlier run: nothing is tested on tiles that they have learnt."""

import shutil
from pathlib import Path

import pytest
from msgspec import structs

from edgelung.artifacts.run import RunFolder
from edgelung.core.errors import EdgelungError
from edgelung.train.earlier_runs import check_earlier_runs, earlier_runs
from edgelung.train.folds import train_folds
from edgelung.train.index import index_tiles
from edgelung.train.origins import origins
from edgelung.train.prepare import join_split
from edgelung.train.recipe import Recipe, load_recipe
from edgelung.train.run import train_run
from edgelung.train.split import SplitTile


def starting_from(small: list[str], run: Path, *changes: str) -> Recipe:
    weights = [f"student.weights={run / 'model.safetensors'}"]
    weights.append(f"teacher.weights={run / 'teacher' / 'model.safetensors'}")
    return load_recipe("demo", [*small, *weights, *changes])


def split_of(run: Path, tiles: Path) -> list[SplitTile]:
    return join_split(index_tiles(tiles), RunFolder(run).read_split())


@pytest.mark.parametrize(
    "place",
    ["model.safetensors", "state.pt", "baseline/model.safetensors", "teacher/x/model.safetensors"],
)
def test_the_run_of_a_weights_file_is_found(
    small: list[str], run: Path, tmp_path: Path, place: str
) -> None:
    """Also through a link to the file, and if the file is a link into a store."""
    folder = Path(shutil.copytree(run, tmp_path / "folds" / "fold-1"))
    file = folder / place
    file.unlink(missing_ok=True)
    file.parent.mkdir(parents=True, exist_ok=True)
    (tmp_path / "blob").write_bytes(b"weights")
    file.symlink_to(tmp_path / "blob")
    (tmp_path / "link").symlink_to(file)

    def found(weights: Path) -> list[Path]:
        recipe = load_recipe("demo", [*small, f"student.weights={weights}"])
        return [one.path for one in earlier_runs(recipe).values()]

    assert found(file) == [folder]
    file.unlink()
    file.write_bytes(b"weights")
    assert found(file) == [folder]
    assert found(tmp_path / "link") == [folder]
    assert found(tmp_path / "blob") == []
    assert found(file.with_name("pretrained.pth")) == []


def test_the_same_split_is_allowed(small: list[str], run: Path, tiles: Path) -> None:
    check_earlier_runs(starting_from(small, run), split_of(run, tiles))


@pytest.mark.parametrize("subset", ["val", "test"])
def test_tiles_that_were_learnt_neither_test_nor_validate(
    small: list[str], run: Path, tiles: Path, subset: str
) -> None:
    split = split_of(run, tiles)
    place = next(i for i, row in enumerate(split) if row.subset == "train")
    split[place] = SplitTile(split[place].tile, split[place].group, subset)
    with pytest.raises(EdgelungError, match=r"were trained on 1 of the .* tiles that") as caught:
        check_earlier_runs(starting_from(small, run), split)
    assert split[place].tile.path in str(caught.value)
    assert "the same --groups, --split and split.seed" in str(caught.value)


def test_what_an_earlier_run_of_the_earlier_run_learnt_counts(
    small: list[str], run: Path, tiles: Path, tmp_path: Path
) -> None:
    """A learns these tiles, B goes on from A with others, C would be tested on those of A."""
    b = RunFolder(Path(shutil.copytree(run, tmp_path / "b")))
    recipe = starting_from(small, run).model_dump(mode="json")
    b.write_split(structs.replace(row, sha256=f"other-{row.sha256}") for row in b.read_split())
    b.write_config(structs.replace(b.read_config(), recipe=recipe))
    split = split_of(run, tiles)
    check_earlier_runs(starting_from(small, b.path), split)
    seen = [SplitTile(row.tile, row.group, "test") for row in split]
    with pytest.raises(EdgelungError, match="were trained on"):
        check_earlier_runs(starting_from(small, b.path), seen)


@pytest.mark.parametrize(
    "settings",
    [
        ["teacher.model=['resnet18', 'resnet34']", "teacher.settings.resnet34.weights={}"],
        ["baseline={{model = 'resnet18', epochs = 1, lr = 1, weights = '{}'}}"],
        ["student.init=select", "student.weights={}"],
    ],
)
def test_whatever_learns_from_them_is_refused(
    small: list[str], run: Path, tiles: Path, settings: list[str]
) -> None:
    weights = run / "model.safetensors"
    recipe = load_recipe("demo", [*small, *(text.format(weights) for text in settings)])
    split = [SplitTile(row.tile, row.group, "test") for row in split_of(run, tiles)]
    with pytest.raises(EdgelungError, match="were trained on"):
        check_earlier_runs(recipe, split)


@pytest.mark.parametrize(
    ("name", "words"),
    [("split.csv", "is not the one that the run was made with"), ("run.json", "run.json")],
)
def test_an_earlier_run_that_was_changed_is_not_trusted(
    small: list[str], run: Path, tiles: Path, tmp_path: Path, name: str, words: str
) -> None:
    copy = Path(shutil.copytree(run, tmp_path / "copy"))
    (copy / name).write_text((copy / name).read_text()[:-9])
    with pytest.raises(EdgelungError, match=r"the teacher weights .* cannot be read") as caught:
        check_earlier_runs(starting_from(small, copy), split_of(run, tiles))
    assert words in str(caught.value)


def test_another_split_and_folds_are_refused_before_a_folder_is_made(
    small: list[str], run: Path, tiles: Path, tmp_path: Path
) -> None:
    recipe = starting_from(small, run, "split.seed=1")
    groups = tiles / "groups.csv"
    with pytest.raises(EdgelungError, match="of a run with the same split"):
        train_run(tiles, tmp_path / "run", recipe, groups=groups)
    with pytest.raises(EdgelungError, match="no --folds"):
        train_folds(tiles, tmp_path / "run", starting_from(small, run), folds=3, groups=groups)
    assert not (tmp_path / "run").exists()


def test_an_untrained_teacher_answers_for_the_classes_of_the_run(
    small: list[str], run: Path, tiles: Path, tmp_path: Path
) -> None:
    copy = RunFolder(Path(shutil.copytree(run, tmp_path / "other")))
    config = copy.read_model_config("teacher")
    names = ["colon_aca", "colon_n", "colon_x"]
    copy.write_model_config(structs.replace(config, label_names=names), "teacher")
    split = split_of(run, tiles)
    check_earlier_runs(starting_from(small, copy.path), split)  # it is trained anew
    untrained = starting_from(small, copy.path, "teacher.epochs=0")
    words = r"for the classes colon_aca, .* teacher.epochs is 0"
    with pytest.raises(EdgelungError, match=words):
        check_earlier_runs(untrained, split)
    weights = copy.weights_path("teacher")
    weights.rename(tmp_path / "blob")  # as a store that keeps large files elsewhere
    weights.symlink_to(tmp_path / "blob")
    with pytest.raises(EdgelungError, match=words):
        check_earlier_runs(untrained, split)


def test_what_made_the_weights_is_said_of_what_they_start(
    small: list[str], run: Path, tmp_path: Path
) -> None:
    """The licence of a foundation model does not end with the first student."""
    copy = RunFolder(Path(shutil.copytree(run, tmp_path / "first")))
    copy.write_config(structs.replace(copy.read_config(), origins=["made from features of X"]))
    assert origins(starting_from(small, copy.path)) == ["made from features of X"]
