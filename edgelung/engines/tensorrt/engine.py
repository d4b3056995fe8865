"""The TensorRT engines: built on the machine that runs them, or ahead of time (TensorRT-RTX)."""

import logging
from dataclasses import dataclass
from functools import partial

from edgelung import __version__
from edgelung.core.cache import Cache, Key, engine_cache
from edgelung.engines.base import EngineUnavailableError, Graph
from edgelung.engines.cuda import Device
from edgelung.engines.device_engine import DeviceEngine
from edgelung.engines.tensorrt.build import Profile, build_engine
from edgelung.engines.tensorrt.execute import ExecutionSlot, LoadedEngine
from edgelung.engines.tensorrt.flavour import Flavour, load_flavour
from edgelung.engines.tensorrt.prebuilt import PrebuiltFolder

SLOTS = 2  # one is copied while the other is computed
BUILD_FLAGS = "strongly-typed,no-tf32"  # what the builder is told beside graph and profile

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class EngineKeys:
    """The cache keys of one engine, of what TensorRT-RTX compiled for it, and of build timings."""

    engine: Key
    runtime_cache: Key
    timing_cache: Key


class TensorRtEngine(DeviceEngine):
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
        self._flavour = load_flavour(name)
        self._profile = profile or Profile()
        super().__init__(name, Device(), self._profile.max_batch)
        self._cache = cache or engine_cache()
        self._keys = _keys(self._flavour, self._device, graph, self._profile)
        self._built = False  # True once this object has built the engine itself
        self._runtime_cache = self._cache.get(self._keys.runtime_cache).data or b""
        with self._device.current():
            loaded = self._load(graph, prebuilt)
            self._loaded: LoadedEngine | None = loaded
            self._open(lambda: ExecutionSlot(loaded, self.max_batch))

    def close(self) -> None:
        """See `Engine.close`. What TensorRT-RTX compiled while running is cached."""
        if self._loaded is not None:
            with self._device.current():
                runtime_cache = self._loaded.runtime_cache()
                if runtime_cache and runtime_cache != self._runtime_cache:
                    self._cache.try_put(self._keys.runtime_cache, runtime_cache)
        super().close()

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
        super()._release()
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
