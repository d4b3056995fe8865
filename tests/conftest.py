"""Shared fixtures: a small synthetic set, a run and a bundle made from it by the real commands."""

import fcntl
import logging
import os
import shutil
import signal
import subprocess
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from edgelung.artifacts.bundle import Bundle, open_bundle
from edgelung.cli import main
from edgelung.core import terminal
from edgelung.core.precision import Precision
from edgelung.core.system import saturates_int8

# torch and timm take eight seconds to load. The fixtures that need them import them, so that the
# process that starts the test processes, and a test of another room, do without.

# 64 px tiles and one epoch: every part is real, nothing is learned to speak of. AdamW, since Muon
# makes steps of the same length out of however small a gradient, rounding errors included.
SMALL = [
    "split.train=0.50",
    "split.val=0.35",
    "split.test=0.15",
    "teacher.size=64",
    "teacher.epochs=1",
    "teacher.weights=none",
    "teacher.batch_size=8",
    "student.size=64",
    "student.low_size=32",
    "student.epochs=2",
    "student.low_epochs=1",
    "student.batch_size=8",
    "student.optimizer=adamw",
    "student.lr=5e-4",
    "student.init=timm",
    "distill.guidance=0",
]


LONG = ("train", "export", "engines")  # the rooms whose tests take longest

