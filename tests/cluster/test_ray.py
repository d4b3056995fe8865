"""Real Ray clusters of several nodes on this machine; workers and nodes are killed in mid-run."""

import csv
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from slide_files import write_svs
from worker_faults import install

from edgelung.artifacts.slide_tiles import read_tiles
from edgelung.artifacts.summary import read_summary
from edgelung.cluster.hunt import REASON

pytest.importorskip("ray", reason="Ray is not installed: pip install 'edgelung[cluster]'")
pytestmark = [pytest.mark.slow, pytest.mark.timeout(900)]
EDGELUNG = [str(Path(sys.executable).with_name("edgelung"))]
INFER = [*EDGELUNG, "infer", "--batch-size", "4"]  # 16 tiles in a task
SECONDS = 600  # that a command may take


class LocalCluster:
    """Nodes with one CPU each; the head has none. Killed nodes are replaced by `add`."""

    def __init__(self) -> None:
        from ray.cluster_utils import Cluster

        self._cluster = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 0, "include_dashboard": False}
        )
        self.nodes: list[Any] = []
        self.address: str = self._cluster.address

    def add(self, **environment: str) -> None:
        node = self._cluster.add_node(num_cpus=1, env_vars=environment or None)
        self.nodes.append(node)

    def kill_node(self) -> None:
        self._cluster.remove_node(self.nodes.pop(0), allow_graceful=False)

    def kill_worker(self) -> bool:
        """Kill a worker that predicts; False if there is none."""
        for pid in worker_pids():
            try:
                os.kill(pid, signal.SIGKILL)
            except ProcessLookupError:  # ended meanwhile
                continue
            return True
        return False

    def kill_head(self) -> None:
        self._cluster.head_node.kill_gcs_server()

    def close(self) -> None:
        self._cluster.shutdown()


