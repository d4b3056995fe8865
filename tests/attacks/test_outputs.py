"""Outputs: nothing that another user plants, swaps or links makes edgelung write elsewhere."""

import os
import stat
from pathlib import Path

import pytest
from plants import NOT_REGULAR, PLANTS, SECRET, listing, root_only
from run_identity import IDENTITY

from edgelung.artifacts.predictions import read_predictions
from edgelung.artifacts.summary import check_summary
from edgelung.core.errors import EdgelungError
from edgelung.core.files import (
    WriteError,
    atomic_folder,
    atomic_write,
    check_output_file,
    new_folder,
    write_json,
)
from edgelung.core.folder import TEMPORARY_SUFFIX, Folder
from edgelung.inference.destination import STANDARD_OUTPUT, Destination
from edgelung.inference.record import Record
from edgelung.inference.sinks import Sink, open_sink

RECORDS = [Record("1.jpg", "ok", "", [0.75, 0.25], None, (1, 2))]


@pytest.fixture
def out(tmp_path: Path) -> Path:
    (tmp_path / "out").mkdir()
    return tmp_path / "out"


@pytest.fixture
def victim(tmp_path: Path) -> Path:
    (tmp_path / "theirs").mkdir()
    path = tmp_path / "theirs" / "thesis.txt"
    path.write_bytes(SECRET)
    return path


def opened(rows: Path, *, live: bool = False) -> Sink:
    sink = open_sink(Destination.parse(rows), ["a", "b"], resume=None, live=live)
    sink.start(IDENTITY, "now")
    sink.append(RECORDS)
    return sink


def finished(sink: Sink) -> None:
    sink.finish()
    sink.complete()
    sink.close()


@pytest.mark.parametrize("plant", PLANTS)
@pytest.mark.parametrize("name", ["rows.csv", "rows.jsonl", "rows.parquet", "live.csv"])
def test_what_is_planted_at_a_name_that_can_be_guessed_is_never_written_to(
    out: Path, victim: Path, plant: str, name: str
) -> None:
    if name.endswith("parquet"):
        pytest.importorskip("pyarrow")
    planted = out / f".{name}{TEMPORARY_SUFFIX}"
    PLANTS[plant](planted, victim)
    before = planted.lstat()
    finished(opened(out / name, live=name.startswith("live")))
    assert [row.path for row in read_predictions(out / name).rows] == ["1.jpg"]
    assert victim.read_bytes() == SECRET
    assert sorted(victim.parent.iterdir()) == [victim]
    assert planted.lstat().st_ino == before.st_ino


def test_temporary_names_are_random_and_their_files_private(out: Path) -> None:
    names = set()
    for _ in range(4):
        with atomic_write(out / "page.html") as file:
            (path,) = [path for path in out.iterdir() if path.suffix == TEMPORARY_SUFFIX]
            file.write(b"x")
        names.add(path.name.split(".")[-2])
    assert len(names) == 4
    assert {len(name) for name in names} == {16}  # 64 bits
    os.umask(mask := os.umask(0o022))
    with atomic_write(out / "page.html"):
        (path,) = [path for path in out.iterdir() if path.suffix == TEMPORARY_SUFFIX]
        assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert stat.S_IMODE((out / "page.html").stat().st_mode) == 0o666 & ~mask


@pytest.mark.parametrize("plant", NOT_REGULAR)
@pytest.mark.parametrize("option", ["--out", "--summary"])
def test_an_output_that_is_no_regular_file_is_refused_before_the_work(
    out: Path, victim: Path, plant: str, option: str
) -> None:
    path = out / ("rows.csv" if option == "--out" else "s.json")
    PLANTS[plant](path, victim)
    before = path.lstat()
    if option == "--out" and plant == "symlink":  # of this user: see the next test
        victim.unlink()
    names = (path,) if option == "--out" else (STANDARD_OUTPUT, path)
    with pytest.raises(EdgelungError, match=f"{option} .*(link|FIFO|socket|folder|device)"):
        Destination.parse(*names)
    with pytest.raises(EdgelungError, match=f"{option} .*(link|FIFO|socket|folder|device)"):
        check_output_file(path, option)
    assert path.lstat().st_ino == before.st_ino