# One OpenMP thread, also in the processes that tests start, so that all sum in the same order.
# Several test processes share the cores, and OpenMP's threads wait for one another in a busy loop:
# training took six times as much CPU time with two threads as with one. Set at import, because
# torch reads it once.
os.environ.setdefault("OMP_NUM_THREADS", "1")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Sort for several processes: one makes the shared bundle while the others need none yet.

    Files with long tests come first, so that no process waits for the last of another.
    """

    def needs(item: pytest.Item, *fixtures: str) -> bool:
        return not set(fixtures).isdisjoint(getattr(item, "fixturenames", ()))

    shared = {item.path for item in items if needs(item, "run", "bundle_folder")}
    makers = [item.path for item in items if needs(item, "bundle_folder")]
    first = next((path for path in makers if path.parent.name in LONG), None)

    def late(item: pytest.Item) -> tuple[bool, bool, bool]:
        rooms = item.path.relative_to(Path(__file__).parent).parts
        return item.path != first, rooms[0] not in LONG, item.path in shared

    items.sort(key=late)


@pytest.fixture(scope="session", autouse=True)
def cache(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A cache for the tests alone and no edgelung.toml, also for the commands that they start."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("EDGELUNG_CACHE", str(folder))
        patch.setenv("EDGELUNG_CONFIG", "off")
        yield folder


@pytest.fixture(autouse=True)
def reports_as_before() -> Iterator[None]:
    """A command that a test runs within the process leaves no log handler behind."""
    logger = logging.getLogger("edgelung")
    handlers, level, propagate = list(logger.handlers), logger.level, logger.propagate
    shown = terminal._reports_shown
    yield
    logger.handlers[:] = handlers
    logger.setLevel(level)
    logger.propagate, terminal._reports_shown = propagate, shown


@pytest.fixture(scope="session")
def shared_folder(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Path:
    """A folder that all test processes of a session share, for fixtures that take long to make.

    EDGELUNG_TEST_FOLDER names one that outlives the session: for work on a room that neither trains
    nor exports.
    """
    if named := os.environ.get("EDGELUNG_TEST_FOLDER"):
        Path(named).mkdir(parents=True, exist_ok=True)
        return Path(named)
    base = tmp_path_factory.getbasetemp()
    return base if worker_id == "master" else base.parent


def make_once(folder: Path, make: Callable[[Path], object]) -> Path:
    """`folder`, made by `make` unless it is there; one process makes it, the others wait."""
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not folder.exists():
            make(folder)
    return folder


@pytest.fixture(scope="session")
def tiles(shared_folder: Path) -> Path:
    """108 synthetic 96 px tiles, 3 classes, 12 sources each, with groups.csv."""
    from edgelung.train.synthetic import write_dataset

    return make_once(
        shared_folder / "tiles",
        lambda folder: write_dataset(folder, sources=12, tiles_per_source=3, size=96),
    )


@pytest.fixture(scope="session")
def small() -> list[str]:
    """The overrides that `run` was made with."""
    return SMALL


@pytest.fixture(scope="session")
def run(tiles: Path, shared_folder: Path) -> Path:
    """A finished run; tests that change it copy it first."""
    from edgelung.train.recipe import load_recipe
    from edgelung.train.run import train_run

    def make(folder: Path) -> None:
        train_run(tiles, folder, load_recipe("demo", SMALL), groups=tiles / "groups.csv")

    return make_once(shared_folder / "run", make)


@pytest.fixture(scope="session")
def bundle_folder(run: Path, shared_folder: Path) -> Path:
    """The bundle of `run` with all variants; tests that change it copy it first."""
    from edgelung.export.build import export_run

    return make_once(
        shared_folder / "bundle",
        lambda folder: export_run(run, folder, precisions=frozenset(Precision)),
    )


@pytest.fixture(scope="session")
def early_exit_bundle(run: Path, bundle_folder: Path, shared_folder: Path) -> Path:
    """`bundle_folder` with an early exit that some tiles take and others do not."""
    from early_exits import add_early_exit

    def make(folder: Path) -> None:
        shutil.copytree(bundle_folder, folder)
        add_early_exit(folder, run)

    return make_once(shared_folder / "early-exit", make)


@pytest.fixture
def bundle(bundle_folder: Path) -> Bundle:
    return open_bundle(bundle_folder)


@pytest.fixture
def copied_bundle(bundle_folder: Path, tmp_path: Path) -> Path:
    """A bundle that a test may damage."""
    return Path(shutil.copytree(bundle_folder, tmp_path / "bundle"))


Cli = Callable[..., subprocess.CompletedProcess[str]]


@pytest.fixture
def cli(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Cli:
    """Run `edgelung …` in a folder of its own: its exit code, standard output and standard error.

    It runs within the test process, which has the libraries loaded. With options of
    `subprocess.run`, such as `env` or `input`, it is a process of its own, as a user starts it.
    """

    def call(*words: object, **options: object) -> subprocess.CompletedProcess[str]:
        program = [str(Path(sys.executable).with_name("edgelung")), *map(str, words)]
        if not options:
            monkeypatch.chdir(tmp_path)
            return run_here(program)
        return subprocess.run(
            program,
            cwd=tmp_path,
            capture_output=True,
            text=True,
            timeout=300,
            check=False,
            **options,  # type: ignore[call-overload]
        )

    return call


def run_here(program: list[str]) -> subprocess.CompletedProcess[str]:
    """Run the command line within this process; its streams are files, as a shell can make them."""
    logger = logging.getLogger("edgelung")
    on_sigterm = signal.getsignal(signal.SIGTERM)
    with (
        pytest.MonkeyPatch.context() as patch,
        tempfile.TemporaryFile("w+", encoding="utf-8") as out,
        tempfile.TemporaryFile("w+", encoding="utf-8") as err,
    ):
        patch.setattr(sys, "argv", program)
        patch.setattr(sys, "stdout", out)
        patch.setattr(sys, "stderr", err)
        patch.setattr(terminal, "_reports_shown", False)
        patch.setattr(logger, "handlers", [])
        patch.setattr(logger, "propagate", True)
        patch.setattr(logger, "level", logger.level)
        try:
            with pytest.raises(SystemExit) as ended:
                main()
        finally:
            signal.signal(signal.SIGTERM, on_sigterm)
            logger.setLevel(logger.level)  # clears what `logging` remembers about levels
        texts = []
        for stream in (out, err):
            stream.flush()
            stream.seek(0)
            texts.append(stream.read())
    code = ended.value.code
    return subprocess.CompletedProcess(program, int(code or 0), *texts)


@pytest.fixture(scope="session")
def real_tiles() -> Path:
    """The folder that holds lc25000_224 and lc25000_768, or a skip."""
    named = os.environ.get("EDGELUNG_DATA")
    beside = Path(__file__).parents[2] / "shared" / "data"
    folder = Path(named) if named else beside
    if not (folder / "lc25000_768").is_dir():
        pytest.skip(f"no real tiles in {folder}; set EDGELUNG_DATA")
    return folder


def pytest_runtest_setup(item: pytest.Item) -> None:
    """Skip a test with the mark `vnni` where OpenVINO leaves INT8 to ONNX Runtime."""
    if item.get_closest_marker("vnni") is not None and saturates_int8():
        pytest.skip("INT8 in OpenVINO needs a CPU with VNNI instructions")


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Run a test with the mark `own_process` as the only one of a new process."""
    is_marked = pyfuncitem.get_closest_marker("own_process") is not None
    if not is_marked or os.environ.get("EDGELUNG_OWN_PROCESS"):
        return None
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", pyfuncitem.nodeid],
        cwd=pyfuncitem.config.rootpath,
        env=os.environ | {"EDGELUNG_OWN_PROCESS": "1"},
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stdout
    return True
