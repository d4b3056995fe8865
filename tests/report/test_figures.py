"""Figures on a page: class names of any script, and the text colour of the page."""

import warnings

from edgelung.report.figures import confusion


def test_class_names_of_any_script_are_kept_in_a_figure() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # a missing glyph must not warn: the browser draws the text
        text = confusion([[3, 1], [0, 4]], ["腺癌 $x$", "<n> & m"], "student, test")
    assert "腺癌 $x$" in text
    assert "&lt;n&gt; &amp; m" in text
    assert "currentColor" in text
