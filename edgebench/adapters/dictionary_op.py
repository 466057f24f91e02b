"""``edgebench::DictionaryUpdate``: the rank-one update from a dictionary in three bits, in ONNX.

    DictionaryUpdate(X [.., K], indices [.., k], coefficients [.., k], low, high, scales, smooth)
        -> Y [.., K]

    r = sum_j coefficients[j] * D[indices[j]],     Y = r (r . X) / (||r||^2 sqrt(K)), 0 where r is 0
    D[m, i] = scales[m, i div block_size] * 2^(smooth[i] / 16) * code[m, i]

``indices`` and ``coefficients`` are int8 (an index may stand twice); ``low`` uint8 [M, K8/4] and
``high`` uint8 [M, K8/8] hold codes in -4..3 as ``quantize.packing`` does, ``scales`` is fp16
[M, ceil(K / block_size)], ``smooth`` int8 [K].
Attributes K and block_size. Version 1 of the domain.

The body below is standard ONNX (opset 18 or later). Everything that depends on the dictionary alone
is constant, and folded when the session is made: what runs is one product of the coefficients,
scattered to the M atoms, with the decoded atoms. The native kernel (``native/``) looks the atoms up
instead; it takes the node over where it is registered.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

NAME = "DictionaryUpdate"
DOMAIN = "edgebench"
DOMAIN_VERSION = 1

_INPUTS = ("X", "indices", "coefficients", "low", "high", "scales", "smooth")
_TINY = 1e-30


def body(opset: int) -> onnx.FunctionProto:
    """The function for a model of this opset (18 or later)."""
    nodes: list[onnx.NodeProto] = []

    def add(op: str, inputs: Sequence[str], output: str = "", **attributes: Any) -> str:
        name = output or f"v{len(nodes)}"
        nodes.append(helper.make_node(op, list(inputs), [name], **attributes))
        return name

    def constant(array: NDArray[Any]) -> str:
        return add("Constant", [], value=numpy_helper.from_array(array))

    def ints(*values: int) -> str:
        return constant(np.array(values, np.int64))

    def attribute(name: str) -> str:
        value = add("Constant", [])
        nodes[-1].attribute.append(
            onnx.AttributeProto(name="value_int", ref_attr_name=name, type=onnx.AttributeProto.INT)
        )
        return add("Unsqueeze", [value, ints(0)])

    def real(value: str) -> str:
        return add("Cast", [value], to=TensorProto.FLOAT)

    k = attribute("K")
    rows = add("Shape", ["low"], start=0, end=1)
    # The dictionary [M, K].
    low = _fields(add, constant, "low", 4, 2, rows)
    high = _fields(add, constant, "high", 8, 1, rows)
    codes = add("Sub", [low, add("Mul", [high, constant(np.array([4], np.float32))])])
    codes = add("Slice", [codes, ints(0), k, ints(1)])
    block = attribute("block_size")
    wide = add("Unsqueeze", [real("scales"), ints(2)])
    wide = add("Expand", [wide, add("Concat", [ints(1), ints(1), block], axis=0)])
    wide = add("Reshape", [wide, add("Concat", [rows, ints(-1)], axis=0)])
    wide = add("Slice", [wide, ints(0), k, ints(1)])
    powers = add("Div", [real("smooth"), constant(np.array([16], np.float32))])
    powers = add("Pow", [constant(np.array([2], np.float32)), powers])
    atoms = add("Mul", [add("Mul", [codes, wide]), powers])
    # r [.., K].
    hot = add(
        "OneHot",
        [
            add("Cast", ["indices"], to=TensorProto.INT64),
            rows,
            constant(np.array([0, 1], np.float32)),
        ],
    )
    weighed = add("Mul", [hot, add("Unsqueeze", [real("coefficients"), ints(-1)])])
    dense = add("ReduceSum", [weighed, ints(-2)], keepdims=0)
    r = add("MatMul", [dense, atoms])
    norm = add(
        "Max", [add("ReduceSumSquare", [r, ints(-1)]), constant(np.array(_TINY, np.float32))]
    )
    root = add("Sqrt", [real(k)])
    dot = add("ReduceSum", [add("Mul", [r, "X"]), ints(-1)])
    scaled = add("Div", [dot, add("Mul", [norm, root])])
    add("Mul", [r, scaled], "Y")
    return helper.make_function(
        DOMAIN,
        NAME,
        list(_INPUTS),
        ["Y"],
        nodes,
        [helper.make_opsetid("", opset)],
        attributes=["K", "block_size"],
    )


def _fields(add: Any, constant: Any, plane: str, width: int, bits: int, rows: str) -> str:
    """The fields of a plane as fp32 [M, width * bytes]: a table of 256 rows, looked up."""
    byte = np.arange(256)[:, None]
    table = (byte >> bits * np.arange(width) & (1 << bits) - 1).astype(np.float32)
    fields = add("Gather", [constant(table), add("Cast", [plane], to=TensorProto.INT32)], axis=0)
    shape = add("Concat", [rows, constant(np.array([-1], np.int64))], axis=0)
    return str(add("Reshape", [fields, shape]))


def complete(model: onnx.ModelProto) -> None:
    """Give a model the body of the op where it uses it, in place."""
    if not any(n.domain == DOMAIN and n.op_type == NAME for n in model.graph.node):
        return
    if any(f.domain == DOMAIN and f.name == NAME for f in model.functions):
        return
    opset = next(o.version for o in model.opset_import if o.domain in ("", "ai.onnx"))
    model.functions.append(body(opset))
    if not any(o.domain == DOMAIN for o in model.opset_import):
        model.opset_import.append(helper.make_opsetid(DOMAIN, DOMAIN_VERSION))
