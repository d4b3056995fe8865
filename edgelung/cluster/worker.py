"""The worker: one process with one engine. It reads and predicts as a run on one machine does.

Nothing here knows of Ray.
"""

import pickle
import threading
from contextlib import ExitStack
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Generic

import numpy as np
import numpy.typing as npt
from PIL import Image

from edgelung import __version__
from edgelung.artifacts.bundle import open_bundle
from edgelung.artifacts.bundle_copy import BundleCopy, unpack
from edgelung.artifacts.trust import choose_trust
from edgelung.cluster.tasks import Item, Report, Setup, Task
from edgelung.core.deadlines import ending_on_deadlines
from edgelung.core.errors import EdgelungError
from edgelung.core.system import host, versions
from edgelung.engines.base import Engine
from edgelung.engines.names import EngineName
from edgelung.inference.engines import LoadedEngines, open_engines
from edgelung.inference.options import Options
from edgelung.inference.pipeline import Row, predict_batch, predict_batches
from edgelung.inference.reading import Reading, Stamp
from edgelung.tiles.reader import Tile, TileError
from edgelung.tiles.sizes import Size
from edgelung.tiles.status import Status

# Batches of a task. On CPU streams a task runs on one thread, so that a call costs little beside
# its work. On a GPU it fills the whole pipeline, which stands idle between two tasks.
CPU_BATCHES, GPU_BATCHES = 4, 32
Bytes = npt.NDArray[np.uint8]


class Worker:
    """See the module. Methods are called by several threads, `open` before `predict`."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._opening = threading.Lock()
        self._reading: tuple[int, Reading[object]] | None = None

    def difference(self, edgelung: str, packages: dict[str, str]) -> str:
        """What is installed otherwise here, and rows depend on; '' if nothing.

        Its arguments are plain values, so that another version of edgelung can answer too.
        """
        own = {"edgelung": __version__, **versions(packages)}
        for name, wanted in {"edgelung": edgelung, **packages}.items():
            if (found := own.get(name)) != wanted:
                return f"{name} {found or 'is missing'} instead of {wanted}"
        return ""

    def open(self, setup: Setup, copy: BundleCopy) -> Report:
        """Check the bundle and load its engines.

        Raises EdgelungError: the bundle is not what was sent, or is not trusted on this node; or no
        engine works.
        """
        options = Options(
            engine=setup.engine,
            precision=setup.precision,
            batch_size=setup.batch_size,
            threads=setup.threads,
            verify=setup.verify,
            verify_every=setup.verify_every,
        )
        # Everything of the bundle is in memory once the engines are loaded.
        with TemporaryDirectory(prefix="edgelung-") as folder, ending_on_deadlines():
            unpack(copy, Path(folder))
            bundle = open_bundle(Path(folder), choose_trust(None, setup.allow_unsigned))
            if bundle.sha256 != setup.bundle:
                raise EdgelungError("the bundle that arrived is another one than was sent")
            self._engines = self._stack.enter_context(open_engines(bundle, options, None))
        chosen, engine = self._engines.chosen, self._engines.chosen.engine
        slots = _slots(engine, self._engines.batch_size)
        self._free = threading.BoundedSemaphore(slots)
        return Report(
            host=host(),
            engine=EngineName(engine.name),
            device=engine.device,
            float_type=engine.float_type,
            precision=chosen.variant.precision,
            reason=chosen.reason,
            golden_difference=chosen.golden_difference,
            batch_size=self._engines.batch_size,
            threads=self._engines.threads,
            slots=slots,
            batches=CPU_BATCHES if slots > 1 or engine.device == "CPU" else GPU_BATCHES,
        )

    def predict(self, task: Task[object], source: int, reading: Bytes) -> list[Row[int]]:
        """The rows of a task; their items are positions in it.

        Args:
            task: what to predict.
            source: number of the reading.
            reading: pickled, and loaded when it is first needed.

        Raises:
            EdgelungError: what is to be read is not there, or is another file.
        """
        tiles = _TaskReading(self._load(source, reading), task)
        with self._free:
            return _predict(self._engines, tiles, task)

    def _load(self, source: int, reading: Bytes) -> Reading[object]:
        with self._opening:
            if self._reading is None or self._reading[0] != source:
                # Threads that still read from the earlier one keep it alive.
                self._reading = source, pickle.loads(reading.data)
            return self._reading[1]


def _slots(engine: Engine, batch_size: int) -> int:
    """Batches that the engine runs at once, each on the thread that decodes it."""
    return engine.concurrency if engine.device == "CPU" and batch_size > 1 else 1


def _predict(
    engines: LoadedEngines, tiles: "_TaskReading[object]", task: Task[object]
) -> list[Row[int]]:
    """Predict in the batches of a run on one machine."""
    engine, size = engines.chosen.engine, engines.batch_size
    positions = range(len(task.items))
    rows: list[Row[int]] = []
    if _slots(engine, size) == 1:
        batches = predict_batches(
            positions,
            tiles,
            engine,
            batch_size=size,
            threads=engines.threads,
            reference=engines.reference,
            reference_every=engines.verify_every,
            first=task.first,
        )
        for batch in batches:
            rows += batch
        return rows
    for number, begin in enumerate(range(0, len(positions), size), task.first):
        verifier = engines.reference if number % engines.verify_every == 0 else None
        rows += predict_batch([*positions[begin : begin + size]], tiles, engine, verifier)
    return rows


class _TaskReading(Generic[Item]):
    """The items of a task by their positions."""

    def __init__(self, reading: Reading[Item], task: Task[Item]) -> None:
        self._reading, self._task = reading, task
        self.size = reading.size

    def stamp(self, item: int) -> Stamp | None:
        """See `Reading`."""
        return self._reading.stamp(self._task.items[item])

    def read(self, item: int) -> tuple[Tile | Image.Image, Size]:
        """See `Reading`."""
        if reason := self._task.without.get(item):
            raise TileError(Status.FAILED, reason)
        return self._reading.read(self._task.items[item])
