"""Build the wheel of edgelung: from tracked files, the same bytes each time, tagged for manylinux.

python release/own_wheel.py OUT

Needs a clone and the tools of release/locks/release.txt. Without nvcc the wheel holds no CUDA
kernels, and says so. The compilers are part of the recipe: other versions of them give other bytes.
"""

import argparse
import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
CPU_KERNEL = "_resize.abi3.so"


def main() -> None:
    """Build the wheel into the folder that the command line names."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path)
    out: Path = parser.parse_args().out
    out.mkdir(parents=True, exist_ok=True)
    for old in out.glob("edgelung-*.whl"):
        old.unlink()
    print(build(out))


def build(out: Path, root: Path = ROOT) -> Path:
    """Build the wheel from the files that git knows in `root`; returns its path in `out`.

    Raises:
        RuntimeError: if the CPU kernel was not compiled, which pip alone would pass over.
        subprocess.CalledProcessError: if a tool fails.
    """
    os.umask(0o022)  # the modes of files are part of the wheel
    environment = os.environ | {"SOURCE_DATE_EPOCH": commit_time(root), "LC_ALL": "C"}
    with tempfile.TemporaryDirectory() as temporary:
        source, wheels = Path(temporary) / "source", Path(temporary) / "wheels"
        copy_tracked(root, source)
        build_options = ["--no-deps", "--no-build-isolation", "--no-cache-dir", "-w", str(wheels)]
        pip = [sys.executable, "-m", "pip", "wheel", "-q", *build_options, "."]
        subprocess.run(pip, cwd=source, env=environment, check=True)
        (wheel,) = wheels.iterdir()
        names = subprocess.check_output([sys.executable, "-m", "zipfile", "-l", wheel], text=True)
        if CPU_KERNEL not in names:
            raise RuntimeError("the wheel has no CPU kernel: install g++ and Python's headers")
        if "kernels.fatbin" not in names:
            print("no nvcc found: the wheel has no CUDA kernels", file=sys.stderr)
        tag = ["tags", "--remove", "--platform-tag", platform_tag(wheel), str(wheel)]
        subprocess.run([sys.executable, "-m", "wheel", *tag], env=environment, check=True)
        (wheel,) = wheels.iterdir()
        return Path(shutil.copy(wheel, out))


def commit_time(root: Path) -> str:
    """Return the last commit's time in Unix seconds: the date of every file in the wheel."""
    command = ["git", "log", "-1", "--format=%ct"]
    given = os.environ.get("SOURCE_DATE_EPOCH")
    return given or subprocess.check_output(command, cwd=root, text=True).strip()


def copy_tracked(root: Path, target: Path) -> None:
    """Copy the files that git tracks; nothing left over from an earlier build comes along."""
    listed = subprocess.check_output(["git", "ls-files", "-z"], cwd=root, text=True)
    for name in filter(None, listed.split("\0")):
        path = target / name
        path.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(root / name, path)


def platform_tag(wheel: Path) -> str:
    """Return the oldest manylinux platform that has the symbols that the wheel needs."""
    command = [sys.executable, "-m", "auditwheel", "show", "--json", str(wheel)]
    return str(json.loads(subprocess.check_output(command, text=True))["overall_tag"])


if __name__ == "__main__":
    main()
