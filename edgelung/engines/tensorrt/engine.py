"""The TensorRT engines: built on the machine that runs them, or ahead of time (TensorRT-RTX)."""

import logging
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property, partial
from queue import SimpleQueue

import numpy as np

from edgelung import __version__
from edgelung.core.cache import Cache, Key, engine_cache
from edgelung.core.errors import one_line
from edgelung.engines.base import (
    AS_IN_FILE,
    EngineUnavailableError,
    Graph,
    Output,
    Tiles,
    join_outputs,
)
from edgelung.engines.cuda import Device, DeviceError
from edgelung.engines.tensorrt.build import Profile, build_engine
from edgelung.engines.tensorrt.execute import ExecutionSlot, LoadedEngine, split_by_memory
from edgelung.engines.tensorrt.flavour import Flavour, load_flavour
from edgelung.engines.tensorrt.prebuilt import PrebuiltFolder
from edgelung.kernels.resize import Pixels
from edgelung.tiles.reader import resize

SLOTS = 2  # one is copied while the other is computed
MAX_RESIZE_BYTES = 256 * 2**20  # per slot: decoded tiles and what lies between the two passes
BUILD_FLAGS = "strongly-typed,no-tf32"  # what the builder is told beside graph and profile

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineKeys:
    """The cache keys of one engine, of what TensorRT-RTX compiled for it, and of build timings."""

    engine: Key
    runtime_cache: Key
    timing_cache: Key


