"""Slides by edgelung, WSInfer and TIAToolbox: one core, one thread, the same network and tiles.

    python benchmarks/slides.py LC25000_768 --real CMU-1-Small-Region.svs --rounds 3

The network is the starter: its FP32 weights as TorchScript for the others, its INT8 variant in
OpenVINO for edgelung. The slides are made from pictures of 768 px (`slide_file.py`): one for tiles
of 224 px, a larger one for tiles of 768 px, so that start-up is paid once for thousands of tiles.
All programs get the tiles of edgelung's grid. Environments are made once (`slide_environments.py`).
Prints a table and writes JSON.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
from rich.console import Console
from rich.table import Table
from slide_environments import make_environment, versions
from slide_model import write_model

from edgelung.artifacts.slide_tiles import read_tiles

HERE = Path(__file__).parent
MPP = 0.5
PROGRAMS = ("edgelung", "wsinfer openslide", "wsinfer tiffslide", "tiatoolbox")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
OFFLINE = {"HF_HUB_OFFLINE": "1"}
NOTES = [
    "All programs are bound to one core and use one thread.",
    "All get the tiles that edgelung reads; WSInfer as patch files, TIAToolbox as a mask.",
    "edgelung also finds the scale, makes the overview, and writes heat maps, GeoJSON and a page.",
    "WSInfer's call of the model registry, which needs the network, is replaced.",
    "TIAToolbox gets a model that normalises whole batches, which is faster than tile by tile.",
]


@dataclass(frozen=True)
class Case:
    """A slide and the tiles to predict: `side` pixels of level 0; `half`: its left half only."""

    name: str
    slide: Path
    side: int
    mpp: float
    half: bool
    rounds: int

    @property
    def tile_um(self) -> float:
        """Side of a tile in micrometres."""
        return self.side * self.mpp


def main() -> None:
    """Measure, print, write."""
    options = parse_options()
    work = Path(tempfile.mkdtemp(dir=options.work))
    try:
        cases = make_cases(options, work)
        pythons = {
            name: make_environment(name, options.environments, options.torch_from)
            for name in ("wsinfer", "tiatoolbox")
        }
        results = {case.name: measure(case, pythons, options, work) for case in cases}
    finally:
        shutil.rmtree(work, ignore_errors=True)
    content = {
        "notes": NOTES,
        "results": results,
        "versions": {name: versions(python) for name, python in pythons.items()},
        "machine": machine.describe(),
    }
    options.json.write_text(json.dumps(content, indent=2) + "\n")
    Console().print(table(results))


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tiles", type=Path, help="folder of pictures of 768 px")
    parser.add_argument("--real", type=Path, help="a real slide, also measured")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--small", type=int, nargs=2, default=(24_000, 20_000))
    parser.add_argument("--large", type=int, nargs=2, default=(72_000, 68_000))
    parser.add_argument("--core", type=int, default=0)
    parser.add_argument("--environments", type=Path, default=HERE.parent / "build" / "slides")
    parser.add_argument("--torch-from", help="a Python whose torch is linked, not installed anew")
    parser.add_argument("--work", type=Path, help="where slides are made; about 1 GB")
    parser.add_argument("--programs", nargs="+", choices=PROGRAMS, default=PROGRAMS)
    parser.add_argument("--json", type=Path, default=HERE / "results" / "slides.json")
    return parser.parse_args()


def make_cases(options: argparse.Namespace, work: Path) -> list[Case]:
    """The slides, made where they are not there yet."""
    cases = []
    for side, size in ((224, options.small), (768, options.large)):
        slide = work / f"slide-{side}" / "synthetic.svs"
        slide.parent.mkdir()
        words = ["--width", str(size[0]), "--height", str(size[1])]
        subprocess.run(
            [sys.executable, HERE / "slide_file.py", options.tiles, slide, *words], check=True
        )
        rounds = options.rounds if side == 224 else 1
        cases.append(Case(f"{side} px", slide, side, MPP, half=True, rounds=rounds))
    if options.real:
        place = work / "real" / options.real.name
        place.parent.mkdir()
        shutil.copy(options.real, place)
        cases.append(Case(options.real.stem, place, 224, 0.499, half=False, rounds=options.rounds))
    return cases


def measure(
    case: Case, pythons: dict[str, Path], options: argparse.Namespace, work: Path
) -> dict[str, Any]:
    """All programs on a slide, in turns."""
    folder = work / f"case-{case.side}-{case.slide.stem}"
    folder.mkdir()
    write_model(folder / "model", case.tile_um)
    outline = write_outline(folder / "outline.geojson", case)
    mask = ["--mask", str(outline)] if case.half else []
    own = [str(Path(sys.executable).with_name("edgelung")), "slide", str(case.slide), *mask]
    own += ["--tile-um", str(case.tile_um), "--threads", "1", "--engine", "openvino"]
    own += ["--precision", "int8"]
    run([*own, "--out", str(folder / "first")], options.core)  # fills the cache
    tiles = read_tiles(folder / "first" / case.slide.stem / "tiles.parquet")
    summary = json.loads((folder / "first" / case.slide.stem / "slide.json").read_text())
    coordinates = folder / "coordinates.json"
    corners = [list(one) for one in zip(tiles.x.tolist(), tiles.y.tolist(), strict=True)]
    given = {"corners": corners, "side": tiles.side}
    coordinates.write_text(
        json.dumps(given | {"width": summary["width"], "height": summary["height"]})
    )
    peer = ["--model", str(folder / "model"), "--coordinates", str(coordinates)]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in options.programs}
    for number in range(case.rounds):
        for name in options.programs:
            out = folder / f"{name.replace(' ', '-')}-{number}"
            if name == "edgelung":
                command = [*own, "--out", str(out)]
            else:
                program, _, reader = name.partition(" ")
                place = case.slide.parent if program == "wsinfer" else case.slide
                command = [str(pythons[program]), str(HERE / "slide_peers.py"), program]
                command += [str(place), str(out), *peer, *(["--reader", reader] if reader else [])]
            runs[name].append(run(command, options.core))
            shutil.rmtree(out, ignore_errors=True)
    rows = {name: summarize(values, len(tiles)) for name, values in runs.items()}
    for row in rows.values():
        row["times_edgelung"] = round(row["seconds"] / rows["edgelung"]["seconds"], 2)
    reading = subprocess.run(
        [
            *("taskset", "-c", str(options.core), sys.executable, str(HERE / "slide_reading.py")),
            *(str(case.slide), "--tile-um", str(case.tile_um), *mask),
        ],
        check=True,
        capture_output=True,
        text=True,
    )
    seconds = json.loads(reading.stdout)["cpu_seconds"]
    return {
        "tiles": len(tiles),
        "megabytes": round(case.slide.stat().st_size / 1e6, 1),
        "rounds": case.rounds,
        "programs": rows,
        "reading_cpu_seconds": seconds,
        "reading_share": round(seconds["tiles"] / rows["edgelung"]["cpu_seconds"], 4),
    }


def write_outline(path: Path, case: Case) -> Path:
    """The left half of the slide, as GeoJSON."""
    import openslide

    with openslide.OpenSlide(case.slide) as slide:
        width, height = slide.dimensions
    right = width / 2 if case.half else width
    ring = [[0, 0], [right, 0], [right, height], [0, height], [0, 0]]
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    return path


def run(command: Sequence[str], core: int) -> dict[str, float]:
    """Wall and CPU seconds and the peak memory of a command on one core."""
    start = time.perf_counter()
    process = subprocess.Popen(
        ["taskset", "-c", str(core), *command],
        env=os.environ | ONE_THREAD | OFFLINE,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
    )
    assert process.stderr is not None
    errors = process.stderr.read()
    _, status, used = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{command[0]} ended with {process.returncode}: {errors.decode()[-2000:]}")
    return {
        "seconds": time.perf_counter() - start,
        "cpu_seconds": used.ru_utime + used.ru_stime,
        "megabytes": used.ru_maxrss / 1024,
    }


def summarize(values: Sequence[dict[str, float]], tiles: int) -> dict[str, float]:
    """Medians of some runs, and their spread."""
    seconds = [value["seconds"] for value in values]
    median = statistics.median(seconds)
    return {
        "seconds": round(median, 2),
        "least": round(min(seconds), 2),
        "most": round(max(seconds), 2),
        "cpu_seconds": round(statistics.median(value["cpu_seconds"] for value in values), 2),
        "megabytes": round(max(value["megabytes"] for value in values)),
        "tiles_per_second": round(tiles / median, 1),
        "slides_per_hour": round(3600 / median, 1),
    }


def table(results: dict[str, Any]) -> Table:
    """What is printed."""
    printed = Table("tiles", "program", "s", "CPU s", "tiles/s", "× edgelung", "MB")
    for name, case in results.items():
        for program, row in case["programs"].items():
            printed.add_row(
                f"{case['tiles']} of {name}",
                program,
                *(f"{row[key]:g}" for key in ("seconds", "cpu_seconds", "tiles_per_second")),
                *(f"{row['times_edgelung']:.2f}", f"{row['megabytes']}"),
            )
    return printed


if __name__ == "__main__":
    main()
