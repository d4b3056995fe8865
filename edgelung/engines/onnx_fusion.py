"""Rewrite a bundle's graph with ONNX Runtime's fused operators, for its CUDA provider.

ONNX Runtime itself finds the sum of a bias and GELU in the graphs that edgelung exports, but
neither attention nor the sums of the residual stream. What the exporter writes is known, so three
patterns are enough:

    product, bias, split, heads, scores, softmax, values, heads  →  Attention
    the same where queries have a product of their own           →  MultiHeadAttention
    product + bias + residual stream, LayerNormalization         →  SkipLayerNormalization

The arithmetic is that of the plain graph in another order of sums. The result is no file of a
bundle: it stays in the private cache, and the golden tiles are checked on it before it predicts.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from onnx import ModelProto, NodeProto

DOMAIN = "com.microsoft"  # of ONNX Runtime's own operators
RULES = "1"  # raise this when what is fused changes: results are cached


def fuse(plain: bytes, *, fp32: bool = False) -> tuple[bytes, int]:
    """Return the graph with fused operators, and how many there are; 0 leaves it as it is.

    A graph whose tokens are FP32 is a reference, and stays plain unless `fp32`.

    Raises:
        ImportError: if the package onnx is not installed.
    """
    import onnx

    model = onnx.load_model_from_string(plain)
    rewriter = _Rewriter(model)
    if not (fp32 or rewriter.in_fp16):
        return plain, 0
    count = rewriter.fuse_attention() + rewriter.fuse_layer_norms()
    if not count:
        return plain, 0
    rewriter.finish()
    model.opset_import.append(onnx.helper.make_opsetid(DOMAIN, 1))
    return model.SerializeToString(), count


class _Rewriter:
    """Replaces nodes of one model. A node that nobody reads any more is removed at the end."""

    def __init__(self, model: ModelProto) -> None:
        self._graph = model.graph
        self._constants = {tensor.name: tensor for tensor in model.graph.initializer}
        self._nodes: list[NodeProto] = list(model.graph.node)
        self._producers = {name: node for node in self._nodes for name in node.output}
        self._consumers: dict[str, list[NodeProto]] = {}
        for node in self._nodes:
            for name in node.input:
                self._consumers.setdefault(name, []).append(node)

    @property
    def in_fp16(self) -> bool:
        """True if the layer norms, and so the tokens between the linears, are FP16."""
        norms = [node for node in self._nodes if node.op_type == "LayerNormalization"]
        fp16 = 10  # TensorProto.FLOAT16
        return bool(norms) and self._constants[norms[0].input[1]].data_type == fp16

    def fuse_attention(self) -> int:
        """Fuse the attention around every softmax; returns how many were found."""
        found = [self._attention(node) for node in list(self._nodes) if node.op_type == "Softmax"]
        return sum(found)

    def fuse_layer_norms(self) -> int:
        """Fuse every layer norm with the sum before it; returns how many were found."""
        norms = [node for node in self._nodes if node.op_type == "LayerNormalization"]
        return sum(self._layer_norm(node) for node in norms)

    def finish(self) -> None:
        """Write the nodes that an output depends on, in their order."""
        needed = {value.name for value in self._graph.output}
        kept = []
        for node in reversed(self._nodes):
            if not needed.isdisjoint(node.output):
                kept.append(node)
                needed.update(node.input)
        del self._graph.node[:]
        self._graph.node.extend(reversed(kept))
        constants = [tensor for tensor in self._graph.initializer if tensor.name in needed]
        del self._graph.initializer[:]
        self._graph.initializer.extend(constants)

    def _attention(self, softmax: NodeProto) -> bool:
        scores = self._producer(softmax.input[0], "MatMul")
        product = self._only_consumer(softmax.output[0], "MatMul")
        joined = self._only_consumer(product and product.output[0], "Transpose")
        out = self._only_consumer(joined and joined.output[0], "Reshape")
        if scores is None or product is None or out is None:
            return False
        turned = self._producer(scores.input[1], "Transpose")
        heads = [
            self._split_heads(name)
            for name in (scores.input[0], turned and turned.input[0], product.input[1])
        ]
        inputs = [name for name, _ in filter(None, heads)]
        counts = {count for _, count in filter(None, heads)}
        if len(inputs) < 3 or len(counts) != 1:
            return False
        # The queries' weights hold 1/√d, so nothing is scaled here.
        attributes = {"num_heads": counts.pop(), "scale": 1.0}
        if whole := self._one_product(inputs):
            self._replace(out, "Attention", whole, [out.output[0]], **attributes)
        else:
            self._replace(out, "MultiHeadAttention", inputs, [out.output[0]], **attributes)
        return True

    def _split_heads(self, name: str | None) -> tuple[str, int] | None:
        """What is split into heads (N, T, D) → (N, heads, T, d), and their number."""
        from onnx import numpy_helper

        turned = self._producer(name, "Transpose")
        split = self._producer(turned and turned.input[0], "Reshape")
        shape = self._constants.get(split.input[1]) if split is not None else None
        if split is None or shape is None or list(shape.dims) != [4]:
            return None
        return split.input[0], int(numpy_helper.to_array(shape)[2])

    def _one_product(self, parts: list[str]) -> list[str] | None:
        """Input, weight and bias of the product that queries, keys and values are split from."""
        split = self._producer(parts[0], "Split")
        if split is None or list(split.output) != parts:
            return None
        biased = self._biased(split.input[0])
        if biased is None or (product := self._producer(biased[0], "MatMul")) is None:
            return None
        x, weight = product.input
        return [x, weight, biased[1]] if weight in self._constants else None

    def _layer_norm(self, norm: NodeProto) -> bool:
        total = norm.input[0]
        residual = self._producer(total, "Add")
        if residual is None or any(name in self._constants for name in residual.input):
            return False
        x, y = residual.input
        biased = self._biased(y)
        if biased is None or len(self._consumers[y]) > 1:
            return False
        epsilon = next(a.f for a in norm.attribute if a.name == "epsilon")
        inputs = [x, biased[0], *norm.input[1:], biased[1]]
        outputs = [norm.output[0], "", "", total]
        # Where the sum stood, so that the node stands before all that read the sum.
        self._replace(residual, "SkipLayerNormalization", inputs, outputs, epsilon=epsilon)
        self._nodes.remove(norm)
        del self._producers[total]
        return True

    def _biased(self, name: str) -> tuple[str, str] | None:
        """The addends of `name` if the second is a bias, a constant of one dimension."""
        added = self._producer(name, "Add")
        bias = self._constants.get(added.input[1]) if added is not None else None
        if added is None or bias is None or len(bias.dims) != 1:
            return None
        return added.input[0], added.input[1]

    def _producer(self, name: str | None, kind: str) -> NodeProto | None:
        node = self._producers.get(name or "")
        return node if node is not None and node.op_type == kind else None

    def _only_consumer(self, name: str | None, kind: str) -> NodeProto | None:
        nodes = self._consumers.get(name or "", [])
        return nodes[0] if len(nodes) == 1 and nodes[0].op_type == kind else None

    def _replace(
        self,
        old: NodeProto,
        kind: str,
        inputs: list[str],
        outputs: list[str],
        **attributes: int | float,
    ) -> None:
        """Put a fused operator where `old` stands."""
        from onnx import helper

        name = f"fused.{old.name or outputs[0]}"
        node = helper.make_node(kind, inputs, outputs, name, domain=DOMAIN)
        node.attribute.extend(helper.make_attribute(*pair) for pair in attributes.items())
        self._nodes[self._nodes.index(old)] = node
