"""Weights stored in fp16, computed with in fp32.

Every floating-point initialiser of one dimension or more becomes fp16 behind a Cast; a table is
looked up in fp16, and the rows are cast. ONNX Runtime's CPU kernels for fp16 are few, so the file
is half as large and nothing else changes: it casts the matrices once, when the session is made, and
holds and computes with fp32.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgebench.artifact import Quantization
from edgebench.errors import InputError
from edgebench.quantize import bits, files
from edgebench.quantize.graph import Graph, values_read

if TYPE_CHECKING:
    from edgebench.quantize import Progress

_LARGEST = float(np.finfo(np.float16).max)


def convert(source: Path, target: Path, progress: Progress) -> Quantization:
    """Write ``source`` in fp16 to ``target``; see ``edgebench.quantize.quantize``."""
    progress("reading the model", None)
    model = files.load(source)
    graph = Graph(model)
    graph.check_finite()
    progress("rounding", 0.2)
    _rewrite(graph)
    progress("writing", 0.8)
    files.save(model, target)
    counted = bits.count(model)
    progress("written", 1.0)
    return Quantization(
        scheme="fp16",
        storage_bits=16,
        compute_bits=32,
        activation_bits=32,
        storage_bits_per_weight=counted.file_bits_per_weight,
        file_bits_per_weight=counted.file_bits_per_weight,
        quantized_weights=0,
        total_weights=counted.total_weights,
        details={"computes": "in fp32: weights are cast once, when the session is made"},
    )


def _rewrite(graph: Graph) -> None:
    proto = graph.proto
    # What subgraphs read, or the model gives out, keeps its type.
    fixed = values_read([n for n in proto.node if any(a.g.node or a.graphs for a in n.attribute)])
    fixed |= {value.name for value in (*proto.output, *proto.input)}
    tables = {w.initializer for w in graph.weights() if w.kind == "Gather"}
    casts: list[onnx.NodeProto] = []
    halves: dict[str, str] = {}
    for tensor in proto.initializer:
        if tensor.data_type != TensorProto.FLOAT or not tensor.dims or tensor.name in fixed:
            continue
        array = numpy_helper.to_array(tensor)
        name = tensor.name
        if array.size and float(np.abs(array[np.isfinite(array)]).max(initial=0)) > _LARGEST:
            if name in {w.initializer for w in graph.weights()}:
                raise InputError(
                    f"the weight {name!r} is too large for fp16",
                    where="x".join(map(str, array.shape)),
                    fix="Export it as fp32; nothing was written.",
                )
            continue  # A mask's -3e38, not a weight.
        halves[name] = graph.unique(f"{name}.half")
        # In place: equal models stay equal files, and the initialisers keep their order.
        tensor.CopyFrom(numpy_helper.from_array(array.astype(np.float16), halves[name]))
        casts.append(helper.make_node("Cast", [halves[name]], [name], to=TensorProto.FLOAT))
    replaced: list[onnx.NodeProto] = []
    for node in proto.node:
        if node.op_type == "Gather" and node.input[0] in tables and node.input[0] in halves:
            rows = graph.unique(f"{node.output[0]}.half")
            cast = helper.make_node("Cast", [rows], [node.output[0]], to=TensorProto.FLOAT)
            node.input[0] = halves[node.input[0]]
            node.output[0] = rows
            replaced += [node, cast]
        else:
            replaced.append(node)
    read = values_read(replaced)
    made = [cast for cast in casts if cast.output[0] in read] + replaced
    del proto.node[:]
    proto.node.extend(made)
