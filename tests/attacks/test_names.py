"""Names of files, classes and bundles are text wherever they go: no program obeys them."""

import csv
import json
import logging
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelung.artifacts.predictions import (
    CSV,
    JSON_LINES,
    Prediction,
    VisibleWriter,
    probability_column,
    read_predictions,
)
from edgelung.artifacts.run import RunFolder, SplitRow
from edgelung.core import terminal
from edgelung.core.errors import EdgelungError, one_line, visible
from edgelung.core.markdown import markdown_text
from edgelung.report.render import render
from edgelung.tiles.lists import read_rows

ESCAPES = {
    "colour": "a\x1b[31mb",
    "title": "a\x1b]0;owned\x07b",
    "link": "a\x1b]8;;http://x\x1b\\b",
    "C1 CSI": "a\x9b31mb",
    "backspace": "good\x08\x08\x08\x08evil",
    "return": "evil\rgood",
    "line": "a\nedgelung: all is well",
    "delete": "a\x7fb",
    "right to left": "a\u202egpj.b",
    "isolate": "a\u2066b\u2069",
    "zero width": "lung\u200b_n",
    "joiner": "a\u2060b",
    "byte order mark": "\ufeffa",
    "line separator": "a\u2028b",
    "tag": "a\U000e0041b",
    "not UTF-8": "a\udcffb",
    "NUL": "a\0b",
}
OBEYED_OR_HIDDEN = r"[\x00-\x1f\x7f-\x9f\u200b-\u200f\u2028-\u202e\u2060-\u2069]"
MARKUP = ["[red]a[/red]", "[/]", "[link=http://x]a[/link]", ":warning:", "[gpu]", "\\[b]"]
names = pytest.mark.parametrize("name", ESCAPES.values(), ids=ESCAPES)


@names
def test_every_character_that_a_terminal_obeys_or_hides_is_shown(name: str) -> None:
    shown = visible(name)
    assert shown.isprintable()
    assert "\\" in shown


@given(st.text())
def test_shown_text_is_printable_whatever_it_was(text: str) -> None:
    assert not re.search(OBEYED_OR_HIDDEN, visible(text))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]) -> object:
    """Prints through a new console on standard output and returns what arrives."""
    terminal.out.cache_clear()
    terminal.err.cache_clear()

    def show(*things: object) -> str:
        for thing in things:
            terminal.out().print(thing)
        return capfd.readouterr().out

    yield show
    terminal.out.cache_clear()
    terminal.err.cache_clear()


def is_safe(text: str) -> bool:
    return all(line.isprintable() for line in text.split("\n"))


@names
def test_a_name_in_a_line_or_a_table_reaches_no_terminal_raw(shown, name: str) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table("column", name, title=name)
    table.add_row(name, "cell")
    assert is_safe(shown(f"file {name}", table, Text(name)))


@pytest.mark.parametrize("name", MARKUP)
def test_brackets_in_a_name_are_no_markup(shown, name: str) -> None:
    from rich.table import Table

    table = Table(name)
    assert shown(name) == f"{name}\n"
    assert name in shown(table)


@names
def test_a_name_in_a_log_line_makes_no_second_line(
    name: str, capfd: pytest.CaptureFixture[str]
) -> None:
    terminal.err.cache_clear()
    handler = terminal.ConsoleHandler()
    handler.emit(logging.makeLogRecord({"msg": "cannot read %s", "args": (name,)}))
    handler.emit(logging.makeLogRecord({"msg": "cannot read %s", "args": (Path(name),)}))
    written = capfd.readouterr().err
    terminal.err.cache_clear()
    assert written.count("\n") == 2
    assert is_safe(written)


@names
def test_a_name_in_an_error_is_shown(name: str) -> None:
    assert str(EdgelungError(f"cannot read {name}")).isprintable()
    assert one_line(name).isprintable()


