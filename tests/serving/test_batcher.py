"""Tiles of several requests share batches, and nothing else."""

import asyncio
import gc
import weakref
from collections.abc import Callable, Coroutine, Iterator
from contextlib import contextmanager
from typing import TypeVar

import pytest
from services import FakeEngine, jpeg, loaded, tile

from edgelung.artifacts.bundle import open_bundle, starter_bundle
from edgelung.serving.batcher import Batcher, Read, Request
from edgelung.serving.refusal import Refusal
from edgelung.tiles.status import Status

T = TypeVar("T")


class Batches:
    def batch(self, tiles: int) -> None:
        pass


@contextmanager
def batcher(engine: FakeEngine, limit: int = 100, batch_size: int = 16) -> Iterator[Batcher]:
    bundle = open_bundle(starter_bundle())
    made = Batcher(loaded(engine, bundle, batch_size), bundle.reader, limit, Batches())
    try:
        yield made
    finally:
        engine.may_run.set()
        made.close()


def given(value: int) -> Read:
    return lambda: (tile(value), (224, 224))


def run(work: Callable[[], Coroutine[None, None, T]]) -> T:
    return asyncio.run(asyncio.wait_for(work(), 60))


def held(engine: FakeEngine, queue: Batcher) -> Request:
    """A request that the engine holds until it may run, so that others wait behind it."""
    engine.may_run.clear()
    request = Request(asyncio.get_running_loop(), [given(1)])
    queue.submit(request)
    assert engine.began.acquire(timeout=60)
    return request


def test_requests_that_wait_share_a_batch() -> None:
    engine = FakeEngine()
    with batcher(engine) as queue:

        async def work() -> list[float]:
            first = held(engine, queue)
            loop = asyncio.get_running_loop()
            others = [Request(loop, [given(v), given(v + 1)]) for v in (10, 20)]
            for request in others:
                queue.submit(request)
            engine.may_run.set()
            await first.future
            rows = [row for request in others for row in await request.future]
            return [
                float(row.probabilities[0]) * 255 for row in rows if row.probabilities is not None
            ]

        assert run(work) == pytest.approx([10, 11, 20, 21])
    assert engine.batches == [1, 4]


def test_no_batch_is_larger_than_it_may_be() -> None:
    engine = FakeEngine()
    with batcher(engine, batch_size=3) as queue:

        async def work() -> int:
            first = held(engine, queue)
            request = Request(asyncio.get_running_loop(), [given(v) for v in range(8)])
            queue.submit(request)
            engine.may_run.set()
            await first.future
            return len(await request.future)

        assert run(work) == 8
    assert max(engine.batches) == 3


def test_a_tile_that_breaks_the_engine_fails_alone() -> None:
    engine = FakeEngine(fails_on=66)
    with batcher(engine) as queue:

        async def work() -> list[str]:
            first = held(engine, queue)
            loop = asyncio.get_running_loop()
            requests = [Request(loop, [given(v)]) for v in (10, 66, 20)]
            for request in requests:
                queue.submit(request)
            engine.may_run.set()
            await first.future
            return [(await request.future)[0].status for request in requests]

        assert run(work) == [Status.OK, Status.FAILED, Status.OK]


def test_a_broken_image_does_not_touch_its_neighbours() -> None:
    engine = FakeEngine()
    with batcher(engine) as queue:

        async def work() -> list[str]:
            whole = jpeg()
            reads = [queue.encoded(data) for data in (whole, whole[:2000], b"", whole)]
            request = Request(asyncio.get_running_loop(), reads)
            queue.submit(request)
            return [row.status for row in await request.future]

        assert run(work) == [Status.OK, Status.TRUNCATED, Status.EMPTY, Status.OK]


def test_what_nobody_waits_for_is_not_run() -> None:
    engine = FakeEngine()
    with batcher(engine) as queue:

        async def work() -> None:
            first = held(engine, queue)
            gone = Request(asyncio.get_running_loop(), [given(2)])
            queue.submit(gone)
            gone.end()
            last = Request(asyncio.get_running_loop(), [given(3)])
            queue.submit(last)
            engine.may_run.set()
            await first.future
            await last.future

        run(work)
        assert queue.waiting == 0
    assert engine.batches == [1, 1]


def test_a_full_queue_refuses_and_takes_again_later() -> None:
    engine = FakeEngine()
    with batcher(engine, limit=2) as queue:

        async def work() -> int:
            first = held(engine, queue)
            loop = asyncio.get_running_loop()
            with pytest.raises(Refusal) as refused:
                queue.submit(Request(loop, [given(1), given(2)]))
            second = Request(loop, [given(3)])
            queue.submit(second)
            engine.may_run.set()
            await first.future
            await second.future
            return refused.value.status

        assert run(work) == 429
        with pytest.raises(Refusal, match="3 tiles in one request; expected 2 at most") as refused:
            queue.check_room(3)
        assert refused.value.status == 413
    assert queue.tiles == 0


def test_an_engine_that_is_no_cpu_gets_tiles_that_were_decoded_ahead() -> None:
    engine = FakeEngine()
    engine.device = "GPU"
    with batcher(engine) as queue:

        async def work() -> list[str]:
            reads = [queue.encoded(data) for data in (jpeg(size=300), b"no image")]
            request = Request(asyncio.get_running_loop(), reads)
            queue.submit(request)
            rows = await request.future
            assert rows[0].size == (300, 300)
            return [row.status for row in rows]

        assert run(work) == [Status.OK, Status.UNSUPPORTED]


def test_a_closed_queue_runs_what_waits_and_takes_no_more() -> None:
    engine = FakeEngine()
    with batcher(engine) as queue:

        async def work() -> int:
            first = held(engine, queue)
            second = Request(asyncio.get_running_loop(), [given(2)])
            queue.submit(second)
            closing = asyncio.get_running_loop().run_in_executor(None, queue.close)
            engine.may_run.set()
            await closing
            with pytest.raises(Refusal, match="stopping"):
                queue.submit(Request(asyncio.get_running_loop(), [given(3)]))
            return len(await first.future) + len(await second.future)

        assert run(work) == 2


def test_the_images_of_a_request_are_released_without_the_garbage_collector() -> None:
    engine = FakeEngine()
    gc.disable()
    try:
        with batcher(engine) as queue:

            async def work() -> "weakref.ref[Read]":
                read = given(1)
                request = Request(asyncio.get_running_loop(), [read])
                queue.submit(request)
                await request.future
                request.end()
                return weakref.ref(read)

            image = run(work)
        assert image() is None  # the engine threads have ended
    finally:
        gc.enable()


def test_room_is_free_again_before_the_answer_is_there() -> None:
    engine = FakeEngine()
    with batcher(engine, limit=1) as queue:

        async def work() -> int:
            for value in range(50):
                request = Request(asyncio.get_running_loop(), [given(value)])
                queue.submit(request)
                await request.future
            return queue.tiles

        assert run(work) == 0


def test_an_answer_for_a_loop_that_is_closed_does_not_end_the_engine_thread() -> None:
    engine = FakeEngine()
    with batcher(engine) as queue:

        async def leave() -> None:
            held(engine, queue)

        async def work() -> list[str]:
            request = Request(asyncio.get_running_loop(), [given(2)])
            queue.submit(request)
            return [row.status for row in await request.future]

        run(leave)
        engine.may_run.set()
        assert run(work) == [Status.OK]
