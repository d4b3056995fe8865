"""Text that a spreadsheet would compute is made safe, and comes back as it was."""

import csv
import io
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edgelung.core.csv_cells import raw_cell, safe_cell

FORMULAS = [
    *('=HYPERLINK("http://x")', "+cmd|' /C calc'!A0", "-2+3", "@SUM(A1)", "\t=1", "\r=1", "\n=1"),
    *("＝1+1", "＋1", "－1", "＠SUM(A1)", " =1", "\u00a0=1", "\ufeff=1", "\u3000=1", "'=1"),
    *("a;=1+1", "a;'=1", "a;;\t=1", "a\n=1", "a\t@SUM(1)", "a; =1", "=", "-", '";=1', "a\r\n-1"),
    *("x;\"=cmd|'/C calc'!A0;y", 'a;"@SUM(1)', 'a\t""=1', 'a;" "=1', '"=1', "a;'\"=1"),
]
ORDINARY = ["lung_aca/a-1.jpg", "a=b", "a+b.png", "'quoted'", "''", "x;y", "ü", "1e-5", "0.5", ""]
# The letters that matter, more often than chance would draw them.
TEXT = st.text() | st.text(alphabet="'\"=+-@;\t\r\n ＝－a\u3000")


@pytest.mark.parametrize("text", FORMULAS)
def test_no_cell_begins_as_a_formula_whatever_separates_cells(text: str) -> None:
    for separator in (",", ";", "\t"):
        written = io.StringIO(newline="")
        csv.writer(written, delimiter=separator).writerow([safe_cell(text), "next"])
        for cell in re.split(r"[;\t\r\n]", safe_cell(text)):
            assert not re.match(r"\s*[=+\-@＝＋－＠]", cell.lstrip('\ufeff"')), cell


@pytest.mark.parametrize("text", ORDINARY)
def test_ordinary_text_is_not_changed(text: str) -> None:
    assert safe_cell(text) == text
    assert raw_cell(text) == text


@given(TEXT)
def test_every_text_comes_back(text: str) -> None:
    assert raw_cell(safe_cell(text)) == text


@given(TEXT)
def test_what_was_made_safe_twice_comes_back_in_two_steps(text: str) -> None:
    assert raw_cell(raw_cell(safe_cell(safe_cell(text)))) == text


@given(TEXT)
def test_no_formula_begins_where_semicolons_or_tabs_separate_cells(text: str) -> None:
    """After a plain cell, so that the quotes of ours are not at the beginning of a line."""
    written = io.StringIO(newline="")
    csv.writer(written).writerow(["1.png", safe_cell(text)])
    line = written.getvalue().removeprefix("1.png,")
    for separator in (";", "\t"):
        for cell in re.split(f"[{separator}\r\n]", line)[1:]:
            assert not re.match(r"\s*[=+\-@＝＋－＠]", cell.lstrip('\ufeff"\u200b '))
