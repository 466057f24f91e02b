"""What the gate would do on given noise: resampled A/A blocks, through the very same test. Pure.

Stretches of consecutive blocks are drawn with a random begin, and put together until there are
enough (the circular block bootstrap of D. Politis and J. Romano, 1992), so what neighbouring blocks
have in common stays. Each drawn block keeps its sign where false alarms are counted, and has a
random one where power is, since exchanging the two sides of an A/A block is as likely as not.
"""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import numpy.typing as npt

from edgebench.gate.sequential import Floats, Rule, decide_many

#: Slow-downs that are tried, as shares.
TRIED = (0.005, 0.01, 0.015, 0.02, 0.03, 0.04, 0.05, 0.07, 0.1, 0.15, 0.2, 0.3, 0.5)
POWER = 0.95
_STRETCH = 4


def resample(x: Floats, blocks: int, replays: int, random: np.random.Generator) -> Floats:
    """[replays, blocks] log-ratios in stretches of consecutive ones.

    Raises:
        ValueError: there is nothing to draw from.
    """
    if x.size == 0:
        raise ValueError("there are no blocks to draw from")
    stretches = -(-blocks // _STRETCH)
    begin = random.integers(0, x.size, size=(replays, stretches, 1))
    index = (begin + np.arange(_STRETCH)) % x.size
    return np.asarray(x[index.reshape(replays, -1)[:, :blocks]])


def false_alarms(x: Floats, rule: Rule, replays: int, random: np.random.Generator) -> int:
    """How many of so many replayed checks of a model against itself say regression."""
    codes, _ = decide_many(resample(x, rule.max_blocks, replays, random), rule)
    return int(np.count_nonzero(codes == 2))


def real_checks(x: Floats, rule: Rule) -> tuple[int, int]:
    """The checks that the blocks make up, one after another, each until it decides.

    Returns:
        how many were finished, and how many of them said regression.
    """
    checks = alarms = position = 0
    while position < x.size:
        codes, blocks = decide_many(x[position : position + rule.max_blocks], rule)
        if int(codes) == 0 and x.size - position < rule.max_blocks:
            break  # the blocks ran out before it decided
        checks += 1
        alarms += int(codes) == 2
        position += int(blocks)
    return checks, alarms


def smallest_slowdown(
    x: Floats, rule: Rule, replays: int, random: np.random.Generator
) -> float | None:
    """The smallest of TRIED that, as the limit, is found with POWER within ``rule.max_blocks``.

    Each is tried as its own limit: a check with ``--max-regression`` so large fails at a slow-down
    of that size with probability POWER.
    """
    drawn = resample(x, rule.max_blocks, replays, random)
    signs: npt.NDArray[np.int64] = random.choice([-1, 1], size=drawn.shape)
    for share in TRIED:
        codes, _ = decide_many(drawn * signs + np.log1p(share), replace(rule, limit=share))
        if np.mean(codes == 2) >= POWER:
            return share
    return None
