"""Libraries of an extra: imported when they are first needed, or named in one line."""

import importlib
from types import ModuleType

from edgelung.core.errors import EdgelungError, one_line


def load_extra(module: str, purpose: str, extra: str = "slides") -> ModuleType:
    """Import a module of an optional library.

    Args:
        module: its name, such as 'pyarrow.parquet'.
        purpose: what needs it, as the beginning of a sentence.
        extra: the extra of edgelung that installs it.

    Raises:
        EdgelungError: if it cannot be imported.
    """
    try:
        return importlib.import_module(module)
    except (ImportError, OSError) as error:  # OSError: a shared library that it loads is missing
        raise EdgelungError(
            f"{purpose} needs {module.partition('.')[0]} ({one_line(error)}); "
            f"pip install 'edgelung[{extra}]'"
        ) from error
