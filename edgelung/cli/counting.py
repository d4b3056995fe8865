"""The total of the progress bar of `edgelung infer`, counted while tiles are predicted."""

import contextlib
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from edgelung.core.errors import EdgelungError
from edgelung.core.progress import SILENT, Advance
from edgelung.inference.destination import Destination
from edgelung.inference.pipeline import CPU_BATCH
from edgelung.inference.session import Options
from edgelung.inference.source import Source


@contextmanager
def counting(
    source: Source, destination: Destination, advance: Advance, options: Options, watch: bool
) -> Iterator[None]:
    """Count the files of the source in a thread and set the bar's total.

    The files are listed a second time, since keeping the names of millions would fill memory. Not
    done without a bar, nor for a stream or a watched folder, whose total is never known.
    """
    if watch or advance is SILENT:
        yield
        return
    stop = threading.Event()

    def count() -> None:
        with contextlib.suppress(EdgelungError, OSError):  # the run reports it
            if (total := source.count(destination, stop)) is not None:
                if options.shard:
                    total = options.shard.size(total, options.batch_size or CPU_BATCH)
                advance.set_total(total)

    thread = threading.Thread(target=count, daemon=True)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join(timeout=1)  # not forever: a network share may hang
