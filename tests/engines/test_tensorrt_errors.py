"""Failures of the TensorRT engines, without a GPU: named in one line, and everything is freed."""

import logging
import sys
from typing import Any

import numpy as np
import pytest
from engine_helpers import expected, noise

from edgelung.artifacts.bundle import Bundle
from edgelung.core.cache import Cache, Key, engine_cache
from edgelung.core.errors import EdgelungError
from edgelung.engines.base import EngineUnavailableError
from edgelung.engines.cuda import DeviceError
from edgelung.engines.tensorrt.build import Profile, build_engine
from edgelung.engines.tensorrt.flavour import load_flavour


@pytest.mark.parametrize("operation", ["copy in", "execute", "copy out", "synchronize"])
def test_an_error_of_the_driver_is_named_and_everything_freed(
    gpu: Any, open_small: Any, operation: str
) -> None:
    engine = open_small()
    gpu.failing[operation] = RuntimeError("cuStreamSynchronize failed: illegal memory access")
    with pytest.raises((DeviceError, RuntimeError), match="illegal memory access"):
        engine.infer(noise(2))
    engine.close()
    assert gpu.live == {}
    assert gpu.depth == 0


@pytest.mark.parametrize(("step", "message"), [("shape", "the shape"), ("execute", "2 tiles")])
def test_what_tensorrt_refuses_is_an_error(
    gpu: Any, install: Any, open_small: Any, step: str, message: str
) -> None:
    trt = install("tensorrt")
    engine = open_small()
    trt.refuse[step] = True
    with pytest.raises(DeviceError, match=f"refuses {message}"):
        engine.infer(noise(2))


def test_too_little_memory_frees_what_fitted(gpu: Any, open_small: Any) -> None:
    gpu.memory_bytes = 8 * 64 * 64 * 3 + 1000  # one slot's input
    with pytest.raises(DeviceError, match="close other programs"):
        open_small()
    assert gpu.live == {}
    assert gpu.depth == 0


def test_no_memory_for_a_graph_is_no_error(
    bundle: Bundle, gpu: Any, install: Any, open_small: Any
) -> None:
    trt = install("tensorrt")
    engine, tiles = open_small(), noise(4)
    trt.refuse["context"] = True
    for _ in range(5):
        np.testing.assert_array_equal(engine.infer(tiles).probabilities, expected(bundle, tiles))
    assert not any(op == "graph" for _, op in gpu.log)


def test_a_cached_engine_that_tensorrt_refuses_is_built_again(
    bundle: Bundle, gpu: Any, install: Any, open_small: Any, caplog: pytest.LogCaptureFixture
) -> None:
    trt = install("tensorrt")
    caplog.set_level(logging.INFO)
    first = open_small()
    key = first._keys.engine
    first.close()
    cache = engine_cache()
    assert cache.get(key).data
    of_another_build = b"nothing that this TensorRT knows"
    cache.put(key, of_another_build)  # with a hash that is right
    engine, tiles = open_small(), noise(3)
    np.testing.assert_array_equal(engine.infer(tiles).probabilities, expected(bundle, tiles))
    assert len(trt.builds) == 2
    assert "building it again" in caplog.text
    open_small()
    assert len(trt.builds) == 2, "the new one was not cached"
    cache.remove(key)
    trt.refuse = {"load": True}
    with pytest.raises(EngineUnavailableError, match="does not load the engine"):
        open_small()
    assert len(trt.builds) == 3, "one that was just built is not built once more"


def test_a_full_disk_only_costs_time(
    bundle: Bundle, gpu: Any, install: Any, open_small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(self: Cache, key: Key, data: bytes) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(Cache, "put", full)
    for name in ("tensorrt", "tensorrt-rtx"):
        install(name)
        engine, tiles = open_small(name), noise(3)
        np.testing.assert_array_equal(engine.infer(tiles).probabilities, expected(bundle, tiles))
        engine.close()


def test_no_context_and_no_engine_are_errors(gpu: Any, install: Any, open_small: Any) -> None:
    trt = install("tensorrt")
    trt.refuse["context"] = True
    with pytest.raises(DeviceError, match="execution context"):
        open_small()
    trt.refuse = {"load": True}
    with pytest.raises(EngineUnavailableError, match="does not load the engine on Fake RTX"):
        open_small()
    assert gpu.live == {}


@pytest.mark.parametrize(("step", "words"), [("parse", "types differ"), ("build", "blocks.0")])
def test_a_refused_graph_is_one_line(
    bundle: Bundle, gpu: Any, install: Any, step: str, words: str
) -> None:
    install("tensorrt").refuse[step] = True
    with pytest.raises(EdgelungError, match=rf"TensorRT 11.4.* refuses model.fp32.onnx: .*{words}"):
        build_engine(load_flavour("tensorrt"), bundle.variants["fp32"].graph, Profile())


def test_an_unlisted_gpu_names_the_other_engine(gpu: Any, open_small: Any) -> None:
    gpu.capability = (9, 0)
    with pytest.raises(EngineUnavailableError, match=r"does not build for .*sm_90.*tensorrt"):
        open_small("tensorrt-rtx")


def test_a_machine_without_a_gpu_never_deserializes(
    gpu: Any, install: Any, open_small: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    trt = install("tensorrt")
    open_small().close()  # fills the cache
    assert trt.deserialised == 1
    gpu.count = 0
    with pytest.raises(EngineUnavailableError, match="no CUDA GPU"):
        open_small()
    gpu.count = 1
    gpu.failing["init"] = RuntimeError("cuInit failed: no device")
    with pytest.raises(EngineUnavailableError, match="no device"):
        open_small()
    monkeypatch.setitem(sys.modules, "pycuda.driver", None)
    with pytest.raises(EngineUnavailableError, match="pycuda"):
        open_small()
    assert trt.deserialised == 1


def test_a_missing_or_old_tensorrt_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "tensorrt", None)
    with pytest.raises(EngineUnavailableError, match="pip install tensorrt"):
        load_flavour("tensorrt")

    class Old:
        __version__ = "8.6.1"

    monkeypatch.setitem(sys.modules, "tensorrt", Old)
    with pytest.raises(EngineUnavailableError, match="too old"):
        load_flavour("tensorrt")
