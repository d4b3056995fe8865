"""`train --tile-um` and `--mpp`: recorded in run.json, refused before any work."""

from pathlib import Path

import pytest

from edgelung.artifacts.run import RunFolder
from edgelung.core.errors import EdgelungError
from edgelung.train import prepare
from edgelung.train.prepare import start_run
from edgelung.train.recipe import load_recipe


def test_a_run_records_the_side_that_the_scale_of_its_tiles_gives(
    tiles: Path, tmp_path: Path, small: list[str]
) -> None:
    groups = tiles / "groups.csv"
    start_run(tiles, tmp_path / "run", load_recipe("demo", small), groups, mpp=2.0)
    assert RunFolder(tmp_path / "run").read_config().tile_um == 192  # tiles of 96 px


def test_a_run_without_a_statement_records_that_nobody_made_one(run: Path) -> None:
    assert RunFolder(run).read_config().tile_um is None


def test_a_run_of_an_older_edgelung_states_no_size() -> None:
    old = Path(__file__).parents[1] / "artifacts" / "run-0.1"
    assert RunFolder(old).read_config().tile_um is None


def test_an_implausible_scale_is_refused_before_tiles_are_grouped(
    tiles: Path, tmp_path: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prepare, "_split", lambda *_: pytest.fail("the tiles were grouped"))
    with pytest.raises(EdgelungError, match="--mpp 96 with tiles of 96×96 px: found 9216"):
        start_run(tiles, tmp_path / "run", load_recipe("demo", small), None, mpp=96)
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("option", [["--tile-um", "192"], ["--mpp", "2"]])
def test_a_resumed_run_keeps_its_own_size(option: list[str], run: Path, tiles: Path, cli) -> None:
    done = cli("train", tiles, "--out", run, "--resume", *option)
    assert done.returncode == 2
    assert (
        "--resume continues with the run's own recipe, groups, folds and size of a tile"
        in done.stderr
    )


@pytest.mark.parametrize(
    ("option", "fault"),
    [
        (["--tile-um", "0.25"], "'--tile-um': found 0.25; expected the side of a training tile"),
        (["--tile-um", "nan"], "'--tile-um': found nan; expected the side"),
        (["--tile-um", "wide"], "'--tile-um': 'wide' is no number"),
        (["--mpp", "-1"], "'--mpp': found -1; expected the micrometres per pixel"),
        (["--mpp", "inf"], "'--mpp': found inf; expected the micrometres per pixel"),
    ],
)
def test_a_slip_is_one_line(option: list[str], fault: str, cli) -> None:
    done = cli("train", "tiles", "--out", "run", *option)
    assert done.returncode == 2
    assert fault in done.stderr
    assert done.stderr.count("\n") == 1
