"""Operations of a graph: against torch's own counter on plain models, and node by node by hand."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from edgebench.api import count_flops
from edgebench.export import flop_formulas
from edgebench.export.flop_formulas import Node, flops_of
from edgebench.export.flops import count
from edgebench.quantize import SCHEMES
from tests.export import tiny

pytestmark = pytest.mark.filterwarnings("ignore")

#: Products with weights, whatever form their weights are in.
PRODUCTS = {"MatMul", "Gemm", "MatMulInteger", "edgebench.MatMul3Bit"}


def products(cost) -> int:
    return sum(node.flops for node in cost.nodes if node.op in PRODUCTS)


def test_products_are_those_that_torch_counts(export_short, short_base, models):
    import torch
    from torch.utils.flop_counter import FlopCounterMode
    from transformers import AutoModelForSequenceClassification

    artifact = export_short(models / "base-alone", lowering="base")
    module = AutoModelForSequenceClassification.from_pretrained(
        short_base, num_labels=len(tiny.LABELS), attn_implementation="eager"
    ).eval()
    with np.load(artifact.path / "inputs.npz") as rows:
        feed = {name: torch.from_numpy(rows[name][:1]) for name in rows.files}
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module(**feed)
    cost = count_flops(artifact)
    # A Gemm adds its bias, which torch does not count.
    biases = sum(n.flops % tiny.HIDDEN for n in cost.nodes if n.op == "Gemm")
    assert products(cost) - biases == counter.get_total_flops() > 0
    assert cost.uncounted == ()


@pytest.mark.parametrize(
    "layer",
    ["Conv1d(3, 5, 4, stride=2)", "Conv2d(4, 6, 3, groups=2)", "Linear(7, 9, bias=False)"],
)
def test_single_layers_are_as_torch_counts_them(layer, tmp_path):
    import torch
    from torch.utils.flop_counter import FlopCounterMode

    made = eval(f"torch.nn.{layer}", {"torch": torch}).eval()
    shape = {"Conv1d": (2, 3, 12), "Conv2d": (2, 4, 8, 8), "Linear": (2, 5, 7)}[
        layer.partition("(")[0]
    ]
    x = torch.randn(shape)
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        y = made(x)
    program = torch.onnx.export(made, (x,), dynamo=True, input_names=["x"], verbose=False)
    model = program.model_proto
    model.ir_version = 10
    cost = count(model, {"x": x.numpy()})
    bias = y.numel() if getattr(made, "bias", None) is not None else 0
    assert cost.flops == counter.get_total_flops() + bias


def test_every_precision_computes_the_same_products(swappable):
    counted = {scheme: count_flops(swappable[scheme], adapter="none") for scheme in SCHEMES}
    assert len({products(cost) for cost in counted.values()}) == 1
    assert all(cost.uncounted == () for cost in counted.values())
    weights = {scheme: cost.weight_bytes for scheme, cost in counted.items()}
    assert weights["fp32"] > weights["fp16"] > weights["int8"] > weights["int3"]
    # Decoding stored weights is no work of a sample's; rounding its activations is.
    assert counted["int4"].flops <= counted["int8"].flops


def test_an_active_adapter_adds_its_branches(swappable):
    artifact = swappable["int8"]
    alone = count_flops(artifact, adapter="none").flops
    for adapter in artifact.manifest.adapters:
        assert count_flops(artifact, adapter=adapter.name).flops > alone
    # The additions of the branches are in both: of a branch of rank 0 too.
    second = artifact.swap_adapter("second")
    added = count_flops(artifact, adapter="second").flops - alone
    assert added == second.extra_flops - 24 * (tiny.HIDDEN + 2 * tiny.HIDDEN)


def node(op, inputs, outputs, stored=(), **attributes):
    flags = [place in stored for place in range(len(inputs))]
    return Node(op, inputs, outputs, attributes, flags)


@pytest.mark.parametrize(
    ("each", "flops"),
    [
        (node("MatMul", [(2, 5, 8), (8, 3)], [(2, 5, 3)], {1}), 2 * 2 * 5 * 8 * 3),
        (node("Gemm", [(8, 5), (3, 8), (3,)], [(5, 3)], transA=1, transB=1), (16 + 1) * 15),
        (node("QLinearMatMul", [(5, 8)] * 8, [(5, 3)]), (16 + 2) * 15),
        (node("com.microsoft.MatMulNBits", [(1, 5, 64)], [(1, 5, 32)], K=64, N=32), 128 * 160),
        (node("edgebench.MatMul3Bit", [(1, 5, 64)], [(1, 5, 32)], K=64, N=32), 128 * 160),
        (node("edgebench.Gather3Bit", [(9, 16)], [(1, 5, 64)], K=64), 320),
        (node("DequantizeLinear", [(64, 32)], [(64, 32)], {0}), 0),
        (node("DequantizeLinear", [(5, 32)], [(5, 32)]), 320),
        (node("Softmax", [(1, 4, 5, 5)], [(1, 4, 5, 5)]), 500),
        (node("ReduceMean", [(5, 8)], [(5, 1)]), 40),
        (node("Reshape", [(5, 8)], [(40,)]), 0),
        (node("Einsum", [(5, 8), (8, 3)], [(5, 3)], equation=b"ik,kj->ij"), 240),
        (node("SomethingNew", [(5, 8)], [(5, 8)]), None),
    ],
    ids=lambda value: getattr(value, "op", ""),
)
def test_each_operator_has_its_formula(each, flops):
    assert flops_of(each) == flops


def test_grouped_query_attention_counts_every_query_against_all_keys():
    """4 heads of 8 on 2 pairs of keys and values; 3 new tokens after 5 in the cache."""
    each = node(
        "com.microsoft.GroupQueryAttention",
        [(1, 3, 32), (1, 3, 16), (1, 3, 16), (1, 2, 5, 8), (1, 2, 5, 8)],
        [(1, 3, 32), (1, 2, 8, 8), (1, 2, 8, 8)],
        num_heads=4,
        kv_num_heads=2,
    )
    scores = 4 * 3 * 8
    assert flops_of(each) == 2 * 2 * scores * 8 + 5 * scores


def test_bytes_and_functions_and_names_without_a_formula():
    """y = Twice(x W): a function of a foreign domain is counted by its body; Det has no formula."""
    twice = helper.make_function(
        "foreign",
        "Twice",
        ["x"],
        ["y"],
        [helper.make_node("Add", ["x", "x"], ["y"])],
        [helper.make_opsetid("", 20)],
    )
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "W"], ["w"]),
            helper.make_node("Twice", ["w"], ["y"], domain="foreign"),
            helper.make_node("Det", ["y"], ["d"]),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("d", TensorProto.FLOAT, [])],
        [numpy_helper.from_array(np.ones((4, 3), np.float32), "W")],
    )
    model = helper.make_model(
        graph,
        ir_version=10,
        functions=[twice],
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("foreign", 1)],
    )
    cost = count(model, {"x": np.eye(3, 4, dtype=np.float32)})
    assert [(n.op, n.flops) for n in cost.nodes] == [("MatMul", 72), ("Add", 9), ("Det", None)]
    assert cost.uncounted == ("Det",)
    assert cost.nodes[0].weight_bytes == 48
    assert cost.nodes[0].value_bytes == 4 * (12 + 9)
    assert onnx.checker.check_model(model) is None


def test_every_formula_is_documented():
    text = (Path(__file__).parents[2] / "docs" / "flops.md").read_text()
    for op, _ in flop_formulas.formulas():
        assert f"`{op.rpartition('.')[2]}`" in text, op
