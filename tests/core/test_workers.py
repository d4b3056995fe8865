"""Workers: results in order, and no wait that an interrupt can turn into a deadlock."""

import contextlib
import signal
import threading
import time
from collections.abc import Iterator

import pytest

from edgelung.core import workers
from edgelung.core.workers import CancelledError, Task, Workers


@pytest.fixture
def release() -> Iterator[threading.Lock]:
    """A lock that holds up a worker until the test releases it, or ends."""
    lock = threading.Lock()
    lock.acquire()
    yield lock
    if lock.locked():
        lock.release()


def test_results_come_in_the_order_of_the_items() -> None:
    with Workers(4) as pool:
        assert list(pool.map(lambda n: n * n, range(100))) == [n * n for n in range(100)]


def test_an_error_is_raised_where_the_result_is_asked_for() -> None:
    with Workers(1) as pool:
        task = pool.submit(lambda: 1 / 0)
        assert pool.submit(lambda: 3).result() == 3
        with pytest.raises(ZeroDivisionError):
            task.result()


def test_a_result_can_be_asked_for_again() -> None:
    with Workers(1) as pool:
        task = pool.submit(lambda: 3)
        assert [task.result(), task.result()] == [3, 3]


def test_leaving_drops_what_has_not_begun_and_waits_for_what_runs(release: threading.Lock) -> None:
    ended = []
    begun = threading.Lock()
    begun.acquire()

    def work() -> None:
        begun.release()
        release.acquire()
        ended.append(True)

    pool = Workers(1)
    pool.submit(work)
    dropped = pool.submit(lambda: ended.append(False))
    begun.acquire()
    closing = threading.Thread(target=pool.close)
    closing.start()
    while not pool._stop.requested:
        time.sleep(0.001)
    assert not ended
    release.release()
    closing.join(10)
    assert ended == [True]
    with pytest.raises(CancelledError):
        dropped.result()
    with pytest.raises(RuntimeError, match="closed"):
        pool.submit(len, ())


@pytest.mark.own_process
def test_an_interrupted_wait_leaves_the_task_usable(release: threading.Lock) -> None:
    """The signal arrives while the main thread waits for the result."""

    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        with Workers(1) as pool:
            task: Task[bool] = pool.submit(release.acquire)
            with pytest.raises(KeyboardInterrupt):  # noqa: PT012 (the alarm may come at once)
                signal.setitimer(signal.ITIMER_REAL, 0.05)
                task.result()
            release.release()
            assert task.result()
    finally:
        signal.signal(signal.SIGALRM, before)


@pytest.mark.own_process
def test_an_interrupt_at_any_moment_leaves_no_worker_waiting() -> None:
    """Timers fire again and again while the main thread submits, waits and closes.

    With `concurrent.futures` this hangs, or finds a lock that nobody holds, within some turns.
    """

    class Interrupt(Exception):
        pass

    def interrupt(number: int, frame: object) -> None:
        raise Interrupt

    def work(pool: Workers) -> None:
        for task in [pool.submit(len, "a") for _ in range(50)]:
            task.result()

    def seconds(pool: Workers) -> float:
        begin = time.perf_counter()
        work(pool)
        return time.perf_counter() - begin

    with Workers(2) as pool:
        usual = min(seconds(pool) for _ in range(20))
    interrupted = 0
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        for turn in range(600):
            pool = Workers(2)
            try:
                signal.setitimer(signal.ITIMER_REAL, 1e-5 + turn % 60 / 60 * usual)
                work(pool)
                signal.setitimer(signal.ITIMER_REAL, 0)
            except Interrupt:
                interrupted += 1
            with contextlib.suppress(Interrupt):  # the timer may have run out just now
                pool.close()
            pool.close()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    assert interrupted > 100


def test_no_module_waits_on_the_executors_of_the_standard_library() -> None:
    from tests.test_architecture import MODULES

    for name, path in MODULES.items():
        text = path.read_text("utf-8")
        assert "ThreadPoolExecutor" not in text, name
        # The service's handlers raise nothing, so no signal leaves its lock taken.
        if name not in (workers.__name__, "edgelung.serving.batcher"):
            assert "threading.Condition" not in text, name
