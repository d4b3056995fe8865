"""The early exit on a GPU, without one: what continues is picked by the kernels' host twin.

The driver, TensorRT and ONNX Runtime's CUDA provider are fakes; the numbers are real.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgelung.artifacts.bundle import Bundle, open_bundle
from edgelung.core.errors import EdgelungError
from edgelung.core.precision import Precision
from edgelung.engines import choose
from edgelung.engines.base import EngineUnavailableError
from edgelung.engines.choose import load_variant, open_engine
from edgelung.engines.device_exit import DeviceExitEngine, static_size
from edgelung.engines.onnxruntime import OnnxRuntimeEngine
from edgelung.kernels import build as kernels_build
from edgelung.tiles.reader import read_tile, resize

EARLY = Precision.INT8_EARLY_EXIT
ENGINES = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda")


@pytest.fixture(scope="module")
def early(early_exit_bundle: Path) -> Bundle:
    return open_bundle(early_exit_bundle)


@pytest.fixture(scope="module")
def some(early: Bundle, tiles: Path) -> np.ndarray:
    """40 real tiles of the run, (40, 64, 64, 3)."""
    paths = sorted(tiles.glob("*/*.jpeg"))[:80:2]
    return np.stack([read_tile(path, early.reader) for path in paths])


@pytest.fixture
def opened(early: Bundle, gpu: Any, twin: None, install: Any, cuda_sessions: list) -> Callable:
    """Load the variant with an early exit in an engine of the fake GPU."""

    def call(name: str) -> Any:
        if name != "onnxruntime-cuda":
            install(name)
        return load_variant(choose.ENGINES[name], early.variants[EARLY], 1)

    return call


@pytest.fixture(scope="module")
def on_cpu(early: Bundle, some: np.ndarray) -> Any:
    """What the early exit on the CPU predicts for the tiles."""
    return load_variant(OnnxRuntimeEngine, early.variants[EARLY], 1).infer(some)


@pytest.mark.parametrize("name", ENGINES)
def test_the_rows_are_those_of_the_early_exit_on_the_cpu(
    opened: Callable, some: np.ndarray, on_cpu: Any, gpu: Any, name: str
) -> None:
    engine = opened(name)
    assert isinstance(engine, DeviceExitEngine)
    assert set(on_cpu.stage.tolist()) == {1, 2}
    for size in (1, 7, 40, 7):
        for i in range(0, len(some), size):
            output, part = engine.infer(some[i : i + size]), slice(i, i + size)
            np.testing.assert_array_equal(output.stage, on_cpu.stage[part])
            np.testing.assert_allclose(output.probabilities, on_cpu.probabilities[part], atol=2e-6)
            np.testing.assert_allclose(output.ood, on_cpu.ood[part], rtol=1e-5)
    engine.close()
    assert gpu.live == {}
    assert gpu.graphs_alive == 0
    engine.close()  # twice is no error


def test_graphs_run_at_static_sizes_only(
    opened: Callable, some: np.ndarray, cuda_sessions: list
) -> None:
    engine = opened("onnxruntime-cuda")
    for size in (1, 3, 7, 13, 40):
        engine.infer(some[:size])
    first, second = ({rows for _, rows in session.runs} for session in cuda_sessions)
    assert first == {1, 4, 8, 16, 64}
    assert second <= {1, 2, 4, 8, 16, 32, 64}


def test_what_fills_up_a_batch_may_be_no_number(
    opened: Callable, some: np.ndarray, on_cpu: Any, gpu: Any, cuda_sessions: list
) -> None:
    """Memory of the device may hold anything. Its rows are not read, and CUDA graphs stay on."""
    engine = opened("onnxruntime-cuda")
    (slot,) = engine._second._slots
    address = int(slot.memory("tokens"))
    block = next(block for start, block in gpu.live.items() if start == address)
    block[:] = 0xFF  # NaN
    continues = np.flatnonzero(on_cpu.stage == 2)[:3]
    assert len(continues) == 3, "of 4 rows, one fills up the batch"
    for _ in range(3):
        output = engine.infer(some[continues])
        np.testing.assert_allclose(output.probabilities, on_cpu.probabilities[continues], atol=5e-7)
    assert ("replay", 4) in cuda_sessions[1].runs


def test_static_sizes() -> None:
    assert [static_size(n, 128) for n in (1, 2, 3, 5, 64, 65, 128)] == [1, 2, 4, 8, 64, 128, 128]
    assert [static_size(n, 100) for n in (64, 65, 100)] == [64, 100, 100]


@pytest.mark.parametrize("name", ENGINES)
def test_tokens_never_leave_the_device(
    opened: Callable, some: np.ndarray, gpu: Any, name: str
) -> None:
    """The host gets probabilities, scores and positions: less than one tile's tokens."""
    opened(name).infer(some)
    tokens = 18 * 192 * 4  # bytes of one tile
    assert any(op == "exit_gather" for _, op in gpu.log)
    copied = [array.nbytes for array in gpu.pinned if array.dtype == np.float32]
    assert max(copied) <= 128 * 3 * 4 < tokens


