"""What can be gated, under which name, and what each needs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from edgebench.errors import UsageError
from edgebench.percentiles import min_samples

#: block: a log-ratio a block, tested in sequence. session: one a session of its own.
#: counted: exact, without a block.
Kind = Literal["block", "session", "counted"]


@dataclass(frozen=True)
class Metric:
    """A gated quantity. ``percentile``: 0 ... 1, of latency. ``column``: of the tables."""

    name: str
    kind: Kind
    label: str
    column: str
    percentile: float | None = None
    #: Whether more of it is better, as tables print it; ratios here always grow with the cost.
    inverse: bool = False

    @property
    def calls(self) -> int:
        """Counted calls a side that each block needs."""
        return min_samples(self.percentile) if self.percentile is not None else 1


METRICS = {
    metric.name: metric
    for metric in (
        Metric("p50", "block", "p50 latency", "latency_p50_ms", 0.5),
        Metric("p90", "block", "p90 latency", "latency_p90_ms", 0.9),
        Metric("p95", "block", "p95 latency", "latency_p95_ms", 0.95),
        Metric("p99", "block", "p99 latency", "latency_p99_ms", 0.99),
        Metric("throughput", "block", "time a sample", "throughput_per_s", inverse=True),
        Metric("energy", "block", "energy an inference", "energy_per_inference_j"),
        Metric("memory", "session", "peak memory", "memory_peak_rss_mb"),
        Metric("size", "counted", "artifact size", "artifact_size_mb"),
        Metric("accuracy", "counted", "accuracy", "accuracy"),
    )
}
DEFAULT = ("p50",)


def chosen(names: Sequence[str]) -> tuple[Metric, ...]:
    """Metrics by name, each once.

    Raises:
        UsageError: there is none of that name.
    """
    for name in names:
        if name not in METRICS:
            raise UsageError(
                f"there is no metric {name!r}", fix=f"Choose from {', '.join(METRICS)}."
            )
    return tuple(METRICS[name] for name in dict.fromkeys(names or DEFAULT))
