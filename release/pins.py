"""Locks and requirement files with hashes: read and written in the form that pip checks."""

import hashlib
import re
from collections.abc import Iterable
from dataclasses import dataclass, replace
from pathlib import Path

LOCKS = Path(__file__).parent / "locks"
PIN = re.compile(r"(?P<name>[\w.-]+)==(?P<version>[^\s;]+)(?: ; (?P<marker>.+))?")


@dataclass(frozen=True)
class Pin:
    """One version of one package, and the SHA-256 of every file that may be installed as it.

    `marker` says for which Pythons and platforms (PEP 508); it is empty for all.
    """

    name: str
    version: str
    marker: str
    hashes: frozenset[str]

    def __str__(self) -> str:
        """Return the pin as lines of a requirements file."""
        marker = f" ; {self.marker}" if self.marker else ""
        hashes = (f"--hash=sha256:{digest}" for digest in sorted(self.hashes))
        return " \\\n    ".join([f"{self.name}=={self.version}{marker}", *hashes]) + "\n"


def read_pins(path: Path) -> list[Pin]:
    """Read a lock; raises ValueError at a line that is no pin with hashes."""
    text = re.sub(r"^\s*#.*$", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE)
    return [_parse(line, path) for line in text.replace("\\\n", " ").splitlines() if line.strip()]


def merge(names: Iterable[str]) -> list[Pin]:
    """Return the pins of several locks, by name.

    The locks agree on versions, as one resolution made them. A package may be there for some
    Pythons in one lock and for all in another: then it is there for all.
    """
    pins: dict[tuple[str, str], Pin] = {}
    for pin in (pin for name in names for pin in read_pins(LOCKS / f"{name}.txt")):
        known = pins.setdefault((normalize(pin.name), pin.version), pin)
        if pin.marker != known.marker:
            both = f"({known.marker}) or ({pin.marker})" if pin.marker and known.marker else ""
            pins[normalize(pin.name), pin.version] = replace(known, marker=both)
    return [pins[key] for key in sorted(pins)]


def normalize(name: str) -> str:
    """Return a package's name as the index compares it (PEP 503)."""
    return re.sub(r"[-_.]+", "-", name).lower()


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file, in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _parse(line: str, path: Path) -> Pin:
    requirement, *hashes = re.split(r"\s+--hash=sha256:", line.strip())
    match = PIN.fullmatch(requirement.strip())
    if match is None or not hashes:
        raise ValueError(f"{path.name}: not a pin with hashes: {requirement}")
    return Pin(match["name"], match["version"], match["marker"] or "", frozenset(hashes))