def test_tiles_of_any_size_are_resized_on_the_device(opened: Callable) -> None:
    rng = np.random.default_rng(3)
    shapes = ((64, 64), (90, 70), (9, 200), (300, 64), (65, 63))
    images = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
    engine = opened("tensorrt")
    assert engine.resizes
    read = np.stack([np.asarray(resize(image, 64)) for image in images])
    ours, theirs = engine.infer_pixels(images), engine.infer(read)
    for found, expected in zip(ours, theirs, strict=True):
        np.testing.assert_array_equal(found, expected)


def test_two_batches_in_flight_get_their_own_rows(
    opened: Callable, some: np.ndarray, on_cpu: Any
) -> None:
    from concurrent.futures import ThreadPoolExecutor

    engine = opened("tensorrt")
    parts = [slice(i, i + n) for i, n in ((0, 8), (8, 3), (11, 16), (27, 1), (28, 12))] * 3
    with ThreadPoolExecutor(engine.concurrency) as pool:
        found = list(pool.map(lambda part: engine.infer(some[part]), parts))
    for part, output in zip(parts, found, strict=True):
        np.testing.assert_array_equal(output.stage, on_cpu.stage[part])
        np.testing.assert_allclose(output.probabilities, on_cpu.probabilities[part], atol=2e-6)


def test_a_wrong_kernel_is_noticed_on_the_golden_tiles(
    early: Bundle, gpu: Any, twin: None, install: Any
) -> None:
    install("tensorrt")
    gpu.twin = type("Twin", (), {"host_exit_gather": lambda *words: None})()
    gpu.twin.host_exit_positions = lambda *words: None  # all at place 0xABABABAB, negative: none
    variant = early.variants[EARLY]
    with pytest.raises(EdgelungError, match="golden tiles"):
        choose._checked(
            early, load_variant(choose.ENGINES["tensorrt"], variant, 1), variant, 1, latency=False
        )
    assert gpu.live == {}, "the engine was not closed"


def test_without_compiled_kernels_the_engine_is_unavailable(
    early: Bundle, gpu: Any, install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("tensorrt")
    monkeypatch.setattr(kernels_build, "read_record", lambda: None)
    with pytest.raises(EngineUnavailableError, match=r"python -m edgelung.kernels.build"):
        load_variant(choose.ENGINES["tensorrt"], early.variants[EARLY], 1)
    assert gpu.live == {}


def test_a_named_engine_opens_it_and_auto_does_not_choose_it(
    early: Bundle, gpu: Any, twin: None, install: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    install("tensorrt")
    monkeypatch.setattr(choose, "gpu_present", lambda: True)
    chosen = open_engine(early, "tensorrt", EARLY)
    assert isinstance(chosen.engine, DeviceExitEngine)
    chosen.engine.close()
    monkeypatch.setattr(choose, "AUTO_GPU_ENGINES", ("tensorrt",))
    automatic = open_engine(early)
    assert automatic.variant.precision is not EARLY
    automatic.engine.close()
