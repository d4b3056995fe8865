"""A DICOM slide that wsidicomizer makes has the pixels of its source."""

from pathlib import Path

import numpy as np
import pytest
from slide_files import write_svs
from slide_reading import open_one, region


@pytest.mark.slow
@pytest.mark.parametrize("ycc", [False, True])
def test_a_dicom_slide_gives_the_pixels_of_its_source(ycc: bool, tmp_path: Path) -> None:
    wsidicomizer = pytest.importorskip("wsidicomizer")
    options = {"ycc": True, "sampling": "420"} if ycc else {}
    source, folder = write_svs(tmp_path / "a.svs", **options), tmp_path / "dicom"
    folder.mkdir()
    wsidicomizer.WsiDicomizer.convert(
        str(source),
        output_path=str(folder),
        include_levels=[0],
        include_label=False,
        include_overview=False,
        include_thumbnail=False,
        workers=1,
    )
    slide, origin, rng = open_one(folder), open_one(source), np.random.default_rng(0)
    assert slide.kind == "DICOM; read by OpenSlide"
    assert slide.scale.mpp_x == slide.scale.mpp_y == 0.5
    for _ in range(200):
        side = int(rng.integers(1, 300))
        x, y = int(rng.integers(0, 1100 - side)), int(rng.integers(0, 800 - side))
        assert np.array_equal(region(slide, x, y, side), region(origin, x, y, side))
