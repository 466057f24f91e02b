"""Three stored bits a weight: ``edgebench::MatMul3Bit`` and ``edgebench::Gather3Bit``.

Every matrix that a MatMul or Gemm multiplies by, and every embedding table, becomes three-bit codes
in two planes with one fp16 scale a block of weights along the summed (for tables: the hidden) axis:
3 + 16/32 = 3.5 bits a weight for matrices at blocks of 32, and 3.25 for tables at blocks of 64,
which cost less quality than they save. The bits come from ``packing``, and what a runtime does with
them from ``functions``: ONNX Runtime computes with its own 4-bit kernel, on exactly these values.

Matrices are fitted to calibration inputs (``feedback``); without any, by plain rounding, which
costs several times the error.

Narrow matrices (LoRA factors of rank <= 64, classification heads, token types) stay in fp32, and so
does a matrix whose row length would push it over 3.5 bits with every block size.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from edgebench.artifact import Quantization
from edgebench.errors import InputError
from edgebench.quantize import blocks, files, functions
from edgebench.quantize.blocks import BLOCK_SIZES, SESSION_OPTIONS, Width
from edgebench.quantize.calibration import Feed
from edgebench.quantize.graph import Graph, Weight

if TYPE_CHECKING:
    from edgebench.quantize import Progress

__all__ = ["BLOCK_SIZES", "MOST_BITS", "SESSION_OPTIONS", "convert"]

MOST_BITS = 3.5
"""Stored bits a weight, scales included."""

TABLE_BLOCK = 64
"""The smallest block for a table: MiniLM's tables lose as little with it as with 32."""


def convert(
    source: Path,
    target: Path,
    progress: Progress,
    *,
    calibration: Sequence[Feed] | None = None,
    block_size: int | None = None,
) -> Quantization:
    """Write ``source`` in three bits to ``target``; see ``edgebench.quantize.quantize``.

    Args:
        calibration: inputs to fit the matrices to; None rounds them plainly.
        block_size: weights that share a scale; None takes, for each matrix, the smallest block
            that stays within 3.5 bits a weight: 32 wherever rows are a multiple of 32 long.

    Raises:
        UsageError: a block size that no kernel takes, or that needs more than 3.5 bits.
        InputError: NaN or infinite weights, no matrix that could be quantised, or a calibration
            set that is too short.
    """
    blocks.check_block_size("int3", block_size)
    progress("reading the model", None)
    model = blocks.at_opset(files.load(source), str(source), "int3")
    graph = Graph(model)
    graph.check_finite()
    weights = graph.weights()
    only_looked_up = blocks.tables(weights)
    plan = {
        weight.node: (weight, width)
        for weight in weights
        if (width := _width(weight, block_size, blocks.key(weight) in only_looked_up)) is not None
    }
    if not plan:
        raise InputError(
            "no matrix of this model is wide enough for three bits",
            where=str(source),
            fix="Export it as int8 or fp32.",
        )
    fitted = blocks.fit_all(
        graph, plan, calibration, lambda name, done: progress(f"rounding {name}", 0.9 * done)
    )
    blocks.rewrite(graph, plan, fitted)
    progress("writing", 0.95)
    files.save(model, target, mapped=True)
    ours = [node.op_type for node in model.graph.node if node.domain == functions.DOMAIN]
    result = blocks.quantization(
        "int3",
        model,
        fitted,
        calibration,
        matmuls=ours.count(functions.MATMUL),
        gathers=ours.count(functions.GATHER),
    )
    progress("written", 1.0)
    return result


def _width(weight: Weight, block_size: int | None, table: bool) -> Width | None:
    """The width of one matrix, or None when it stays in fp32."""
    if weight.narrow:
        return None
    sizes = [size for size in BLOCK_SIZES if not table or size >= TABLE_BLOCK]
    for size in sizes if block_size is None else [block_size]:
        width = Width(3, size)
        if width.stored(weight.n, weight.k) <= MOST_BITS * weight.n * weight.k:
            return width
    return None
