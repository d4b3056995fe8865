"""Named choices of a user: a member of an enum, or 'auto', which leaves the choice to edgelung."""

from enum import StrEnum
from typing import TypeVar

AUTO = "auto"
E = TypeVar("E", bound=StrEnum)


def parse_choice(kind: type[E], text: str) -> E | None:
    """The member of `kind` with this value; None for 'auto'. Raises ValueError with one line."""
    if text == AUTO:
        return None
    try:
        return kind(text)
    except ValueError:
        names = ", ".join([AUTO, *kind])
        raise ValueError(f"{text!r} is unknown; expected one of {names}") from None
