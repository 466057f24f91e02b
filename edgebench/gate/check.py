"""A check: both sides and the canary interleaved on the device, until the evidence decides.

::

    each benchmark   session of n blocks -> log-ratios -> bets -> decided? else another session
    session          one recording: baseline, candidate and canary in n launches; each is a block

The first session has as many blocks as the earliest decision needs, later ones as many as the
evidence so far lets expect. Sessions are ordinary recordings, kept below ``results/checks``, so the
decision can be made again from them.

The coin. The agent loads, warms up and times the artifacts of a launch in an order that it draws
from the seed and the launch's number; every session has a seed of its own. Exchanging the sides
exchanges nothing else, so each side has each place equally often.
"""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgebench.errors import InputError
from edgebench.gate import stored
from edgebench.gate.blocks import Block, blocks_of
from edgebench.gate.canary import has_canary, make_canary
from edgebench.gate.environment import Sorted, broken, sort_blocks
from edgebench.gate.family import holm
from edgebench.gate.findings import counted_findings, finding_of
from edgebench.gate.lengths import block_length_s
from edgebench.gate.metrics import Metric
from edgebench.gate.options import CheckOptions
from edgebench.gate.outcome import Finding, Result
from edgebench.gate.pairs import Pair
from edgebench.gate.sequential import Decision, Evidence, Rule, decide
from edgebench.results.encoding import Loaded
from edgebench.results.store import Store

if TYPE_CHECKING:
    from edgebench.artifact import Artifact
    from edgebench.device import Device

Reporter = Callable[[dict[str, Any]], None]

#: Blocks of a session after the first: fewer cost more in starting than they save in waiting.
_LEAST_MORE, _MOST_MORE = 2, 10


@dataclass
class Benchmark:
    """One benchmark's sessions so far."""

    pair: Pair
    sessions: list[Loaded] = field(default_factory=list)
    blocks: list[Block] = field(default_factory=list)
    evidence: dict[str, Evidence] = field(default_factory=dict)
    sorted: Sorted = field(default_factory=lambda: Sorted((), ()))
    broken: list[str] = field(default_factory=list)
    seconds: float = 0.0
    #: Timed seconds of the last session's blocks.
    block_s: float = 0.0

    @property
    def undecided(self) -> list[Evidence]:
        return [e for e in self.evidence.values() if e.decision is Decision.UNDECIDED]


def check(
    device: Device,
    pairs: Sequence[Pair],
    results: Path,
    options: CheckOptions | None = None,
    *,
    wait: bool = True,
    report: Reporter | None = None,
) -> Result:
    """Compare candidates with baselines on a device.

    Args:
        results: the results directory: sessions go to its ``checks``, self-tests come from its
            ``selftests``.
        report: called with each event of each session, and with ``block`` after each session.

    Raises:
        UsageError, InputError: what is asked for can't be.
        DeviceError, MeasurementError, StorageError: as in a run; a side that crashes is one.
    """
    chosen = options or CheckOptions()
    metrics = chosen.check()
    if not pairs:
        raise InputError("there is nothing to compare", fix="Name a baseline and a candidate.")
    timed = tuple(metric for metric in metrics if metric.kind != "counted")
    rule = chosen.rule(max(1, len(pairs) * len(metrics)))
    begin = time.monotonic()
    gate = _Gate(device, results, chosen, rule, timed, metrics, wait, report or _silent)
    benchmarks = []
    with tempfile.TemporaryDirectory(prefix="edgebench-canary-") as name:
        for number, each in enumerate(pairs):
            left_s = chosen.time_limit_s - (time.monotonic() - begin)
            benchmark = Benchmark(each)
            benchmarks.append(benchmark)
            gate.measure(benchmark, left_s / (len(pairs) - number), Path(name) / str(number))
            if benchmark.broken:
                break
    findings = [f for benchmark in benchmarks for f in gate.findings(benchmark)]
    first = next((s for b in benchmarks for s in b.sessions), None)
    return Result(
        device=device.id,
        fingerprint_digest=first.recording.device.fingerprint_digest if first else "",
        max_regression=chosen.max_regression,
        max_accuracy_drop=chosen.max_accuracy_drop,
        alpha=chosen.alpha,
        miss=chosen.miss,
        findings=tuple(_with_holm(findings, rule)),
        broken=tuple(dict.fromkeys(why for b in benchmarks for why in b.broken)),
        notes=tuple(gate.notes),
        recordings=tuple(s.id for b in benchmarks for s in b.sessions),
        seconds=time.monotonic() - begin,
        self_test=gate.self_test,
    )


