"""The record of a slide: it comes back as it was, and what is no such record is refused."""

import json
from pathlib import Path

import pytest

from edgelung import RESEARCH_USE_ONLY
from edgelung.artifacts.slide_summary import read_slide_summary, write_slide_summary
from edgelung.core.errors import EdgelungError


def test_a_summary_comes_back_as_it_was(tmp_path: Path, make_slide) -> None:
    summary = make_slide(6_000, 4_000).summary
    write_slide_summary(tmp_path / "slide.json", summary)
    assert read_slide_summary(tmp_path / "slide.json") == summary


def test_a_summary_says_what_it_is_for(tmp_path: Path, make_slide) -> None:
    write_slide_summary(tmp_path / "slide.json", make_slide(6_000, 4_000).summary)
    content = json.loads((tmp_path / "slide.json").read_text())
    assert content["kind"] == "edgelung slide"
    assert content["note"] == RESEARCH_USE_ONLY


@pytest.mark.parametrize(
    ("change", "reason"),
    [({"schema_version": 2}, "update edgelung"), ({"kind": "edgelung infer"}, "expected the sum")],
)
def test_another_record_is_refused(tmp_path: Path, make_slide, change: dict, reason: str) -> None:
    path = tmp_path / "slide.json"
    write_slide_summary(path, make_slide(6_000, 4_000).summary)
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(EdgelungError, match=reason):
        read_slide_summary(path)
