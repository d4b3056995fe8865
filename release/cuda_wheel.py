"""Build pycuda's wheel from its published source, so that a workstation needs no compiler.

The wheel links libcuda.so.1, which only the driver has: an empty library of that name stands in
for it while linking. It is built without cuRAND: edgelung does not use it, and a workstation
without the CUDA toolkit does not have it.
"""

import os
import shutil
import subprocess
import tempfile
import zipfile
from pathlib import Path

from own_wheel import ROOT, commit_time
from pins import LOCKS, Pin, read_pins

DRIVER = "libcuda.so.1"
SOURCE_ONLY = frozenset({"pycuda"})
BUILT_WITH = ("numpy", "setuptools", "wheel")
SETTINGS = """\
CUDA_ROOT = {cuda!r}
CUDA_ENABLE_CURAND = False
CUDADRV_LIB_DIR = [{stubs!r}]
CXXFLAGS = ["-g0", "-w"]
LDFLAGS = ["-Wl,-s"]
"""


def build_pycuda(python: str, kept: Path, wheels: Path) -> str:
    """Put the wheel for one Python into `wheels`; returns the CUDA version of the headers.

    Compiling takes minutes, so what is built stays in `kept`. Remove it for another toolkit.

    Raises:
        RuntimeError: if the CUDA headers are not found.
        subprocess.CalledProcessError: if pip or g++ fails.
    """
    cuda = cuda_root()
    pins = read_pins(LOCKS / "all.txt")
    (version,) = {pin.version for pin in pins if pin.name == "pycuda"}
    tag = "import sys; print('cp%d%d' % sys.version_info[:2])"
    tag = subprocess.check_output([python, "-c", tag], text=True).strip()
    pattern = f"pycuda-{version}-{tag}-{tag}-*.whl"
    if not list(kept.glob(pattern)):
        _compile(python, cuda, pins, kept)
    (wheel,) = kept.glob(pattern)
    check_links(wheel)
    shutil.copy(wheel, wheels)
    return _cuda_version(cuda)


def _compile(python: str, cuda: Path, pins: list[Pin], kept: Path) -> None:
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        tools = [pin for pin in pins if pin.name in BUILT_WITH]
        pip = [_environment(python, folder, tools), "-m", "pip"]
        stub = folder / "libcuda.so"
        link = ["gcc", "-shared", "-nostdlib", f"-Wl,-soname,{DRIVER}", "-o", str(stub)]
        subprocess.run([*link, "-x", "c", os.devnull], check=True)
        settings = SETTINGS.format(cuda=str(cuda), stubs=str(folder))
        (folder / ".aksetup-defaults.py").write_text(settings)  # pycuda reads it in HOME
        requirement = _requirements(folder, [pin for pin in pins if pin.name == "pycuda"])
        options = ["--no-deps", "--no-build-isolation", "--no-binary", "pycuda", "--no-cache-dir"]
        options += ["--require-hashes", "-w", str(kept.resolve()), "-r", str(requirement)]
        environment = os.environ | {
            "HOME": temporary,
            "LDFLAGS": "-Wl,--no-as-needed",  # or the empty library would be left out
            "SOURCE_DATE_EPOCH": commit_time(ROOT),
        }
        subprocess.run([*pip, "wheel", "-q", *options], env=environment, check=True)


def check_links(wheel: Path) -> None:
    """Raise ValueError unless pycuda's wheel links the driver, and of CUDA the driver alone."""
    from elftools.elf.elffile import ELFFile  # a tool of the release: the tests do without

    with zipfile.ZipFile(wheel) as archive:
        needed = set()
        for name in archive.namelist():
            if name.endswith(".so"):
                dynamic = ELFFile(archive.open(name)).get_section_by_name(".dynamic")
                needed |= {tag.needed for tag in dynamic.iter_tags("DT_NEEDED")}
    if DRIVER not in needed or any(name.startswith(("libcurand", "libcudart")) for name in needed):
        raise ValueError(f"{wheel.name} links {', '.join(sorted(needed))}; {DRIVER} was expected")


def cuda_root() -> Path:
    """Return the CUDA toolkit's folder: CUDA_HOME, or where CUDA is usually installed."""
    root = Path(os.environ.get("CUDA_HOME", "/usr/local/cuda")).resolve()
    if not (root / "include" / "cuda.h").is_file():
        raise RuntimeError(f"no CUDA headers in {root}: install the CUDA toolkit or set CUDA_HOME")
    return root


def _environment(python: str, folder: Path, pins: list[Pin]) -> str:
    """Make an environment with what builds pycuda; returns its interpreter."""
    subprocess.run([python, "-m", "venv", folder / "venv"], check=True)
    interpreter = str(folder / "venv" / "bin" / "python")
    requirements = str(_requirements(folder, pins))
    options = ["--require-hashes", "--no-deps", "--only-binary", ":all:", "-r", requirements]
    subprocess.run([interpreter, "-m", "pip", "install", "-q", *options], check=True)
    return interpreter


def _requirements(folder: Path, pins: list[Pin]) -> Path:
    path = folder / "requirements.txt"
    path.write_text("".join(map(str, pins)), encoding="utf-8")
    return path


def _cuda_version(root: Path) -> str:
    """Return the version in cuda.h (`#define CUDA_VERSION 13000`), such as 13.0."""
    text = (root / "include" / "cuda.h").read_text(encoding="utf-8", errors="replace")
    number = int(text.partition("#define CUDA_VERSION ")[2].split()[0])
    return f"{number // 1000}.{number % 1000 // 10}"
