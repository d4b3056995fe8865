"""What a benchmark ran on, for its JSON."""

from typing import Any

from edgelung.core.system import describe_machine
from edgelung.core.typed_json import plain


def describe() -> dict[str, Any]:
    """Commit, CPU, cores, GPUs, Python and package versions."""
    machine: dict[str, Any] = plain(describe_machine())
    return machine
