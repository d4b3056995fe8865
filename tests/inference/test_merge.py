"""Parts of a run: each file falls on one of them, and merged they are the undivided run."""

import hashlib
import json
import os
import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from edgelung.artifacts.bundle import Bundle
from edgelung.artifacts.summary import Summary, read_summary, summary_bytes
from edgelung.core.errors import EdgelungError
from edgelung.engines.names import EngineName
from edgelung.engines.visible_gpu import select_gpu
from edgelung.inference.destination import Destination
from edgelung.inference.merge import merge_parts
from edgelung.inference.session import Options, infer_folder
from edgelung.inference.shards import PathSum, Shard, ShardFiles
from edgelung.inference.source import Source
from edgelung.tiles.find import FoundFile

FAST = Options(engine=EngineName.ONNXRUNTIME, batch_size=4)
NAMES = ("a", "a.jpeg", "a-b/2.jpeg", "a/1.jpeg", "a/x/1.jpeg", "b.jpeg", "c/é.jpeg", "z.jpeg")


@pytest.fixture(scope="module")
def folder(tiles: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Tiles under names whose order is easy to get wrong, a damaged one, and a text."""
    folder = tmp_path_factory.mktemp("merge") / "tiles"
    some = sorted((tiles / "lung_n").glob("*.jpeg"))
    for number, name in enumerate(NAMES[1:]):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(some[number], folder / name)
    shutil.copy(some[0], os.fsencode(folder) + b"/a/\xff.jpeg")
    (folder / "b.jpeg").write_bytes(some[5].read_bytes()[:600])
    (folder / "notes.txt").write_text("no tile")
    return folder


def predict(
    folder: Path, bundle: Bundle, out: Path, shard: str | None = None, options: Options = FAST
) -> Summary:
    options = replace(options, shard=Shard.parse(shard) if shard else None)
    return infer_folder(Source((folder,)), bundle, Destination.parse(out), options, resume=False)


def predict_parts(
    folder: Path, bundle: Bundle, out: Path, count: int, options: Options = FAST
) -> list[Path]:
    parts = [out.with_name(f"{n}-{out.name}") for n in range(1, count + 1)]
    for number, part in enumerate(parts, 1):
        predict(folder, bundle, part, f"{number}/{count}", options)
    return parts


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_merged_parts_are_the_undivided_run_to_the_last_byte(
    folder: Path, bundle: Bundle, tmp_path: Path, suffix: str
) -> None:
    if suffix == "parquet":
        pytest.importorskip("pyarrow")
    whole, merged = tmp_path / f"whole.{suffix}", tmp_path / f"merged.{suffix}"
    options = replace(FAST, verify=True)
    before = predict(folder, bundle, whole, options=options)
    parts = predict_parts(folder, bundle, tmp_path / f"part.{suffix}", 3, options)
    summary = merge_parts(parts[::-1], Destination.parse(merged))
    assert merged.read_bytes() == whole.read_bytes()
    assert summary == read_summary(tmp_path / "merged.summary.json")
    assert [part.shard for part in summary.parts] == ["1/3", "2/3", "3/3"]
    same = ("files", "failed", "statuses", "stages", "labels", "verify", "exit_code", "out_sha256")
    assert {name: getattr(summary, name) for name in same} == {
        name: getattr(before, name) for name in same
    }
    assert summary.options == before.options
    assert summary.options_sha256 == before.options_sha256
    assert before.exit_code == 3


def test_more_parts_than_files_leave_some_empty(
    folder: Path, bundle: Bundle, tmp_path: Path
) -> None:
    predict(folder, bundle, tmp_path / "whole.jsonl")
    parts = predict_parts(folder, bundle, tmp_path / "part.jsonl", 23)
    assert any(not part.read_bytes() for part in parts)
    merge_parts(parts, Destination.parse(tmp_path / "merged.jsonl"))
    assert (tmp_path / "merged.jsonl").read_bytes() == (tmp_path / "whole.jsonl").read_bytes()


def test_what_is_not_the_whole_run_is_refused(
    folder: Path, bundle: Bundle, tmp_path: Path, cli
) -> None:
    """Each message says what is wrong; nothing is written."""
    one, two = predict_parts(folder, bundle, tmp_path / "part.csv", 2)
    merged = Destination.parse(tmp_path / "merged.csv")

    def refused(parts: list[Path], message: str) -> None:
        with pytest.raises(EdgelungError, match=message):
            merge_parts(parts, merged)
        assert not (tmp_path / "merged.csv").exists()

    refused([one], "1 of 2 parts are missing: 2")
    refused([one, two, one], "part 1/2 is there twice")
    other = tmp_path / "other.csv"
    predict(folder, bundle, other, "2/3")
    refused([one, other], "not of one run: --shard is 1/2 and 2/3")
    predict(folder, bundle, other, "2/2", replace(FAST, batch_size=2))
    refused([one, other], "not of one run: --batch-size is 4 and 2")
    predict(folder, bundle, other, "2/2", replace(FAST, min_confidence=0.9))
    refused([one, other], "not of one run: --min-confidence is None and 0.9")
    predict(folder, bundle, other)
    refused([one, other], "is no part of a run; expected rows of `edgelung infer --shard K/N`")
    elsewhere = shutil.copytree(folder, tmp_path / "elsewhere")
    predict(elsewhere, bundle, other, "2/2")
    refused([one, other], r"folder is \['tiles'\] and \['elsewhere'\]")
    more = shutil.copytree(folder, tmp_path / "copy" / "tiles")
    shutil.copy(more / "z.jpeg", more / "z2.jpeg")
    predict(more, bundle, other, "2/2")
    refused([one, other], "have not seen the same files: 9 and 10")
    with pytest.raises(EdgelungError, match="is one of the parts"):
        merge_parts([one, two], Destination.parse(one))
    with pytest.raises(EdgelungError, match="of two formats"):
        merge_parts([one, two], Destination.parse(tmp_path / "merged.jsonl"))
    two.write_bytes(two.read_bytes().replace(b"0.", b"1.", 1))
    refused([one, two], "was changed after its run")
    two.unlink()
    refused([one, two], "cannot read")
    result = cli("merge", one, two, "--out", "merged.csv")
    assert (result.returncode, len(result.stderr.splitlines())) == (2, 1)


def test_rows_that_a_part_should_not_have_are_noticed(
    folder: Path, bundle: Bundle, tmp_path: Path
) -> None:
    """Someone took a row out and wrote a summary that fits: the list of files does not."""
    parts = predict_parts(folder, bundle, tmp_path / "part.csv", 2)
    lines = parts[0].read_bytes().splitlines(keepends=True)
    parts[0].write_bytes(b"".join(lines[:-1]))
    path = tmp_path / "1-part.summary.json"
    content = json.loads(path.read_text())

    content["out_sha256"] = hashlib.sha256(parts[0].read_bytes()).hexdigest()
    path.write_text(json.dumps(content))
    with pytest.raises(EdgelungError, match="the parts hold 8 rows, and they have seen 9 files"):
        merge_parts(parts, Destination.parse(tmp_path / "merged.csv"))


def edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | changes))


def test_an_edited_summary_does_not_change_what_rows_mean(
    folder: Path, bundle: Bundle, tmp_path: Path
) -> None:
    parts = predict_parts(folder, bundle, tmp_path / "part.csv", 2)
    merged, path = Destination.parse(tmp_path / "merged.csv"), tmp_path / "1-part.summary.json"
    before = json.loads(path.read_text())
    swapped = dict(reversed(before["labels"].items()))
    edit(path, labels=swapped)
    with pytest.raises(EdgelungError, match="one of them was changed after the run"):
        merge_parts(parts, merged)
    edit(path, labels=before["labels"], options=before["options"] | {"--batch-size": 9})
    with pytest.raises(EdgelungError, match="its options have another hash"):
        merge_parts(parts, merged)
    edit(path, options=before["options"], statuses={"ok": 7_000}, files=7_000)
    summary = merge_parts(parts, merged)  # counts are those of the rows
    assert summary.files == sum(summary.statuses.values()) == 9


def test_an_empty_folder_is_a_mistake_in_every_part(bundle: Bundle, tmp_path: Path) -> None:
    (tmp_path / "tiles").mkdir()
    with pytest.raises(EdgelungError, match="found no file at all"):
        predict(tmp_path / "tiles", bundle, tmp_path / "rows.csv", "1/2")


def test_a_name_that_is_not_set_is_no_part(folder: Path, bundle_folder: Path, cli) -> None:
    """A script's unset variable: every task would predict everything."""
    done = cli("infer", folder, "--model", bundle_folder, "--shard", "", "--out", "rows.csv")
    assert done.returncode == 2
    assert "--shard '': expected K/N" in done.stderr


def test_the_command_merges_and_says_what_was_merged(
    folder: Path, bundle_folder: Path, tmp_path: Path, cli
) -> None:
    words = ["infer", folder, "--model", bundle_folder, "--engine", "onnxruntime"]
    for number in (1, 2):
        part = cli(*words, "--shard", f"{number}/2", "--out", f"{number}.csv")
        assert f"; part {number}/2 of 9 files" in part.stdout
        assert "once all 2 parts have ended: edgelung merge" in part.stderr
    done = cli("merge", "1.csv", "2.csv", "--out", "all.csv")
    assert done.returncode == 3
    assert "9 files → all.csv" in done.stdout
    assert "parts     2," in done.stdout
    assert cli("view", "all.csv").returncode == 0
    again = cli("merge", "1.csv", "2.csv", "--out", "all.csv", "--json")
    assert json.loads(again.stdout)["parts"][1]["shard"] == "2/2"


@pytest.mark.parametrize(
    "text", ["0/3", "4/3", "1/0", "3", "1/2/3", "-1/3", "a/b", "1/" + "9" * 5000, "1/100001", ""]
)
def test_a_wrong_part_is_one_line(text: str) -> None:
    with pytest.raises(EdgelungError, match="expected K/N, part K of N"):
        Shard.parse(text)


def test_a_part_needs_a_file_and_an_end(cli, tmp_path: Path) -> None:
    for words in (["--out", "-"], ["--watch"], ["--summary", "s.json"]):
        result = cli("infer", tmp_path, "--shard", "1/2", *words)
        assert result.returncode == 2
        assert "expected --out FILE, no --summary and no --watch" in result.stderr


@pytest.mark.parametrize("files", [0, 1, 6, 7, 8, 55, 56, 57, 1_000])
def test_each_file_is_in_one_part_and_batches_stay_whole(files: int) -> None:
    found = [FoundFile(f"{i:04}", f"{i:04}") for i in range(files)]
    parts = [ShardFiles(found, Shard(number, 8), 7) for number in range(1, 9)]
    batches: list[list[FoundFile]] = []
    for number, part in enumerate(parts, 1):
        own = list(part)
        assert len(own) == Shard(number, 8).size(files, 7)
        batches += [own[i : i + 7] for i in range(0, len(own), 7)]
    whole = [found[i : i + 7] for i in range(0, files, 7)]
    assert sorted(batches, key=lambda batch: batch[0].path) == whole
    counted = PathSum()
    for file in reversed(found):
        counted.add(file.path)
    assert {part.seen.listing for part in parts} == {counted.listing}  # in any order


def test_a_summary_without_parts_is_as_before(folder: Path, bundle: Bundle, tmp_path: Path) -> None:
    summary = predict(folder, bundle, tmp_path / "rows.csv")
    assert b'"parts"' not in summary_bytes(summary)
    assert b'"listing"' not in summary_bytes(summary)
    assert b'"--shard"' not in summary_bytes(summary)


def test_the_gpu_that_is_named_is_the_only_one_that_is_seen(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for named, number, expected in ((None, 3, "3"), ("5,7", 1, "7"), ("GPU-a, GPU-b", 0, "GPU-a")):
        monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
        if named:
            monkeypatch.setenv("CUDA_VISIBLE_DEVICES", named)
        select_gpu(number)
        assert os.environ["CUDA_VISIBLE_DEVICES"] == expected
        assert ("CUDA_DEVICE_ORDER" in os.environ) == (named is None)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "5,7")
    with pytest.raises(EdgelungError, match="CUDA_VISIBLE_DEVICES is '5,7', a list of 2"):
        select_gpu(2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    with pytest.raises(EdgelungError, match="a list of 0; it hides all GPUs"):
        select_gpu(0)


def test_a_gpu_that_is_asked_for_is_not_replaced_by_the_cpu(
    folder: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    with pytest.raises(EdgelungError, match="--device 0: no GPU engine works here, only"):
        predict(folder, bundle, tmp_path / "rows.csv", options=replace(FAST, gpu=0))
    assert not (tmp_path / "rows.csv").exists()
