"""The TensorRT engines without a GPU: one code for three APIs, the slots, the errors.

The driver and TensorRT are fakes (fake_gpu.py). Their names and signatures are those of the real
bindings, and the pixels and probabilities are real.
"""

import json
import logging
import os
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from engine_helpers import expected, expected_scores, noise
from PIL import Image

from edgelung.artifacts.bundle import Bundle
from edgelung.core.errors import EdgelungError
from edgelung.engines import choose, cuda
from edgelung.engines.cuda import gpu_present
from edgelung.engines.onnxruntime import OnnxRuntimeEngine
from edgelung.engines.tensorrt.engine import SLOTS
from edgelung.inference.pipeline import Row, predict_batches
from edgelung.inference.reading import FileReading
from edgelung.kernels import build as kernels_build
from edgelung.tiles.find import find_files
from edgelung.tiles.reader import ReaderSpec, resize

RECORDS = json.loads(Path(__file__).with_name("tensorrt_api.json").read_text())
WHEELS = [("tensorrt-rtx" if "rtx" in wheel else "tensorrt", wheel) for wheel in RECORDS]


@pytest.mark.parametrize(("name", "wheel"), WHEELS)
def test_one_code_runs_every_tensorrt(
    bundle: Bundle, gpu: Any, install: Any, open_small: Any, name: str, wheel: str
) -> None:
    """The API is recorded from the real bindings of 10.16, 11.4 and RTX."""
    trt = install(name, wheel)
    engine = open_small(name)
    tiles = noise(11)
    np.testing.assert_array_equal(
        engine.infer(tiles[:5]).probabilities, expected(bundle, tiles[:5])
    )
    engine.close()
    (build,) = trt.builds
    assert build["bounds"] == ("tiles", ((1, 64, 64, 3), (4, 64, 64, 3), (8, 64, 64, 3)))
    assert build["flags"] == ["no TF32"]
    assert build["targets"] == (["SM89"] if name == "tensorrt-rtx" else [])
    assert gpu.used == 0
    again = open_small(name)  # from the cache, with what was compiled or timed
    np.testing.assert_array_equal(again.infer(tiles[:2]).probabilities, expected(bundle, tiles[:2]))
    assert len(trt.builds) == 1


@pytest.mark.parametrize("count", [1, 7, 8, 9, 17, 24])
def test_any_number_of_tiles_is_predicted(
    bundle: Bundle, gpu: Any, open_small: Any, count: int
) -> None:
    """More than `max_batch` run in parts; the last part needs no rebuild and no padding."""
    engine, tiles = open_small(), noise(count)
    np.testing.assert_array_equal(engine.infer(tiles).probabilities, expected(bundle, tiles))


def test_a_batch_size_that_comes_back_is_replayed_as_a_graph(
    bundle: Bundle, gpu: Any, install: Any, open_small: Any
) -> None:
    trt = install("tensorrt")
    engine = open_small()
    for seed in range(9):  # both slots meet the size twice, then replay
        tiles = noise(8, seed=seed)
        np.testing.assert_array_equal(engine.infer(tiles).probabilities, expected(bundle, tiles))
    tail = noise(3)
    np.testing.assert_array_equal(engine.infer(tail).probabilities, expected(bundle, tail))
    replayed = sum(op == "graph" for _, op in gpu.log)
    assert replayed == 9 - 2 * SLOTS
    assert trt.shapes.count(8) == 2 * SLOTS, "a graph's context was set up again"
    assert gpu.graphs_alive == SLOTS
    engine.close()
    assert gpu.graphs_alive == 0


