"""Fill a folder that installs edgelung on a workstation without a network, checked by hashes.

python release/wheelhouse.py OUT --wheel dist/edgelung-*.whl --pythons python3.11 --extras tiff

Needs a network, and the tools of release/locks/release.txt. With the extra gpu it needs g++ and
the CUDA headers too: pycuda is published as source only. Its wheel is built here and kept.
"""

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from cuda_wheel import SOURCE_ONLY, build_pycuda
from pins import Pin, merge, normalize, sha256
from sbom import OURS, make_sbom

README = """\
edgelung {version}, for Linux on x86-64 and {pythons}. Research use only.

Install, without a network (PYTHON stands for {pythons}):

    sha256sum -c SHA256SUMS
    PYTHON -m venv edgelung
    edgelung/bin/pip install --no-index --require-hashes --find-links wheels -r requirements.txt
    edgelung/bin/edgelung doctor --selftest

The C library must be glibc {glibc} or later (ldd --version).
The sums show that the folder is whole. They do not show who made it: compare the SHA-256 of
SHA256SUMS with the one that you got by another way. edgelung-*.cdx.json list what is installed
(CycloneDX). pip must be of version 22.3 or later.
"""
TENSORRT = """
NVIDIA's TensorRT wheels go into wheels/; after the install above, run (or tensorrt-rtx):

    edgelung/bin/pip install --no-index --find-links wheels tensorrt

No compiler and no CUDA toolkit is needed. The driver must support CUDA {cuda}.
"""

# The oldest C library that every wheel supports; pip would take what only this machine's can load.
GLIBC = (2, 28)
GLIBC_GPU = (2, 34)  # of the compiler that builds pycuda here


