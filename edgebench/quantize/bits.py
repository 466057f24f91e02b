"""Counting the bits that a graph stores its weights in, read off the graph itself.

Parameters are the floating-point initialisers of one dimension or more (weights, biases, norms) and
what quantised weights were made of: planes, codes and scales of ``edgebench`` nodes and of blocked
DequantizeLinear, and the integers, scales and zero points that ONNX Runtime's quantiser names
``<weight>_quantized``, ``<weight>_scale`` and ``<weight>_zero_point``. Scalars and constants that
nobody trained (shapes, position ids, rotary tables) are not parameters. A tensor that several nodes
share counts once.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import onnx
from onnx import TensorProto

from edgebench.quantize.functions import DICTIONARY, DOMAIN, GATHER4

_BITS: dict[int, int] = {
    TensorProto.FLOAT: 32,
    TensorProto.FLOAT16: 16,
    TensorProto.BFLOAT16: 16,
    TensorProto.DOUBLE: 64,
    TensorProto.INT8: 8,
    TensorProto.UINT8: 8,
    TensorProto.INT4: 4,
    TensorProto.UINT4: 4,
}
_FLOATS = (TensorProto.FLOAT, TensorProto.FLOAT16, TensorProto.BFLOAT16, TensorProto.DOUBLE)

# Inputs cos_cache and sin_cache of com.microsoft::GroupQueryAttention.
_ROTARY = slice(7, 9)

_QUANTIZED, _SCALE, _ZERO_POINT = "_quantized", "_scale", "_zero_point"


@dataclass(frozen=True)
class Bits:
    """Numbers of weights, and of the bits that store them.

    ``quantized_bits`` has the scales and zero points in it, ``param_bits`` everything.
    """

    quantized_weights: int
    quantized_bits: int
    total_weights: int
    param_bits: int

    @property
    def storage_bits_per_weight(self) -> float:
        """Of the quantised weights; of all when none is quantised."""
        if not self.quantized_weights:
            return self.file_bits_per_weight
        return self.quantized_bits / self.quantized_weights

    @property
    def file_bits_per_weight(self) -> float:
        return self.param_bits / self.total_weights if self.total_weights else 0.0


def count(model: onnx.ModelProto) -> Bits:
    """The bits of a model's main graph; the weights themselves need not be loaded."""
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    weights = dict(_blocked(model.graph, tensors)) | dict(_integer(tensors))
    quantized_weights = sum(weights.values())
    storage = {name for group in weights for name in group}
    quantized_bits = sum(_bits(tensors[name]) for name in storage if name in tensors)
    rotary = {
        name
        for node in model.graph.node
        if node.op_type == "GroupQueryAttention"
        for name in node.input[_ROTARY]
    }
    plain = [
        tensor
        for name, tensor in tensors.items()
        if name not in storage | rotary and tensor.data_type in _FLOATS and tensor.dims
    ]
    plain += _constants(model.graph)
    return Bits(
        quantized_weights=quantized_weights,
        quantized_bits=quantized_bits,
        total_weights=quantized_weights + sum(math.prod(t.dims) for t in plain),
        param_bits=quantized_bits + sum(_bits(tensor) for tensor in plain),
    )


def _blocked(
    graph: onnx.GraphProto, tensors: dict[str, TensorProto]
) -> list[tuple[tuple[str, ...], int]]:
    """Names of (codes .., scales) and the number of weights, for each node that decodes one."""
    producers = {name: node for node in graph.node for name in node.output}

    def stored(name: str) -> str:
        """The initialiser behind a Cast, a view or a look-up."""
        while name not in tensors and name in producers:
            if producers[name].op_type not in ("Cast", "Gather", "Reshape"):
                break
            name = producers[name].input[0]
        return name

    found: list[tuple[tuple[str, ...], int]] = []
    for node in graph.node:
        attributes = {a.name: a.i for a in node.attribute}
        if node.domain == DOMAIN and node.op_type == GATHER4:
            rows = tensors[node.input[0]].dims[0]
            found.append((tuple(node.input[:2]), rows * attributes["K"]))
        elif node.domain == DOMAIN and node.op_type == DICTIONARY:
            atoms = tensors[node.input[3]].dims[0]
            found.append((tuple(node.input[3:7]), atoms * attributes["K"]))
        elif node.domain == DOMAIN:
            start = 0 if node.op_type.startswith("Gather") else 1
            found.append((tuple(node.input[start : start + 3]), attributes["N"] * attributes["K"]))
        elif node.op_type == "MatMulNBits":
            names = (stored(node.input[1]), stored(node.input[2]))
            found.append((names, attributes["N"] * attributes["K"]))
        elif node.op_type == "GatherBlockQuantized":
            # Rows filled up to a whole block; a MatMulNBits that shares them knows their length.
            names = (stored(node.input[0]), stored(node.input[2]))
            filled = 8 * math.prod(tensors[names[0]].dims) // attributes["bits"]
            found.append((names, filled))
        elif node.op_type == "DequantizeLinear" and attributes.get("block_size"):
            codes, scales = (stored(name) for name in node.input[:2])
            if codes in tensors:
                found.append(((codes, scales), math.prod(tensors[codes].dims)))
    return found


def _integer(tensors: dict[str, TensorProto]) -> list[tuple[tuple[str, ...], int]]:
    """Names of (integers, scales, zero points) and the number of weights."""
    found: list[tuple[tuple[str, ...], int]] = []
    for name, tensor in tensors.items():
        stem = name.removesuffix(_QUANTIZED)
        if stem != name and stem + _SCALE in tensors:
            group = (name, stem + _SCALE, stem + _ZERO_POINT)
            found.append((group, math.prod(tensor.dims)))
    return found


def _constants(graph: onnx.GraphProto) -> list[TensorProto]:
    """Weights that stand in Constant nodes."""
    return [
        attribute.t
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value" and attribute.t.data_type in _FLOATS and attribute.t.dims
    ]


def _bits(tensor: TensorProto) -> int:
    dims: list[int] = list(tensor.dims)
    return _BITS[tensor.data_type] * math.prod(dims)