def test_without_graphs_the_probabilities_are_the_same(
    bundle: Bundle, gpu: Any, open_small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    tiles = noise(4)
    monkeypatch.setenv("EDGELUNG_CUDA_GRAPHS", "0")
    off = open_small()
    monkeypatch.delenv("EDGELUNG_CUDA_GRAPHS")
    missing = open_small()
    monkeypatch.setitem(sys.modules, "cuda.bindings.driver", None)
    for engine in (off, missing):
        for _ in range(6):
            np.testing.assert_array_equal(
                engine.infer(tiles).probabilities, expected(bundle, tiles)
            )
    assert not any(op == "graph" for _, op in gpu.log)


def test_each_stream_copies_in_computes_copies_out_and_waits(gpu: Any, open_small: Any) -> None:
    engine = open_small()
    streams = sorted(gpu.streams)
    assert len(streams) == SLOTS
    for _ in range(SLOTS):
        engine.infer(noise(2))
    for stream in streams:
        operations = [op for s, op in gpu.log if s == stream]
        assert operations == ["copy in", "execute", "copy out", "copy out", "wait"]


def test_buffers_are_as_large_as_the_largest_batch(gpu: Any, open_small: Any) -> None:
    engine = open_small()
    sizes = sorted(len(block) for block in gpu.live.values())
    assert sizes == sorted([8 * 64 * 64 * 3, 8 * 3 * 4, 8 * 4] * SLOTS)  # input, two outputs
    engine.close()
    assert gpu.live == {}
    engine.close()  # twice is no error


def test_two_threads_get_their_own_rows(bundle: Bundle, gpu: Any, open_small: Any) -> None:
    engine = open_small()
    batches = [noise(n, seed=n) for n in (8, 3, 8, 5, 8, 1, 8, 8)]
    with ThreadPoolExecutor(engine.concurrency) as pool:
        found = list(pool.map(engine.infer, batches))
    for tiles, output in zip(batches, found, strict=True):
        np.testing.assert_array_equal(output.probabilities, expected(bundle, tiles))
        np.testing.assert_array_equal(output.ood, expected_scores(bundle, tiles))
    first, scores = found[0].probabilities.copy(), found[0].ood.copy()
    engine.infer(255 - batches[0])
    np.testing.assert_array_equal(found[0].probabilities, first)  # results are the caller's own
    np.testing.assert_array_equal(found[0].ood, scores)


SHAPES = [(64, 64), (300, 200), (17, 90), (64, 65), (1, 1), (500, 64), (90, 90), (3, 700)]


def test_tiles_of_any_size_are_resized_on_the_device(
    bundle: Bundle, gpu: Any, twin: None, open_small: Any
) -> None:
    rng = np.random.default_rng(3)
    images = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in SHAPES * 2]
    read = np.stack([np.asarray(resize(image, 64)) for image in images])
    engine = open_small()
    assert engine.resizes
    parts = (slice(0, 16), slice(0, 3), slice(5, 16))
    for part in parts * 4:  # graphs come in from the second time on
        output = engine.infer_pixels(images[part])
        np.testing.assert_array_equal(output.probabilities, expected(bundle, read[part]))
        np.testing.assert_array_equal(output.ood, expected_scores(bundle, read[part]))
    assert any(op == "graph" for _, op in gpu.log)
    engine.close()
    assert gpu.live == {}


def rows_of(engine: Any, folder: Path, **more: Any) -> list[Row]:
    batches = predict_batches(
        find_files(folder),
        FileReading(ReaderSpec(size=64)),
        engine,
        batch_size=8,
        threads=2,
        **more,
    )
    return [row for batch in batches for row in batch]


@pytest.fixture
def mixed(tmp_path: Path) -> Path:
    """Files of many sizes, also the engine's; one is broken, one is too large for the device."""
    rng = np.random.default_rng(5)
    folder = tmp_path / "mixed"
    folder.mkdir()
    for i, (height, width) in enumerate([*SHAPES * 2, (1200, 2000)]):
        pixels = rng.integers(0, 256, (height, width, 3), np.uint8)
        Image.fromarray(pixels).save(folder / f"{i:02}.png")
    (folder / "05.png").write_bytes(b"\x89PNG\r\n\x1a\nbroken")
    return folder


