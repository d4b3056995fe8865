"""Figures on a page: any script's class names, and the page's own ink."""

import warnings

from edgelung.report.figures import confusion


def test_class_names_of_any_script_stand_in_the_figure_as_they_are() -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # fonts that lack a glyph are the page's matter
        text = confusion([[3, 1], [0, 4]], ["腺癌 $x$", "<n> & m"], "student, test")
    assert "腺癌 $x$" in text
    assert "&lt;n&gt; &amp; m" in text
    assert "currentColor" in text
