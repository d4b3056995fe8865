"""On a real card: everything that the other tests only pretend. `pytest -m gpu`."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from edgelung.artifacts.bundle import Bundle, open_bundle
from edgelung.core.precision import Precision
from edgelung.engines import choose
from edgelung.engines.base import Engine, EngineUnavailableError, join_outputs
from edgelung.engines.cuda import Device, DeviceError, gpu_present
from edgelung.engines.onnxruntime import OnnxRuntimeEngine
from edgelung.engines.onnxruntime_cuda import OnnxRuntimeCudaEngine
from edgelung.engines.resize import DeviceResize
from edgelung.engines.tensorrt.engine import TensorRtEngine
from edgelung.inference.pipeline import predict_batches
from edgelung.inference.reading import FileReading
from edgelung.tiles.find import find_files
from edgelung.tiles.reader import ReaderSpec, read_pixels, resize_by_pillow

# Decided before any fixture: without a card not even the small bundle is made.
pytestmark = [pytest.mark.gpu, pytest.mark.skipif(not gpu_present(), reason="no NVIDIA GPU")]

ENGINES = ("tensorrt", "tensorrt-rtx", "onnxruntime-cuda", "onnxruntime-tensorrt")
TOLERANCE = {"fp32": 1e-3, "fp16": 2e-2, "int8": 1e-1}


@pytest.fixture(scope="module")
def device() -> Device:
    try:
        return Device()
    except EngineUnavailableError as error:
        pytest.skip(str(error))


@pytest.fixture
def opened(device: Device, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Open an engine by name, or skip with its reason; closed at the end."""
    monkeypatch.setenv("EDGELUNG_CACHE", str(tmp_path / "cache"))
    engines: list[Engine] = []

    def call(name: str, precision: str = "fp32") -> Any:
        try:
            engines.append(choose.ENGINES[name](bundle.variants[precision].graph, 2))
        except EngineUnavailableError as error:
            pytest.skip(str(error))
        return engines[-1]

    yield call
    for engine in engines:
        engine.close()


def noise(count: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (count, 64, 64, 3), np.uint8)


@pytest.mark.parametrize("precision", ["fp32", "fp16", "int8"])
@pytest.mark.parametrize("name", ENGINES)
def test_engines_agree_with_the_reference(
    opened: Any, bundle: Bundle, name: str, precision: str
) -> None:
    engine = opened(name, precision)
    assert choose.check_golden(bundle, engine, precision) <= TOLERANCE[precision]
    for count in (1, 32, 31, 130):
        tiles = noise(count, seed=count)
        expected = OnnxRuntimeEngine(bundle.variants[precision].graph, 2).infer(tiles).probabilities
        np.testing.assert_allclose(
            engine.infer(tiles).probabilities, expected, atol=TOLERANCE[precision]
        )


@pytest.mark.parametrize("name", ENGINES[:2])
def test_graphs_change_nothing(opened: Any, name: str) -> None:
    engine: TensorRtEngine = opened(name)
    tiles = noise(8)
    first = engine.infer(tiles).probabilities
    for _ in range(9):
        np.testing.assert_array_equal(engine.infer(tiles).probabilities, first)
    for slot in engine._slots:
        assert list(slot._graphs) == [8], "no graph was recorded"


@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_onnx_runtime_replays_what_it_computed(opened: Any, precision: str) -> None:
    """Also with fused operators, which FP16 has."""
    engine = opened("onnxruntime-cuda", precision)
    if not isinstance(engine, OnnxRuntimeCudaEngine):
        pytest.skip("without pycuda there is no bound memory")
    assert (engine.plain is not None) == (precision == "fp16")
    for count in (8, 1, 8, 8, 1, 1):
        tiles = noise(count)
        first = engine.infer(tiles).probabilities
        np.testing.assert_allclose(engine.infer(tiles).probabilities, first, atol=1e-3)
    with engine.slot() as slot:
        assert set(slot._graphs) == {1, 8}, "no graph was recorded"


