"""Help and usage errors: one question per command, groups of options, one line per mistake."""

import os
import subprocess
import sys
from pathlib import Path

import pytest
import typer

from edgelung.cli.app import app

COMMANDS = typer.main.get_command(app).commands  # type: ignore[attr-defined]


@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_is_headed_by_its_question(name: str, cli) -> None:
    text = cli(name, "-h").stdout
    question = text.split("\n\n")[1].strip()
    assert question.endswith("?")
    assert len(question) <= 63  # the list of commands shows it whole
    assert question in cli("--help").stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_every_option_says_what_it_is(name: str) -> None:
    command = COMMANDS[name]
    context = command.make_context(name, [], resilient_parsing=True)
    for parameter in command.get_params(context):
        form, text = parameter.get_help_record(context)
        assert text.split("[")[0].strip(), form
        if parameter.param_type_name == "option":
            assert "<" not in form, form  # a type of Python's, such as <list[str]>


@pytest.mark.parametrize("name", ["", *COMMANDS])
def test_help_fits_80_columns(name: str, cli) -> None:
    text = cli(*filter(None, [name]), "--help", env=os.environ | {"COLUMNS": "80"}).stdout
    assert max(map(len, text.splitlines())) <= 80


@pytest.mark.parametrize("shell", ["bash", "zsh", "fish"])
def test_completion_can_be_installed(shell: str, tmp_path: Path, cli) -> None:
    environment = os.environ | {"HOME": str(tmp_path), "SHELL": f"/bin/{shell}"}
    environment["_TYPER_COMPLETE_TEST_DISABLE_SHELL_DETECTION"] = "1"  # the tests' own shell
    done = cli("--install-completion", shell, env=environment)
    assert done.returncode == 0, done.stderr
    assert any("edgelung" in path.name for path in tmp_path.rglob("*"))


def test_completion_knows_the_commands(cli) -> None:
    asked = {"_EDGELUNG_COMPLETE": "complete_bash", "COMP_WORDS": "edgelung inf", "COMP_CWORD": "1"}
    assert cli(env=os.environ | asked).stdout.split() == ["infer"]


def test_the_short_and_the_long_form_of_help_are_the_same(cli) -> None:
    assert cli("infer", "-h").stdout == cli("infer", "--help").stdout


def test_the_options_of_infer_stand_in_groups(cli) -> None:
    text = cli("infer", "--help").stdout
    headings = [line for line in text.splitlines() if line.endswith(":") and line[0] != " "]
    assert headings == [
        *("Arguments:", "Model:", "Input:", "Output:", "Checks:", "Speed:", "Options:"),
    ]
    assert "Usage: edgelung infer [OPTIONS] FOLDER...\n" in text


@pytest.mark.parametrize(
    ("words", "line"),
    [
        (
            ["predict"],
            "no such command 'predict'; expected one of audit, train, compare, export, evaluate, "
            "infer, merge, slide, serve, view, bench, doctor, demo, keygen, sign, gpu-check; see "
            "`edgelung --help`",
        ),
        (["infr"], "no such command 'infr'. Did you mean 'infer'? See `edgelung --help`"),
        (
            ["infer"],
            "missing argument 'FOLDER' (Folder of tiles, searched with all folders below; several "
            "share one output); see `edgelung infer --help`",
        ),
        (
            ["train", "x"],
            "missing option '--out' (New run folder to write); see `edgelung train --help`",
        ),
        (
            ["infer", "x", "--modle", "y"],
            "no such option: --modle. Did you mean --model? See `edgelung infer --help`",
        ),
        (["infer", "x", "--zzz"], "no such option: --zzz; see `edgelung infer --help`"),
        (
            ["export", "run", "--out", "new", "--engine", "tensort"],
            "invalid value for '--engine': 'tensort' is unknown; expected one of openvino, "
            "onnxruntime, tensorrt, tensorrt-rtx, onnxruntime-cuda, onnxruntime-tensorrt; see "
            "`edgelung export --help`",
        ),
        (
            ["infer", "x", "--precision", "int4"],
            "invalid value for '--precision': 'int4' is unknown; expected one of auto, fp32, fp16, "
            "int8, int8-fp16, fp8, int8-early-exit, fp16-early-exit; see `edgelung infer --help`",
        ),
    ],
)
def test_a_usage_error_is_one_clean_line(words: list[str], line: str, cli) -> None:
    result = cli(*words)
    assert result.returncode == 2
    assert result.stderr == f"edgelung: {line}\n"


def test_without_a_command_the_help_is_shown(cli) -> None:
    result = cli()
    assert result.returncode == 2
    assert result.stderr.startswith("Usage: edgelung [OPTIONS] COMMAND [ARGS]...")


def test_help_of_a_command_imports_nothing_heavy() -> None:
    code = (
        "import sys; sys.argv = ['edgelung', 'infer', '--help']\n"
        "from edgelung.cli import main\n"
        "try: main()\n"
        "except SystemExit: pass\n"
        "heavy = {'numpy', 'msgspec', 'PIL', 'rich', 'logging.config'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, timeout=60)
