"""The bodies of ``MatMul3Bit``, ``Gather3Bit`` and ``Gather4Bit`` (domain edgebench) in ONNX.

The first two read weights in the planes of ``packing`` and fp16 scales [N, ceil(K / block_size)].
All stand in the model as local functions. A runtime that has no kernel for them inlines the body;
one that has a kernel of that name and domain takes the node over.

    MatMul3Bit(X [.., K], low, high, scales) -> Y [.., N]     Y = X W^T
    Gather3Bit(low, high, scales, indices [..]) -> Y [.., K]  Y = W[indices]
    W[n, k] = scales[n, k div block_size] * code[n, k]        attributes K, N, block_size

``Gather4Bit(codes, scales, indices)``, attributes K and block_size, is the same look-up in rows of
two's complement nibbles [N, ceil(K / 2)], the low one first. (A matrix of four bits needs no
function: ONNX has INT4, and a blocked DequantizeLinear of it before a MatMul.)

A plane is decoded by looking its bytes up in a table of 256 rows: four codes' low bits, or eight
codes' sign bits at their weight of -4; BitwiseOr joins the two. Only the rows that are looked up
are ever decoded by Gather3Bit.

What decides the form of MatMul3Bit's body is what ONNX Runtime 1.31 does with it. Everything down
to the INT4 codes [K, N] is constant and folded at load; the blocked DequantizeLinear (opset 21)
that is left before the MatMul is fused into com.microsoft::MatMulNBits with bits=4. It fuses only
with the codes transposed before DequantizeLinear, not with a Transpose after it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgebench.quantize.packing import (
    CODES_PER_BYTE,
    CODES_PER_HIGH_BYTE,
    CODES_PER_LOW_BYTE,
    LOWEST,
)

DOMAIN = "edgebench"
DOMAIN_VERSION = 1
OPSET = 21
"""Blocked DequantizeLinear and INT4 are of opset 21."""

MATMUL, GATHER, GATHER4 = "MatMul3Bit", "Gather3Bit", "Gather4Bit"
DICTIONARY = "DictionaryUpdate"
"""An adapter's own op (``edgebench.adapters.dictionary_op``); no scheme makes it."""

ATTRIBUTES = ("K", "N", "block_size")


def matmul() -> onnx.FunctionProto:
    """Y = X W^T with W decoded from its planes; see the module's text."""
    body = _Body()
    rows = body.codes("low", "high", body.ints([0]))
    columns = body.node("Transpose", [rows], perm=[1, 0])
    columns = body.node("Cast", [columns], to=TensorProto.INT4)
    scales = body.node("Cast", ["scales"], to=TensorProto.FLOAT)
    scales = body.node("Transpose", [scales], perm=[1, 0])
    weight = body.dequantize(columns, scales, axis=0)
    body.node("MatMul", ["X", weight], output="Y")
    return body.function(MATMUL, ["X", "low", "high", "scales"])


def gather() -> onnx.FunctionProto:
    """Y = W[indices], decoding only the rows that are looked up; see the module's text."""
    body = _Body()
    low = body.node("Gather", ["low", "indices"], axis=0)
    high = body.node("Gather", ["high", "indices"], axis=0)
    rows = body.codes(low, high, body.node("Shape", ["indices"]))
    scales = body.node("Gather", ["scales", "indices"], axis=0)
    scales = body.node("Cast", [scales], to=TensorProto.FLOAT)
    body.dequantize(rows, scales, axis=-1, output="Y")
    return body.function(GATHER, ["low", "high", "scales", "indices"])


def gather4() -> onnx.FunctionProto:
    """Y = W[indices] of a table of nibbles, decoding only the rows that are looked up."""
    body = _Body()
    bytes_ = body.node("Gather", ["codes", "indices"], axis=0)
    index = body.node("Cast", [bytes_], to=TensorProto.INT32)
    values = body.node("Constant", [], value=numpy_helper.from_array(_NIBBLE_TABLE))
    fields = body.node("Gather", [values, index], axis=0)
    # Not -1 for the last: a look-up of nothing would leave it undecided.
    width = body.node("Shape", [bytes_], start=-1)
    width = body.node("Mul", [width, body.ints([CODES_PER_BYTE])])
    shape = body.node("Concat", [body.node("Shape", ["indices"]), width], axis=0)
    rows = body.node("Reshape", [fields, shape])
    k = body.attribute("K")
    rows = body.node("Slice", [rows, body.ints([0]), k, body.ints([-1])])
    scales = body.node("Gather", ["scales", "indices"], axis=0)
    scales = body.node("Cast", [scales], to=TensorProto.FLOAT)
    body.dequantize(rows, scales, axis=-1, output="Y")
    return body.function(GATHER4, ["codes", "scales", "indices"], ["K", "block_size"])


