"""From evidence to findings: what one benchmark says in one metric."""

from __future__ import annotations

from collections.abc import Sequence
from math import exp, log1p
from typing import TYPE_CHECKING

import numpy as np

from edgebench.errors import InputError
from edgebench.gate.counts import Drop, accuracy_drop, size_log_ratio
from edgebench.gate.metrics import Metric
from edgebench.gate.outcome import Finding
from edgebench.gate.pairs import Pair
from edgebench.gate.sequential import Decision, Evidence, Rule
from edgebench.recording import Accuracy
from edgebench.results.encoding import Loaded

if TYPE_CHECKING:
    from edgebench.gate.check import Benchmark


def finding_of(benchmark: Benchmark, metric: Metric, evidence: Evidence | None) -> Finding:
    """A timed metric; without evidence where no block could be used."""
    if evidence is None:
        return Finding(
            benchmark=benchmark.pair.name,
            metric=metric.name,
            label=metric.label,
            decision=Decision.UNDECIDED,
            left_out=len(benchmark.sorted.left_out),
            seconds=benchmark.seconds,
            note="no block could be used",
        )
    known = [block.seconds for block in benchmark.blocks]
    block_s = float(np.mean(known))
    used = [b for b in benchmark.sorted.used if metric.name in b.ratios]
    note = ""
    if evidence.decision is Decision.UNDECIDED:
        note = (
            "the true ratio seems to lie between half the limit and the limit"
            if evidence.more_blocks is None
            else f"needs about {evidence.more_blocks} more blocks, "
            f"{evidence.more_blocks * block_s:.0f} s"
        )
    return Finding(
        benchmark=benchmark.pair.name,
        metric=metric.name,
        label=metric.label,
        decision=evidence.decision,
        value=evidence.ratio,
        lo=evidence.lo,
        hi=evidence.hi,
        blocks=len(used),
        left_out=len(benchmark.sorted.left_out),
        seconds=benchmark.seconds,
        more_blocks=evidence.more_blocks,
        more_s=evidence.more_blocks * block_s if evidence.more_blocks else None,
        p_value=evidence.p_value,
        note=note,
    )


def counted_findings(
    pair: Pair,
    metrics: Sequence[Metric],
    session: Loaded | None,
    rule: Rule,
    max_accuracy_drop: float,
) -> list[Finding]:
    """Size and accuracy, which need no block."""
    found = []
    for metric in metrics:
        if metric.name == "size":
            found.append(_size(pair, metric, rule))
        elif session is not None:
            found.append(_accuracy(pair, metric, session, rule, max_accuracy_drop))
    return found


def _size(pair: Pair, metric: Metric, rule: Rule) -> Finding:
    ratio = size_log_ratio(pair.baseline.size_bytes, pair.candidate.size_bytes)
    grown = ratio >= log1p(rule.limit)
    return Finding(
        benchmark=pair.name,
        metric=metric.name,
        label=metric.label,
        decision=Decision.REGRESSION if grown else Decision.PASS,
        value=exp(ratio),
        lo=exp(ratio),
        hi=exp(ratio),
        note="exact",
    )


def _accuracy(pair: Pair, metric: Metric, session: Loaded, rule: Rule, limit: float) -> Finding:
    sides = []
    for index, artifact in enumerate((pair.baseline, pair.candidate)):
        solo = next((s for s in session.recording.solo if s.artifact == index), None)
        if solo is None or solo.accuracy is None or solo.accuracy.n == 0:
            raise InputError(
                "accuracy can't be gated: the artifact has no labelled examples",
                where=str(artifact.path),
                fix="Export it with --data, or leave accuracy out.",
            )
        if solo.accuracy.texts is not None:
            raise InputError(
                "accuracy can't be gated: the tokens of a text are not independent examples",
                where=str(artifact.path),
                fix="Leave accuracy out for token classifiers.",
            )
        sides.append(solo.accuracy)
    drop = compare_accuracy(sides[0], sides[1], rule, limit)
    note = f"{drop.n} labelled examples"
    if drop.decision is Decision.UNDECIDED:
        note += (
            f"; needs about {drop.more_examples} more"
            if drop.more_examples
            else "; no number of examples would decide"
        )
    return Finding(
        benchmark=pair.name,
        metric=metric.name,
        label=metric.label,
        decision=drop.decision,
        value=drop.value,
        lo=drop.lo,
        hi=drop.hi,
        unit="points",
        p_value=drop.p_value,
        note=note,
    )


def compare_accuracy(baseline: Accuracy, candidate: Accuracy, rule: Rule, limit: float) -> Drop:
    """The fall in accuracy: example by example where the device tells, else from the totals.

    Raises:
        InputError: the two sides answered different numbers of examples.
    """
    if baseline.n != candidate.n:
        raise InputError(
            f"the baseline answered {baseline.n} labelled examples, the candidate {candidate.n}",
            fix="Export both with the same --data.",
        )
    alpha, miss = rule.alpha / rule.hypotheses, rule.miss
    old, new = right_answers(baseline), right_answers(candidate)
    if old is None or new is None:
        wrong = (candidate.n - candidate.correct, baseline.n - baseline.correct)
        return accuracy_drop(*wrong, baseline.n, limit=limit, alpha=alpha, miss=miss, paired=False)
    worse, better = int(np.count_nonzero(old & ~new)), int(np.count_nonzero(~old & new))
    return accuracy_drop(worse, better, baseline.n, limit=limit, alpha=alpha, miss=miss)


def right_answers(accuracy: Accuracy) -> np.ndarray | None:
    """[n] booleans: which examples were answered rightly; None where the agent did not tell.

    Raises:
        InputError: the answers do not fit their count.
    """
    if accuracy.right is None:
        return None
    bits = np.unpackbits(np.frombuffer(bytes.fromhex(accuracy.right), dtype=np.uint8))
    found = bits[: accuracy.n].astype(bool)
    if found.size != accuracy.n or int(found.sum()) != accuracy.correct:
        raise InputError("the device's answers do not fit their count", fix="Check again.")
    return found