@names
def test_a_usage_error_shows_what_was_typed(name: str, cli) -> None:
    if "\0" in name:
        pytest.skip("no argument can hold a NUL")
    done = cli("infer", f"--{name}")
    assert done.returncode == 2
    assert is_safe(done.stderr)
    assert done.stderr.count("\n") == 1


@names
def test_a_folder_that_is_missing_is_named_visibly(name: str, cli) -> None:
    if "\0" in name:
        pytest.skip("no argument can hold a NUL")
    done = cli("infer", f"missing {name}")
    assert done.returncode == 2
    assert is_safe(done.stderr)


class Bytes:
    def __init__(self) -> None:
        self.data = b""

    def write(self, data: bytes, /) -> int:
        self.data += data
        return len(data)


def test_rows_on_a_terminal_show_control_characters() -> None:
    out = Bytes()
    writer = CSV.writer(VisibleWriter(out), ["a"])
    writer.write([Prediction("a\x1b]0;x\x07\u202e.png", "corrupt", error="b")])
    assert is_safe(out.data.decode().replace("\r\n", "\n"))


def test_a_line_end_in_a_name_makes_no_row_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgelung.inference import sinks
    from edgelung.tiles.status import Status

    class Record:
        status = Status.CORRUPT

        def prediction(self, classes: object) -> Prediction:
            return Prediction("a.png\r\nb.png,ok,x\r", "corrupt", error="no\nimage")

    out = Bytes()
    sink = sinks.StreamSink(CSV, ["x"], check_tiles=False)
    monkeypatch.setattr(sinks, "UnbufferedWriter", lambda *words: out)
    monkeypatch.setattr(sinks.sys, "stdout", open(0, closefd=False))  # noqa: SIM115
    monkeypatch.setattr(sinks.os, "isatty", lambda handle: True)
    monkeypatch.setattr(sink._tally, "add", lambda record: None)
    sink.start(None, "now")
    sink.append([Record()])
    head, row = out.data.decode().removesuffix("\r\n").split("\r\n")
    assert is_safe(row)
    assert "\n" not in row
    assert head.startswith("path,")


def test_a_line_end_in_a_name_makes_no_line_of_its_own(tmp_path: Path, capfd) -> None:
    from edgelung.cli.command import print_next
    from edgelung.cli.keygen import keygen

    terminal.out.cache_clear()
    print_next("infer", "a\nfake")
    keygen(tmp_path / "k\nfake")
    terminal.out.cache_clear()
    shown = capfd.readouterr().out
    assert shown.count("fake") == 4
    assert not re.search("^fake", shown, re.MULTILINE)


def test_the_line_before_a_sudden_end_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    from edgelung.core import interrupts

    written: list[bytes] = []
    monkeypatch.setattr(interrupts.os, "write", lambda handle, data: written.append(data))
    monkeypatch.setattr(interrupts.os, "_exit", lambda code: None)
    monkeypatch.setattr(interrupts.os, "isatty", lambda handle: False)
    interrupts.end_process(2, "loading \x1b]0;x\x07\nfake")
    assert written == [b"edgelung: loading \\x1b]0;x\\x07\\x0afake.\n"]


