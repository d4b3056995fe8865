"""From a bundle's ONNX file to a TensorRT engine: one strongly typed network, one profile.

The precision is written into the file (FP32, typed FP16, INT8 or FP8 as Q/DQ), so the builder is
given no precision flag. TensorRT 11 has none left, and what ONNX Runtime measured on the same file
stays evidence.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from edgelung.core.errors import EdgelungError, one_line
from edgelung.engines.base import Graph
from edgelung.engines.tensorrt.api import (
    ErrorLog,
    Layer,
    Member,
    Network,
    Parser,
    ParserError,
    Serializable,
    Tensor,
)
from edgelung.engines.tensorrt.flavour import Flavour, error_log

LINEARS = ("MATRIX_MULTIPLY", "CONVOLUTION")
# Layers that may stand between a linear layer and its weights.
WEIGHT_TRANSFORMS = ("DEQUANTIZE", "QUANTIZE", "SHUFFLE", "CAST")


@dataclass(frozen=True)
class Profile:
    """Batch sizes: from 1 to `max_batch` tiles run, kernels are chosen for `opt_batch`."""

    opt_batch: int = 32
    max_batch: int = 128

    def __str__(self) -> str:
        return f"1/{self.opt_batch}/{self.max_batch}"


@dataclass(frozen=True)
class NetworkSummary:
    """What a parsed network holds: layers by kind, linear layers by the type of their operands."""

    layers: int
    linears: int
    quantized_linears: int
    kinds: dict[str, int]
    types: dict[str, int]


@dataclass(frozen=True)
class BuiltEngine:
    """A serialized engine (`plan`): executable code, to be kept where only its user can write.

    `timing_cache` makes the next build faster; TensorRT-RTX has none.
    """

    plan: bytes = field(repr=False)
    contents: NetworkSummary
    timing_cache: bytes = field(default=b"", repr=False)


def build_engine(
    flavour: Flavour,
    graph: Graph,
    profile: Profile,
    *,
    target: str | None = None,
    timing_cache: bytes = b"",
) -> BuiltEngine:
    """Build an engine of an ONNX file.

    Args:
        flavour: the TensorRT that builds it.
        graph: the ONNX file.
        profile: the batch sizes.
        target: an architecture such as 'sm_86', for which TensorRT-RTX builds without a GPU; None
            builds for this machine's GPU.
        timing_cache: what an earlier build returned (TensorRT 10 and 11).

    Raises:
        EdgelungError: with TensorRT's own message if it refuses the graph or the target.
    """
    trt, log = flavour.trt, error_log(flavour)
    log.errors.clear()
    builder = trt.Builder(log)
    network: Network = builder.create_network(
        1 << int(trt.NetworkDefinitionCreationFlag.STRONGLY_TYPED)
    )
    parser = _parse(flavour, graph, network, log)
    config = builder.create_builder_config()
    # FP32 is the reference: compute it in FP32, not in TF32, TensorRT's default.
    config.clear_flag(trt.BuilderFlag.TF32)
    tensor = network.get_input(0)
    row = tuple(tensor.shape)[1:]  # of tiles (H, W, 3), of tokens (T, D)
    batches = (1, profile.opt_batch, profile.max_batch)
    optimization = builder.create_optimization_profile()
    optimization.set_shape(tensor.name, *((batch, *row) for batch in batches))
    config.add_optimization_profile(optimization)
    if target is not None:
        config.num_compute_capabilities = 1
        if not config.set_compute_capability(_capability(flavour, target), 0):
            raise EdgelungError(f"{flavour.title} refuses the target {target}")
    timings: Serializable | None = None
    if not flavour.ahead_of_time:
        timings = config.create_timing_cache(timing_cache)
        config.set_timing_cache(timings, False)  # one that does not fit only costs time
    summary = summarize(network)
    plan = builder.build_serialized_network(network, config)
    del parser  # TensorRT needs it until the network is built
    if plan is None:
        raise _refusal(flavour, graph, log.errors)
    return BuiltEngine(
        bytes(plan), summary, bytes(timings.serialize()) if timings is not None else b""
    )


def check_targets(flavour: Flavour, targets: Sequence[str]) -> list[str]:
    """Return the targets in lower case and without repeats.

    Raises:
        EdgelungError: if the flavour cannot build for one of them.
    """
    supported = flavour.targets()
    if not supported:
        raise EdgelungError(
            f"{flavour.title} only builds for the GPU of the machine it runs on; "
            "--target needs --engine tensorrt-rtx"
        )
    names = [target.strip().lower() for target in targets]
    for name in names:
        if name not in supported:
            raise EdgelungError(
                f"{flavour.title} has no target {name!r}; it builds for {', '.join(supported)}"
            )
    return list(dict.fromkeys(names))


def summarize(network: Network) -> NetworkSummary:
    """Count the layers and the linear layers of a parsed TensorRT network.

    A linear layer is a matrix product or convolution with constant weights; attention's products of
    two activations are not. It is quantized if both operands come from a dequantization.
    """
    layers = [network.get_layer(i) for i in range(network.num_layers)]
    producers = {
        layer.get_output(i).name: layer for layer in layers for i in range(layer.num_outputs)
    }
    linears = quantized = 0
    types: Counter[str] = Counter()
    for layer in layers:
        if layer.type.name not in LINEARS:
            continue
        operands = [layer.get_input(i) for i in range(min(layer.num_inputs, 2))]
        weights = operands[1] if len(operands) > 1 else None  # a convolution may hold its own
        origin = _source(producers, weights, WEIGHT_TRANSFORMS)
        if weights is not None and _kind(origin) != "CONSTANT":
            continue
        linears += 1
        sources = [_source(producers, tensor) for tensor in operands]
        operand, source = operands[0], sources[0]
        if len(sources) == 2 and all(_kind(layer) == "DEQUANTIZE" for layer in sources):
            quantized += 1
            operand = source.get_input(0) if source is not None else None
        assert operand is not None
        types[operand.dtype.name] += 1
    kinds = Counter(layer.type.name for layer in layers)
    return NetworkSummary(len(layers), linears, quantized, dict(kinds.most_common()), dict(types))


def _parse(flavour: Flavour, graph: Graph, network: Network, log: ErrorLog) -> Parser:
    """Parse the ONNX file into the network, and return the parser, which owns the weights."""
    parser: Parser = flavour.trt.OnnxParser(network, log)
    if not parser.parse(graph.read()):
        errors = [parser.get_error(i) for i in range(parser.num_errors)]
        raise _refusal(flavour, graph, [_describe(error) for error in errors])
    return parser


def _source(
    producers: Mapping[str, Layer], tensor: Tensor | None, through: Sequence[str] = ("SHUFFLE",)
) -> Layer | None:
    """Return the layer that a tensor comes from, skipping the kinds `through`; None for inputs."""
    while tensor is not None and (layer := producers.get(tensor.name)) is not None:
        if _kind(layer) not in through:
            return layer
        tensor = layer.get_input(0)
    return None


def _kind(layer: Layer | None) -> str:
    return str(layer.type.name) if layer is not None else ""


def _capability(flavour: Flavour, target: str) -> Member:
    (target,) = check_targets(flavour, [target])
    members: dict[str, Member] = flavour.trt.ComputeCapability.__members__
    return members[target.upper().replace("_", "")]


def _describe(error: ParserError) -> str:
    node = error.node_name() or f"number {error.node()}"
    return f"node {node} ({error.node_operator()}): {error.desc()}"


def _refusal(flavour: Flavour, graph: Graph, errors: Sequence[str]) -> EdgelungError:
    reasons = [one_line(error, 240) for error in errors] or ["it gave no reason"]
    more = f" (and {len(reasons) - 1} more)" if len(reasons) > 1 else ""
    return EdgelungError(
        f"{flavour.title} refuses {graph.name}: {reasons[0]}{more}. It accepts the graphs that "
        "edgelung exports: export the bundle again, or choose another --engine"
    )
