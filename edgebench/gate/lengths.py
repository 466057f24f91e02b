"""How long should the coming blocks of a check be? Pure.

A block's log-ratio is off by what its launch did to it (where its pages lay), with variance L, and
by the noise of its calls, with variance w / T in T timed seconds. Starting a worker costs c seconds
more. n blocks take n (c + T) seconds and have the variance (L + w / T) / n: least at

    T = sqrt(c w / L)

(two-stage sampling: W. Cochran, Sampling Techniques, 3rd ed. (1977), section 10.6). Where launches
alike differ little, long blocks pay; where they differ much, many short ones do. What is chosen
from earlier blocks can't favour a side.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import inf, sqrt

import numpy as np

from edgebench.gate.blocks import Block

#: A scatter of blocks that is small enough, in units of the limit; how many times longer than asked
#: they may become where it is more, and how many times longer from one session to the next: the
#: first few blocks know their own scatter badly.
SPREAD_PER_LIMIT = 1 / 3
LONGEST = 6.0
GROWTH = 2.0


def block_length_s(
    blocks: Sequence[Block],
    metric: str,
    *,
    spread: float,
    limit: float,
    asked_s: float,
    current_s: float,
) -> float:
    """Timed seconds of a coming block, from ``asked_s`` to ``LONGEST`` times that.

    Args:
        blocks: those so far.
        metric: for which they scatter.
        spread: standard deviation of their log-ratios, as the test sees it.
        limit: the largest log-ratio that may pass.
        asked_s, current_s: timed seconds as asked, and of the last blocks.
    """
    enough = asked_s * (spread / (limit * SPREAD_PER_LIMIT)) ** 2
    longest = min(LONGEST * asked_s, GROWTH * current_s)
    return max(asked_s, min(enough, longest, _best_s(blocks, metric, spread)))


def _best_s(blocks: Sequence[Block], metric: str, spread: float) -> float:
    """sqrt(c w / L); infinite where launches are not seen to differ, or their noise is unknown."""
    known = [block for block in blocks if metric in block.noise]
    if not known:
        return inf
    noise = np.array([block.noise[metric] ** 2 for block in known])
    timed_s = np.array([block.timed_s for block in known])
    starting_s = float(np.mean([block.seconds for block in known]) - timed_s.mean())
    launches = spread**2 - float(noise.mean())
    if launches <= 0:
        return inf
    return sqrt(max(0.0, starting_s) * float((noise * timed_s).mean()) / launches)
