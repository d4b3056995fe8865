"""A bundle tells tissue that the model was not made for: what is stored, and what rows say."""

import json
from pathlib import Path

import numpy as np
import onnx
import pytest
from msgspec import structs
from onnx.utils import Extractor
from PIL import Image

from edgelung.artifacts.bundle import MANIFEST, Bundle, open_bundle, write_bundle
from edgelung.artifacts.manifest import BundleManifest, KnownVariant
from edgelung.artifacts.predictions import read_predictions
from edgelung.artifacts.results import GateResult
from edgelung.artifacts.summary import read_summary
from edgelung.artifacts.trust import OWN_WORK
from edgelung.core.errors import EdgelungError
from edgelung.core.typed_json import convert
from edgelung.export.build import export_run
from edgelung.export.evaluate import check_scores


def without_score(graph: bytes) -> bytes:
    """The graph without its output `ood` and what computes it."""
    part = Extractor(onnx.load_from_string(graph)).extract_model(["tiles"], ["probs"])
    part.graph.ClearField("value_info")  # shapes that the extractor adds
    return bytes(part.SerializeToString())


def test_every_variant_has_a_limit_with_evidence(bundle: Bundle) -> None:
    known = bundle.manifest.known
    assert known is not None
    assert (known.known, known.fitted_on.tiles) == (0.99, 54)
    assert known.validation.share >= 0.99
    for precision, variant in bundle.variants.items():
        limit = variant.entry.known
        assert limit is not None
        assert 0 < limit.threshold < 1e4
        assert limit.known_on_test.tiles == 18
        assert (limit.rank_correlation is None) == (precision == "fp32")
    golden = [tile.ood[name] for tile in bundle.golden for name in bundle.variants]
    assert len(golden) == 9 * len(bundle.variants)
    assert min(golden) > 0
    card = (bundle.folder / "MODEL_CARD.md").read_text("utf-8")
    assert "99.00 % of the validation tiles" in card
    assert "Unknown tissue by variant" in (bundle.folder / "report.html").read_text("utf-8")


def test_the_share_of_known_tiles_is_chosen_at_export(run: Path, tmp_path: Path) -> None:
    half = export_run(run, tmp_path / "half", known=0.5).manifest
    assert 0.5 <= half.known.validation.share < 0.7
    assert half.variants["fp32"].known.threshold > 0


@pytest.fixture
def inbox(tiles: Path, tmp_path: Path) -> Path:
    """Two training tiles, white glass and noise."""
    folder = tmp_path / "inbox"
    folder.mkdir()
    for number, path in enumerate(sorted((tiles / "lung_n").iterdir())[:2]):
        (folder / f"{number}{path.suffix}").write_bytes(path.read_bytes())
    Image.new("RGB", (96, 96), (250, 249, 248)).save(folder / "glass.png")
    noise = np.random.default_rng(0).integers(0, 256, (96, 96, 3), np.uint8)
    Image.fromarray(noise).save(folder / "noise.png")
    return folder


def test_rows_say_what_is_unknown(inbox: Path, bundle_folder: Path, tmp_path: Path, cli) -> None:
    run = ("infer", inbox, "--model", bundle_folder, "--precision", "fp32", "--out", "rows.csv")
    done = cli(*run)
    assert done.returncode == 0, done.stderr
    rows = {row.path: row for row in read_predictions(tmp_path / "rows.csv").rows}
    assert rows["glass.png"].status == "blank"
    assert rows["glass.png"].error.startswith("glass")
    assert rows["noise.png"].status == "unknown"
    assert rows["noise.png"].ood > 2 * max(rows[name].ood for name in rows if name[0].isdigit())
    assert all(row.probabilities and row.prediction_set is None for row in rows.values())
    assert rows["noise.png"].label is rows["glass.png"].label is None
    assert "25.00 % of the tiles are unlike the training tiles, 25.00 % show no tissue" in (
        " ".join(done.stdout.split())
    )
    assert read_summary(tmp_path / "rows.summary.json").knows_unknown


