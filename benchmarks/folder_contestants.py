"""The contestants of `folder.py`: each predicts a folder and returns the seconds that it took."""

import argparse
import csv
import json
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

EDGELUNG = Path(sys.executable).with_name("edgelung")
EXIT = "int8-early-exit"
BATCH = 64  # of (a), (b) and (c): timm's scripts use 64 and more


def timm_style(
    options: argparse.Namespace, folder: Path, count: int, run: Path | None = None
) -> float:
    """(a): ImageFolder and DataLoader, torchvision's transforms, PyTorch FP32."""
    import timm
    import torch
    from torchvision.datasets import ImageFolder
    from torchvision.transforms import v2

    model = timm.create_model(f"local-dir:{run or options.run}", pretrained=True).eval()
    mean, std = model.pretrained_cfg["mean"], model.pretrained_cfg["std"]
    size = model.pretrained_cfg["input_size"][1:]
    transform = v2.Compose(
        [
            v2.Resize(size),
            v2.PILToTensor(),
            v2.ToDtype(torch.float32, scale=True),
            v2.Normalize(mean, std),
        ]
    )
    workers = len(os.sched_getaffinity(0))
    loader = torch.utils.data.DataLoader(
        ImageFolder(folder, transform), batch_size=BATCH, num_workers=workers
    )
    with torch.inference_mode():
        model(torch.zeros(BATCH, 3, *size))
        start, done = time.perf_counter(), 0
        rows = []
        for tiles, _ in loader:
            rows += model(tiles).softmax(dim=1).tolist()
            done += len(tiles)
        write_rows(folder, rows)
    assert done == count
    return time.perf_counter() - start


def pillow_and_ort(options: argparse.Namespace, folder: Path, count: int, precision: str) -> float:
    """(b), (c): what a short script does. Pillow, one batch after another, ONNX Runtime."""
    import numpy as np
    import onnxruntime as ort
    from PIL import Image

    session = ort.InferenceSession(
        options.bundle / f"model.{precision}.onnx", providers=["CPUExecutionProvider"]
    )
    session.run(["probs"], {"tiles": np.zeros((BATCH, 224, 224, 3), np.uint8)})
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    assert len(paths) == count
    start = time.perf_counter()
    rows = []
    for first in range(0, count, BATCH):
        tiles = [
            np.asarray(Image.open(path).convert("RGB").resize((224, 224), Image.Resampling.BICUBIC))
            for path in paths[first : first + BATCH]
        ]
        rows += session.run(["probs"], {"tiles": np.stack(tiles)})[0].tolist()
    write_rows(folder, rows)
    return time.perf_counter() - start


