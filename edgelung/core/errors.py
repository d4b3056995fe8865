"""The error type for users' mistakes, and the exit codes of all commands."""

import re
import unicodedata
from enum import IntEnum

ANSI_CODES = re.compile(r"\x1b\[[0-9;]*[A-Za-z]")  # torch colours its messages


class ExitCode(IntEnum):
    """Exit codes of the command line."""

    OK = 0
    INTERNAL = 1  # a bug in edgelung; Python prints the traceback
    USAGE = 2  # wrong usage or bad input, named in one line
    SOME_FAILED = 3  # finished, but some files failed
    GATE = 4  # an accuracy gate failed or was inconclusive


class EdgelungError(Exception):
    """An error that the user can correct: what was found, what was expected, what to do.

    The command line prints it as one line and exits with `ExitCode.USAGE`.
    """

    def __init__(self, message: str) -> None:
        super().__init__(visible(" ".join(message.split())))


def visible(text: str, keep: str = "") -> str:
    r"""Text for a terminal: what it would obey or hide is shown as an escape such as `\x1b`.

    Names of files and classes may hold control characters, which move the cursor, change the title
    or fake a line; invisible ones; and ones that turn the direction of writing.

    Args:
        text: any text.
        keep: characters that are left as they are, such as the line end.
    """
    if text.isprintable():
        return text
    shown = (
        character
        if character.isprintable() or character in keep or unicodedata.category(character) == "Zs"
        else character.encode("ascii", "backslashreplace").decode()
        if character > "\x7f"
        else f"\\x{ord(character):02x}"
        for character in text
    )
    return "".join(shown)


def one_line(error: object, limit: int = 200) -> str:
    """The text of an error, or any other text, on one line of at most `limit` characters.

    ANSI codes are removed, other control characters shown. An error without a text is shown by the
    name of its type.
    """
    text = visible(" ".join(ANSI_CODES.sub("", str(error)).split())) or type(error).__name__
    return text if len(text) <= limit else text[: limit - 1] + "…"
