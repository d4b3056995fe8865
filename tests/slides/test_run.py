"""A run over slides: what is written, what fails alone, and what a stopped run keeps."""

import csv
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from slide_files import halve, jpeg_page, tissue, write_svs, write_tiff

from edgelung.artifacts.bundle import Bundle, open_bundle, starter_bundle
from edgelung.artifacts.predictions import read_predictions
from edgelung.artifacts.slide_summary import SlideSummary, write_slide_summary
from edgelung.artifacts.slide_tiles import SlideTiles, read_tiles
from edgelung.core.errors import EdgelungError
from edgelung.core.files import atomic_folder
from edgelung.core.precision import Precision
from edgelung.engines.base import Output
from edgelung.engines.choose import Chosen
from edgelung.engines.names import EngineName
from edgelung.inference.destination import Destination
from edgelung.inference.session import LoadedEngines, Options, infer_folder
from edgelung.inference.shards import Shard
from edgelung.inference.source import Source
from edgelung.slides import run
from edgelung.slides.find import find_slides, result_names
from edgelung.slides.formats import TableFormat
from edgelung.slides.results import write_index
from edgelung.slides.run import MaskRule, SlideOptions, exit_code, parse_mask, run_slides
from edgelung.tiles.find import find_files

ENGINE = Options(engine=EngineName.OPENVINO, precision=Precision.INT8, threads=1, batch_size=4)
WIDTH, HEIGHT, SIDE = 1100, 800, 224  # 4 × 3 tiles
CHANGING = ("slide.json", "slide.html")  # hold times


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return open_bundle(starter_bundle())


@pytest.fixture
def slide(tmp_path: Path) -> Path:
    return write_svs(tmp_path / "case.svs", WIDTH, HEIGHT)


def options(tmp_path: Path, **more: object) -> SlideOptions:
    return replace(SlideOptions(tmp_path / "out", tile_um=112.0, engines=ENGINE), **more)


class ColourEngine:
    """A stand-in engine that loads at once; its answer is the mean colour of a tile."""

    name, device, float_type, concurrency = "openvino", "CPU", "fp32", 1

    def infer(self, tiles: np.ndarray) -> Output:
        colours = tiles.mean(axis=(1, 2)) ** 4  # (N, 3); so that the classes differ
        probabilities = (colours / colours.sum(1, keepdims=True)).astype(np.float32)
        return Output(probabilities, self.scores(len(tiles)))

    def scores(self, count: int) -> np.ndarray | None:
        """No score, as graphs of older bundles."""
        return None

    def close(self) -> None: ...


