"""What a laboratory requires of a model on its own tiles: `edgelung evaluate --require`."""

from collections.abc import Sequence
from dataclasses import dataclass

from edgelung.artifacts.evaluation import Requirement, RequirementVerdict
from edgelung.artifacts.results import Estimate, Estimates
from edgelung.evaluation.external import RECALL, named_figures

NAMES = ("accuracy", "balanced_accuracy", "roc_auc")


@dataclass(frozen=True)
class Required:
    """A figure and the least that it must be."""

    figure: str
    at_least: float


def parse_requirement(text: str) -> Required:
    """Parse `NAME=VALUE`. Raises ValueError for what cannot be one in any bundle."""
    figure, _, number = text.rpartition("=")
    if not figure:
        raise ValueError(f"{text!r}; expected NAME=VALUE, such as balanced_accuracy=0.95")
    if figure not in NAMES and not figure.startswith(RECALL):
        raise ValueError(f"{figure!r} is unknown; expected {', '.join(NAMES)} or {RECALL}CLASS")
    try:
        at_least = float(number)
    except ValueError:
        raise ValueError(f"{number!r} is no number") from None
    if not 0 < at_least <= 1:
        raise ValueError(f"{number} is outside of 0…1; 95 % is written 0.95")
    return Required(figure, at_least)


def check_classes(required: Sequence[Required], classes: Sequence[str]) -> None:
    """Raise ValueError if a recall is required of a class that the model does not know."""
    for one in required:
        name = one.figure.removeprefix(RECALL)
        if one.figure.startswith(RECALL) and name not in classes:
            raise ValueError(f"the class {name!r} is unknown; expected {', '.join(classes)}")


def judge(
    required: Sequence[Required], figures: Estimates | None, classes: list[str]
) -> list[Requirement]:
    """Judge each requirement by the lower bound of the figure's interval.

    The bound and not the estimate: a few good groups are no evidence for the next ones.
    """
    named = named_figures(figures, classes) if figures else {}
    judged = []
    for one in required:
        estimate = named.get(one.figure, Estimate(value=None, interval=None))
        judged.append(
            Requirement(
                figure=one.figure,
                at_least=one.at_least,
                estimate=estimate,
                verdict=_verdict(estimate, one.at_least),
            )
        )
    return judged


def _verdict(estimate: Estimate, at_least: float) -> RequirementVerdict:
    if estimate.interval is None:
        return "inconclusive"
    low, high = estimate.interval
    if high < at_least:
        return "fail"
    return "pass" if low >= at_least else "inconclusive"
