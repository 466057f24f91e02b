"""Weights of three, four or eight bits in blocks: choosing, fitting and writing them.

What the schemes int3, int4 and mixed share. Each matrix and table gets a ``Width``, is fitted
(``feedback`` where there are calibration inputs, ``fit`` where there are none, and for tables), and
stands in the graph as

    bits  MatMul, Gemm                                       Gather
    3     edgebench::MatMul3Bit                              edgebench::Gather3Bit
    4     DequantizeLinear of INT4 [K, N], then MatMul       edgebench::Gather4Bit
    8     DequantizeLinear of INT8 [K, N], then MatMul       Gather, then DequantizeLinear

with fp16 scales, one a block along K. ONNX Runtime 1.31 fuses every one of the three MatMuls into
its own com.microsoft::MatMulNBits, of 4 bits for the first two and of 8 for the third.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray
from onnx import TensorProto, helper, numpy_helper

from edgebench.artifact import Quantization
from edgebench.errors import InputError, UsageError
from edgebench.quantize import bits, calibration, functions
from edgebench.quantize.calibration import Feed
from edgebench.quantize.feedback import fit_with_feedback
from edgebench.quantize.fit import dequantize, fit
from edgebench.quantize.graph import DEFAULT_DOMAINS, Graph, Weight
from edgebench.quantize.packing import pack, pack_nibbles, stored_bits

BLOCK_SIZES = (32, 64, 128, 256)
"""Those of MatMulNBits (powers of two, 16 to 256) but the smallest, whose scales take a bit a
weight."""

# Accuracy level 4 is int8 activations (MatMulNBits, attribute accuracy_level), and what ONNX
# Runtime takes when nothing is said (onnxruntime_session_options_config_keys.h). Where the CPU has
# no such kernel it computes in fp32. Named here so that activation_bits does not hang on a default.
SESSION_OPTIONS = {"session.qdq_matmulnbits_accuracy_level": "4"}

_OLDEST_OPSET = 13

Key = tuple[str, bool]
"""A stored weight: its initialiser, and whether that is stored transposed."""


@dataclass(frozen=True)
class Width:
    """How one weight is stored."""

    bits: int
    block_size: int

    def stored(self, n: int, k: int) -> int:
        """Bits of a weight [n, k], scales included."""
        if self.bits == 3:
            return stored_bits(n, k, self.block_size)
        # Rows of a four-bit table are whole bytes.
        codes = k + k % 2 if self.bits == 4 else k
        return n * (self.bits * codes + 16 * -(-k // self.block_size))


@dataclass(frozen=True)
class Fitted:
    """A weight's codes [N, K] and scales [N, ceil(K / block)]."""

    width: Width
    codes: NDArray[np.int8]
    scales: NDArray[np.float16]

    @property
    def values(self) -> NDArray[np.float32]:
        return dequantize(self.codes, self.scales, self.width.block_size)


Plan = Mapping[int, tuple[Weight, Width]]
"""What is stored how, by the index of the node that uses it."""

Step = Callable[[str, float], None]
"""Called with a weight's name, and the share of all weights that are done."""


def check_block_size(scheme: str, block_size: int | None) -> None:
    """Refuse a block size that no kernel takes.

    Raises:
        UsageError: naming those that there are.
    """
    if block_size is not None and block_size not in BLOCK_SIZES:
        raise UsageError(
            f"{scheme} cannot use blocks of {block_size} weights",
            where="block_size",
            fix=f"Choose one of {', '.join(map(str, BLOCK_SIZES))}.",
        )


def key(weight: Weight) -> Key:
    return weight.initializer, weight.transposed


def tables(weights: Iterable[Weight]) -> set[Key]:
    """Weights that nothing but look-ups reads."""
    weights = list(weights)
    return {key(w) for w in weights} - {key(w) for w in weights if w.kind != "Gather"}


