"""Tasks and workers: each item has one row, in order, whatever ends, refuses or joins meanwhile."""

import random
from collections import Counter
from collections.abc import Iterator, Sequence
from itertools import islice

import pytest
from stand_in import NODES, REPORT, StandIn

from edgelung.cluster.crew import PATIENCE_SECONDS, Crew
from edgelung.cluster.hunt import REASON
from edgelung.cluster.pool import Ended, Event, Node, Refused
from edgelung.cluster.schedule import AHEAD, QUEUED, Check, Schedule
from edgelung.cluster.tasks import Setup, Task
from edgelung.core.errors import EdgelungError
from edgelung.engines.names import EngineName
from edgelung.inference.pipeline import Row
from edgelung.tiles.status import Status

SETUP = Setup("", None, None, None, 0, False, 1, False)
SIZE = REPORT.batch_size * REPORT.batches


def no_check(items: Sequence[int], rows: Sequence[Row[int]]) -> str:
    return ""


def tasks_of(count: int, first: int = 0) -> Iterator[tuple[Task[object], list[int]]]:
    items = iter(range(count))
    number = first
    while own := list(islice(items, SIZE)):
        yield Task(number, (number - first) * REPORT.batches, own), own
        number += 1


def schedule(
    pool: StandIn,
    count: int,
    *,
    crew: Crew | None = None,
    check: Check[int] = no_check,
    first: int = 0,
) -> Iterator[Row[int]]:
    crew = crew or Crew(pool, SETUP, None, pool.clock)
    for rows in Schedule(pool, crew, tasks_of(count, first), check).run():
        yield from rows


def assert_rows(rows: Sequence[Row[int]], count: int) -> None:
    """One row per item, in order, with the prediction of this very item."""
    assert [row.item for row in rows] == list(range(count))
    for row in rows:
        assert row.probabilities is not None
        assert row.probabilities[0] == row.item


def test_every_item_has_one_row_in_order() -> None:
    pool = StandIn()
    assert_rows([*schedule(pool, 203)], 203)
    assert Counter(item for _, item in pool.predicted) == Counter(range(203))
    assert {node for node, _ in pool.predicted} == {"a", "b"}


def test_no_item_at_all_is_no_row() -> None:
    assert [*schedule(StandIn(), 0)] == []


def test_a_worker_gets_few_tasks_ahead_and_items_are_read_as_they_are_needed() -> None:
    pool = StandIn()
    made = 0

    def counted() -> Iterator[tuple[Task[object], list[int]]]:
        nonlocal made
        for one in tasks_of(100_000):
            made += 1
            yield one

    crew = Crew(pool, SETUP, None, pool.clock)
    rows = Schedule(pool, crew, counted(), no_check).run()
    next(rows)
    rows.close()
    assert pool.most_at_once == QUEUED * REPORT.slots
    assert made <= AHEAD * REPORT.slots * len(NODES)


@pytest.mark.parametrize("seed", range(20))
def test_workers_that_end_at_random_lose_nothing_and_double_nothing(seed: int) -> None:
    """Ten ends and more: of a worker, or of a whole node that comes back under another name."""
    chance = random.Random(seed)
    ends = 0

    def answer(node: str, task: Task[object]) -> Event | None:
        nonlocal ends
        if ends < 12 and chance.random() < 0.1:
            ends += 1
            worker = next(n for n, where in pool.workers.items() if where == node)
            if chance.random() < 0.3:
                name = f"{node}{ends}"
                pool.up = [one for one in pool.up if one.id != node] + [Node(name, name, 2, 0)]
            return Ended(worker, "killed")
        return None

    pool = StandIn(answer=answer)
    assert_rows([*schedule(pool, 2000)], 2000)
    assert ends == 12


@pytest.mark.parametrize("deadly", [{17}, {0, 1}, {5, 63, 64}, {199}])
def test_an_item_that_ends_its_worker_has_a_row_that_says_so(deadly: set[int]) -> None:
    """Its neighbours are predicted in their own batch, as if it could not be decoded."""

    def answer(node: str, task: Task[object]) -> Event | None:
        read = {item for i, item in enumerate(task.items) if i not in task.without}
        if read & deadly:
            worker = next(n for n, where in pool.workers.items() if where == node)
            return Ended(worker, "segmentation fault")
        return None

    pool = StandIn(answer=answer)
    rows = [*schedule(pool, 200)]
    assert [row.item for row in rows] == list(range(200))
    failed = {row.item: row.error for row in rows if row.status == Status.FAILED}
    assert failed == dict.fromkeys(deadly, REASON)
    assert all(row.status == Status.OK for row in rows if row.item not in deadly)


