"""Error-feedback rounding: codes that keep a matrix's outputs, not its weights.

For inputs x with second moments H = E[x x^T], the outputs of rounded weights are off by
E |(w - v) x|^2 = (w - v) H (w - v)^T for each row. GPTQ (Frantar et al. 2022, arXiv:2210.17323)
rounds column after column, and after each moves the columns that are still to come so that they
make up for its error as well as they can: with U the upper Cholesky factor of H^-1, U^T U = H^-1,

    e = (w_j - v_j) / U_jj        w_k <- w_k - e U_jk   for k > j

A block's scales are searched when its first column is reached, on the weights as moved by then,
with the error of column j weighed by 1 / U_jj^2: what an error there costs after all later columns
have made up for it.

Two things beyond the paper. Scales may be negative, as in ``fit``. And the rows are first moved to
what suits the inputs that the rounded layers before deliver: with y the inputs as the exact layers
deliver them, E |w y - v x|^2 is least for v = w E[y x^T] H^-1. Going all the way fits noise;
``_TOWARDS_EXACT`` of it is best.

Measured on MiniLM in three bits, blocks of 32, 64 rows of 128 tokens as the calibration set, mean
cosine of embeddings of other texts: see docs/quantization.md.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgebench.errors import InputError
from edgebench.quantize.calibration import Moments
from edgebench.quantize.fit import block_scales, dequantize, nearest

# Added to H's diagonal, as a share of its mean. The paper's 0.01 is for 262,144 tokens.
_DAMPING = 0.05

_TOWARDS_EXACT = 0.5

# Columns that are factorised at a time.
_BLOCK = 512


def fit_with_feedback(
    weights: NDArray[np.float32], moments: Moments, block_size: int, *, bits: int
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Codes [N, K] and scales [N, ceil(K / block_size)] for weights [N, K] on inputs [.., K].

    The same shapes and meaning as ``fit.fit``. A row whose scale is beyond fp16 has scale inf.

    Raises:
        InputError: the calibration inputs give activations that are not finite.
    """
    n, k = weights.shape
    w, factor = _prepare(weights, moments)
    codes = np.zeros((n, k), np.int8)
    scales = np.zeros((n, -(-k // block_size)), np.float16)
    worth = (1 / np.diag(factor) ** 2).astype(np.float32)
    for block, start in enumerate(range(0, k, block_size)):
        stop = min(start + block_size, k)
        part = np.ascontiguousarray(w[:, start:stop])
        stored = block_scales(part, bits, worth[start:stop])
        scales[:, block] = stored
        if not np.isfinite(stored).all():
            break
        scale = stored.astype(np.float32)
        errors = np.empty_like(part)
        for j in range(stop - start):
            column = part[:, j : j + 1]
            code = nearest(column, scale[:, None], bits)[:, 0]
            codes[:, start + j] = code
            with np.errstate(invalid="ignore"):
                error = (part[:, j] - code * scale) / factor[start + j, start + j]
            errors[:, j] = error
            part[:, j + 1 :] -= error[:, None] * factor[start + j, start + j + 1 : stop]
        w[:, stop:] -= errors @ factor[start:stop, stop:]
    return codes, scales


def output_error(
    weights: NDArray[np.float32],
    codes: NDArray[np.int8],
    scales: NDArray[np.float16],
    block_size: int,
    hessian: NDArray[np.float64],
) -> float:
    """E |(w - v) x|^2 over the inputs, summed over the rows."""
    off = weights.astype(np.float64) - dequantize(codes, scales, block_size)
    return float(np.einsum("nk,nk->", off @ hessian, off))


def _prepare(
    weights: NDArray[np.float32], moments: Moments
) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """The rows to round, and U."""
    if not (np.isfinite(moments.quantised).all() and np.isfinite(moments.cross).all()):
        raise InputError(
            "the calibration inputs give activations that are NaN or infinite",
            fix="Check the checkpoint, and the text given with --calibration.",
        )
    k = weights.shape[1]
    # Inputs that are all zero leave H zero, and any rounding as good as another.
    damping = (_DAMPING * float(np.trace(moments.quantised)) / k) or 1.0
    # Matrices of k x k are a gigabyte each at k = 11,008: there is one beside the moments.
    factor = moments.quantised.copy()
    factor[np.diag_indices(k)] += damping
    _factorise(factor)
    w = weights.astype(np.float64)
    moved = w @ moments.cross
    moved -= w @ moments.quantised
    w += _TOWARDS_EXACT * (moved @ factor.T) @ factor
    return np.ascontiguousarray(w, np.float32), factor.astype(np.float32)


def _factorise(h: NDArray[np.float64]) -> None:
    """Replace H [k, k], symmetric and positive, by U, upper triangular, U^T U = H^-1.

    H = R R^T with R upper triangular, from the last block of columns to the first; then U = R^-1,
    from the first to the last. Both in H's own memory.
    """
    k = len(h)
    blocks = [slice(start, min(start + _BLOCK, k)) for start in range(0, k, _BLOCK)]
    for here in reversed(blocks):
        # numpy's Cholesky gives lower factors; that of the block turned around is upper.
        corner = np.linalg.cholesky(h[here, here][::-1, ::-1])[::-1, ::-1]
        side = np.linalg.solve(corner, h[: here.start, here].T).T
        h[here, here] = corner
        h[: here.start, here] = side
        for rows in blocks:
            if rows.start < here.start:
                h[rows, rows.start : here.start] -= side[rows] @ side[rows.start :].T
    for here in blocks:
        corner = np.linalg.inv(h[here, here])
        h[: here.start, here] = -h[: here.start, : here.start] @ (h[: here.start, here] @ corner)
        h[here, here] = np.triu(corner)
        h[here, : here.start] = 0
