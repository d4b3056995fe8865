"""Slides by edgelung, WSInfer and TIAToolbox: one core, one thread, the same network and tiles.

    python benchmarks/slides.py LC25000_768 --real CMU-1-Small-Region.svs --rounds 3

The network is the starter: its FP32 weights as TorchScript for the others, its INT8 in OpenVINO for
edgelung, without and with the early exit. The slides are made from pictures of 768 px
(`slide_file.py`): one for tiles of 224 px, a larger one for tiles of 768 px, so that start-up is
paid once for thousands of tiles. All programs get the tiles of edgelung's grid. Environments are
made once (`slide_environments.py`).
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
from collections.abc import Sequence
from contextlib import closing
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
from rich.console import Console
from rich.table import Table
from slide_environments import make_environment, versions

from edgelung.artifacts.bundle import open_bundle, starter_bundle
from edgelung.artifacts.slide_tiles import SlideTiles, read_tiles
from edgelung.slides.open import open_slides
from edgelung.slides.scale import settle_scale

HERE = Path(__file__).parent
MPP = 0.5
OWN = {"edgelung": "int8", "edgelung early exit": "int8-early-exit"}  # program: precision
PROGRAMS = (*OWN, "wsinfer openslide", "wsinfer tiffslide", "tiatoolbox")
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
OFFLINE = {"HF_HUB_OFFLINE": "1"}
# A program inherits the peak memory of the process that starts it, so a small one does.
MEASURE = """
import json, os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
start = time.perf_counter()
child = os.posix_spawn(sys.argv[3], sys.argv[3:], os.environ)
_, status, used = os.wait4(child, 0)
found = {"seconds": time.perf_counter() - start, "cpu_seconds": used.ru_utime + used.ru_stime,
         "megabytes": used.ru_maxrss / 1024, "exit": os.waitstatus_to_exitcode(status)}
