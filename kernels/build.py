"""Compile the kernels ahead of time: one fat binary that every workstation loads uncompiled.

Machine code for the architectures below and PTX, which the driver compiles for any other from
SM 75 on. `python -m edgelung.kernels.build` does it by hand; building the package does it wherever
nvcc is found. Nothing here imports more than the standard library: setup.py runs it.
"""

import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

ARCHITECTURES = (75, 80, 86, 89, 90, 100, 120)
SOURCES = ("resize.h", "resize.cu")
HOST_SOURCES = ("resize.h", "resize.cu", "host.cpp")
BINARY, RECORD = "resize.fatbin", "resize.json"
# The resize must give the CPU reader's pixels: no contraction into fused multiply-adds.
NVCC_FLAGS = ("-fatbin", "-std=c++17", "-O3", "-fmad=false", "--resource-usage", "--threads", "0")
HOST_FLAGS = ("-shared", "-fPIC", "-std=c++17", "-O3", "-ffp-contract=off")

HERE = Path(__file__).parent


def source_hash(folder: Path = HERE) -> str:
    """SHA-256 over the sources that the binary is made of, and over how it is made."""
    digest = hashlib.sha256(repr((ARCHITECTURES, NVCC_FLAGS)).encode())
    for name in SOURCES:
        digest.update((folder / name).read_bytes())
    return digest.hexdigest()


def read_record(folder: Path = HERE) -> dict[str, Any] | None:
    """What the built binary holds; None where it is missing or not of these sources."""
    try:
        record: dict[str, Any] = json.loads((folder / RECORD).read_text(encoding="utf-8"))
        binary = (folder / BINARY).read_bytes()
    except (OSError, ValueError):
        return None
    fresh = record.get("sources") == source_hash(folder)
    return record if fresh and record.get("sha256") == _sha256(binary) else None


def build(folder: Path = HERE) -> dict[str, Any] | None:
    """Compile where nvcc is found and the sources changed; returns the record, None without nvcc.

    Raises RuntimeError with the compiler's words where it refuses, or where a kernel spills
    registers to memory.
    """
    if record := read_record(folder):
        return record
    nvcc = find_nvcc()
    if nvcc is None:
        return None
    codes = [f"arch=compute_{sm},code=sm_{sm}" for sm in ARCHITECTURES]
    codes.append(f"arch=compute_{ARCHITECTURES[0]},code=compute_{ARCHITECTURES[0]}")
    targets = [word for code in codes for word in ("-gencode", code)]
    temporary = folder / f".{BINARY}.{os.getpid()}"
    try:
        command = [nvcc, *NVCC_FLAGS, *targets, str(folder / "resize.cu"), "-o", str(temporary)]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            raise RuntimeError(f"nvcc does not compile the kernels:\n{done.stderr}")
        kernels = _resources(done.stdout + done.stderr)
        if spilling := [k for k in kernels if k["spilled_bytes"]]:
            raise RuntimeError(f"a kernel spills registers: {spilling}")
        record = {
            "sources": source_hash(folder),
            "sha256": _sha256(temporary.read_bytes()),
            "bytes": temporary.stat().st_size,
            "compiler": _compiler(nvcc),
            "architectures": [f"sm_{sm}" for sm in ARCHITECTURES],
            "ptx": f"compute_{ARCHITECTURES[0]}",
            "kernels": kernels,
        }
        os.replace(temporary, folder / BINARY)
    finally:
        temporary.unlink(missing_ok=True)
    (folder / RECORD).write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return record


def build_host(library: Path) -> Path:
    """Compile the host twin with g++ into `library`; raises RuntimeError where g++ refuses."""
    command = ["g++", *HOST_FLAGS, str(HERE / "host.cpp"), "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        raise RuntimeError(f"g++ does not compile the host twin:\n{done.stderr}")
    return library


def find_nvcc() -> str | None:
    """nvcc on the path, or where CUDA is usually installed."""
    places = [os.environ.get(name, "") for name in ("CUDA_HOME", "CUDA_PATH", "CUDA_ROOT")]
    search = [Path(place) / "bin" for place in (*places, "/usr/local/cuda") if place]
    return shutil.which("nvcc") or shutil.which("nvcc", path=os.pathsep.join(map(str, search)))


def describe(record: dict[str, Any]) -> str:
    """Registers and spills of every kernel, one line an architecture."""
    lines = [f"{BINARY}: {record['bytes']} bytes, {record['compiler']}, PTX {record['ptx']}"]
    for sm in record["architectures"]:
        used = [
            f"{k['name']} {k['registers']} registers, {k['spilled_bytes']} bytes spilled"
            for k in record["kernels"]
            if k["architecture"] == sm
        ]
        lines.append(f"  {sm}: {'; '.join(used)}")
    return "\n".join(lines)


def _resources(text: str) -> list[dict[str, Any]]:
    """What ptxas says of each kernel: architecture, registers, bytes spilled."""
    pattern = (
        r"entry function '(\w+)' for '(sm_\d+)'.*?(\d+) bytes spill stores, "
        r"(\d+) bytes spill loads.*?Used (\d+) registers"
    )
    return sorted(
        (
            {
                "architecture": sm,
                "name": name,
                "registers": int(registers),
                "spilled_bytes": int(stores) + int(loads),
            }
            for name, sm, stores, loads, registers in re.findall(pattern, text, re.DOTALL)
        ),
        key=lambda k: (int(str(k["architecture"])[3:]), str(k["name"])),
    )


def _compiler(nvcc: str) -> str:
    text = subprocess.run([nvcc, "--version"], capture_output=True, text=True, check=False).stdout
    found = re.search(r"release [\d.]+, V([\d.]+)", text)
    return f"nvcc {found[1]}" if found else "nvcc"


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()


def main() -> int:
    """Build and print what came out; 2 without a compiler."""
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
