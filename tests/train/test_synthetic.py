"""The demo's tiles: the same bytes every time, and no shortcut through the mean colour."""

import csv
from pathlib import Path

import numpy as np
import pytest

from edgelung.train.synthetic import CLASSES, draw_tile, write_dataset


def test_the_same_arguments_draw_the_same_tile() -> None:
    first = draw_tile("lung_aca", 3, 1, size=64, seed=5)
    assert first.shape == (64, 64, 3)
    assert first.dtype == np.uint8
    np.testing.assert_array_equal(first, draw_tile("lung_aca", 3, 1, size=64, seed=5))
    for other in (("lung_aca", 3, 2, 5), ("lung_aca", 4, 1, 5), ("lung_n", 3, 1, 5)):
        tile = draw_tile(*other[:3], size=64, seed=other[3])
        assert (tile != first).mean() > 0.5
    with pytest.raises(ValueError, match="not in tuple"):
        draw_tile("colon", 0, 0)


def test_the_folder_says_what_it_is_and_names_its_sources(tmp_path: Path) -> None:
    folder = write_dataset(tmp_path / "tiles", sources=2, tiles_per_source=3, size=32)
    assert "not tissue" in (folder / "SYNTHETIC.txt").read_text()
    rows = list(csv.DictReader((folder / "groups.csv").open()))
    assert len(rows) == 3 * 2 * 3
    assert all((folder / row["path"]).is_file() for row in rows)
    assert {row["cluster"] for row in rows} == {f"{c}:{s}" for c in CLASSES for s in (0, 1)}


def test_the_mean_colour_does_not_give_the_class_away() -> None:
    """Nearest class mean in RGB, learned on other sources; chance is one third."""
    means = np.array(
        [
            [draw_tile(label, source, 0, size=64).mean(axis=(0, 1)) for source in range(60)]
            for label in CLASSES
        ]
    )  # (3, 60, 3)
    centres = means[:, :40].mean(axis=1)
    test = means[:, 40:].reshape(-1, 3)
    found = np.linalg.norm(test[:, None] - centres[None], axis=2).argmin(axis=1)
    assert (found == np.repeat(np.arange(3), 20)).mean() < 0.75