@pytest.mark.parametrize("name", ["/dev/null", "/dev/zero", "/dev/full"])
def test_a_device_is_never_replaced(name: str) -> None:
    """Root may rename a file over /dev/null, which breaks the machine."""
    with pytest.raises(EdgelungError, match="is a device"):
        check_output_file(Path(name))
    with pytest.raises(EdgelungError, match="is a device"):
        Destination.parse(STANDARD_OUTPUT, Path(name))


def test_a_link_to_a_file_that_no_run_wrote_is_refused(out: Path, victim: Path) -> None:
    victim.rename(theirs := victim.with_suffix(".csv"))
    (out / "rows.csv").symlink_to(theirs)
    with pytest.raises(EdgelungError, match="no list of predictions"):
        Destination.parse(out / "rows.csv")


@root_only
def test_a_link_of_another_user_is_never_taken(out: Path) -> None:
    (out / "kept.csv").touch()
    (out / "rows.csv").symlink_to(out / "kept.csv")
    os.chown(out / "rows.csv", 12345, 12345, follow_symlinks=False)
    with pytest.raises(EdgelungError, match="a link of another user"):
        Destination.parse(out / "rows.csv")


@pytest.mark.parametrize("plant", NOT_REGULAR)
@pytest.mark.parametrize("live", [False, True])
def test_what_is_planted_at_the_output_after_the_check_is_left_alone(
    out: Path, victim: Path, plant: str, live: bool
) -> None:
    sink = opened(out / "rows.csv", live=live)
    (out / "rows.csv").unlink(missing_ok=True)
    PLANTS[plant](out / "rows.csv", victim)
    before = (out / "rows.csv").lstat()
    with pytest.raises(EdgelungError, match="expected a regular file"):
        finished(sink)
    sink.close()
    assert (out / "rows.csv").lstat().st_ino == before.st_ino
    assert victim.read_bytes() == SECRET
    assert sorted(path.name for path in out.iterdir()) == ["rows.csv", "rows.csv.edgelung-journal"]


@pytest.mark.parametrize("plant", PLANTS)
def test_a_summary_never_replaces_what_is_no_summary(out: Path, victim: Path, plant: str) -> None:
    PLANTS[plant](out / "rows.summary.json", victim)
    with pytest.raises(EdgelungError), Folder(out) as folder:
        check_summary(folder, "rows.summary.json")
    assert victim.read_bytes() == SECRET


def test_a_hard_link_to_anothers_file_loses_a_name_and_no_content(out: Path, victim: Path) -> None:
    os.link(victim, out / "page.html")
    with atomic_write(out / "page.html") as file:
        file.write(b"page")
    assert victim.read_bytes() == SECRET


def swap(out: Path, victim: Path) -> Path:
    """Put a link to somebody's folder where the folder was; the folder under its new name."""
    moved = out.with_name("moved")
    out.rename(moved)
    out.symlink_to(victim.parent)
    return moved


def test_a_folder_that_is_swapped_during_a_write_gets_nothing(out: Path, victim: Path) -> None:
    with atomic_write(out / "thesis.txt") as file:
        moved = swap(out, victim)
        file.write(b"page")
    assert listing(victim.parent) == {"thesis.txt": SECRET}
    assert listing(moved) == {"thesis.txt": b"page"}


@pytest.mark.parametrize("live", [False, True])
def test_a_folder_that_is_swapped_during_a_run_gets_no_rows(
    out: Path, victim: Path, live: bool
) -> None:
    victim.with_name("rows.csv").write_bytes(SECRET)
    sink = opened(out / "rows.csv", live=live)
    moved = swap(out, victim)
    finished(sink)
    assert listing(victim.parent) == {"rows.csv": SECRET, "thesis.txt": SECRET}
    assert [row.path for row in read_predictions(moved / "rows.csv").rows] == ["1.jpg"]


def test_a_folder_that_is_swapped_between_check_and_run_is_checked_again(
    out: Path, victim: Path
) -> None:
    victim.with_name("rows.csv").write_bytes(SECRET)
    destination = Destination.parse(out / "rows.csv")
    swap(out, victim)
    with pytest.raises(EdgelungError, match="no list of predictions"):
        open_sink(destination, ["a", "b"], resume=None, live=False)
    assert victim.with_name("rows.csv").read_bytes() == SECRET


