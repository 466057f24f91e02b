"""Operations and bytes of an exported graph, counted node by node.

The graph is run once on one row of inputs with a Shape node behind every value, so every shape is
the one that a device will see; no value itself is kept. Then each node is counted by the formula of
its operator (``flop_formulas``; docs/flops.md has them all):

- a multiplication and an addition are one operation each, so a product [m, k] x [k, n] has 2 m n k;
- whatever else is computed counts one an element of what it gives (an exponential too), but for the
  few operators that are several steps: Softmax 5, LayerNormalization 8, and so on;
- moving, converting and looking up count nothing, and so does decoding a stored weight
  (DequantizeLinear of an initialiser), which runtimes do once, at load, or inside the product;
- an operator without a formula counts nothing and is named, never guessed.

``weight_bytes`` are the initialisers that a node reads, as they are stored, and of a table the rows
that are looked up; ``value_bytes`` the other values that it reads and writes: what would move if
nothing were fused or cached.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebench.export.flop_formulas import OURS, Node, Shape, flops_of, has_formula
from edgebench.export.statistics import tensor_bits

Feed = Mapping[str, npt.NDArray[Any]]

# Where a graph that is loaded from memory finds the weights that stand in other files
# (onnxruntime_session_options_config_keys.h).
_FOLDER = "session.model_external_initializers_file_folder_path"


@dataclass(frozen=True)
class NodeCost:
    """What one node does. ``flops`` is None where there is no formula for its operator."""

    name: str
    op: str
    flops: int | None
    weight_bytes: int
    value_bytes: int


@dataclass(frozen=True)
class GraphCost:
    """What a graph does with one row of inputs."""

    nodes: tuple[NodeCost, ...]

    @property
    def flops(self) -> int:
        return sum(node.flops or 0 for node in self.nodes)

    @property
    def weight_bytes(self) -> int:
        return sum(node.weight_bytes for node in self.nodes)

    @property
    def value_bytes(self) -> int:
        return sum(node.value_bytes for node in self.nodes)

    @property
    def uncounted(self) -> tuple[str, ...]:
        """Operators without a formula."""
        return tuple(dict.fromkeys(node.op for node in self.nodes if node.flops is None))

    def by_op(self) -> list[tuple[str, int, int, int, int]]:
        """(operator, nodes, FLOPs, weight bytes, value bytes), the most FLOPs first."""
        found: dict[str, list[int]] = {}
        for node in self.nodes:
            row = found.setdefault(node.op, [0, 0, 0, 0])
            for place, more in enumerate((1, node.flops or 0, node.weight_bytes, node.value_bytes)):
                row[place] += more
        rows = [(op, row[0], row[1], row[2], row[3]) for op, row in found.items()]
        return sorted(rows, key=lambda row: (-row[2], row[0]))


def count(model: Path | Any, feed: Feed) -> GraphCost:
    """Count a graph's operations on one row of inputs.

    Args:
        model: an ONNX file, or a ``ModelProto``.
        feed: arrays by input name; of a swappable graph an adapter's too, by its inputs' names.

    Raises:
        ExportError: ONNX Runtime can't run the graph.
    """
    import onnx

    folder = None
    if isinstance(model, Path):
        # Weights beside the graph stay there: they may be larger than a protobuf can be.
        model, folder = onnx.load(str(model), load_external_data=False), model.parent
    proto = _inlined(model)
    shapes = _shapes(proto, feed, folder)
    sizes = _element_bits(proto)
    weights = {tensor.name: tensor for tensor in proto.graph.initializer}
    costs = []
    for index, raw in enumerate(proto.graph.node):
        if raw.op_type == "Constant":
            continue
        read = [name for name in raw.input if name]
        node = Node(
            op=_name(raw),
            inputs=[shapes.get(name, ()) for name in raw.input],
            outputs=[shapes.get(name, ()) for name in raw.output],
            attributes={a.name: onnx.helper.get_attribute_value(a) for a in raw.attribute},
            stored=[name in weights for name in raw.input],
        )
        bits = sum(tensor_bits(weights[n]) for n in read if n in weights and n not in feed)
        moved = [name for name in read if name not in weights or name in feed]
        moved += [name for name in raw.output if name]
        costs.append(
            NodeCost(
                name=raw.name or f"{raw.op_type}_{index}",
                op=node.op,
                flops=flops_of(node),
                weight_bytes=math.ceil(bits / 8 * _share_read(node)),
                value_bytes=sum(
                    math.prod(shapes[name]) * sizes.get(name, 32) // 8
                    for name in moved
                    if name in shapes
                ),
            )
        )
    return GraphCost(tuple(costs))


def _name(node: Any) -> str:
    return node.op_type if node.domain in ("", "ai.onnx") else f"{node.domain}.{node.op_type}"


def _share_read(node: Node) -> float:
    """How much of its stored inputs a node reads: a look-up only the rows that are asked for."""
    if not node.op.rpartition(".")[2].startswith("Gather") or not node.stored[0]:
        return 1.0
    table, indices = node.inputs[0], node.inputs[-1]
    return min(1.0, math.prod(indices) / max(table[0], 1)) if table else 1.0


def _inlined(model: Any) -> Any:
    """The graph with every function that has no formula replaced by its body."""
    import onnx.inliner

    strange = [
        (function.domain, function.name)
        for function in model.functions
        if not (function.domain == OURS and has_formula(f"{OURS}.{function.name}"))
    ]
    return onnx.inliner.inline_selected_functions(model, strange) if strange else model


def _shapes(model: Any, feed: Feed, folder: Path | None) -> dict[str, Shape]:
    """The shape of every value: by running the graph with a Shape node behind each.

    Args:
        folder: where the graph's external weights are.
    """
    import onnx

    from edgebench.export.session import run_graph

    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    graph = watched.graph
    found = {tensor.name: tuple(tensor.dims) for tensor in graph.initializer}
    found |= {name: array.shape for name, array in feed.items()}
    wanted: list[str] = []
    for node in model.graph.node:
        for value in node.output:
            if value:
                wanted.append(f"{value}/edgebench_shape")
                graph.node.append(onnx.helper.make_node("Shape", [value], [wanted[-1]]))
    del graph.output[:]
    graph.output.extend(
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.INT64, None) for name in wanted
    )
    options = {_FOLDER: str(folder.resolve())} if folder else {}
    (results,) = run_graph(
        watched.SerializeToString(), [feed], "exported", outputs=wanted, session_options=options
    )
    for name, result in zip(wanted, results, strict=True):
        found[name.removesuffix("/edgebench_shape")] = tuple(int(n) for n in np.asarray(result))
    return found


def _element_bits(model: Any) -> dict[str, int]:
    """Bits of an element, of values whose type is known without running; the rest are 32."""
    import onnx

    try:
        inferred = onnx.shape_inference.infer_shapes(model)
    except (onnx.shape_inference.InferenceError, ValueError):
        inferred = model
    values = (*inferred.graph.value_info, *inferred.graph.input, *inferred.graph.output)
    return {
        value.name: 8 * onnx.helper.tensor_dtype_to_np_dtype(kind).itemsize
        for value in values
        if (kind := value.type.tensor_type.elem_type) and kind != onnx.TensorProto.STRING
    }
