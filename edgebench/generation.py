"""How well a decoder's tokens fit: perplexity of texts, and greedy tokens against a reference's.

Pure functions, no I/O.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, inf, isfinite, sqrt

import numpy as np
import numpy.typing as npt

from edgebench.recording import Greedy
from edgebench.stats import CONFIDENCE, Estimate, student_t


def perplexity(
    nll_nat: npt.ArrayLike, tokens: npt.ArrayLike, *, confidence: float = CONFIDENCE
) -> Estimate | None:
    """exp(mean negative log-likelihood a token), over texts, with an interval over texts.

    The mean is the ratio of two sums over texts, R = sum(nll) / sum(tokens): tokens of one text
    are not independent, so texts are what is resampled. Its standard error is that of a ratio
    estimator, sqrt(sum((nll_i - R tokens_i)^2) / (k (k - 1))) / mean(tokens) (W. G. Cochran,
    Sampling Techniques, 3rd ed., 1977, section 2.11), with Student's t of k - 1 degrees.

    Args:
        nll_nat, tokens: [k], of each text.

    Returns:
        None without tokens, or where the model gave no finite likelihood; unbounded for one text.
    """
    sums = np.asarray(nll_nat, dtype=np.float64)
    counts = np.asarray(tokens, dtype=np.float64)
    k, total = sums.size, counts.sum()
    if not total or not isfinite(sums.sum()):
        return None
    mean = float(sums.sum() / total)
    half = inf
    if k > 1:
        error = sqrt(float(np.sum((sums - mean * counts) ** 2)) / (k * (k - 1))) / counts.mean()
        half = student_t(k - 1, confidence) * float(error)
    lo, hi = exp(max(mean - half, 0.0)), exp(mean + half) if isfinite(half) else inf
    return Estimate(exp(mean), lo, hi, int(total), 1)


def leading(tokens: Sequence[int], expected: Sequence[int]) -> int:
    """How many tokens at the beginning are the same."""
    pairs = enumerate(zip(tokens, expected, strict=False))
    return next((i for i, (a, b) in pairs if a != b), min(len(tokens), len(expected)))


def agreement(greedy: Greedy) -> float | None:
    """Share of the expected tokens that were generated, up to the first of each prompt that
    differs; None where none was expected."""
    total = sum(map(len, greedy.expected))
    same = sum(leading(a, b) for a, b in zip(greedy.tokens, greedy.expected, strict=True))
    return same / total if total else None


def first_difference(greedy: Greedy) -> str | None:
    """Where another token was generated than expected, in words; None if nowhere."""
    pairs = zip(greedy.tokens, greedy.expected, strict=True)
    for prompt, (tokens, expected) in enumerate(pairs):
        same = leading(tokens, expected)
        if same < len(expected):
            return (
                f"token {same + 1} of {len(expected)} after prompt {prompt + 1} is "
                f"{tokens[same]}, not {expected[same]}"
            )
    return None
