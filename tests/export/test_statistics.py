"""Counting layers, heads, ranks and bits in graphs made by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgebench.export.statistics import param_bits, read_graph

TOKENS, WIDTH, HEADS, RANK = 6, 8, 2, 3


def weights(**shapes: tuple[int, ...]) -> list[onnx.TensorProto]:
    return [
        numpy_helper.from_array(np.full(shape, 0.1, np.float32), name)
        for name, shape in shapes.items()
    ]


def model(nodes: list, initializers: list, output: str) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, None)],
        initializers,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 20)], ir_version=10)


EMBED = helper.make_node("Gather", ["table", "ids"], ["x"])
TABLE = weights(table=(10, WIDTH))
ROW = {"ids": np.ones((1, TOKENS), np.int64)}


def branch(scaled_before: bool = False) -> list:
    """x W + ((x A) B) * scale, as LoRA stands in a graph."""
    middle = [helper.make_node("Mul", ["a", "scale"], ["a2"])] if scaled_before else []
    return [
        helper.make_node("MatMul", ["x", "W"], ["w"]),
        helper.make_node("MatMul", ["x", "A"], ["a"]),
        *middle,
        helper.make_node("MatMul", ["a2" if middle else "a", "B"], ["b"]),
        helper.make_node("Mul", ["b", "scale"], ["s"]),
        helper.make_node("Add", ["w", "s"], ["y"]),
    ]


FACTORS = weights(W=(WIDTH, 16), A=(WIDTH, RANK), B=(RANK, 16), scale=())


def test_a_branch_counts_its_rank_and_its_flops():
    facts = read_graph(model([EMBED, *branch()], [*TABLE, *FACTORS], "y"), ROW)
    assert facts.ranks == RANK
    products = 2 * TOKENS * RANK * (WIDTH + 16)
    assert facts.branch_flops == products + 2 * TOKENS * 16  # scaled, and added
    assert (facts.layers, facts.heads, facts.seq_len) == (0, 0, TOKENS)


def test_scaling_between_the_factors_is_part_of_the_branch():
    facts = read_graph(model([EMBED, *branch(True)], [*TABLE, *FACTORS], "y"), ROW)
    assert facts.ranks == RANK
    assert facts.branch_flops == 2 * TOKENS * RANK * (WIDTH + 16) + TOKENS * (RANK + 32)


def test_a_bottleneck_with_a_nonlinearity_is_no_low_rank_branch():
    nodes = [
        EMBED,
        helper.make_node("MatMul", ["x", "A"], ["a"]),
        helper.make_node("Relu", ["a"], ["r"]),
        helper.make_node("MatMul", ["r", "B"], ["y"]),
    ]
    assert read_graph(model(nodes, [*TABLE, *FACTORS], "y"), ROW).ranks == 0


def test_two_wide_products_are_no_low_rank_branch():
    wide = weights(A=(WIDTH, 32), B=(32, WIDTH))
    nodes = [
        EMBED,
        helper.make_node("MatMul", ["x", "A"], ["a"]),
        helper.make_node("MatMul", ["a", "B"], ["y"]),
    ]
    assert read_graph(model(nodes, [*TABLE, *wide], "y"), ROW).ranks == 0


def attention(prefix: str, masked: bool) -> list:
    p = prefix
    scores = [helper.make_node("MatMul", [f"{p}q", f"{p}k"], [f"{p}raw"])]
    if masked:
        scores.append(helper.make_node("Mul", [f"{p}raw", "scale"], [f"{p}scores"]))
    return [
        helper.make_node("Reshape", ["x", "split"], [f"{p}h"]),
        helper.make_node("Transpose", [f"{p}h"], [f"{p}q"], perm=[0, 2, 1, 3]),
        helper.make_node("Transpose", [f"{p}h"], [f"{p}k"], perm=[0, 2, 3, 1]),
        *scores,
        helper.make_node("Softmax", [f"{p}scores" if masked else f"{p}raw"], [f"{p}p"]),
    ]


SPLIT = numpy_helper.from_array(np.array([0, 0, HEADS, WIDTH // HEADS], np.int64), "split")


def test_attention_blocks_are_layers_and_their_second_axis_heads():
    nodes = [EMBED, *attention("a", False), *attention("b", True)]
    nodes.append(helper.make_node("Add", ["ap", "bp"], ["y"]))
    facts = read_graph(model(nodes, [*TABLE, *weights(scale=()), SPLIT], "y"), ROW)
    assert (facts.layers, facts.heads) == (2, 2 * HEADS)


def test_a_softmax_over_classes_is_no_attention():
    nodes = [
        EMBED,
        helper.make_node("MatMul", ["x", "W"], ["w"]),
        helper.make_node("Softmax", ["w"], ["y"]),
    ]
    assert read_graph(model(nodes, [*TABLE, *FACTORS], "y"), ROW).layers == 0


@pytest.mark.parametrize(
    ("kind", "bits"),
    [
        (TensorProto.FLOAT, 32),
        (TensorProto.FLOAT16, 16),
        (TensorProto.BFLOAT16, 16),
        (TensorProto.INT8, 8),
        (TensorProto.UINT8, 8),
        (TensorProto.INT4, 4),
        (TensorProto.UINT4, 4),
        (TensorProto.INT64, 0),
        (TensorProto.BOOL, 0),
    ],
)
def test_bits_of_a_stored_element(kind, bits):
    tensor = onnx.TensorProto(name="t", data_type=kind, dims=[3, 5])
    assert param_bits(model([EMBED], [tensor], "x")) == 15 * bits


def test_constants_in_nodes_and_functions_count_too():
    node = helper.make_node("Constant", [], ["c"], value=weights(c=(4,))[0])
    built = model([EMBED, node], TABLE, "x")
    function = helper.make_function("d", "F", [], ["c"], [node], [helper.make_opsetid("", 20)])
    built.functions.append(function)
    assert param_bits(built) == 32 * (10 * WIDTH + 4 + 4)
