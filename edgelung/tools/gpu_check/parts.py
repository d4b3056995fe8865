"""The parts of the GPU check: what the project's bars ask for first, comparisons last.

As a program (`python -m edgelung.tools.gpu_check.parts NAME OPTIONS`) it runs one part and prints
its figures as JSON.
"""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from msgspec import Struct

from edgelung.artifacts.bundle import Bundle, open_bundle
from edgelung.core.precision import Precision
from edgelung.core.typed_json import convert, parse
from edgelung.engines.base import GraphBytes, Tiles
from edgelung.tiles.reader import decode_tile
from edgelung.tools.gpu_check import device, engines, folder, ways
from edgelung.tools.gpu_check.timing import CannotRunError, Figures

if TYPE_CHECKING:
    from edgelung.export.student import Student

NO_TILES = "no tiles: edgelung gpu-check --tiles FOLDER"
DEIT_B = "deit_base_distilled_patch16_224"
DEIT_B_SIZE = 224  # pixels


class PartOptions(Struct, frozen=True):
    """What every part gets: the bundle, the folder of tiles, and a folder for graphs."""

    bundle: str
    tiles: str | None
    scratch: str

    def open_bundle(self) -> Bundle:
        """Open the bundle."""
        return open_bundle(Path(self.bundle))

    def tile_folder(self) -> Path:
        """Return the folder of tiles; raises CannotRunError without one."""
        if self.tiles is None:
            raise CannotRunError(NO_TILES)
        return Path(self.tiles)

    def random_deit_b(self) -> GraphBytes:
        """Return DeiT-B's graph with random weights: right for speed, worthless for accuracy."""
        path = Path(self.scratch) / f"{DEIT_B}.fp16.onnx"
        if not path.exists():
            write_random_graph(path, DEIT_B)
        return GraphBytes(path.read_bytes(), path.name)


Part = Callable[[PartOptions], Figures]


def _parity(options: PartOptions) -> Figures:
    return engines.parity(options.open_bundle(), _tiles(options))


def _tiles(options: PartOptions) -> Tiles:
    """Up to 512 tiles of the folder, or the golden tiles."""
    bundle = options.open_bundle()
    if options.tiles:
        return folder.read_some(Path(options.tiles), 512, bundle.reader.size)[0]
    return np.stack([decode_tile(tile.file.read(), bundle.reader) for tile in bundle.golden])


def _latency_of_deit_b(options: PartOptions, *, graphs: bool) -> Figures:
    return engines.latency(options.random_deit_b(), Precision.FP16, graphs, DEIT_B_SIZE)


def _latency_of_bundle(options: PartOptions, *, precision: Precision, graphs: bool) -> Figures:
    bundle = options.open_bundle()
    graph = bundle.variant(precision).graph
    return engines.latency(graph, precision, graphs, bundle.reader.size)


def _throughput(options: PartOptions) -> Figures:
    gflop = engines.model_gflop(tokens=198, width=768, depth=12, patches=196)
    return engines.throughput(options.random_deit_b(), gflop, DEIT_B_SIZE)


def _onnxruntime(options: PartOptions) -> Figures:
    gflop = engines.model_gflop(tokens=198, width=768, depth=12, patches=196)
    return ways.onnxruntime_ways(options.random_deit_b(), gflop, DEIT_B_SIZE)


def _exit_speed(options: PartOptions) -> Figures:
    paths = tuple(Path(options.scratch) / f"{DEIT_B}.stage-{n}.onnx" for n in (1, 2))
    write_random_stages((paths[0], paths[1]), DEIT_B)
    first, second = (GraphBytes(path.read_bytes(), path.name) for path in paths)
    return ways.exit_speed(first, second, options.random_deit_b(), DEIT_B_SIZE)


def _early_exit(options: PartOptions) -> Figures:
    return ways.early_exit(options.open_bundle(), _tiles(options))


def _folder_run(options: PartOptions) -> Figures:
    return folder.folder_run(options.open_bundle(), options.tile_folder(), Path(options.scratch))


def _jpeg(options: PartOptions) -> Figures:
    return folder.jpeg_on_gpu(folder.read_some(options.tile_folder(), 64, 224)[1])


PARTS: dict[str, Part] = {
    "resize kernels": lambda options: device.resize_kernels(),
    "memory, streams, graphs": lambda options: device.device_layer(),
    "DeiT-B FP16 latency, CUDA graphs": partial(_latency_of_deit_b, graphs=True),
    "DeiT-B FP16 latency, no graphs": partial(_latency_of_deit_b, graphs=False),
    "DeiT-B FP16 throughput": _throughput,
    "parity with ONNX Runtime CPU": _parity,
    "ONNX Runtime CUDA: graphs, fused operators": _onnxruntime,
    "early exit on the device": _early_exit,
    "DeiT-B FP16 with an early exit": _exit_speed,
    **{
        f"bundle {precision} latency{'' if graphs else ', no graphs'}": partial(
            _latency_of_bundle, precision=precision, graphs=graphs
        )
        for precision in Precision
        if not precision.about.early_exit  # two graphs: a part of its own
        for graphs in (True, False)
    },
    "folder run": _folder_run,
    "JPEG decode by nvimgcodec": _jpeg,
    "DeiT-B torch FP16": lambda options: engines.torch_models(DEIT_B),
}


def write_random_graph(path: Path, architecture: str) -> None:
    """Write the graph of an untrained model in FP16, as `edgelung export` would."""
    import onnx

    from edgelung.export.graph import build_graph

    onnx.save(build_graph(_random_student(architecture), precision=Precision.FP16), path)


def write_random_stages(paths: tuple[Path, Path], architecture: str) -> None:
    """Write the two graphs of an untrained model with an early exit after a sixth, in FP16."""
    import onnx

    from edgelung.evaluation.known import KnownTissue
    from edgelung.export.graph_stages import ExitHead, build_exit_stages

    student = _random_student(architecture)
    rng, width, classes = np.random.default_rng(0), student.width, len(student.classes)
    blocks = (student.depth // 6, student.depth * 2 // 3)
    at_exit, at_end = (
        KnownTissue(block, np.zeros(width), np.eye(width), np.zeros((classes, width)))
        for block in blocks
    )
    head = ExitHead(rng.normal(size=(width, classes)), np.zeros(classes), at_exit)
    stages = build_exit_stages(
        replace(student, known=at_end), head, 1.0, {}, {}, precision=Precision.FP16
    )
    for path, stage in zip(paths, stages, strict=True):
        onnx.save(stage, path)


def _random_student(architecture: str) -> "Student":
    import timm
    import torch

    from edgelung.export.student import Student

    torch.manual_seed(0)
    model = timm.create_model(architecture, num_classes=3).eval()
    weights = {name: value.numpy() for name, value in model.state_dict().items()}
    heads = int(model.blocks[0].attn.num_heads)
    mean, std = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    classes = ("lung_aca", "lung_n", "lung_scc")
    return Student(architecture, classes, DEIT_B_SIZE, 16, heads, mean, std, weights)


def main(name: str, options: str) -> None:
    """Run one part and print its figures."""
    print(json.dumps(PARTS[name](convert(parse(options), PartOptions))))


if __name__ == "__main__":
    main(*sys.argv[1:])
