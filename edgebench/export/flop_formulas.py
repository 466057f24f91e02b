"""The operations of one node, by its operator: docs/flops.md has the list in words.

A formula sees shapes and attributes alone. Sources: the operators' own definitions (onnx.ai/onnx,
and docs/ContribOperators.md in ONNX Runtime's repository).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

Shape = tuple[int, ...]

#: Ops of other domains that have a formula; functions of other domains are inlined and counted.
OURS, MICROSOFT = "edgebench", "com.microsoft"


@dataclass(frozen=True)
class Node:
    """A node with the shapes of what it reads and gives (() where there is none)."""

    op: str
    inputs: Sequence[Shape]
    outputs: Sequence[Shape]
    attributes: Mapping[str, Any]
    stored: Sequence[bool]  # which inputs are initialisers

    @property
    def given(self) -> int:
        """Elements of the first output."""
        return math.prod(self.outputs[0])

    @property
    def taken(self) -> int:
        """Elements of the first input."""
        return math.prod(self.inputs[0])


def flops_of(node: Node) -> int | None:
    """A node's operations by its operator's formula, or None where there is none."""
    if node.op in _MOVING:
        return 0
    if node.op in _EACH:
        return _EACH[node.op] * node.given
    formula = _FORMULAS.get(node.op)
    return None if formula is None else formula(node)


def _matmul(node: Node) -> int:
    """Y[.., m, n] = A[.., m, k] B[.., k, n]."""
    return 2 * node.given * node.inputs[0][-1] if node.inputs[0] else 0


def _gemm(node: Node) -> int:
    """Y = A B + C, either turned."""
    k = node.inputs[0][0 if node.attributes.get("transA") else 1]
    biased = len(node.inputs) > 2
    return (2 * k + biased) * node.given


def _qlinear_matmul(node: Node) -> int:
    """As MatMul, and rounding what it gives."""
    return (2 * node.inputs[0][-1] + 2) * node.given


def _few_bits(node: Node) -> int:
    """MatMulNBits, MatMul3Bit: Y[.., n] = X[.., k] W, with N and K as attributes."""
    biased = len(node.inputs) > 5 and bool(node.inputs[5])
    return (2 * int(node.attributes["K"]) + biased) * node.given


def _gather_few_bits(node: Node) -> int:
    """A look-up that multiplies each code by its scale."""
    return node.given


def _dequantize(node: Node) -> int:
    """(q - z) s an element; nothing where q is stored: done at load, or within the product."""
    return 0 if node.stored[0] else 2 * node.given


def _attention(node: Node) -> int:
    """Grouped-query attention: Q K^T and P V, and five a score for the softmax.

    Query [b, s, h d] and key [b, s, g d] by inputs; the keys that a query may see by output 1, the
    present [b, g, t, d], where there is one. Masked scores are counted, as kernels compute them.
    """
    heads = int(node.attributes.get("num_heads", 1))
    batch, queries = node.inputs[0][0], node.inputs[0][1]
    present = node.outputs[1] if len(node.outputs) > 1 and node.outputs[1] else None
    packed = len(node.inputs) < 2 or not node.inputs[1]
    keys = present[2] if present else (queries if packed else node.inputs[1][1])
    width = node.outputs[0][-1]  # heads times the size of one
    return 4 * batch * queries * keys * width + 5 * batch * heads * queries * keys


def _einsum(node: Node) -> int | None:
    """2 times the product of all indices, of two operands."""
    equation = node.attributes["equation"]
    text = equation.decode() if isinstance(equation, bytes) else str(equation)
    left = text.replace(" ", "").partition("->")[0].split(",")
    if len(left) != 2 or "." in text:
        return None
    sizes: dict[str, int] = {}
    for names, shape in zip(left, node.inputs, strict=True):
        sizes |= dict(zip(names, shape, strict=True))
    return 2 * math.prod(sizes.values())


def _convolution(node: Node) -> int:
    """2 times the kernel's elements for one output, for each output."""
    kernel = math.prod(node.inputs[1][1:])
    biased = len(node.inputs) > 2
    return (2 * kernel + biased) * node.given


def _read(node: Node) -> int:
    """One an element of what it reads."""
    return node.taken


