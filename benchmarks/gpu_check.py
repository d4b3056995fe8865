"""`make gpu-check`: everything that only a card can prove, in one run of at most nine minutes.

Works offline from what is installed. Writes results/gpu-<card>.json and a Markdown table beside
it. A part that cannot run says why, and the rest goes on; without a GPU every part says so.
"""

import argparse
import json
import re
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import gpu_parts as parts
import machine
import numpy as np

from edgelung.bundle import Bundle, open_bundle, starter_bundle
from edgelung.doctor import as_json, examine
from edgelung.engines.base import EngineUnavailableError
from edgelung.engines.cuda import Device
from edgelung.errors import EdgelungError
from edgelung.files import atomic_write, write_json

RESULTS = Path(__file__).parent / "results"
SECONDS = 9 * 60
NO_TILES = "no tiles: make gpu-check TILES=folder"


class Check:
    """Runs the parts, keeps their figures or their reasons, and watches the clock."""

    def __init__(self, seconds: float) -> None:
        self.end = time.monotonic() + seconds
        self.results: dict[str, Any] = {}

    def part(self, name: str, work: Callable[[], Any]) -> None:
        """Run one part; whatever goes wrong becomes its reason."""
        if time.monotonic() > self.end:
            self.results[name] = {"cannot_run": "the nine minutes were over"}
            return
        start = time.monotonic()
        try:
            figures = work()
        except Exception as error:
            reason = " ".join(str(error).split())[:400] or type(error).__name__
            figures = {"cannot_run": reason}
        self.results[name] = figures
        said = figures.get("cannot_run", "done") if isinstance(figures, dict) else "done"
        print(f"{name}: {said} ({time.monotonic() - start:.1f} s)", flush=True)


def main() -> int:
    """Check, print, write; 0 also where there is no GPU: the reasons are the result."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, help="with fp32, fp16 and int8; else the starter")
    parser.add_argument("--tiles", type=Path, help="a folder of tiles, best of 768 px")
    parser.add_argument("--out", type=Path, default=RESULTS, help="folder of the results")
    parser.add_argument("--seconds", type=float, default=SECONDS)
    options = parser.parse_args()
    try:
        device = Device()
        reason = ""
    except EngineUnavailableError as error:
        device, reason = None, f"no GPU: {error}"
    check = Check(options.seconds)
    check.part("doctor", lambda: as_json(examine(), None))
    with tempfile.TemporaryDirectory() as scratch:
        for name, work in plan(device, options, Path(scratch)):
            check.part(name, work if device else lambda: {"cannot_run": reason})
    card = re.sub(r"[^a-z0-9]+", "-", device.name.lower()).strip("-") if device else "none"
    report = {
        "card": device.name if device else None,
        "driver": device.driver if device else None,
        "machine": machine.describe(),
        "parts": check.results,
    }
    options.out.mkdir(parents=True, exist_ok=True)
    write_json(options.out / f"gpu-{card}.json", report)
    with atomic_write(options.out / f"gpu-{card}.md", "w", encoding="utf-8") as file:
        file.write(markdown(report))
    print(f"wrote {options.out / f'gpu-{card}.json'} and .md")
    return 0


def plan(
    device: Any, options: argparse.Namespace, scratch: Path
) -> list[tuple[str, Callable[[], Any]]]:
    """The parts in order: what the bars ask for first, comparisons last."""

    def bundle() -> Bundle:
        return open_bundle(options.bundle or starter_bundle())

    def tiles() -> Path:
        if options.tiles is None:
            raise EdgelungError(NO_TILES)
        folder: Path = options.tiles
        return folder

    def parity() -> Any:
        opened = bundle()
        some = (
            parts.read_some(options.tiles, 512, opened.reader.size)[0]
            if options.tiles
            else np.stack([parts.read_tile(t.path, opened.reader) for t in opened.golden])
        )
        return parts.parity(opened, some)

    def base(half: bool = True) -> Path:
        return random_graph(scratch, "deit_base_distilled_patch16_224", half)

    deit_base = parts.model_gflop(198, 768, 12, 196)
    return [
        ("resize kernels", lambda: parts.resize_kernels(device)),
        ("parity with ONNX Runtime CPU", parity),
        ("DeiT-B FP16 latency, CUDA graphs", lambda: parts.latency(base(), "fp16", True)),
        ("DeiT-B FP16 latency, no graphs", lambda: parts.latency(base(), "fp16", False)),
        ("DeiT-B FP16 throughput", lambda: parts.throughput(base(), deit_base, device)),
        *(
            (
                f"bundle {precision} latency{'' if graphs else ', no graphs'}",
                lambda p=precision, g=graphs: parts.latency(bundle().variant(p).path, p, g),
            )
            for precision in parts.PRECISIONS
            for graphs in (True, False)
        ),
        (
            "folder run",
            lambda: parts.folder_run(bundle(), tiles(), scratch),
        ),
        (
            "JPEG decode by nvimgcodec",
            lambda: parts.jpeg_on_gpu(parts.read_some(tiles(), 64, 224)[1]),
        ),
        ("DeiT-B ONNX Runtime CUDA", lambda: parts.onnxruntime_cuda(base())),
        ("DeiT-B torch FP16", lambda: parts.torch_models("deit_base_distilled_patch16_224")),
    ]


def random_graph(folder: Path, architecture: str, half: bool) -> Path:
    """The deployed graph of an untrained model: right for speed, worthless for accuracy."""
    import onnx
    import timm

    from edgelung.export.graph import build_graph
    from edgelung.export.student import Student

    path = folder / f"{architecture}.{'fp16' if half else 'fp32'}.onnx"
    if not path.exists():
        model = timm.create_model(architecture, num_classes=3).eval()
        weights = {name: value.numpy() for name, value in model.state_dict().items()}
        heads = int(model.blocks[0].attn.num_heads)
        mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
        classes = ("lung_aca", "lung_n", "lung_scc")
        student = Student(architecture, classes, 224, 16, heads, mean, std, weights)
        onnx.save(build_graph(student, half=half), path)
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
