"""How long a sampling will take, from a probe: one configuration exported and run on the device.

The largest configuration is the probe. A configuration with a share of its layers and tokens is
taken to need that share of its time a call, which is more than it does (attention shrinks faster,
fewer heads are not counted), so the estimate is on the long side.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from edgebench.sampling.design import Configuration, Space

#: Calls that a median over launches is taken from, at the least (``percentiles.min_samples(50)``).
_CALLS = 64


@dataclass(frozen=True)
class Estimate:
    """Seconds: of the probe's export, of its run, a call, and of the whole sampling."""

    export_s: float
    run_s: float
    call_s: float
    total_s: float


def estimate(
    space: Space,
    configurations: Sequence[Configuration],
    *,
    export_s: float,
    run_s: float,
    call_s: float,
    calls: int,
    max_run_s: float,
) -> Estimate:
    """The estimate.

    Args:
        export_s, run_s, call_s: what the probe took: its export, its whole run, its median call.
        calls: calls that its run made.
        max_run_s: what a run's calls may take at the most, over its launches.
    """
    fixed = max(run_s - calls * call_s, 0.0)
    total = 0.0
    for configuration in configurations:
        share = configuration.kept_layers / space.layers
        share *= configuration.seq_len / space.seq_len[1]
        total += export_s + fixed + min(max(calls, _CALLS) * call_s * share, max_run_s)
    return Estimate(export_s, run_s, call_s, total)
