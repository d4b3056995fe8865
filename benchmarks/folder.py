"""The folder run against what people would write themselves, and against its own floors.

One run, the same tiles, the same cores, the same model: (a) Pillow, torchvision's transforms and
PyTorch FP32 behind a DataLoader, as timm's inference script does it; (b), (c) Pillow and ONNX
Runtime FP32, INT8; (d) `edgelung infer` FP32, INT8; (e) decoding alone, the engine alone, and
1/(decode + engine); (f) `edgelung infer` with the early exit. With --run-160 and --bundle-160, a
student of 160 px, also (a) of that student, (g) its INT8 and (h) its early exit. Then how (d) grows
with the number of files and of cores.

    python benchmarks/folder.py BUNDLE RUN TILES768 TILES224 [--run-160 RUN --bundle-160 BUNDLE]
        --files-768 2000 --files-224 4000 --json benchmarks/results/folder.json

BUNDLE is RUN's export. Which tiles leave early depends on what they show, so TILES768 and TILES224
should hold tiles of the kind that the model was trained for. Every contestant runs in a process of
its own; its clock starts with its first tile and stops with its last row, once the model is loaded
and warm. --shared marks figures from a machine that had other work to do: then only compare within
one run.
"""

import argparse
import itertools
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import machine
from folder_contestants import (
    CONTESTANTS,
    EDGELUNG,
    FLOORS,
    OF_160,
    Floor,
    contestants,
    edgelung,
)
from rich.console import Console
from rich.table import Table

console = Console(highlight=False, width=None if sys.stdout.isatty() else 110)


