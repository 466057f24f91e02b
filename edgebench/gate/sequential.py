"""A sequential test on the log-ratios of randomised blocks, valid whenever it is looked at.

What goes in: x_1, x_2, ..., one number a block, log(candidate / baseline). Within a block the two
sides are loaded, warmed up and timed in random order, each order as likely as the other.

The method. Were the two sides alike, exchanging them would change nothing but the sign of x. The
coin that chose the order therefore makes the sign of x a fair coin, given its size and everything
before it, whatever the noise is: drifting, autocorrelated, heavy-tailed, of two modes. With a true
log-ratio of t this holds for x - t. A gambler who bets on the sign of z = x - b then holds

    W_n = product over i of (1 + tanh(g_i / 2)),    g_i = clip(2 d z_i / s_i^2, -G, G)

a test martingale at t = b and a supermartingale below it, since each factor rises with z. By
Ville's inequality W ever reaches 1/a with probability at most a (J. Ville 1939; A. Ramdas et al.,
Statistical Science 38 (2023)). g is the log-odds of the sign that a normal z of mean d and
standard deviation s would have; being wrong about d or s costs blocks, never validity. s_i looks at
earlier blocks only. G bounds what one block can win or lose, so that an outlier decides nothing
(I. Waudby-Smith and A. Ramdas, JRSS B 86 (2024), truncate their bets for the same end). On tests
from symmetry: B. Efron, JASA 64 (1969); V. de la Pena, Annals of Probability 27 (1999).

Two bets run at once. *Regression* bets against t <= half the limit; *pass* bets against t >= the
limit. Between half the limit and the limit either answer is right.

Assumed, and no more: the slow-down acts as a factor that is the same in every block, and what is
left has no preferred sign. A block's coin must be fair: see ``edgebench.gate.measuring``.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from enum import StrEnum
from math import ceil, exp, inf, log, log1p

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

#: Largest log-odds of a bet: a block multiplies the wealth by 1.91 at most and 0.09 at least.
MAX_LOG_ODDS = 3.0
#: The noise of a block's log-ratio before any was seen, and how many blocks this guess is worth.
#: From A/A blocks of MiniLM on two shared cores; a wrong guess costs a few blocks.
PRIOR_SPREAD, PRIOR_WEIGHT = 0.008, 3.0
#: Normal consistency factor of the median absolute deviation.
_MAD = 1.4826
#: What a spread is never taken below: the clock's own grain in a block of microsecond calls.
_SPREAD_FLOOR = 1e-4


class Decision(StrEnum):
    PASS = "pass"
    REGRESSION = "regression"
    UNDECIDED = "undecided"


@dataclass(frozen=True)
class Rule:
    """What is asked: the limit and how often each wrong answer may come.

    Attributes:
        limit: the slow-down that must not pass, as a share (0.03: 3 %).
        alpha: chance of any regression reported among all hypotheses of a call where none is
            slower than half the limit.
        miss: chance that one benchmark that is slower by the limit or more passes.
        hypotheses: how many are tested in this call; each has alpha / hypotheses (Bonferroni).
        max_blocks: the test gives up after so many.
    """

    limit: float
    alpha: float = 0.01
    miss: float = 0.01
    hypotheses: int = 1
    max_blocks: int = 40

    def __post_init__(self) -> None:
        shares = (self.limit, self.alpha, self.miss)
        if not all(0 < share < 1 for share in shares):
            raise ValueError(f"limit, alpha and miss must be between 0 and 1, not {shares}")
        if self.hypotheses < 1 or self.max_blocks < 1:
            raise ValueError("at least one hypothesis and one block are needed")

    @property
    def upper(self) -> float:
        """The limit as a log-ratio: at or above it a pass is wrong."""
        return log1p(self.limit)

    @property
    def lower(self) -> float:
        """Half of it: at or below it a regression is wrong."""
        return self.upper / 2

    @property
    def to_fail(self) -> float:
        """Log-wealth at which the regression bet has won."""
        return log(self.hypotheses / self.alpha)

    @property
    def to_pass(self) -> float:
        return log(1 / self.miss)

    @property
    def least_blocks(self) -> int:
        """Fewer blocks than this decide nothing, however clear they are."""
        most = float(np.log1p(np.tanh(MAX_LOG_ODDS / 2)))
        return ceil(min(self.to_fail, self.to_pass) / most)


@dataclass(frozen=True)
class Evidence:
    """What the blocks of one hypothesis say.

    ``ratio`` and its 95 % interval [lo, hi], which holds at every look; infinite where too few
    blocks bound it. ``more_blocks``: an estimate of how many more would decide, where undecided;
    None where they point to neither answer. ``p_value``: anytime-valid, of "not slower".
    """

    decision: Decision
    blocks: int
    decided_after: int | None
    ratio: float
    lo: float
    hi: float
    p_value: float
    more_blocks: int | None = None
    spread: float = field(default=float("nan"))


def log_wealth(
    x: Floats, boundary: float, distance: float, direction: int, spread: Floats | None = None
) -> Floats:
    """Log-wealth after each block, [..., n], of the bet that direction * (t - boundary) > 0.

    Args:
        x: [..., n] log-ratios of blocks.
        boundary: of the hypothesis bet against.
        distance: how far from it the truth is thought to be (d above).
        direction: +1 bets on slower, -1 on faster.
        spread: ``spreads(x)``, where it is known already.
    """
    z = direction * (x - boundary)
    g = np.clip(
        2 * distance * z / (spreads(x) if spread is None else spread) ** 2,
        -MAX_LOG_ODDS,
        MAX_LOG_ODDS,
    )
    return np.asarray(np.cumsum(np.log1p(np.tanh(g / 2)), axis=-1))


def spreads(x: Floats) -> Floats:
    """The spread expected of each block, [..., n], from the blocks before it.

    Weighted root mean square of a first guess and 1.4826 * median |x - median x|.
    """
    out = np.full(x.shape, PRIOR_SPREAD)
    for i in range(2, x.shape[-1]):
        past = x[..., :i]
        centre = np.median(past, axis=-1, keepdims=True)
        seen = _MAD * np.median(np.abs(past - centre), axis=-1)
        total = PRIOR_WEIGHT * PRIOR_SPREAD**2 + (i - 1) * seen**2
        out[..., i] = np.sqrt(total / (PRIOR_WEIGHT + i - 1))
    return np.asarray(np.maximum(out, _SPREAD_FLOOR))


def decide(x: npt.ArrayLike, rule: Rule) -> Evidence:
    """What a sequence of blocks decides, and when it first did.

    Raises:
        ValueError: a block is NaN or infinite, there are none, or they are not one sequence.
    """
    blocks = np.asarray(x, dtype=np.float64)
    if blocks.ndim != 1 or blocks.size == 0:
        raise ValueError("there are no blocks to decide on")
    if not np.all(np.isfinite(blocks)):
        raise ValueError("a block's ratio is not a number")
    fail, passed = _bets(blocks, rule)
    codes, after = _first(fail, passed, rule)
    code = int(codes)
    lo, hi = interval(blocks, rule)
    decision = _DECISIONS[code]
    return Evidence(
        decision=decision,
        blocks=blocks.size,
        decided_after=int(after) if code else None,
        ratio=exp(hodges_lehmann(blocks)),
        lo=lo,
        hi=hi,
        p_value=min(1.0, exp(-float(fail.max()))),
        more_blocks=None if code else _more(blocks, fail, passed, rule),
        spread=float(spreads(np.append(blocks, 0.0))[-1]),
    )


def decide_many(x: Floats, rule: Rule) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    """Decisions of many sequences at once, and the number of blocks that each took.

    Args:
        x: [..., n] log-ratios; n blocks are the most that a sequence may take.

    Returns:
        codes [...] (0 undecided, 1 pass, 2 regression) and blocks [...] (n where undecided).
    """
    return _first(*_bets(x, rule), rule)


_DECISIONS = (Decision.UNDECIDED, Decision.PASS, Decision.REGRESSION)


def _bets(x: Floats, rule: Rule) -> tuple[Floats, Floats]:
    distance = rule.upper - rule.lower
    spread = spreads(x)
    fail = log_wealth(x, rule.lower, distance, +1, spread)
    passed = log_wealth(x, rule.upper, distance, -1, spread)
    return fail, passed


def _first(
    fail: Floats, passed: Floats, rule: Rule
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.int64]]:
    n = fail.shape[-1]
    failed_at = _reached(fail, rule.to_fail)
    passed_at = _reached(passed, rule.to_pass)
    codes = np.where(failed_at < passed_at, 2, np.where(passed_at < n, 1, 0))
    after = np.where(codes > 0, np.minimum(failed_at, passed_at) + 1, n)
    return codes.astype(np.int64), after.astype(np.int64)


def _reached(wealth: Floats, threshold: float) -> npt.NDArray[np.int64]:
    """Index of the first block at or above a threshold; n where none is."""
    above = wealth >= threshold
    found = np.where(above.any(axis=-1), above.argmax(axis=-1), wealth.shape[-1])
    return np.asarray(found, dtype=np.int64)


def interval(x: Floats, rule: Rule, confidence: float = 0.95) -> tuple[float, float]:
    """The ratios that no bet has refuted so far: a confidence sequence, valid at every look.

    Each side has half of 1 - confidence. Inverts ``log_wealth``, which falls as the boundary rises.
    """
    threshold = log(2 / (1 - confidence))
    distance = rule.upper - rule.lower
    lo, hi = -inf, inf
    spread = spreads(x)

    def refuted(boundary: float, direction: int) -> bool:
        return bool(log_wealth(x, boundary, distance, direction, spread).max() >= threshold)

    low, high = float(x.min()) - 1.0, float(x.max()) + 1.0
    if refuted(low, +1):
        lo = _bisect(low, high, lambda boundary: refuted(boundary, +1))
    if refuted(high, -1):
        hi = _bisect(high, low, lambda boundary: refuted(boundary, -1))
    return exp(lo) if lo > -inf else 0.0, exp(hi) if hi < inf else inf


def _bisect(inside: float, outside: float, holds: Callable[[float], bool]) -> float:
    """The edge between a point where a predicate holds and one where it does not."""
    for _ in range(50):
        middle = (inside + outside) / 2
        inside, outside = (middle, outside) if holds(middle) else (inside, middle)
    return inside


def hodges_lehmann(x: Floats) -> float:
    """The median of all pairs' means: the estimate that belongs to symmetric noise.

    J. Hodges and E. Lehmann, Annals of Mathematical Statistics 34 (1963).
    """
    first, second = np.triu_indices(x.size)
    return float(np.median((x[first] + x[second]) / 2))


def _more(x: Floats, fail: Floats, passed: Floats, rule: Rule) -> int | None:
    """Blocks until the nearer answer, if the coming ones are like those seen."""
    found = [_remaining(fail, rule.to_fail), _remaining(passed, rule.to_pass)]
    known = [blocks for blocks in found if blocks is not None]
    return min(known) if known else None


def _remaining(wealth: Floats, threshold: float) -> int | None:
    rate = float(wealth[-1]) / wealth.size
    if rate <= 0:
        return None
    return max(1, ceil((threshold - float(wealth[-1])) / rate))
