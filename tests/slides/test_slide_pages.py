"""The pages of slides: what comes first, that no name becomes HTML, that nothing is requested."""

import json
import re
from html import unescape
from html.parser import HTMLParser
from pathlib import Path

import msgspec
import pytest

from edgelung import RESEARCH_USE_ONLY
from edgelung.artifacts.slide_summary import SlideSummary
from edgelung.core.files import sha256_file
from edgelung.report import slide_page as page_module
from edgelung.report.gallery import script_hash
from edgelung.report.slide_index import index_page
from edgelung.report.slide_page import reduced, slide_page
from edgelung.report.zoom_page import zoom_page
from edgelung.slides.base import Overview
from edgelung.slides.zoom import write_zoom

NASTY = "<img src=x onerror=alert(1)>&\"'\u202ex.svs"


def page_of(slide, **options: object) -> str:
    values = {"mask": slide.mask, "mask_downsample": slide.mask_downsample} | options
    return slide_page(
        msgspec.structs.replace(slide.summary, **values.pop("changes", {})),
        slide.overview,
        slide.tiles,
        **values,
    )


def failed_slide(name: str = "broken.svs") -> SlideSummary:
    return SlideSummary(
        slide=name,
        status="failed",
        reason="the file ends early",
        started="2026-01-02T03:04:05+00:00",
        ended="2026-01-02T03:04:06+00:00",
    )


class Elements(HTMLParser):
    """All elements of a page with their attributes."""

    def __init__(self, html: str) -> None:
        super().__init__()
        self.found: list[tuple[str, dict[str, str | None]]] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.found.append((tag, dict(attrs)))

    def all(self, tag: str) -> list[dict[str, str | None]]:
        return [attributes for name, attributes in self.found if name == tag]


def test_the_page_names_only_its_own_script_and_no_address(make_slide) -> None:
    html = page_of(make_slide(6_000, 4_000))
    policy = re.search(r'Content-Security-Policy" content="([^"]*)"', html)[1]
    script = re.search(r"<script>(.*?)</script>", html, re.S)[1]
    assert unescape(policy).startswith("default-src 'none'; img-src data:;")
    assert script_hash(script) in unescape(policy)
    assert "://" not in html
    elements = Elements(html)
    assert all(image["src"].startswith("data:image/") for image in elements.all("img"))
    assert not any(name.startswith("on") for _, one in elements.found for name in one)


def test_the_page_is_the_same_every_time(make_slide) -> None:
    assert page_of(make_slide(6_000, 4_000)) == page_of(make_slide(6_000, 4_000))


def test_the_page_begins_with_research_use_and_what_limits_it(make_slide) -> None:
    html = page_of(make_slide())
    headline = re.search(r"<h1[^>]*>(.*?)</h1>", html)[1]
    assert headline.startswith("Research use: lung_aca on 45.2")
    picture = html.index('id="slide"')
    for text in (
        RESEARCH_USE_ONLY,
        "anisotropic",
        "10 tiles were not predicted",
        "33 tiles have no label",
    ):
        assert html.index(text) < picture, text


def test_a_share_without_an_interval_says_why(make_slide) -> None:
    html = page_of(make_slide(6_000, 4_000))
    assert "an interval needs 10" in html
    assert "too few for an interval" in html
    assert ">unknown<" in html
    assert "The interval resamples" not in html


@pytest.mark.parametrize("kind", ["slide", "index", "zoom"])
def test_names_stay_text(make_slide, array_slide, tmp_path: Path, kind: str) -> None:
    classes = ("</script><script>alert(1)</script>", "<b>bold</b>", "100% & 'x'")
    slide = make_slide(6_000, 4_000, name=NASTY, classes=classes)
    notes = {"notes": [NASTY], "reason": NASTY, "scene": NASTY, "status": "odd"}
    if kind == "slide":
        html = page_of(slide, changes=notes, files=["a b&'\"<.csv"])
    elif kind == "index":
        summary = msgspec.structs.replace(slide.summary, **notes)
        html = index_page([summary, failed_slide(NASTY)], {0: "a b/</a>.html"}, NASTY)
    else:
        made = write_zoom(tmp_path, array_slide(slide.overview.pixels))
        html = zoom_page(slide.summary, slide.overview, slide.tiles, slide.mask, 64.0, made)
    elements = Elements(html)
    assert {tag for tag, _ in elements.found}.isdisjoint(
        {"b", "iframe"} if kind != "slide" else {"iframe"}
    )
    assert all(image["src"].startswith("data:") for image in elements.all("img"))
    assert len(elements.all("script")) == {"slide": 2, "index": 0, "zoom": 3}[kind]
    assert "\u202e" not in html
    assert all(link["href"].startswith("./") for link in elements.all("a")) or kind == "zoom"