def main() -> None:
    """Measure, print, write."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("bundle", type=Path)
    parser.add_argument("run", type=Path, help="the run folder that the bundle was exported from")
    parser.add_argument("tiles768", type=Path)
    parser.add_argument("tiles224", type=Path)
    parser.add_argument("--run-160", type=Path, help="the run of a student of 160 px")
    parser.add_argument("--bundle-160", type=Path, help="what was exported from it")
    parser.add_argument("--files-768", type=int, default=2000)
    parser.add_argument("--files-224", type=int, default=4000)
    parser.add_argument("--memory-files", type=int, default=0, help="also this many hard links")
    parser.add_argument("--repeats", type=int, default=3, help="the best of so many counts")
    parser.add_argument("--shared", action="store_true", help="the machine had other work to do")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--work", nargs=3, help=argparse.SUPPRESS)  # contestant, folder, files
    options = parser.parse_args()
    if bool(options.run_160) != bool(options.bundle_160):
        parser.error("--run-160 and --bundle-160 belong together")
    if options.work:
        name, folder, count = options.work
        print(json.dumps((CONTESTANTS | OF_160)[name](options, Path(folder), int(count))))
        return

    with tempfile.TemporaryDirectory(dir=options.json.parent if options.json else None) as work:
        result = measure(options, Path(work))
    if options.json:
        options.json.write_text(json.dumps(result, indent=2) + "\n")
    show(result)


def measure(options: argparse.Namespace, work: Path) -> dict[str, Any]:
    """All figures."""
    result: dict[str, Any] = {
        "shared_machine": options.shared,
        "repeats": options.repeats,
        "machine": machine.describe(),
        "sets": {},
    }
    for name, source, count in (
        ("768", options.tiles768, options.files_768),
        ("224", options.tiles224, options.files_224),
    ):
        folder = work / name
        spread(source, folder, count)
        found: dict[str, list[float]] = {contestant: [] for contestant in contestants(options)}
        # Round by round, so that a slow minute of the machine does not fall on one contestant.
        for _, contestant in itertools.product(range(options.repeats), found):
            seconds = contend(contestant, folder, count)
            found[contestant].append(seconds)
            console.print(f"{name} px  {contestant:24s} {count / seconds:8.1f} tiles/s")
        result["sets"][name] = summarize(found, count)
    result["growth_with_files"] = growth(options, work)
    result["growth_with_cores"] = cores(options, work)
    if options.memory_files:
        result["memory"] = memory(options, work)
    return result


def summarize(rounds: dict[str, list[float]], count: int) -> dict[str, Any]:
    """Rates and ratios of the best rounds, and the ratios of every round: how far they scatter."""
    seconds = {name: min(taken) for name, taken in rounds.items()}
    ours = {kind: seconds[f"d edgelung {kind}"] for kind in ("fp32", "int8")}
    return {
        "files": count,
        "tiles_per_second": {name: round(count / s, 1) for name, s in seconds.items()},
        "int8_times_c": round(seconds["c pillow+ort int8"] / ours["int8"], 2),
        "fp32_times_b": round(seconds["b pillow+ort fp32"] / ours["fp32"], 2),
        "rounds_int8_times_c": [
            round(theirs / own, 2)
            for theirs, own in zip(
                rounds["c pillow+ort int8"], rounds["d edgelung int8"], strict=True
            )
        ],
        "ways": {
            name: way(rounds, seconds, count, name, floor)
            for name, floor in FLOORS.items()
            if name in rounds
        },
    }


def way(
    rounds: dict[str, list[float]], seconds: dict[str, float], count: int, name: str, floor: Floor
) -> dict[str, Any]:
    """One way of running edgelung: against (a), and against its floor."""
    # Every core decodes and predicts: what one tile costs in both adds up.
    least = seconds[floor.decode] + seconds[floor.engine]
    a = "a timm-style fp32"
    same = f"{a} 160"  # the way of others with the same student
    return {
        "times_a": round(seconds[a] / seconds[name], 2),
        "rounds_times_a": [
            round(theirs / own, 2) for theirs, own in zip(rounds[a], rounds[name], strict=True)
        ],
        **({"times_a_160": round(seconds[same] / seconds[name], 2)} if "160" in name else {}),
        "floor_tiles_per_second": round(count / least, 1),
        "wall_over_floor": round(seconds[name] / least, 3),
    }


def spread(source: Path, folder: Path, count: int) -> None:
    """`count` files made from those of `source`, in turn, in the class folders they had."""
    tiles = sorted(path for path in source.rglob("*") if path.suffix in (".jpeg", ".jpg", ".png"))
    tiles = tiles[:: max(1, len(tiles) // count)]  # of all classes
    for number in range(count):
        path = tiles[number % len(tiles)]
        target = folder / path.parent.name / f"{number:06d}{path.suffix}"
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_bytes(path.read_bytes())


def contend(name: str, folder: Path, count: int) -> float:
    """Seconds of one contestant, in a process of its own."""
    command = [sys.executable, __file__, *sys.argv[1:], "--work", name, str(folder), str(count)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{name} failed:\n{done.stderr}")
    return float(json.loads(done.stdout.splitlines()[-1]))


def growth(options: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """(d) INT8 on a tenth, a third and all of the 768 px files; with start, to the last row."""
    found = []
    for share in (0.1, 0.33, 1.0):
        count = max(1, round(options.files_768 * share))
        folder = work / f"growth-{count}"
        spread(options.tiles768, folder, count)
        start = time.perf_counter()
        seconds = edgelung(options, folder, count, "int8")
        whole = time.perf_counter() - start
        found.append({"files": count, "seconds": round(seconds, 3), "with_start": round(whole, 3)})
    return found


def cores(options: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """(d) INT8 on the 768 px files with one core, two, four … of this machine."""
    mine = sorted(os.sched_getaffinity(0))
    found = []
    count = 1
    while count <= len(mine):
        os.sched_setaffinity(0, mine[:count])  # the command inherits it
        seconds = edgelung(options, work / "768", options.files_768, "int8")
        rate = round(options.files_768 / seconds, 1)
        found.append({"cores": count, "tiles_per_second": rate})
        count *= 2
    os.sched_setaffinity(0, mine)
    return found


def memory(options: argparse.Namespace, work: Path) -> list[dict[str, Any]]:
    """Peak resident memory of (d) INT8 over 2,000 hard links and over many, in one folder."""
    found = []
    tiles = sorted((work / "224").rglob("*.*"))
    for count in (2000, options.memory_files):
        folder = work / f"links-{count}"
        folder.mkdir()
        for number in range(count):
            os.link(tiles[number % len(tiles)], folder / f"{number:07d}.jpeg")
        found.append({"files": count, "peak_mb": round(peak_memory(options, folder, count), 1)})
    return found


def peak_memory(options: argparse.Namespace, folder: Path, count: int) -> float:
    """MB, measured by a process that waits for this command alone."""
    code = (
        "import resource, subprocess, sys; subprocess.run(sys.argv[1:], check=True, stdout=2);"
        "print(resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024)"
    )
    out = folder.parent / "links.csv"
    words = ["infer", folder, "--model", options.bundle, "--precision", "int8", "--out", out]
    done = subprocess.run(
        [sys.executable, "-c", code, str(EDGELUNG), *map(str, words)],
        capture_output=True,
        text=True,
        check=True,
    )
    with out.open(newline="") as file:
        assert sum(1 for _ in file) == count + 1
    return float(done.stdout)


def show(result: dict[str, Any]) -> None:
    """The table."""
    sets = result["sets"]
    machine_note = (
        " on a SHARED machine: compare within this run only" if result["shared_machine"] else ""
    )
    table = Table("tiles/s", *(f"{n} px" for n in sets), title=f"folder run{machine_note}")
    first = next(iter(sets.values()))
    for name in first["tiles_per_second"]:
        table.add_row(name, *(str(s["tiles_per_second"][name]) for s in sets.values()))
    for name in first["ways"]:
        for key in ("floor_tiles_per_second", "times_a", "wall_over_floor"):
            table.add_row(f"{name}: {key}", *(str(s["ways"][name][key]) for s in sets.values()))
    for key in ("int8_times_c", "fp32_times_b"):
        table.add_row(key, *(str(s[key]) for s in sets.values()))
    console.print(table)
    for key in ("growth_with_files", "growth_with_cores", "memory"):
        if key in result:
            console.print(f"{key}: {result[key]}", markup=False)


if __name__ == "__main__":
    main()
