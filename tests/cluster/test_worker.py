"""A run on workers with real engines within the test process: its rows are those of one machine."""

import os
import pickle
import shutil
import socket
import subprocess
import sys
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
from slide_files import write_svs
from stand_in import InProcess

from edgelung import __version__
from edgelung.artifacts.bundle import MANIFEST, Bundle, open_bundle, starter_bundle
from edgelung.artifacts.bundle_copy import BundleCopy, pack, unpack
from edgelung.artifacts.slide_tiles import read_tiles
from edgelung.artifacts.summary import Summary
from edgelung.cluster.engines import ClusterEngines, open_on, seen_otherwise
from edgelung.cluster.pool import Ended, Event
from edgelung.cluster.ray_join import check_reachable, parse_address
from edgelung.cluster.tasks import Setup, Task
from edgelung.cluster.worker import Worker
from edgelung.core.errors import EdgelungError
from edgelung.engines.names import EngineName
from edgelung.inference.destination import Destination
from edgelung.inference.engines import OpenEngines
from edgelung.inference.identity import RunIdentity
from edgelung.inference.options import Options
from edgelung.inference.pipeline import Row
from edgelung.inference.reading import FileReading, stamp_of
from edgelung.inference.session import infer_folder
from edgelung.inference.source import Source
from edgelung.slides.open import open_slides
from edgelung.slides.plan import plan_grid
from edgelung.slides.reading import SlideReading
from edgelung.slides.run import MaskRule, SlideOptions, run_slides
from edgelung.tiles.find import FoundFile, find_files
from edgelung.tiles.status import Status

QUICK = Options(engine=EngineName.ONNXRUNTIME, batch_size=2, threads=1)


@pytest.fixture(scope="module")
def starter() -> Bundle:
    return open_bundle(starter_bundle())


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Golden tiles under 27 names, a damaged one and a text."""
    folder = tmp_path_factory.mktemp("cluster") / "tiles"
    golden = sorted((starter_bundle() / "golden").glob("*.jpeg"))
    for number in range(27):
        name = folder / f"{number % 4}" / f"{number:02}.jpeg"
        name.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(golden[number % len(golden)], name)
    (folder / "broken.jpeg").write_bytes(golden[0].read_bytes()[:900])
    (folder / "notes.txt").write_text("no tile")
    return folder


def on(pool: InProcess) -> OpenEngines:
    def opening(
        bundle: Bundle, options: Options, previous: RunIdentity | None
    ) -> AbstractContextManager[ClusterEngines]:
        return open_on(pool, bundle, options, previous, allow_unsigned=False)

    return opening


def infer(
    folder: Path, bundle: Bundle, out: Path, engines: OpenEngines | None = None, **more: bool
) -> Summary:
    destination = Destination.parse(out)
    return infer_folder(Source((folder,)), bundle, destination, QUICK, engines=engines, **more)


@pytest.fixture(scope="module")
def plain(folder: Path, starter: Bundle, tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The rows of a run on one machine."""
    out = tmp_path_factory.mktemp("plain") / "rows.csv"
    infer(folder, starter, out)
    return out.read_bytes()


