"""OpenSlide, imported when a slide needs it."""

from types import ModuleType

from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.extras import load_extra


def find_openslide() -> ModuleType | None:
    """The module `openslide`; None where it, or the library that it calls, is not installed."""
    try:
        return need_openslide("a slide")
    except EdgelungError:
        return None


def need_openslide(what: str) -> ModuleType:
    """The module `openslide`. Raises EdgelungError where it is not installed.

    `what`: what needs it, such as 'slide.ndpi'.
    """
    return load_extra("openslide", one_line(what))