class TensorRtEngine:
    """A graph in TensorRT on the first GPU.

    Args:
        graph: the ONNX file.
        threads: not used; the GPU needs no CPU threads.
        name: 'tensorrt' or 'tensorrt-rtx'.
        latency: not used; one batch at a time is fastest with two slots as well.
        profile: the batch sizes to build for.
        prebuilt: a folder of TensorRT-RTX engines to load instead of building.
        cache: where engines are kept; by default the user's cache.

    Raises:
        EngineUnavailableError: if TensorRT or a GPU is missing, or the engine does not load.
        EdgelungError: if TensorRT refuses the graph, or the GPU has too little memory.
    """

    concurrency = SLOTS
    float_type = AS_IN_FILE

    def __init__(
        self,
        graph: Graph,
        threads: int,
        *,
        name: str,
        latency: bool = False,
        profile: Profile | None = None,
        prebuilt: PrebuiltFolder | None = None,
        cache: Cache | None = None,
    ) -> None:
        self.name = name
        self._flavour = load_flavour(name)
        self._device = Device()
        self.device = self._device.name
        self._profile = profile or Profile()
        self._cache = cache or engine_cache()
        self._keys = _keys(self._flavour, self._device, graph, self._profile)
        self._built = False  # True once this object has built the engine itself
        self._runtime_cache = self._cache.get(self._keys.runtime_cache).data or b""
        self._loaded: LoadedEngine | None = None
        self._slots: list[ExecutionSlot] = []
        with self._device.current():
            try:
                self._loaded = self._load(graph, prebuilt)
                for _ in range(SLOTS):  # one by one: if the second does not fit, free the first
                    self._slots.append(ExecutionSlot(self._loaded, self._profile))
            except BaseException:
                self._release()
                raise
        self._free_slots: SimpleQueue[ExecutionSlot] = SimpleQueue()
        for slot in self._slots:
            self._free_slots.put(slot)

    @property
    def infer_size(self) -> int:
        """Side of the tiles that `infer` takes, in pixels."""
        return self._loaded.size if self._loaded else 0

    def infer(self, tiles: Tiles) -> Output:
        """See `Engine.infer`."""
        step = self._profile.max_batch
        with self._slot() as slot:
            parts = [slot.run(tiles[i : i + step]) for i in range(0, len(tiles), step)]
        return join_outputs(parts)

    @cached_property
    def resizes(self) -> bool:
        """See `ResizingEngine.resizes`. The self-test runs once, on tiles of different sizes."""
        if os.environ.get("EDGELUNG_GPU_RESIZE", "1") == "0":
            return False
        size = self.infer_size
        rng = np.random.default_rng(0)
        shapes = ((size, size), (size + 65, size), (7, 3 * size), (2 * size - 1, size // 2))
        tiles = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
        tiles = tiles[: self._profile.max_batch]
        try:
            with self._slot() as slot:
                resized = slot.resize(tiles)
        except Exception as error:  # whatever failed, the CPU can resize
            logger.info("tiles are resized on the CPU: %s", one_line(error))
            return False
        expected = (resize(tile, size) for tile in tiles)
        if any((ours != theirs).any() for ours, theirs in zip(resized, expected, strict=True)):
            logger.info(
                "tiles are resized on the CPU: the kernels on %s give other pixels", self.device
            )
            return False
        return True

    def infer_pixels(self, tiles: Sequence[Pixels]) -> Output:
        """See `ResizingEngine.infer_pixels`."""
        batches = split_by_memory(tiles, self.infer_size, self._profile.max_batch, MAX_RESIZE_BYTES)
        try:
            with self._slot() as slot:
                return join_outputs([slot.run_pixels(batch) for batch in batches])
        except DeviceError:  # no memory for such tiles; if the GPU is at fault, this fails too
            return self.infer(np.stack([resize(tile, self.infer_size) for tile in tiles]))

    def close(self) -> None:
        """See `Engine.close`. What TensorRT-RTX compiled while running is cached."""
        if self._loaded is None:
            return
        with self._device.current():
            runtime_cache = self._loaded.runtime_cache()
            if runtime_cache and runtime_cache != self._runtime_cache:
                self._cache.try_put(self._keys.runtime_cache, runtime_cache)
            self._release()

    @contextmanager
    def _slot(self) -> Iterator[ExecutionSlot]:
        """Take a free slot, or wait for one, and make the device current in this thread."""
        slot = self._free_slots.get()
        try:
            with self._device.current():
                yield slot
        finally:
            self._free_slots.put(slot)

    def _load(self, graph: Graph, prebuilt: PrebuiltFolder | None) -> LoadedEngine:
        """Load the prebuilt or cached engine, or build it.

        A cached engine that TensorRT refuses is built again.
        """
        if prebuilt is not None:
            plan = prebuilt.find(self._flavour, self._device.architecture, graph)
            return self._deserialize(plan)
        key = self._keys.engine
        try:
            return self._deserialize(self._cache.get_or_build(key, lambda: self._build(graph)))
        except EngineUnavailableError as error:
            if self._built:
                raise
            logger.info("%s; building it again", error)
            self._cache.remove(key)
            self._runtime_cache = b""
            return self._deserialize(self._cache.get_or_build(key, lambda: self._build(graph)))

    def _deserialize(self, plan: bytes) -> LoadedEngine:
        return LoadedEngine(self._flavour, self._device, plan, self._runtime_cache)

    def _build(self, graph: Graph) -> bytes:
        """Build the engine for this GPU and cache the builder's timings."""
        self._built = True
        target = None
        if self._flavour.ahead_of_time:
            target, supported = self._device.architecture, self._flavour.targets()
            if target not in supported:
                raise EngineUnavailableError(
                    f"{self._flavour.title} does not build for {self.device} ({target}), only for "
                    f"{', '.join(supported)}; use --engine tensorrt"
                )
        logger.info("building the %s engine of %s for %s, once", self.name, graph.name, self.device)
        timings = self._cache.get(self._keys.timing_cache).data or b""
        built = build_engine(
            self._flavour, graph, self._profile, target=target, timing_cache=timings
        )
        if built.timing_cache:
            self._cache.try_put(self._keys.timing_cache, built.timing_cache)
        return built.plan

    def _release(self) -> None:
        for slot in self._slots:
            slot.close()
        self._slots = []
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None


def _keys(flavour: Flavour, device: Device, graph: Graph, profile: Profile) -> EngineKeys:
    """Build the cache keys: an engine runs only on the GPU and versions it was built with."""
    machine = {"gpu": device.name, "flavour": flavour.name}
    engine = {"graph": graph.sha256, **machine, "profile": str(profile)}
    depends_on = {
        "architecture": device.architecture,
        "version": flavour.version,
        "driver": device.driver,
        "edgelung": __version__,
        "flags": BUILD_FLAGS,
    }
    return EngineKeys(
        engine=Key("engine", engine, depends_on),
        runtime_cache=Key("runtime-cache", engine, depends_on),
        timing_cache=Key("timing-cache", machine, depends_on),
    )


tensorrt = partial(TensorRtEngine, name="tensorrt")
tensorrt_rtx = partial(TensorRtEngine, name="tensorrt-rtx")
