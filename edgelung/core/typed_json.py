"""Convert JSON to typed values and back.

Types are msgspec Structs. msgspec checks every field as it converts, and its message names the
field (`Expected `int`, got `str` - at `$.files`). Python's json module reads and writes the text,
to keep the file format stable: two spaces, UTF-8, and NaN for a loss that is not a number.
"""

import json
import tomllib
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.files import write_json as write_json_value

T = TypeVar("T")
MAX_DEPTH = 32  # of nested lists and tables; edgelung's own files have 7
MAX_LINE = 8192  # of TOML: the time for a dotted key grows with its square
TOO_DEEP = f"it is nested too deeply, more than {MAX_DEPTH} levels"
Json = Any  # what the json module returns; msgspec has no recursive types


def parse(text: bytes | str) -> Json:
    """Parse JSON text into plain values. Raises ValueError, also for nesting that is too deep."""
    try:
        value: Json = json.loads(text)
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    check_depth(value)
    return value


def parse_toml(text: str) -> dict[str, Json]:
    """Parse TOML text into plain values. Raises ValueError, also for nesting that is too deep."""
    if any(len(line) > MAX_LINE for line in text.splitlines()):
        raise ValueError(f"a line is longer than {MAX_LINE:,} characters")
    try:
        value = tomllib.loads(text)
    except RecursionError as error:
        raise ValueError(TOO_DEEP) from error
    check_depth(value)
    return value


def check_depth(value: Json) -> None:
    """Raise ValueError if lists and tables are nested deeper than `MAX_DEPTH`.

    What is nested deeper can be parsed, but not be converted, compared or written again.
    """
    level = [value] if isinstance(value, dict | list) else []
    for _ in range(MAX_DEPTH + 1):
        level = [
            child
            for parent in level
            for child in (parent.values() if isinstance(parent, dict) else parent)
            if isinstance(child, dict | list)
        ]
        if not level:
            return
    raise ValueError(TOO_DEEP)


def convert(value: Json, kind: type[T]) -> T:
    """Convert plain values to `kind`. Raises ValueError that names the field and its type."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error


def plain(value: object) -> Json:
    """Convert a typed value to plain values that the json module can write."""
    builtins: Json = msgspec.to_builtins(value)
    return builtins


def read(path: Path, kind: type[T], remedy: str, newest: int | None = None) -> T:
    """Read the JSON file at `path` as `kind`, of schema version `newest` at most.

    Raises EdgelungError that names the file and the fault, and ends with `remedy` (what to do).
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise EdgelungError(f"cannot read {path}: {error.strerror}; {remedy}") from error
    return decode(path, data, kind, remedy, newest)


def decode(path: Path, data: bytes, kind: type[T], remedy: str, newest: int | None = None) -> T:
    """As `read`, of bytes that were read before; `path` is for messages."""
    try:
        content = parse(data)
        if newest is not None:  # before its fields: a newer format may have others
            check_version(path, content, newest)
        return convert(content, kind)
    except ValueError as error:
        raise EdgelungError(f"cannot read {path}: {one_line(error)}; {remedy}") from error


def check_version(path: Path, content: Json, newest: int) -> None:
    """Raise EdgelungError for content of a newer format than this edgelung reads."""
    version = content.get("schema_version") if isinstance(content, dict) else None
    if isinstance(version, int | float) and version > newest:
        raise EdgelungError(
            f"{path} has schema version {version}; this edgelung reads up to {newest}: update "
            "edgelung"
        )


def write(path: Path, value: object) -> None:
    """Write a typed value as indented JSON, atomically."""
    write_json_value(path, plain(value))
