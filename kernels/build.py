"""Compile the kernels ahead of time into one fat binary, so that no workstation needs a compiler.

The binary holds machine code for `ARCHITECTURES`, and PTX that the driver compiles for all others
from SM 75 on. Building the package does this wherever nvcc is installed;
`python -m edgelung.kernels.build` does it by hand. Only the standard library is imported, because
setup.py runs this file.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import TypedDict

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
SOURCES = ("device.cu", "early_exit.cu", "resize.cu", "resize.h")
BINARY, RECORD = "kernels.fatbin", "kernels.json"
# The resize must give the CPU reader's pixels, so no fused multiply-adds.
NVCC_FLAGS = ("-fatbin", "-std=c++17", "-O3", "-fmad=false", "--resource-usage", "--threads", "0")
HOST_FLAGS = ("-shared", "-fPIC", "-std=c++17", "-O3", "-ffp-contract=off")

HERE = Path(__file__).parent


class KernelUsage(TypedDict):
    """What ptxas reports of one kernel on one architecture."""

    architecture: str
    name: str
    registers: int
    spilled_bytes: int


class BuildRecord(TypedDict):
    """What kernels.json says of the fat binary beside it."""

    sources: str  # SHA-256, see `source_hash`
    sha256: str  # of the binary
    bytes: int
    compiler: str
    architectures: list[str]
    ptx: str
    kernels: list[KernelUsage]


def source_hash(folder: Path = HERE) -> str:
    """Return the SHA-256 of the kernels' sources and of the compiler's options."""
    digest = hashlib.sha256(repr((ARCHITECTURES, NVCC_FLAGS)).encode())
    for name in SOURCES:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def read_record(folder: Path = HERE) -> BuildRecord | None:
    """Return the binary's record; None if the binary is missing or from other sources."""
    try:
        record: BuildRecord = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        binary = (folder / BINARY).read_bytes()
    except (OSError, ValueError):
        return None
    is_fresh = record.get("sources") == source_hash(folder)
    return record if is_fresh and record.get("sha256") == _sha256(binary) else None


def build(folder: Path = HERE) -> BuildRecord | None:
    """Compile the kernels if their sources changed; returns None if there is no nvcc.

    Raises:
        RuntimeError: with the compiler's message if it fails, or if a kernel spills registers to
            memory.
    """
    if record := read_record(folder):
        return record
    nvcc = find_nvcc()
    if nvcc is None:
        return None
    # A folder of its own: nobody else can put a link where the compiler writes.
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        temporary = Path(scratch) / BINARY
        kernels = _compile(nvcc, folder / "device.cu", temporary)
        record = {
            "sources": source_hash(folder),
            "sha256": _sha256(temporary.read_bytes()),
            "bytes": temporary.stat().st_size,
            "compiler": _compiler(nvcc),
            "architectures": [f"sm_{sm}" for sm in ARCHITECTURES],
            "ptx": f"compute_{ARCHITECTURES[0]}",
            "kernels": kernels,
        }
        text = json.dumps(record, indent=1) + "\n"
        (Path(scratch) / RECORD).write_text(text, encoding="utf-8")
        os.replace(temporary, folder / BINARY)
        os.replace(Path(scratch) / RECORD, folder / RECORD)
    return record


def build_host(library: Path) -> Path:
    """Compile the host twin with g++ into `library`; raises RuntimeError if g++ fails."""
    command = ["g++", *HOST_FLAGS, str(HERE / "host.cpp"), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"g++ does not compile the host twin:\n{done.stderr}")
    return library


def find_nvcc() -> str | None:
    """Find nvcc on the path, or where CUDA is usually installed."""
    homes = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH", "CUDA_ROOT")]
    folders = [Path(home) / "bin" for home in (*homes, "/usr/local/cuda") if home]
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(map(str, folders)))


def describe(record: BuildRecord) -> str:
    """Describe registers and spills of every kernel, one line per architecture."""
    lines = [f"{BINARY}: {record['bytes']} bytes, {record['compiler']}, PTX {record['ptx']}"]
    for architecture in record["architectures"]:
        usage = [
            f"{k['name']} {k['registers']} registers, {k['spilled_bytes']} bytes spilled"
            for k in record["kernels"]
            if k["architecture"] == architecture
        ]
        lines.append(f"  {architecture}: {'; '.join(usage)}")
    return "\n".join(lines)


def _compile(nvcc: str, source: Path, binary: Path) -> list[KernelUsage]:
    codes = [f"arch=compute_{sm},code=sm_{sm}" for sm in ARCHITECTURES]
    codes.append(f"arch=compute_{ARCHITECTURES[0]},code=compute_{ARCHITECTURES[0]}")
    targets = [argument for code in codes for argument in ("-gencode", code)]
    command = [nvcc, *NVCC_FLAGS, *targets, str(source), "-o", str(binary)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"nvcc does not compile the kernels:\n{done.stderr}")
    kernels = _parse_usage(done.stdout + done.stderr)
    if spilling := [kernel for kernel in kernels if kernel["spilled_bytes"]]:
        raise RuntimeError(f"a kernel spills registers: {spilling}")
    return kernels


def _parse_usage(text: str) -> list[KernelUsage]:
    """Read what ptxas printed of each kernel."""
    pattern = (
        r"entry function '(\w+)' for '(sm_\d+)'.*?(\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers"
    )
    usage = [
        KernelUsage(
            architecture=architecture,
            name=name,
            registers=int(registers),
            spilled_bytes=int(stores) + int(loads),
        )
        for name, architecture, stores, loads, registers in re.findall(pattern, text, re.DOTALL)
    ]
    return sorted(usage, key=lambda k: (int(k["architecture"][3:]), k["name"]))


def _compiler(nvcc: str) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    version = re.search(r"release [\d.]+, V([\d.]+)", text)
    return f"nvcc {version[1]}" if version else "nvcc"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main() -> int:
    """Build and describe the kernels. Returns 0, 1 if the compiler fails, 2 without a compiler."""
    try:
        record = build()
    except RuntimeError as error:
        print(error, file=sys.stderr)
        return 1
    if record is None:
        print("no nvcc found: install the CUDA toolkit or set CUDA_HOME", file=sys.stderr)
        return 2
    print(describe(record))
    return 0


if __name__ == "__main__":
    sys.exit(main())
