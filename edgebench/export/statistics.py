"""The statistics vector s and the adapter's cost, read off an exported graph.

Nothing is taken from a configuration: the graph is run once on one row of seq_len tokens, and what
is counted is what stands in it.

- **kept_layers**: attention blocks, i.e. Softmax nodes over scores that come from a product of two
  activations.
- **kept_heads**: heads of all those blocks together, the second axis of the scores
  [batch, heads, queries, keys].
- **kept_ranks**: inner widths, summed, of all low-rank branches: two constant matrices in a row,
  [k, r] then [r, n] with r < min(k, n), with no bias and nothing but scaling between (a gate for
  each token is that too, and so is rounding to integers). A merged adapter has none left, so it
  counts 0. A branch that is used twice (DeBERTa's query projection, on tokens and on positions)
  counts once here, and with each use in its FLOPs.
- **param_bits**: stored bits of all parameters: every initialiser and constant but those of 64-bit
  integers, booleans and strings, which hold shapes and indices.

The adapter's FLOPs are those of the nodes that ``graph.tidy`` marked as its own; where none is
marked (PEFT's modules), those of the low-rank branches. FLOPs count a multiplication and an
addition as two.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from edgebench.artifact import Statistics
from edgebench.export.graph import ADAPTER
from edgebench.export.module import Feed
from edgebench.export.session import run_graph

#: Operators that only scale, copy or convert: a branch or a score passes through them.
_SCALING = {"Mul", "Div", "Identity", "Cast", "Dropout"}
_SCORES = _SCALING | {"Add", "Sub", "Where", "Max", "Min", "Clip", "Reshape"}

#: Bits per element where it is not eight times the size of a NumPy item (onnx.proto names).
_SUB_BYTE = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
_NO_PARAMETER = {"INT64", "UINT64", "BOOL", "STRING"}


@dataclass(frozen=True)
class GraphFacts:
    """What stands in an fp32 graph; ``branch_flops`` for one row of ``seq_len`` tokens."""

    seq_len: int
    layers: int
    heads: int
    ranks: int
    branch_flops: float

    def statistics(self, model: Any) -> Statistics:
        """The vector s of a graph with this structure, stored as ``model`` stores it."""
        return self.counted(param_bits(model))

    def counted(self, bits: int) -> Statistics:
        """The vector s of a model with this structure whose parameters take so many bits."""
        return Statistics(
            seq_len=self.seq_len,
            kept_layers=self.layers,
            kept_heads=self.heads,
            kept_ranks=self.ranks,
            param_bits=bits,
        )


@dataclass(frozen=True)
class Branch:
    """A low-rank branch: its rank and factors, and the values that it computes with their FLOPs."""

    rank: int
    d_in: int
    d_out: int
    weights: tuple[str, str]
    steps: tuple[tuple[str, int], ...]  # value, FLOPs per element of the value


def read_graph(model: Any, row: Feed) -> GraphFacts:
    """Count layers, heads and ranks of an fp32 graph.

    Args:
        model: a ``ModelProto``.
        row: one row of inputs, [1, seq_len].
    """
    graph = _Graph(model)
    scores = graph.attention_scores()
    branches = graph.branches()
    marked = [node for node in graph.nodes if node.name.startswith(ADAPTER)]
    wanted = [*scores, *(value for branch in branches for value, _ in branch.steps)]
    wanted += [v for node in marked for v in (*node.input, *node.output) if v in graph.producer]
    shapes = _shapes(model, row, wanted)
    return GraphFacts(
        seq_len=next(iter(row.values())).shape[1],
        layers=len(scores),
        heads=sum(shapes[value][1] for value in scores if len(shapes[value]) == 4),
        ranks=sum({branch.weights: branch.rank for branch in branches}.values()),
        branch_flops=float(
            sum(_flops(node, {**graph.constants, **shapes}) for node in marked)
            if marked
            else sum(math.prod(shapes[v]) * each for branch in branches for v, each in branch.steps)
        ),
    )


def low_rank_branches(model: Any) -> list[Branch]:
    """Every low-rank branch of a graph."""
    return _Graph(model).branches()


def _flops(node: Any, shapes: dict[str, tuple[int, ...]]) -> int:
    """FLOPs of one node of an adapter's branch; an operator that only moves values has none."""
    elements = math.prod(shapes[node.output[0]])
    if node.op_type in {"MatMul", "Gemm", "MatMulInteger"}:
        biased = elements if node.op_type == "Gemm" and len(node.input) > 2 else 0
        return 2 * elements * shapes[node.input[0]][-1] + biased
    if node.op_type == "DictionaryUpdate":
        # A token: r from k atoms, its norm, its product with x, and r scaled.
        return elements * (2 * shapes[node.input[1]][-1] + 5)
    return elements * _PER_ELEMENT.get(node.op_type, 0)


#: FLOPs an element of what an operator gives.
_PER_ELEMENT = {
    **dict.fromkeys(("Add", "Sub", "Mul", "Div", "Round", "Greater", "Equal", "And", "Where"), 1),
    **dict.fromkeys(("Sigmoid", "Tanh", "Exp", "Sqrt", "Pow", "Max", "Min", "Or"), 1),
    "Softmax": 5,
    "DynamicQuantizeLinear": 4,
}


def param_bits(model: Any) -> int:
    """Stored bits of all parameters of a graph, its functions included."""
    return sum(tensor_bits(tensor) for tensor in _constants(model))


