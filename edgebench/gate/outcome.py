"""What a check found, and the exit code that follows."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import IntEnum
from math import isfinite
from typing import Any

from edgebench.gate.sequential import Decision
from edgebench.gate.stored import SelfTest

SCHEMA = "edgebench.check/1"


class Status(IntEnum):
    """The exit codes of ``edgebench check``."""

    PASS = 0
    REGRESSION = 1
    UNDECIDED = 2
    BROKEN = 3


WORDS = {
    Status.PASS: "pass",
    Status.REGRESSION: "regression",
    Status.UNDECIDED: "undecided",
    Status.BROKEN: "broken environment",
}


@dataclass(frozen=True)
class Finding:
    """One benchmark in one metric.

    ``value``, ``lo``, ``hi``: the ratio candidate / baseline of the cost and its 95 % interval; for
    accuracy the drop in points. None where nothing could be said; ``note`` says why.
    """

    benchmark: str
    metric: str
    label: str
    decision: Decision
    value: float | None = None
    lo: float | None = None
    hi: float | None = None
    unit: str = "ratio"
    blocks: int = 0
    left_out: int = 0
    seconds: float = 0.0
    more_blocks: int | None = None
    more_s: float | None = None
    p_value: float | None = None
    note: str = ""

    def text(self) -> str:
        """The figure as people read it."""
        if self.value is None:
            return "—"
        if self.unit == "points":
            return f"{-100 * self.value:+.2f} points ({_points(self.hi)} – {_points(self.lo)})"
        return f"{self.value:.3f}× ({_bound(self.lo)} – {_bound(self.hi)})"


def _bound(value: float | None) -> str:
    if value is None or not isfinite(value):
        return "∞"
    return f"{value:.3f}"


def _points(value: float | None) -> str:
    return "?" if value is None else f"{-100 * value:+.2f}"


@dataclass(frozen=True)
class Result:
    """A whole check. ``broken``: why the environment is; then nothing is said about the code."""

    device: str
    fingerprint_digest: str
    max_regression: float
    max_accuracy_drop: float
    alpha: float
    miss: float
    findings: tuple[Finding, ...]
    broken: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    recordings: tuple[str, ...] = ()
    seconds: float = 0.0
    mode: str = "interleaved"
    self_test: SelfTest | None = None
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def status(self) -> Status:
        decisions = {finding.decision for finding in self.findings}
        if self.broken:
            return Status.BROKEN
        if Decision.REGRESSION in decisions:
            return Status.REGRESSION
        if Decision.UNDECIDED in decisions or not self.findings:
            return Status.UNDECIDED
        return Status.PASS

    def document(self) -> dict[str, Any]:
        """For machines: JSON, with null where there is no figure."""
        return {
            "schema": SCHEMA,
            "status": WORDS[self.status],
            "exit_code": int(self.status),
            "device": self.device,
            "fingerprint_digest": self.fingerprint_digest,
            "mode": self.mode,
            "max_regression": self.max_regression,
            "max_accuracy_drop": self.max_accuracy_drop,
            "alpha": self.alpha,
            "miss": self.miss,
            "broken": list(self.broken),
            "notes": list(self.notes),
            "findings": [_finding(finding) for finding in self.findings],
            "recordings": list(self.recordings),
            "seconds": self.seconds,
            "self_test": self.self_test.document() if self.self_test else None,
        }


def _finding(finding: Finding) -> dict[str, Any]:
    found = dict(vars(finding))
    found["decision"] = str(finding.decision)
    for name in ("value", "lo", "hi", "p_value", "more_s"):
        value = found[name]
        found[name] = value if value is not None and isfinite(value) else None
    return found