open(sys.argv[2], "w").write(json.dumps(found))
"""
NOTES = [
    "All programs are bound to one core and use one thread.",
    "All get the tiles that edgelung reads; WSInfer as patch files, TIAToolbox as a mask.",
    "edgelung also finds the scale, makes the overview, and writes heat maps, GeoJSON and a page.",
    "WSInfer's call of the model registry, which needs the network, is replaced.",
    "WSInfer has batches of 32, and one process that reads, as by default on one core; its peak "
    "memory is that of the larger of the two.",
    "TIAToolbox gets a model that normalises whole batches, which is faster than tile by tile; "
    "batches of 32.",
    "The large slides repeat 50 soft pictures, JPEG quality 80, 4:2:0. A scanner's tiles have "
    "about twice as many bytes.",
    "18 of these pictures are colon, which never leaves the model early. Tiles of 224 px show them "
    "larger than the training tiles did.",
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
    load = os.getloadavg()[0]  # before this benchmark adds to it
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
        "bundle_sha256": open_bundle(starter_bundle()).sha256,
        "load_before": round(load, 2),
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
        mpp = read_mpp(place)
        cases.append(Case(options.real.stem, place, 224, mpp, half=False, rounds=options.rounds))
    return cases


def read_mpp(slide: Path) -> float:
    """Micrometres per pixel, as the file says."""
    (opened,) = open_slides(slide)
    with closing(opened):
        return settle_scale(opened.scale).mpp


def measure(
    case: Case, pythons: dict[str, Path], options: argparse.Namespace, work: Path
) -> dict[str, Any]:
    """All programs on a slide, in turns."""
    folder = work / f"case-{case.side}-{case.slide.stem}"
    folder.mkdir()
    model = [HERE / "slide_model.py", folder / "model", "--tile-um", case.tile_um]
    subprocess.run([sys.executable, *map(str, model)], check=True)
    outline = write_outline(folder / "outline.geojson", case)
    mask = ["--mask", str(outline)]
    own = [str(Path(sys.executable).with_name("edgelung")), "slide", str(case.slide), *mask]
    own += ["--tile-um", str(case.tile_um), "--threads", "1", "--engine", "openvino"]
    for name, precision in OWN.items():  # fills the cache
        words = ["--precision", precision, "--out", str(folder / f"first-{name}")]
        run([*own, *words], options.core, folder)
    first = folder / "first-edgelung" / case.slide.stem
    tiles = read_tiles(first / "tiles.parquet")
    summary = json.loads((first / "slide.json").read_text())
    coordinates = folder / "coordinates.json"
    corners = [list(one) for one in zip(tiles.x.tolist(), tiles.y.tolist(), strict=True)]
    given = {"corners": corners, "side": tiles.side}
    coordinates.write_text(
        json.dumps(given | {"width": summary["width"], "height": summary["height"]})
    )
    peer = ["--model", str(folder / "model"), "--coordinates", str(coordinates)]
    runs: dict[str, list[dict[str, float]]] = {name: [] for name in options.programs}
    agreement: dict[str, dict[str, float]] = {}
    for number in range(case.rounds):
        for name in options.programs:
            out = folder / f"{name.replace(' ', '-')}-{number}"
            if name in OWN:
                command = [*own, "--precision", OWN[name], "--out", str(out)]
            else:
                program, _, reader = name.partition(" ")
                place = case.slide.parent if program == "wsinfer" else case.slide
                command = [str(pythons[program]), str(HERE / "slide_peers.py"), program]
                command += [str(place), str(out), *peer, *(["--reader", reader] if reader else [])]
            print(f"{case.name}: {name}, round {number + 1} of {case.rounds}", flush=True)
            runs[name].append(run(command, options.core, folder))
            agreement[name] = compare(tiles, read_probabilities(name, out, pythons, tiles.side))
            shutil.rmtree(out, ignore_errors=True)
    rows = {name: summarize(values, len(tiles)) | agreement[name] for name, values in runs.items()}
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
        "left_early": left_early(folder / "first-edgelung early exit" / case.slide.stem),
        "megabytes": round(case.slide.stat().st_size / 1e6, 1),
        "rounds": case.rounds,
        "model_check": json.loads((folder / "model" / "check.json").read_text()),
        "programs": rows,
        "reading_cpu_seconds": seconds,
        "reading_share": round(seconds["tiles"] / rows["edgelung"]["cpu_seconds"], 4),
    }


def left_early(folder: Path) -> float:
    """Share of the tiles that left the model at its early exit."""
    stages = read_tiles(folder / "tiles.parquet").stage
    return round(float((stages == 1).mean()), 4)


def write_outline(path: Path, case: Case) -> Path:
    """The left half of the slide or all of it, as GeoJSON."""
    (slide,) = open_slides(case.slide)
    with closing(slide):
        width, height = slide.levels[0].width, slide.levels[0].height
    right = width / 2 if case.half else width
    ring = [[0, 0], [right, 0], [right, height], [0, height], [0, 0]]
    path.write_text(json.dumps({"type": "Polygon", "coordinates": [ring]}))
    return path


def run(command: Sequence[str], core: int, folder: Path) -> dict[str, float]:
    """Wall and CPU seconds and the peak memory of a command on one core."""
    figures, log = folder / "figures.json", folder / "log.txt"
    with log.open("wb") as file:
        subprocess.run(
            [sys.executable, "-I", "-S", "-c", MEASURE, str(core), str(figures), *command],
            env=os.environ | ONE_THREAD | OFFLINE,
            stdout=file,
            stderr=subprocess.STDOUT,
            check=True,
        )
    found: dict[str, float] = json.loads(figures.read_text())
    if code := found.pop("exit"):
        text = log.read_text(errors="replace")[-2000:]
        raise SystemExit(f"{command[0]} ended with {code}: {text}")
    return found


Probabilities = dict[tuple[int, int], list[float]]  # by the upper left corner of a tile


def read_probabilities(name: str, out: Path, pythons: dict[str, Path], side: int) -> Probabilities:
    """What a program wrote."""
    if name in OWN:
        (path,) = out.glob("*/tiles.parquet")
        tiles = read_tiles(path)
        return by_corner(tiles)
    if name.startswith("wsinfer"):
        (path,) = out.glob("model-outputs-csv/*.csv")
        table = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)
        return {(int(row[0]), int(row[1])): row[4:].tolist() for row in table}
    (path,) = out.glob("*.zarr")
    copy = out / "probabilities.json"
    words = [pythons["tiatoolbox"], HERE / "slide_peers.py", "read-zarr", path, copy]
    subprocess.run(list(map(str, words)), check=True)
    content = json.loads(copy.read_text())
    factor = side / (content["corners"][0][2] - content["corners"][0][0])
    corners = [(round(x * factor), round(y * factor)) for x, y, *_ in content["corners"]]
    return dict(zip(corners, content["probabilities"], strict=True))


def by_corner(tiles: SlideTiles) -> Probabilities:
    """edgelung's probabilities."""
    corners = zip(tiles.x.tolist(), tiles.y.tolist(), strict=True)
    return dict(zip(corners, tiles.probabilities.tolist(), strict=True))


def compare(tiles: SlideTiles, theirs: Probabilities) -> dict[str, float]:
    """Agreement of a program with edgelung; ends the benchmark if it predicted other tiles."""
    ours = by_corner(tiles)
    if set(ours) != set(theirs):
        raise SystemExit(f"other tiles were predicted: {len(theirs)} instead of {len(ours)}")
    one, other = (np.array([rows[corner] for corner in ours]) for rows in (ours, theirs))
    return {
        "same_label": round(float((one.argmax(1) == other.argmax(1)).mean()), 4),
        "mean_probability_difference": round(float(np.abs(one - other).mean()), 5),
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
