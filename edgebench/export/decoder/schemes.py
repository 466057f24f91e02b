"""How wide each scheme stores a decoder's matrices, and what the manifest says of it."""

from __future__ import annotations

import math
from typing import Any

from edgebench.export.decoder.architecture import Architecture, Linear
from edgebench.export.decoder.network import Widths
from edgebench.export.decoder.source import Source
from edgebench.quantize.blocks import BLOCK_SIZES, SESSION_OPTIONS, Width
from edgebench.quantize.int3 import MOST_BITS, TABLE_BLOCK
from edgebench.quantize.int8 import EXACT_SUMS

FITTED = frozenset({"int8", "int4", "int3", "mixed"})
"""Those that can be fitted to calibration text."""

#: Weights a scale in four and eight bits.
_WIDE_BLOCKS = (128, 64, 32)


def widths(scheme: str) -> Widths:
    """The width of every matrix in a scheme other than mixed."""
    bits = {"int8": 8, "int4": 4, "int3": 3}.get(scheme)

    def of(matrix: Linear, only_looked_up: bool) -> Width | None:
        if bits is None:
            return None
        if bits == 3:
            return three(matrix, only_looked_up)
        return wide(matrix, bits)

    return of


def wide(matrix: Linear, bits: int) -> Width:
    """The block that stores a row in the fewest bits: rows are filled up to whole blocks."""
    choices = (Width(bits, size) for size in _WIDE_BLOCKS)
    return min(choices, key=lambda width: stored_bits(matrix, width))


def stored_bits(matrix: Linear, width: Width) -> int:
    """Bits of a matrix as ``storage`` writes it."""
    if width.bits == 3:
        return width.stored(matrix.n, matrix.k)
    blocks = -(-matrix.k // width.block_size)
    return matrix.n * blocks * (width.block_size * width.bits + 16)


def three(matrix: Linear, only_looked_up: bool) -> Width | None:
    """As ``edgebench.quantize.int3``: the smallest block within 3.5 bits a weight."""
    for size in BLOCK_SIZES:
        width = Width(3, size)
        small = only_looked_up and size < TABLE_BLOCK
        if not small and width.stored(matrix.n, matrix.k) <= MOST_BITS * matrix.n * matrix.k:
            return width
    return None


def kept_parameters(a: Architecture, source: Source, unmerged: bool) -> int:
    """Parameters that no width stores: norms, biases, and an adapter's factors beside them."""
    kept = sum(math.prod(shape) for shape in a.expected().values()) - a.matrix_weights
    if unmerged and source.adapter is not None:
        factors = (name for f in source.branches.values() for name in (f.a, f.b))
        kept += sum(math.prod(source.adapter.shape(name)) for name in factors)
    return kept


def details(scheme: str, calibration: str | None = None, tokens: int = 0) -> dict[str, Any]:
    """How weights were rounded and what computes, for the manifest.

    Args:
        calibration: where the text came from that weights were fitted to; None rounds plainly.
        tokens: of that text.
    """
    if scheme == "fp32":
        return {}
    if scheme == "fp16":
        return {"computes": "in fp32: weights are cast once, when the session is made"}
    if scheme == "int8-static":
        return {
            "fit": "weights rounded to a scale an output channel, tables to one a row; scale moved "
            "between activations and weights (SmoothQuant)",
            "calibration": calibration,
            "calibration_tokens": tokens,
            "compute_kernel": "com.microsoft::MatMulIntegerToFloat, fused at load",
            "session_options": {},
            "session_options_x86_without_vnni": dict(EXACT_SUMS),
        }
    fit = "plain rounding: signed scale a block, searched for least squared error"
    if calibration is not None:
        fit = "error feedback (GPTQ) on calibration text; tables by least squared error"
    return {
        "fit": fit,
        "calibration": calibration,
        "calibration_tokens": tokens,
        "compute_kernel": "com.microsoft::MatMulNBits",
        "session_options": dict(SESSION_OPTIONS),
    }
