"""How factors are stored in fewer bits: int8 and int4 rows, and dictionaries in three bits.

    int8 row      w[n, k] = scale[n] * code[n, k]                    code in -127..127
    int4 row      the same, code in -7..7, two codes a byte (``quantize.packing``)
    dictionary    D[m, k] = scale[m, k div 128] * 2^(smooth[k] / 16) * code[m, k]   code in -4..3

Scales are fp16, smooth is int8. *Smooth* scales move magnitude from the columns (channels) of a
dictionary to a scale that all atoms share, before rounding (SmoothQuant, arXiv:2211.10438, with
alpha = 1/2), so that one large channel does not take the levels of its whole block.

Rounding rows that were read back gives the same codes and scales; a dictionary is kept as it was
read (``himalaya``).
"""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from edgebench.quantize import packing

BLOCK = 128
"""Weights of an atom that share a scale."""

SMOOTH_STEPS = 16
"""Steps of a smooth scale to a doubling."""


def to_rows(values: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """Codes and scales of values [.., k]: int8 [.., k], or uint8 [.., ceil(k/2)] for four bits.

    Scales are fp16 [..], one a row.
    """
    highest = 2 ** (bits - 1) - 1
    scale = (values.abs().amax(-1) / highest).to(torch.float16)
    codes = _divide(values, scale[..., None].float()).round().clamp(-highest, highest)
    codes = codes.to(torch.int8)
    if bits == 8:
        return codes, scale
    flat = packing.pack_nibbles(codes.reshape(-1, codes.shape[-1]).numpy())
    return torch.from_numpy(flat).reshape(*codes.shape[:-1], flat.shape[-1]), scale


def from_rows(codes: Tensor, scale: Tensor, bits: int, k: int) -> Tensor:
    """The fp32 values [.., k] of ``to_rows``."""
    if bits == 4:
        low, high = (codes & 15).to(torch.int8), (codes >> 4).to(torch.int8)
        nibbles = torch.stack((low, high), -1).reshape(*codes.shape[:-1], -1)[..., :k]
        codes = torch.where(nibbles > 7, nibbles - 16, nibbles)
    return codes.float() * scale.float()[..., None]


def rounded_rows(values: Tensor, bits: int) -> Tensor:
    """Values as they will be read back, with the gradient of the values themselves."""
    with torch.no_grad():
        stored = from_rows(*to_rows(values, bits), bits, values.shape[-1])
    return values + (stored - values).detach()


def to_dictionary(atoms: Tensor) -> dict[str, Tensor]:
    """Atoms [M, d] in three bits.

    Returns:
        low uint8 [M, d8/4] and high uint8 [M, d8/8] (d8: d to a multiple of eight), scales fp16
        [M, ceil(d/128)], smooth int8 [d].
    """
    codes, scales, smooth = _fit(atoms)
    low, high = packing.pack(codes.numpy())
    return {
        "low": torch.from_numpy(low),
        "high": torch.from_numpy(high),
        "scales": scales,
        "smooth": smooth,
    }


def from_dictionary(stored: dict[str, Tensor]) -> Tensor:
    """The fp32 atoms [M, d] of ``to_dictionary``."""
    d = len(stored["smooth"])
    codes = packing.unpack(stored["low"].numpy(), stored["high"].numpy(), d)
    return _values(torch.from_numpy(codes), stored["scales"], stored["smooth"])


def rounded_dictionary(atoms: Tensor) -> Tensor:
    """Atoms as they will be read back, with the gradient of the atoms themselves."""
    with torch.no_grad():
        stored = _values(*_fit(atoms))
    return atoms + (stored - atoms).detach()


def dictionary_shapes(atoms: int, d: int) -> dict[str, tuple[int, ...]]:
    """Shapes of a stored dictionary."""
    d8 = packing.padded(d)
    return {
        "low": (atoms, d8 // packing.CODES_PER_LOW_BYTE),
        "high": (atoms, d8 // packing.CODES_PER_HIGH_BYTE),
        "scales": (atoms, -(-d // BLOCK)),
        "smooth": (d,),
    }


def _fit(atoms: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes int8 [M, d], scales fp16 [M, blocks] and smooth int8 [d] of least squared error.

    A scale is searched on a grid of sizes and both signs (codes reach from -4 to 3).
    """
    count, d = atoms.shape
    smooth = _smooth(atoms)
    blocks = -(-d // BLOCK)
    flat = torch.zeros(count, blocks * BLOCK)
    flat[:, :d] = atoms / _powers(smooth)
    grouped = flat.reshape(count, blocks, BLOCK)
    largest = grouped.abs().amax(-1)
    best = torch.full_like(largest, float("inf"))
    scales = torch.zeros_like(largest, dtype=torch.float16)
    codes = torch.zeros_like(grouped)
    for size in np.linspace(0.55, 1.15, 13):
        for sign in (1, -1):
            scale = (sign * size * largest / 3.5).to(torch.float16)
            rounded = _divide(grouped, scale[..., None].float()).round().clamp(-4, 3)
            error = (grouped - rounded * scale[..., None].float()).square().sum(-1)
            better = error < best
            best = torch.where(better, error, best)
            scales = torch.where(better, scale, scales)
            codes = torch.where(better[..., None], rounded, codes)
    return codes.reshape(count, -1)[:, :d].to(torch.int8), scales, smooth


def _smooth(atoms: Tensor) -> Tensor:
    columns = atoms.abs().amax(0).clamp_min(1e-12)
    steps = 0.5 * SMOOTH_STEPS * (columns.log2() - columns.log2().mean())
    return steps.round().clamp(-127, 127).to(torch.int8)


def _powers(smooth: Tensor) -> Tensor:
    return torch.exp2(smooth.float() / SMOOTH_STEPS)


def _values(codes: Tensor, scales: Tensor, smooth: Tensor) -> Tensor:
    wide = scales.float().repeat_interleave(BLOCK, dim=1)[:, : codes.shape[1]]
    return codes.float() * wide * _powers(smooth)


def _divide(values: Tensor, scale: Tensor) -> Tensor:
    """A row of zeros has the scale 0, and codes of 0."""
    return torch.where(scale == 0, torch.zeros_like(values), values / scale)
