"""A model repository for Triton Inference Server, made from a finished bundle.

    edgelung/        image files → rows: edgelung in the Python backend, with a copy of the bundle
    edgelung_tiles/  pixels → probabilities: the graph of one variant in the ONNX Runtime backend

`export.triton_config` writes config.pbtxt; `export.triton_model` is what the Python backend runs.
"""

import struct
from importlib import resources
from pathlib import Path

from edgelung import RESEARCH_USE_ONLY
from edgelung.artifacts.bundle import Bundle, Variant
from edgelung.artifacts.bundle_files import copy_files
from edgelung.artifacts.graph_shapes import FLOAT, UINT8
from edgelung.artifacts.onnx_wire import Value, read_graph
from edgelung.core.errors import EdgelungError
from edgelung.core.files import atomic_folder
from edgelung.core.precision import Precision
from edgelung.engines.choose import CPU_PREFERENCE, variant_for_target
from edgelung.export.triton_config import (
    MAX_BATCH,
    DataType,
    InstanceKind,
    ModelConfig,
    TensorConfig,
    Warmup,
)
from edgelung.serving import IMAGES_MODEL, TILES_SUFFIX

FILES_MODEL, TILES_MODEL = IMAGES_MODEL, IMAGES_MODEL + TILES_SUFFIX
CONFIG, VERSION = "config.pbtxt", "1"
PROGRAM, GRAPH, LABELS, BUNDLE = "model.py", "model.onnx", "labels.txt", "bundle"
WARMUP, WARMUP_TILE = "warmup", "golden-tile"  # the folder's name is Triton's
DATA_TYPES = {UINT8: DataType.UINT8, FLOAT: DataType.FP32}


def write_triton_repository(out: Path, bundle: Bundle, precision: Precision | None) -> Variant:
    """Write the model repository.

    Args:
        out: the folder, which must be new.
        bundle: the opened bundle. What was verified then is what is copied.
        precision: the variant that both models run. None: for images as `edgelung infer` chooses
            it where Triton runs, for tiles that of a target, or the preferred one of those that
            passed their gate.

    Returns:
        The variant of the model for tiles, which has no early exit: that is two graphs.

    Raises:
        EdgelungError: if the bundle lacks the variant, or a file of it has changed.
    """
    asked = None if precision is None else bundle.variant(precision)
    variant = asked if asked is not None and asked.second is None else _one_graph(bundle, precision)
    with atomic_folder(out) as folder:
        _write_files_model(folder / FILES_MODEL, bundle, precision)
        _write_tiles_model(folder / TILES_MODEL, bundle, variant)
    return variant


def _one_graph(bundle: Bundle, precision: Precision | None) -> Variant:
    """The first variant of one graph that passed: before the preferred ones that of a target, or
    the one from which the early exit that was asked for is made.
    """
    first = variant_for_target(bundle)
    if precision is not None:
        whole = precision.about.whole
        first = bundle.variants.get(whole) if whole else None
    preferred = (bundle.variants.get(name) for name in CPU_PREFERENCE)
    for variant in (first, *preferred):
        if variant is not None and variant.passed and variant.second is None:
            return variant
    raise EdgelungError(f"bundle {bundle.folder} has no full-precision variant; export it again")


def _write_files_model(folder: Path, bundle: Bundle, precision: Precision | None) -> None:
    (folder / VERSION).mkdir(parents=True)
    program = (resources.files("edgelung.export") / "triton_model.py").read_bytes()
    (folder / VERSION / PROGRAM).write_bytes(program)
    copy_files(bundle.folder, bundle.files, folder / VERSION / BUNDLE)
    (folder / WARMUP).mkdir()
    tile = bundle.golden[0].file.read()  # of a string, Triton reads the length first
    (folder / WARMUP / WARMUP_TILE).write_bytes(struct.pack("<I", len(tile)) + tile)
    (folder / CONFIG).write_text(files_config(bundle, precision), encoding="ascii")


def _write_tiles_model(folder: Path, bundle: Bundle, variant: Variant) -> None:
    (folder / VERSION).mkdir(parents=True)
    graph = variant.graph.read()
    (folder / VERSION / GRAPH).write_bytes(graph)
    (folder / LABELS).write_text("\n".join(bundle.classes) + "\n", encoding="utf-8")
    (folder / CONFIG).write_text(tiles_config(bundle, variant, graph), encoding="ascii")


def files_config(bundle: Bundle, precision: Precision | None) -> str:
    """config.pbtxt of the model for images; its parameters are for `export.triton_model`."""
    outputs = {
        "label": (DataType.STRING, 1),
        "status": (DataType.STRING, 1),
        "error": (DataType.STRING, 1),
        "probs": (DataType.FP32, len(bundle.classes)),
        "ood": (DataType.FP32, 1),
        "stage": (DataType.UINT8, 1),
    }
    config = ModelConfig(
        name=FILES_MODEL,
        backend="python",
        kind=InstanceKind.CPU,
        input=TensorConfig("images", DataType.STRING, (1,)),
        outputs=[TensorConfig(name, kind, (width,)) for name, (kind, width) in outputs.items()],
        warmups=[Warmup(1, WARMUP_TILE)],
        parameters={
            "bundle": bundle.sha256,
            "engine": "auto",
            "precision": precision or "auto",
            "unknown": "mark",
        },
    )
    return config.text(
        RESEARCH_USE_ONLY,
        "Written by `edgelung export --triton`. Bytes of image files in, rows out.",
        "KIND_CPU: edgelung takes a GPU by itself where there is one.",
    )


def tiles_config(bundle: Bundle, variant: Variant, data: bytes) -> str:
    """config.pbtxt of the model for tiles, from the inputs and outputs of its graph."""
    graph = read_graph(data)
    (tiles,), (probs, *others) = graph.inputs, graph.outputs
    known = variant.entry.known
    config = ModelConfig(
        name=TILES_MODEL,
        backend="onnxruntime",
        kind=InstanceKind.GPU if variant.precision.about.meant_for == "GPU" else InstanceKind.CPU,
        input=_tensor(tiles),
        outputs=[_tensor(probs, LABELS), *map(_tensor, others)],
        warmups=[Warmup(1), Warmup(MAX_BATCH)],
        parameters={
            "bundle": bundle.sha256,
            "precision": variant.precision,
            **({"known_up_to": repr(known.threshold)} if known else {}),
        },
    )
    return config.text(
        RESEARCH_USE_ONLY,
        "Written by `edgelung export --triton`. RGB pixels of tiles in, probabilities out.",
        "The client decodes, resizes and judges: it has to read tiles as edgelung does.",
        "known_up_to: tiles of a higher `ood` are unlike the training tiles.",
    )


def _tensor(value: Value, labels: str = "") -> TensorConfig:
    """A tensor of the graph; the first dimension is the batch."""
    dims = tuple(n for n in value.shape[1:] if isinstance(n, int))
    return TensorConfig(value.name, DATA_TYPES[value.type], dims, labels)
