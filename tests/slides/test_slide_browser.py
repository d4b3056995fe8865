"""The pages of slides in Chromium: overlays toggle, zoom works, nothing is requested.

Needs Playwright, axe-playwright-python (`pip install 'edgelung[pages]'`) and Chromium.
"""

import re
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgelung.report.slide_index import index_page
from edgelung.report.slide_page import slide_page
from edgelung.report.zoom_page import zoom_page
from edgelung.slides.zoom import write_zoom

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

WIDTHS = (360, 500, 1280)
TRANSFORM = "document.getElementById('layers').style.transform"
OVERLAYS = "[...document.querySelectorAll('img.overlay')]"
SHOWN = f"{OVERLAYS}.filter(one => !one.hidden).map(one => one.dataset.layer)"
OPACITIES = f"{OVERLAYS}.map(one => [one.dataset.layer, one.style.opacity])"


@pytest.fixture(scope="module")
def browser() -> Iterator[object]:
    program = next(
        filter(None, map(shutil.which, ("chromium", "chromium-browser", "chrome"))), None
    )
    if program is None:
        pytest.skip("no Chromium")
    with playwright.sync_playwright() as one:
        browser = one.chromium.launch(executable_path=program, args=["--no-sandbox"])
        yield browser
        browser.close()


@pytest.fixture(scope="module")
def folder(tmp_path_factory, make_slide, array_slide) -> Path:
    """slide.html, index.html and zoom.html with its pyramid."""
    folder = tmp_path_factory.mktemp("slide")
    slide = make_slide(4_800, 3_600, side=224, downsample=4.0)
    made = write_zoom(folder, array_slide(np.ascontiguousarray(full_size(slide))))
    parts = (slide.summary, slide.overview, slide.tiles, slide.mask, slide.mask_downsample)
    (folder / "slide.html").write_text(slide_page(*parts, files=["zoom.dzi"]), encoding="utf-8")
    (folder / "zoom.html").write_text(zoom_page(*parts, made), encoding="utf-8")
    index = index_page([slide.summary], {0: "slide.html"}, "run")
    (folder / "index.html").write_text(index, encoding="utf-8")
    return folder


def full_size(slide) -> np.ndarray:
    size = slide.width, slide.height
    return np.asarray(Image.fromarray(slide.overview.pixels).resize(size, Image.Resampling.NEAREST))


class Window:
    """A page of the browser that keeps what it says and asks for."""

    def __init__(self, browser, path: Path, scheme: str = "light") -> None:
        self.context = browser.new_context(
            color_scheme=scheme, viewport={"width": 1280, "height": 900}
        )
        self.page = self.context.new_page()
        self.errors: list[str] = []
        self.requests: list[str] = []
        self.page.on("console", lambda message: self.errors.append(message.text))
        self.page.on("pageerror", lambda error: self.errors.append(str(error)))
        self.page.on("requestfailed", lambda request: self.errors.append(request.url))
        self.page.on("request", lambda request: self.requests.append(request.url))
        self.page.goto(path.as_uri())


def wait_for(page, condition: Callable[[], bool]) -> None:
    """Wait until `condition` holds; `wait_for_function` needs eval, which the policy forbids."""
    for _ in range(100):
        if condition():
            return
        page.wait_for_timeout(100)
    raise AssertionError("it did not happen within ten seconds")


