"""`edgelung slide` against WSInfer and TIAToolbox: one core, the same network, the same tiles.

    python benchmarks/slides.py TILES --real CMU-1-Small-Region.svs --environments FOLDER

TILES holds pictures of 768 px, of which two large slides are made. The network is the starter: its
FP32 weights as TorchScript in the other programs, its INT8 variant in edgelung. Each program runs
as a process of its own and writes its results; a run counts from the start of the process to its
end. The programs take turns, round after round. `--quick` tries everything on small slides.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import machine
import numpy as np
from slide_environments import make_environment, versions
from slide_file import MPP, arrange, write_slide

from edgelung.artifacts.bundle import open_bundle, starter_bundle
from edgelung.artifacts.slide_tiles import read_tiles
from edgelung.core.system import version

HERE = Path(__file__).parent
PEERS = HERE / "slide_peers.py"
EDGELUNG = Path(sys.executable).with_name("edgelung")
OURS = "edgelung"
PROGRAMS = {OURS: OURS, "wsinfer, openslide": "wsinfer", "wsinfer, tiffslide": "wsinfer"}
PROGRAMS |= {"tiatoolbox": "tiatoolbox"}
SIZES = {"224": (24_000, 20_000), "768": (74_000, 66_000)}  # of a slide with 4,000 tiles and more
QUICK = {"224": (6_144, 4_096), "768": (12_288, 8_192)}
LIMIT = 3600  # seconds of a run

# A small process starts the program: peak memory is inherited from whoever starts it.
MEASURE = """
import json, os, sys, time
os.sched_setaffinity(0, {int(sys.argv[1])})
start = time.perf_counter()
child = os.posix_spawn(sys.argv[3], sys.argv[3:], os.environ)
_, status, usage = os.wait4(child, 0)
found = {"seconds": time.perf_counter() - start, "cpu_seconds": usage.ru_utime + usage.ru_stime,
         "peak_mb": usage.ru_maxrss / 1024, "exit": os.waitstatus_to_exitcode(status)}
open(sys.argv[2], "w").write(json.dumps(found))
"""
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
OFFLINE = {"HF_HUB_OFFLINE": "1", "WSINFER_FORCE_CPU": "1"}

NOTES = [
    "All programs get the same tiles: WSInfer as its own HDF5 of patches, TIAToolbox as a mask, "
    "edgelung as a GeoJSON outline. So none of the others looks for tissue.",
    "The slides are half tissue; they repeat 50 pictures of LC25000, JPEG quality 80, 4:2:0. These "
    "are soft pictures: a scanner's tiles have about twice as many bytes.",
    "WSInfer runs with its defaults: batches of 32 and, as always on one core, one worker process "
    "that reads. Its peak memory is that of the larger process, not of both.",
    "WSInfer's registry of models, which it reads from the network at every start, is replaced by "
    "an empty one.",
    "TIAToolbox runs PatchPredictor with batches of 32 and no worker; it normalises whole batches "
    "and writes Zarr. Its own default is 8.",
    "The others have the starter's FP32 weights as TorchScript, written by edgelung's export; its "
    "probabilities equal ONNX Runtime's. They offer no INT8.",
    "startup_seconds of the others: until their modules are imported. It is part of seconds.",
]


@dataclass(frozen=True)
class Case:
    """Tiles of one slide: `columns` × `rows` of `side` pixels, from its upper left corner."""

    name: str
    slide: Path
    width: int
    height: int
    mpp: float
    side: int
    columns: int
    rows: int

    @property
    def tiles(self) -> int:
        return self.columns * self.rows

    @property
    def tile_um(self) -> float:
        return round(self.side * self.mpp, 6)

    @property
    def corners(self) -> list[list[int]]:
        """Upper left corners, pixels of level 0, row by row."""
        side = self.side
        return [[x * side, y * side] for y in range(self.rows) for x in range(self.columns)]


def main() -> None:
    """Make what is missing, measure, and write the JSON."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("tiles", type=Path)
    parser.add_argument("--real", type=Path, help="a real slide, at 224 px")
    parser.add_argument("--environments", type=Path, required=True)
    parser.add_argument("--torch-from", help="Python whose torch the environments link")
    parser.add_argument("--work", type=Path, help="folder that keeps the slides")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rounds-768", type=int, default=1)
    parser.add_argument("--cases", nargs="+", default=["224", "768", "real"])
    parser.add_argument("--core", type=int, default=max(os.sched_getaffinity(0)))
    parser.add_argument("--quick", action="store_true")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "slides.json")
    options = parser.parse_args()
    load = os.getloadavg()[0]  # of the machine, before it works for us
    folder = options.environments.absolute()
    pythons = {
        name: make_environment(name, folder, options.torch_from)
        for name in ("wsinfer", "tiatoolbox")
    }
    with tempfile.TemporaryDirectory() as temporary:
        work = options.work or Path(temporary)
        work.mkdir(parents=True, exist_ok=True)
        cases = make_cases(options, work)
        rounds = dict.fromkeys(cases, options.rounds) | {"768": options.rounds_768}
        result = {
            "core": options.core,
            "notes": NOTES,
            "cases": {
                name: Measurement(case, pythons, options.core, work).run(rounds[name])
                for name, case in cases.items()
            },
            "versions": {name: versions(python) for name, python in pythons.items()},
            "edgelung": version("edgelung"),
            "bundle_sha256": open_bundle(starter_bundle()).sha256,
            "load_before": load,
            "machine": machine.describe(),
        }
    options.out.write_text(json.dumps(result, indent=2) + "\n", encoding="utf-8")
    show(result)


