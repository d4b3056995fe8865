"""What `edgelung evaluate` prints: tables that fit on 80 columns."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from edgelung.core import terminal

if TYPE_CHECKING:
    from edgelung.artifacts.evaluation import Evaluation, Subset, UnknownTiles
    from edgelung.artifacts.results import Estimate


def print_evaluation(result: "Evaluation") -> None:
    """Print the result for people: concerns and cautions first, then figures, then verdicts."""
    console = terminal.out()
    for text in (*(concern.text for concern in result.concerns), *result.cautions):
        console.print(text)
    everything = result.everything
    counts = ", ".join(f"{n} {status}" for status, n in everything.statuses.items())
    figures = everything.figures
    groups = f" in {figures.groups} groups" if figures and result.grouped else ""
    console.print(f"{sum(everything.statuses.values())} tiles{groups} ({counts})")
    console.print(f"engine    {result.engine} {result.precision} on {result.device}")
    if figures is None:
        return
    _print_figures(result)
    _print_confusion(result)
    for column, subsets in result.by.items():
        _print_column(column, subsets)
    if result.unknown:
        _print_unknown(result.unknown)
    if result.sets:
        console.print(
            f"sets      of coverage {result.sets.asked}: the true class is in "
            f"{_percent(result.sets.coverage.share)} of them, {result.sets.mean_size:.2f} classes "
            "in a set"
        )
    kept = ", ".join(f"{_percent(one.share, 0)}: {_percent(one.accuracy)}" for one in result.kept)
    console.print(f"kept      accuracy of the most confident tiles; {kept}")
    for one in result.requirements:
        console.print(
            f"required  {one.figure} {one.at_least:g}: {one.verdict}, "
            f"{_percent(one.estimate.value)} ({_span(one.estimate)})"
        )


def _print_figures(result: "Evaluation") -> None:
    """The figures here and in the bundle's own test, and the difference."""
    from rich.table import Column, Table

    from edgelung.evaluation.external import named_figures, title_of

    assert result.everything.figures is not None
    table = Table(
        Column("figure, %", overflow="fold"),
        *("here", "bundle's test", "difference"),
        title="all tiles; below a figure its 95 % interval over groups",
    )
    for name, here in named_figures(result.everything.figures, result.classes).items():
        test = result.test.get(name)
        table.add_row(
            title_of(name),
            _cell(here),
            _cell(test.test) if test else "–",
            _difference(test.difference, test.verdict) if test else "–",
        )
    terminal.out().print(table)
    if result.test:
        terminal.out().print("An interval that contains 0 shows no difference.")


def _difference(difference: "Estimate", verdict: str | None) -> str:
    """The difference in points, its interval, and the verdict in words."""
    if difference.value is None:
        return "–"
    lines = [f"{100 * difference.value:+.2f}"]
    if difference.interval and verdict:
        low, high = difference.interval
        lines += [f"{100 * low:+.2f} … {100 * high:+.2f}", verdict]
    return "\n".join(lines)


def _print_confusion(result: "Evaluation") -> None:
    from rich.table import Column, Table

    names = ("truth ↓  predicted →", *result.classes)
    table = Table(*(Column(name, overflow="fold") for name in names), title="confusion matrix")
    for name, row in zip(result.classes, result.everything.confusion, strict=True):
        table.add_row(name, *map(str, row))
    terminal.out().print(table)


def _print_column(column: str, subsets: Mapping[str, "Subset"]) -> None:
    """A row for each value of a column."""
    from rich.table import Column, Table

    table = Table(
        Column(column, overflow="fold"),
        *("tiles", "groups", "accuracy", "balanced", "ROC AUC", "calibr.\nerror"),
        title=f"by {column}, %; recall of each class is in --json and --out",
    )
    for value, subset in subsets.items():
        figures = subset.figures
        cells = [str(sum(subset.statuses.values()))]
        if figures is not None:
            estimates = (figures.accuracy, figures.balanced_accuracy, figures.roc_auc)
            cells += [str(figures.groups), *(_cell(one, 1) for one in estimates)]
            cells.append(_cell(figures.expected_calibration_error, 1))
        table.add_row(value, *cells)
    terminal.out().print(table)


def _print_unknown(unknown: "UnknownTiles") -> None:
    shares = f"{_percent(unknown.unknown.share)} unknown, {_percent(unknown.blank.share)} blank"
    if not unknown.can_tell:
        terminal.out().print("unknown   this bundle cannot tell tissue that it was not made for")
        shares = f"{_percent(unknown.blank.share)} blank"
    text = f"unknown   {shares} (mean over groups)"
    if unknown.unknown.share + unknown.blank.share and (figures := unknown.without):
        text += (
            f"; without them accuracy {_percent(figures.accuracy.value)} "
            f"({_span(figures.accuracy)}), balanced {_percent(figures.balanced_accuracy.value)} "
            f"({_span(figures.balanced_accuracy)})"
        )
    terminal.out().print(text)


def _cell(estimate: "Estimate", decimals: int = 2) -> str:
    """A figure in percent, and its interval on a second line."""
    if estimate.value is None:
        return "–"
    span = "no interval"
    if estimate.interval:
        span = " – ".join(f"{100 * bound:.{decimals}f}" for bound in estimate.interval)
    return f"{100 * estimate.value:.{decimals}f}\n{span}"


def _span(estimate: "Estimate") -> str:
    from edgelung.evaluation.intervals import written

    return written(estimate.interval) if estimate.interval else "no interval"


def _percent(value: float | None, decimals: int = 2) -> str:
    return "–" if value is None else f"{100 * value:.{decimals}f} %"
