"""edgelung.toml: whose value wins, which keys there are, and what the summary records."""

import json
import os
from pathlib import Path

import pytest

from edgelung.cli.defaults import InferDefaults, read_defaults
from edgelung.core.config import user_config
from edgelung.core.errors import EdgelungError
from edgelung.core.precision import Precision
from edgelung.engines.names import EngineName


@pytest.fixture
def user(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The user's file, still empty."""
    path = tmp_path / "user" / "edgelung.toml"
    path.parent.mkdir()
    path.touch()
    monkeypatch.setenv("EDGELUNG_CONFIG", str(path))
    return path


@pytest.fixture
def beside(tmp_path: Path) -> Path:
    """The file beside the bundle `bundles/first`."""
    path = tmp_path / "bundles" / "edgelung.toml"
    path.parent.mkdir()
    return path


def test_every_key_is_read(user: Path) -> None:
    user.write_text(
        '[infer]\nmodel = "../b"\nengine = "openvino"\nprecision = "int8"\nthreads = 2\n'
        "batch_size = 8\nmin_confidence = 0.5\nstrict_size = true\n"
    )
    assert read_defaults(None) == InferDefaults(
        model=str(user.parent / "../b"),
        engine=EngineName.OPENVINO,
        precision=Precision.INT8,
        threads=2,
        batch_size=8,
        min_confidence=0.5,
        strict_size=True,
    )


def test_the_bundles_file_wins_over_the_users(user: Path, beside: Path) -> None:
    user.write_text("[infer]\nthreads = 1\nbatch_size = 4\n")
    beside.write_text("[infer]\nthreads = 2\n")
    defaults = read_defaults(beside.parent / "first")
    assert (defaults.threads, defaults.batch_size) == (2, 4)


def test_the_file_beside_the_users_bundle_counts(user: Path, beside: Path) -> None:
    user.write_text(f'[infer]\nmodel = "{beside.parent / "first"}"\n')
    beside.write_text("[infer]\nthreads = 2\n")
    assert read_defaults(None).threads == 2


def test_the_command_line_wins_over_both_files(
    bundle_folder: Path, tiles: Path, tmp_path: Path, cli
) -> None:
    path = tmp_path / "edgelung.toml"
    path.write_text('[infer]\nengine = "onnxruntime"\nprecision = "fp16"\nbatch_size = 5\n')
    (tmp_path / "list").write_text("lung_n/lung_n_s0_0.jpeg\n")
    words = ["infer", tiles, "--model", bundle_folder, "--files", tmp_path / "list", "--json"]
    environment = os.environ | {"EDGELUNG_CONFIG": str(path)}
    result = cli(*words, "--precision", "fp32", env=environment)
    options = json.loads(result.stdout)["options"]
    assert options["--engine"] == "onnxruntime"
    assert options["--precision"] == "fp32"
    assert options["--batch-size"] == 5
    expected = f"defaults of {path}: engine = onnxruntime, precision = fp16, batch_size = 5\n"
    assert expected in result.stderr
    chosen = json.loads(cli(*words, "--engine", "auto", env=environment).stdout)
    assert chosen["options"]["--engine"] == "openvino"


@pytest.mark.parametrize(
    ("words", "strict"), [([], True), (["--no-strict-size"], None), (["--strict-size"], True)]
)
def test_strict_size_in_the_file_can_be_switched_off(
    bundle_folder: Path,
    tiles: Path,
    tmp_path: Path,
    cli,
    words: list[str],
    strict: bool | None,
) -> None:
    path = tmp_path / "edgelung.toml"
    path.write_text("[infer]\nstrict_size = true\n")
    (tmp_path / "list").write_text("lung_n/lung_n_s0_0.jpeg\n")
    result = cli(
        *("infer", tiles, "--model", bundle_folder, "--files", tmp_path / "list", "--json"),
        *words,
        env=os.environ | {"EDGELUNG_CONFIG": str(path)},
    )
    assert json.loads(result.stdout)["options"].get("--strict-size") is strict


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("[infer]\nengin = 'x'\n", "has 'engin'; known are model, engine, precision, threads"),
        ("[train]\nx = 1\n", "has 'train'; known are infer"),
        ("[infer]\nengine = 'x'\n", "Invalid enum value 'x' - at `$.engine`"),
        ("[infer]\nthreads = 0\n", "`int` >= 1 - at `$.threads`"),
        ("[infer]\nthreads = '2'\n", "Expected `int"),
        ("[infer]\nmin_confidence = 1.5\n", "$.min_confidence"),
        ("infer = 3\n", "infer is a value; expected a table, [infer]"),
        ("[infer\n", "is not TOML"),
    ],
)
def test_a_mistake_in_the_file_is_one_line(user: Path, text: str, message: str) -> None:
    user.write_text(text)
    with pytest.raises(EdgelungError) as error:
        read_defaults(None)
    assert message in str(error.value)
    assert str(user) in str(error.value)


def test_a_bundles_file_cannot_name_another_bundle(user: Path, beside: Path) -> None:
    beside.write_text('[infer]\nmodel = "other"\n')
    with pytest.raises(EdgelungError, match="names a model; only the user's file can"):
        read_defaults(beside.parent / "first")


def test_off_reads_no_file(beside: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    beside.write_text("[infer]\nthreads = 2\n")
    monkeypatch.setenv("EDGELUNG_CONFIG", "off")
    assert read_defaults(beside.parent / "first") == InferDefaults()


def test_a_named_file_must_be_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("EDGELUNG_CONFIG", str(tmp_path / "gone.toml"))
    with pytest.raises(EdgelungError, match=r"gone\.toml, which is not a file"):
        read_defaults(None)


def test_the_users_file_lies_in_the_configuration_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("EDGELUNG_CONFIG")
    monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path))
    monkeypatch.setenv("APPDATA", str(tmp_path))
    assert user_config() == tmp_path / "edgelung" / "edgelung.toml"
