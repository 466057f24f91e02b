"""Three stored bits a weight: ``edgebench::MatMul3Bit`` and ``edgebench::Gather3Bit``.

Every matrix that a MatMul or Gemm multiplies by, and every embedding table, becomes three-bit codes
in two planes with one fp16 scale a block of weights along the summed (for tables: the hidden) axis:
3 + 16/32 = 3.5 bits a weight at the default block of 32. Codes and scales come from ``fit``, the
bits from ``packing``, and what a runtime does with them from ``functions``: ONNX Runtime computes
with its own 4-bit kernel, on values that are exactly these.

Narrow matrices (LoRA factors of rank <= 64, classification heads, token types) stay in fp32, and so
does a matrix whose row length would push it over 3.5 bits with every block size.

What this plain rounding costs MiniLM, cosine of 200 news articles' embeddings against fp32: tables
alone .996, matrices alone .881, both .876; blocks of 64 .855, of 128 .848. One linear classifier on
those embeddings: 94.5 %, fp32 96.7 %.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from edgebench.artifact import Quantization
from edgebench.errors import InputError, UsageError
from edgebench.quantize import bits, files, functions
from edgebench.quantize.fit import fit
from edgebench.quantize.graph import DEFAULT_DOMAINS, Graph, Weight
from edgebench.quantize.packing import pack, stored_bits

if TYPE_CHECKING:
    from edgebench.quantize import Progress

BLOCK_SIZES = (32, 64, 128, 256)
"""Those of MatMulNBits (powers of two, 16 to 256) that stay within ``MOST_BITS``."""

MOST_BITS = 3.5
"""Stored bits a weight, scales included."""

# Accuracy level 4 is int8 activations (MatMulNBits, attribute accuracy_level), and what ONNX
# Runtime takes when nothing is said (onnxruntime_session_options_config_keys.h). Where the CPU has
# no such kernel it computes in fp32. Named here so that activation_bits does not hang on a default.
SESSION_OPTIONS = {"session.qdq_matmulnbits_accuracy_level": "4"}

_OLDEST_OPSET = 13


@dataclass
class _Work:
    """What the conversion has made so far."""

    tensors: dict[tuple[str, bool], list[onnx.TensorProto]] = field(default_factory=dict)
    nodes: dict[int, list[onnx.NodeProto]] = field(default_factory=dict)
    used: set[str] = field(default_factory=set)


def convert(
    source: Path, target: Path, progress: Progress, *, block_size: int | None = None
) -> Quantization:
    """Write ``source`` in three bits to ``target``; see ``edgebench.quantize.quantize``.

    Args:
        block_size: weights that share a scale; None takes, for each matrix, the smallest block
            that stays within 3.5 bits a weight: 32 wherever rows are a multiple of 32 long.

    Raises:
        UsageError: a block size that no kernel takes, or that needs more than 3.5 bits.
        InputError: NaN or infinite weights, or no matrix that could be quantised.
    """
    if block_size is not None and block_size not in BLOCK_SIZES:
        raise UsageError(
            f"int3 cannot use blocks of {block_size} weights",
            where="block_size",
            fix=f"Choose one of {', '.join(map(str, BLOCK_SIZES))}.",
        )
    progress("reading the model", None)
    model = _at_opset(files.load(source), source)
    graph = Graph(model)
    graph.check_finite()
    chosen = {w.node: (w, b) for w in graph.weights() if (b := _block(w, block_size)) is not None}
    if not chosen:
        raise InputError(
            "no matrix of this model is wide enough for three bits",
            where=str(source),
            fix="Export it as int8 or fp32.",
        )
    _rewrite(graph, chosen, progress)
    progress("writing", 0.95)
    files.save(model, target)
    counted = bits.count(model)
    progress("written", 1.0)
    blocks = sorted({block for _, block in chosen.values()})
    return Quantization(
        scheme="int3",
        storage_bits=3,
        compute_bits=4,
        activation_bits=8,
        storage_bits_per_weight=counted.storage_bits_per_weight,
        file_bits_per_weight=counted.file_bits_per_weight,
        block_size=blocks[0],
        quantized_weights=counted.quantized_weights,
        total_weights=counted.total_weights,
        details=_details(model, blocks),
    )


def _block(weight: Weight, block_size: int | None) -> int | None:
    """The block size for one matrix, or None when it stays in fp32."""
    if weight.narrow:
        return None
    for block in BLOCK_SIZES if block_size is None else (block_size,):
        if stored_bits(weight.n, weight.k, block) <= MOST_BITS * weight.n * weight.k:
            return block
    return None


def _rewrite(graph: Graph, chosen: dict[int, tuple[Weight, int]], progress: Progress) -> None:
    work = _Work()
    total = sum(weight.n * weight.k for weight, _ in chosen.values())
    done = 0
    for index, (weight, block) in chosen.items():
        progress(f"rounding {weight.initializer}", 0.9 * done / total)
        key = (weight.initializer, weight.transposed)
        if key not in work.tensors:
            work.tensors[key] = _planes(graph, weight, block)
        names = [tensor.name for tensor in work.tensors[key]]
        work.nodes[index] = _nodes(graph, weight, block, names)
        work.used.add(work.nodes[index][0].op_type)
        done += weight.n * weight.k
    graph.replace(work.nodes, [tensor for group in work.tensors.values() for tensor in group])
    model = graph.model
    bodies = {functions.MATMUL: functions.matmul, functions.GATHER: functions.gather}
    model.functions.extend(body() for name, body in bodies.items() if name in work.used)
    model.opset_import.append(helper.make_opsetid(functions.DOMAIN, functions.DOMAIN_VERSION))


def _planes(graph: Graph, weight: Weight, block: int) -> list[onnx.TensorProto]:
    codes, scales = fit(graph.rows(weight), block)
    if not np.isfinite(scales).all():
        raise InputError(
            f"the weight {weight.initializer!r} is too large for fp16 scales",
            where="int3",
            fix="Train or convert the checkpoint again; nothing was written.",
        )
    low, high = pack(codes)
    stem = weight.initializer
    return [
        numpy_helper.from_array(low, graph.unique(f"{stem}.low")),
        numpy_helper.from_array(high, graph.unique(f"{stem}.high")),
        numpy_helper.from_array(scales, graph.unique(f"{stem}.scales")),
    ]


def _nodes(graph: Graph, weight: Weight, block: int, planes: list[str]) -> list[onnx.NodeProto]:
    """The node of ours for one use of a weight; for a Gemm with a bias, and the addition."""
    node = graph.proto.node[weight.node]
    gather = weight.kind == "Gather"
    made = helper.make_node(
        functions.GATHER if gather else functions.MATMUL,
        [*planes, node.input[1]] if gather else [node.input[0], *planes],
        list(node.output),
        name=node.name,
        domain=functions.DOMAIN,
        K=weight.k,
        N=weight.n,
        block_size=block,
    )
    if weight.kind != "Gemm" or len(node.input) < 3 or not node.input[2]:
        return [made]
    product = graph.unique(f"{node.output[0]}.product")
    made.output[0] = product
    add = helper.make_node("Add", [product, node.input[2]], list(node.output))
    return [made, add]


def _at_opset(model: onnx.ModelProto, source: Path) -> onnx.ModelProto:
    """The model at opset 21 at least, which blocked INT4 DequantizeLinear needs.

    Raises:
        InputError: its opset is too old, or onnx has no way up for one of its operators.
    """
    opset = next((o for o in model.opset_import if o.domain in DEFAULT_DOMAINS), None)
    if opset is None or opset.version < _OLDEST_OPSET:
        raise InputError(
            f"int3 needs ONNX opset {functions.OPSET}, the model has "
            f"{opset.version if opset else 'none'}",
            where=str(source),
            fix=f"Export it with opset {functions.OPSET}.",
        )
    if opset.version >= functions.OPSET:
        return model
    if opset.version == functions.OPSET - 1 and not _uses(model.graph, "GroupNormalization"):
        # Opset 21 adds types to operators of opset 20, and changes the meaning of this one alone.
        opset.version = functions.OPSET
        return model
    try:
        return onnx.version_converter.convert_version(model, functions.OPSET)
    except (RuntimeError, ValueError) as error:
        raise InputError(
            f"the model cannot be brought from opset {opset.version} to {functions.OPSET}: {error}",
            where=str(source),
            fix=f"Export it with opset {functions.OPSET}.",
        ) from error


def _uses(graph: onnx.GraphProto, op_type: str) -> bool:
    """Whether a node of this type stands in the graph or in a subgraph of it."""
    return any(
        node.op_type == op_type
        or any(_uses(sub, op_type) for a in node.attribute for sub in (a.g, *a.graphs))
        for node in graph.node
    )


def _details(model: onnx.ModelProto, blocks: list[int]) -> dict[str, Any]:
    """What the manifest says beyond its fixed members."""
    ours = [node.op_type for node in model.graph.node if node.domain == functions.DOMAIN]
    return {
        "block_sizes": blocks,
        "scale_type": "float16",
        "fit": "signed scale a block, searched for least squared error",
        "matmuls": ours.count(functions.MATMUL),
        "gathers": ours.count(functions.GATHER),
        "kept_fp32": sorted({weight.initializer for weight in Graph(model).weights()}),
        "compute_kernel": "com.microsoft::MatMulNBits, 4 bits, fused at load",
        "session_options": dict(SESSION_OPTIONS),
    }
