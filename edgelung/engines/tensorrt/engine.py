"""The TensorRT engines: built on the machine that runs them, or ahead of time (TensorRT-RTX)."""

import os
import queue
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from functools import cached_property, partial
from pathlib import Path

import numpy as np

from edgelung import __version__
from edgelung.core.errors import one_line
from edgelung.core.files import sha256_file
from edgelung.engines.base import AS_IN_FILE, EngineUnavailableError, Probabilities, Tiles
from edgelung.engines.cuda import Device, DeviceError
from edgelung.engines.tensorrt.build import Profile, build_engine
from edgelung.engines.tensorrt.cache import EngineCache, Key, Say
from edgelung.engines.tensorrt.execute import Lane, Loaded, batches_of_pixels
from edgelung.engines.tensorrt.flavour import Flavour, load_flavour
from edgelung.engines.tensorrt.prebuilt import find_prebuilt
from edgelung.kernels.resize import Pixels
from edgelung.tiles.reader import resize

LANES = 2  # one copies while the other computes
PIXELS_ROOM = 256 * 2**20  # bytes of tiles and what lies between the passes, per lane
FLAGS = "strongly-typed,no-tf32"  # what the builder is told beside the graph and the profile


class TensorRtEngine:
    """A graph in TensorRT on the first GPU. Raises EngineUnavailableError where that cannot be."""

    concurrency = LANES
    float_type = AS_IN_FILE

    def __init__(
        self,
        graph: Path,
        threads: int,  # of the CPU: the GPU needs none of them
        *,
        name: str,
        latency: bool = False,  # one batch at a time is soonest done with both lanes as well
        profile: Profile | None = None,
        prebuilt: Path | None = None,
        cache: EngineCache | None = None,
    ) -> None:
        from edgelung.core.terminal import note

        self.name = name
        profile = profile or Profile()
        flavour = load_flavour(name)
        self._device = Device()
        self.device = self._device.name
        self._cache = cache or EngineCache()
        self._keys = _keys(flavour, self._device, graph, profile)
        self._loaded: Loaded | None = None
        self._lanes: list[Lane] = []
        self._profile = profile
        self._built = False
        runtime_cache, _ = self._cache.get(self._keys["runtime-cache"])
        self._compiled = runtime_cache or b""
        with self._device.current():
            try:
                if prebuilt is not None:
                    plan = find_prebuilt(prebuilt, flavour, self._device.architecture, graph)
                    self._loaded = Loaded(flavour, self._device, plan, self._compiled)
                else:
                    self._loaded = self._load_or_build(flavour, graph, note)
                for _ in range(LANES):  # one by one: what fits is released if the next does not
                    self._lanes.append(Lane(self._loaded, profile))
            except BaseException:
                self._release()
                raise
        self._free: queue.SimpleQueue[Lane] = queue.SimpleQueue()
        for lane in self._lanes:
            self._free.put(lane)

    @property
    def infer_size(self) -> int:
        """Pixels along a side of the tiles that `infer` takes."""
        return self._loaded.size if self._loaded else 0

    def infer(self, tiles: Tiles) -> Probabilities:
        """See `Engine.infer`."""
        most = self._profile.most
        with self._lane() as lane:
            parts = [lane.run(tiles[i : i + most]) for i in range(0, len(tiles), most)]
        return parts[0] if len(parts) == 1 else np.concatenate(parts)

    @cached_property
    def resizes(self) -> bool:
        """See `ResizingEngine.resizes`; tried once, on tiles of sizes that differ."""
        from edgelung.core.terminal import note

        if os.environ.get("EDGELUNG_GPU_RESIZE", "1") == "0":
            return False
        size = self.infer_size
        rng = np.random.default_rng(0)
        shapes = ((size, size), (size + 65, size), (7, 3 * size), (2 * size - 1, size // 2))
        tiles = [rng.integers(0, 256, (*shape, 3), np.uint8) for shape in shapes]
        tiles = tiles[: self._profile.most]
        try:
            with self._lane() as lane:
                found = lane.resized(tiles)
        except Exception as error:  # whatever it is, the CPU can
            note(f"tiles are resized on the CPU: {one_line(error)}")
            return False
        if any((ours != resize(tile, size)).any() for ours, tile in zip(found, tiles, strict=True)):
            note(f"the kernels on {self.device} resize to other pixels: the CPU resizes")
            return False
        return True

    def infer_pixels(self, tiles: Sequence[Pixels]) -> Probabilities:
        """As `infer`, of decoded tiles uint8 RGB (H, W, 3) of any size, resized on the GPU."""
        parts = batches_of_pixels(tiles, self.infer_size, self._profile.most, PIXELS_ROOM)
        try:
            with self._lane() as lane:
                return np.concatenate([lane.run_pixels(part) for part in parts])
        except DeviceError:  # no memory for such tiles; if the GPU is at fault, this fails too
            return self.infer(np.stack([resize(tile, self.infer_size) for tile in tiles]))

    def close(self) -> None:
        """See `Engine.close`."""
        if self._loaded is None:
            return
        with self._device.current():
            compiled = self._loaded.runtime_cache()
            if compiled and compiled != self._compiled:
                self._cache.put_if_possible(self._keys["runtime-cache"], compiled)
            self._release()

    @contextmanager
    def _lane(self) -> Iterator[Lane]:
        lane = self._free.get()
        try:
            with self._device.current():
                yield lane
        finally:
            self._free.put(lane)

    def _load_or_build(self, flavour: Flavour, graph: Path, say: Say) -> Loaded:
        """The kept engine, or a new one; also where TensorRT refuses the one that was kept."""
        key = self._keys["engine"]

        def load() -> Loaded:
            plan = self._cache.get_or_build(key, lambda: self._build(flavour, graph, say), say)
            return Loaded(flavour, self._device, plan, self._compiled)

        try:
            return load()
        except EngineUnavailableError as error:
            if self._built:
                raise
            say(f"{error}; building it again")
            self._cache.forget(key)
            self._compiled = b""
            return load()

    def _build(self, flavour: Flavour, graph: Path, say: Say) -> bytes:
        self._built = True
        target = None
        if flavour.ahead_of_time:
            target = self._device.architecture
            if target not in flavour.targets():
                raise EngineUnavailableError(
                    f"{flavour.title} does not build for {self.device} ({target}), only for "
                    f"{', '.join(flavour.targets())}; use --engine tensorrt"
                )
        say(f"building the {self.name} engine of {graph.name} for {self.device}, once")
        kept, _ = self._cache.get(self._keys["timing-cache"])
        built = build_engine(flavour, graph, self._profile, target=target, timing_cache=kept or b"")
        if built.timing_cache:
            self._cache.put_if_possible(self._keys["timing-cache"], built.timing_cache)
        return built.plan

    def _release(self) -> None:
        for lane in self._lanes:
            lane.close()
        self._lanes = []
        if self._loaded is not None:
            self._loaded.close()
            self._loaded = None


def _keys(flavour: Flavour, device: Device, graph: Path, profile: Profile) -> dict[str, Key]:
    """What an engine, a timing cache and a runtime cache must match to be used."""
    machine = {
        "gpu": device.name,
        "architecture": device.architecture,
        "flavour": flavour.name,
        "version": flavour.version,
        "driver": device.driver,
        "edgelung": __version__,
        "flags": FLAGS,
    }
    own = machine | {"graph": sha256_file(graph), "profile": str(profile)}
    return {
        "engine": own | {"kind": "engine"},
        "runtime-cache": own | {"kind": "runtime-cache"},
        "timing-cache": machine | {"kind": "timing-cache"},
    }


tensorrt = partial(TensorRtEngine, name="tensorrt")
tensorrt_rtx = partial(TensorRtEngine, name="tensorrt-rtx")