@pytest.mark.skipif(not os.path.isdir("/proc/self/fd"), reason="needs Linux' /proc")
def test_a_folder_above_a_new_bundle_that_is_swapped_leads_nowhere_else(
    out: Path, victim: Path
) -> None:
    """The attacker knows the random name by then, and plants the files that come next."""
    with atomic_folder(out / "bundle") as folder:
        (temporary,) = out.iterdir()
        fake = victim.parent / temporary.name
        fake.mkdir()
        (fake / "model.onnx").symlink_to(victim)
        moved = swap(out, victim)
        (folder / "model.onnx").write_bytes(b"graph")
        write_json(folder / "bundle.json", {})
    assert victim.read_bytes() == SECRET
    assert listing(moved) == {
        "bundle": None,
        "bundle/bundle.json": b"{}\n",
        "bundle/model.onnx": b"graph",
    }


@pytest.mark.parametrize("plant", PLANTS)
def test_a_new_folder_takes_no_name_that_is_in_use(out: Path, victim: Path, plant: str) -> None:
    def write() -> None:
        with atomic_folder(out / "run") as folder:
            if not os.path.lexists(out / "run"):
                PLANTS[plant](out / "run", victim)
            (folder / "run.json").write_text("{}")

    if plant == "folder":
        write()  # an empty folder is what `--out` may name
        assert listing(out) == {"run": None, "run/run.json": b"{}"}
        return
    with pytest.raises(WriteError):
        write()
    assert victim.read_bytes() == SECRET
    assert [path.name for path in out.iterdir()] == ["run"]
    with pytest.raises(EdgelungError, match="already exists"):
        new_folder(out / "run", "run")


def test_a_link_to_an_empty_folder_is_no_new_folder(out: Path, victim: Path) -> None:
    (victim.parent / "empty").mkdir()
    (out / "bundle").symlink_to(victim.parent / "empty")
    with pytest.raises(EdgelungError, match="already exists"):
        new_folder(out / "bundle", "bundle")


def test_a_new_folder_is_private_until_it_is_complete(out: Path) -> None:
    with atomic_folder(out / "run"):
        (temporary,) = out.iterdir()
        assert stat.S_IMODE(temporary.stat().st_mode) == 0o700
        assert temporary.name != "run"


def test_only_leftovers_of_this_file_are_removed(out: Path, victim: Path) -> None:
    random = "0123456789abcdef"
    mine = out / f".rows.csv.{random}{TEMPORARY_SUFFIX}"
    mine.touch()
    kept = [
        out / f".rows.csv.x.{random}{TEMPORARY_SUFFIX}",  # of another output
        out / f".rows.csv{TEMPORARY_SUFFIX}",
        out / f".rows.csv.{random}",
    ]
    for path in kept:
        path.touch()
    link = out / f".rows.csv.{random[::-1]}{TEMPORARY_SUFFIX}"
    link.symlink_to(victim)
    with Folder(out) as folder:
        folder.remove_leftovers("rows.csv")
    assert not mine.exists()
    assert sorted(out.iterdir()) == sorted([*kept, link])


def test_a_name_of_the_greatest_length_can_be_written(out: Path) -> None:
    name = "ä" * 120 + ".html"
    with atomic_write(out / name) as file:
        file.write(b"x")
    assert [path.name for path in out.iterdir()] == [name]


@pytest.mark.parametrize("plant", NOT_REGULAR)
def test_what_is_planted_during_a_write_is_left_alone(out: Path, victim: Path, plant: str) -> None:
    def write() -> None:
        with atomic_write(out / "page.html") as file:
            PLANTS[plant](out / "page.html", victim)
            file.write(b"page")

    with pytest.raises(EdgelungError, match="expected a regular file"):
        write()
    assert [path.name for path in out.iterdir()] == ["page.html"]
    assert not (out / "page.html").is_file() or (out / "page.html").is_symlink()
    assert victim.read_bytes() == SECRET


@pytest.mark.parametrize("live", [False, True])
def test_a_run_removes_what_a_killed_one_left(out: Path, live: bool) -> None:
    left = out / f".rows.csv.0123456789abcdef{TEMPORARY_SUFFIX}"
    left.touch()
    finished(opened(out / "rows.csv", live=live))
    assert not left.exists()
