"""Calibration: histograms that no batch size changes, four thresholds, a cache by content."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgelung.artifacts.run import RunFolder
from edgelung.core.errors import EdgelungError
from edgelung.export import calibrate
from edgelung.export.calibrate import plan_int8
from edgelung.export.graph import quantizable
from edgelung.export.ranges import METHODS, input_scales
from edgelung.export.stats import (
    BINS,
    ActivationStats,
    CalibrationStats,
    bin_centres,
    collect_stats,
    count,
)
from edgelung.export.student import Student, read_student
from edgelung.export.tiles import TileReader, TileSet, read_split, set_aside
from edgelung.tiles.reader import ReaderSpec


def nothing(n: int) -> None:
    """No progress is shown here."""


@pytest.mark.parametrize("size", [1, 3, 7, 20])
def test_the_batch_size_never_changes_a_scale(
    student: Student, pixels: np.ndarray, size: int
) -> None:
    """Bit by bit: the tiles are put into batches of one size before the graph sees them."""
    whole = collect_stats(student, [pixels], 1, nothing, samples=True)
    cut = [pixels[i : i + size] for i in range(0, 20, size)]
    parts = collect_stats(student, cut, 1, nothing, samples=True)
    np.testing.assert_allclose(whole.patch, parts.patch, atol=1e-12)
    for method in METHODS:
        assert input_scales(whole, method) == input_scales(parts, method)
    for name, stats in whole.inputs.items():
        assert (stats.mean == parts.inputs[name].mean).all()
        assert (stats.tokens == parts.inputs[name].tokens).all()


def test_every_input_is_seen_whole(student: Student, pixels: np.ndarray) -> None:
    found = collect_stats(student, [pixels], 1, nothing, samples=True)
    names = quantizable(student)
    assert list(found.inputs) == names[1:]
    assert list(input_scales(found, "min-max")) == names
    for method in METHODS:
        for name, step in input_scales(found, method).items():
            if name.endswith("scores"):
                assert step * 127 == found.inputs[name].range, (
                    "neither queries nor keys are clipped"
                )
    width, tokens = student.width, 2 + 4  # class tokens and every fourth of 16 patches
    for name, stats in found.inputs.items():
        channels = {"fc2": 4, "scores": 2}.get(name.split(".")[-1], 1) * width
        only_class = name.startswith("blocks.2.") and not name.endswith(".kv")
        assert stats.counts.sum() == 20 * channels * (2 if only_class else tokens)
        assert stats.largest.shape == stats.mean.shape == (channels,)
        assert stats.range >= np.abs(stats.tokens).max()
    assert found.peak >= max(entry.range for entry in found.inputs.values())


def test_the_peak_sees_the_residual_stream(student: Student, pixels: np.ndarray) -> None:
    """An outlier that no linear gets to see, since LayerNorm comes between, still counts."""
    calm = collect_stats(student, [pixels[:4]], 1, nothing)
    name = "blocks.1.mlp.fc2.bias"
    bias = student.weights[name].copy()
    bias[5] = 1e5
    wild = replace(student, weights=student.weights | {name: bias})
    stats = collect_stats(wild, [pixels[:4]], 1, nothing)
    assert calm.peak < 1000
    assert stats.peak > 0.9e5
    assert max(entry.range for entry in stats.inputs.values()) < 1000


def test_counts_are_of_magnitudes_and_add_up() -> None:
    values = np.array([0.0, -0.0, 1.0, -1.0, 1.004, 1.01, 3e4, -1e-30], np.float32)
    counts = count(values)
    assert counts.sum() == 8
    assert counts[0] == 2
    middle = bin_centres()
    assert sorted(counts[counts > 0].tolist()) == [1, 1, 1, 2, 3]
    place = int(np.flatnonzero(counts == 3)[0])
    assert middle[place] == pytest.approx(1.0, rel=0.008)
    halves = count(values[:3]) + count(values[3:])
    assert (halves == counts).all()


def stats_of(values: np.ndarray) -> ActivationStats:
    values = values.astype(np.float32)
    return ActivationStats(count(values), np.array([np.abs(values).max()]), np.zeros(1))


def test_min_max_clips_nothing_and_the_others_drop_an_outlier() -> None:
    values = np.random.default_rng(0).normal(size=200_000)
    values[0] = 30
    stats = stats_of(values)
    assert METHODS["min-max"](stats) == 30
    assert METHODS["percentile"](stats) == pytest.approx(3.9, rel=0.03)
    for method in ("mse", "entropy"):
        assert METHODS[method](stats) < 20, method


def error(values: np.ndarray, threshold: float) -> float:
    step = threshold / 127
    return float(((np.clip(np.rint(values / step), -127, 127) * step - values) ** 2).sum())


@pytest.mark.parametrize("shape", ["normal", "laplace", "mostly zero"])
def test_mse_finds_the_best_threshold_of_the_values_themselves(shape: str) -> None:
    rng = np.random.default_rng(1)
    values = rng.normal(size=50_000) if shape == "normal" else rng.laplace(size=50_000)
    if shape == "mostly zero":
        values *= rng.random(50_000) > 0.9
    best = min(error(values, t) for t in np.linspace(1, np.abs(values).max(), 200))
    assert error(values, METHODS["mse"](stats_of(values))) <= 1.03 * best


def test_entropy_keeps_a_plain_distribution_almost_whole() -> None:
    values = np.random.default_rng(2).uniform(-1, 1, 100_000)
    assert METHODS["entropy"](stats_of(values)) > 0.9


@pytest.mark.parametrize("method", list(METHODS))
def test_an_input_of_zeros_has_a_step(method: str) -> None:
    zeros = ActivationStats(count(np.zeros(5, np.float32)), np.zeros(1, np.float32), np.zeros(1))
    assert len(zeros.counts) == BINS
    step = input_scales(CalibrationStats({"x": zeros}, np.zeros((3, 16, 16)), 0.0), method)["x"]
    assert 0 < np.float16(step) < 1e-4  # nothing to divide by would be no step


@pytest.fixture(scope="module")
def calibration(run: Path, tiles: Path) -> TileSet:
    folder = RunFolder(run)
    classes = read_student(folder).classes
    return set_aside(read_split(folder, tiles, classes)["val"], 9, 0)[0]


@pytest.fixture
def counted(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[str]:
    """The titles of the passes that collected statistics, with an empty cache."""
    monkeypatch.setenv("EDGELUNG_CACHE", str(tmp_path / "cache"))
    calls: list[str] = []
    collect = calibrate.collect_tile_stats

    def counting(*words: object, **more: object) -> object:
        calls.append(str(words[3]))
        return collect(*words, **more)  # type: ignore[arg-type]

    monkeypatch.setattr(calibrate, "collect_tile_stats", counting)
    return calls


def test_a_plan_is_made_once_and_never_of_other_content(
    run: Path, calibration: TileSet, counted: list[str], tmp_path: Path
) -> None:
    own, spec = read_student(RunFolder(run)), ReaderSpec(size=64)
    reader = TileReader(spec)
    first = plan_int8(own, calibration, reader, "mse")
    assert counted == ["activations", "calibration"]
    again = plan_int8(own, calibration, reader, "mse")
    assert counted == ["activations", "calibration"]
    assert again.scales == first.scales
    assert again.calibration == first.calibration
    assert again.graph() == first.graph()

    fewer = TileSet(calibration.data, calibration.tiles[:-1])
    bias = own.weights["norm.bias"] + np.float32(1e-3)
    changed = replace(own, weights=own.weights | {"norm.bias": bias})
    for words in (
        (own, fewer, reader, "mse"),
        (own, calibration, TileReader(replace(spec, resize="another")), "mse"),
        (own, calibration, reader, "min-max"),
        (changed, calibration, reader, "mse"),
    ):
        before = len(counted)
        plan_int8(*words)
        assert len(counted) == before + 2, words[1:]

    for path in (tmp_path / "cache" / "calibration").iterdir():
        path.write_bytes(path.read_bytes()[:100])
    before = len(counted)
    assert plan_int8(own, calibration, reader, "mse").scales == first.scales
    assert len(counted) == before + 2, "a damaged entry is made again"


def test_auto_takes_what_moves_labels_and_probabilities_least(
    run: Path, calibration: TileSet, counted: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    ruined = {name: (lambda stats: 500 * stats.range) for name in METHODS}
    monkeypatch.setattr(calibrate, "METHODS", METHODS)
    for name, method in (ruined | {"entropy": METHODS["min-max"]}).items():
        monkeypatch.setitem(METHODS, name, method)
    monkeypatch.setattr("edgelung.export.calibrate.input_scales", unclipped)
    reader = TileReader(ReaderSpec(size=64))
    plan = plan_int8(read_student(RunFolder(run)), calibration, reader, "auto")
    assert plan.calibration.method == "entropy"
    assert set(METHODS) < set(plan.calibration.scores)


def unclipped(stats: CalibrationStats, method: str) -> dict[str, float]:
    """`input_scales` without its cap at the range, so that a method can be ruined."""
    scales = {name: METHODS[method](entry) / 127 for name, entry in stats.inputs.items()}
    return {"patch_embed.proj": 1 / 64} | scales


def test_an_unknown_method_is_named(run: Path, calibration: TileSet) -> None:
    with pytest.raises(EdgelungError, match="expected auto, min-max"):
        plan_int8(
            read_student(RunFolder(run)), calibration, TileReader(ReaderSpec(size=64)), "best"
        )


def test_the_mean_patch_is_what_the_embedding_sees_on_average(
    student: Student, pixels: np.ndarray
) -> None:
    """Its mean output is the kernel times the mean patch, plus the bias."""
    found = collect_stats(student, [pixels], 1, nothing)
    size = student.patch
    n, height, width, _ = pixels.shape
    by_hand = [
        (pixels[k, i : i + size, j : j + size].ravel().astype(float) - 128) / 64
        for k in range(n)
        for i in range(0, height, size)
        for j in range(0, width, size)
    ]
    np.testing.assert_allclose(found.patch, np.mean(by_hand, axis=0), atol=1e-9)
