"""The decoder's graph, part by part: before the layers, each layer, after them.

    input_ids ─ embed ─▶ hidden.0 ─ layer 0 ─▶ hidden.1 ─ … ─▶ hidden.L ─ head ─▶ logits

One graph serves prefill and decode. attention_mask [batch, total] is as wide as past and new
tokens together. Keys and values go through com.microsoft::GroupQueryAttention, which rotates
queries and keys, and writes the new keys behind the past ones in buffers [batch, kv_heads, length,
head_dim]; where the caller binds one buffer as past and as present, nothing is copied. Which
position a token has follows from the mask: rows of a batch may be padded on the right in a prefill.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from edgebench.export.decoder.architecture import NORM, Architecture, Layer, Linear
from edgebench.export.decoder.source import Source
from edgebench.export.decoder.storage import MICROSOFT, Part, Storage, Table
from edgebench.export.graph import IR_VERSION
from edgebench.export.swappable import down_name, up_name
from edgebench.quantize import functions
from edgebench.quantize.blocks import Width

OPSET = functions.OPSET

IDS, MASK, KEEP, LOGITS = "input_ids", "attention_mask", "logits_to_keep", "logits"

_LENGTHS, _TOTAL = "sequence_lengths", "total_length"
_COS, _SIN = "rotary.cos", "rotary.sin"

Widths = Callable[[Linear, bool], Width | None]
"""The width of a matrix, and whether it is only looked up; None stores it without blocks."""

Value = tuple[str, int, Sequence[str | int]]
"""A value's name, ONNX type and shape."""


def hidden(index: int) -> str:
    """The value between two layers, [batch, sequence, hidden]."""
    return f"hidden.{index}"


def past(index: int) -> tuple[str, str]:
    return f"past_key_values.{index}.key", f"past_key_values.{index}.value"


def present(index: int) -> tuple[str, str]:
    return f"present.{index}.key", f"present.{index}.value"


@dataclass(frozen=True)
class Network:
    """Builds the parts of one decoder into one storage."""

    architecture: Architecture
    source: Source
    storage: Storage
    widths: Widths
    unmerged: bool = False
    #: Names of the matrices whose branch is of inputs, which without an adapter have rank 0.
    swapped: Collection[str] = ()

    def shared(self) -> Part:
        """What all layers read: lengths from the mask, and the rotary tables."""
        part = Part()
        ones = {"axis.1": [1], "one": [1], "index.1": 1}
        for name, value in ones.items():
            part.initializers.append(numpy_helper.from_array(np.array(value, np.int64), name))
        part.node("ReduceSum", [MASK, "axis.1"], ["mask.sum"], keepdims=0)
        part.node("Sub", ["mask.sum", "one"], ["mask.last"])
        part.node("Cast", ["mask.last"], [_LENGTHS], to=TensorProto.INT32)
        part.node("Shape", [MASK], ["mask.shape"])
        part.node("Gather", ["mask.shape", "index.1"], ["mask.width"], axis=0)
        part.node("Cast", ["mask.width"], [_TOTAL], to=TensorProto.INT32)
        for name, array in zip((_COS, _SIN), self.architecture.rotary(), strict=True):
            part.initializers.append(self.storage.data.tensor(name, array))
        return part

    def embed(self) -> tuple[Part, Table]:
        """input_ids -> hidden.0."""
        part, matrix = Part(), self.architecture.table
        rows = self.source.merged(matrix)
        width = self.widths(matrix, not self.architecture.tied)
        return part, self.storage.table(part, IDS, hidden(0), matrix.name, rows, width)

    def layer(self, index: int) -> Part:
        """hidden.i -> hidden.i+1, with keys and values past and present."""
        names, part = self.architecture.layer(index), Part()
        x = hidden(index)
        attended = self._attention(part, names, self._norm(part, x, names.attention_norm))
        middle = f"{x}.middle"
        part.node("Add", [x, attended], [middle])
        normed = self._norm(part, middle, names.feed_forward_norm)
        gate = self._linear(part, names.gate, normed)
        up = self._linear(part, names.up, normed)
        part.node("Sigmoid", [gate], [f"{gate}.sigmoid"])
        part.node("Mul", [gate, f"{gate}.sigmoid"], [f"{gate}.silu"])
        part.node("Mul", [f"{gate}.silu", up], [f"{x}.gated"])
        down = self._linear(part, names.down, f"{x}.gated")
        part.node("Add", [middle, down], [hidden(index + 1)])
        return part

    def head(self, table: Table) -> Part:
        """hidden.L -> logits of the last ``logits_to_keep`` positions."""
        a, part = self.architecture, Part()
        last = hidden(a.layers)
        for name, value in (("keep.end", np.iinfo(np.int64).max), ("keep.axis", 1)):
            part.initializers.append(numpy_helper.from_array(np.array([value], np.int64), name))
        part.node("Neg", [KEEP], ["keep.start"])
        kept = part.node("Slice", [last, "keep.start", "keep.end", "keep.axis"], ["hidden.kept"])
        normed = self._norm(part, kept, NORM)
        if a.tied:
            self.storage.tied_head(part, normed, LOGITS, table)
        else:
            self._linear(part, a.head, normed, LOGITS)
        return part

    def _attention(self, part: Part, names: Layer, x: str) -> str:
        a = self.architecture
        q, k, v = (self._linear(part, matrix, x) for matrix in (names.q, names.k, names.v))
        output = f"model.layers.{names.index}.attention"
        part.node(
            "GroupQueryAttention",
            [q, k, v, *past(names.index), _LENGTHS, _TOTAL, _COS, _SIN],
            [output, *present(names.index)],
            MICROSOFT,
            num_heads=a.heads,
            kv_num_heads=a.kv_heads,
            do_rotary=1,
            rotary_interleaved=0,
        )
        return self._linear(part, names.o, output)

    def _norm(self, part: Part, x: str, name: str) -> str:
        weight = self.storage.constant(part, f"{name}.weight", self.source.plain(f"{name}.weight"))
        # RMSNorm (arXiv:1910.07467); ONNX's own RMSNormalization is of opset 23.
        return part.node(
            "SimplifiedLayerNormalization",
            [x, weight],
            [f"{name}.output"],
            axis=-1,
            epsilon=self.architecture.norm_eps,
            stash_type=1,
        )

    def _linear(self, part: Part, matrix: Linear, x: str, y: str | None = None) -> str:
        """y = x W^T, the branch and the bias added."""
        y = y or f"{matrix.name}.output"
        branch = self.source.branch(matrix) if self.unmerged else None
        rows = (
            self.source.plain(f"{matrix.name}.weight")
            if branch is not None
            else self.source.merged(matrix)
        )
        branched = branch is not None or matrix.name in self.swapped
        product = f"{y}.product" if branched or matrix.biased else y
        width = self.widths(matrix, False)
        self.storage.matrix(part, x, product, matrix.name, rows, width)
        if branched:
            if branch is None:
                down, up = self._factors(part, matrix)
            else:
                down = self.storage.constant(part, f"{matrix.name}.lora_A.weight", branch.down)
                up = self.storage.constant(part, f"{matrix.name}.lora_B.weight", branch.up)
            part.node("MatMul", [x, down], [f"{y}.down"])
            part.node("MatMul", [f"{y}.down", up], [f"{y}.branch"])
            joined = f"{y}.joined" if matrix.biased else y
            product = part.node("Add", [product, f"{y}.branch"], [joined])
        if matrix.biased:
            bias = self.storage.constant(
                part, f"{matrix.name}.bias", self.source.plain(f"{matrix.name}.bias")
            )
            part.node("Add", [product, bias], [y])
        return y

    def _factors(self, part: Part, matrix: Linear) -> tuple[str, str]:
        """The inputs A [k, rank] and B [rank, n] of a matrix, by default of rank 0."""
        rank = f"{matrix.name}.rank"
        down, up = down_name(matrix.name), up_name(matrix.name)
        shapes: dict[str, list[int | str]] = {down: [matrix.k, rank], up: [rank, matrix.n]}
        for name, shape in shapes.items():
            empty = np.zeros([0 if size == rank else int(size) for size in shape], np.float32)
            part.initializers.append(numpy_helper.from_array(empty, name))
            part.inputs.append(helper.make_tensor_value_info(name, TensorProto.FLOAT, shape))
        return down, up


