"""Does the wheelhouse install and run with the network cut off? Sizes and seconds.

python benchmarks/offline_install.py FOLDER PYTHON... [--out OUT.json]

Each Python gets an empty environment. Every command runs in a network namespace of its own that has
the loopback interface alone (`unshare`, util-linux), and reads no configuration of pip.
"""

import argparse
import csv
import json
import os
import re
import resource
import subprocess
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import machine

CUT_OFF = ("unshare", "--map-root-user", "--net")


def main() -> None:
    """Measure every Python and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("pythons", nargs="+")
    default = Path(__file__).parent / "results" / "wheelhouse.json"
    parser.add_argument("--out", type=Path, default=default)
    given = parser.parse_args()
    result = {
        "wheelhouse": describe(given.folder),
        "installs": [install(given.folder.resolve(), python) for python in given.pythons],
        "machine": machine.describe(),
    }
    given.out.write_text(json.dumps(result, indent=2) + "\n")
    print(json.dumps(result, indent=2))


def describe(folder: Path) -> dict[str, Any]:
    """Return the sizes of the folder and of its largest wheels."""
    wheels = sorted(folder.glob("wheels/*.whl"), key=lambda path: -path.stat().st_size)
    return {
        "wheels": len(wheels),
        "bytes": _size(folder),
        "largest": {path.name: path.stat().st_size for path in wheels[:6]},
        "ours": {path.name: path.stat().st_size for path in wheels if path.name[:9] == "edgelung-"},
        "built_here": {
            path.name: path.stat().st_size for path in wheels if path.name[:7] == "pycuda-"
        },
    }


def install(folder: Path, python: str) -> dict[str, Any]:
    """Install into an empty environment and run the starter, all of it without a network.

    Raises:
        subprocess.CalledProcessError: if a step fails.
        RuntimeError: if there is a network, or a row is not `ok`.
    """
    with tempfile.TemporaryDirectory() as temporary:
        home = Path(temporary)
        interfaces = run(["cat", "/proc/net/dev"], home).splitlines()[2:]
        if [line.split(":")[0].strip() for line in interfaces] != ["lo"]:
            raise RuntimeError("the network is not cut off")
        run(["sha256sum", "--quiet", "-c", "SHA256SUMS"], folder)
        run([python, "-m", "venv", "edgelung"], home)
        place = home / "edgelung"
        pip = [str(place / "bin" / "pip"), "install", "--no-index", "--require-hashes"]
        requirements = ["--find-links", str(folder / "wheels"), "-r"]
        start, cpu = time.perf_counter(), cpu_seconds()
        run([*pip, *requirements, str(folder / "requirements.txt")], home)
        seconds, cpu = time.perf_counter() - start, cpu_seconds() - cpu
        program = str(place / "bin" / "edgelung")
        (tiles,) = place.glob("lib/python3*/site-packages/edgelung/starter/golden")
        start, cpu_before = time.perf_counter(), cpu_seconds()
        run([program, "infer", str(tiles), "--out", "rows.csv"], home)
        first, first_cpu = time.perf_counter() - start, cpu_seconds() - cpu_before
        with (home / "rows.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        if not rows or any(row["status"] != "ok" for row in rows):
            raise RuntimeError(f"not every tile was predicted: {rows}")
        selftest = run([program, "doctor", "--selftest"], home)
        return {
            "python": run([str(place / "bin" / "python"), "-V"], home).split()[1],
            "install_seconds": round(seconds, 1),
            "install_cpu_seconds": round(cpu, 1),  # the same on a machine that is busy
            "installed_bytes": _size(place),
            "first_infer_seconds": round(first, 1),
            "first_infer_cpu_seconds": round(first_cpu, 1),
            "rows_ok": len(rows),
            "selftest_ok": re.findall(r"│ (\S+) +│ (\S+) +│ ok ", selftest),
        }


def run(command: Sequence[str], folder: Path) -> str:
    """Run a command without a network; returns what it printed."""
    environment = {
        "PATH": os.environ["PATH"],
        "HOME": str(folder),
        "PIP_CONFIG_FILE": os.devnull,
        "NO_COLOR": "1",
    }
    done = subprocess.run(
        [*CUT_OFF, *command],
        cwd=folder,
        env=environment,
        check=True,
        capture_output=True,
        text=True,
    )
    return done.stdout


def cpu_seconds() -> float:
    """Return the CPU time of all commands that have ended."""
    used = resource.getrusage(resource.RUSAGE_CHILDREN)
    return used.ru_utime + used.ru_stime


def _size(folder: Path) -> int:
    return sum(path.lstat().st_size for path in folder.rglob("*") if path.is_file())


if __name__ == "__main__":
    main()
