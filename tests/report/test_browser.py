"""Every page in Chromium: nothing overflows, nothing is requested, nobody is left out.

Needs Playwright, axe-playwright-python (`pip install 'edgelung[pages]'`) and Chromium.
"""

import shutil
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgelung.evaluation.comparison import compare_runs
from edgelung.report.finished_run import open_finished_run
from edgelung.report.gallery import predictions_page
from edgelung.report.pages import compare_page

pytestmark = pytest.mark.slow
playwright = pytest.importorskip("playwright.sync_api")
axe = pytest.importorskip("axe_playwright_python.sync_playwright")

WIDTHS = (360, 1280, 1600)
PAGES = ("run", "bundle", "audit", "compare", "predictions")


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


@pytest.fixture
def page_file(request: pytest.FixtureRequest, tmp_path: Path) -> Path:
    """The page of the kind that the test is about, from a real artefact."""
    kind = request.param
    if kind == "run":
        return request.getfixturevalue("run") / "report.html"
    if kind == "bundle":
        return request.getfixturevalue("bundle_folder") / "report.html"
    if kind == "audit":
        from edgelung.train.audit import audit_folder

        audit_folder(request.getfixturevalue("tiles"), tmp_path / "audit")
        return tmp_path / "audit" / "report.html"
    page = tmp_path / "page.html"
    if kind == "compare":
        run = request.getfixturevalue("run")
        other = shutil.copytree(run, tmp_path / "another_run_with_quite_a_long_name_of_its_own")
        page.write_text(compare_page(compare_runs([run, Path(other)])), encoding="utf-8")
    else:
        rows = request.getfixturevalue("write_run")()
        page.write_text(predictions_page(open_finished_run(rows), page), encoding="utf-8")
    return page


every_page = pytest.mark.parametrize("page_file", PAGES, indirect=True)


@every_page
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_a_page_fits_asks_for_nothing_and_is_accessible(
    browser, page_file: Path, scheme: str
) -> None:
    context = browser.new_context(color_scheme=scheme)
    window = context.new_page()
    errors: list[str] = []
    requests: list[str] = []
    window.on("console", lambda message: errors.append(message.text))
    window.on("pageerror", lambda error: errors.append(str(error)))
    window.on("request", lambda request: requests.append(request.url))
    window.goto(page_file.as_uri())
    window.evaluate("document.querySelectorAll('details').forEach(one => one.open = true)")
    for width in WIDTHS:
        window.set_viewport_size({"width": width, "height": 900})
        assert window.evaluate("document.documentElement.scrollWidth") <= width
    found = axe.Axe().run(window).response["violations"]
    assert [one["id"] for one in found if one["impact"] in ("serious", "critical")] == []
    assert errors == []
    assert [url for url in requests if not url.startswith("data:")] == [page_file.as_uri()]
    context.close()


@pytest.mark.parametrize("page_file", ["predictions"], indirect=True)
def test_the_gallery_is_filtered_by_the_keyboard(browser, page_file: Path) -> None:
    window = browser.new_page()
    window.goto(page_file.as_uri())

    def names() -> list[str]:
        return window.eval_on_selector_all("#tiles .name", "all => all.map(one => one.title)")

    assert len(names()) == 7
    window.focus("select[name=outcome]")
    window.keyboard.press("ArrowDown")
    assert names() == ["lung_n/surely_wrong.png", "lung_aca/wrong.png"]
    assert "2 of 7 rows" in window.inner_text("#found")
    window.fill("input[name=high]", "0.92")
    assert names() == ["lung_aca/wrong.png"]
    window.click("button[type=reset]")
    window.wait_for_function("document.querySelectorAll('#tiles li').length === 7")
    window.fill("input[name=low]", "0")
    assert len(names()) == 5  # those without a prediction have no confidence
    window.close()


@pytest.mark.parametrize("page_file", ["predictions"], indirect=True)
def test_a_tile_without_a_thumbnail_is_shown_from_its_file(
    browser, page_file: Path, write_run: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("edgelung.report.gallery.MAX_THUMBNAILS", 0)
    page_file.write_text(predictions_page(open_finished_run(write_run()), page_file), "utf-8")
    window = browser.new_page()
    window.goto(page_file.as_uri())
    window.wait_for_function("document.querySelector('#tiles img').naturalWidth === 32")
    window.close()
