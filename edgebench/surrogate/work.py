"""The work of a transformer's forward pass, and what each kind of it costs on a device.

    level(s) = Σ_j rate_j · term_j(s),   rate_j ≥ 0
    terms: 1, layers, layers · S, heads · S, heads · S², ranks · S, param_bits

with S the sequence length: what is done once a call and once a layer, the feed-forward's products,
the heads' projections, attention itself, the adapter's products, and the weights that are read.
Products grow with S and attention with its square (Vaswani et al. 2017, arXiv:1706.03762, table 1;
Kaplan et al. 2020, arXiv:2001.08361, table 1). Time and energy add up over them; power does not.

Rates are fitted with non-negative least squares (Lawson and Hanson 1974) on relative errors, and
reweighted so that a wild measurement counts like one of a few standard deviations (Huber 1981).
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import nnls
from torch import Tensor

from edgebench.surrogate.columns import STATISTICS

Array = NDArray[np.float64]

#: Heads of a surrogate that add up over work.
ADDITIVE = ("energy_j", "latency_ms")
N_TERMS = 7

_REWEIGHTINGS = 10
_WILD = 1.5


def applies(features: tuple[str, ...], metric: str) -> bool:
    """Whether a metric of a table with these features is explained by work."""
    return features == STATISTICS and metric in ADDITIVE


def terms(s: Tensor) -> Tensor:
    """[..., 7] terms of statistics [..., 5]; never below zero, where a gate may push them."""
    length, layers, heads, ranks, bits = s.clamp_min(0.0).unbind(-1)
    one = torch.ones_like(length)
    return torch.stack(
        [one, layers, layers * length, heads * length, heads * length**2, ranks * length, bits], -1
    )


def fit(x: Array, y: Array) -> Array:
    """Rates [7] of one device, from statistics [N, 5] and measurements [N] above zero."""
    relative = terms(torch.as_tensor(x, dtype=torch.float64)).numpy() / y[:, None]
    scale = np.maximum(relative.max(0), 1e-300)
    weight = np.ones(len(y))
    rates = np.zeros(N_TERMS)
    for _ in range(_REWEIGHTINGS):
        rates, _ = nnls(relative / scale * weight[:, None], weight)
        off = np.abs(relative / scale @ rates - 1)
        usual = max(1.4826 * float(np.median(off)), 1e-6)
        weight = np.sqrt(np.minimum(1.0, _WILD * usual / np.maximum(off, 1e-12)))
    result: Array = rates / scale
    return result
