"""Three-bit integers in two planes of bytes, and nibbles: the bit arithmetic, and nothing else.

A code is a two's complement 3-bit integer in -4..3. A row of K codes, padded with zeros to K8, the
next multiple of eight, is stored as

    low  [N, K8 / 4] uint8   bits 0 and 1 of four codes: code k in bits 2(k mod 4), 2(k mod 4) + 1
    high [N, K8 / 8] uint8   bit 2 (the sign) of eight codes: code k in bit k mod 8

so three bits a code, every code within whole bytes, and eight consecutive codes within three bytes.
The planes decode with shifts and masks alone, which is what ``functions`` does in ONNX.

Four-bit codes in -8..7 are stored as ONNX stores INT4: two a byte, the first in the low nibble.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

CODES_PER_LOW_BYTE = 4
CODES_PER_HIGH_BYTE = 8
CODES_PER_BYTE = 2
LOWEST, HIGHEST = -4, 3


def padded(k: int) -> int:
    """The number of codes that a stored row of ``k`` codes takes: the next multiple of eight."""
    return -(-k // CODES_PER_HIGH_BYTE) * CODES_PER_HIGH_BYTE


def pack(codes: NDArray[np.int8]) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """The planes ``low`` [N, K8/4] and ``high`` [N, K8/8] of codes [N, K] in -4..3.

    Raises:
        ValueError: the codes are not a matrix, or one lies outside -4..3.
    """
    if codes.ndim != 2:
        raise ValueError(f"codes must be a matrix, not of shape {codes.shape}")
    if codes.size and (codes.min() < LOWEST or codes.max() > HIGHEST):
        raise ValueError(f"codes must lie in {LOWEST}..{HIGHEST}")
    rows, k = codes.shape
    bits = np.zeros((rows, padded(k)), np.uint8)
    bits[:, :k] = codes.view(np.uint8) & 7
    fours = (bits & 3).reshape(rows, -1, CODES_PER_LOW_BYTE)
    low = fours[..., 0] | fours[..., 1] << 2 | fours[..., 2] << 4 | fours[..., 3] << 6
    high = np.packbits(bits >> 2, axis=1, bitorder="little")
    return low.astype(np.uint8), high


def unpack(low: NDArray[np.uint8], high: NDArray[np.uint8], k: int) -> NDArray[np.int8]:
    """The codes [N, k] in -4..3 of two planes: the inverse of ``pack``."""
    shifts = np.arange(0, 8, 2, dtype=np.uint8)
    two = (low[..., None] >> shifts & 3).reshape(low.shape[0], -1)
    sign = np.unpackbits(high, axis=1, bitorder="little")
    # Sign extension: the third bit weighs -4.
    return (two.astype(np.int8) - 4 * sign.astype(np.int8))[:, :k]


def pack_nibbles(codes: NDArray[np.int8]) -> NDArray[np.uint8]:
    """Bytes [N, ceil(K / 2)] of codes [N, K] in -8..7.

    Raises:
        ValueError: the codes are not a matrix, or one lies outside -8..7.
    """
    if codes.ndim != 2:
        raise ValueError(f"codes must be a matrix, not of shape {codes.shape}")
    if codes.size and (codes.min() < -8 or codes.max() > 7):
        raise ValueError("codes must lie in -8..7")
    rows, k = codes.shape
    nibbles = np.zeros((rows, k + k % CODES_PER_BYTE), np.uint8)
    nibbles[:, :k] = codes.view(np.uint8) & 15
    packed: NDArray[np.uint8] = nibbles[:, ::2] | nibbles[:, 1::2] << 4
    return packed


def stored_bits(n: int, k: int, block_size: int, *, scale_bits: int = 16) -> int:
    """Bits of N rows of K codes with one scale a block: 3 N K8 + scale_bits N ceil(K / block)."""
    return n * (3 * padded(k) + scale_bits * -(-k // block_size))