@dataclass
class _Gate:
    """What all benchmarks of a call share."""

    device: Device
    results: Path
    options: CheckOptions
    rule: Rule
    timed: tuple[Metric, ...]
    metrics: tuple[Metric, ...]
    wait: bool
    report: Reporter
    notes: list[str] = field(default_factory=list)
    self_test: stored.SelfTest | None = None

    @property
    def store(self) -> Store:
        return Store(self.results / "checks")

    def measure(self, benchmark: Benchmark, budget_s: float, scratch: Path) -> None:
        """Sessions of one benchmark, until all its metrics are decided or its time is up."""
        accuracy = any(metric.name == "accuracy" for metric in self.metrics)
        if not self.timed and not accuracy:
            return
        artifacts = [
            benchmark.pair.baseline,
            benchmark.pair.candidate,
            *self.canary(scratch, benchmark),
        ]
        begin = time.monotonic()
        while True:
            size = self.next_size(benchmark)
            known = [block.seconds for block in benchmark.blocks]
            if known:
                longer = self.block_s(benchmark) - benchmark.block_s
                left_s = budget_s - (time.monotonic() - begin)
                size = min(size, int(left_s / (float(np.mean(known)) + longer)))
                if size < 1:
                    break
            self.session(benchmark, artifacts, size, accuracy=accuracy and not benchmark.sessions)
            benchmark.seconds = time.monotonic() - begin
            self.judge(benchmark)
            self.report({"event": "block", "device": self.device.id, "benchmark": benchmark})
            if benchmark.broken or self.finished(benchmark):
                break

    def canary(self, scratch: Path, benchmark: Benchmark) -> list[Artifact]:
        manifest = benchmark.pair.candidate.manifest
        if not has_canary(benchmark.pair.candidate):
            self.note("no canary: it takes part only where encoders run in ONNX Runtime")
            return []
        return [make_canary(scratch, manifest.statistics.seq_len)]

    def session(
        self, benchmark: Benchmark, artifacts: Sequence[Artifact], size: int, *, accuracy: bool
    ) -> None:
        from edgebench.measure import run

        seed = self.options.seed
        if seed is None:
            seed = secrets.randbits(31)
        else:
            seed += len(benchmark.sessions)
        benchmark.block_s = self.block_s(benchmark)
        options = self.options.session(
            size, seed, self.timed, accuracy=accuracy, block_s=benchmark.block_s
        )
        recording = run(
            self.device, artifacts, self.store, options, wait=self.wait, report=self.report
        )
        loaded = self.store.load(recording.id)
        canary = 2 if len(artifacts) > 2 else None
        benchmark.sessions.append(loaded)
        benchmark.blocks += blocks_of(loaded, self.timed, canary=canary)
        if self.self_test is None:
            digest = recording.device.fingerprint_digest
            self.self_test = stored.read(self.results, digest)
            if self.self_test is None:
                self.note(
                    "this device has no self-test yet: `edgebench check --self-test --device "
                    f"{self.device.id}` measures its false-alarm rate"
                )

    def judge(self, benchmark: Benchmark) -> None:
        """Look at all blocks so far: the test allows it at any time."""
        limits = self.options.limits
        benchmark.sorted = sort_blocks(benchmark.blocks, limits)
        before = self.self_test.canary_of(benchmark.sessions[0]) if self.self_test else None
        benchmark.broken = broken(benchmark.sorted, benchmark.sessions, limits, before)
        for metric in self.timed:
            ratios = [
                b.ratios[metric.name] for b in benchmark.sorted.used if metric.name in b.ratios
            ]
            if ratios:
                benchmark.evidence[metric.name] = decide(ratios, self.rule)
                continue
            missing = [b.missing[metric.name] for b in benchmark.blocks if metric.name in b.missing]
            if missing:
                raise InputError(
                    f"{metric.label} can't be gated here: {missing[0]}",
                    where=self.device.id,
                    fix="Leave the metric out, or give what it needs (--block-time for calls, a "
                    "meter in the profile for energy).",
                )

    def finished(self, benchmark: Benchmark) -> bool:
        if any(metric.name not in benchmark.evidence for metric in self.timed):
            return False
        return not benchmark.undecided or all(
            e.blocks >= self.rule.max_blocks for e in benchmark.undecided
        )

    def next_size(self, benchmark: Benchmark) -> int:
        """Blocks of the next session."""
        if any(metric.kind == "session" for metric in self.timed):
            return 1  # each pair of fresh workers is a block of its own
        if not self.timed:
            return 1
        if not benchmark.evidence:
            return min(self.rule.least_blocks, self.rule.max_blocks)
        wanted = [e.more_blocks or _LEAST_MORE for e in benchmark.undecided]
        size = max(_LEAST_MORE, min(_MOST_MORE, min(wanted, default=_LEAST_MORE)))
        room = [self.rule.max_blocks - e.blocks for e in benchmark.undecided]
        return max(1, min(size, max(room, default=1)))

    def block_s(self, benchmark: Benchmark) -> float:
        """Timed seconds of a coming block: what suits the metric that needs the longest."""
        asked_s = self.options.block_s
        wanted = [
            block_length_s(
                benchmark.sorted.used,
                name,
                spread=evidence.spread,
                limit=self.rule.upper,
                asked_s=asked_s,
                current_s=benchmark.block_s or asked_s,
            )
            for name, evidence in benchmark.evidence.items()
            if evidence.decision is Decision.UNDECIDED
        ]
        return max(wanted, default=asked_s)

    def findings(self, benchmark: Benchmark) -> list[Finding]:
        found = [
            finding_of(benchmark, metric, benchmark.evidence.get(metric.name))
            for metric in self.timed
        ]
        counted = [metric for metric in self.metrics if metric.kind == "counted"]
        return found + counted_findings(
            benchmark.pair,
            counted,
            benchmark.sessions[0] if benchmark.sessions else None,
            self.rule,
            self.options.max_accuracy_drop,
        )

    def note(self, text: str) -> None:
        if text not in self.notes:
            self.notes.append(text)


def _with_holm(findings: list[Finding], rule: Rule) -> list[Finding]:
    """What Holm's procedure finds beyond the sequential tests, among the undecided."""
    p_values = [finding.p_value if finding.p_value is not None else 1.0 for finding in findings]
    unmeasured = [1.0] * (rule.hypotheses - len(p_values))
    rejected = holm([*p_values, *unmeasured], rule.alpha)
    return [
        replace(finding, decision=Decision.REGRESSION, more_blocks=None, more_s=None, note="")
        if rejected[i] and finding.decision is Decision.UNDECIDED and finding.unit == "ratio"
        else finding
        for i, finding in enumerate(findings)
    ]


def _silent(event: dict[str, Any]) -> None:
    return None
