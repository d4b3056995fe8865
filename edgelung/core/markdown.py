"""Text from outside in a Markdown file."""

import re

from edgelung.core.errors import visible

# What Markdown or HTML in it would obey, the links that GitHub makes of plain text included. An
# underscore within a word is none of it, and class names have many.
_SPECIAL = re.compile(r"[\\`*\[\]<>|&~#!@\"]|:(?=//)|(?<=www)\.|(?<![^\W_])_|_(?![^\W_])", re.I)


def markdown_text(text: str) -> str:
    """Show `text` as it is, on one line: special characters become HTML entities."""
    return _SPECIAL.sub(lambda found: f"&#{ord(found[0])};", visible(text))