def test_unknown_tissue_is_labelled_if_that_is_asked_for(
    inbox: Path, bundle_folder: Path, tmp_path: Path, cli
) -> None:
    done = cli("infer", inbox, "--model", bundle_folder, "--unknown", "keep", "--out", "rows.csv")
    assert done.returncode == 0, done.stderr
    rows = read_predictions(tmp_path / "rows.csv").rows
    assert {row.status for row in rows} == {"ok"}
    assert all(row.ood is not None and row.label for row in rows)


def test_sets_of_a_coverage(inbox: Path, bundle_folder: Path, tmp_path: Path, cli) -> None:
    done = cli("infer", inbox, "--model", bundle_folder, "--coverage", "0.99", "--out", "rows.csv")
    assert done.returncode == 0, done.stderr
    level = open_bundle(bundle_folder).variants["fp32"].entry.sets["0.99"].level
    assert 0 <= level < 1
    for row in read_predictions(tmp_path / "rows.csv").rows:
        assert row.prediction_set
    other = cli("infer", inbox, "--model", bundle_folder, "--coverage", "0.97", "--out", "x.csv")
    assert other.returncode == 2
    assert "no prediction sets of coverage 0.97; expected one of 0.8, 0.9" in other.stderr


def as_older(folder: Path) -> None:
    """Make the bundle one that knows no unknown tissue, as edgelung 0.2 wrote it."""
    content = json.loads((folder / MANIFEST).read_text("utf-8"))
    for key in ("files", "known", "schema_version"):
        content.pop(key)
    for entry in content["variants"].values():
        for key in ("known", "sets"):
            entry.pop(key, None)
        path = folder / entry["file"]
        path.write_bytes(without_score(path.read_bytes()))
    for tile in content["golden"]:
        tile.pop("ood")
    write_bundle(folder, convert(content, BundleManifest))


def test_an_older_bundle_opens_and_says_that_it_cannot_tell(
    copied_bundle: Path, inbox: Path, tmp_path: Path, cli
) -> None:
    as_older(copied_bundle)
    done = cli("infer", inbox, "--model", copied_bundle, "--out", "rows.csv")
    assert done.returncode == 0, done.stderr
    assert "this bundle cannot tell tissue that it was not made for" in " ".join(
        done.stdout.split()
    )
    rows = {row.path: row for row in read_predictions(tmp_path / "rows.csv").rows}
    assert rows["noise.png"].status == "ok"
    assert rows["glass.png"].status == "blank"
    assert {row.ood for row in rows.values()} == {None}
    assert not read_summary(tmp_path / "rows.summary.json").knows_unknown


def test_a_limit_without_a_score_is_refused(copied_bundle: Path) -> None:
    content = json.loads((copied_bundle / MANIFEST).read_text("utf-8"))
    for key in ("files", "known", "schema_version"):
        content.pop(key)
    write_bundle(copied_bundle, convert(content, BundleManifest))
    with pytest.raises(EdgelungError, match="threshold for a score"):
        open_bundle(copied_bundle, OWN_WORK)


@pytest.mark.parametrize(
    ("correlation", "same", "reason"),
    [
        (0.999, 1.0, None),
        (0.97, 1.0, "rank the tiles otherwise: correlation 0.970"),
        (0.999, 0.995, None),
        (0.999, 0.98, "20 tiles are unknown to it or to full precision alone, allowed 11"),
        (None, None, None),  # full precision itself
    ],
)
def test_a_variant_that_tells_otherwise_fails(
    correlation: float | None, same: float | None, reason: str | None
) -> None:
    result = GateResult(
        verdict="pass",
        reasons=[],
        tiles=1000,
        balanced_accuracy=1.0,
        recall=[1.0],
        expected_calibration_error=0.0,
    )
    known = KnownVariant(
        threshold=1.5, known_on_test=None, rank_correlation=correlation, same_verdict=same
    )
    judged = check_scores(result, known)
    if reason is None:
        assert judged == result
    else:
        assert judged.verdict == "fail"
        assert reason in judged.reasons[0]
    assert check_scores(result, None) == result
    assert structs.replace(judged, verdict="pass", reasons=[]) == result