def test_the_data_of_a_page_is_what_its_script_needs(make_slide) -> None:
    slide = make_slide(6_000, 4_000)
    html = page_of(slide)
    data = json.loads(re.search(r'id="facts">(.*?)</script>', html, re.S)[1])
    height, width, _ = slide.overview.pixels.shape
    assert data == {
        "width": width,
        "height": height,
        "downsample": slide.overview.downsample,
        "slideWidth": 6_000,
        "slideHeight": 4_000,
        "mpp": 0.5,
    }


def test_a_large_overview_is_reduced(make_slide, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(page_module, "MAX_SIDE", 100)
    slide = make_slide(6_000, 4_000)
    pixels, downsample = reduced(Overview(slide.overview.pixels, 16.0))
    assert pixels.shape == (63, 94, 3)  # 375 × 250 by 4, rounded up
    assert downsample == 64.0


def test_overlays_cover_the_slide_as_their_pixels_do(make_slide) -> None:
    slide = make_slide(6_000, 4_000)
    images = {one.get("data-layer"): one["style"] for one in Elements(page_of(slide)).all("img")}
    assert list(images) == [None, "labels", "class-0", "class-1", "class-2", "mask"]
    width, height = map(float, re.findall(r"[\d.]+", images["mask"]))
    rows, columns = slide.mask.shape
    base_height, base_width, _ = slide.overview.pixels.shape
    assert width / 100 * base_width * 16 == pytest.approx(columns * 64)
    assert height / 100 * base_height * 16 == pytest.approx(rows * 64)


def test_many_classes_do_not_make_the_page_endless(make_slide) -> None:
    slide = make_slide(6_000, 4_000, classes=tuple(f"class {index}" for index in range(60)))
    elements = Elements(html := page_of(slide))
    assert len(elements.all("img")) == 2 + page_module.MAX_OVERLAYS + 1
    assert "and 20 more" in html
    assert "of 8 of 60 classes" in html


def test_a_slide_without_tissue_has_a_page(make_slide) -> None:
    slide = make_slide(6_000, 4_000)
    empty = slide.tiles
    none = type(empty)(
        empty.classes, empty.x[:0], empty.y[:0], 448, 448.0, empty.probabilities[:0], [], []
    )
    changes = {"tiles": 0, "statuses": {}, "labels": {}, "shares": [], "blocks": None}
    summary = msgspec.structs.replace(slide.summary, status="no-tissue", **changes)
    html = slide_page(summary, slide.overview, none, None)
    assert "No tile of this slide has a label" in html
    assert "No tile was predicted." in html


def test_the_index_shows_failed_slides_with_their_reason_and_no_link(make_slide) -> None:
    slide = make_slide(6_000, 4_000).summary
    html = index_page([slide, failed_slide()], {0: "slide 1/slide.html"}, "run")
    assert [one["href"] for one in Elements(html).all("a")] == ["./slide%201/slide.html"]
    assert "the file ends early" in html
    assert "1 slide predicted, 1 failed" in html
    assert RESEARCH_USE_ONLY in html
    assert "All 1 slide" in index_page([failed_slide()], {}, "run")


def test_the_viewer_of_others_is_the_one_that_its_record_names() -> None:
    vendor = Path(page_module.__file__).with_name("vendor")
    record = (vendor / "README.md").read_text("utf-8")
    for file in vendor.glob("*.js"):
        assert f"`{file.name}`" in record
        assert sha256_file(file) in record


def test_the_zoom_page_holds_the_licence_of_its_viewer(
    make_slide, array_slide, tmp_path: Path
) -> None:
    slide = make_slide(6_000, 4_000)
    made = write_zoom(tmp_path, array_slide(slide.overview.pixels))
    html = zoom_page(slide.summary, slide.overview, slide.tiles, slide.mask, 64.0, made)
    assert "Neither the name of CodePlex Foundation" in html
    assert "sourceMappingURL" not in html


def test_the_index_links_to_a_name_that_is_no_utf_8(make_slide) -> None:
    page = index_page([make_slide().summary], {0: "\udcff a/slide.html"}, "out")
    assert 'href="./%FF%20a/slide.html"' in page
