"""Many hypotheses in one call: the chance of any false regression stays below alpha.

While measuring, each of m hypotheses stops at alpha / m (Bonferroni). When the call ends, Holm's
procedure takes the same anytime-valid p-values once more and may find further ones: its k-th
smallest p-value is compared with alpha / (m - k + 1) (S. Holm, Scandinavian Journal of Statistics 6
(1979)). Neither assumes anything about how the hypotheses depend on each other. A p-value here is
1 / the largest wealth, which is valid at any stopping time, so stopping each benchmark by itself is
allowed (A. Ramdas et al., Statistical Science 38 (2023), section 5).
"""

from __future__ import annotations

from collections.abc import Sequence


def holm(p_values: Sequence[float], alpha: float) -> list[bool]:
    """Which hypotheses are rejected, in the order given.

    Raises:
        ValueError: a p-value is outside 0 ... 1, or NaN.
    """
    if not all(0 <= p <= 1 for p in p_values):
        raise ValueError("a p-value must be from 0 to 1")
    rejected = [False] * len(p_values)
    for k, index in enumerate(sorted(range(len(p_values)), key=p_values.__getitem__)):
        if p_values[index] > alpha / (len(p_values) - k):
            break
        rejected[index] = True
    return rejected