def test_rows_are_those_of_one_machine_to_the_last_byte(
    folder: Path, starter: Bundle, plain: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of a folder named relative to the working folder, which is another one on a node."""
    monkeypatch.chdir(folder.parent)
    pool = InProcess(starter)
    summary = infer(Path("tiles"), starter, tmp_path / "rows.csv", on(pool))
    assert (tmp_path / "rows.csv").read_bytes() == plain
    assert (summary.files, summary.exit_code) == (29, 3)
    assert summary.threads == 2  # one on each node
    assert sum(node.tiles for node in summary.nodes) == 29
    sent = [item for _, item in pool.predicted]
    assert all(isinstance(item, FoundFile) and os.path.isabs(item.location) for item in sent)


def test_a_run_that_is_stopped_goes_on_elsewhere_with_the_same_rows(
    folder: Path, starter: Bundle, plain: bytes, tmp_path: Path
) -> None:
    """From the cluster to this machine and back; what the options leave open stays."""
    out = tmp_path / "rows.csv"

    def stop(count: int) -> None:
        raise KeyboardInterrupt

    options = replace(QUICK, engine=None, batch_size=None)
    for engines in (on(InProcess(starter)), None):
        with pytest.raises(KeyboardInterrupt):
            infer_folder(
                Source((folder,)),
                starter,
                Destination.parse(out),
                options if out.with_name("rows.csv.edgelung-journal").exists() else QUICK,
                engines=engines,
                resume=True,
                on_rows=stop,
            )
    summary = infer_folder(
        Source((folder,)),
        starter,
        Destination.parse(out),
        options,
        engines=on(InProcess(starter)),
        resume=True,
    )
    assert out.read_bytes() == plain
    assert summary.choice.startswith("as the run began: ")
    assert len(summary.resumed) == 2


def test_workers_that_end_in_mid_run_change_no_row(
    folder: Path, starter: Bundle, plain: bytes, tmp_path: Path
) -> None:
    ends = iter(range(3))

    def answer(node: str, task: Task[object]) -> Event | None:
        if task.number == 2 and next(ends, None) is not None:
            worker = next(n for n, where in pool.workers.items() if where == node)
            return Ended(worker, "killed")
        return None

    pool = InProcess(starter, answer=answer)
    infer(folder, starter, tmp_path / "rows.csv", on(pool))
    assert next(ends, None) is None
    assert (tmp_path / "rows.csv").read_bytes() == plain


def test_tiles_of_a_slide_are_those_of_one_machine_to_the_last_bit(
    starter: Bundle, tmp_path: Path
) -> None:
    slide = write_svs(tmp_path / "case.svs", 700, 500)
    for name, engines in (("plain", None), ("cluster", on(InProcess(starter)))):
        options = SlideOptions(
            tmp_path / name, tile_um=60, overlap=0.4, mask=MaskRule.NONE, engines=QUICK
        )
        (summary,) = run_slides([slide], starter, options, engines=engines)
    assert sum(node.tiles for node in summary.nodes) == summary.tiles > 30
    one, other = (
        read_tiles(tmp_path / name / "case" / "tiles.parquet") for name in ("plain", "cluster")
    )
    assert one.probabilities.tobytes() == other.probabilities.tobytes()
    assert [*one.statuses] == [*other.statuses]


def test_a_slide_is_opened_anew_elsewhere_and_only_if_it_is_the_same_file(tmp_path: Path) -> None:
    path = write_svs(tmp_path / "case.svs", 700, 500)
    (slide,) = open_slides(path)
    reading = SlideReading(slide, plan_grid(slide, 0.5, 60, 224), 224)
    recipe = pickle.dumps(reading)
    there = pickle.loads(recipe)
    assert (there.read(2)[0] == reading.read(2)[0]).all()
    os.utime(path, ns=(0, 1))
    with pytest.raises(EdgelungError, match="is another file here"):
        pickle.loads(recipe)
    path.unlink()
    with pytest.raises(EdgelungError, match=r"cannot read .*No such file"):
        pickle.loads(recipe)


def test_a_worker_names_the_first_version_that_differs() -> None:
    worker = Worker()
    assert worker.difference(__version__, {}) == ""
    assert worker.difference("0.0.1", {}) == f"edgelung {__version__} instead of 0.0.1"
    assert "numpy" in worker.difference(__version__, {"numpy": "1.0"})
    assert worker.difference(__version__, {"nonesuch": "1"}) == "nonesuch is missing instead of 1"


def test_a_worker_opens_only_the_bundle_that_was_meant(starter: Bundle) -> None:
    setup = Setup("0" * 64, EngineName.ONNXRUNTIME, None, 2, 1, False, 1, False)
    with pytest.raises(EdgelungError, match="another one than was sent"):
        Worker().open(setup, pack(starter))


def test_a_bundle_that_was_damaged_on_the_way_is_refused(starter: Bundle) -> None:
    copy = pack(starter)
    name = next(name for name in copy.files if name.endswith(".onnx"))
    damaged = BundleCopy(copy.files | {name: b"\0" + copy.files[name][1:]})
    setup = Setup(starter.sha256, EngineName.ONNXRUNTIME, None, 2, 1, False, 1, False)
    with pytest.raises(EdgelungError):
        Worker().open(setup, damaged)


def test_a_bundle_that_changes_after_it_was_opened_is_not_sent(tmp_path: Path) -> None:
    folder = Path(shutil.copytree(starter_bundle(), tmp_path / "bundle"))
    opened = open_bundle(folder)
    (folder / MANIFEST).write_bytes((folder / MANIFEST).read_bytes() + b"\n")
    with pytest.raises(EdgelungError, match="was changed after the bundle was opened"):
        pack(opened)


@pytest.mark.parametrize("name", ["../out", "/tmp/edgelung-out", "golden/../../out"])
def test_no_file_of_a_bundle_is_written_outside_of_its_folder(tmp_path: Path, name: str) -> None:
    (tmp_path / "inside").mkdir()
    with pytest.raises(EdgelungError, match="leads out of its folder"):
        unpack(BundleCopy({name: b""}), tmp_path / "inside")
    assert not (tmp_path / "out").exists()


def rows_as_seen(files: list[FoundFile], **changed: object) -> list[Row[int]]:
    rows = [Row(i, Status.OK, stamp=stamp_of(file)) for i, file in enumerate(files)]
    return [rows[0], replace(rows[1], **changed)]  # type: ignore[arg-type]


def test_a_node_that_sees_other_files_is_found_out(
    folder: Path, starter: Bundle, tmp_path: Path
) -> None:
    files = sorted(find_files(folder), key=lambda file: file.path)[:2]
    seen = partial(seen_otherwise, FileReading(starter.reader), files)
    missing = {"status": Status.UNREADABLE, "stamp": None, "error": "No such file"}
    assert seen(rows_as_seen(files)) == ""
    assert "is not there" in seen(rows_as_seen(files, **missing))
    assert "cannot be read there (Permission denied)" in seen(
        rows_as_seen(files, status=Status.UNREADABLE, error="Permission denied")
    )
    assert "another size or time of change" in seen(
        [replace(rows_as_seen(files)[0], stamp=(1, 1)), rows_as_seen(files)[1]]
    )
    gone = [files[0], replace(files[1], location=str(tmp_path / "gone"))]  # here neither
    assert seen_otherwise(FileReading(starter.reader), gone, rows_as_seen(files, **missing)) == ""


@pytest.mark.parametrize("text", ["auto", "node-1:6379", "10.0.0.1:6379", "[::1]:6379"])
def test_an_address_is_auto_or_a_host_with_its_port(text: str) -> None:
    assert parse_address(text) == text


@pytest.mark.parametrize(
    "text", ["", "node", "node:", "node:0", "node:70000", "a b:1", "local", "ray://node:10001"]
)
def test_anything_else_is_no_address(text: str) -> None:
    with pytest.raises(EdgelungError, match="expected auto, or HOST:PORT"):
        parse_address(text)


def test_the_variable_behind_auto_is_checked_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("RAY_ADDRESS", "ray://node:10001")
    with pytest.raises(EdgelungError, match=r"RAY_ADDRESS .*has to be a node of the cluster"):
        parse_address("auto")


def test_an_address_where_nothing_answers_is_said_at_once() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    with pytest.raises(EdgelungError, match="nothing answers there"):
        check_reachable(address)


@pytest.fixture
def without_ray(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)


@pytest.mark.parametrize(
    ("command", "words", "message"),
    [
        ("infer", ["--watch"], "--ray and --watch exclude each other"),
        ("infer", ["--shard", "1/2"], "--ray and --shard exclude each other"),
        ("infer", ["--device", "0"], "--ray and --device exclude each other"),
        ("infer", ["--prebuilt", "x"], "--ray and --prebuilt exclude each other"),
        ("slide", ["--shard", "1/2"], "--ray and --shard exclude each other"),
        ("slide", ["--device", "0"], "--ray and --device exclude each other"),
        ("infer", [], "--ray needs ray"),
        ("slide", [], "pip install 'edgelung[cluster]'"),
    ],
)
def test_what_cannot_be_is_said_in_one_line(
    folder: Path, tmp_path: Path, cli, without_ray: None, command: str, words: list, message: str
) -> None:
    result = cli(command, folder, "--ray", "auto", *words)
    assert result.returncode == 2
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert list(tmp_path.iterdir()) == []


def test_a_run_without_the_option_imports_no_ray() -> None:
    code = (
        "import sys, edgelung.cli.infer, edgelung.inference.session, edgelung.cluster.ray_pool;"
        "print('ray' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"
