"""What a benchmark ran on, for its JSON."""

import platform
import shutil
import subprocess
from pathlib import Path
from typing import Any

from edgelung.core.system import available_cores, cpu_name, version

PACKAGES = ("edgelung", "numpy", "onnxruntime-gpu", "onnxruntime", "openvino", "timm", "torch")


def describe() -> dict[str, Any]:
    """Commit, CPU, cores, GPUs, Python and package versions."""
    return {
        "commit": _commit(),
        "cpu": cpu_name(),
        "cores": available_cores(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "gpus": gpu_names(),
        "packages": {name: found for name in PACKAGES if (found := version(name))},
    }


def gpu_names() -> list[str]:
    """As the Linux driver calls them."""
    found = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for path in found for line in path.read_text().splitlines()]
    return [line.split(":", 1)[1].strip() for line in lines if line.startswith("Model")]


def _commit() -> str:
    """The commit that is checked out; '+' where files differ from it, 'unknown' without git."""
    folder = Path(__file__).parent
    if shutil.which("git") is None:
        return "unknown"

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=False
        ).stdout.strip()

    dirty = git("status", "--porcelain", "--untracked-files=no")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + ("+" if dirty else "")
