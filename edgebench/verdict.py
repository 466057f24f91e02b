"""The verdict on one row: VALID, INVALID or UNDECIDED, with its reasons.

``judge`` is a pure function of a recording. What each reason means stands in ``edgebench.reasons``;
here, and for the device's state in ``edgebench.health``, stands when it is given.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebench import health
from edgebench.generation import first_difference
from edgebench.health import THROTTLE_BITS, Thresholds
from edgebench.percentiles import min_samples, nearest_rank, order_statistic_interval
from edgebench.reasons import Code, Reason, Severity, reason
from edgebench.recording import PHASES, Launch, Recording

__all__ = [
    "THROTTLE_BITS",
    "Code",
    "Reason",
    "Severity",
    "Status",
    "Thresholds",
    "Verdict",
    "judge",
]

#: In percent, as in Protocol.percentiles.
_PERCENTILES = {
    Code.P50_SAMPLES: 50.0,
    Code.P90_SAMPLES: 90.0,
    Code.P95_SAMPLES: 95.0,
    Code.P99_SAMPLES: 99.0,
    Code.P999_SAMPLES: 99.9,
}
_OUTCOMES = {
    "out-of-memory": Code.OUT_OF_MEMORY,
    "killed": Code.KILLED,
    "crashed": Code.CRASHED,
    "error": Code.WORKER_ERROR,
    "deadline": Code.DEADLINE,
    "cancelled": Code.CANCELLED,
}

Samples = Mapping[str, npt.NDArray[Any]]
State = Sequence[Mapping[str, Any]]


class Status(StrEnum):
    VALID = "VALID"
    INVALID = "INVALID"
    UNDECIDED = "UNDECIDED"


@dataclass(frozen=True, slots=True)
class Verdict:
    """A status and all its reasons, the gravest first."""

    status: Status
    reasons: tuple[Reason, ...]

    @property
    def codes(self) -> tuple[str, ...]:
        return tuple(str(r.code) for r in self.reasons)

    @property
    def decisive(self) -> tuple[Reason, ...]:
        """The reasons that are more than notes."""
        return tuple(r for r in self.reasons if r.severity is not Severity.NOTE)


def judge(recording: Recording, samples: Samples, state: State, artifact_index: int) -> Verdict:
    """The verdict on one artifact of a recording.

    Args:
        samples: columns of ``recording.SAMPLE_COLUMNS`` as arrays [n], all artifacts.
        state: the lines of state.jsonl.

    Raises:
        IndexError: the recording has no such artifact.
    """
    if not 0 <= artifact_index < len(recording.artifacts):
        raise IndexError(f"the recording has no artifact {artifact_index}")
    measured = samples["phase"] == PHASES.index("measure")
    chosen = measured & (samples["artifact"] == artifact_index)
    mine = {name: column[chosen] for name, column in samples.items()}
    found = [
        *_outcomes(recording, artifact_index),
        *_counts(recording, mine, artifact_index),
        *_clock(samples),
        *health.check(recording, samples, state),
    ]
    for solo in recording.solo:
        warning = (solo.execution.get("native") or {}).get("warning")
        if solo.artifact == artifact_index and warning:
            found.append(reason(Code.NATIVE_UNUSED, why=warning))
    found += _answers(recording, artifact_index)
    return decide(found)


def _answers(recording: Recording, artifact: int) -> Iterator[Reason]:
    """How good the answers are: unknown, or of another model than the one that was exported."""
    solos = [solo for solo in recording.solo if solo.artifact == artifact]
    manifest = recording.artifacts[artifact].manifest
    if recording.protocol.decoding is None:
        if not any(solo.accuracy for solo in solos):
            tokens = manifest["task"] == "token-classification"
            data = "data whose words are labelled" if tokens else "labelled data"
            yield reason(Code.ACCURACY_UNMEASURED, what="accuracy", data=data)
        return
    if not any(solo.perplexity for solo in solos):
        yield reason(Code.ACCURACY_UNMEASURED, what="perplexity", data="held-out texts")
    for solo in solos:
        other = first_difference(solo.greedy) if solo.greedy else None
        if other and manifest["quantization"]["scheme"] == "fp32":
            yield reason(Code.TOKENS_DIFFER, where=other)


#: Reasons that speak of percentiles and answers, not of energy.
_NOT_ENERGY = {
    *_PERCENTILES,
    Code.WITHHELD,
    Code.STOPPED_BY_TIME,
    Code.ACCURACY_UNMEASURED,
}


def judge_energy(latency: Verdict, energy: Sequence[Reason]) -> Verdict:
    """The verdict on a row of energy or power: the run's own reasons, and those of its meters."""
    return decide([*(r for r in latency.reasons if r.code not in _NOT_ENERGY), *energy])


