"""What a class may be called: names go into pages, tables, terminals and other programs.

Training checks its class folders and the workstation checks the bundle, by the same rule.
"""

import unicodedata
from collections.abc import Sequence

MAX_CLASSES = 256
MAX_LENGTH = 128  # characters

_BLANKS = " \u3000"  # of those of Unicode, what keyboards type: the Japanese one too
# Invisible, though Unicode counts them among letters, marks and symbols.
_INVISIBLE = frozenset(
    map(
        chr,
        (
            *(0x034F, 0x115F, 0x1160, 0x17B4, 0x17B5, 0x2800, 0x3164, 0xFFA0),
            *range(0x180B, 0x1810),
            *range(0xFE00, 0xFE10),
            *range(0xE0100, 0xE01F0),
        ),
    )
)
# Cyrillic and Greek letters that look like Latin ones in most fonts.
_LOOKALIKES = str.maketrans(
    "АВЕКМНОРСТХаеорсухіјѕΑΒΕΖΗΙΚΜΝΟΡΤΥΧο",
    "ABEKMHOPCTXaeopcyxijsABEZHIKMNOPTYXo",
)


def check_class_names(names: Sequence[str]) -> None:
    """Check the names of all classes of a model.

    Raises:
        ValueError: if there are more than `MAX_CLASSES`; if one is empty, too long, not in
            Unicode's composed form (NFC), or holds a character that cannot be seen; or if two look
            alike.
    """
    if len(names) > MAX_CLASSES:
        raise ValueError(f"{len(names):,} classes; expected at most {MAX_CLASSES}")
    shown: dict[str, str] = {}
    for name in names:
        if fault := _fault(name):
            raise ValueError(f"the class name {_quoted(name)} {fault}")
        other = shown.setdefault(_appearance(name), name)
        if other is not name:
            raise ValueError(f"the class names {_quoted(other)} and {_quoted(name)} look alike")


def composed(name: str) -> str:
    """The name in Unicode's composed form (NFC); macOS stores file names decomposed."""
    return unicodedata.normalize("NFC", name)


def _fault(name: str) -> str:
    """Why a name is refused; '' if it is not."""
    if not name.strip():
        return "is empty"
    if len(name) > MAX_LENGTH:
        return f"has {len(name):,} characters; expected at most {MAX_LENGTH}"
    for char in name:
        if char in _INVISIBLE or not (char.isprintable() or char in _BLANKS):
            return f"holds U+{ord(char):04X}, which cannot be seen; expected letters and signs"
    if not unicodedata.is_normalized("NFC", name):
        return "is not in Unicode's composed form (NFC)"
    return ""


def _appearance(name: str) -> str:
    """The same for names that a reader takes for one."""
    plain = unicodedata.normalize("NFKC", name).translate(_LOOKALIKES).casefold()
    return " ".join(plain.split())


def _quoted(name: str) -> str:
    return ascii(name if len(name) <= MAX_LENGTH else name[:32] + "…")
