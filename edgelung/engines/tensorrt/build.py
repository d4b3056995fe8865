"""From a bundle's ONNX file to a TensorRT engine: one strongly typed network, one profile.

The precision stands in the file (FP32, typed FP16, INT8 as Q/DQ), so the builder is given no flag
about it: TensorRT 11 has none left, and what ONNX Runtime measured on the same file stays evidence.
"""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgelung.core.errors import EdgelungError, one_line
from edgelung.engines.tensorrt.flavour import Flavour, logger_of

INPUT, OUTPUT = "tiles", "probs"
LINEARS = ("MATRIX_MULTIPLY", "CONVOLUTION")
# What may stand between a linear and its weights.
BETWEEN = ("DEQUANTIZE", "QUANTIZE", "SHUFFLE", "CAST")


@dataclass(frozen=True)
class Profile:
    """Batches from 1 to `most` tiles; kernels are chosen for `best`."""

    best: int = 32
    most: int = 128

    def __str__(self) -> str:
        return f"1/{self.best}/{self.most}"


@dataclass(frozen=True)
class Contents:
    """What the builder was given: layers by kind, and the linears by the type of their operands."""

    layers: int
    linears: int
    quantized_linears: int
    kinds: dict[str, int]
    types: dict[str, int]


@dataclass(frozen=True)
class Built:
    """A serialized engine, executable code: keep it where only its user can write."""

    plan: bytes = field(repr=False)
    contents: Contents
    timing_cache: bytes = field(default=b"", repr=False)


def build_engine(
    flavour: Flavour,
    graph: Path,
    profile: Profile,
    *,
    target: str | None = None,
    timing_cache: bytes = b"",
) -> Built:
    """Build an engine of `graph` for this machine's GPU, or with TensorRT-RTX for `target`.

    `target` is an architecture such as 'sm_86'; no GPU is needed then. `timing_cache` is what an
    earlier build returned (TensorRT 10 and 11; it makes the next build faster). Raises
    EdgelungError with TensorRT's own words where the graph is refused.
    """
    trt, logger = flavour.trt, logger_of(flavour)
    logger.errors.clear()
    builder = trt.Builder(logger)
    network = builder.create_network(1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED))
    parser = trt.OnnxParser(network, logger)
    try:
        data = graph.read_bytes()
    except OSError as error:
        raise EdgelungError(f"cannot read {graph}: {error.strerror}") from error
    if not parser.parse(data):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise _refusal(flavour, graph, [_parser_error(error) for error in errors])
    config = builder.create_builder_config()
    # FP32 is the reference: computed as FP32 and not in TF32, TensorRT's default.
    config.clear_flag(trt.BuilderFlag.TF32)
    tiles = network.get_input(0)
    shape = tuple(tiles.shape)  # (-1, H, W, 3)
    bounds = [(n, *shape[1:]) for n in (1, profile.best, profile.most)]
    optimisation = builder.create_optimization_profile()
    optimisation.set_shape(INPUT, *bounds)
    config.add_optimization_profile(optimisation)
    if target is not None:
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(_capability(flavour, target), 0):
            raise EdgelungError(f"{flavour.title} refuses the target {target}")
    cache = None
    if not flavour.ahead_of_time:
        cache = config.create_timing_cache(timing_cache)
        config.set_timing_cache(cache, False)  # one that does not fit costs time alone
    contents = describe(trt, network)
    plan = builder.build_serialized_network(network, config)
    if plan is None:
        raise _refusal(flavour, graph, logger.errors)
    return Built(bytes(plan), contents, bytes(cache.serialize()) if cache is not None else b"")


def check_targets(flavour: Flavour, targets: Sequence[str]) -> list[str]:
    """The targets in their usual form; raises EdgelungError for one that cannot be built for."""
    known = flavour.targets()
    if not known:
        raise EdgelungError(
            f"{flavour.title} builds for the GPU of the machine alone; "
            "--target needs --engine tensorrt-rtx"
        )
    named = [target.strip().lower() for target in targets]
    for target in named:
        if target not in known:
            raise EdgelungError(
                f"{flavour.title} has no target {target!r}; it builds for {', '.join(known)}"
            )
    return list(dict.fromkeys(named))


def describe(trt: Any, network: Any) -> Contents:
    """Layers and linears of a parsed network.

    A linear is a matrix product or convolution with constant weights (attention's products of two
    activations are none); it is quantized where both operands come out of a dequantization.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    producer = {
        layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)
    }
    linears = quantized = 0
    types: Counter[str] = Counter()
    for layer in layers:
        if layer.type.name not in LINEARS:
            continue
        operands = [layer.get_input(i) for i in range(min(layer.num_inputs, 2))]
        weights = operands[1] if len(operands) > 1 else None  # a convolution may hold its own
        if weights is not None and _kind(_source(producer, weights, BETWEEN)) != "CONSTANT":
            continue
        linears += 1
        sources = [_source(producer, tensor) for tensor in operands]
        in_eight_bits = len(sources) == 2 and all(_kind(s) == "DEQUANTIZE" for s in sources)
        quantized += in_eight_bits
        operand = sources[0].get_input(0) if in_eight_bits else operands[0]
        types[operand.dtype.name] += 1
    kinds = Counter(layer.type.name for layer in layers)
    return Contents(len(layers), linears, quantized, dict(kinds.most_common()), dict(types))


def _source(producer: dict[str, Any], tensor: Any, through: Sequence[str] = ("SHUFFLE",)) -> Any:
    """The layer that a tensor comes from, looking through some kinds; None for an input."""
    while tensor is not None and (layer := producer.get(tensor.name)) is not None:
        if _kind(layer) not in through:
            return layer
        tensor = layer.get_input(0)
    return None


def _kind(layer: Any) -> str:
    return str(layer.type.name) if layer is not None else ""


def _capability(flavour: Flavour, target: str) -> Any:
    (target,) = check_targets(flavour, [target])
    return flavour.trt.ComputeCapability.__members__[target.upper().replace("_", "")]


def _parser_error(error: Any) -> str:
    node = error.node_name() or f"number {error.node()}"
    return f"node {node} ({error.node_operator()}): {error.desc()}"


def _refusal(flavour: Flavour, graph: Path, errors: Sequence[str]) -> EdgelungError:
    words = [one_line(error, 240) for error in errors] or ["it gave no reason"]
    more = f" (and {len(words) - 1} more)" if len(words) > 1 else ""
    return EdgelungError(
        f"{flavour.title} refuses {graph.name}: {words[0]}{more}. Graphs that edgelung exports "
        "are accepted by it: export the bundle again, or choose another --engine"
    )