def main() -> None:
    """Make the folder that the command line describes."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    parser.add_argument("--wheel", type=Path, required=True, help="the wheel of edgelung")
    parser.add_argument("--pythons", nargs="+", required=True, help="an interpreter per version")
    parser.add_argument("--extras", nargs="*", default=[], help="names of locks besides base")
    given = parser.parse_args()
    if given.out.exists():
        if not (given.out / "wheels").is_dir():
            parser.error(f"{given.out} is there, and is no wheelhouse")
        shutil.rmtree(given.out)
    make_wheelhouse(given.out, given.wheel, given.pythons, ["base", *given.extras])


def make_wheelhouse(out: Path, wheel: Path, pythons: Sequence[str], locks: Sequence[str]) -> None:
    """Download or build every wheel, then write the requirements, SBOMs, sums and the README.

    Raises:
        ValueError: if a file's hash is not in the lock, or a package has no wheel.
        subprocess.CalledProcessError: if pip or a compiler fails.
    """
    wheels = out / "wheels"
    wheels.mkdir(parents=True)
    shutil.copy(wheel, wheels)
    pins = merge(locks)
    sources = [pin for pin in pins if pin.name in SOURCE_ONLY]
    cuda = None
    for python in pythons:
        download(python, [pin for pin in pins if pin not in sources], wheels)
        if sources:
            cuda = build_pycuda(python, out.with_name("pycuda"), wheels)
    built = {pin.name for pin in sources}
    version = wheel_key(wheel)[1]
    rows = [Pin(OURS, version, "", frozenset({sha256(wheel)})), *restrict(pins, wheels, built)]
    (out / "requirements.txt").write_text("".join(map(str, rows)), encoding="utf-8")
    versions = [install_and_list(python, out) for python in pythons]
    glibc = ".".join(map(str, GLIBC_GPU if sources else GLIBC))
    names = " or ".join(f"Python {number}" for number in versions)
    text = README.format(version=version, pythons=names, glibc=glibc)
    text += TENSORRT.format(cuda=cuda) if cuda else ""
    (out / "README.txt").write_text(text, encoding="utf-8")
    write_sums(out)


def download(python: str, pins: Sequence[Pin], wheels: Path) -> None:
    """Download the wheels that one Python takes; pip refuses a file whose hash is not pinned."""
    with tempfile.TemporaryDirectory() as temporary:
        requirements = Path(temporary) / "requirements.txt"
        requirements.write_text("".join(map(str, pins)), encoding="utf-8")
        options = ["--require-hashes", "--only-binary", ":all:", "--no-deps", "-d", str(wheels)]
        options += [f"--platform={platform}" for platform in platforms()]
        pip = [python, "-m", "pip", "download", "-q", *options, "-r", str(requirements)]
        subprocess.run(pip, check=True)


def platforms() -> list[str]:
    """Return the platform tags of wheels that glibc of version `GLIBC` can load, newest first."""
    tags = [f"manylinux_2_{minor}_x86_64" for minor in range(GLIBC[1], 4, -1)]
    return [*tags, "manylinux2014_x86_64", "manylinux2010_x86_64", "manylinux1_x86_64"]


def restrict(pins: Sequence[Pin], wheels: Path, built: set[str]) -> list[Pin]:
    """Return the pins that have a wheel in the folder, with the hashes of those files alone.

    The hash of a wheel that was downloaded must be in the lock; `built` names those made here.
    """
    present: dict[tuple[str, str], set[str]] = defaultdict(set)
    for path in wheels.glob("*.whl"):
        present[wheel_key(path)].add(sha256(path))
    kept = []
    for pin in pins:
        hashes = present.get((normalize(pin.name), pin.version))
        if not hashes:
            continue  # for another platform or Python
        if pin.name not in built and not hashes <= pin.hashes:
            raise ValueError(f"{pin.name} {pin.version}: the folder's file is not in the lock")
        kept.append(replace(pin, hashes=frozenset(hashes)))
    return kept


def install_and_list(python: str, out: Path) -> str:
    """Install the folder as a workstation would, and write the SBOM; returns Python's version."""
    command = [python, "-c", "import sys; print('%d.%d' % sys.version_info[:2])"]
    version = subprocess.check_output(command, text=True).strip()
    tag = f"cp{version.replace('.', '')}"
    with tempfile.TemporaryDirectory() as temporary:
        environment = Path(temporary) / "venv"
        subprocess.run([python, "-m", "venv", "--without-pip", environment], check=True)
        install = ["--no-index", "--require-hashes", "--find-links", str(out / "wheels")]
        pip = [sys.executable, "-m", "pip", "--python", str(environment), "install", "-q"]
        # Nothing but the folder counts.
        alone = {name: value for name, value in os.environ.items() if name[:4] != "PIP_"}
        alone["PIP_CONFIG_FILE"] = os.devnull
        command = [*pip, "--no-compile", *install, "-r", str(out / "requirements.txt")]
        subprocess.run(command, env=alone, check=True)
        found = (out / "wheels").glob("*.whl")
        wheels = {wheel_key(path): path for path in found if fits(path, tag)}
        sbom = make_sbom(environment, wheels)
    name = f"{OURS}-python{version}.cdx.json"
    (out / name).write_text(sbom, encoding="utf-8")
    return version


def wheel_key(path: Path) -> tuple[str, str]:
    """Return the normalized name and the version in a wheel's file name."""
    name, version, *_ = path.name.split("-")
    return normalize(name), version


def fits(path: Path, tag: str) -> bool:
    """Return False for a wheel that was built for another Python alone, such as cp312."""
    python, abi = path.stem.split("-")[-3:-1]
    return abi == "abi3" or not python.startswith("cp") or tag in python.split(".")


def write_sums(out: Path) -> None:
    """Write SHA256SUMS of all files, in the form of sha256sum."""
    paths = sorted(path for path in out.rglob("*") if path.is_file())
    lines = [f"{sha256(path)}  {path.relative_to(out).as_posix()}\n" for path in paths]
    (out / "SHA256SUMS").write_text("".join(lines), encoding="utf-8")


if __name__ == "__main__":
    main()
