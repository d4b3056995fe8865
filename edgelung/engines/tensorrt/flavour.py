"""Which TensorRT is installed: the full one (10 or 11) or TensorRT-RTX. Found at run time.

Each is a Python module. edgelung uses the part of the API that all of them share; where they
differ, the `Flavour` says which one it is.
"""

import importlib
from dataclasses import dataclass
from functools import cache
from types import ModuleType
from typing import Any

from edgelung.core.errors import one_line
from edgelung.engines.base import EngineUnavailableError
from edgelung.engines.tensorrt.api import ErrorLog, Member

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
INSTALL = {
    "tensorrt": "install TensorRT 10 or 11 from NVIDIA: pip install tensorrt "
    "--extra-index-url https://pypi.nvidia.com",
    "tensorrt-rtx": "pip install 'edgelung[rtx]'",
}
OLDEST = {"tensorrt": 10, "tensorrt-rtx": 1}  # major versions


@dataclass(frozen=True)
class Flavour:
    """One of the TensorRT packages.

    Attributes:
        name: the engine's name in `--engine`: 'tensorrt' or 'tensorrt-rtx'.
        trt: the Python module.
        version: the module's version.
    """

    name: str
    trt: ModuleType
    version: str

    @property
    def ahead_of_time(self) -> bool:
        """True if it can build engines for a named architecture, without a GPU in the machine."""
        return self.name == "tensorrt-rtx"

    @property
    def title(self) -> str:
        """Name and version for messages."""
        return f"{'TensorRT-RTX' if self.ahead_of_time else 'TensorRT'} {self.version}"

    def targets(self) -> list[str]:
        """List the architectures it can build for by name ('sm_86'), sorted; empty if none."""
        if not self.ahead_of_time:
            return []
        members = self.trt.ComputeCapability.__members__
        numbers = sorted(int(name[2:]) for name in members if name.startswith("SM"))
        return [f"sm_{number}" for number in numbers]


def load_flavour(name: str) -> Flavour:
    """Import the package `name`: 'tensorrt' or 'tensorrt-rtx'.

    Raises:
        EngineUnavailableError: if it is missing, does not load or is too old.
    """
    try:
        trt = importlib.import_module(MODULES[name])
    except ModuleNotFoundError as error:
        raise EngineUnavailableError(f"{name} is not installed; {INSTALL[name]}") from error
    except Exception as error:  # libraries missing or of another version: the types vary
        raise EngineUnavailableError(
            f"{name} is installed but does not load ({one_line(error)}); {INSTALL[name]}"
        ) from error
    version = str(trt.__version__)
    if int(version.split(".")[0]) < OLDEST[name]:
        raise EngineUnavailableError(
            f"{name} {version} is too old; edgelung needs {OLDEST[name]} or later: {INSTALL[name]}"
        )
    return Flavour(name, trt, version)


def error_log(flavour: Flavour) -> ErrorLog:
    """Return the only logger of this package. It collects errors and prints nothing.

    TensorRT keeps the first logger it is given as long as any of its objects lives. A second one
    would be ignored, and after the first is gone a build could wait for it forever.
    """
    return _error_log(flavour.trt)


@cache
def _error_log(trt: ModuleType) -> ErrorLog:
    severities = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)
    base: Any = trt.ILogger

    class ErrorCollector(base):  # type: ignore[misc]
        def __init__(self) -> None:
            base.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Member, message: str) -> None:
            if severity in severities:
                self.errors.append(message)

    return ErrorCollector()