def write_rows(folder: Path, rows: list[list[float]]) -> None:
    """What anybody's script ends with."""
    with (folder.parent / "rows.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)


def edgelung(
    options: argparse.Namespace,
    folder: Path,
    count: int,
    precision: str,
    bundle: Path | None = None,
) -> float:
    """(d): the command itself; its own clock, which starts when the engine has proved itself."""
    model = bundle or options.bundle
    words = ["infer", folder, "--model", model, "--precision", precision, "--json"]
    words += ["--engine", "openvino", "--out", folder.parent / "edgelung.csv", "--restart"]
    done = subprocess.run([EDGELUNG, *map(str, words)], capture_output=True, text=True, check=True)
    summary = json.loads(done.stdout)
    assert summary["files"] == count
    assert not summary["failed"]
    return float(summary["seconds"])


def decode_alone(
    options: argparse.Namespace, folder: Path, count: int, bundle: Path | None = None
) -> float:
    """(e): the reader on every core, nothing else."""
    from edgelung.artifacts.bundle import open_bundle
    from edgelung.core.system import available_cores
    from edgelung.tiles.reader import read_tile

    reader = open_bundle(bundle or options.bundle).reader
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    threads = available_cores()

    def work(part: list[Path]) -> None:
        for path in part:
            read_tile(path, reader)

    work(paths[:8])
    return together([(lambda k=k: work(paths[k::threads])) for k in range(threads)])


def engine_alone(
    options: argparse.Namespace,
    folder: Path,
    count: int,
    precision: str,
    bundle: Path | None = None,
) -> float:
    """(e): the engine on every core, tiles in memory; as many different ones as fit into 300 MB."""
    import numpy as np

    from edgelung.artifacts.bundle import open_bundle
    from edgelung.core.precision import Precision
    from edgelung.core.system import available_cores
    from edgelung.engines.choose import open_engine
    from edgelung.engines.names import EngineName
    from edgelung.inference.pipeline import default_batch_size
    from edgelung.tiles.reader import read_tile

    opened = open_bundle(bundle or options.bundle)
    threads = available_cores()
    engine = open_engine(opened, EngineName.OPENVINO, Precision(precision), threads).engine
    size = default_batch_size(engine)
    paths = sorted(path for path in folder.rglob("*") if path.is_file())
    step = -(-len(paths) // 2048)
    tiles = np.stack([read_tile(path, opened.reader) for path in paths[::step]])
    batches = list(range(0, count, size))  # the first tile of each, in the whole folder

    def work(firsts: list[int]) -> None:
        for first in firsts:
            rows = np.arange(first, min(first + size, count)) % len(tiles)
            engine.infer(tiles[rows])

    together([lambda: work(batches[:2])] * threads)
    return together([(lambda k=k: work(batches[k::threads])) for k in range(threads)])


def together(works: list[Callable[[], None]]) -> float:
    """Seconds until all are done."""
    threads = [threading.Thread(target=work) for work in works]
    start = time.perf_counter()
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return time.perf_counter() - start


Contestant = Callable[[argparse.Namespace, Path, int], float]
CONTESTANTS: dict[str, Contestant] = {
    "a timm-style fp32": timm_style,
    "b pillow+ort fp32": lambda o, f, n: pillow_and_ort(o, f, n, "fp32"),
    "c pillow+ort int8": lambda o, f, n: pillow_and_ort(o, f, n, "int8"),
    "d edgelung fp32": lambda o, f, n: edgelung(o, f, n, "fp32"),
    "d edgelung int8": lambda o, f, n: edgelung(o, f, n, "int8"),
    "e decode alone": decode_alone,
    "e engine alone fp32": lambda o, f, n: engine_alone(o, f, n, "fp32"),
    "e engine alone int8": lambda o, f, n: engine_alone(o, f, n, "int8"),
    "e engine alone early exit": lambda o, f, n: engine_alone(o, f, n, EXIT),
    "f edgelung early exit": lambda o, f, n: edgelung(o, f, n, EXIT),
}
OF_160: dict[str, Contestant] = {
    "a timm-style fp32 160": lambda o, f, n: timm_style(o, f, n, o.run_160),
    "e decode alone 160": lambda o, f, n: decode_alone(o, f, n, o.bundle_160),
    "e engine alone 160 int8": lambda o, f, n: engine_alone(o, f, n, "int8", o.bundle_160),
    "e engine alone 160 early exit": lambda o, f, n: engine_alone(o, f, n, EXIT, o.bundle_160),
    "g edgelung 160 int8": lambda o, f, n: edgelung(o, f, n, "int8", o.bundle_160),
    "h edgelung 160 early exit": lambda o, f, n: edgelung(o, f, n, EXIT, o.bundle_160),
}


class Floor(NamedTuple):
    """What a way of running edgelung cannot do without: two contestants."""

    decode: str
    engine: str


FLOORS = {
    "d edgelung int8": Floor("e decode alone", "e engine alone int8"),
    "f edgelung early exit": Floor("e decode alone", "e engine alone early exit"),
    "g edgelung 160 int8": Floor("e decode alone 160", "e engine alone 160 int8"),
    "h edgelung 160 early exit": Floor("e decode alone 160", "e engine alone 160 early exit"),
}


def contestants(options: argparse.Namespace) -> dict[str, Contestant]:
    """Those that the bundles allow: an early exit is left out where a bundle has none."""
    from edgelung.artifacts.bundle import open_bundle

    found = dict(CONTESTANTS)
    bundles = {"": options.bundle}
    if options.bundle_160:
        found |= OF_160
        bundles["160"] = options.bundle_160
    for mark, bundle in bundles.items():
        if EXIT not in open_bundle(bundle).variants:
            found = {
                name: run
                for name, run in found.items()
                if not ("early exit" in name and ("160" in name) == bool(mark))
            }
    return found
