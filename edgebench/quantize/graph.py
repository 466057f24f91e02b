"""Finding the weights of an ONNX graph, and replacing nodes and initialisers.

A *weight* is a floating-point initialiser that a MatMul or Gemm multiplies from the right, or that a
Gather looks rows up in. Exporters hide some behind an Identity (TorchScript, for equal tensors) or a
Transpose (tied heads); both are looked through. Subgraphs of If, Loop and Scan are left as they are.
"""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgebench.errors import InputError

# LoRA's common ranks, and the classes of a classification head, are at most this wide. Such
# matrices hold under 1 % of the weights, and they carry what was trained: they stay in fp32.
NARROW = 64

# A look-up table with fewer rows than this is as small as a bias (token types: 2 rows).
FEW_ROWS = 64

DEFAULT_DOMAINS = ("", "ai.onnx")

Kind = Literal["MatMul", "Gemm", "Gather"]


@dataclass(frozen=True)
class Weight:
    """One use of one weight.

    ``rows`` [n, k] in the orientation that quantisation wants: blocks run along k, which is what a
    MatMul sums over and what a look-up returns. ``transposed`` says that the initialiser itself
    is [k, n].
    """

    node: int
    kind: Kind
    initializer: str
    transposed: bool
    n: int
    k: int

    @property
    def narrow(self) -> bool:
        if self.kind == "Gather":
            return self.n < FEW_ROWS or self.k <= NARROW
        return min(self.n, self.k) <= NARROW


class Graph:
    """A model's main graph, with an index of its initialisers and producers."""

    def __init__(self, model: onnx.ModelProto) -> None:
        self.model = model
        self.proto = model.graph

    @cached_property
    def initializers(self) -> dict[str, onnx.TensorProto]:
        return {tensor.name: tensor for tensor in self.proto.initializer}

    @cached_property
    def producers(self) -> dict[str, onnx.NodeProto]:
        return {name: node for node in self.proto.node for name in node.output}

    @cached_property
    def names(self) -> set[str]:
        found = {name for node in self.proto.node for name in [*node.input, *node.output]}
        found.update(self.initializers)
        return found

    @cached_property
    def _inputs(self) -> set[str]:
        return {value.name for value in self.proto.input}

    def weights(self) -> list[Weight]:
        """Every use of a matrix weight, in the order of the nodes."""
        found = []
        for index, node in enumerate(self.proto.node):
            if node.domain not in DEFAULT_DOMAINS:
                continue
            weight = self._weight(index, node)
            if weight is not None:
                found.append(weight)
        return found

    def rows(self, weight: Weight) -> NDArray[np.float32]:
        """The weight as fp32 [n, k].

        Raises:
            InputError: it holds NaN or infinity.
        """
        array = numpy_helper.to_array(self.initializers[weight.initializer])
        array = np.asarray(array, np.float32)
        bad = array.size - int(np.isfinite(array).sum())
        if bad:
            raise InputError(
                f"the weight {weight.initializer!r} holds {bad} values that are NaN or infinite",
                where=f"node {self.proto.node[weight.node].name!r}",
                fix="Train or convert the checkpoint again; nothing was written.",
            )
        return np.ascontiguousarray(array.T if weight.transposed else array)

    def unique(self, name: str) -> str:
        """A value name that the graph does not use yet: ``name``, or with a number after it."""
        candidate, number = name, 1
        while candidate in self.names:
            candidate, number = f"{name}.{number}", number + 1
        self.names.add(candidate)
        return candidate

    def replace(
        self, nodes: dict[int, list[onnx.NodeProto]], added: list[onnx.TensorProto]
    ) -> None:
        """Put new nodes in the place of old ones, and drop what nothing reads any more."""
        kept: list[onnx.NodeProto] = []
        for index, node in enumerate(self.proto.node):
            kept.extend(nodes.get(index, [node]))
        kept = _live(kept, {value.name for value in self.proto.output})
        used = _read(kept) | {value.name for value in self.proto.output}
        initializers = [t for t in self.proto.initializer if t.name in used] + added
        produced = {name for node in kept for name in node.output}
        shapes = [v for v in self.proto.value_info if v.name in produced]
        del self.proto.node[:], self.proto.initializer[:], self.proto.value_info[:]
        self.proto.node.extend(kept)
        self.proto.initializer.extend(initializers)
        self.proto.value_info.extend(shapes)
        for cached in ("initializers", "producers", "names"):
            self.__dict__.pop(cached, None)

    def _weight(self, index: int, node: onnx.NodeProto) -> Weight | None:
        if node.op_type == "MatMul":
            place, flip = 1, True
        elif node.op_type == "Gemm":
            attributes = {a.name: onnx.helper.get_attribute_value(a) for a in node.attribute}
            if attributes.get("transA", 0) or attributes.get("alpha", 1.0) != 1.0:
                return None
            if len(node.input) > 2 and node.input[2] and attributes.get("beta", 1.0) != 1.0:
                return None
            place, flip = 1, not attributes.get("transB", 0)
        elif node.op_type == "Gather":
            if any(a.name == "axis" and a.i != 0 for a in node.attribute):
                return None
            place, flip = 0, False
        else:
            return None
        name, turned = self._source(node.input[place])
        tensor = self.initializers.get(name)
        if tensor is None or name in self._inputs or len(tensor.dims) != 2:
            return None
        if tensor.data_type not in (onnx.TensorProto.FLOAT,):
            return None
        transposed = flip != turned
        n, k = (tensor.dims[1], tensor.dims[0]) if transposed else (tensor.dims[0], tensor.dims[1])
        kind: Kind = node.op_type  # type: ignore[assignment]
        return Weight(index, kind, name, transposed, n, k)

    def _source(self, name: str) -> tuple[str, bool]:
        """The value behind Identity and 2-D Transpose, and whether it is seen transposed."""
        turned = False
        while name not in self.initializers and name in self.producers:
            node = self.producers[name]
            if node.op_type == "Transpose" and node.domain in DEFAULT_DOMAINS:
                perm = next((list(a.ints) for a in node.attribute if a.name == "perm"), [1, 0])
                if perm != [1, 0]:
                    break
                turned = not turned
            elif node.op_type != "Identity":
                break
            name = node.input[0]
        return name, turned


def uses(weights: list[Weight]) -> Counter[str]:
    """How many uses each initialiser has."""
    return Counter(weight.initializer for weight in weights)


def _read(nodes: list[onnx.NodeProto]) -> set[str]:
    """Every value that nodes or their subgraphs read."""
    found: set[str] = set()
    for node in nodes:
        found.update(node.input)
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs]:
                found |= _read(list(graph.node)) | {value.name for value in graph.output}
    return found


def _live(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """The nodes whose results are needed, in their order."""
    needed = set(outputs)
    kept = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed |= _read([node])
    return kept[::-1]
