"""What stands on a screen of 80 columns: the answer first, nothing cut, the next command last."""

import io
import shutil
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from msgspec import structs
from rich.console import Console

from edgelung.artifacts.bundle import open_bundle, starter_bundle
from edgelung.artifacts.results import Concern
from edgelung.artifacts.run import RunFolder
from edgelung.cli import audit, compare, doctor, evaluation_table, export, train
from edgelung.core import terminal
from edgelung.core.errors import EdgelungError
from edgelung.core.precision import Precision
from edgelung.engines import choose
from edgelung.engines.base import EngineUnavailableError
from edgelung.engines.names import EngineName
from edgelung.evaluation import concerns
from edgelung.evaluation.comparison import compare_runs
from edgelung.evaluation.requirements import Required
from edgelung.export import build
from edgelung.inference.evaluate import Site, evaluate_site
from edgelung.inference.session import Options
from edgelung.tools import doctor as tools_doctor
from edgelung.tools.doctor import INSTALL_GPU, Examination, Finding
from edgelung.train import audit as audit_module
from edgelung.train import run as train_run

WIDTH = 80
LONG_REMEDY = "pip install tensorrt " + "--extra-index-url https://pypi.example.org " * 2 + "-v"


@pytest.fixture
def screen(monkeypatch: pytest.MonkeyPatch) -> Iterator[io.StringIO]:
    """Standard output as a terminal of 80 columns shows it, before it wraps long lines."""
    shown = io.StringIO()
    console = Console(file=shown, width=WIDTH, soft_wrap=True, highlight=False)
    monkeypatch.setattr(terminal, "out", lambda: console)
    return shown


def tables(shown: str) -> list[str]:
    """The lines that belong to tables."""
    return [line for line in shown.splitlines() if line[:1] in "│┃┏┡└"]


def check_tables(shown: str) -> None:
    assert tables(shown)
    for line in tables(shown):
        assert len(line) <= WIDTH
        assert "…" not in line.replace(" … ", "")  # an interval has one between two figures


def test_the_table_of_export_is_whole(bundle_folder: Path, screen: io.StringIO) -> None:
    manifest = open_bundle(bundle_folder).manifest
    export.print_table(manifest, bundle_folder)
    check_tables(screen.getvalue())
    for name, entry in manifest.variants.items():
        (row,) = (line for line in tables(screen.getvalue()) if line.startswith(f"│ {name} "))
        verdict = row.split("│")[2].strip()
        assert verdict in (entry.gate.verdict, "do not use")


