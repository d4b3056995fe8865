"""JSON to typed values and back: the step between a file's text and an artefact.

Types are msgspec Structs; msgspec checks every field as it converts, and its message names the
field (`Expected `int`, got `str` - at `$.files`). The text goes through Python's own json module,
so files keep the form they always had: two spaces, UTF-8, NaN where a loss is no number.
"""

import json
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edgelung.core.errors import EdgelungError, one_line
from edgelung.core.files import write_json as write_json_value

T = TypeVar("T")
Json = Any  # what the json module returns; msgspec knows no recursive type


def parse(text: bytes | str) -> Json:
    """JSON text as plain values. Raises ValueError, for too deep nesting too."""
    try:
        value: Json = json.loads(text)
    except RecursionError as error:
        raise ValueError("it is nested too deeply") from error
    return value


def convert(value: Json, kind: type[T]) -> T:
    """Plain values as `kind`. Raises ValueError that names the field and what was expected."""
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        raise ValueError(str(error)) from error


def plain(value: object) -> Json:
    """A typed value as plain values, ready for json."""
    found: Json = msgspec.to_builtins(value)
    return found


def read(path: Path, kind: type[T], remedy: str, newest: int | None = None) -> T:
    """Read the JSON file at `path` as `kind`, of schema version `newest` at most.

    Raises EdgelungError that names the file, what is wrong, and `remedy`, what to do.
    """
    try:
        content = parse(path.read_bytes())
        if newest is not None:  # before its fields: a newer format may have others
            check_version(path, content, newest)
        return convert(content, kind)
    except OSError as error:
        raise EdgelungError(f"cannot read {path}: {error.strerror}; {remedy}") from error
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
