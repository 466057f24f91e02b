"""Integer products of an exported graph: where they are, and whether they are PyTorch's.

A product is what ``edgebench.adapters.integer.IntegerLinear`` becomes: DynamicQuantizeLinear,
MatMulInteger with constant codes, Cast, and Mul by both scales. Rounding activations makes whole
steps of last-bit differences, which other layers carry on, so the outputs of such a graph and of
PyTorch's simulation differ by more than fp32's 1e-4 though both are right. What is asked instead:

- the same graph with floating-point products in the place of integer ones gives what PyTorch gives
  with activations as they are, within 1e-4 (``in_float``);
- each product gives what the simulation gives for the very input that it had (``largest_error``).

How far the graph's own outputs are from both is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebench.artifact import Parity
from edgebench.errors import ExportError
from edgebench.export.module import Feed, reference
from edgebench.export.parity import FP32_TOLERANCE
from edgebench.export.session import run_graph

Outputs = list[npt.NDArray[np.float32]]

#: Feeds that products are compared on, the first and the last of them.
_LOOKED_AT = 3


@dataclass(frozen=True)
class Checked:
    """What was found of an fp32 graph's integer products, all of it within tolerance.

    ``expected``: PyTorch's outputs with activations as they are.
    """

    products: int
    largest_error: float
    in_float: Parity
    expected: Outputs


def exact_reference(module: Any, feeds: list[Feed]) -> Outputs:
    """PyTorch's outputs with activations as they are: see ``edgebench.export.module.reference``."""
    from edgebench.adapters.integer import exact_activations

    with exact_activations():
        return reference(module, feeds)


def check(
    graph: Path,
    feeds: list[Feed],
    expected: Outputs,
    compare: Callable[[Outputs, Outputs], Parity],
) -> Checked:
    """Hold an fp32 graph's integer products against PyTorch.

    Args:
        expected: of ``exact_reference``.
        compare: PyTorch's outputs with a graph's, refusing more than fp32's tolerance.

    Raises:
        ExportError: there are none, or they are not what PyTorch computes.
    """
    import onnx

    model = onnx.load(str(graph))
    found = products(model)
    if not found:
        raise ExportError("int8 directions were asked for, and the graph has no integer product")
    off = largest_error(model, [*feeds[:1], *feeds[-_LOOKED_AT:]])
    if not off <= FP32_TOLERANCE:  # so that a NaN fails too
        raise ExportError(
            f"an integer product is off PyTorch by {off:.2g} of its largest value, more than "
            f"{FP32_TOLERANCE:g}, so no artifact was written",
            fix="Report this with the versions in use.",
        )
    outputs = run_graph(in_float(model).SerializeToString(), feeds, "fp32")
    parity = compare(expected, [named[0] for named in outputs])
    return Checked(len(found), float(f"{off:.4g}"), parity, expected)


@dataclass(frozen=True)
class Product:
    """One integer product: what it multiplies, and what it gives.

    Attributes:
        x, y: values of the graph, [..., k] and [..., n].
        weight: what the codes stand for, [k, n].
        nodes: of the graph, by index; the last makes y.
    """

    x: str
    y: str
    weight: npt.NDArray[np.float32]
    nodes: tuple[int, ...]


def products(model: Any) -> list[Product]:
    """Every integer product with constant codes, in the order of the nodes."""
    from onnx import numpy_helper

    nodes = list(model.graph.node)
    tensors = {tensor.name: tensor for tensor in model.graph.initializer}
    producer = {value: i for i, node in enumerate(nodes) for value in node.output}
    consumers: dict[str, list[int]] = {}
    for index, node in enumerate(nodes):
        for value in node.input:
            consumers.setdefault(value, []).append(index)
    found = []
    for index, node in enumerate(nodes):
        if node.op_type != "MatMulInteger" or node.input[1] not in tensors:
            continue
        rounding = producer[node.input[0]]
        (cast,) = consumers[node.output[0]]
        (last,) = consumers[nodes[cast].output[0]]
        scales = producer[next(v for v in nodes[last].input if v != nodes[cast].output[0])]
        scale = next(v for v in nodes[scales].input if v in tensors)
        codes = numpy_helper.to_array(tensors[node.input[1]]).astype(np.int32)
        zero = numpy_helper.to_array(tensors[node.input[3]]).astype(np.int32)
        weight = (codes - zero) * numpy_helper.to_array(tensors[scale])
        parts = (rounding, index, cast, scales, last)
        y = nodes[last].output[0]
        found.append(Product(nodes[rounding].input[0], y, weight.astype(np.float32), parts))
    return found


def in_float(model: Any) -> Any:
    """The graph with a MatMul in the place of each integer product."""
    import onnx
    from onnx import helper, numpy_helper

    made = onnx.ModelProto()
    made.CopyFrom(model)
    replaced: dict[int, Any] = {}
    for number, product in enumerate(products(model)):
        name = f"product_{number}.weight"
        made.graph.initializer.append(numpy_helper.from_array(product.weight, name))
        node = helper.make_node("MatMul", [product.x, name], [product.y])
        replaced |= dict.fromkeys(product.nodes[:-1]) | {product.nodes[-1]: node}
    nodes = [replaced.get(i, node) for i, node in enumerate(made.graph.node)]
    del made.graph.node[:]
    made.graph.node.extend(node for node in nodes if node is not None)
    del made.graph.value_info[:]
    return made


def largest_error(model: Any, feeds: Sequence[Feed]) -> float:
    """The largest difference of a product from PyTorch's simulation with the same input.

    As a share of the product's largest value; 0 where the graph has none.

    Raises:
        ExportError: the graph can't be run.
    """
    import onnx
    import torch

    from edgebench.adapters.integer import rounded_activations

    found = products(model)
    if not found:
        return 0.0
    watched = onnx.ModelProto()
    watched.CopyFrom(model)
    have = {output.name for output in watched.graph.output}
    names = list(dict.fromkeys(name for p in found for name in (p.x, p.y)))
    watched.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names if n not in have)
    content = watched.SerializeToString()
    largest = 0.0
    for feed in feeds:
        (values,) = run_graph(content, [feed], "fp32", outputs=names)
        value = dict(zip(names, values, strict=True))
        for product in found:
            rounded = rounded_activations(torch.from_numpy(value[product.x])).numpy()
            expected = rounded.astype(np.float64) @ product.weight.astype(np.float64)
            off = float(np.abs(expected - value[product.y]).max())
            largest = max(largest, off / (float(np.abs(expected).max()) or 1.0))
    return largest
