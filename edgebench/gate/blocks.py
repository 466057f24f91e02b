"""From a recording to the log-ratios of its blocks. Pure.

A block is one launch: a worker that loaded, warmed up and timed both sides in random order. It is
the unit because two loads of one model in one worker differ by more than its calls do
(docs/measurement.md), and because the order is drawn anew for each launch, which is the coin that
``edgebench.gate.sequential`` rests on.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from math import log, pi, sqrt
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebench.errors import MeasurementError, RecordingError
from edgebench.gate.metrics import Metric
from edgebench.percentiles import nearest_rank
from edgebench.recording import PHASES
from edgebench.results.encoding import Loaded

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Block:
    """One launch of a check: log(candidate / baseline) by metric, and how the device was.

    ``missing``: by metric, why there is no ratio. ``canary_ns``: the canary's median call.
    ``seconds``: of the whole launch; ``timed_s``: from its first counted call to its last.
    ``noise``: by metric, the ratio's standard error as the block's own rounds tell it.
    """

    recording: str
    launch: int
    ratios: dict[str, float]
    missing: dict[str, str]
    seconds: float
    canary_ns: float | None
    foreign_cpu: float | None
    steal: float | None
    timed_s: float = 0.0
    noise: dict[str, float] = field(default_factory=dict)


def blocks_of(
    loaded: Loaded,
    metrics: Sequence[Metric],
    *,
    baseline: int = 0,
    candidate: int = 1,
    canary: int | None = 2,
) -> list[Block]:
    """The blocks of a check's recording, in their order.

    Raises:
        MeasurementError: a worker failed.
        RecordingError: a launch has no counted call, or a duration that can't be.
    """
    _require_success(loaded)
    samples = loaded.samples
    counted = samples["phase"] == PHASES.index("measure")
    found = []
    for launch in loaded.recording.launches:
        here = counted & (samples["launch"] == launch.index)
        sides = []
        for index in (baseline, candidate):
            mine = here & (samples["artifact"] == index)
            sides.append(_Side(samples["duration_ns"][mine], samples["turn"][mine]))
        for side in sides:
            side.require(loaded, launch.index)
        block = Block(
            recording=loaded.id,
            launch=launch.index,
            ratios={},
            missing={},
            seconds=(launch.ended_ns - launch.started_ns) / 1e9,
            canary_ns=_canary(samples, here, canary),
            foreign_cpu=launch.foreign_cpu_fraction,
            steal=launch.steal_fraction,
            timed_s=_span_s(samples, here),
        )
        for metric in metrics:
            _add(block, metric, sides, loaded, (baseline, candidate))
        found.append(block)
    return found


@dataclass(frozen=True)
class _Side:
    """The counted calls of one artifact in one launch: durations (ns) and turns, both [n]."""

    durations: npt.NDArray[np.int64]
    turns: npt.NDArray[np.int64]

    def require(self, loaded: Loaded, launch: int) -> None:
        if self.durations.size == 0:
            raise RecordingError(
                f"launch {launch + 1} has no counted call of one side", where=str(loaded.path)
            )
        if np.any(self.durations <= 0):
            raise RecordingError(
                f"launch {launch + 1} has a call of no or negative duration",
                where=str(loaded.path),
                fix="Check the device's clock source, then measure again.",
            )

    def medians(self) -> Floats:
        """The median call of each turn, in the order of the turns."""
        order = np.argsort(self.turns, kind="stable")
        _, first = np.unique(self.turns[order], return_index=True)
        groups = np.split(self.durations[order], first[1:])
        return np.array([np.median(group) for group in groups])


def _add(
    block: Block, metric: Metric, sides: list[_Side], loaded: Loaded, indices: tuple[int, int]
) -> None:
    base, new = sides
    if metric.name == "p50":
        first, second = base.medians(), new.medians()
        rounds = min(first.size, second.size)
        logs = np.log(second[:rounds] / first[:rounds])
        block.ratios[metric.name] = float(np.median(logs))
        block.noise[metric.name] = _error_of_median(logs)
    elif metric.percentile is not None:
        fewest = min(base.durations.size, new.durations.size)
        if fewest < metric.calls:
            block.missing[metric.name] = (
                f"{metric.name} needs {metric.calls} calls a side in each block, "
                f"launch {block.launch + 1} has {fewest}"
            )
            return
        tails = [nearest_rank(side.durations, metric.percentile) for side in (base, new)]
        block.ratios[metric.name] = log(tails[1] / tails[0])
    elif metric.name == "throughput":
        block.ratios[metric.name] = log(float(new.durations.mean() / base.durations.mean()))
    elif metric.name == "energy":
        _energy(block, metric, loaded, indices)
    elif metric.name == "memory" and block.launch == 0:
        _memory(block, metric, loaded, indices)


def _error_of_median(values: Floats) -> float:
    """Standard error of a median: sqrt(pi / 2) of a mean's for near-normal values."""
    deviation = 1.4826 * float(np.median(np.abs(values - np.median(values))))
    return sqrt(pi / 2) * deviation / sqrt(values.size)


def _span_s(samples: Any, here: npt.NDArray[np.bool_]) -> float:
    start, duration = samples["start_ns"][here], samples["duration_ns"][here]
    return float((start + duration).max() - start.min()) / 1e9


def _memory(block: Block, metric: Metric, loaded: Loaded, indices: tuple[int, int]) -> None:
    """One pair of fresh workers a session; the order of the two is drawn for each session."""
    peaks = {solo.artifact: solo.peak_rss_bytes for solo in loaded.recording.solo}
    base, new = (peaks.get(index) for index in indices)
    if not base or not new:
        block.missing[metric.name] = "the device does not tell a process's peak memory"
        return
    block.ratios[metric.name] = log(new / base)


def _energy(block: Block, metric: Metric, loaded: Loaded, indices: tuple[int, int]) -> None:
    from edgebench.results.energy_rows import energy_in_launch

    figures = []
    for index in indices:
        value, why = energy_in_launch(loaded, index, block.launch)
        if value is None or value <= 0:
            block.missing[metric.name] = why or "the energy a call is not above 0"
            return
        figures.append(value)
    block.ratios[metric.name] = log(figures[1] / figures[0])


def _canary(samples: object, here: npt.NDArray[np.bool_], index: int | None) -> float | None:
    if index is None:
        return None
    columns = samples
    durations = columns["duration_ns"][here & (columns["artifact"] == index)]  # type: ignore[index]
    return float(np.median(durations)) if durations.size else None


def _require_success(loaded: Loaded) -> None:
    recording = loaded.recording
    for solo in recording.solo:
        if solo.outcome != "ok":
            raise _failed(loaded, recording.artifacts[solo.artifact].name, solo.outcome, solo.error)
    for launch in recording.launches:
        if launch.outcome != "ok":
            raise _failed(loaded, f"launch {launch.index + 1}", launch.outcome, launch.error)
    if recording.status != "done" or not recording.launches:
        raise MeasurementError(
            f"the session ended early on the device ({recording.status})",
            where=recording.device.name,
            fix="See `edgebench doctor`, then check again.",
        )


def _failed(loaded: Loaded, what: str, outcome: str, error: str | None) -> MeasurementError:
    text = (error or "no text").splitlines()[0][:300].rstrip(". ")
    return MeasurementError(
        f"{what} could not be measured: {outcome}: {text}",
        where=loaded.recording.device.name,
        fix="Run it alone with `edgebench run` to see what is wrong.",
    )
