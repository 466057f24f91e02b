"""Finding the weights of an ONNX graph, and replacing nodes and initialisers.

A *weight* is a floating-point initialiser that a MatMul or Gemm multiplies from the right, or that
a Gather looks rows up in. Exporters hide some behind an Identity (TorchScript, for equal tensors)
or a Transpose (tied heads); both are looked through. Subgraphs of If, Loop and Scan are left as
they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import numpy_helper

from edgebench.errors import InputError

# A factor of a low-rank branch, or a classification head, has one side of at most NARROW (LoRA's
# common ranks are 4 to 64) and is more than SLENDER times longer than wide (a feed-forward block's
# matrices are four times). Such matrices hold few weights, and they carry what was trained.
NARROW = 64
SLENDER = 4

# A look-up table with fewer rows than this is as small as a bias (token types: 2 rows).
FEW_ROWS = 32

DEFAULT_DOMAINS = ("", "ai.onnx")

Kind = Literal["MatMul", "Gemm", "Gather"]

# Which input the weight is.
_PLACES = {"MatMul": 1, "Gemm": 1, "Gather": 0}


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
        """Whether it stays in fp32 whatever the scheme: adapters' factors, heads, tiny tables."""
        if self.kind == "Gather":
            return self.n < FEW_ROWS
        short, long = sorted((self.n, self.k))
        return short <= NARROW and long > SLENDER * short


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
            weight = self._weight(index, node)
            if weight is not None:
                found.append(weight)
        return found

    def rows(self, weight: Weight) -> NDArray[np.float32]:
        """The weight as fp32 [n, k]."""
        array = numpy_helper.to_array(self.initializers[weight.initializer])
        array = np.asarray(array, np.float32)
        return np.ascontiguousarray(array.T if weight.transposed else array)

    def check_finite(self) -> None:
        """Refuse a model with broken weights.

        Raises:
            InputError: a matrix or table holds NaN or infinity; the message names it.
        """
        for name in dict.fromkeys(weight.initializer for weight in self.weights()):
            array = numpy_helper.to_array(self.initializers[name])
            bad = array.size - int(np.isfinite(array).sum())
            if bad:
                raise InputError(
                    f"the weight {name!r} holds {bad} values that are NaN or infinite",
                    where=f"{array.shape[0]} x {array.shape[1]}",
                    fix="Train or convert the checkpoint again; nothing was written.",
                )

    def expose(self) -> None:
        """Let every MatMul, Gemm and Gather read its weight itself, not behind a view of it.

        For quantisers that look for an initialiser and see through neither Identity nor Transpose.
        """
        added: dict[str, onnx.TensorProto] = {}
        for weight in self.weights():
            node = self.proto.node[weight.node]
            place = _PLACES[weight.kind]
            if node.input[place] == weight.initializer:
                continue
            name = weight.initializer
            if self._source(node.input[place])[1]:
                name = f"{weight.initializer}.transposed"
                if name not in added:
                    array = numpy_helper.to_array(self.initializers[weight.initializer])
                    added[name] = numpy_helper.from_array(np.ascontiguousarray(array.T), name)
            node.input[place] = name
        self.replace({}, list(added.values()))

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
        used = values_read(kept) | {value.name for value in self.proto.output}
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
        place = _PLACES.get(node.op_type)
        if place is None or node.domain not in DEFAULT_DOMAINS or not _plain(node):
            return None
        name, turned = self._source(node.input[place])
        tensor = self.initializers.get(name)
        if tensor is None or name in self._inputs or len(tensor.dims) != 2:
            return None
        if tensor.data_type != onnx.TensorProto.FLOAT:
            return None
        transposed = turned != (node.op_type != "Gather" and not _attribute(node, "transB", 0))
        n, k = reversed(tensor.dims) if transposed else tensor.dims
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


def _attribute(node: onnx.NodeProto, name: str, default: float) -> float:
    """A number that a node has as an attribute."""
    for attribute in node.attribute:
        if attribute.name == name:
            return float(onnx.helper.get_attribute_value(attribute))
    return default


def _plain(node: onnx.NodeProto) -> bool:
    """Whether a node computes X W, X W + C or a look-up of rows, and nothing more."""
    biased = len(node.input) > 2 and node.input[2]
    return (
        not _attribute(node, "transA", 0)
        and _attribute(node, "alpha", 1.0) == 1.0
        and (not biased or _attribute(node, "beta", 1.0) == 1.0)
        and _attribute(node, "axis", 0) == 0
    )


def values_read(nodes: list[onnx.NodeProto]) -> set[str]:
    """Every value that nodes or their subgraphs read."""
    found: set[str] = set()
    for node in nodes:
        found.update(node.input)
        for attribute in node.attribute:
            for graph in [attribute.g, *attribute.graphs]:
                found |= values_read(list(graph.node)) | {value.name for value in graph.output}
    return found


def _live(nodes: list[onnx.NodeProto], outputs: set[str]) -> list[onnx.NodeProto]:
    """The nodes whose results are needed, in their order."""
    needed = set(outputs)
    kept = []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            kept.append(node)
            needed |= values_read([node])
    return kept[::-1]
