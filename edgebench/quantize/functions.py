"""The bodies of ``edgebench::MatMul3Bit`` and ``edgebench::Gather3Bit`` in standard ONNX.

Both read weights in the planes of ``packing`` and fp16 scales [N, ceil(K / block_size)], and stand in
the model as local functions. A runtime that has no kernel for them inlines the body; one that has
a kernel of that name and domain takes the node over.

    MatMul3Bit(X [.., K], low, high, scales) -> Y [.., N]     Y = X W^T
    Gather3Bit(low, high, scales, indices [..]) -> Y [.., K]  Y = W[indices]
    W[n, k] = scales[n, k div block_size] * code[n, k]        attributes K, N, block_size

What decides the form of MatMul3Bit's body is what ONNX Runtime 1.31 does with it. Everything down to
``codes`` [K, N] is constant and folded at load; the blocked DequantizeLinear (opset 21) on INT4 that
is left before the MatMul is fused into com.microsoft::MatMulNBits with bits=4. It fuses only with the
codes transposed before DequantizeLinear, not with a Transpose after it.

The cast to INT4 keeps the low four bits (ONNX: integers out of range lose their high-order bits), so
the sign bit is written twice, into bits 2 and 3, to extend the sign.
"""

from __future__ import annotations

from collections.abc import Sequence

import onnx
from onnx import TensorProto, helper

DOMAIN = "edgebench"
DOMAIN_VERSION = 1
OPSET = 21
"""Blocked DequantizeLinear and INT4 are of opset 21."""

MATMUL, GATHER = "MatMul3Bit", "Gather3Bit"
ATTRIBUTES = ("K", "N", "block_size")


def matmul() -> onnx.FunctionProto:
    """Y = X W^T with W decoded from its planes; see the module's text."""
    body = _Body()
    k = body.attribute("K", "k")
    rows = body.codes("low", "high", sign_bits=(2, 3))
    rows = body.node("Slice", [rows, body.ints([0]), k, body.ints([1])])
    columns = body.node("Transpose", [rows], perm=[1, 0])
    columns = body.node("Cast", [columns], to=TensorProto.INT4)
    scales = body.node("Cast", ["scales"], to=TensorProto.FLOAT)
    scales = body.node("Transpose", [scales], perm=[1, 0])
    weight = body.dequantize(columns, scales, axis=0)
    body.node("MatMul", ["X", weight], output="Y")
    return body.function(MATMUL, ["X", "low", "high", "scales"], ["Y"])


def gather() -> onnx.FunctionProto:
    """Y = W[indices], decoding only the rows that are looked up; see the module's text."""
    body = _Body()
    k = body.attribute("K", "k")
    low = body.node("Gather", ["low", "indices"], axis=0)
    high = body.node("Gather", ["high", "indices"], axis=0)
    rows = body.codes(low, high, sign_bits=(2, 3), like="indices")
    rows = body.node("Slice", [rows, body.ints([0]), k, body.ints([-1])])
    rows = body.node("Cast", [rows], to=TensorProto.INT4)
    scales = body.node("Gather", ["scales", "indices"], axis=0)
    scales = body.node("Cast", [scales], to=TensorProto.FLOAT)
    body.dequantize(rows, scales, axis=-1, output="Y")
    return body.function(GATHER, ["low", "high", "scales", "indices"], ["Y"])


class _Body:
    """A list of nodes under construction, with fresh names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []

    def node(
        self,
        op_type: str,
        inputs: Sequence[str],
        *,
        output: str | None = None,
        **attributes: object,
    ) -> str:
        name = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], **attributes))
        return name

    def bytes(self, values: Sequence[int]) -> str:
        tensor = helper.make_tensor("", TensorProto.UINT8, [len(values)], values)
        return self.node("Constant", [], value=tensor)

    def ints(self, values: Sequence[int]) -> str:
        return self.node("Constant", [], value_ints=values)

    def attribute(self, attribute: str, output: str) -> str:
        """The function's own integer attribute as a tensor [1]."""
        node = helper.make_node("Constant", [], [f"{output}_0"])
        node.attribute.append(_reference("value_int", attribute))
        self.nodes.append(node)
        return self.node("Unsqueeze", [f"{output}_0", self.ints([0])], output=output)

    def codes(
        self, low: str, high: str, *, sign_bits: Sequence[int], like: str | None = None
    ) -> str:
        """Sign-extended codes as uint8 [.., K8] of planes [.., K8/4] and [.., K8/8].

        Leading dimensions are those of ``like``, or one when it is None.
        """
        two = self._spread(low, [0, 2, 4, 6], 3, like)
        sign = self._spread(high, [0, 1, 2, 3, 4, 5, 6, 7], 1, like)
        for bit in sign_bits:
            shifted = self.node("BitShift", [sign, self.bytes([bit])], direction="LEFT")
            two = self.node("BitwiseOr", [two, shifted])
        return two

    def dequantize(self, codes: str, scales: str, *, axis: int, output: str | None = None) -> str:
        name = self.node("DequantizeLinear", [codes, scales], output=output, axis=axis)
        self.nodes[-1].attribute.append(_reference("block_size", "block_size"))
        return name

    def function(
        self, name: str, inputs: Sequence[str], outputs: Sequence[str]
    ) -> onnx.FunctionProto:
        return helper.make_function(
            DOMAIN,
            name,
            list(inputs),
            list(outputs),
            self.nodes,
            [helper.make_opsetid("", OPSET)],
            attributes=list(ATTRIBUTES),
        )

    def _spread(self, plane: str, shifts: Sequence[int], mask: int, like: str | None) -> str:
        """Fields of each byte side by side along the last axis."""
        wide = self.node("Unsqueeze", [plane, self.ints([-1])])
        wide = self.node("BitShift", [wide, self.bytes(shifts)], direction="RIGHT")
        wide = self.node("BitwiseAnd", [wide, self.bytes([mask])])
        if like is None:
            return self.node("Reshape", [wide, self.ints([0, -1])])
        shape = self.node("Concat", [self.node("Shape", [like]), self.ints([-1])], axis=0)
        return self.node("Reshape", [wide, shape])


def _reference(attribute: str, function_attribute: str) -> onnx.AttributeProto:
    return onnx.AttributeProto(
        name=attribute, ref_attr_name=function_attribute, type=onnx.AttributeProto.INT
    )
