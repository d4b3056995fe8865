"""A small finished run of `edgelung infer`: tiles, rows and summary, made here."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from edgelung.artifacts.predictions import FORMATS, Prediction
from edgelung.artifacts.results import Concern
from edgelung.artifacts.summary import KIND, SCHEMA_VERSION, Summary, write_summary
from edgelung.core.files import sha256_file
from edgelung.core.system import host

CLASSES = ("lung_aca", "lung_n")
ROWS = (
    Prediction("lung_aca/sure.png", "ok", "lung_aca", 0.99999, (0.99999, 0.00001)),
    Prediction("lung_aca/wrong.png", "ok", "lung_n", 0.9, (0.1, 0.9)),
    Prediction("lung_n/unsure.png", "ok", "lung_n", 0.6, (0.4, 0.6)),
    Prediction("lung_n/surely_wrong.png", "ok", "lung_aca", 0.95, (0.95, 0.05)),
    Prediction("lung_n/review.png", "review", None, 0.55, (0.45, 0.55), "confidence 0.55"),
    Prediction("lung_n/broken.png", "truncated", error="it ends early"),
    Prediction("notes.txt", "skipped", error="no image"),
)

WriteRun = Callable[..., Path]


@pytest.fixture
def write_run(tmp_path: Path) -> WriteRun:
    """Writes tiles/, rows and their summary; returns the file of the rows."""

    def write(
        rows: tuple[Prediction, ...] = ROWS,
        suffix: str = ".csv",
        classes: tuple[str, ...] = CLASSES,
        concerns: tuple[Concern, ...] = (),
    ) -> Path:
        data = tmp_path / "tiles"
        rng = np.random.default_rng(0)
        for row in rows:
            path = data / row.path
            path.parent.mkdir(parents=True, exist_ok=True)
            if row.confidence is not None and path.resolve().is_relative_to(data.resolve()):
                pixels = rng.integers(0, 256, (32, 32, 3), np.uint8)
                Image.fromarray(pixels).save(path, "PNG")
        file = tmp_path / f"predictions{suffix}"
        with file.open("wb") as out:
            writer = FORMATS[suffix].writer(out, classes)
            writer.write(rows)
            writer.close()
        write_summary(tmp_path / "predictions.summary.json", _summary(file, data, concerns))
        return file

    return write


def _summary(file: Path, data: Path, concerns: tuple[Concern, ...]) -> Summary:
    return Summary(
        kind=KIND,
        schema_version=SCHEMA_VERSION,
        note="",
        started="2026-01-02T03:04:05+00:00",
        resumed=[],
        ended="2026-01-02T03:04:06+00:00",
        bundle="deit of first",
        bundle_sha256="ab" * 32,
        engine="openvino",
        device="CPU",
        precision="int8",
        floating_point="fp32",
        choice="",
        golden_difference=0.0,
        files=7,
        failed=1,
        statuses={},
        labels={},
        verify=None,
        exit_code=0,
        out=str(file),
        out_sha256=sha256_file(file),
        options={"inputs": [str(data)], "--engine": "openvino", "--verify": False},
        options_sha256="",
        seconds=1.0,
        tiles_per_second=10.0,
        milliseconds={},
        threads=1,
        host=host(),
        concerns=list(concerns),
    )
