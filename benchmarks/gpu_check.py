"""`make gpu-check`: everything that only a card can prove, in one run of at most nine minutes.

Works offline from what is installed. Writes results/gpu-<card>.json and a Markdown table beside
it, anew after every part. Each part is a process of its own with a share of the time: one that
cannot run, hangs or takes the driver down says why, and the rest goes on.
"""

import argparse
import json
import os
import re
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import gpu_device
import gpu_parts as parts
import machine
import numpy as np

from edgelung.artifacts.bundle import Bundle, open_bundle, starter_bundle
from edgelung.core.errors import EdgelungError
from edgelung.core.files import atomic_write, write_json
from edgelung.engines.cuda import driver_version, gpu_present
from edgelung.tools.doctor import as_json, examine

RESULTS = Path(__file__).parent / "results"
SECONDS = 9 * 60
PART_SECONDS = 150.0  # the longest that one part may take
NO_TILES = "no tiles: make gpu-check TILES=folder"
DEIT_B = "deit_base_distilled_patch16_224"

Figures = dict[str, Any]
Plan = dict[str, Callable[[], Figures]]


def main() -> int:
    """Check, print, write; 0 also where there is no GPU: the reasons are the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="with fp32, fp16 and int8; else the starter")
    parser.add_argument("--tiles", type=Path, help="a folder of tiles, best of 768 px")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    parser.add_argument("--part", help="only this one; its figures go to standard output as JSON")
    parser.add_argument("--scratch", type=Path, help="with --part: where parts leave their graphs")
    options = parser.parse_args()
    if options.part:
        print(json.dumps(plan(options, options.scratch)[options.part]()))
        return 0
    end = time.monotonic() + options.seconds
    report: Figures = {
        "card": parts.card_name() if gpu_present() else None,
        "driver": driver_version(),
        "machine": machine.describe(),
        "parts": {"doctor": as_json(examine(), None)},
    }
    with tempfile.TemporaryDirectory() as scratch:
        # An empty cache: what is timed as a build is one.
        environment = os.environ | {"EDGELUNG_CACHE": f"{scratch}/cache"}
        for name in plan(options, Path(scratch)):
            words = [sys.executable, *sys.argv, "--scratch", scratch, "--part", name]
            left = min(PART_SECONDS, end - time.monotonic())
            start = time.monotonic()
            if gpu_present():
                figures = run_part(words, left, environment)
            else:
                figures = {"cannot_run": "no GPU"}
            report["parts"][name] = figures
            said = figures.get("cannot_run", "done")
            print(f"{name}: {said} ({time.monotonic() - start:.1f} s)", flush=True)
            written = write(options.out, report)
    print(f"wrote {written} and .md")
    return 0


def run_part(words: Sequence[object], seconds: float, environment: dict[str, str]) -> Figures:
    """The figures that a process prints last, or why there are none."""
    if seconds < 1:
        return {"cannot_run": "the time was over"}
    with subprocess.Popen(
        [*map(str, words)],
        env=environment,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        start_new_session=True,
    ) as process:
        try:
            out, err = process.communicate(timeout=seconds)
        except subprocess.TimeoutExpired:
            os.killpg(process.pid, signal.SIGKILL)
            process.communicate()
            return {"cannot_run": f"it had not ended after {seconds:.0f} s"}
    lines = out.decode(errors="replace").splitlines()
    if process.returncode == 0 and lines:
        figures: Figures = json.loads(lines[-1])
        return figures
    last = (err.decode(errors="replace").split("\n\n")[-1].strip().splitlines() or ["no word"])[-1]
    return {"cannot_run": f"{last[:400]} (exit code {process.returncode})"}


def write(folder: Path, report: Figures) -> Path:
    """Both files, as far as the report goes."""
    card = re.sub(r"[^a-z0-9]+", "-", (report["card"] or "none").lower()).strip("-")
    folder.mkdir(parents=True, exist_ok=True)
    write_json(folder / f"gpu-{card}.json", report)
    with atomic_write(folder / f"gpu-{card}.md", "w", encoding="utf-8") as file:
        file.write(markdown(report))
    return folder / f"gpu-{card}.json"


def plan(options: argparse.Namespace, scratch: Path) -> Plan:
    """The parts in order: what the bars ask for first, comparisons last."""

    def bundle() -> Bundle:
        return open_bundle(options.bundle or starter_bundle())

    def tiles() -> Path:
        if options.tiles is None:
            raise EdgelungError(NO_TILES)
        folder: Path = options.tiles
        return folder

    def parity() -> Figures:
        opened = bundle()
        some = (
            parts.read_some(options.tiles, 512, opened.reader.size)[0]
            if options.tiles
            else np.stack([parts.read_tile(t.path, opened.reader) for t in opened.golden])
        )
        return parts.parity(opened, some)

    def base() -> Path:
        return random_graph(scratch, DEIT_B, half=True)

    gflop = parts.model_gflop(198, 768, 12, 196)
    found: Plan = {
        "resize kernels": gpu_device.resize_kernels,
        "memory, streams, graphs": gpu_device.device_layer,
        "DeiT-B FP16 latency, CUDA graphs": lambda: parts.latency(base(), "fp16", True),
        "DeiT-B FP16 latency, no graphs": lambda: parts.latency(base(), "fp16", False),
        "DeiT-B FP16 throughput": lambda: parts.throughput(base(), gflop),
        "parity with ONNX Runtime CPU": parity,
    }
    for p in parts.PRECISIONS:
        for graphs in (True, False):
            name = f"bundle {p} latency{'' if graphs else ', no graphs'}"
            found[name] = lambda p=p, g=graphs: parts.latency(bundle().variant(p).path, p, g)
    return found | {
        "folder run": lambda: parts.folder_run(bundle(), tiles(), scratch),
        "JPEG decode by nvimgcodec": lambda: parts.jpeg_on_gpu(
            parts.read_some(tiles(), 64, 224)[1]
        ),
        "DeiT-B torch FP16": lambda: parts.torch_models(DEIT_B),
    }


def random_graph(folder: Path, architecture: str, half: bool) -> Path:
    """The deployed graph of an untrained model: right for speed, worthless for accuracy."""
    import onnx
    import timm
    import torch

    from edgelung.core.precision import Precision
    from edgelung.export.graph import build_graph
    from edgelung.export.student import Student

    path = folder / f"{architecture}.{'fp16' if half else 'fp32'}.onnx"
    if not path.exists():
        torch.manual_seed(0)
        model = timm.create_model(architecture, num_classes=3).eval()
        weights = {name: value.numpy() for name, value in model.state_dict().items()}
        heads = int(model.blocks[0].attn.num_heads)
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        classes = ("lung_aca", "lung_n", "lung_scc")
        student = Student(architecture, classes, 224, 16, heads, mean, std, weights)
        precision = Precision.FP16 if half else Precision.FP32
        onnx.save(build_graph(student, precision=precision), path)
    return path


def markdown(report: dict[str, Any]) -> str:
    """One table a part; reasons where there are no figures."""
    lines = [f"# GPU check: {report['card'] or 'no GPU'}", ""]
    lines += [f"Driver {report['driver']}; {json.dumps(report['machine'])}", ""]
    for name, figures in report["parts"].items():
        if name == "doctor":
            continue
        lines += [f"## {name}", ""]
        if "cannot_run" in figures:
            lines += [f"not run: {figures['cannot_run']}", ""]
            continue
        lines += ["| what | figures |", "|---|---|"]
        lines += [f"| {key} | {_cell(value)} |" for key, value in figures.items()]
        lines.append("")
    return "\n".join(lines)


def _cell(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{k} {_cell(v)}" for k, v in value.items())
    return f"{value:.4g}" if isinstance(value, float) else str(value)


if __name__ == "__main__":
    sys.exit(main())
