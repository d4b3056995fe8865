"""What the templates share: short names, places on a scale, commands without folders."""

import sys

import pytest

from edgelung.report.render import command, logplace, place, shortened, typed


def test_a_long_name_keeps_both_ends_and_is_escaped() -> None:
    assert shortened("lung_aca/<b>0001.jpeg", 10) == (
        '<span title="lung_aca/&lt;b&gt;0001.jpeg">lung….jpeg</span>'
    )
    assert shortened("<b>", 10) == "&lt;b&gt;"


def test_a_command_names_no_folder_of_the_computer() -> None:
    words = ["edgelung", "train", "/home/me/my tiles", "--out=/data/run", "--set", "a=b"]
    assert typed(words) == "edgelung train 'my tiles' --out=run --set a=b"


def test_another_program_is_no_command_of_edgelung(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", ["/usr/bin/edgelung", "audit", "tiles"])
    assert command() == "edgelung audit tiles"
    monkeypatch.setattr(sys, "argv", ["pytest", "secret"])
    assert command() == ""


def test_places_stay_on_their_scale() -> None:
    assert [place(value, 0.5, 1) for value in (0, 0.75, 2)] == ["0.0", "50.0", "100.0"]
    assert [logplace(value, 0.01, 1) for value in (0, 0.1, 1)] == ["0.0", "50.0", "100.0"]