def worker_pids() -> list[int]:
    """Processes of our actors that are predicting, as Ray names them."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                name = (entry / "cmdline").read_bytes()
            except OSError:
                continue
            if name.startswith(b"ray::Worker.predict"):
                found.append(int(entry.name))
    return sorted(found)


@pytest.fixture
def cluster(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[LocalCluster]:
    (tmp_path / "faults").mkdir()
    for name, value in install(tmp_path / "faults").items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "0")
    started = LocalCluster()
    try:
        started.add()
        started.add()
        yield started
    finally:
        started.close()


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """1,200 names of golden tiles, with a damaged file and a text among them."""
    golden = Path(__file__).parents[2] / "edgelung" / "starter" / "golden"
    tiles = sorted(golden.glob("*.jpeg"))
    for number in range(1200):
        name = tmp_path / "tiles" / f"{number % 7}" / f"{number}.jpeg"
        name.parent.mkdir(parents=True, exist_ok=True)
        os.link(tiles[number % len(tiles)], name) if same_disk(tiles[0], tmp_path) else shutil.copy(
            tiles[number % len(tiles)], name
        )
    (tmp_path / "tiles" / "broken.jpeg").write_bytes(tiles[0].read_bytes()[:900])
    (tmp_path / "tiles" / "notes.txt").write_text("no tile")
    return tmp_path / "tiles"


def same_disk(one: Path, other: Path) -> bool:
    return one.stat().st_dev == other.stat().st_dev


def infer(folder: Path, out: str, *words: str, check: int | None = 3) -> Any:
    done = subprocess.run(
        [*INFER, str(folder), "--out", out, *words],
        cwd=folder.parent,
        capture_output=True,
        text=True,
        timeout=SECONDS,
        check=False,
    )
    if check is not None:
        assert done.returncode == check, done.stderr
    return done


def start(folder: Path, out: str, *words: str) -> "subprocess.Popen[str]":
    return subprocess.Popen(
        [*INFER, str(folder), "--out", out, *words],
        cwd=folder.parent,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for_rows(process: "subprocess.Popen[str]", journal: Path, size: int) -> bool:
    """Wait until the journal has grown to `size`; False if the run has ended before."""
    deadline = time.monotonic() + SECONDS
    while process.poll() is None and time.monotonic() < deadline:
        if journal.exists() and journal.stat().st_size >= size:
            return True
        time.sleep(0.05)
    return False


def test_rows_of_a_cluster_are_those_of_one_machine_to_the_last_byte(
    cluster: LocalCluster, folder: Path
) -> None:
    infer(folder, "plain.csv", "--verify")
    # Where the command is typed, no file is imported by a worker.
    (folder.parent / "simplejpeg.py").write_text("raise SystemExit('imported')")
    done = infer(folder, "ray.csv", "--verify", "--ray", cluster.address)
    out = folder.parent
    assert (out / "ray.csv").read_bytes() == (out / "plain.csv").read_bytes()
    plain, ray = (read_summary(out / f"{name}.summary.json") for name in ("plain", "ray"))
    for name in ("files", "statuses", "labels", "verify", "engine", "precision", "exit_code"):
        assert getattr(ray, name) == getattr(plain, name), name
    assert sum(node.tiles for node in ray.nodes) == ray.files
    assert ray.threads == 2
    lines = done.stderr.splitlines()  # nothing of Ray's
    assert [line for line in lines if "ray" in line.lower() and "edgelung view" not in line] == []


def test_ten_killed_workers_and_nodes_lose_nothing_and_double_nothing(
    cluster: LocalCluster, folder: Path
) -> None:
    infer(folder, "plain.csv")
    journal = folder.parent / "ray.csv.edgelung-journal"
    process = start(folder, "ray.csv", "--ray", cluster.address)
    kills, size = 0, 1
    while kills < 10 and wait_for_rows(process, journal, size):
        if kills % 3 == 2:
            cluster.kill_node()
            cluster.add()
        elif not cluster.kill_worker():
            time.sleep(0.05)
            continue
        kills += 1
        size = journal.stat().st_size + 1
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 3, err
    assert kills == 10, f"the run was over after {kills} kills\n{err}"
    assert (folder.parent / "ray.csv").read_bytes() == (folder.parent / "plain.csv").read_bytes()


def test_a_run_whose_head_ends_keeps_its_rows_and_says_so(
    cluster: LocalCluster, folder: Path
) -> None:
    """Its workers too: those that are left without a head would go on, and end a short run."""
    infer(folder, "plain.csv")
    journal = folder.parent / "ray.csv.edgelung-journal"
    process = start(folder, "ray.csv", "--ray", cluster.address)
    assert wait_for_rows(process, journal, 4_000)
    cluster.kill_head()
    deadline = time.monotonic() + 120
    while process.poll() is None and time.monotonic() < deadline:
        cluster.kill_worker()
        time.sleep(0.05)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 2, err
    assert "does not answer any more" in err.splitlines()[-1]
    assert journal.stat().st_size >= 4_000
    infer(folder, "ray.csv", "--resume")
    assert (folder.parent / "ray.csv").read_bytes() == (folder.parent / "plain.csv").read_bytes()


@pytest.mark.parametrize("on_ray", [True, False])
def test_an_interrupted_run_goes_on_with_and_without_the_cluster(
    cluster: LocalCluster, folder: Path, on_ray: bool
) -> None:
    infer(folder, "plain.csv")
    ray = ["--ray", cluster.address]
    journal = folder.parent / "ray.csv.edgelung-journal"
    process = start(folder, "ray.csv", *ray)
    assert wait_for_rows(process, journal, 8_000)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "--resume" in err, err
    kept = journal.stat().st_size
    assert kept >= 8_000
    infer(folder, "ray.csv", "--resume", *(ray if on_ray else []))
    assert (folder.parent / "ray.csv").read_bytes() == (folder.parent / "plain.csv").read_bytes()


def test_a_file_that_ends_its_worker_has_a_row_that_says_so(
    cluster: LocalCluster, folder: Path
) -> None:
    """The other rows are those of a run in which this file cannot be decoded.

    Standard output holds the rows alone, whatever Ray has to say of workers that end.
    """
    deadly = folder / "3" / "deadly.jpeg"
    deadly.write_bytes(b"\xff\xd8\xff")
    infer(folder, "plain.csv")
    done = infer(folder, "-", "--ray", cluster.address)
    assert "(raylet)" not in done.stderr
    text = (folder.parent / "plain.csv").read_text()
    plain, ray = (list(csv.DictReader(one.splitlines())) for one in (text, done.stdout))
    own = [row for row in ray if row["path"] == "3/deadly.jpeg"]
    assert [(row["status"], row["error"]) for row in own] == [("failed", REASON)]
    others = [[row for row in rows if row["path"] != "3/deadly.jpeg"] for rows in (plain, ray)]
    assert others[0] == others[1]


def test_a_node_that_does_not_see_the_files_is_left_out(
    cluster: LocalCluster, folder: Path
) -> None:
    infer(folder, "plain.csv")
    cluster.kill_node()
    cluster.add(EDGELUNG_TEST_BLIND=str(folder))
    done = infer(folder, "ray.csv", "--ray", cluster.address)
    assert (folder.parent / "ray.csv").read_bytes() == (folder.parent / "plain.csv").read_bytes()
    assert "is left out" in done.stderr
    assert "is not there" in done.stderr


def test_where_no_node_sees_the_files_the_run_ends_in_one_line(
    cluster: LocalCluster, folder: Path
) -> None:
    for _ in range(2):
        cluster.kill_node()
        cluster.add(EDGELUNG_TEST_BLIND=str(folder))
    done = infer(folder, "ray.csv", "--ray", cluster.address, check=2)
    assert "is not there" in done.stderr.splitlines()[-1]
    assert not (folder.parent / "ray.csv").exists()


def test_tiles_of_slides_are_those_of_one_machine_to_the_last_bit(
    cluster: LocalCluster, tmp_path: Path
) -> None:
    """Two slides, one after the other on the same workers; one worker is killed."""
    for number in range(2):
        write_svs(tmp_path / f"case-{number}.svs", 3000, 2600 + 200 * number)
    slides = [f"case-{number}.svs" for number in range(2)]
    words = [*EDGELUNG, "slide", *slides, "--tile-um", "60", "--mask", "none"]

    def run(out: str, *more: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [*words, "--out", out, *more], cwd=tmp_path, stderr=subprocess.PIPE, text=True
        )

    _, err = (plain := run("plain")).communicate(timeout=SECONDS)
    assert plain.returncode == 0, err
    process = run("ray", "--ray", cluster.address)
    journals = [tmp_path / "ray" / f"case-{number}.edgelung-journal" for number in range(2)]
    assert wait_for_rows(process, journals[0], 2000)
    while process.poll() is None and not cluster.kill_worker():
        time.sleep(0.02)
    _, err = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, err
    for number in range(2):
        one, other = (
            read_tiles(tmp_path / out / f"case-{number}" / "tiles.parquet")
            for out in ("plain", "ray")
        )
        assert len(one) > 200
        assert one.probabilities.tobytes() == other.probabilities.tobytes()
        assert (one.x.tolist(), one.y.tolist()) == (other.x.tolist(), other.y.tolist())
        assert [*one.statuses] == [*other.statuses]
