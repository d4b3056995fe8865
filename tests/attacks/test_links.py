"""Links in a folder: those that lead out of it are named, and followed only when that is said."""

import os
from pathlib import Path

import pytest

import edgelung
from edgelung.core.errors import EdgelungError
from edgelung.inference.destination import STANDARD_OUTPUT, Destination
from edgelung.inference.record import Record
from edgelung.inference.source import Source
from edgelung.inference.tally import NoTilesError, Tally
from edgelung.inference.watch import SETTLE_SECONDS, Watcher
from edgelung.tiles.errors import TileError
from edgelung.tiles.files import read_found
from edgelung.tiles.find import LEADS_OUT, find_files
from edgelung.train.index import index_tiles

OUT = Destination.parse(STANDARD_OUTPUT)
GOLDEN = Path(edgelung.__file__).parent / "starter" / "golden"


@pytest.fixture
def inbox(tmp_path: Path) -> Path:
    (tmp_path / "inbox").mkdir()
    (tmp_path / "inbox" / "1.jpg").touch()
    (tmp_path / "inbox-2").mkdir()
    (tmp_path / "inbox-2" / "secret.jpg").touch()
    return tmp_path / "inbox"


TARGETS = {
    "the machine": "/",
    "a folder above": "..",
    "a folder above, by a detour": "../inbox/..",
    "a folder whose name begins the same": "../inbox-2",
    "a file outside": "../inbox-2/secret.jpg",
    "what is not there": "../gone.jpg",
    "the machine by /proc": "/proc/self/root",
    "a device": "/dev/zero",
    "another link that leads out": "hop",
}


@pytest.mark.parametrize("what", TARGETS)
def test_a_link_that_leads_out_is_one_entry_and_is_not_entered(inbox: Path, what: str) -> None:
    (inbox / ".hop").symlink_to("..")
    (inbox / "zz").symlink_to(TARGETS[what].replace("hop", ".hop"))
    found = list(find_files(inbox))
    assert [(file.path, file.leads_out) for file in found] == [
        (".hop", True),
        ("1.jpg", False),
        ("zz", True),
    ]
    assert not found[-1].is_image


def test_a_link_that_stays_inside_is_followed(inbox: Path) -> None:
    (inbox / "deep").mkdir()
    (inbox / "deep" / "2.jpg").touch()
    (inbox / "again").symlink_to("../inbox/deep")
    (inbox / "one.jpg").symlink_to(inbox / "1.jpg")
    (inbox / "deep" / "round").symlink_to("..")
    found = list(find_files(inbox))
    assert [file.path for file in found] == ["1.jpg", "again/2.jpg", "one.jpg"]
    assert not any(file.leads_out for file in found)


def test_a_link_that_leads_out_by_one_that_stays_inside_is_not_entered(inbox: Path) -> None:
    (inbox / "deep").mkdir()
    (inbox / "deep" / "up").symlink_to("../..")
    (inbox / "way").symlink_to("deep/up")
    found = list(find_files(inbox))
    assert [file.path for file in found if file.leads_out] == ["deep/up", "way"]
    assert len(found) == 3