# Operators by name, as one text a kind: a table of single names would be pages long.
_MOVING_TEXT = """
    Cast CastLike Concat ConstantOfShape Expand Flatten Gather GatherElements GatherND Identity
    NonZero OneHot Pad Range Reshape ScatterElements ScatterND Shape Size Slice Split Squeeze Tile
    Transpose Trilu Unsqueeze Where Dropout TopK ArgMax ArgMin BitShift BitwiseAnd BitwiseOr
    BitwiseXor BitwiseNot EyeLike ReverseSequence DepthToSpace SpaceToDepth
"""
_ONE_TEXT = """
    Abs Add And Ceil Clip Cos Div Elu Equal Erf Exp Floor Gelu Greater GreaterOrEqual HardSigmoid
    IsInf IsNaN LeakyRelu Less LessOrEqual Log Max Mean Min Mod Mul Neg Not Or Pow PRelu Reciprocal
    Relu Round Selu Sigmoid Sign Sin Softplus Sqrt Sub Sum Tan Tanh Xor CumSum
"""
_READ_TEXT = "ReduceMean ReduceSum ReduceMax ReduceMin ReduceProd ReduceL1 GlobalAveragePool"

#: Operators that move, convert, look up, choose, or compute shapes.
_MOVING = frozenset(_MOVING_TEXT.split())

#: Operations an element of the first output.
_EACH: dict[str, int] = {
    **dict.fromkeys(_ONE_TEXT.split(), 1),
    f"{MICROSOFT}.Gelu": 1,
    f"{MICROSOFT}.FastGelu": 1,
    f"{MICROSOFT}.BiasGelu": 2,
    f"{MICROSOFT}.QuickGelu": 2,
    "HardSwish": 3,
    # Largest, subtract, exponential, sum, divide.
    "Softmax": 5,
    "LogSoftmax": 5,
    # Mean (1), subtract (1), square and mean (2), root (1), divide (1), scale and shift (2).
    "LayerNormalization": 8,
    "GroupNormalization": 8,
    "InstanceNormalization": 8,
    "BatchNormalization": 2,
    # Square and mean (2), root (1), divide (1), scale (1).
    "RMSNormalization": 5,
    "SimplifiedLayerNormalization": 5,
    f"{MICROSOFT}.SimplifiedLayerNormalization": 5,
    # The addition before it, and that of a bias.
    f"{MICROSOFT}.SkipLayerNormalization": 9,
    f"{MICROSOFT}.SkipSimplifiedLayerNormalization": 6,
    # Two products and an addition.
    "RotaryEmbedding": 3,
    f"{MICROSOFT}.RotaryEmbedding": 3,
    # Divide and round.
    "QuantizeLinear": 2,
    # The range (2), then the same.
    "DynamicQuantizeLinear": 4,
}

_FORMULAS: dict[str, Callable[[Node], int | None]] = {
    "MatMul": _matmul,
    "MatMulInteger": _matmul,
    "Gemm": _gemm,
    "QLinearMatMul": _qlinear_matmul,
    f"{MICROSOFT}.MatMulNBits": _few_bits,
    f"{OURS}.MatMul3Bit": _few_bits,
    f"{OURS}.Gather3Bit": _gather_few_bits,
    f"{OURS}.Gather4Bit": _gather_few_bits,
    f"{MICROSOFT}.GatherBlockQuantized": _gather_few_bits,
    "DequantizeLinear": _dequantize,
    f"{MICROSOFT}.DequantizeLinear": _dequantize,
    f"{MICROSOFT}.GroupQueryAttention": _attention,
    f"{MICROSOFT}.MultiHeadAttention": _attention,
    "Einsum": _einsum,
    "Conv": _convolution,
    **dict.fromkeys(_READ_TEXT.split(), _read),
    "ReduceL2": lambda node: 2 * node.taken,
    "ReduceSumSquare": lambda node: 2 * node.taken,
    "ReduceLogSumExp": lambda node: 2 * node.taken,
}


def has_formula(op: str) -> bool:
    return op in _MOVING or op in _EACH or op in _FORMULAS


def formulas() -> Iterator[tuple[str, str]]:
    """Operator and formula in words, of all that are counted; for the documentation's test."""
    yield from ((op, f"{each} y") for op, each in _EACH.items())
    yield from ((op, (function.__doc__ or "").strip()) for op, function in _FORMULAS.items())