def test_workers_that_end_whatever_they_do_end_the_run_and_blame_no_file() -> None:
    """As without memory: a search that finds nothing must not go on for ever."""
    ends = 0

    def answer(node: str, task: Task[object]) -> Event | None:
        nonlocal ends
        ends += 1
        if len(task.without) < len(task.items) - 1:  # a tile alone survives
            worker = next(n for n, where in pool.workers.items() if where == node)
            return Ended(worker, "out of memory")
        return None

    pool = StandIn(answer=answer)
    with pytest.raises(EdgelungError, match=r"no single tile is to blame.*out of memory"):
        [*schedule(pool, 40)]
    assert ends < 200


def test_a_search_goes_on_elsewhere_when_its_node_is_left_out(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The other worker of the node cannot read its tasks, while this one has just had a trial."""
    monkeypatch.setattr("edgelung.cluster.schedule.AHEAD", 1000)  # others go on meanwhile
    monkeypatch.setattr("edgelung.cluster.crew.MOST_REFUSALS", 1)
    nodes = [Node("a", "a", 4, 2), Node("b", "b", 4, 2)]
    trials: list[str] = []  # their nodes

    def answer(node: str, task: Task[object]) -> Event | None:
        workers = [n for n, where in pool.workers.items() if where == node]
        if 5 in task.items and 5 - task.items[0] not in task.without:  # type: ignore[operator]
            worker = next(n for n in workers if task in pool.tasks[n])
            return Ended(worker, "segmentation fault")
        if task.without:
            trials.append(node)
        elif trials and node == trials[0]:
            worker = next(n for n in workers if task in pool.tasks[n])
            return Refused(worker, task.number, "not mounted")
        return None

    pool = StandIn(up=nodes, answer=answer)
    rows = [*schedule(pool, 4000)]
    assert [row.item for row in rows] == list(range(4000))
    assert [row.item for row in rows if row.status != Status.OK] == [5]


def test_what_one_node_cannot_read_another_one_reads() -> None:
    def answer(node: str, task: Task[object]) -> Event | None:
        worker = next(n for n, where in pool.workers.items() if where == node)
        return Refused(worker, task.number, "not mounted") if node == "a" else None

    pool = StandIn(answer=answer)
    assert_rows([*schedule(pool, 100)], 100)
    assert {node for node, _ in pool.predicted} == {"b"}


def test_the_last_task_goes_to_another_node_than_the_one_that_could_not_read_it() -> None:
    """Also while that one has less to do."""

    def answer(node: str, task: Task[object]) -> Event | None:
        worker = next(n for n, where in pool.workers.items() if where == node)
        return Refused(worker, task.number, "not mounted") if node == "a" else None

    pool = StandIn(answer=answer)
    assert_rows([*schedule(pool, SIZE)], SIZE)
    assert {node for node, _ in pool.predicted} == {"b"}


def test_what_no_node_can_read_ends_the_run_with_the_reason() -> None:
    def answer(node: str, task: Task[object]) -> Event | None:
        worker = next(n for n, where in pool.workers.items() if where == node)
        return Refused(worker, task.number, "not mounted")

    pool = StandIn(answer=answer)
    with pytest.raises(EdgelungError, match="not mounted"):
        [*schedule(pool, 100)]


def test_rows_of_other_files_than_this_machine_sees_are_not_taken() -> None:
    """A node on which the folder is another one: what it predicted is dropped."""
    asked: list[str] = []

    def check(items: Sequence[int], rows: Sequence[Row[int]]) -> str:
        asked.append("")
        return "another file" if len(asked) == 1 else ""

    pool = StandIn()
    assert_rows([*schedule(pool, 100, check=check)], 100)
    assert len(pool.predicted) == 100 + SIZE  # one task twice, of which one counts


def test_a_node_with_other_versions_is_left_out(caplog: pytest.LogCaptureFixture) -> None:
    pool = StandIn(starts=lambda node: "edgelung 0.1.0 instead of 0.2.0" if node == "a" else "")
    assert_rows([*schedule(pool, 50)], 50)
    assert {node for node, _ in pool.predicted} == {"b"}
    assert "node a is left out: has edgelung 0.1.0 instead of 0.2.0" in caplog.text


def test_without_a_node_that_can_predict_the_run_ends_and_names_each_reason() -> None:
    pool = StandIn(opens=lambda node: f"no engine on {node}")
    with pytest.raises(EdgelungError, match="a: no engine on a; b: no engine on b"):
        [*schedule(pool, 50)]


def test_a_node_where_no_worker_starts_is_tried_three_times() -> None:
    pool = StandIn(starts=lambda node: None if node == "a" else "")
    assert_rows([*schedule(pool, 2000)], 2000)
    assert pool.began == 4


def test_a_cluster_without_room_ends_the_run_after_some_time() -> None:
    pool = StandIn(up=[])
    with pytest.raises(EdgelungError, match="no worker could start"):
        [*schedule(pool, 50)]
    assert PATIENCE_SECONDS < pool.now < PATIENCE_SECONDS + 2


def test_a_node_that_joins_later_predicts_too() -> None:
    pool = StandIn(up=[NODES[0]])
    rows = schedule(pool, 4000)
    next(rows)
    pool.up = [*NODES]
    rows = [Row(0, Status.OK, probabilities=pool_row(0)), *rows]
    assert_rows(rows, 4000)
    assert {node for node, _ in pool.predicted} == {"a", "b"}


def pool_row(item: int):  # type: ignore[no-untyped-def]
    import numpy as np

    return np.array([item], np.float32)


def test_the_first_worker_decides_engine_and_precision_for_all() -> None:
    pool = StandIn()
    assert_rows([*schedule(pool, 50)], 50)
    first, *others = pool.setups
    assert (first.engine, first.precision) == (None, None)
    assert others
    assert {(one.engine, one.precision) for one in others} == {(REPORT.engine, REPORT.precision)}


def test_a_node_that_computes_in_another_type_is_left_out() -> None:
    from dataclasses import replace

    other = replace(REPORT, float_type="bf16")
    pool = StandIn(opens=lambda node: REPORT if node == "a" else other)
    assert_rows([*schedule(pool, 500)], 500)
    assert {node for node, _ in pool.predicted} == {"a"}


def test_where_there_are_gpus_each_has_a_worker_unless_a_cpu_engine_is_asked_for() -> None:
    from dataclasses import replace

    nodes = [Node("cpu", "cpu", 8, 0), Node("gpus", "gpus", 8, 2)]
    for engine, wanted in (
        (None, ["gpus", "gpus"]),
        (EngineName.TENSORRT, ["gpus", "gpus"]),
        (EngineName.OPENVINO, ["cpu", "gpus"]),
    ):
        pool = StandIn(up=nodes)
        crew = Crew(pool, replace(SETUP, engine=engine), None, pool.clock)
        crew.tend()
        assert [*pool.workers.values()] == wanted


def test_rows_of_an_earlier_pass_are_not_taken_for_those_of_a_later_one() -> None:
    """A slide that was given up while workers predicted its tiles."""
    pool = StandIn()
    crew = Crew(pool, SETUP, None, pool.clock)
    first = Schedule(pool, crew, tasks_of(1000), no_check).run()
    next(first)
    first.close()
    assert_rows([*schedule(pool, 100, crew=crew, first=1000)], 100)


def test_the_record_counts_the_rows_of_each_node() -> None:
    from dataclasses import replace

    from msgspec import structs

    def report(node: str):  # type: ignore[no-untyped-def]
        return replace(REPORT, host=structs.replace(REPORT.host, name=node))

    pool = StandIn(opens=report)
    crew = Crew(pool, SETUP, None, pool.clock)
    assert_rows([*schedule(pool, 300, crew=crew)], 300)
    records = crew.records
    assert [record.host.name for record in records] == ["a", "b"]
    assert sum(record.tiles for record in records) == 300
    assert [record.workers for record in records] == [1, 1]
