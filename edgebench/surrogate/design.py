"""Which samples to measure on a new device, where one may choose.

A greedy I-optimal design: each sample in turn is the candidate that most lowers the mean posterior
variance of the stack's prediction over all candidates (Atkinson, Donev and Tobias 2007, chapter
10), under the prior's middle values. It needs no measurement.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from edgebench.errors import InputError
from edgebench.surrogate import stack
from edgebench.surrogate.model import Surrogate

Array = NDArray[np.float64]

#: The prior that the design assumes: the middle of ``stack.GRID``'s axes.
PRIOR = (0.5, 1.4, 0.2)
NOISE = 0.3


def choose(surrogate: Surrogate, candidates: Array, n: int, metric: str) -> NDArray[np.intp]:
    """Indices of the n candidates to measure, in the order of their worth.

    Args:
        candidates: [N, F] features of what could be measured.

    Raises:
        InputError: fewer candidates than n.
    """
    if n > len(candidates):
        raise InputError(f"there are {len(candidates)} candidates for {n} samples", fix="Add some.")
    logs, z, _ = surrogate.at(metric, candidates)
    scale = surrogate.heads[surrogate.metrics.index(metric)].scales["linear"]
    _, columns = stack.basis(logs, z, scale, "linear")
    spread = np.repeat(PRIOR, [1, logs.shape[1], z.shape[1]])
    x = (columns - columns.mean(0)) * spread
    noise = (NOISE * scale.spread) ** 2
    covariance, second = np.eye(x.shape[1]), x.T @ x / len(x)
    chosen: list[int] = []
    for _ in range(n):
        projected = x @ covariance
        own = np.einsum("ij,ij->i", projected, x) + noise
        gain = np.einsum("ij,jk,ik->i", projected, second, projected) / own
        gain[chosen] = -np.inf
        best = int(np.argmax(gain))
        chosen.append(best)
        covariance = covariance - np.outer(projected[best], projected[best]) / own[best]
    return np.array(chosen, dtype=np.intp)
