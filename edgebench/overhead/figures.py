"""An adapter's overhead from one session's recording: each form against the base alone.

- **latency**: the ratio of interleaved turns in the same workers (``stats.speedup``), which repeats
  far better than either latency; its interval at 99 %.
- **energy** of a call: the ratio of both figures, and the widest interval that theirs (95 %) allow.
  A meter's gain error is in both, so the truth lies closer than that.
- **memory**: peak resident memory less what the process had before the model, one reading each.
- **FLOPs**: counted on both graphs (``export.flops``); exact.

All are shares: 0.05 is 5 % more than the base. A figure whose row's verdict is INVALID is missing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from edgebench import stats
from edgebench.artifact import Artifact
from edgebench.overhead.budget import Budgets, Figure, Line, judge
from edgebench.recording import PHASES
from edgebench.results.encoding import Loaded
from edgebench.results.rows import rows
from edgebench.verdict import Severity, Status, Verdict

Row = dict[str, Any]


@dataclass(frozen=True)
class Form:
    """One form of the adapter (its lowering at one precision), and what it costs.

    Attributes:
        latency_ms, base_latency_ms: medians, for people; the overhead is not their quotient.
        latency, energy, memory, flops: overheads over the base alone, as shares.
        flops_count, base_flops_count: operations for one sample.
        uncounted: operators of the graphs that have no formula.
    """

    lowering: str
    scheme: str
    artifact: str
    artifact_digest: str
    base_digest: str
    latency_ms: Figure
    base_latency_ms: Figure
    latency: Figure
    energy: Figure
    memory: Figure
    flops: Figure
    flops_count: int
    base_flops_count: int
    uncounted: tuple[str, ...]
    adapter_mb: Figure
    active_atoms: Figure
    verdict: str

    def lines(self, budgets: Budgets) -> list[Line]:
        """Each budget that was given, against this form."""
        pairs = (
            ("latency overhead", self.latency, budgets.latency),
            ("energy overhead", self.energy, budgets.energy),
            ("memory overhead", self.memory, budgets.memory),
            ("FLOP overhead", self.flops, budgets.flops),
            ("adapter MB", self.adapter_mb, budgets.adapter_mb),
            ("active atoms a token", self.active_atoms, budgets.active_atoms),
        )
        return [
            Line(self.lowering, self.scheme, what, figure, budget, judge(figure, budget))
            for what, figure, budget in pairs
            if budget is not None
        ]


@dataclass(frozen=True)
class Counted:
    """A graph's operations for one sample, and its operators without a formula."""

    flops: int
    uncounted: tuple[str, ...]


def forms_of(
    loaded: Loaded, artifacts: Sequence[Artifact], counted: Mapping[str, Counted]
) -> list[Form]:
    """Every form of the adapter in a session, against the base at the same precision.

    Args:
        artifacts: those of the session, in its order, one base a precision among them.
        counted: by artifact digest.
    """
    found = {index: rows(loaded, index) for index in range(len(artifacts))}
    bases = {
        artifact.manifest.quantization.scheme: index
        for index, artifact in enumerate(artifacts)
        if artifact.manifest.lowering == "base"
    }
    forms = []
    for index, artifact in enumerate(artifacts):
        scheme = artifact.manifest.quantization.scheme
        if artifact.manifest.lowering == "base":
            continue
        base = bases[scheme]
        latency, energy, _, verdicts = found[index]
        base_latency, base_energy, _, base_verdicts = found[base]
        adapter = artifact.manifest.adapter
        here, there = counted[artifact.digest], counted[artifacts[base].digest]
        forms.append(
            Form(
                lowering=artifact.manifest.lowering,
                scheme=scheme,
                artifact=str(latency["artifact"]),
                artifact_digest=artifact.digest,
                base_digest=artifacts[base].digest,
                latency_ms=_cell(latency, "latency_p50_ms"),
                base_latency_ms=_cell(base_latency, "latency_p50_ms"),
                latency=valid(
                    (verdicts["latency"], base_verdicts["latency"]),
                    latency_ratio(loaded, index, base),
                ),
                energy=valid(
                    (verdicts["energy"], base_verdicts["energy"]),
                    _energy(energy, base_energy),
                ),
                memory=_memory(latency, base_latency),
                flops=exact(here.flops / there.flops - 1),
                flops_count=here.flops,
                base_flops_count=there.flops,
                uncounted=tuple(dict.fromkeys((*here.uncounted, *there.uncounted))),
                adapter_mb=exact(adapter.bytes / 1e6) if adapter else Figure(reason="no adapter"),
                active_atoms=exact(adapter.active_atoms)
                if adapter and adapter.active_atoms is not None
                else Figure(reason="its family has no dictionary of atoms"),
                verdict=str(verdicts["latency"].status),
            )
        )
    return forms


def exact(value: float) -> Figure:
    """A figure that was counted."""
    return Figure(value, value, value)


def _cell(row: Row, name: str) -> Figure:
    value = row[name]
    if value is None:
        return Figure(reason="not measured")
    return Figure(value, row[f"{name}_lo"], row[f"{name}_hi"])


def latency_ratio(loaded: Loaded, index: int, base: int) -> Figure:
    """The share that a call takes longer than the base's, from interleaved turns."""
    measured = np.asarray(loaded.samples["phase"] == PHASES.index("measure"))
    names = ("duration_ns", "launch", "artifact", "turn")
    samples = [loaded.samples[name][measured] for name in names]
    if samples[0].size == 0 or np.any(samples[0] <= 0):
        return Figure(reason="there are no counted calls of both")
    ratio = stats.speedup(*samples, of=base, against=index)
    if ratio is None:
        return Figure(reason="no launch measured both")
    return Figure(ratio.value - 1, ratio.lo - 1, ratio.hi - 1)


def _energy(row: Row, base: Row) -> Figure:
    name = "energy_per_inference_j"
    mine, theirs = row[name], base[name]
    if mine is None or theirs is None or theirs <= 0:
        return Figure(reason=str(row["reason"] or base["reason"] or "energy was not measured"))
    ends = [each[f"{name}_{end}"] for each in (row, base) for end in ("lo", "hi")]
    if any(end is None for end in ends) or ends[2] <= 0:
        return Figure(reason="the interval of its energy is unbounded")
    low, high, base_low, base_high = ends
    return Figure(mine / theirs - 1, low / base_high - 1, high / base_low - 1)


def _memory(row: Row, base: Row) -> Figure:
    own = [
        each["memory_peak_rss_mb"] - each["memory_baseline_rss_mb"]
        for each in (row, base)
        if each["memory_peak_rss_mb"] is not None and each["memory_baseline_rss_mb"] is not None
    ]
    if len(own) < 2 or own[1] <= 0:
        return Figure(reason="the device does not tell a process's memory")
    return Figure(own[0] / own[1] - 1)


def valid(verdicts: Sequence[Verdict], figure: Figure) -> Figure:
    """The figure, or why it can't be used."""
    for verdict in verdicts:
        if verdict.status is Status.INVALID and figure.value is not None:
            grave = (r for r in verdict.reasons if r.severity is Severity.INVALID)
            codes = ", ".join(str(reason.code) for reason in grave)
            return Figure(reason=f"the measurement is INVALID: {codes}")
    return figure