@pytest.fixture(autouse=True)
def quick_engine(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """Every run uses `ColourEngine`, but those of tests with the mark `real_engine`."""

    @contextmanager
    def load(bundle: Bundle, *_: object) -> Iterator[LoadedEngines]:
        chosen = Chosen(ColourEngine(), bundle.variants[Precision.INT8], "stand-in", 0.0)
        yield LoadedEngines(chosen, None, batch_size=4, threads=1)

    if "real_engine" not in request.fixturenames:
        monkeypatch.setattr(run, "open_engines", load)


@pytest.fixture
def real_engine() -> None:
    """Asks for the starter's own engine."""


class Stop:
    """An `Advance` that interrupts the run after some tiles."""

    def __init__(self, after: int) -> None:
        self.left = after

    def __call__(self, n: int = 1, note: str = "", work: float | None = None) -> None:
        self.left -= n
        if self.left <= 0:
            raise KeyboardInterrupt

    def set_total(self, total: int) -> None:
        pass


@pytest.fixture
def finished(bundle: Bundle, tmp_path: Path) -> tuple[Path, SlideSummary, SlideTiles]:
    """A slide and its results."""
    folder = tmp_path / "whole"
    folder.mkdir()
    slide = write_svs(folder / "case.svs", WIDTH, HEIGHT)
    (summary,) = run_slides([slide], bundle, options(folder))
    return folder, summary, read_tiles(folder / "out" / "case" / "tiles.parquet")


Finished = tuple[Path, SlideSummary, SlideTiles]


def test_every_result_is_there(finished: Finished) -> None:
    folder, summary, tiles = finished
    names = {path.name for path in (folder / "out" / "case").iterdir()}
    assert names >= {
        *("tiles.parquet", "tiles.geojson", "tissue.geojson", "heatmap.ome.tif", "labels.png"),
        *("heat-01-lung_aca.png", "legend.png", "thumbnail.png", "mask.png", "slide.json"),
        "slide.html",
    }
    assert (folder / "out" / "index.html").is_file()
    assert len(tiles) == summary.tiles == 12
    assert summary.statuses == {"ok": 12}
    assert sum(summary.labels.values()) == 12
    assert (summary.mpp, summary.mpp_source) == (0.5, "aperio.MPP")
    assert (summary.tile_px, summary.tile_um) == (SIDE, 112.0)
    features = json.loads((folder / "out" / "case" / "tiles.geojson").read_text())["features"]
    assert len(features) == 12
    with (folder / "out" / "slides.csv").open(newline="") as file:
        (row,) = csv.DictReader(file)
    assert (row["slide"], row["status"], row["folder"], row["tiles"]) == (
        *("case.svs", "ok", "case", "12"),
    )


def test_results_are_no_tiles_for_infer(finished: Finished) -> None:
    found = {file.path for file in find_files(finished[0] / "out")}
    assert found == {"index.html", "slides.csv"}


@pytest.mark.parametrize("precision", [Precision.INT8, Precision.INT8_EARLY_EXIT])
def test_predictions_are_those_of_the_tiles_cut_out(
    real_engine: None, bundle: Bundle, tmp_path: Path, precision: Precision
) -> None:
    import openslide

    folder, engine = tmp_path, replace(ENGINE, engine=None, precision=precision)
    slides = [write_svs(folder / "case.svs", WIDTH, HEIGHT)]
    (summary,) = run_slides(slides, bundle, options(folder, engines=engine))
    tiles = read_tiles(folder / "out" / "case" / "tiles.parquet")
    (tmp_path / "tiles").mkdir()
    with openslide.OpenSlide(folder / "case.svs") as whole:
        for x, y in zip(tiles.x.tolist(), tiles.y.tolist(), strict=True):
            pixels = np.asarray(whole.read_region((x, y), 0, (SIDE, SIDE)))[..., :3]
            Image.fromarray(pixels).save(tmp_path / "tiles" / f"{y:05d}-{x:05d}.png")
    rows = tmp_path / "rows.csv"
    infer_folder(Source((tmp_path / "tiles",)), bundle, Destination.parse(rows), engine)
    predictions = read_predictions(rows)
    assert tiles.statuses == [row.status for row in predictions.rows]
    assert tiles.stages.tolist() == [row.stage or 0 for row in predictions.rows]
    assert sum(summary.stages.values()) == (12 if bundle.variant(precision).second else 0)
    np.testing.assert_allclose(tiles.ood, [row.ood for row in predictions.rows], rtol=1e-6)
    expected = np.array([row.probabilities for row in predictions.rows], np.float64)
    assert np.abs(expected - tiles.probabilities).max() <= 2e-6  # other batches, and six decimals
    labels = [None if label < 0 else tiles.classes[label] for label in tiles.labels]
    assert labels == [row.label for row in predictions.rows]


def test_a_slide_that_cannot_be_opened_is_a_row_and_the_others_go_on(
    bundle: Bundle, slide: Path, tmp_path: Path
) -> None:
    broken = tmp_path / "broken.svs"
    broken.write_bytes(slide.read_bytes()[:3000])
    unknown = write_svs(tmp_path / "unknown.svs", WIDTH, HEIGHT, rest="AppMag = 20")
    gone = tmp_path / "gone.svs"
    chosen = options(tmp_path, table=TableFormat.CSV)
    summaries = run_slides([broken, gone, slide, unknown], bundle, chosen)
    assert [one.status for one in summaries] == ["failed", "failed", "ok", "failed"]
    assert "--mpp" in summaries[3].reason
    assert exit_code(summaries) == 3
    with (tmp_path / "out" / "slides.csv").open(newline="") as file:
        rows = {row["slide"]: row for row in csv.DictReader(file)}
    assert len(rows) == 4
    assert rows["gone.svs"]["status"] == "failed"
    assert rows["gone.svs"]["reason"] == summaries[1].reason
    assert not (tmp_path / "out" / "broken").exists()


def test_a_damaged_tile_is_a_status_and_the_rest_is_as_ever(
    bundle: Bundle, finished: Finished, tmp_path: Path
) -> None:
    pixels = tissue(WIDTH, HEIGHT)
    text = "Aperio Image Library v11\n|AppMag = 20|MPP = 0.5"
    page = jpeg_page(pixels, ycc=False, sampling="444", description=text)
    segments = list(page.segments)
    segments[6] = segments[6][: len(segments[6]) // 2]  # second row, second tile
    page.segments = segments
    small = jpeg_page(halve(pixels, 4), ycc=False, sampling="444", description=text)
    slide = write_tiff(tmp_path / "case.svs", [page, small])
    (summary,) = run_slides([slide], bundle, options(tmp_path))
    tiles = read_tiles(tmp_path / "out" / "case" / "tiles.parquet")
    touched = (tiles.x < 512) & (tiles.x + SIDE > 256) & (tiles.y < 512) & (tiles.y + SIDE > 256)
    statuses = np.array(tiles.statuses)
    assert set(statuses[touched]) <= {"corrupt", "truncated"}
    assert set(statuses[~touched]) == {"ok"}
    assert summary.failed_tiles == touched.sum() > 0
    assert exit_code([summary]) == 3
    whole = finished[2]
    assert (tiles.probabilities[~touched] == whole.probabilities[~touched]).all()


def test_damage_that_hides_tissue_in_the_overview_is_said_too(
    bundle: Bundle, tmp_path: Path
) -> None:
    """Of a slide with one level, the overview is made from the damaged tiles themselves."""
    page = jpeg_page(
        tissue(WIDTH, HEIGHT),
        ycc=False,
        sampling="444",
        description="Aperio Image Library v11\n|AppMag = 20|MPP = 0.5",
    )
    first, *others = page.segments
    page.segments = [first, *(data[: len(data) // 2] for data in others)]
    slide = write_tiff(tmp_path / "case.svs", [page])
    (summary,) = run_slides([slide], bundle, options(tmp_path))
    assert (summary.tiles, summary.failed_tiles) == (12, 11)
    assert exit_code([summary]) == 3


def test_a_stopped_run_continues_to_the_same_bytes(
    bundle: Bundle, finished: Finished, slide: Path, tmp_path: Path
) -> None:
    kept: list[int] = []
    with pytest.raises(KeyboardInterrupt):
        run_slides(
            [slide], bundle, options(tmp_path), Stop(5), lambda count, path: kept.append(count)
        )
    assert kept == [8]
    assert not (tmp_path / "out" / "case").exists()
    with pytest.raises(EdgelungError, match="--resume"):
        run_slides([slide], bundle, options(tmp_path))
    with pytest.raises(EdgelungError, match="--tile-um was 112"):
        run_slides(
            [slide],
            bundle,
            options(tmp_path, resume=True, tile_um=100.0),
            on_stopped=lambda *_: pytest.fail("it cannot be continued like this"),
        )
    (summary,) = run_slides([slide], bundle, options(tmp_path, resume=True))
    assert len(summary.sessions) == 2
    assert not list((tmp_path / "out").glob("*journal*"))
    for path in (tmp_path / "out" / "case").iterdir():
        if path.name not in CHANGING:
            assert path.read_bytes() == (finished[0] / "out" / "case" / path.name).read_bytes()


def test_resume_refuses_another_run_and_keeps_what_is_done(
    bundle: Bundle, slide: Path, tmp_path: Path
) -> None:
    first = run_slides([slide], bundle, options(tmp_path))
    page = tmp_path / "out" / "case" / "slide.html"
    before = page.stat().st_mtime_ns
    with pytest.raises(EdgelungError, match="already exists"):
        run_slides([slide], bundle, options(tmp_path))
    assert run_slides([slide], bundle, options(tmp_path, resume=True)) == first
    assert page.stat().st_mtime_ns == before


@pytest.mark.parametrize("resume", [True, False])
@pytest.mark.parametrize(
    ("more", "difference"),
    [
        ({"tile_um": 100.0}, "--tile-um was 112.0 and is 100.0 now"),
        ({"table": TableFormat.CSV}, "tiles.csv was not asked for"),
        ({"zoom": True}, "zoom.html was not asked for"),
        ({"mask": MaskRule.NONE}, "--mask was saturation by Otsu"),
    ],
)
def test_a_finished_slide_is_not_taken_for_one_with_other_options(
    bundle: Bundle, slide: Path, tmp_path: Path, more: dict, difference: str, resume: bool
) -> None:
    run_slides([slide], bundle, options(tmp_path))
    with pytest.raises(EdgelungError, match=f"finished.*{difference}.*another --out"):
        run_slides([slide], bundle, options(tmp_path, resume=resume, **more))


def test_what_a_stopped_run_left_is_refused_before_a_slide_is_read(
    bundle: Bundle, slide: Path, tmp_path: Path
) -> None:
    last = write_svs(tmp_path / "last.svs", WIDTH, HEIGHT)
    with pytest.raises(KeyboardInterrupt):
        run_slides([last], bundle, options(tmp_path), Stop(5))
    with pytest.raises(EdgelungError, match="holds 8 tiles"):
        run_slides([slide, last], bundle, options(tmp_path))
    assert not (tmp_path / "out" / "case").exists()


def test_a_stopped_run_has_an_index_of_what_is_done(
    bundle: Bundle, slide: Path, tmp_path: Path
) -> None:
    last = write_svs(tmp_path / "last.svs", WIDTH, HEIGHT)
    with pytest.raises(KeyboardInterrupt):
        run_slides([slide, last], bundle, options(tmp_path), Stop(14))
    with (tmp_path / "out" / "slides.csv").open(newline="") as file:
        assert [row["slide"] for row in csv.DictReader(file)] == ["case.svs"]


def test_parts_share_a_folder_and_a_last_run_writes_the_index(
    bundle: Bundle, tmp_path: Path
) -> None:
    slides = [write_svs(tmp_path / f"{name}.svs", WIDTH, HEIGHT) for name in "abc"]
    found = [
        run_slides(slides, bundle, options(tmp_path, shard=Shard(number, 2))) for number in (1, 2)
    ]
    assert [[one.slide for one in part] for part in found] == [["a.svs", "c.svs"], ["b.svs"]]
    assert not (tmp_path / "out" / "index.html").exists()
    whole = run_slides(slides, bundle, options(tmp_path, resume=True))
    assert sorted(whole, key=lambda one: one.slide) == sorted(
        (one for part in found for one in part), key=lambda one: one.slide
    )
    assert (tmp_path / "out" / "index.html").is_file()


def test_the_overlap_of_the_record_is_that_of_the_tiles(
    bundle: Bundle, slide: Path, tmp_path: Path
) -> None:
    chosen = options(tmp_path, tile_um=150.0, overlap=0.33)  # 304 px, decoded at 6/8
    (summary,) = run_slides([slide], bundle, chosen)
    tiles = read_tiles(tmp_path / "out" / "case" / "tiles.parquet")
    assert summary.eighths < 8
    assert summary.overlap == pytest.approx(1 - tiles.step / tiles.side, abs=1e-4)


def test_a_page_that_zooms_is_written_where_it_is_asked_for(
    bundle: Bundle, slide: Path, tmp_path: Path
) -> None:
    run_slides([slide], bundle, options(tmp_path, zoom=True))
    names = {path.name for path in (tmp_path / "out" / "case").iterdir()}
    assert names >= {"zoom.html", "zoom.dzi", "zoom_files"}


def test_a_slide_without_tissue_is_said(bundle: Bundle, tmp_path: Path) -> None:
    glass = np.full((HEIGHT, WIDTH, 3), 244, np.uint8)
    page = jpeg_page(glass, description="Aperio Image Library v11\n|AppMag = 20|MPP = 0.5")
    slide = write_tiff(tmp_path / "glass.svs", [page])
    (summary,) = run_slides([slide], bundle, options(tmp_path))
    assert (summary.status, summary.tiles) == ("no-tissue", 0)
    assert "tissue" in summary.reason
    assert exit_code([summary]) == 0
    assert (tmp_path / "out" / "glass" / "slide.html").is_file()


def test_without_a_mask_all_tiles_are_read(bundle: Bundle, tmp_path: Path) -> None:
    glass = np.full((HEIGHT, WIDTH, 3), 244, np.uint8)
    page = jpeg_page(glass, description="Aperio Image Library v11\n|AppMag = 20|MPP = 0.5")
    slide = write_tiff(tmp_path / "glass.svs", [page])
    chosen = options(tmp_path, mask=MaskRule.NONE, table=TableFormat.WSINFER)
    (summary,) = run_slides([slide], bundle, chosen)
    assert (summary.tiles, summary.tissue) == (12, None)
    lines = (tmp_path / "out" / "glass" / "tiles.wsinfer.csv").read_text().splitlines()
    assert lines[0] == "minx,miny,width,height,prob_lung_aca,prob_lung_n,prob_lung_scc"
    assert len(lines) == 13


def test_a_bundle_without_a_tile_size_is_refused_before_anything_is_written(
    bundle: Bundle, slide: Path, tmp_path: Path
) -> None:
    with pytest.raises(EdgelungError, match="--tile-um"):
        run_slides([slide], bundle, options(tmp_path, tile_um=None))
    assert not (tmp_path / "out").exists()


def test_a_slide_that_changes_while_it_is_read_fails(
    bundle: Bundle, slide: Path, tmp_path: Path
) -> None:
    class Touch(Stop):
        def __call__(self, n: int = 1, note: str = "", work: float | None = None) -> None:
            slide.touch()

    (summary,) = run_slides([slide], bundle, options(tmp_path), Touch(0))
    assert summary.status == "failed"
    assert "was changed" in summary.reason


def test_a_folder_stands_for_the_slides_in_it(tmp_path: Path) -> None:
    for name in ("b.svs", "a.ome.tif", "notes.txt", "c.NDPI"):
        (tmp_path / name).touch()
    (tmp_path / "dicom").mkdir()
    (tmp_path / "dicom" / "1.dcm").touch()
    found = list(find_slides([tmp_path, tmp_path / "dicom", tmp_path / "gone.svs"]))
    assert [path.name for path in found] == ["a.ome.tif", "b.svs", "c.NDPI", "dicom", "gone.svs"]
    assert list(result_names(found).values()) == ["a", "b", "c", "dicom", "gone"]


def test_two_slides_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgelungError, match="both write results case"):
        result_names([tmp_path / "1" / "case.svs", tmp_path / "2" / "case.ndpi"])


@pytest.mark.parametrize("text", ["Auto", "", "gone.geojson", "mask.png"])
def test_a_mask_is_auto_none_or_a_file(text: str) -> None:
    with pytest.raises(EdgelungError, match="--mask"):
        parse_mask(text)


@pytest.fixture
def outline(tmp_path: Path) -> Path:
    path = tmp_path / "area.geojson"
    path.write_text('{"type":"Polygon","coordinates":[[[0,0],[448,0],[448,224],[0,224],[0,0]]]}')
    return path


def test_the_outlines_of_one_slide_are_not_laid_over_another(
    bundle: Bundle, slide: Path, outline: Path, tmp_path: Path
) -> None:
    with pytest.raises(EdgelungError, match="outlines of one slide, and 2 slides"):
        run_slides([slide, tmp_path / "b.svs"], bundle, options(tmp_path, mask=outline))
    assert not (tmp_path / "out").exists()


def test_the_command_prints_the_summaries_and_the_way_on(cli, slide: Path, outline: Path) -> None:
    out = slide.parent / "out"
    done = cli(
        *("slide", str(slide), "--tile-um", "112", "--mask", str(outline), "--out", str(out)),
        *("--threads", "1", "--json"),
    )
    assert done.returncode == 0
    (summary,) = json.loads(done.stdout)
    assert summary["tiles"] == 2
    assert summary["tissue"]["rule"] == "the outlines of area.geojson"
    assert "index.html" in done.stderr
    assert "Research use only" in done.stderr


def test_a_scale_that_is_none_is_refused_before_anything_is_written(
    slide: Path, bundle: Bundle, tmp_path: Path
) -> None:
    with pytest.raises(EdgelungError, match="--mpp 1e"):
        run_slides([slide], bundle, options(tmp_path, mpp=1e300))
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("name", ["index.html.svs", "Slides.csv.tif", "a.edgelung-journal.svs"])
def test_results_are_never_called_as_files_of_edgelung(name: str, tmp_path: Path) -> None:
    with pytest.raises(EdgelungError, match="rename the slide"):
        result_names([tmp_path / name])


def test_a_name_too_long_for_its_results_is_refused_at_once(tmp_path: Path) -> None:
    with pytest.raises(EdgelungError, match="235 bytes"):
        result_names([tmp_path / f"{'é' * 118}.svs"])
    assert result_names([tmp_path / f"{'a' * 235}.svs"])


def test_an_output_that_cannot_be_written_is_refused_before_the_work(
    slide: Path, bundle: Bundle, tmp_path: Path
) -> None:
    (tmp_path / "out").symlink_to(tmp_path / "nowhere")
    with pytest.raises(EdgelungError, match="cannot write"):
        run_slides([slide], bundle, options(tmp_path))
    (tmp_path / "out").unlink()
    (tmp_path / "out" / "index.html").mkdir(parents=True)
    with pytest.raises(EdgelungError, match=r"index\.html is a folder"):
        run_slides([slide], bundle, options(tmp_path))
    assert not (tmp_path / "out" / "case").exists()


def test_a_slide_that_vanishes_fails_alone(
    slide: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = run.find_tissue

    def vanish(*arguments: object) -> object:
        slide.unlink(missing_ok=True)
        return found(*arguments)

    monkeypatch.setattr(run, "find_tissue", vanish)
    (summary,) = run_slides([slide], bundle, options(tmp_path))
    assert summary.status == "failed"
    assert "is the drive connected?" in summary.reason


def test_a_scene_takes_no_results_of_another_slide(
    slide: Path, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scenes of scan.svs would write scan-1 and scan-2, and there is a slide scan-1.svs."""
    opened = run.open_slides

    def in_scenes(path: Path) -> list:
        return [*opened(slide), *opened(slide)] if path.name == "scan.svs" else opened(path)

    monkeypatch.setattr(run, "open_slides", in_scenes)
    monkeypatch.setattr(run, "write_results", lambda folder, read, *_, **__: _ok(folder))
    (tmp_path / "out" / "scan-2").mkdir(parents=True)
    (tmp_path / "out" / "scan-2" / "mine.txt").touch()
    other = write_svs(tmp_path / "scan-1.svs", WIDTH, HEIGHT)
    summaries = run_slides([other, tmp_path / "scan.svs"], bundle, options(tmp_path))
    assert [one.status for one in summaries] == ["ok", "failed", "failed"]
    assert "results scan-1 are those of another slide" in summaries[1].reason
    assert "scan-2 already exists" in summaries[2].reason


def _ok(folder: Path) -> SlideSummary:
    return SlideSummary(slide=folder.name, status="ok", started="", ended="")


def test_the_index_lists_no_results_that_another_run_is_writing(make_slide, tmp_path: Path) -> None:
    summary = make_slide().summary
    for name in ("one", ".two"):
        (tmp_path / name).mkdir()
        write_slide_summary(tmp_path / name / "slide.json", summary)
    with atomic_folder(tmp_path / "three") as inside:
        write_slide_summary(inside / "slide.json", summary)
        write_index(tmp_path, [])
    with (tmp_path / "slides.csv").open(newline="") as file:
        assert [row["folder"] for row in csv.DictReader(file)] == [".two", "one"]
