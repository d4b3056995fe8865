"""The summary: one writer, one reader, and old files stay readable."""

import json
from pathlib import Path

import msgspec
import pytest

from edgelung.artifacts.summary import (
    KIND,
    SCHEMA_VERSION,
    Latency,
    Summary,
    Verification,
    read_summary,
    rows_name_of,
    write_summary,
)
from edgelung.core.errors import EdgelungError
from edgelung.core.system import Host

SUMMARY = Summary(
    kind=KIND,
    schema_version=SCHEMA_VERSION,
    note="Research use only",
    started="2026-01-01T00:00:00+00:00",
    resumed=["2026-01-01T00:01:00+00:00"],
    ended="2026-01-01T00:02:00+00:00",
    bundle="first",
    bundle_sha256="00",
    engine="openvino",
    device="CPU",
    precision="int8",
    floating_point="fp32",
    choice="int8 asked for",
    golden_difference=0.001,
    files=3,
    failed=1,
    statuses={"ok": 2, "empty": 1},
    labels={"a": 2, "b": 0},
    verify=Verification(
        tiles=2,
        agreement=1.0,
        differing_labels=0,
        max_probability_difference=0.25,
        min_agreement=0.99,
        passed=True,
    ),
    exit_code=3,
    out="r\\xe9s.csv",
    out_sha256=None,
    options={"--engine": "openvino", "inputs": ["/tiles"], "--subset": None},
    options_sha256="01",
    seconds=1.5,
    tiles_per_second=None,
    milliseconds={"read and decode, a tile": Latency(p50=1.0, p90=2.0, p99=3.0), "engine": None},
    threads=2,
    host=Host(
        edgelung="0.2.0", python="3.11", packages={}, name="lab", system="Linux", cpu="", cores=2
    ),
)


def content(path: Path) -> dict[str, object]:
    value = json.loads(path.read_text())
    assert isinstance(value, dict)
    return value


@pytest.mark.parametrize("waiting", [None, 0, 7])
def test_what_is_read_is_what_was_written(tmp_path: Path, waiting: int | None) -> None:
    summary = msgspec.structs.replace(SUMMARY, waiting=waiting)
    write_summary(tmp_path / "s.json", summary)
    assert read_summary(tmp_path / "s.json") == summary
    assert ("waiting" in content(tmp_path / "s.json")) == (waiting is not None)


def test_a_value_that_is_none_keeps_its_key(tmp_path: Path) -> None:
    write_summary(tmp_path / "s.json", SUMMARY)
    written = content(tmp_path / "s.json")
    assert written["out_sha256"] is None
    assert written["schema_version"] == SCHEMA_VERSION


def test_a_summary_without_a_version_is_read(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    write_summary(path, SUMMARY)
    old = content(path)
    del old["schema_version"]
    path.write_text(json.dumps(old))
    assert read_summary(path) == SUMMARY


def test_the_accuracy_in_a_summary_of_an_older_version_is_passed_over(tmp_path: Path) -> None:
    """Up to 0.2 `infer` computed the accuracy on labelled folders."""
    path = tmp_path / "s.json"
    write_summary(path, SUMMARY)
    old = content(path)
    metrics = {"classes": ["a", "b"], "tiles": 2, "accuracy": 0.5, "confusion": [[1, 0], [1, 0]]}
    verify = old["verify"]
    assert isinstance(verify, dict)
    old |= {"labelled": metrics, "verify": verify | {"variant": metrics, "reference": None}}
    path.write_text(json.dumps(old))
    assert read_summary(path) == SUMMARY


def test_a_newer_summary_is_refused_in_one_line(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    write_summary(path, SUMMARY)
    path.write_text(json.dumps(content(path) | {"schema_version": 99}))
    with pytest.raises(EdgelungError, match=r"schema version 99.*update edgelung"):
        read_summary(path)


@pytest.mark.parametrize("text", ["", "my notes", "[1]", '{"kind": "mine"}', "[" * 100_000])
def test_what_is_no_summary_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "s.json").write_text(text)
    with pytest.raises(EdgelungError, match="is no summary of a run"):
        read_summary(tmp_path / "s.json")
    assert rows_name_of(tmp_path / "s.json") is None


def test_a_wrong_field_is_named(tmp_path: Path) -> None:
    path = tmp_path / "s.json"
    write_summary(path, SUMMARY)
    path.write_text(json.dumps(content(path) | {"files": "many"}))
    with pytest.raises(EdgelungError, match=r"\$\.files"):
        read_summary(path)


def test_the_rows_that_it_describes_are_told_for_any_version(tmp_path: Path) -> None:
    (tmp_path / "s.json").write_text(
        json.dumps({"kind": KIND, "schema_version": 99, "out": "deep/rows.csv"})
    )
    assert rows_name_of(tmp_path / "s.json") == "rows.csv"
