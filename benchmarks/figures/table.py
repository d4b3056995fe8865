"""What the tables of `tables.py` are made of: a result file, forms of figures, a table."""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
RESULTS = ROOT / "benchmarks" / "results"
NONE = "–"


@dataclass(frozen=True)
class Table:
    """A table: header, rows of cells, the content of its files, and a line to stand above it."""

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    sources: dict[str, dict[str, Any]]
    note: str = ""


def result(name: str) -> dict[str, Any]:
    """The content of a result file."""
    content: dict[str, Any] = json.loads((RESULTS / name).read_text(encoding="utf-8"))
    return content


def percent(value: float | None, digits: int = 1) -> str:
    """A fraction in per cent."""
    return NONE if value is None else f"{100 * value:.{digits}f} %"


def points(value: float, digits: int = 1) -> str:
    """A difference of fractions in points, with its sign."""
    return f"{100 * value:+.{digits}f}".replace("-", "−")


def interval(bounds: Sequence[float] | None, form: Callable[[float], str] | None = None) -> str:
    """Two bounds; in per cent without a unit, or in `form`."""
    if bounds is None:
        return NONE
    form = form or (lambda value: f"{100 * value:.1f}")
    return f"{form(bounds[0])} … {form(bounds[1])}"


def difference(found: dict[str, Any]) -> str:
    """A paired difference in points and its interval."""
    return f"{points(found['difference'])} ({interval(found['difference_interval'], points)})"


def tested(test: dict[str, Any]) -> list[str]:
    """Balanced accuracy of a test set and its interval."""
    bounds = test.get("intervals", {}).get("balanced_accuracy")
    return [percent(test["balanced_accuracy"]), interval(bounds)]
