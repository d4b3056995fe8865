"""A signed run: rows and summary are those that the holder of the key signed, or `view` stops."""

import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from edgelung.artifacts.keys import write_key_pair


@pytest.fixture
def keys(tmp_path: Path) -> tuple[Path, Path]:
    """A private and a public key."""
    folder = tmp_path / "keys"
    folder.mkdir()
    write_key_pair(folder / "lab.key.pem", folder / "lab.pub.pem", None)
    return folder / "lab.key.pem", folder / "lab.pub.pem"


@pytest.fixture
def signed(write_run, cli, keys: tuple[Path, Path]) -> Path:
    """The rows of a signed run."""
    rows: Path = write_run(concerns=())
    done = cli("sign", rows, "--key", keys[0])
    assert done.returncode == 0, done.stderr
    return rows


def _swap_label(rows: Path) -> None:
    text = rows.read_text()
    assert "ok,lung_n,0.900000" in text
    rows.write_text(text.replace("ok,lung_n,0.900000", "ok,lung_aca,0.900000"))


def _swap_label_and_hash(rows: Path) -> None:
    from edgelung.core.files import sha256_file

    summary = rows.with_suffix(".summary.json")
    before = sha256_file(rows)
    _swap_label(rows)
    summary.write_text(summary.read_text().replace(before, sha256_file(rows)))


def _other_bundle(rows: Path) -> None:
    summary = rows.with_suffix(".summary.json")
    summary.write_text(summary.read_text().replace("ab" * 32, "cd" * 32))


def _no_signature(rows: Path) -> None:
    rows.with_suffix(".summary.json.sig").unlink()


def _link(rows: Path) -> None:
    signature = rows.with_suffix(".summary.json.sig")
    signature.unlink()
    signature.symlink_to("/dev/zero")


def _of_another_run(rows: Path) -> None:
    signature = rows.with_suffix(".summary.json.sig")
    text = signature.read_bytes()
    signature.write_bytes(text.replace(text[200:204], text[204:208]))


def test_a_signed_run_says_who_signed_it(signed: Path, cli, keys: tuple[Path, Path]) -> None:
    done = cli("view", signed, "--trust", keys[1])
    assert done.returncode == 0, done.stderr
    assert "by lab.pub.pem" in signed.with_suffix(".html").read_text()


@pytest.mark.parametrize(
    "change",
    [_swap_label, _swap_label_and_hash, _other_bundle, _no_signature, _link, _of_another_run],
)
def test_a_changed_run_is_refused(
    change: Callable[[Path], None], signed: Path, cli, keys: tuple[Path, Path]
) -> None:
    change(signed)
    done = cli("view", signed, "--trust", keys[1])
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert not signed.with_suffix(".html").exists()


def test_a_run_signed_by_another_key_is_refused(signed: Path, cli, tmp_path: Path) -> None:
    write_key_pair(tmp_path / "b.key.pem", tmp_path / "b.pub.pem", None)
    done = cli("view", signed, "--trust", tmp_path / "b.pub.pem")
    assert done.returncode == 2
    assert not signed.with_suffix(".html").exists()


def test_the_signature_of_one_run_does_not_fit_a_renamed_one(
    signed: Path, cli, keys: tuple[Path, Path], tmp_path: Path
) -> None:
    folder = tmp_path / "renamed"
    folder.mkdir()
    shutil.copy(signed, folder / "other.csv")
    for suffix in (".summary.json", ".summary.json.sig"):
        shutil.copy(signed.with_suffix(suffix), folder / f"other{suffix}")
    words = ("--summary", folder / "other.summary.json", "--trust", keys[1])
    assert cli("view", folder / "other.csv", *words).returncode == 2


def test_rows_that_were_changed_are_not_signed(write_run, cli, keys: tuple[Path, Path]) -> None:
    rows: Path = write_run(concerns=())
    _swap_label(rows)
    done = cli("sign", rows, "--key", keys[0])
    assert done.returncode == 2
    assert "was changed after the run ended" in done.stderr
    assert not rows.with_suffix(".summary.json.sig").exists()


def test_the_rows_that_are_shown_are_those_that_were_hashed(
    write_run, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another file lies in the place of the rows only while they are parsed."""
    from edgelung.report.finished_run import open_finished_run

    rows: Path = write_run(concerns=())
    labels = [row.label for row in open_finished_run(rows).predictions.rows]
    other = shutil.copy(rows, rows.with_name("other.csv"))
    _swap_label(other)
    opened = Path.open
    monkeypatch.setattr(
        Path,
        "open",
        lambda path, *words, **more: opened(other if path == rows else path, *words, **more),
    )
    run = open_finished_run(rows)
    assert run.is_unchanged
    assert [row.label for row in run.predictions.rows] == labels
