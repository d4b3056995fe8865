"""edgelung.toml: the defaults of options and the trusted keys, from files that people write.

Two files may give defaults: the one beside the bundle (in the folder that holds the bundle's
folder) and the user's. The command line wins over the bundle's file, and that over the user's.
EDGELUNG_CONFIG names another file instead of the user's, or is 'off': then neither is read.

Trusted keys come from the user's file and the system's, never from beside a bundle: whoever sends a
bundle may write there. EDGELUNG_CONFIG does not switch off the system's file.

This module finds and reads the files; which keys a section has is the caller's type.
"""

import os
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import Generic, TypeVar

import msgspec

from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.typed_json import parse_toml

ENVIRONMENT = "EDGELUNG_CONFIG"
OFF = "off"
NAME = "edgelung.toml"
SECTIONS = ("infer", "trust")
BUNDLE_SECTIONS = ("infer",)  # of the file beside a bundle

T = TypeVar("T", bound=msgspec.Struct)


@dataclass(frozen=True)
class Defaults(Generic[T]):
    """The section of one file: where it was read and its typed values."""

    path: Path
    values: T


def user_config() -> Path | None:
    """Return the user's file, which may not exist; None if it is switched off.

    Raises:
        EdgelungError: if EDGELUNG_CONFIG names a file that does not exist.
    """
    named = os.environ.get(ENVIRONMENT)
    if named == OFF:
        return None
    if named:
        if not Path(named).is_file():
            raise EdgelungError(
                f"{ENVIRONMENT} names {named}, which is not a file; name an {NAME}, or 'off'"
            )
        return Path(named)
    try:
        return _user_folder() / "edgelung" / NAME
    except RuntimeError:  # no home folder: no file of the user's
        return None


def system_config() -> Path:
    """Return the file of the machine, which its administrator writes; it may not exist."""
    if sys.platform == "win32":
        return Path(os.environ.get("PROGRAMDATA") or r"C:\ProgramData") / "edgelung" / NAME
    return Path("/etc/edgelung") / NAME


def bundle_config(bundle: Path) -> Path | None:
    """Return the file beside the bundle `bundle`, which may not exist; None if switched off."""
    if os.environ.get(ENVIRONMENT) == OFF:
        return None
    return bundle.absolute().parent / NAME


def read_section(
    path: Path | None, section: str, kind: type[T], known: tuple[str, ...] = SECTIONS
) -> Defaults[T] | None:
    """Read the table `[section]` of a file as `kind`, whose fields are the known keys.

    `known`: the tables that the file may have.

    Returns:
        None if there is no file, or no such table in it.

    Raises:
        EdgelungError: if the file is not TOML, or has a key or a value that `kind` does not have.
    """
    if path is None or not path.is_file():
        return None
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EdgelungError(f"cannot read {path}: {error.strerror}") from error
    return decode_section(path, data, section, kind, known)


def decode_section(
    path: Path, data: bytes, section: str, kind: type[T], known: tuple[str, ...] = SECTIONS
) -> Defaults[T] | None:
    """As `read_section`, of bytes that were read before; `path` is for messages."""
    try:
        content = parse_toml(data.decode("utf-8"))
    except ValueError as error:  # not UTF-8, or not TOML
        raise EdgelungError(f"{path} is not TOML: {one_line(error)}") from error
    _check_keys(content, known, str(path))
    if (table := content.get(section)) is None:
        return None
    if not isinstance(table, dict):
        raise EdgelungError(f"{path}: {section} is a value; expected a table, [{section}]")
    _check_keys(table, kind.__struct_fields__, f"{path} [{section}]")
    try:
        return Defaults(path, msgspec.convert(table, kind))
    except msgspec.ValidationError as error:
        raise EdgelungError(
            f"{path} [{section}]: {one_line(error)}; expected what the page 'Configuration' of the "
            "documentation says"
        ) from error


def _check_keys(table: dict[str, object], known: tuple[str, ...], where: str) -> None:
    if unknown := [key for key in table if key not in known]:
        raise EdgelungError(f"{where} has {unknown[0]!r}; known are {', '.join(known)}")


def _user_folder() -> Path:
    """The folder for the settings of the user's programs. Raises RuntimeError without a home."""
    if sys.platform == "win32":
        return Path(os.environ.get("APPDATA") or Path.home() / "AppData" / "Roaming")
    return Path(os.environ.get("XDG_CONFIG_HOME") or Path.home() / ".config")
