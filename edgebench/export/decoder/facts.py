"""What stands in a decoder's graph: the statistics s, the adapter's cost, the bits.

As in ``edgebench.export.statistics``, nothing is taken from a configuration. A layer is a
GroupQueryAttention node, its heads are that node's attribute; low-rank branches are found by their
shapes.
"""

from __future__ import annotations

from typing import Any

import onnx

from edgebench.artifact import Quantization, Statistics
from edgebench.export.statistics import low_rank_branches
from edgebench.quantize import bits


def statistics(model: onnx.ModelProto, seq_len: int) -> Statistics:
    """The vector s."""
    attention = [node for node in model.graph.node if node.op_type == "GroupQueryAttention"]
    return Statistics(
        seq_len=seq_len,
        kept_layers=len(attention),
        kept_heads=sum(a.i for node in attention for a in node.attribute if a.name == "num_heads"),
        kept_ranks=sum(branch.rank for branch in low_rank_branches(model)),
        param_bits=bits.count(model).param_bits,
    )


def branch_flops(model: onnx.ModelProto, tokens: int) -> float:
    """FLOPs of the low-rank branches over so many tokens: two products and an addition each."""
    return float(
        sum(tokens * (2 * b.rank * (b.d_in + b.d_out) + b.d_out) for b in low_rank_branches(model))
    )


def quantization(model: onnx.ModelProto, scheme: str, details: dict[str, Any]) -> Quantization:
    """The manifest's account of the widths, counted in the graph."""
    counted = bits.count(model)
    nodes = [n for n in model.graph.node if n.op_type in _FEW_BITS]
    stored, computed, activations = _WIDTHS[scheme] if scheme != "mixed" else _mixed(nodes)
    sizes = sorted({a.i for n in nodes for a in n.attribute if a.name == "block_size"})
    if sizes:
        details = {"block_sizes": sizes, "scale_type": "float16", **details}
    return Quantization(
        scheme=scheme,
        storage_bits=stored,
        compute_bits=computed,
        activation_bits=activations,
        storage_bits_per_weight=counted.storage_bits_per_weight,
        file_bits_per_weight=counted.file_bits_per_weight,
        block_size=sizes[0] if sizes else None,
        quantized_weights=counted.quantized_weights,
        total_weights=counted.total_weights,
        details=details,
    )


#: Bits that weights are stored in, computed with, and of activations. MatMulNBits computes with
#: the codes; three bits become its four where the 3-bit kernel is not.
_WIDTHS = {
    "fp32": (32, 32, 32),
    "fp16": (16, 32, 32),
    "int8": (8, 8, 8),
    "int8-static": (8, 8, 8),
    "int4": (4, 4, 8),
    "int3": (3, 4, 8),
}

_FEW_BITS = ("MatMulNBits", "GatherBlockQuantized", "MatMul3Bit", "Gather3Bit")


def _mixed(nodes: list[onnx.NodeProto]) -> tuple[int, int, int]:
    """The fewest bits stored; the widest codes are what the slowest matrices compute with."""
    bits_of = {a.i for n in nodes for a in n.attribute if a.name == "bits"}
    if any(node.op_type.endswith("3Bit") for node in nodes):
        bits_of.add(3)
    return min(bits_of), 8 if 8 in bits_of else 4, 8