def test_the_verdict_is_whole_on_a_narrow_screen(
    bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shown = io.StringIO()
    monkeypatch.setattr(terminal, "out", lambda: Console(file=shown, width=60))
    export.print_table(open_bundle(bundle_folder).manifest, bundle_folder)
    variants = open_bundle(bundle_folder).manifest.variants.values()
    for verdict in {entry.gate.verdict for entry in variants} - {"reference"}:
        assert f"│ {verdict} " in shown.getvalue()


def test_the_table_of_train_is_whole(run: Path, screen: io.StringIO) -> None:
    train._print_table(RunFolder(run).read_metrics(), run)
    check_tables(screen.getvalue())


def test_the_table_of_compare_is_whole(run: Path, tmp_path: Path, screen: io.StringIO) -> None:
    other = tmp_path / "a-run-with-a-long-name-as-they-come"
    shutil.copytree(run, other)
    models = compare_runs([run, other]).models
    difference = models[3].difference
    assert difference is not None
    models[3] = structs.replace(
        models[3], difference=structs.replace(difference, interval=(-0.1234, 0.2345))
    )
    compare._print(models)
    check_tables(screen.getvalue())
    assert f"{other.name}: student" in screen.getvalue()
    assert "-12.34 … +23.45" in screen.getvalue()


def test_the_tables_of_evaluate_are_whole(
    bundle_folder: Path, tiles: Path, screen: io.StringIO
) -> None:
    site = Site(tiles, tiles / "groups.csv", ("class",))
    result = evaluate_site(site, open_bundle(bundle_folder), Options(), [Required("accuracy", 0.5)])
    evaluation_table.print_evaluation(result.result)
    check_tables(screen.getvalue())
    assert "│ balanced accuracy " in screen.getvalue()
    assert "by class, %" in screen.getvalue()
    assert "required  accuracy 0.5: " in screen.getvalue()


def test_doctor_says_first_what_would_run(screen: io.StringIO) -> None:
    doctor._print(Examination([Finding("Python", "ok", "3.11")], "openvino on the CPU", None))
    assert screen.getvalue().startswith("infer would run openvino on the CPU\n")


@pytest.mark.parametrize("remedy", [INSTALL_GPU, LONG_REMEDY])
def test_doctor_cuts_no_remedy(remedy: str, screen: io.StringIO) -> None:
    """rich would take [gpu] for markup, and a table would break the command."""
    doctor._print(Examination([Finding("GPU", "missing", "found " * 40, remedy)], "", None))
    lines = screen.getvalue().splitlines()
    assert any(line.endswith(f": {remedy}") for line in lines)
    assert all(len(line) <= WIDTH for line in lines if remedy not in line)


def unavailable(*args: object, **options: object) -> object:
    raise EngineUnavailableError("it is not installed; pip install 'something large'")


@pytest.mark.parametrize(("gpu", "word"), [(False, "needs an NVIDIA GPU"), (True, "not installed")])
def test_without_a_gpu_nothing_is_to_be_installed_for_one(
    gpu: bool, word: str, bundle_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle = open_bundle(bundle_folder)
    monkeypatch.setattr(choose, "ENGINES", {EngineName.TENSORRT: unavailable})
    for module in (choose, tools_doctor):
        monkeypatch.setattr(module, "gpu_present", lambda: gpu)
    with pytest.raises(EdgelungError, match=word) as error:
        choose.open_engine(bundle, EngineName.TENSORRT, Precision.FP32)
    assert ("pip install" in str(error.value)) == gpu
    (test,) = tools_doctor.run_selftest(bundle)
    assert word in test.reason


def test_the_starter_says_which_variants_it_holds() -> None:
    with pytest.raises(EdgelungError, match="expected --precision auto or one of fp32, int8") as it:
        open_bundle(starter_bundle()).variant(Precision.FP16)
    assert "with a run of your own" in str(it.value)


@pytest.mark.parametrize("useless", [False, True])
def test_export_and_train_end_with_the_next_command(
    useless: bool,
    run: Path,
    bundle_folder: Path,
    tiles: Path,
    monkeypatch: pytest.MonkeyPatch,
    screen: io.StringIO,
) -> None:
    found = [Concern(kind="x", text="Do not use.", do_not_use=True)] if useless else []
    monkeypatch.setattr(concerns, "bundle_concerns", lambda manifest: found)
    monkeypatch.setattr(concerns, "run_concerns", lambda metrics, counts: found)
    monkeypatch.setattr(build, "export_run", lambda *a, **b: open_bundle(bundle_folder))
    context: Any = SimpleNamespace(command=SimpleNamespace(params=[]))  # no option was given
    export.export(run, Path("my bundle"), allow_drop=True, context=context)
    monkeypatch.setattr(train_run, "train_run", lambda *a, **b: RunFolder(run).read_metrics())
    train.train(tiles, run)
    last = [line for line in screen.getvalue().splitlines() if line.startswith("next ")]
    commands = [
        "next    edgelung infer FOLDER --model 'my bundle'",
        f"next    edgelung export {run} --out {run}-bundle --int8",
    ]
    assert last == ([] if useless else commands)


def test_audit_ends_with_the_next_command(
    monkeypatch: pytest.MonkeyPatch, screen: io.StringIO
) -> None:
    monkeypatch.setattr(audit, "_print", lambda result, folder: None)
    done = SimpleNamespace(unreadable={})
    monkeypatch.setattr(audit_module, "audit_folder", lambda *words, **options: done)
    audit.audit(Path("tiles"), Path("seen"), classes=["a", "b"])
    assert screen.getvalue() == (
        "next    edgelung train tiles --groups seen/groups.csv --out seen-run "
        '--set \'classes=["a", "b"]\'\n'
    )