def inputs(architecture: Architecture) -> list[Value]:
    """The whole graph's inputs."""
    return [
        (IDS, TensorProto.INT64, ("batch", "sequence")),
        (MASK, TensorProto.INT64, ("batch", "total_sequence")),
        *(value for i in range(architecture.layers) for value in caches(architecture, i, past)),
        (KEEP, TensorProto.INT64, (1,)),
    ]


def outputs(architecture: Architecture) -> list[Value]:
    """The whole graph's outputs."""
    every = range(architecture.layers)
    return [
        (LOGITS, TensorProto.FLOAT, ("batch", "kept", architecture.vocab_size)),
        *(value for i in every for value in caches(architecture, i, present)),
    ]


def caches(
    architecture: Architecture, index: int, names: Callable[[int], tuple[str, str]]
) -> list[Value]:
    """Keys and values of a layer, past or present."""
    length = "past_sequence" if names is past else "present_sequence"
    shape = ("batch", architecture.kv_heads, length, architecture.head_dim)
    return [(name, TensorProto.FLOAT, shape) for name in names(index)]


def model(parts: Sequence[Part], given: Sequence[Value], made: Sequence[Value]) -> onnx.ModelProto:
    """A model of these parts, in their order."""
    nodes = [node for part in parts for node in part.nodes]
    graph = helper.make_graph(
        nodes,
        "edgebench",
        [
            *(helper.make_tensor_value_info(n, kind, shape) for n, kind, shape in given),
            *(value for part in parts for value in part.inputs),
        ],
        [helper.make_tensor_value_info(n, kind, shape) for n, kind, shape in made],
        [tensor for part in parts for tensor in part.initializers],
    )
    opsets = {"": OPSET, MICROSOFT: 1}
    used = {node.op_type for node in nodes if node.domain == functions.DOMAIN}
    if used:
        opsets[functions.DOMAIN] = functions.DOMAIN_VERSION
    return helper.make_model(
        graph,
        opset_imports=[helper.make_opsetid(*pair) for pair in opsets.items()],
        functions=[functions.BODIES[name]() for name in functions.BODIES if name in used],
        ir_version=IR_VERSION,
    )