def decide(found: Sequence[Reason]) -> Verdict:
    """The verdict that some reasons give, the gravest first."""
    order = list(Code)
    found = sorted(found, key=lambda r: order.index(r.code))
    severities = {r.severity for r in found}
    if Severity.INVALID in severities:
        status = Status.INVALID
    elif Severity.UNDECIDED in severities:
        status = Status.UNDECIDED
    else:
        status = Status.VALID
    return Verdict(status, tuple(found))


def _outcomes(recording: Recording, artifact: int) -> Iterator[Reason]:
    """Workers that did not end well: this artifact alone, and the launches that all share."""
    ended: dict[str, list[str]] = {}
    errors: dict[str, str] = {}
    for solo in recording.solo:
        if solo.artifact == artifact and solo.outcome != "ok":
            ended.setdefault(solo.outcome, []).append("alone")
            errors.setdefault(solo.outcome, solo.error or "no text")
    for launch in recording.launches:
        if launch.outcome != "ok":
            ended.setdefault(launch.outcome, []).append(f"launch {launch.index + 1}")
            errors.setdefault(launch.outcome, launch.error or "no text")
    for outcome, places in ended.items():
        yield reason(_OUTCOMES[outcome], where=", ".join(places), error=errors[outcome])
    bad = [ln for ln in recording.launches if ln.outcome not in ("ok", "deadline", "cancelled")]
    if bad:
        yield reason(Code.LAUNCHES_FAILED, failed=len(bad), total=len(recording.launches))
    if recording.status in ("deadline", "cancelled"):
        if recording.status not in ended:
            yield reason(_OUTCOMES[recording.status], where="the session")
    elif recording.status != "done":
        yield reason(Code.CUT_SHORT, status=recording.status)
    if recording.device.emulated:
        yield reason(Code.EMULATED)


def _counts(recording: Recording, mine: Samples, artifact: int) -> Iterator[Reason]:
    """Too few launches or samples, no steady state, or a stop rule that was not met."""
    n = mine["duration_ns"].size
    if n == 0:
        yield reason(Code.NOTHING_MEASURED)
        return
    count, total = int(np.unique(mine["launch"]).size), recording.protocol.launches
    if count == 1:
        yield reason(Code.ONE_LAUNCH)
    elif count < total:
        yield reason(Code.FEW_LAUNCHES, count=count, total=total)
    withheld = []
    for code, percent in _PERCENTILES.items():
        more = min_samples(percent / 100) - n
        if more > 0 and percent in recording.protocol.percentiles:
            yield reason(code, more=more, n=n)
        elif more > 0:
            withheld.append(f"p{percent:g} (needs {more} more)")
    if withheld:
        yield reason(Code.WITHHELD, what=", ".join(withheld))
    good = [ln for ln in recording.launches if ln.outcome == "ok"]
    warmups = [w for ln in good for w in ln.warmup[artifact : artifact + 1]]
    unsteady = [w for w in warmups if w is None or not w.steady]
    if unsteady:
        yield reason(Code.NOT_STEADY, count=len(unsteady), total=len(good))
    unmet = [w for w in (_unmet(recording, mine, ln) for ln in good) if w]
    if unmet:
        yield reason(Code.STOPPED_BY_TIME, count=len(unmet), total=len(good), what=unmet[-1])


def _unmet(recording: Recording, mine: Samples, launch: Launch) -> str:
    """What this artifact lacked in a launch that time ended; "" if nothing."""
    if launch.stopped_by != "time":
        return ""
    rule = recording.protocol.stop
    values = mine["duration_ns"][mine["launch"] == launch.index]
    if values.size < rule.min_count:
        return f"{values.size} of {rule.min_count} samples"
    lo, hi = order_statistic_interval(values, 0.5)
    half = (hi - lo) / 2 / nearest_rank(values, 0.5)
    if half > rule.relative_half_width:
        asked = 100 * rule.relative_half_width
        return f"the median is known to ± {100 * half:.2g} %, asked ± {asked:.2g} %"
    return ""


def _clock(samples: Samples) -> Iterator[Reason]:
    """Durations must be positive, and a call must start after the one before it ended."""
    bad = int(np.count_nonzero(samples["duration_ns"] <= 0))
    for launch in np.unique(samples["launch"]):
        here = samples["launch"] == launch
        start, duration = samples["start_ns"][here], samples["duration_ns"][here]
        order = np.argsort(start, kind="stable")
        ends = start[order] + duration[order]
        bad += int(np.count_nonzero(start[order][1:] < ends[:-1]))
    if bad:
        yield reason(Code.CLOCK_BACKWARDS, count=bad)