@pytest.mark.parametrize("name", ENGINES[:3])
def test_the_early_exit_on_the_device_gives_the_rows_of_the_cpu(
    device: Device,
    early_exit_bundle: Path,
    name: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("EDGELUNG_CACHE", str(tmp_path / "cache"))
    bundle = open_bundle(early_exit_bundle)
    variant = bundle.variants[Precision.INT8_EARLY_EXIT]
    tiles = np.concatenate([noise(30), choose._golden(bundle)])
    expected = choose.load_variant(OnnxRuntimeEngine, variant, 2).infer(tiles)
    try:
        engine = choose.load_variant(choose.ENGINES[name], variant, 2)
    except EngineUnavailableError as error:
        pytest.skip(str(error))
    for size in (1, 7, len(tiles), len(tiles), len(tiles)):
        found = join_outputs(
            [engine.infer(tiles[i : i + size]) for i in range(0, len(tiles), size)]
        )
        same = found.stage == expected.stage
        assert same.mean() > 0.9  # rounding decides at a threshold
        np.testing.assert_allclose(
            found.probabilities[same], expected.probabilities[same], atol=TOLERANCE["int8"]
        )
    engine.close()


def test_the_resize_kernel_gives_the_readers_pixels(device: Device) -> None:
    rng = np.random.default_rng(0)
    sizes = [(1, 1), (2000, 3), (3, 2000), (224, 224), (225, 223), (1500, 2000), (400, 300)]
    tiles = [rng.integers(0, 256, (*size, 3), np.uint8) for size in sizes]
    found = on_device(device, tiles, 224)
    for i, tile in enumerate(tiles):
        expected = resize_by_pillow(tile, 224)
        assert int((found[i] != expected).sum()) == 0, sizes[i]


@pytest.mark.data
def test_the_resize_kernel_on_real_tiles(device: Device, real_tiles: Path) -> None:
    spec = ReaderSpec()
    paths = sorted((real_tiles / "lc25000_768").rglob("*.jp*g"))
    found = on_device(device, [read_pixels(path, spec) for path in paths], 224)
    expected = np.stack([resize_by_pillow(read_pixels(path, spec), 224) for path in paths])
    assert int((found != expected).sum()) == 0


def on_device(device: Device, tiles: list[np.ndarray], size: int) -> np.ndarray:
    with device.current():
        stream = device.stream()
        kernels = DeviceResize(device, stream)
        out = device.pinned((len(tiles), size, size, 3), np.uint8)
        memory = device.memory(out.nbytes)
        kernels.enqueue(tiles, size, memory)
        stream.copy_out(out, memory)
        stream.wait()
        kernels.free()
        memory.free()
    return np.array(out)


@pytest.mark.parametrize("name", ENGINES[:2])
def test_tiles_of_any_size(opened: Any, name: str) -> None:
    rng = np.random.default_rng(0)
    tiles = [rng.integers(0, 256, (*size, 3), np.uint8) for size in ((90, 70), (64, 64), (9, 500))]
    engine: TensorRtEngine = opened(name)
    read = np.stack([resize_by_pillow(tile, 64) for tile in tiles])
    np.testing.assert_allclose(
        engine.infer_pixels(tiles).probabilities, engine.infer(read).probabilities, atol=1e-6
    )


@pytest.mark.parametrize("name", ENGINES[:2])
def test_the_folder_run_resizes_on_the_device(
    opened: Any, bundle: Bundle, tmp_path: Path, name: str
) -> None:
    rng = np.random.default_rng(0)
    for i, size in enumerate(((90, 70), (64, 64), (9, 500), (700, 900))):
        pixels = rng.integers(0, 256, (*size, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{i}.png")
    engine: TensorRtEngine = opened(name)
    assert engine.resizes
    reference = OnnxRuntimeEngine(bundle.variants["fp32"].graph, 2)
    (rows,) = predict_batches(
        find_files(tmp_path),
        FileReading(bundle.reader),
        engine,
        batch_size=8,
        threads=2,
        reference=reference,
    )
    assert len(rows) == 4
    for row in rows:
        np.testing.assert_allclose(row.probabilities, row.reference, atol=TOLERANCE["fp32"])


@pytest.mark.parametrize("name", ENGINES[:2])
def test_two_threads_get_their_own_rows(opened: Any, bundle: Bundle, name: str) -> None:
    engine: TensorRtEngine = opened(name)
    batches = [noise(n, seed=n) for n in (8, 3, 32, 5, 8, 1, 32, 8)] * 4
    with ThreadPoolExecutor(engine.concurrency) as pool:
        found = list(pool.map(engine.infer, batches))
    reference = OnnxRuntimeEngine(bundle.variants["fp32"].graph, 2)
    for tiles, ours in zip(batches, found, strict=True):
        np.testing.assert_allclose(
            ours, reference.infer(tiles).probabilities, atol=TOLERANCE["fp32"]
        )


@pytest.mark.parametrize("name", ENGINES[:2])
def test_the_second_start_builds_nothing(
    opened: Any, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = opened(name).infer(noise(4)).probabilities

    def build(self: TensorRtEngine, *more: Any) -> bytes:
        raise AssertionError("built again")

    monkeypatch.setattr(TensorRtEngine, "_build", build)
    np.testing.assert_array_equal(opened(name).infer(noise(4)).probabilities, first)


@pytest.mark.parametrize("name", ENGINES[:2])
def test_memory_comes_back(device: Device, bundle: Bundle, opened: Any, name: str) -> None:
    import pycuda.driver as driver

    opened(name).close()
    with device.current():
        before, _ = driver.mem_get_info()
    for _ in range(3):
        engine = opened(name)
        engine.infer(noise(4))
        engine.close()
    with device.current():
        after, _ = driver.mem_get_info()
    assert before - after < 64 * 2**20


def test_auto_chooses_on_the_gpu(bundle: Bundle, opened: Any) -> None:
    opened("onnxruntime-cuda")  # skips where not even that runs
    chosen = choose.open_engine(bundle)
    assert chosen.engine.name in choose.GPU_ENGINES
    assert "ms" in chosen.reason
    chosen.engine.close()


def test_a_graph_replays_what_was_recorded(device: Device) -> None:
    rng = np.random.default_rng(0)
    tiles = [rng.integers(0, 256, (300, 280, 3), np.uint8) for _ in range(4)]
    expected = np.stack([resize_by_pillow(tile, 224) for tile in tiles])
    with device.current():
        stream = device.stream()
        kernels = DeviceResize(device, stream)
        found = device.pinned(expected.shape, np.uint8)
        memory = device.memory(found.nbytes)
        kernels.enqueue(tiles, 224, memory)
        stream.wait()

        def work() -> None:
            kernels._launch()
            stream.copy_out(found, memory)

        graph = stream.capture(work)
        stream.wait()
        assert not (found == expected).all(), "recording ran the work"
        for _ in range(3):
            found[:] = 0
            graph.launch()
            stream.wait()
            np.testing.assert_array_equal(found, expected)
        graph.free()
        kernels.free()
        memory.free()


def test_memory_that_the_card_lacks_is_said_in_words(device: Device) -> None:
    with device.current(), pytest.raises(DeviceError, match="close other programs"):
        device.memory(2 * device.memory_bytes)


def test_the_device_layer_gives_its_memory_back(device: Device) -> None:
    import pycuda.driver as driver

    tiles = [np.zeros((400, 400, 3), np.uint8)] * 8
    on_device(device, tiles, 224)
    with device.current():
        before, _ = driver.mem_get_info()
    for _ in range(20):
        on_device(device, tiles, 224)
    with device.current():
        after, _ = driver.mem_get_info()
    assert before - after < 16 * 2**20