def test_the_folder_run_leaves_the_resize_to_the_device(
    bundle: Bundle, gpu: Any, twin: None, open_small: Any, mixed: Path
) -> None:
    plain = rows_of(OnnxRuntimeEngine(bundle.variants["fp32"].graph, 1), mixed)
    engine = open_small()
    found = rows_of(engine, mixed, reference=OnnxRuntimeEngine(bundle.variants["fp32"].graph, 1))
    assert sum(op == "resize_rows" for _, op in gpu.log) >= 1 + 2  # the trial, then two batches
    assert [row.status for row in found] == [row.status for row in plain]
    assert [row.status for row in found].count("ok") == 16
    for ours, theirs in zip(found, plain, strict=True):
        if theirs.probabilities is not None:
            np.testing.assert_array_equal(ours.probabilities, theirs.probabilities)
            np.testing.assert_array_equal(ours.reference, theirs.probabilities)
    engine.close()
    assert gpu.live == {}


@pytest.mark.parametrize("broken", ["other pixels", "no kernels", "no launch"])
def test_a_device_that_does_not_resize_as_the_reader_leaves_it_to_the_cpu(
    bundle: Bundle,
    gpu: Any,
    twin: None,
    open_small: Any,
    mixed: Path,
    broken: str,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    if broken == "other pixels":
        gpu.twin = SimpleNamespace(
            host_resize_weights=gpu.twin.host_resize_weights,
            host_resize_rows=lambda *arguments: None,
            host_resize_columns=gpu.twin.host_resize_columns,
        )
    elif broken == "no kernels":
        monkeypatch.setattr(kernels_build, "read_record", lambda: None)
    else:
        gpu.failing["launch"] = RuntimeError("no kernel image is available")
    caplog.set_level(logging.INFO)
    engine = open_small()
    found = rows_of(engine, mixed)
    plain = rows_of(OnnxRuntimeEngine(bundle.variants["fp32"].graph, 1), mixed)
    for ours, theirs in zip(found, plain, strict=True):
        if theirs.probabilities is not None:
            np.testing.assert_array_equal(ours.probabilities, theirs.probabilities)
    assert "tiles are resized on the CPU" in caplog.text


def test_the_key_of_an_engine_names_everything_it_was_built_for(gpu: Any, open_small: Any) -> None:
    key = open_small()._keys.engine.as_dict()
    assert {"graph", "gpu", "architecture", "flavour", "version", "driver", "profile", "flags"} <= {
        *key
    }
    assert key["gpu"] == "Fake RTX"
    assert key["architecture"] == "sm_89"
    assert len(key["graph"]) == 64
    assert key["profile"] == "1/4/8"


@pytest.mark.parametrize("name", ["onnxruntime-cuda", "onnxruntime-tensorrt"])
def test_gpu_providers_run_or_fail(bundle: Bundle, name: str) -> None:
    """Here, without a GPU, they must fail: ONNX Runtime itself would go to the CPU in silence."""
    if cuda.gpu_present():
        pytest.skip("this machine has a GPU; see test_gpu.py")
    with pytest.raises(EdgelungError, match=name):
        choose.open_engine(bundle, name, "fp32")


NOTHING = """
import sys
class Refuse:
    def find_spec(self, name, path=None, target=None):
        if name.split(".")[0] in ("pycuda", "tensorrt", "tensorrt_rtx", "cuda"):
            raise ModuleNotFoundError(name, name=name)
sys.meta_path.insert(0, Refuse())
from edgelung.cli import main
main()
"""


def test_infer_without_pycuda_tensorrt_and_cuda_bindings(
    bundle_folder: Path, tiles: Path, tmp_path: Path
) -> None:
    words = ["infer", tiles / "lung_n", "--model", bundle_folder, "--out", tmp_path / "p.csv"]
    environment = os.environ | {"EDGELUNG_CACHE": str(tmp_path / "cache")}
    for more, code in (([], 0), (["--engine", "tensorrt"], 2)):
        done = subprocess.run(
            [sys.executable, "-c", NOTHING, *map(str, words), *more],
            capture_output=True,
            text=True,
            timeout=120,
            check=False,
            env=environment,
        )
        assert done.returncode == code, done.stderr
    if gpu_present():
        assert "tensorrt is not installed" in done.stderr
    else:
        assert "tensorrt needs an NVIDIA GPU, and none is visible" in done.stderr
        assert "install TensorRT" not in done.stderr
    assert "Traceback" not in done.stderr


def test_the_kernels_follow_the_readers_spec() -> None:
    assert "BILINEAR" in ReaderSpec().resize