def test_the_folder_itself_may_be_a_link(inbox: Path, tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to("inbox")
    (inbox / "one.jpg").symlink_to("1.jpg")
    (inbox / "up").symlink_to("..")
    found = [(file.path, file.leads_out) for file in find_files(tmp_path / "link")]
    assert found == [("1.jpg", False), ("one.jpg", False), ("up", True)]


def test_with_follow_links_each_real_folder_is_entered_once(inbox: Path) -> None:
    (inbox / "all").symlink_to("..")
    found = [file.path for file in find_files(inbox, follow_links=True)]
    assert found == ["1.jpg", "all/inbox-2/secret.jpg"]


def test_a_file_that_is_named_is_followed(inbox: Path, tmp_path: Path) -> None:
    (inbox / "zz.jpg").symlink_to("../inbox-2/secret.jpg")
    (tmp_path / "list").write_text("zz.jpg\n")
    for source in (Source((inbox / "zz.jpg",)), Source((inbox,), tmp_path / "list")):
        (file,) = source.files(OUT)
        assert not file.leads_out
        assert file.is_image


def test_a_run_has_a_row_for_the_link_and_counts_it(
    inbox: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from edgelung.cli.infer import print_summary

    (inbox / "1.jpg").write_bytes(min(GOLDEN.iterdir()).read_bytes())
    (inbox / "zz").symlink_to("/")
    summary = edgelung.infer_folder(inbox, tmp_path / "rows.csv")
    rows = edgelung.read_predictions(tmp_path / "rows.csv").rows
    assert [(row.path, row.status, row.error) for row in rows] == [
        ("1.jpg", "ok", ""),
        ("zz", "skipped", LEADS_OUT),
    ]
    assert summary.links_skipped == 1
    assert summary.exit_code == 0
    print_summary(summary)
    said = "1 lead out of the folder and were skipped; --follow-links follows them"
    assert said in capsys.readouterr().out


def test_a_folder_of_links_alone_names_the_option(inbox: Path) -> None:
    tally = Tally(["a", "b"])
    tally.add(Record("zz", "skipped", LEADS_OUT, None, None, None))
    with pytest.raises(NoTilesError, match=r"1 link\(s\) that lead out .*--follow-links"):
        tally.check_tiles()


@pytest.mark.parametrize("target", ["..", "../inbox-2/secret.jpg", "/dev/zero", "/"])
def test_a_watch_gives_the_link_its_row_and_does_not_open_it(
    inbox: Path, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (inbox / "zz.jpg").symlink_to(target)
    opened = []
    monkeypatch.setattr("edgelung.inference.watch.being_written", opened.append)
    watcher = Watcher(Source((inbox,)), OUT)
    watcher.ready(0)
    ready = watcher.ready(SETTLE_SECONDS)
    assert [(file.path, file.leads_out) for file in ready] == [("1.jpg", False), ("zz.jpg", True)]
    assert opened == [str(inbox / "1.jpg")]


@pytest.mark.parametrize("target", ["/", "..", "../inbox-2/secret.jpg"])
def test_training_refuses_and_an_audit_names_a_link_that_leads_out(
    inbox: Path, target: str
) -> None:
    (inbox / "lung_n").mkdir()
    tile = sorted(GOLDEN.iterdir())[0].read_bytes()
    (inbox / "1.jpg").unlink()
    (inbox / "lung_n" / "1.jpg").write_bytes(tile)
    (inbox / "zz").symlink_to(target)
    with pytest.raises(EdgelungError, match=r"zz: a link that leads out .* --follow-links"):
        index_tiles(inbox)
    told: dict[str, str] = {}
    tiles = index_tiles(inbox, on_error=told.__setitem__)
    assert [found.path for found in tiles] == ["lung_n/1.jpg"]
    assert told == {"zz": LEADS_OUT}


@pytest.mark.parametrize(
    "names", [("run.json", "split.csv"), ("bundle.json", "bundle.json.sha256")]
)
def test_a_fifo_with_the_name_of_one_of_our_files_does_not_hang_the_listing(
    inbox: Path, names: tuple[str, str]
) -> None:
    (inbox / "sub").mkdir()
    for name in names:
        os.mkfifo(inbox / "sub" / name)
    assert len(list(find_files(inbox))) == 3


def test_a_link_that_is_not_followed_is_not_looked_at_through(inbox: Path) -> None:
    """Its stamp is its own: a busy target would be predicted anew by each --resume."""
    from edgelung.inference.reading import stamp_of

    (inbox / "zz").symlink_to("/")
    (link,) = (file for file in find_files(inbox) if file.leads_out)
    info = os.lstat(inbox / "zz")
    assert stamp_of(link) == (info.st_size, info.st_mtime_ns)


def test_a_folder_that_becomes_a_link_during_the_listing_is_not_entered(tmp_path: Path) -> None:
    (tmp_path / "in" / "z").mkdir(parents=True)
    (tmp_path / "in" / "a.png").write_bytes(b"x")
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "private.png").write_bytes(b"x")
    files = find_files(tmp_path / "in")
    assert next(files).path == "a.png"
    (tmp_path / "in" / "z").rmdir()
    (tmp_path / "in" / "z").symlink_to(tmp_path / "out")
    assert [(file.path, file.leads_out) for file in files] == [("z", True)]


@pytest.mark.parametrize("replaced", ["the file", "its folder"])
def test_a_file_that_becomes_a_link_before_it_is_read_is_not_followed(
    tmp_path: Path, replaced: str
) -> None:
    folder, outside = tmp_path / "in" / "z", tmp_path / "out"
    folder.mkdir(parents=True)
    outside.mkdir()
    (folder / "a.png").write_bytes(b"public")
    (outside / "a.png").write_bytes(b"private")
    (file,) = find_files(tmp_path / "in")
    assert read_found(file) == b"public"
    (folder / "a.png").unlink()
    if replaced == "the file":
        (folder / "a.png").symlink_to(outside / "a.png")
    else:
        folder.rmdir()
        folder.symlink_to(outside)
    with pytest.raises(TileError, match="leads out") as caught:
        read_found(file)
    assert caught.value.status == "skipped"
    (followed,) = find_files(tmp_path / "in", follow_links=True)
    assert read_found(followed) == b"private"


def test_a_link_that_stays_inside_is_read(inbox: Path) -> None:
    (inbox / "1.jpg").write_bytes(b"public")
    (inbox / "2.jpg").symlink_to("1.jpg")
    assert [read_found(file) for file in find_files(inbox)] == [b"public"] * 2