class _Graph:
    """A graph's nodes by what they make and take."""

    def __init__(self, model: Any) -> None:
        nodes = model.graph.node
        self.nodes = list(nodes)
        self.producer = {value: node for node in nodes for value in node.output}
        self.consumers: dict[str, list[Any]] = defaultdict(list)
        for node in nodes:
            for value in node.input:
                self.consumers[value].append(node)
        self.constants = {tensor.name: tuple(tensor.dims) for tensor in model.graph.initializer}
        for node in nodes:
            if node.op_type == "Constant":
                for attribute in node.attribute:
                    self.constants[node.output[0]] = tuple(attribute.t.dims)
            elif node.op_type == "Cast" and node.input[0] in self.constants:
                self.constants[node.output[0]] = self.constants[node.input[0]]

    def attention_scores(self) -> list[str]:
        """Inputs of the Softmax nodes that are attention's."""
        softmaxes = [node for node in self.nodes if node.op_type == "Softmax"]
        return [n.input[0] for n in softmaxes if self._from_activations(n.input[0])]

    def branches(self) -> list[Branch]:
        found = []
        for down in self.nodes:
            width = self._linear(down)
            if width is None:
                continue
            steps = [(down.output[0], 2 * width[0])]
            last = self._through_scaling(down.output[0], steps)
            # Where the second product is of integers too, what it takes is rounded first.
            rounding = self.consumers[last]
            if len(rounding) == 1 and rounding[0].op_type == "DynamicQuantizeLinear":
                last = rounding[0].output[0]
                steps.append((last, 4))
            followers = self.consumers[last]
            if len(followers) != 1 or followers[0].input[0] != last:
                continue
            (up,) = followers
            grown = self._linear(up)
            if grown is None or grown[0] != width[1] or width[1] >= min(width[0], grown[1]):
                continue
            steps.append((up.output[0], 2 * grown[0]))
            last = self._through_scaling(up.output[0], steps)
            # The addition that joins the branch to the base's own output.
            steps += [(n.output[0], 1) for n in self.consumers[last] if n.op_type == "Add"]
            weights = (down.input[1], up.input[1])
            found.append(Branch(width[1], width[0], grown[1], weights, tuple(steps)))
        return found

    def _linear(self, node: Any) -> tuple[int, int] | None:
        """(in, out) of a product with a constant matrix and no bias, or None."""
        plain = node.op_type in {"MatMul", "Gemm"} and len(node.input) == 2
        if not plain and node.op_type != "MatMulInteger":
            return None
        shape = self.constants.get(node.input[1])
        if shape is None or len(shape) != 2:
            return None
        turned = any(a.name == "transB" and a.i for a in node.attribute)
        return (shape[1], shape[0]) if turned else (shape[0], shape[1])

    def _through_scaling(self, value: str, steps: list[tuple[str, int]]) -> str:
        """Follow a value through operators that only scale it, noting their cost."""
        while len(self.consumers[value]) == 1 and self.consumers[value][0].op_type in _SCALING:
            (node,) = self.consumers[value]
            others = [v for v in node.input if v != value and v not in self.constants]
            if not all(node.op_type == "Mul" and self._is_factor(v) for v in others):
                break
            value = node.output[0]
            steps.append((value, 1 if node.op_type in {"Mul", "Div"} else 0))
        return value

    def _is_factor(self, value: str) -> bool:
        """Whether a value is a gate for each token and rank, in (0, 1), or the scale of integers:
        that of rounded activations, times constants."""
        node = self.producer.get(value)
        if node is None:
            return value in self.constants
        if node.op_type == "Mul":
            return all(self._is_factor(operand) for operand in node.input)
        scale = node.op_type == "DynamicQuantizeLinear" and value == node.output[1]
        return bool(scale or node.op_type == "Sigmoid")

    def _from_activations(self, value: str) -> bool:
        """Whether a value is, but for scaling and masking, a product of two activations."""
        node = self.producer.get(value)
        if node is None:
            return False
        if node.op_type == "MatMul":
            return not any(operand in self.constants for operand in node.input)
        return node.op_type in _SCORES and any(self._from_activations(v) for v in node.input)


def _shapes(model: Any, row: Feed, values: list[str]) -> dict[str, tuple[int, ...]]:
    """The shapes that these values have for one row, by running the graph.

    Running it is exact for whatever road wrote the graph; ONNX's own shape inference gives up
    where a shape is computed from an input's.
    """
    import onnx

    values = list(dict.fromkeys(values))
    if not values:
        return {}
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    have = {output.name for output in watched.graph.output}
    watched.graph.output.extend(onnx.ValueInfoProto(name=v) for v in values if v not in have)
    (results,) = run_graph(watched.SerializeToString(), [row], "exported", outputs=values)
    return {value: result.shape for value, result in zip(values, results, strict=True)}


def _constants(model: Any) -> Iterable[Any]:
    """Every constant tensor of a model: initialisers, and Constant nodes wherever they stand."""
    yield from model.graph.initializer
    for nodes in (model.graph.node, *(function.node for function in model.functions)):
        for node in nodes:
            if node.op_type == "Constant":
                yield from (a.t for a in node.attribute if a.HasField("t"))


def tensor_bits(tensor: Any) -> int:
    """Stored bits of a tensor; none for shapes and indices (64-bit integers, booleans, text)."""
    import onnx

    kind = onnx.TensorProto.DataType.Name(tensor.data_type)
    if kind in _NO_PARAMETER:
        return 0
    each = _SUB_BYTE.get(kind)
    if each is None:
        each = 8 * onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return int(math.prod(tensor.dims) * each)
