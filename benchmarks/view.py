"""How large the page of `edgelung view` is, and how fast Chromium opens and filters it.

Writes 100,000 synthetic rows about links to the tiles of a folder, makes the page, opens it from
its file several times, and sets filters. A filter is timed until the browser has laid out the tiles
that it left. Needs Playwright and Chromium. Prints a table and writes JSON.
"""

import argparse
import itertools
import json
import os
import random
import statistics
import tempfile
import time
from pathlib import Path

import machine
from msgspec import structs
from playwright.sync_api import Page, sync_playwright
from rich.console import Console
from rich.table import Table

from edgelung.artifacts.predictions import FORMATS, Prediction, Predictions
from edgelung.artifacts.summary import Summary, read_summary, write_summary
from edgelung.core.files import sha256_file
from edgelung.report.finished_run import open_finished_run
from edgelung.report.gallery import predictions_page

ROWS, FILES, OPENED = 100_000, 5_000, 5
CLASSES = ("lung_aca", "lung_n", "lung_scc")
FILTERS = (
    ("label", "1"),
    ("status", "1"),
    ("truth", "2"),
    ("outcome", "wrong"),
    ("low", "0.9"),
    ("name", "777"),
)
SET_FILTER = """([name, value]) => {
    const form = document.getElementById("filters"), start = performance.now();
    form.elements[name].value = value;
    form.elements[name].dispatchEvent(new Event("input", { bubbles: true }));
    document.getElementById("tiles").getBoundingClientRect();
    return performance.now() - start;
}"""


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("tiles", type=Path, help="folder of tiles to show")
    parser.add_argument("summary", type=Path, help="summary of any run of `edgelung infer`")
    default = Path(__file__).parent / "results" / "view.json"
    parser.add_argument("json", type=Path, nargs="?", default=default)
    parser.add_argument("--chromium", default="/usr/bin/chromium")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = write_rows(Path(folder), options.tiles, read_summary(options.summary))
        page = rows.with_suffix(".html")
        start = time.perf_counter()
        run = open_finished_run(rows)
        page.write_text(predictions_page(run, page), encoding="utf-8")
        result: dict[str, object] = {
            "rows": ROWS,
            "tiles": options.tiles.name,
            "page_megabytes": round(page.stat().st_size / 1e6, 2),
            "write_seconds": round(time.perf_counter() - start, 1),
            **measure(page, options.chromium),
            "machine": machine.describe(),
        }
    options.json.write_text(json.dumps(result, indent=2) + "\n")
    table = Table("figure", "value")
    for name, value in result.items():
        if name != "machine":
            table.add_row(name, str(value))
    Console().print(table)


def write_rows(folder: Path, tiles: Path, summary: Summary) -> Path:
    """Write predictions.csv and its summary: links to tiles, and names without a file."""
    rng = random.Random(0)
    images = sorted(path for path in tiles.rglob("*") if path.suffix in (".jpeg", ".jpg", ".png"))
    data = folder / "tiles"
    made = []
    for number in range(ROWS):
        truth = rng.choice(CLASSES)
        best = truth if rng.random() < 0.95 else rng.choice(CLASSES)
        top = 0.4 + 0.6 * rng.random() ** 0.2
        rest = (1 - top) / 2
        path = f"{truth}/tile_{number:06d}.jpeg"
        status = "review" if top < 0.6 else "ok"
        made.append(
            Prediction(
                path,
                status,
                None if status == "review" else best,
                top,
                tuple(top if name == best else rest for name in CLASSES),
            )
        )
    for name in CLASSES:
        (data / name).mkdir(parents=True)
    made.sort(key=is_plain)  # those first that the page shows first: these need files
    for row, image in zip(made[:FILES], itertools.cycle(images), strict=False):
        os.symlink(image.absolute(), data / row.path)
    rows = folder / "predictions.csv"
    with rows.open("wb") as file:
        writer = FORMATS[".csv"].writer(file, CLASSES)
        writer.write(Predictions(CLASSES, tuple(made)).rows)
        writer.close()
    own = {"inputs": [str(data)]}
    summary = structs.replace(
        summary, out=str(rows), options=own, out_sha256=sha256_file(rows), concerns=[]
    )
    write_summary(folder / "predictions.summary.json", summary)
    return rows


def is_plain(row: Prediction) -> bool:
    """True if the row has a label, and it is the name of its folder."""
    return row.label == row.path.split("/")[0]


def measure(page: Path, chromium: str) -> dict[str, object]:
    """Open the page OPENED times in a new browser window, and set each filter in each of them."""
    opened, filtered = [], []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for _ in range(OPENED):
            window = browser.new_context(viewport={"width": 1280, "height": 900}).new_page()
            start = time.perf_counter()
            window.goto(page.as_uri())
            window.wait_for_function("document.querySelectorAll('#tiles li').length > 0")
            opened.append(time.perf_counter() - start)
            filtered += [set_filter(window, *one) for one in FILTERS]
            window.context.close()
        version = browser.version
        browser.close()
    return {
        "chromium": version,
        "open_seconds": {
            "median": round(statistics.median(opened), 3),
            "max": round(max(opened), 3),
        },
        "filter_milliseconds": {
            "median": round(statistics.median(filtered), 1),
            "max": round(max(filtered), 1),
        },
    }


def set_filter(window: Page, name: str, value: str) -> float:
    """Milliseconds that one filter takes; it is taken off again afterwards."""
    milliseconds: float = window.evaluate(SET_FILTER, [name, value])
    window.evaluate(SET_FILTER, [name, ""])
    return milliseconds


if __name__ == "__main__":
    main()