@pytest.mark.parametrize("name", ["slide", "index", "zoom"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_fits_and_is_accessible_and_asks_for_nothing_outside(
    browser, folder: Path, name: str, scheme: str
) -> None:
    window = Window(browser, folder / f"{name}.html", scheme)
    page = window.page
    page.wait_for_timeout(300)
    page.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    for width in WIDTHS:
        page.set_viewport_size({"width": width, "height": 900})
        assert page.evaluate("document.documentElement.scrollWidth") <= width
    found = axe.Axe().run(page).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
    assert window.errors == []
    own = (folder.as_uri(), "data:", "blob:")
    assert [url for url in window.requests if not url.startswith(own)] == []
    if name != "zoom":
        assert [url for url in window.requests if not url.startswith("data:")] == [
            (folder / f"{name}.html").as_uri()
        ]
    window.context.close()


def test_overlays_of_the_slide_page_toggle(browser, folder: Path) -> None:
    window = Window(browser, folder / "slide.html")
    page = window.page
    assert page.evaluate(SHOWN) == ["labels"]
    page.check("input[name=layer][value=class-1]")
    assert page.evaluate(SHOWN) == ["class-1"]
    assert page.is_visible("#scale-legend")
    assert not page.is_visible("#labels-legend")
    page.check("input[name=mask]")
    assert page.evaluate(SHOWN) == ["class-1", "mask"]
    page.uncheck("input[name=shown]")
    assert page.evaluate(SHOWN) == ["mask"]
    page.focus("#slide")
    page.keyboard.press("o")
    assert page.evaluate(SHOWN) == ["class-1", "mask"]
    page.fill("input[name=opacity]", "20")
    opacity = "document.querySelector('[data-layer=class-1]').style.opacity"
    assert page.evaluate(opacity) == "0.2"
    assert window.errors == []
    window.context.close()


def test_the_slide_page_zooms_by_keyboard_button_and_wheel(browser, folder: Path) -> None:
    window = Window(browser, folder / "slide.html")
    page = window.page
    places = [page.evaluate(TRANSFORM)]

    def changed() -> bool:
        places.append(page.evaluate(TRANSFORM))
        return places[-1] != places[-2]

    page.focus("#slide")
    for key in ("+", "+", "ArrowRight", "ArrowDown", "-"):
        page.keyboard.press(key)
        assert changed(), key
    page.keyboard.press("0")
    assert page.evaluate(TRANSFORM) == places[0]
    page.click("button[data-zoom=in]")
    assert changed()
    page.focus("#slide")
    box = page.locator("#slide").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.wheel(0, -300)
    wait_for(page, changed)
    page.mouse.down()
    page.mouse.move(box["x"] + 160, box["y"] + 140)
    page.mouse.up()
    assert changed()
    assert " px" in page.inner_text("#place")
    window.context.close()


def test_the_scale_bar_is_as_long_as_it_says(browser, folder: Path) -> None:
    window = Window(browser, folder / "slide.html")
    page = window.page
    for _ in range(4):
        scale = float(re.search(r"scale\(([\d.]+)\)", page.evaluate(TRANSFORM))[1])
        number, unit = page.inner_text("#bar").replace(",", "").split()
        length = float(number) * {"µm": 1, "mm": 1000}[unit]
        width = page.locator("#bar").bounding_box()["width"]
        assert width == pytest.approx(length / (0.5 * 4.0) * scale, abs=0.5)
        assert 60 < width <= 160.5
        page.click("button[data-zoom=in]")
    window.context.close()


def test_without_the_focus_the_wheel_scrolls_the_page(browser, folder: Path) -> None:
    window = Window(browser, folder / "slide.html")
    page = window.page
    before = page.evaluate(TRANSFORM)
    box = page.locator("#slide").bounding_box()
    page.mouse.move(box["x"] + 100, box["y"] + 100)
    page.mouse.wheel(0, 300)
    wait_for(page, lambda: page.evaluate("window.scrollY") > 0)
    assert page.evaluate(TRANSFORM) == before
    window.context.close()


def test_the_zoom_page_reaches_level_0_from_a_file(browser, folder: Path) -> None:
    window = Window(browser, folder / "zoom.html")
    page = window.page
    page.wait_for_timeout(500)
    for _ in range(12):
        page.click("button[data-zoom=in]")
    largest = max(int(path.name) for path in (folder / "zoom_files").iterdir())
    wait_for(page, lambda: any(f"/zoom_files/{largest}/" in url for url in window.requests))
    assert page.inner_text("#bar").endswith("µm")
    assert dict(page.evaluate(OPACITIES))["labels"] == "0.6"
    page.check("input[name=layer][value=class-0]")
    shown = dict(page.evaluate(OPACITIES))
    assert (shown["labels"], shown["class-0"], shown["mask"]) == ("0", "0.6", "0")
    assert window.errors == []
    window.context.close()