def test_the_question_for_a_password_is_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    import getpass

    from edgelung.cli import password

    asked: list[str] = []
    monkeypatch.delenv(password.PASSWORD_ENVIRONMENT, raising=False)
    monkeypatch.setattr(password.sys.stdin, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(getpass, "getpass", lambda text: asked.append(text) or "x")
    password.read_password(Path("key\x1b[31m\n.pem"))
    assert asked[0].isprintable()


CELLS = ['=HYPERLINK("http://x","y")', "+cmd|'/C calc'!A0", "@SUM(A1)", "\t=1", "＝1", "'=1", "-1"]
CLASSES = ("=1+1", "a;=cmd", "-b", "'@c", "plain")


def test_predictions_with_formulas_for_names_come_back(tmp_path: Path) -> None:
    rows = tuple(
        Prediction(cell, "ok", label, 0.5, (0.5, *[0.125] * 4), cell)
        for cell in CELLS
        for label in CLASSES
    )
    for kind in (CSV, JSON_LINES):
        path = tmp_path / f"rows{kind.suffix}"
        with path.open("wb") as file:
            writer = kind.writer(file, CLASSES)
            writer.write(rows)
            writer.close()
        found = read_predictions(path)
        assert (found.classes, found.rows) == (CLASSES, rows)
    with (tmp_path / "rows.csv").open(newline="", encoding="utf-8") as file:
        lines = list(csv.reader(file))
    for line in lines:
        for cell in line:
            for part in re.split(r"[;\t\r\n]", cell):
                assert not re.match(r"\s*[=+\-@＝＋－＠]", part), cell
    assert lines[1][3] == "0.500000"
    assert lines[0][4:7] == [probability_column(name) for name in ("=1+1", "a;'=cmd", "-b")]


def test_json_lines_hold_the_names_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    with path.open("wb") as file:
        JSON_LINES.writer(file, ["a"]).write([Prediction("=1", "corrupt", error="=2")])
    assert json.loads(path.read_bytes())["path"] == "=1"


def test_a_split_with_formulas_for_names_comes_back(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    rows = [SplitRow(cell, "=class", "-group", "train", "ab" * 32) for cell in CELLS]
    run.write_split(rows)
    assert run.read_split() == rows
    assert "\n=" not in run.split_path.read_text("utf-8")
    assert ",=" not in run.split_path.read_text("utf-8")


@pytest.mark.parametrize("name", ['=HYPERLINK("x").png', "-1.png", "'=1.png", "@a.png"])
def test_a_list_of_rows_names_the_files_that_the_rows_are_of(tmp_path: Path, name: str) -> None:
    path = tmp_path / "rows.csv"
    with path.open("wb") as file:
        CSV.writer(file, ["a"]).write([Prediction(name, "corrupt")])
    assert [row["path"] for row in read_rows(path)] == [name]


MARKDOWN = [
    *(
        "<script>alert(1)</script>",
        "[a](javascript:alert(1))",
        "![a](http://x/y.png)",
        "a|b",
        "`a`",
    ),
    *(
        "a\n\n# b",
        "<http://x>",
        "http://x",
        "www.x.org",
        "a@b.org",
        "*a*",
        "_a_",
        "&lt;b&gt;",
        "~~a~~",
    ),
    *("a\\", '"a"', "#1", "@name"),
]


@pytest.mark.parametrize("name", MARKDOWN)
def test_a_name_in_markdown_is_text(name: str) -> None:
    escaped = markdown_text(name)
    plain = re.sub(r"&#\d+;", "", escaped)
    assert not re.search(r"[<>|`*\[\]~!@#&\n\"]|\\(?!x0a)|://|www\.|\b_|_\b", plain), escaped


def test_ordinary_class_names_in_markdown_are_not_changed() -> None:
    for name in ("lung_aca", "Grade 3+4 (high)", "tumour-1", "Gewebe gesünd", "97.50 %", "0.99"):
        assert markdown_text(name) == name


PARTS = ("base.html.j2", "tables.html.j2", "run_parts.html.j2", "slide_parts.html.j2")
TEMPLATES = sorted(Path(render.__code__.co_filename).parent.glob("*.html.j2"))


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.name)
def test_every_page_has_a_policy_that_allows_no_foreign_script(template: Path) -> None:
    source = template.read_text("utf-8")
    if template.name not in PARTS:
        assert '{% extends "base.html.j2" %}' in source
    for policy in re.findall(r"{% block policy %}(.*?){% endblock %}", source):
        assert "default-src 'none'" in policy
        script = re.search(r"script-src ([^;]*)", policy)
        names = ("'{{ script_hash }}'", "'{{ library_hash }}'")  # a script is named by its hash
        assert script is None or set(re.split(r" (?=')", script[1])) <= set(names)
        assert "base-uri 'none'" in policy
        assert "form-action 'none'" in policy
    assert not re.search(r"\son[a-z]+=", source), "a handler within a tag, which the policy blocks"
