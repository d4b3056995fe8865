"""Which TensorRT is here: the full one (10 or 11) or TensorRT-RTX, found at run time.

Both come as a Python module of the same shape; what edgelung uses is the subset that all three
share, and the few places where they differ ask this module.
"""

import importlib
from dataclasses import dataclass
from functools import cache
from typing import Any

from edgelung.core.errors import one_line
from edgelung.engines.base import EngineUnavailableError

MODULES = {"tensorrt": "tensorrt", "tensorrt-rtx": "tensorrt_rtx"}
INSTALL = {
    "tensorrt": "install TensorRT 10 or 11 from NVIDIA: pip install tensorrt "
    "--extra-index-url https://pypi.nvidia.com",
    "tensorrt-rtx": "pip install 'edgelung[rtx]'",
}
OLDEST = {"tensorrt": 10, "tensorrt-rtx": 1}


@dataclass(frozen=True)
class Flavour:
    """One TensorRT: its word in `--engine`, its Python module and its version."""

    name: str
    trt: Any
    version: str

    @property
    def ahead_of_time(self) -> bool:
        """Whether it builds engines for a named architecture, with no GPU in the machine."""
        return self.name == "tensorrt-rtx"

    @property
    def title(self) -> str:
        """For messages."""
        return f"{'TensorRT-RTX' if self.ahead_of_time else 'TensorRT'} {self.version}"

    def targets(self) -> list[str]:
        """Architectures it can build for by name ('sm_86'), in their order; empty if for none."""
        if not self.ahead_of_time:
            return []
        words = [w for w in self.trt.ComputeCapability.__members__ if w.startswith("SM")]
        return [f"sm_{word[2:]}" for word in sorted(words, key=lambda w: int(w[2:]))]


def load_flavour(name: str) -> Flavour:
    """Import the module of `name` ('tensorrt' or 'tensorrt-rtx').

    Raises EngineUnavailableError where it is missing, does not load or is too old.
    """
    try:
        trt = importlib.import_module(MODULES[name])
    except ModuleNotFoundError as error:
        raise EngineUnavailableError(f"{name} is not installed; {INSTALL[name]}") from error
    except Exception as error:  # its libraries are missing or of another version: types vary
        raise EngineUnavailableError(
            f"{name} is installed but does not load ({one_line(error)}); {INSTALL[name]}"
        ) from error
    version = str(trt.__version__)
    if int(version.split(".")[0]) < OLDEST[name]:
        raise EngineUnavailableError(
            f"{name} {version} is too old; edgelung needs {OLDEST[name]} or later: {INSTALL[name]}"
        )
    return Flavour(name, trt, version)


def logger_of(flavour: Flavour) -> Any:
    """The one logger, which keeps errors (`errors`, a list of str) and prints nothing.

    TensorRT holds on to the first logger it is given for as long as anything of it lives: a second
    one would be ignored, and once the first were gone a build could wait for it forever.
    """
    return _logger(flavour.trt)


@cache
def _logger(trt: Any) -> Any:
    serious = (trt.ILogger.Severity.INTERNAL_ERROR, trt.ILogger.Severity.ERROR)

    class Keep(trt.ILogger):  # type: ignore[misc]
        def __init__(self) -> None:
            trt.ILogger.__init__(self)
            self.errors: list[str] = []

        def log(self, severity: Any, message: str) -> None:
            if severity in serious:
                self.errors.append(message)

    return Keep()