def fit_all(
    graph: Graph, plan: Plan, feeds: Sequence[Feed] | None, step: Step
) -> dict[Key, Fitted]:
    """Codes and scales for every weight of a plan.

    A weight that several nodes read is fitted to what the first of them is given; one that is also
    a look-up table, without regard to inputs.

    Raises:
        InputError: a weight is too large for fp16 scales, or the calibration set is too short.
    """
    fitted: dict[Key, Fitted] = {}
    widths = {key(weight): width for weight, width in plan.values()}
    total = sum(weight.n * weight.k for weight, _ in plan.values())
    done = 0

    def finish(weight: Weight, codes: NDArray[np.int8], scales: NDArray[np.float16]) -> None:
        nonlocal done
        if not np.isfinite(scales).all():
            raise InputError(
                f"the weight {weight.initializer!r} is too large for fp16 scales",
                where=f"{weight.n} x {weight.k}",
                fix="Train or convert the checkpoint again; nothing was written.",
            )
        fitted[key(weight)] = Fitted(widths[key(weight)], codes, scales)
        done += weight.n * weight.k

    def alone(weights: Iterable[Weight]) -> None:
        for weight in weights:
            if key(weight) not in fitted:
                step(weight.initializer, done / total)
                width = widths[key(weight)]
                rows = graph.rows(weight)
                finish(weight, *fit(rows, width.block_size, bits=width.bits))

    weights = [weight for weight, _ in plan.values()]
    if feeds is None:
        alone(weights)
        return fitted
    calibration.check(feeds)
    alone(weight for weight in weights if weight.kind == "Gather")

    def fit_group(
        group: Sequence[Weight], moments: calibration.Moments
    ) -> dict[str, NDArray[np.float32]]:
        changed = {}
        for weight in group:
            if key(weight) in fitted:
                continue
            step(weight.initializer, done / total)
            width = widths[key(weight)]
            codes, scales = fit_with_feedback(
                graph.rows(weight), moments, width.block_size, bits=width.bits
            )
            finish(weight, codes, scales)
            changed[weight.initializer] = stored_form(weight, fitted[key(weight)].values)
        return changed

    looked_up = {
        weight.initializer: stored_form(weight, fitted[key(weight)].values)
        for weight in weights
        if weight.kind == "Gather"
    }
    matrices = [weight for weight in weights if weight.kind != "Gather"]
    calibration.walk(graph, calibration.grouped(graph, matrices), feeds, fit_group, looked_up)
    return fitted


def stored_form(weight: Weight, rows: NDArray[np.float32]) -> NDArray[np.float32]:
    """Rows [n, k] in the shape of the initialiser."""
    return np.ascontiguousarray(rows.T if weight.transposed else rows)


def rewrite(graph: Graph, plan: Plan, fitted: Mapping[Key, Fitted]) -> None:
    """Put the fitted weights into the graph, in place."""
    tensors: dict[tuple[Key, bool], list[onnx.TensorProto]] = {}
    nodes: dict[int, list[onnx.NodeProto]] = {}
    used: set[str] = set()
    for index, (weight, width) in plan.items():
        table = weight.kind == "Gather"
        # Three-bit planes serve both uses; in four and eight bits a table's rows are a matrix's
        # columns.
        place = (key(weight), table and width.bits != 3)
        if place not in tensors:
            tensors[place] = _tensors(graph, weight, fitted[key(weight)], place[1])
        names = [tensor.name for tensor in tensors[place]]
        nodes[index] = _nodes(graph, weight, width, names)
        used.update(node.op_type for node in nodes[index] if node.domain == functions.DOMAIN)
    graph.replace(nodes, [tensor for group in tensors.values() for tensor in group])
    model = graph.model
    model.functions.extend(functions.BODIES[name]() for name in functions.BODIES if name in used)
    if used and not any(o.domain == functions.DOMAIN for o in model.opset_import):
        model.opset_import.append(helper.make_opsetid(functions.DOMAIN, functions.DOMAIN_VERSION))


def quantization(
    scheme: str,
    model: onnx.ModelProto,
    fitted: Mapping[Key, Fitted],
    feeds: Sequence[Feed] | None,
    **more: Any,
) -> Quantization:
    """The manifest's account of a rewritten model; ``more`` goes into its details."""
    counted = bits.count(model)
    widths = {item.width for item in fitted.values()}
    wide = max(width.bits for width in widths)
    sizes = sorted({width.block_size for width in widths})
    return Quantization(
        scheme=scheme,
        storage_bits=min(width.bits for width in widths),
        # ONNX Runtime's kernels know 4 and 8 bits; the widest is what the slowest matrices take.
        compute_bits=8 if wide == 8 else 4,
        activation_bits=8,
        storage_bits_per_weight=counted.storage_bits_per_weight,
        file_bits_per_weight=counted.file_bits_per_weight,
        block_size=sizes[0],
        quantized_weights=counted.quantized_weights,
        total_weights=counted.total_weights,
        details={
            "block_sizes": sizes,
            "scale_type": "float16",
            "fit": "signed scale a block, searched for least squared error"
            if feeds is None
            else "error feedback (GPTQ) on calibration inputs; tables by least squared error",
            "calibration_tokens": 0 if feeds is None else calibration.check(feeds),
            "kept_fp32": sorted({weight.initializer for weight in Graph(model).weights()}),
            "compute_kernel": "com.microsoft::MatMulNBits, fused at load",
            "session_options": dict(SESSION_OPTIONS),
            **more,
        },
    )


