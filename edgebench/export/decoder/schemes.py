"""How wide each scheme stores a decoder's matrices, and what the manifest says of it."""

from __future__ import annotations

from typing import Any

from edgebench.errors import UsageError
from edgebench.export.decoder.architecture import Linear
from edgebench.export.decoder.network import Widths
from edgebench.quantize.blocks import BLOCK_SIZES, SESSION_OPTIONS, Width
from edgebench.quantize.int3 import MOST_BITS, TABLE_BLOCK

SCHEMES = ("fp32", "fp16", "int8", "int4", "int3")

FITTED = frozenset({"int8", "int4", "int3"})
"""Those that can be fitted to calibration text."""

#: Weights a scale in four and eight bits.
_WIDE_BLOCKS = (128, 64, 32)


def check(scheme: str) -> None:
    """Refuse a scheme that decoders do not have.

    Raises:
        UsageError: saying why.
    """
    if scheme in SCHEMES:
        return
    reasons = {
        "int8-static": "one fixed range an activation does not hold a decoder's few very large "
        "activations (LLM.int8, arXiv:2208.07339)",
        "mixed": "its widths are chosen by running the whole model once for every matrix, which "
        "takes a decoder hours",
    }
    raise UsageError(
        f"decoders have no {scheme}: {reasons.get(scheme, 'there is no such scheme')}",
        where="--quant",
        fix=f"They have {', '.join(SCHEMES)}.",
    )


def widths(scheme: str) -> Widths:
    """The width of every matrix in a scheme."""
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

    def row_bits(size: int) -> int:
        count = -(-matrix.k // size)
        return count * (size * bits + 16)

    return Width(bits, min(_WIDE_BLOCKS, key=row_bits))


def three(matrix: Linear, only_looked_up: bool) -> Width | None:
    """As ``edgebench.quantize.int3``: the smallest block within 3.5 bits a weight."""
    for size in BLOCK_SIZES:
        width = Width(3, size)
        small = only_looked_up and size < TABLE_BLOCK
        if not small and width.stored(matrix.n, matrix.k) <= MOST_BITS * matrix.n * matrix.k:
            return width
    return None


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
