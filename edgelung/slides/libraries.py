"""The libraries of the extra `slides`, imported when a slide needs them."""

import importlib
from types import ModuleType

from edgelung.core.errors import EdgelungError, one_line


def find_openslide() -> ModuleType | None:
    """The module `openslide`; None where it, or the library that it calls, is not installed."""
    try:
        return importlib.import_module("openslide")
    except (ImportError, OSError):  # OSError: the shared library is missing
        return None


def need_openslide(what: str) -> ModuleType:
    """The module `openslide`. Raises EdgelungError where it is not installed.

    `what`: what needs it, such as 'slide.ndpi'.
    """
    library = find_openslide()
    if library is None:
        raise EdgelungError(
            f"{one_line(what)} needs OpenSlide, which is not installed: pip install "
            "'edgelung[slides]'"
        )
    return library
