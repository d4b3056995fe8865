"""`edgelung demo`: its steps are commands, and its figures come from their artefacts."""

from pathlib import Path

import pytest
from msgspec import structs

import edgelung
from edgelung.artifacts.bundle import open_bundle
from edgelung.artifacts.run import RunFolder
from edgelung.cli.demo import _new_folder
from edgelung.core import terminal
from edgelung.core.errors import ExitCode
from edgelung.core.precision import Precision
from edgelung.core.system import describe_machine
from edgelung.core.typed_json import plain
from edgelung.engines.names import EngineName
from edgelung.tools import demo
from edgelung.tools.demo import Steps, infer_runs
from edgelung.tools.demo_figures import DemoFigures, collect_figures, share_of_same_labels, show


@pytest.fixture(scope="module")
def figures(
    run: Path, bundle_folder: Path, tiles: Path, tmp_path_factory: pytest.TempPathFactory
) -> DemoFigures:
    """What the demo collects after it has predicted the test tiles of a run."""
    folder = tmp_path_factory.mktemp("demo")
    results = []
    for engine, precision in infer_runs():
        rows = folder / f"{engine}-{precision}.csv"
        summary = edgelung.infer_folder(
            *(tiles, rows),
            model=bundle_folder,
            files=run / "split.csv",
            subset="test",
            engine=engine,
            precision=precision,
        )
        predictions = edgelung.read_predictions(rows)
        results.append((summary, {row.path: row.label for row in predictions.rows}))
    return collect_figures(
        RunFolder(run),
        open_bundle(bundle_folder),
        results,
        also=None,
        seconds={"train": 1.5},
        machine=describe_machine(),
    )


def test_the_figures_are_those_of_the_run_and_the_bundle(
    figures: DemoFigures, run: Path, bundle_folder: Path
) -> None:
    metrics = RunFolder(run).read_metrics()
    bundle = open_bundle(bundle_folder)
    assert figures.teacher is not None
    assert figures.student.test.accuracy == metrics.models["student"].test.accuracy
    assert figures.teacher.model == metrics.models["teacher"].model
    assert figures.gate.keys() == figures.bytes.keys() == bundle.manifest.variants.keys()
    assert [(row.engine, row.precision) for row in figures.test] == infer_runs()
    assert all(row.tiles == 18 for row in figures.test)
    reference = figures.test[0]
    assert reference.agreement_with_onnxruntime_fp32 == 1
    low, high = reference.balanced_accuracy_interval
    assert reference.balanced_accuracy is not None
    assert low <= reference.balanced_accuracy <= high


def test_the_keys_of_the_json_are_those_of_before(figures: DemoFigures) -> None:
    content = plain(figures)
    assert list(content) == [
        *("teacher", "student", "counts", "recipe", "temperature", "gate", "bytes", "test"),
        *("int8_same_label_in_both_engines", "also", "seconds", "machine"),
    ]
    headline = ["tiles", "accuracy", "balanced_accuracy", "macro_f1", "expected_calibration_error"]
    assert list(content["student"]["val"]) == headline
    assert list(content["student"]["test"]) == [*headline, "balanced_accuracy_interval"]


def test_the_table_has_a_row_per_model_and_engine(
    figures: DemoFigures, capsys: pytest.CaptureFixture[str]
) -> None:
    terminal.out.cache_clear()
    show(figures, has_groups=True)
    terminal.out.cache_clear()
    printed = capsys.readouterr().out
    rows = [f"student {precision.upper()}, {engine}" for engine, precision in infer_runs()]
    for row in ("teacher ", *rows):
        assert row in printed
    assert "no group of which was seen in training" in printed
    assert edgelung.RESEARCH_USE_ONLY in printed


@pytest.mark.parametrize("share", [None, 0.5])
def test_both_engines_are_compared_where_both_run_int8(
    figures: DemoFigures, capsys: pytest.CaptureFixture[str], share: float | None
) -> None:
    terminal.out.cache_clear()
    show(structs.replace(figures, int8_same_label_in_both_engines=share), has_groups=True)
    terminal.out.cache_clear()
    line = "same label in both engines on 50.00 %"
    assert (line in capsys.readouterr().out) == (share is not None)


def test_the_runs_are_those_that_this_cpu_computes_exactly(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for saturates, runs in ((True, 3), (False, 4)):
        monkeypatch.setattr(demo, "saturates_int8", lambda saturates=saturates: saturates)
        assert len(set(infer_runs())) == runs
        assert ((EngineName.OPENVINO, Precision.INT8) in infer_runs()) != saturates


def test_the_share_of_same_labels() -> None:
    first = {"a": "x", "b": "y", "c": None, "d": "x"}
    assert share_of_same_labels(first, {"a": "x", "b": "x", "c": None, "d": "x"}) == 0.75


def test_a_step_that_fails_ends_the_demo_with_its_exit_code(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    steps = Steps()
    with pytest.raises(SystemExit) as error:
        steps.run("infer", "infer", "gone")
    assert error.value.code == ExitCode.USAGE
    assert list(steps.seconds) == ["infer"]
    steps.run("infer", "infer", "gone", allowed=[ExitCode.USAGE])


def test_a_folder_that_exists_gets_a_number(tmp_path: Path) -> None:
    names = [_new_folder(tmp_path / "demo").name for _ in range(3)]
    assert names == ["demo", "demo-2", "demo-3"]


def test_groups_need_tiles_of_ones_own(cli, tmp_path: Path) -> None:
    result = cli("demo", "--groups", "groups.csv")
    assert result.returncode == 2
    assert "--groups needs --data" in result.stderr
    assert not (tmp_path / "demo").exists()


def test_with_json_standard_output_stays_free_for_the_figures(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    terminal.err.cache_clear()
    Steps(quiet=True).run("version", "--version")
    terminal.err.cache_clear()
    printed = capfd.readouterr()
    assert printed.out == ""
    assert "$ edgelung --version" in printed.err
    assert "edgelung 0" in printed.err
