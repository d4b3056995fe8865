"""An audit names what is odd about a folder, and which tiles are near copies."""

import csv
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgelung.core.errors import EdgelungError
from edgelung.train.audit import audit_folder
from edgelung.train.audit_report import Copy
from edgelung.train.groups.grouping import group_tiles


@pytest.fixture
def folder(sources, changed, tmp_path: Path) -> Path:
    """Two classes of two sources with a copy each; one more copy stands in the wrong class."""
    for number, (label, tile) in enumerate(zip("aabb", sources[:4], strict=True)):
        place = tmp_path / "data" / label
        place.mkdir(parents=True, exist_ok=True)
        Image.fromarray(tile).save(place / f"{number}.png")
        Image.fromarray(changed(tile, 15, 1.0, True)).save(place / f"{number}-copy.png")
    Image.fromarray(changed(sources[0], -15, 1.0, False)).save(tmp_path / "data/b/wrong.png")
    return tmp_path / "data"


def test_an_audit_names_what_is_odd_and_goes_on(folder: Path, tmp_path: Path) -> None:
    (folder / "c").mkdir()
    for place in ("a", "c"):  # of class c nothing can be read
        (folder / place / "broken.png").write_bytes(b"\x89PNG\r\n\x1a\nnothing")
    audit = audit_folder(folder, tmp_path / "audit")
    assert (audit.tiles, audit.groups, audit.single_tiles) == (9, 4, 0)
    assert '"against"' not in (tmp_path / "audit/audit.json").read_text()
    assert sorted(audit.unreadable) == ["a/broken.png", "c/broken.png"]
    counts = {name: (c.tiles, c.left_out) for name, c in audit.classes.items()}
    assert counts == {"a": (4, 1), "b": (5, 0), "c": (0, 1)}
    (mixed,) = audit.groups_across_classes.values()
    assert mixed == ["a/0-copy.png", "a/0.png", "b/wrong.png"]
    assert (audit.identical_files, audit.identical) == (0, [])
    with (tmp_path / "audit/groups.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["path"] for row in rows] == sorted(row["path"] for row in rows)
    assert len({row["group"] for row in rows}) == 4
    page = (tmp_path / "audit/report.html").read_text("utf-8")
    assert "http://" not in page.replace("http://www.w3.org", "")
    assert "broken.png" in page
    assert '<th scope="row">c</th><td>0</td><td>0</td><td>1</td><td>–</td><td>–</td>' in page
    assert sorted(os.listdir(tmp_path / "audit")) == [
        "audit.json",
        "groups.csv",
        "links.csv",
        "report.html",
    ]


def test_an_audit_names_identical_files_and_shows_links_across_classes(
    folder: Path, tmp_path: Path
) -> None:
    shutil.copy(folder / "a" / "1.png", folder / "b" / "same.png")
    audit = audit_folder(folder, tmp_path / "audit")
    copies = [Copy("a/1.png", "a"), Copy("b/same.png", "b")]
    assert (audit.identical_files, audit.identical) == (1, [copies])
    page = (tmp_path / "audit/report.html").read_text("utf-8")
    assert "a/1.png (a), b/same.png (b)" in page
    across = page[page.index("Links across classes") : page.index("The largest groups")]
    assert "b/wrong.png" in across
    assert "<img" in across


def test_a_refused_pair_is_reported_once(folder: Path, tmp_path: Path) -> None:
    paths = sorted(folder.rglob("*.png"))
    tiles = [np.asarray(Image.open(path)) for path in paths]
    refused = group_tiles(len(tiles), lambda i: tiles[i], paths).refused
    pairs = [frozenset((link.first, link.second)) for link in refused]
    assert len(pairs) == len(set(pairs))


def test_known_groups_without_a_pair_have_no_recall(folder: Path, tmp_path: Path) -> None:
    known = tmp_path / "known.csv"
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    known.write_text("path,group\n" + "".join(f"{p},{i}\n" for i, p in enumerate(paths)))
    audit = audit_folder(folder, tmp_path / "audit", known).known
    assert audit.recall is None
    assert audit.precision_as_published == 0.0


def test_a_class_may_be_called_mixed(folder: Path, tmp_path: Path) -> None:
    """As the mixed subtype is."""
    (folder / "a").rename(folder / "mixed-type")
    audit = audit_folder(folder, tmp_path / "audit")
    assert len(audit.groups_across_classes) == 1


def test_an_audit_shows_links_between_known_groups(folder: Path, tmp_path: Path) -> None:
    known = tmp_path / "known.csv"
    paths = sorted(path.relative_to(folder).as_posix() for path in folder.rglob("*.png"))
    # The known groups miss that 1-copy shows what 1 shows.
    groups = {path: path.split("/")[1][0] for path in paths}
    groups |= {"a/1-copy.png": "other", "b/wrong.png": "0"}
    known.write_text("path,group\n" + "".join(f"{p},{g}\n" for p, g in groups.items()))
    audit = audit_folder(folder, tmp_path / "audit", known).known
    assert [(link.first, link.second) for link in audit.links] == [("1", "other")]
    assert audit.recall == audit.precision == 1.0
    assert audit.precision_as_published < 1.0
    assert audit.corrected_groups == audit.groups - 1


def test_an_audit_writes_over_nothing(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "audit").mkdir()
    (tmp_path / "audit" / "mine.txt").write_text("keep")
    with pytest.raises(EdgelungError, match="already exists"):
        audit_folder(folder, tmp_path / "audit")