def make_cases(options: argparse.Namespace, work: Path) -> dict[str, Case]:
    """The slides of the chosen cases; those that are there already are kept."""
    cases = {}
    for name, (width, height) in (QUICK if options.quick else SIZES).items():
        if name not in options.cases:
            continue
        path = work / f"synthetic-{width}x{height}.svs"
        arrangement = arrange(options.tiles, width, height)
        if not path.exists():
            print(f"writing {path.name}", flush=True)
            write_slide(path, arrangement)
        side = int(name)
        grid = arrangement.tissue_width // side, height // side
        cases[name] = Case(f"synthetic, {name} px", path, width, height, MPP, side, *grid)
    if options.real and "real" in options.cases:
        cases["real"] = real_case(options.real, 224)
    return cases


def real_case(path: Path, side: int) -> Case:
    """All tiles of a real slide at its full resolution."""
    import openslide

    with openslide.OpenSlide(path) as slide:
        width, height = slide.dimensions
        mpp = float(slide.properties["openslide.mpp-x"])
    name = f"{path.stem}, {side} px"
    return Case(name, path, width, height, mpp, side, width // side, height // side)


class Measurement:
    """The programs on one case. Files lie in a folder of its own below `work`."""

    def __init__(self, case: Case, pythons: dict[str, Path], core: int, work: Path) -> None:
        self.case, self.pythons, self.core = case, pythons, core
        self.folder = work / f"case-{case.slide.stem}-{case.side}"
        self.model = self.folder / "model"
        self.slides = self.folder / "slides"  # WSInfer takes a folder that holds nothing else
        self.coordinates = self.folder / "coordinates.json"
        self.outline = self.folder / "outline.geojson"

    def run(self, rounds: int) -> dict[str, Any]:
        """Measure all programs, check their tiles, and summarise."""
        case = self.case
        self._prepare()
        runs: dict[str, list[dict[str, float]]] = {name: [] for name in PROGRAMS}
        rows: dict[str, dict[tuple[int, int], list[float]]] = {}
        for number in range(rounds):
            for name in PROGRAMS:
                print(f"{case.name}: {name}, round {number + 1} of {rounds}", flush=True)
                out = self.folder / "results" / name.replace(", ", "-")
                runs[name].append(self._run_program(name, out))
                rows[name] = self._read_rows(name, out)
                if sorted(rows[name]) != sorted(map(tuple, case.corners)):
                    raise SystemExit(f"{name} predicted other tiles: {len(rows[name])}")
        programs = {name: self._summarise(name, runs, rows) for name in PROGRAMS}
        return {
            "name": case.name,
            "slide_bytes": case.slide.stat().st_size,
            "width": case.width,
            "height": case.height,
            "mpp": case.mpp,
            "tile_px": case.side,
            "tiles": case.tiles,
            "rounds": rounds,
            "model_check": json.loads((self.model / "check.json").read_text()),
            "programs": programs,
            "reading": self._reading(programs[OURS]["cpu_seconds"]),
        }

    def _prepare(self) -> None:
        """The model folder, the tiles as each program takes them, and the slide in the cache."""
        case = self.case
        words = [sys.executable, HERE / "slide_model.py", self.model, "--tile-um", case.tile_um]
        subprocess.run([str(word) for word in words], check=True)
        self.slides.mkdir(parents=True, exist_ok=True)
        link = self.slides / case.slide.name
        link.unlink(missing_ok=True)
        link.symlink_to(case.slide.absolute())
        given = {"corners": case.corners, "side": case.side}
        given |= {"width": case.width, "height": case.height}
        self.coordinates.write_text(json.dumps(given))
        right, bottom = case.columns * case.side, case.rows * case.side
        ring = [[0, 0], [right, 0], [right, bottom], [0, bottom], [0, 0]]
        shape = {"type": "Polygon", "coordinates": [ring]}
        feature = {"type": "Feature", "properties": {}, "geometry": shape}
        self.outline.write_text(json.dumps(feature))
        with case.slide.open("rb") as file:
            while file.read(1 << 24):
                pass

    def _command(self, name: str, out: Path) -> list[str]:
        case = self.case
        words: list[object]
        if name == OURS:
            words = [EDGELUNG, "slide", case.slide, "--tile-um", case.tile_um]
            words += ["--mask", self.outline, "--out", out]
        else:
            program = PROGRAMS[name]
            slide = self.slides if program == "wsinfer" else case.slide
            words = [self.pythons[program], PEERS, program, slide, out, "--model", self.model]
            words += ["--coordinates", self.coordinates]
            if program == "wsinfer":
                words += ["--reader", name.partition(", ")[2]]
        return [str(word) for word in words]

    def _run_program(self, name: str, out: Path) -> dict[str, float]:
        """Seconds, CPU seconds and peak memory of one run."""
        subprocess.run(["rm", "-rf", out], check=True)
        out.parent.mkdir(parents=True, exist_ok=True)
        figures, log = self.folder / "figures.json", self.folder / "log.txt"
        start = [sys.executable, "-I", "-S", "-c", MEASURE, str(self.core), str(figures)]
        with log.open("wb") as file:
            subprocess.run(
                [*start, *self._command(name, out)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | ONE_THREAD | OFFLINE,
                timeout=LIMIT,
                check=True,
            )
        found: dict[str, float] = json.loads(figures.read_text())
        text = log.read_text(errors="replace")
        if found.pop("exit"):
            raise SystemExit(f"{name} failed:\n{text[-3000:]}")
        if name != OURS:
            found |= json.loads(text.strip().splitlines()[-1])
        print(f"  {found['seconds']:.1f} s, {found['peak_mb']:.0f} MB", flush=True)
        return found

    def _read_rows(self, name: str, out: Path) -> dict[tuple[int, int], list[float]]:
        """Corner of each tile → its probabilities, from the files that a program wrote."""
        if name == OURS:
            (path,) = out.glob("*/tiles.parquet")
            tiles = read_tiles(path)
            corners = zip(tiles.x.tolist(), tiles.y.tolist(), strict=True)
            return dict(zip(corners, tiles.probabilities.tolist(), strict=True))
        if PROGRAMS[name] == "wsinfer":
            (path,) = out.glob("model-outputs-csv/*.csv")
            table = np.loadtxt(path, delimiter=",", skiprows=1, ndmin=2)
            return {(int(row[0]), int(row[1])): row[4:].tolist() for row in table}
        (path,) = out.glob("*.zarr")
        copy = self.folder / "zarr.json"
        words = [self.pythons["tiatoolbox"], PEERS, "read-zarr", path, copy]
        subprocess.run([str(word) for word in words], check=True)
        content = json.loads(copy.read_text())
        factor = self.case.side / open_bundle(starter_bundle()).reader.size
        corners = [(round(x * factor), round(y * factor)) for x, y, *_ in content["corners"]]
        return dict(zip(corners, content["probabilities"], strict=True))

    def _summarise(
        self,
        name: str,
        runs: dict[str, list[dict[str, float]]],
        rows: dict[str, dict[tuple[int, int], list[float]]],
    ) -> dict[str, Any]:
        """Medians, spread, and the ratio to edgelung; the command without folders."""
        found = {key: [round(one[key], 3) for one in runs[name]] for key in runs[name][0]}
        median = {key: statistics.median(values) for key, values in found.items()}
        ours = {key: statistics.median(one[key] for one in runs[OURS]) for key in runs[OURS][0]}
        corners = list(map(tuple, self.case.corners))
        mine, theirs = (np.array([rows[one][c] for c in corners]) for one in (OURS, name))
        return {
            "command": " ".join(Path(word).name for word in self._command(name, Path("out"))),
            **median,
            "all": found,
            "tiles_per_second": round(self.case.tiles / median["seconds"], 2),
            "slides_per_hour": round(3600 / median["seconds"], 1),
            "times_edgelung": round(median["seconds"] / ours["seconds"], 3),
            "cpu_times_edgelung": round(median["cpu_seconds"] / ours["cpu_seconds"], 3),
            "same_label_as_edgelung": float((mine.argmax(1) == theirs.argmax(1)).mean()),
            "mean_probability_difference": float(np.abs(mine - theirs).mean()),
        }

    def _reading(self, whole: float) -> dict[str, Any]:
        """CPU seconds of reading alone, and their share of edgelung's run."""
        case = self.case
        words = [sys.executable, HERE / "slide_reading.py", case.slide, "--mask", self.outline]
        words += ["--tile-um", case.tile_um]
        done = subprocess.run(
            ["taskset", "-c", str(self.core), *map(str, words)],
            capture_output=True,
            text=True,
            check=True,
        )
        found: dict[str, Any] = json.loads(done.stdout)
        if found["tiles"] != case.tiles:
            raise SystemExit(f"reading took other tiles: {found['tiles']}")
        return found | {"share": round(sum(found["cpu_seconds"].values()) / whole, 4)}


def show(result: dict[str, Any]) -> None:
    """Print the table."""
    for case in result["cases"].values():
        print(f"\n{case['name']}: {case['tiles']} tiles, median of {case['rounds']}")
        print(f"{'':20} {'s':>8} {'CPU s':>8} {'tiles/s':>8} {'times':>6} {'CPU':>6} {'MB':>6}")
        for name, one in case["programs"].items():
            print(
                f"{name:20} {one['seconds']:8.1f} {one['cpu_seconds']:8.1f} "
                f"{one['tiles_per_second']:8.1f} {one['times_edgelung']:6.2f} "
                f"{one['cpu_times_edgelung']:6.2f} {one['peak_mb']:6.0f} "
                f"{100 * one['same_label_as_edgelung']:6.2f} %"
            )
        print(f"reading: {case['reading']}")


if __name__ == "__main__":
    main()