class _Body:
    """A list of nodes under construction, with fresh names."""

    def __init__(self) -> None:
        self.nodes: list[onnx.NodeProto] = []

    def node(
        self, op_type: str, inputs: Sequence[str], *, output: str | None = None, **attributes: Any
    ) -> str:
        name = output or f"v{len(self.nodes)}"
        self.nodes.append(helper.make_node(op_type, list(inputs), [name], **attributes))
        return name

    def ints(self, values: Sequence[int]) -> str:
        return self.node("Constant", [], value_ints=values)

    def attribute(self, attribute: str) -> str:
        """The function's own integer attribute as a tensor [1]."""
        value = self.node("Constant", [])
        self.nodes[-1].attribute.append(_reference("value_int", attribute))
        return self.node("Unsqueeze", [value, self.ints([0])])

    def codes(self, low: str, high: str, leading: str) -> str:
        """Codes -4..3 as int8 [.., K] of planes [.., K8/4] and [.., K8/8].

        ``leading`` holds the leading dimensions, in Reshape's terms.
        """
        k = self.attribute("K")
        eight = self.ints([CODES_PER_HIGH_BYTE])
        k8 = self.node("Add", [k, self.ints([CODES_PER_HIGH_BYTE - 1])])
        k8 = self.node("Mul", [self.node("Div", [k8, eight]), eight])
        shape = self.node("Concat", [leading, k8], axis=0)
        parts = []
        for plane, table in ((low, _LOW_TABLE), (high, _HIGH_TABLE)):
            # Gather takes signed indices only.
            index = self.node("Cast", [plane], to=TensorProto.INT32)
            values = self.node("Constant", [], value=numpy_helper.from_array(table))
            fields = self.node("Gather", [values, index], axis=0)
            parts.append(self.node("Reshape", [fields, shape]))
        codes = self.node("BitwiseOr", parts)
        return self.node("Slice", [codes, self.ints([0]), k, self.ints([-1])])

    def dequantize(self, codes: str, scales: str, *, axis: int, output: str | None = None) -> str:
        name = self.node("DequantizeLinear", [codes, scales], output=output, axis=axis)
        self.nodes[-1].attribute.append(_reference("block_size", "block_size"))
        return name

    def function(
        self, name: str, inputs: Sequence[str], attributes: Sequence[str] = ATTRIBUTES
    ) -> onnx.FunctionProto:
        return helper.make_function(
            DOMAIN,
            name,
            list(inputs),
            ["Y"],
            self.nodes,
            [helper.make_opsetid("", OPSET)],
            attributes=list(attributes),
        )


def _fields(width: int, bits: int, weight: int) -> NDArray[np.int8]:
    """Row b of [256, width]: the ``width`` fields of ``bits`` bits of byte b, times ``weight``."""
    byte = np.arange(256)[:, None]
    return ((byte >> bits * np.arange(width) & (1 << bits) - 1) * weight).astype(np.int8)


_LOW_TABLE = _fields(CODES_PER_LOW_BYTE, 2, 1)
_HIGH_TABLE = _fields(CODES_PER_HIGH_BYTE, 1, LOWEST)
# Sign extension: what lies above 7 is 16 too high.
_NIBBLE_TABLE = ((_fields(CODES_PER_BYTE, 4, 1) + 8) % 16 - 8).astype(np.int8)


def _reference(attribute: str, function_attribute: str) -> onnx.AttributeProto:
    return onnx.AttributeProto(
        name=attribute, ref_attr_name=function_attribute, type=onnx.AttributeProto.INT
    )


BODIES = {MATMUL: matmul, GATHER: gather, GATHER4: gather4}
"""The functions of our domain, by name."""
