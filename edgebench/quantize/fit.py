"""Codes of few bits and block scales for a weight matrix, by least squares.

A block w of B consecutive weights of a row becomes s (c_1 .. c_B), c_k in -4..3 for three bits,
-8..7 for four and -128..127 for eight, so that

    E(s) = sum_k (w_k - s round_clip(w_k / s))^2

is small. E has many local minima, so it is searched: candidates s = f w* / c_min, where w* is the
block's weight of largest magnitude *with its sign*, are tried for a few f around 1, each followed
by one step of the closed form for fixed codes, s = sum(w c) / sum(c c). A signed scale lets the
longer negative side of the codes serve whichever side of the block is longer: on MiniLM's weights
it lowers the squared error by a fifth against positive scales.

f < 1 clips the largest weight to gain resolution for the others (clipping as in Banner et al. 2019,
arXiv:1810.05723; here by search, not under a distribution's assumption). No activation is looked
at here; ``feedback`` has the fit that does, and searches its scales with ``block_scales``.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

# On MiniLM those of three bits leave a relative squared error of 2.7 % (tables) and 2.8 %
# (matrices); eighteen candidates in steps of 0.05 take half a percent off that, and twice the time.
_FRACTIONS = {
    3: (0.6, 0.7, 0.8, 0.9, 1.0, -1.0, -0.85, 1.15),
    4: (0.75, 0.8, 0.85, 0.9, 0.95, 1.0, -1.0, -0.9),
    8: (1.0, -1.0),
}

# Half of fp16's smallest number.
_ROUNDS_TO_ZERO = 2.0**-25

# Rows are taken in slices of about this many weights: the temporaries then stay in the L2 cache.
_SLICE = 1 << 16


def levels(bits: int) -> tuple[int, int]:
    """The lowest and the highest code of so many bits: two's complement."""
    return -(1 << bits - 1), (1 << bits - 1) - 1


def fit(
    weights: NDArray[np.float32], block_size: int, *, bits: int = 3
) -> tuple[NDArray[np.int8], NDArray[np.float16]]:
    """Codes [N, K] and scales [N, ceil(K / block_size)] for weights [N, K].

    Blocks run along K; the last one may be short. The codes are those for the scales as stored
    (fp16). A block of zeros has scale 0; one whose scale is beyond fp16 has scale inf, codes 0.
    """
    n, k = weights.shape
    blocks = -(-k // block_size)
    codes = np.empty((n, blocks * block_size), np.int8)
    scales = np.empty((n, blocks), np.float16)
    step = max(1, _SLICE // (blocks * block_size))
    for start in range(0, n, step):
        rows = weights[start : start + step]
        full = np.zeros((rows.shape[0], blocks * block_size), np.float32)
        full[:, :k] = rows
        flat = full.reshape(-1, block_size)
        part = block_scales(flat, bits)
        part_codes = nearest(flat, part.astype(np.float32)[:, None], bits).astype(np.int8)
        codes[start : start + step] = part_codes.reshape(rows.shape[0], -1)
        scales[start : start + step] = part.reshape(rows.shape[0], -1)
    return np.ascontiguousarray(codes[:, :k]), scales


def dequantize(
    codes: NDArray[np.int8], scales: NDArray[np.float16], block_size: int
) -> NDArray[np.float32]:
    """The weights [N, K] that codes and scales stand for, w = s c, each product rounded once."""
    k = codes.shape[1]
    wide = np.repeat(scales.astype(np.float32), block_size, axis=1)[:, :k]
    return codes.astype(np.float32) * wide


def block_scales(
    w: NDArray[np.float32], bits: int, importance: NDArray[np.float32] | None = None
) -> NDArray[np.float16]:
    """One scale for each row of w [blocks, B]: the best of the search, as stored.

    ``importance`` [B] weighs the squared error of each column; None weighs all alike.
    """
    peak: NDArray[np.float32] = np.take_along_axis(w, np.abs(w).argmax(axis=1)[:, None], axis=1)
    weighted = w if importance is None else w * importance
    best_error = np.full(len(w), np.inf, np.float32)
    best = np.zeros(len(w), np.float32)
    for fraction in _FRACTIONS[bits]:
        c = nearest(w, peak * np.float32(fraction / levels(bits)[0]), bits)
        wc = np.einsum("bk,bk->b", weighted, c)
        cc = np.einsum("bk,bk->b", c if importance is None else c * importance, c)
        scale = np.divide(wc, cc, out=np.zeros_like(wc), where=cc > 0)
        # With the least-squares scale the error is w.w - (w.c)^2 / c.c; w.w is the same for all.
        error = -scale * wc
        better = error < best_error
        best_error[better] = error[better]
        best[better] = scale[better]
    with np.errstate(over="ignore"):
        return best.astype(np.float16)


def nearest(w: NDArray[np.float32], scale: NDArray[np.float32], bits: int) -> NDArray[np.float32]:
    """round_clip(w / s), 0 where s is 0 in fp16; the scales [blocks, 1] broadcast."""
    lowest, highest = levels(bits)
    stored = (np.abs(scale) > _ROUNDS_TO_ZERO) & np.isfinite(scale)
    c = w * np.divide(1, scale, out=np.zeros_like(scale), where=stored)
    np.rint(c, out=c)
    np.clip(c, lowest, highest, out=c)
    return c
