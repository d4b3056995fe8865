"""Fill the templates of the pages: one environment, its filters, and the facts they share."""

import math
import shlex
import sys
from collections.abc import Iterable
from datetime import UTC, datetime
from functools import cache
from pathlib import PurePath

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from edgelung import RESEARCH_USE_ONLY, __version__
from edgelung.core.errors import visible
from edgelung.core.markdown import markdown_text
from edgelung.evaluation.intervals import caution, written

SHORT_NAME = 36  # characters of a file name; longer ones lose their middle


def render(template: str, **values: object) -> str:
    """Fill a template of this package. Values are escaped for HTML or for Markdown."""
    environment = _environment(template.endswith(".md.j2"))
    return environment.get_template(template).render(
        notice=RESEARCH_USE_ONLY, version=__version__, **values
    )


@cache  # it keeps the compiled templates
def _environment(is_markdown: bool) -> Environment:
    environment = Environment(
        loader=PackageLoader("edgelung.report", ""),
        autoescape=not is_markdown,
        finalize=_markdown_value if is_markdown else _html_value,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {
        "percent": lambda value: "–" if value is None else f"{100 * value:.2f} %",
        "points": lambda value: f"{100 * value:.2f}",
        "span": written,
        "caution": caution,
        "short": shortened,
        "place": place,
        "logplace": logplace,
    }
    return environment


def _markdown_value(value: object) -> object:
    return markdown_text(value) if isinstance(value, str) else value


def _html_value(value: object) -> object:
    """What turns the direction of writing, or is not seen, is shown as an escape."""
    if not isinstance(value, str) or isinstance(value, Markup):
        return value
    return visible(value, "\t\n")


def shortened(name: str, most: int = SHORT_NAME) -> Markup:
    """A long name without its middle, since names of tiles differ at their ends."""
    name = visible(name)
    if len(name) <= most:
        return Markup.escape(name)
    half = most // 2
    text = f"{name[: half - 1]}…{name[-half:]}"
    return Markup('<span title="{}">{}</span>').format(name, text)


def place(value: float, low: float, high: float) -> str:
    """Where a value lies between `low` and `high`, in percent, for a CSS position."""
    return f"{100 * min(max((value - low) / (high - low), 0.0), 1.0):.1f}"


def logplace(value: float, low: float, high: float) -> str:
    """As `place`, on a logarithmic scale; `low` is above 0."""
    return place(math.log(max(value, low)), math.log(low), math.log(high))


def now() -> str:
    """The time in UTC, to the minute."""
    return datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC")


def command() -> str:
    """The edgelung command that runs now, as `typed` writes it; '' in another program."""
    if PurePath(sys.argv[0]).stem != "edgelung":
        return ""
    return typed(["edgelung", *sys.argv[1:]])


def typed(words: Iterable[str]) -> str:
    """Words of a command line with absolute paths reduced to their last name.

    A page leaves the computer that it was made on.
    """
    parts = (word.rpartition("=") for word in words)
    return shlex.join(
        f"{option}{equals}{PurePath(value).name if PurePath(value).is_absolute() else value}"
        for option, equals, value in parts
    )
