"""The machine: its cores, its processor, its name, and the versions of what is installed."""

import os
import platform
import shutil
import socket
import subprocess
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from msgspec import Struct

from edgelung import __version__

# Packages that decode, resize or compute: a row may depend on their versions.
RUNTIME_PACKAGES = (
    *("numpy", "pillow", "simplejpeg", "imagecodecs"),
    *("openvino", "onnxruntime-gpu", "onnxruntime"),
)
# Packages that read slides, in addition.
SLIDE_PACKAGES = ("openslide-python", "openslide-bin", "tifffile", "opencv-python-headless")
# Packages that decide which GPU engine is fastest.
GPU_PACKAGES = ("tensorrt", "tensorrt-rtx", "onnxruntime-gpu", "pycuda", "cuda-bindings")
# Packages that decide what calibration measures.
EXPORT_PACKAGES = (
    *("numpy", "onnx", "onnxruntime-gpu", "onnxruntime"),
    *("pillow", "simplejpeg", "imagecodecs"),
)
# Packages that the figures of a measurement depend on.
MEASURED_PACKAGES = (
    *("edgelung", "numpy", "onnxruntime-gpu", "onnxruntime", "openvino", "timm", "torch"),
)


_CGROUP = Path("/sys/fs/cgroup")


class Host(Struct, frozen=True, kw_only=True):
    """A machine, as the record of a run names it."""

    edgelung: str
    python: str
    packages: dict[str, str]
    name: str
    system: str
    cpu: str
    cores: int


class Machine(Struct, frozen=True, kw_only=True):
    """What a measurement ran on. `commit` is None where edgelung is not run from its checkout."""

    commit: str | None
    cpu: str
    cores: int
    system: str
    python: str
    gpus: list[str]
    packages: dict[str, str]


def version(package: str) -> str | None:
    """Installed version of a package; None where it is not installed."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def versions(packages: Iterable[str] = RUNTIME_PACKAGES) -> dict[str, str]:
    """Name → version of those packages that are installed."""
    return {name: found for name in packages if (found := version(name))}


def available_cores() -> int:
    """CPU cores that this process may use (`taskset` or a container may allow fewer)."""
    if not hasattr(os, "sched_getaffinity"):
        return os.cpu_count() or 1
    cores = len(os.sched_getaffinity(0))
    try:
        share, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        return max(1, min(cores, -(-int(share) // int(period))))
    except (OSError, ValueError):  # no such file, or the word 'max'
        return cores


def free_memory() -> int:
    """Bytes that the system can free, within the container's limit."""
    free = _memory_line("MemAvailable")
    with suppress(OSError, ValueError):  # "max", no limit, is not a number
        limit = int((_CGROUP / "memory.max").read_text())
        used = int((_CGROUP / "memory.current").read_text())
        free = min(free, limit - used + _pages_of_files())
    return free


def _pages_of_files() -> int:
    """Bytes of files that were read: they count as used, but are given up for other memory."""
    with suppress(OSError):
        for line in (_CGROUP / "memory.stat").read_text().splitlines():
            if line.startswith("inactive_file "):
                return int(line.split()[1])
    return 0


def total_memory() -> int:
    """Bytes of memory of the machine, or the container's limit."""
    total = _memory_line("MemTotal")
    with suppress(OSError, ValueError):
        total = min(total, int((_CGROUP / "memory.max").read_text()))
    return total


def _memory_line(name: str) -> int:
    """A line of /proc/meminfo in bytes; 4 GiB, a guess, for systems that have none."""
    with suppress(OSError, StopIteration):
        lines = Path("/proc/meminfo").read_text().splitlines()
        return 1024 * int(next(line for line in lines if line.startswith(name)).split()[1])
    return 4 * 2**30


def cpu_name() -> str:
    """Name of the processor, as far as the system tells."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return next((line.split(":")[1].strip() for line in file if "model name" in line), "")
    except OSError:
        return platform.processor()


def cpu_flags() -> list[str]:
    """The processor's instruction sets, as Linux names them; empty on other systems."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return []
    line = next((line for line in lines if line.startswith(("flags", "Features"))), "")
    return line.partition(":")[2].split()


def saturates_int8() -> bool:
    """True on x86 processors without VNNI instructions.

    There, fast INT8 kernels add pairs of products in 16 bits (`vpmaddubsw`). A large sum does not
    fit and is cut off. The OOD scores of the starter's test tiles were then 0.94 to 1.36 times the
    right ones (`benchmarks/results/int8-without-vnni.json`).
    """
    if platform.machine().lower() not in ("x86_64", "amd64"):
        return False
    return not any("vnni" in flag for flag in cpu_flags())  # avx512_vnni, avx_vnni


def host() -> Host:
    """This machine, for the record of a run."""
    return Host(
        edgelung=__version__,
        python=platform.python_version(),
        packages=versions(),
        name=socket.gethostname(),
        system=f"{platform.system()} {platform.release()} {platform.machine()}",
        cpu=cpu_name(),
        cores=available_cores(),
    )


def describe_machine() -> Machine:
    """This machine, for the record of a measurement."""
    return Machine(
        commit=checked_out_commit(),
        cpu=cpu_name(),
        cores=available_cores(),
        system=f"{platform.system()} {platform.machine()}",
        python=platform.python_version(),
        gpus=gpu_names(),
        packages=versions(MEASURED_PACKAGES),
    )


def gpu_names() -> list[str]:
    """Names of the NVIDIA GPUs, as the Linux driver lists them."""
    files = sorted(Path("/proc/driver/nvidia/gpus").glob("*/information"))
    lines = [line for file in files for line in file.read_text().splitlines()]
    return [line.split(":", 1)[1].strip() for line in lines if line.startswith("Model")]


def checked_out_commit() -> str | None:
    """The commit of the git checkout that edgelung runs from; '+' if files differ from it."""
    folder = Path(__file__).parents[2]
    if not (folder / ".git").exists() or shutil.which("git") is None:
        return None

    def git(*words: str) -> str:
        return subprocess.run(
            ["git", *words], cwd=folder, capture_output=True, text=True, check=False
        ).stdout.strip()

    commit = git("rev-parse", "--short=12", "HEAD")
    is_changed = bool(git("status", "--porcelain", "--untracked-files=no"))
    return commit + "+" * is_changed if commit else None
