"""The run folder: every file has one reader and one writer, and folders of 0.1 still open."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs

from edgelung.artifacts.run import (
    METRICS_VERSION,
    SCHEMA_VERSION,
    RunConfig,
    RunFolder,
    SplitRow,
    split_counts,
)
from edgelung.core import typed_json
from edgelung.core.errors import EdgelungError
from edgelung.evaluation.comparison import compare_runs

OLD = Path(__file__).parent / "run-0.1"


@pytest.fixture
def old() -> RunFolder:
    return RunFolder(OLD)


@pytest.fixture
def copy(tmp_path: Path) -> RunFolder:
    """A run folder that a test may change."""
    return RunFolder(Path(shutil.copytree(OLD, tmp_path / "run")))


def test_a_run_folder_of_0_1_still_opens(old: RunFolder) -> None:
    config = old.read_config()
    old.check_split(config)
    assert (config.edgelung, config.schema_version, config.precision) == ("0.1.0", 1, "bf16")
    assert config.fewest_test_groups == 2
    assert len(old.read_split()) == 108
    assert [record.stage for record in old.read_history()] == ["teacher", "student", "student"]
    assert list(old.read_metrics().models) == ["teacher", "student"]
    assert old.read_model_config().edgelung.patch_size == 16
    assert old.read_model_config("teacher").edgelung.patch_size is None
    for role in ("teacher", "student"):
        assert len(old.read_predictions(role).subset("test")) == 18
    assert [model.role for model in compare_runs([OLD]).models] == ["teacher", "student"]


def test_predictions_of_a_run_agree_with_its_metrics(old: RunFolder) -> None:
    test = old.read_predictions().subset("test")
    right = test.probabilities.argmax(axis=1) == test.labels
    student = old.read_metrics().models["student"]
    assert right.mean() == pytest.approx(student.test.accuracy)
    assert test.probabilities.sum(axis=1) == pytest.approx(np.ones(len(test)), abs=1e-6)


def test_records_have_the_columns_of_the_csv(old: RunFolder) -> None:
    records = old.read_predictions().to_records()
    header = old.predictions_path().read_text("utf-8").splitlines()[0].split(",")
    assert list(records[0]) == header
    assert len(records) == len(old.read_predictions())


def test_every_file_survives_reading_and_writing(copy: RunFolder) -> None:
    """What is written again from what was read has the same values."""
    for role in ("student", "teacher"):
        before = copy.predictions_path(role).read_bytes()
        copy.write_predictions(copy.read_predictions(role), role)
        assert copy.predictions_path(role).read_bytes() == before
        config = copy.read_model_config(role)
        copy.write_model_config(config, role)
        assert copy.read_model_config(role) == config
    before = copy.split_path.read_bytes()
    copy.write_split(copy.read_split())
    assert copy.split_path.read_bytes() == before
    history = copy.read_history()
    copy.write_history(history)
    assert copy.read_history() == history
    metrics = copy.read_metrics()
    text = json.loads(copy.metrics_path.read_text("utf-8"))
    copy.write_metrics(metrics)
    written = json.loads(copy.metrics_path.read_text("utf-8"))
    assert written == text | {"schema_version": METRICS_VERSION}
    config = copy.read_config()
    copy.write_config(config)
    assert copy.read_config() == structs.replace(config, schema_version=SCHEMA_VERSION)


def test_a_changed_split_is_found(copy: RunFolder) -> None:
    config = copy.read_config()
    text = copy.split_path.read_text("utf-8")
    copy.split_path.write_text(text.replace(",train,", ",test,", 1), "utf-8")
    with pytest.raises(EdgelungError, match=r"split\.csv is not the one"):
        copy.check_split(config)


def test_a_newer_format_says_update(copy: RunFolder) -> None:
    content = json.loads(copy.config_path.read_text("utf-8")) | {"schema_version": 99}
    copy.config_path.write_text(json.dumps(content), "utf-8")
    with pytest.raises(EdgelungError, match="reads up to 2: update edgelung"):
        copy.read_config()


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("run.json", "{", "cannot read"),
        ("run.json", '{"edgelung": "0.1.0"}', "missing required field `notice`"),
        ("run.json", '{"a":' * 100_000 + "1" + "}" * 100_000, "nested too deeply"),
        ("metrics.json", '{"classes": 3}', r"Expected `array`, got `int` - at `\$\.classes`"),
        ("metrics.jsonl", '{"stage": "teacher"}\n', "missing required field"),
        ("config.json", "[]", "Expected `object`"),
        ("predictions.csv", "path,class\na,b\n", "cannot read the predictions"),
        ("split.csv", "path,class,group,subset,sha256\na,b,c,d,e\n", "has the subset 'd'"),
    ],
)
def test_a_damaged_file_is_named_in_one_line(
    copy: RunFolder, name: str, text: str, words: str
) -> None:
    (copy.path / name).write_text(text, "utf-8")
    readers = (
        copy.read_config,
        copy.read_metrics,
        copy.read_history,
        copy.read_model_config,
        copy.read_predictions,
        copy.read_split,
    )
    files = ("run.json", "metrics.json", "metrics.jsonl", "config.json", "predictions.csv")
    reader = dict(zip((*files, "split.csv"), readers, strict=True))[name]
    with pytest.raises(EdgelungError, match=words) as error:
        reader()
    assert name in str(error.value)
    assert "\n" not in str(error.value)


def test_a_folder_that_is_no_run_says_what_was_expected(tmp_path: Path) -> None:
    with pytest.raises(EdgelungError, match="expected a run folder that `edgelung train` wrote"):
        RunFolder(tmp_path).read_config()


def test_a_history_of_no_epochs_is_empty(tmp_path: Path) -> None:
    assert RunFolder(tmp_path).read_history() == []


def test_counts_are_by_subset_and_class() -> None:
    rows = [
        SplitRow("a/1", "a", "g1", "train", ""),
        SplitRow("a/2", "a", "g1", "train", ""),
        SplitRow("a/3", "a", "g2", "train", ""),
        SplitRow("b/1", "b", "g3", "test", ""),
    ]
    counts = split_counts(rows)
    assert (counts["train"]["a"].tiles, counts["train"]["a"].groups) == (3, 2)
    assert (counts["test"]["b"].tiles, counts["test"]["b"].groups) == (1, 1)
    assert (counts["val"]["a"].tiles, counts["train"]["b"].groups) == (0, 0)


def test_an_unknown_field_is_passed_over(old: RunFolder) -> None:
    content = json.loads(old.config_path.read_text("utf-8")) | {"added_later": 1}
    assert typed_json.convert(content, RunConfig) == old.read_config()
