"""Budgets, and whether a figure with an interval keeps within one.

A figure passes where its whole interval is within the budget, fails where its whole interval is
beyond it, and is undecided where the interval holds the budget, or where there is no figure.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum


class Answer(StrEnum):
    PASS = "pass"
    FAIL = "fail"
    UNDECIDED = "undecided"


#: Exit codes by the gravest answer (docs/exit-codes.md).
EXIT_CODES = {Answer.PASS: 0, Answer.FAIL: 1, Answer.UNDECIDED: 2}


@dataclass(frozen=True)
class Figure:
    """A figure and its interval; ``lo`` and ``hi`` are None where it was read once, and equal it
    where it was counted. A missing figure has a reason."""

    value: float | None = None
    lo: float | None = None
    hi: float | None = None
    reason: str = ""


@dataclass(frozen=True)
class Budgets:
    """The most that an adapter may cost; None: not asked for. Shares: 0.07 is 7 %."""

    adapter_mb: float | None = None
    latency: float | None = None
    energy: float | None = None
    memory: float | None = None
    flops: float | None = None
    active_atoms: float | None = None


@dataclass(frozen=True)
class Line:
    """One budget against one form of the adapter."""

    lowering: str
    scheme: str
    what: str
    figure: Figure
    budget: float
    answer: Answer


def judge(figure: Figure, budget: float) -> Answer:
    """Whether a figure keeps within a budget."""
    if figure.value is None:
        return Answer.UNDECIDED
    lo = figure.value if figure.lo is None else figure.lo
    hi = figure.value if figure.hi is None else figure.hi
    if hi <= budget:
        return Answer.PASS
    return Answer.FAIL if lo > budget else Answer.UNDECIDED


def exit_code(answers: Sequence[Answer]) -> int:
    """1 where any budget is broken, else 2 where any is undecided, else 0."""
    for answer in (Answer.FAIL, Answer.UNDECIDED):
        if answer in answers:
            return EXIT_CODES[answer]
    return EXIT_CODES[Answer.PASS]
