"""The decode budget: never exceeded, in order, and given back whatever happens."""

import contextlib
import signal
import threading
import time
from pathlib import Path

import pytest

from edgelung.core.errors import EdgelungError
from edgelung.tiles import budget
from edgelung.tiles.budget import ENVIRONMENT, FREE, LARGE_FILE, DecodeBudget
from edgelung.tiles.errors import TileError

UNIT = FREE + 1  # bytes, the least that is counted


def test_threads_together_never_have_more_than_the_budget() -> None:
    decoding = DecodeBudget(5 * UNIT)
    used, most = 0, 0
    lock = threading.Lock()

    def work(number: int) -> None:
        nonlocal used, most
        for turn in range(50):
            size = (1 + (number + turn) % 5) * UNIT
            with decoding:
                decoding.reserve(size)
                with lock:
                    used += size
                    most = max(most, used)
                time.sleep(0)
                with lock:
                    used -= size

    threads = [threading.Thread(target=work, args=(n,)) for n in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(30)
    assert not any(thread.is_alive() for thread in threads)
    assert 3 * UNIT <= most <= 5 * UNIT
    assert decoding._used == 0


def test_what_waits_first_is_served_first() -> None:
    """Otherwise small images would keep a large one waiting for ever."""
    decoding = DecodeBudget(4 * UNIT)
    served = []

    def work(size: int) -> None:
        with decoding:
            decoding.reserve(size)
            served.append(size)

    with decoding:
        decoding.reserve(2 * UNIT)
        threads = []
        for size in (3 * UNIT, 2 * UNIT):  # the second would fit at once
            threads.append(threading.Thread(target=work, args=(size,)))
            threads[-1].start()
            while len(decoding._waiting) < len(threads):
                time.sleep(0.001)
        assert served == []
    for thread in threads:
        thread.join(10)
    assert served == [3 * UNIT, 2 * UNIT]


def test_more_than_the_budget_is_too_large() -> None:
    decoding = DecodeBudget(4 * UNIT)
    with pytest.raises(TileError, match=ENVIRONMENT) as caught, decoding:
        decoding.reserve(5 * UNIT)
    assert caught.value.status == "too-large"


def test_a_part_of_what_is_reserved_does_not_wait_and_more_is_refused() -> None:
    """Waiting for more while holding some would let two threads wait for each other."""
    decoding = DecodeBudget(4 * UNIT)
    with decoding:
        decoding.reserve(3 * UNIT)
        with decoding:
            decoding.reserve(3 * UNIT)
        assert decoding._used == 3 * UNIT
        with pytest.raises(TileError):
            decoding.reserve(4 * UNIT)
    assert decoding._used == 0


def test_an_error_gives_the_bytes_back() -> None:
    decoding = DecodeBudget(4 * UNIT)
    with contextlib.suppress(KeyError), decoding:
        decoding.reserve(4 * UNIT)
        raise KeyError
    with decoding:
        decoding.reserve(4 * UNIT)


@pytest.mark.own_process
def test_an_interrupted_wait_leaves_the_queue() -> None:
    def interrupt(number: int, frame: object) -> None:
        raise KeyboardInterrupt

    decoding = DecodeBudget(4 * UNIT)
    holding, done = threading.Event(), threading.Event()

    def hold() -> None:
        with decoding:
            decoding.reserve(4 * UNIT)
            holding.set()
            done.wait(10)

    thread = threading.Thread(target=hold)
    before = signal.signal(signal.SIGALRM, interrupt)
    try:
        thread.start()
        holding.wait(10)
        with pytest.raises(KeyboardInterrupt), decoding:  # noqa: PT012 (the alarm may come at once)
            signal.setitimer(signal.ITIMER_REAL, 0.05)
            decoding.reserve(UNIT)
    finally:
        signal.signal(signal.SIGALRM, before)
        done.set()
        thread.join(10)
    assert not decoding._waiting
    assert decoding._used == 0


def test_a_large_file_has_the_budget_for_itself() -> None:
    decoding = DecodeBudget(100 * 2**20)
    with decoding:
        decoding.reserve_file(LARGE_FILE + 1)
        assert decoding._used == decoding.total
    with decoding:
        decoding.reserve_file(LARGE_FILE)
        assert decoding._used == 0
    with pytest.raises(TileError), decoding:
        decoding.reserve_file(101 * 2**20)


@pytest.mark.parametrize("text", ["much", "-5", "0", "1.5", "1e9", "15"])
def test_a_budget_that_is_no_number_of_mebibytes_is_refused(
    monkeypatch: pytest.MonkeyPatch, text: str
) -> None:
    monkeypatch.setenv(ENVIRONMENT, text)
    with pytest.raises(EdgelungError, match=ENVIRONMENT):
        _ = DecodeBudget().total


def test_the_budget_is_a_share_of_a_small_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(ENVIRONMENT, raising=False)
    monkeypatch.setattr(budget, "total_memory", lambda: 2 * 2**30)
    assert DecodeBudget().total == 2**29
    monkeypatch.setattr(budget, "total_memory", lambda: 64 * 2**30)
    assert DecodeBudget().total == 2**30


def test_every_decoder_reserves_before_it_allocates() -> None:
    from edgelung.tiles import reader

    folder = Path(reader.__file__).parent
    for name in ("bmp", "jpeg", "png", "tiff", "webp"):
        assert "DECODING.reserve(" in (folder / f"{name}.py").read_text("utf-8"), name