def _tensors(graph: Graph, weight: Weight, item: Fitted, table: bool) -> list[onnx.TensorProto]:
    stem, codes, scales = weight.initializer, item.codes, item.scales
    arrays: dict[str, NDArray[Any]]
    if item.width.bits == 3:
        low, high = pack(codes)
        arrays = {"low": low, "high": high, "scales": scales}
    elif table:
        arrays = {
            "codes": pack_nibbles(codes) if item.width.bits == 4 else codes,
            "row_scales": scales,
        }
    else:
        columns = np.ascontiguousarray(codes.T)
        scales = np.ascontiguousarray(scales.T)
        if item.width.bits == 8:
            arrays = {"columns": columns, "scales": scales}
        else:
            name = graph.unique(f"{stem}.columns")
            packed = pack_nibbles(columns.reshape(1, -1)).tobytes()
            return [
                helper.make_tensor(name, TensorProto.INT4, columns.shape, packed, raw=True),
                numpy_helper.from_array(scales, graph.unique(f"{stem}.scales")),
            ]
    return [
        numpy_helper.from_array(array, graph.unique(f"{stem}.{suffix}"))
        for suffix, array in arrays.items()
    ]


def _nodes(graph: Graph, weight: Weight, width: Width, stored: list[str]) -> list[onnx.NodeProto]:
    """The nodes for one use of a weight; for a Gemm with a bias, and the addition."""
    node = graph.proto.node[weight.node]
    sizes = {"K": weight.k, "N": weight.n, "block_size": width.block_size}
    output = node.output[0]
    if weight.kind == "Gather":
        if width.bits == 8:
            return _gather8(graph, node, width, stored)
        function = functions.GATHER if width.bits == 3 else functions.GATHER4
        if width.bits == 4:
            del sizes["N"]
        inputs = [*stored, node.input[1]]
        return [_ours(function, inputs, output, node.name, **sizes)]
    biased = weight.kind == "Gemm" and len(node.input) > 2 and node.input[2]
    product = graph.unique(f"{output}.product") if biased else output
    if width.bits == 3:
        made = [_ours(functions.MATMUL, [node.input[0], *stored], product, node.name, **sizes)]
    else:
        scales, values = (graph.unique(f"{output}.{what}") for what in ("scales", "weight"))
        made = [
            helper.make_node("Cast", [stored[1]], [scales], to=TensorProto.FLOAT),
            helper.make_node(
                "DequantizeLinear",
                [stored[0], scales],
                [values],
                axis=0,
                block_size=width.block_size,
            ),
            helper.make_node("MatMul", [node.input[0], values], [product], name=node.name),
        ]
    if biased:
        made.append(helper.make_node("Add", [product, node.input[2]], [output]))
    return made


def _ours(
    function: str, inputs: Sequence[str], output: str, name: str, **sizes: int
) -> onnx.NodeProto:
    return helper.make_node(
        function,
        list(inputs),
        [output],
        name=name,
        domain=functions.DOMAIN,
        **sizes,  # type: ignore[arg-type]
    )


def _gather8(
    graph: Graph, node: onnx.NodeProto, width: Width, stored: list[str]
) -> list[onnx.NodeProto]:
    output, indices = node.output[0], node.input[1]
    codes, halves, scales = (
        graph.unique(f"{output}.{what}") for what in ("codes", "halves", "scales")
    )
    return [
        helper.make_node("Gather", [stored[0], indices], [codes], axis=0, name=node.name),
        helper.make_node("Gather", [stored[1], indices], [halves], axis=0),
        helper.make_node("Cast", [halves], [scales], to=TensorProto.FLOAT),
        helper.make_node(
            "DequantizeLinear", [codes, scales], [output], axis=-1, block_size=width.block_size
        ),
    ]


def at_opset(model: onnx.ModelProto, source: str, scheme: str) -> onnx.ModelProto:
    """The model at opset 21 at least, which blocked and INT4 DequantizeLinear need.

    Raises:
        InputError: its opset is too old, or onnx has no way up for one of its operators.
    """
    opset = next((o for o in model.opset_import if o.domain in DEFAULT_DOMAINS), None)
    if opset is None or opset.version < _OLDEST_OPSET:
        raise InputError(
            f"{scheme} needs ONNX opset {functions.OPSET}, the model has "
            f"{opset.version if opset else 'none'}",
            where=source,
            fix=f"Export it with opset {functions.OPSET}.",
        )
    if opset.version >= functions.OPSET:
        return model
    if opset.version == functions.OPSET - 1 and not _uses(model.graph, "GroupNormalization"):
        # Opset 21 adds types to operators of opset 20, and changes the meaning of this one alone.
        opset.version = functions.OPSET
        for function in model.functions:  # they stand at the model's own opset
            for imported in function.opset_import:
                if imported.domain in DEFAULT_DOMAINS:
                    imported.version = functions.OPSET
        return model
    try:
        return onnx.version_converter.convert_version(model, functions.OPSET)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the model cannot be brought from opset {opset.version} to {functions.OPSET}: {error}",
            where=source,
            fix=f"Export it with opset {functions.OPSET}.",
        ) from error


def _uses(graph: onnx.GraphProto, op_type: str) -> bool:
    """Whether a node of this type stands in the graph or in a subgraph of it."""
    return any(
        node.op_type == op_type
        or any(_uses(sub, op_type) for a in node.attribute for sub in (a.g, *a.graphs))
        for node in graph.node
    )
