"""What an int8 and an fp16 direction of a HEST adapter cost on a device, and the bound E_max.

The adapter is exported several times with its directions set to other states (spread evenly over
its modules; which of them it is has no influence on the cost), all of these artifacts take turns in
one session on the device, and energy a call, and latency, are fitted to the numbers of directions
(``edgebench.adapters.energy_bound``). Without a measured energy there is no bound, and the document
says why; the latency is fitted all the same.
"""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgebench.adapters.energy_bound import SCHEMA, LinearCosts, fit_linear_costs
from edgebench.artifact import Artifact
from edgebench.device import Device
from edgebench.errors import InputError, UsageError
from edgebench.export import ExportRequest, export
from edgebench.export.checkpoint import read_adapter
from edgebench.measure import RunOptions, run
from edgebench.overhead.budget import Figure
from edgebench.overhead.direction_variants import (
    LEAST,
    MOST,
    design,
    own_counts,
    state_sizes,
    write_variant,
)
from edgebench.overhead.figures import latency_ratio, valid
from edgebench.results.atomic import replace_files
from edgebench.results.rows import rows
from edgebench.results.store import Store

FILE = "direction-costs.json"

Progress = Callable[[str, float | None], None]
Report = Callable[[dict[str, Any]], None]
#: The share of the whole that exporting takes, where nothing is in the cache.
_EXPORTING = 0.5


@dataclass(frozen=True)
class Point:
    """One measured artifact."""

    n_int8: int
    n_fp16: int
    artifact_digest: str
    energy_j: Figure
    latency_ms: Figure


@dataclass(frozen=True)
class DirectionMeasurement:
    """Directions on a device: what was measured, and what each kind costs.

    Attributes:
        n_int8, n_fp16: the directions that the bound is for.
        energy: joules; None where it was not measured, and ``energy_reason`` says why.
        latency: milliseconds, the same.
    """

    recording_id: str
    created_at: str
    device: str
    fingerprint_digest: str
    adapter: str
    base: str
    scheme: str
    seq_len: int
    modules: int
    directions: int
    points: tuple[Point, ...]
    n_int8: int
    n_fp16: int
    energy: LinearCosts | None
    energy_reason: str
    latency: LinearCosts | None
    latency_reason: str

    @property
    def e_max_j(self) -> float | None:
        """The bound for ``n_int8`` and ``n_fp16`` directions, in joules a call."""
        return None if self.energy is None else self.energy.bound(self.n_int8, self.n_fp16)

    @property
    def exit_code(self) -> int:
        """0 where there is a bound in joules, 2 where there is none."""
        return 0 if self.energy is not None else 2

    def document(self) -> dict[str, Any]:
        """direction-costs.json (docs/formats.md)."""
        plain = {
            name: value
            for name, value in vars(self).items()
            if name not in ("points", "energy", "latency")
        }
        return {
            "schema": SCHEMA,
            **plain,
            "e_max_j": self.e_max_j,
            "energy": self.energy.document() if self.energy else None,
            "latency": self.latency.document() if self.latency else None,
            "points": [
                {
                    **{name: getattr(p, name) for name in ("n_int8", "n_fp16", "artifact_digest")},
                    "energy_j": vars(p.energy_j),
                    "latency_ms": vars(p.latency_ms),
                }
                for p in self.points
            ],
        }


def measure(
    adapter: Path,
    device: Device,
    store: Store,
    *,
    request: ExportRequest,
    points: int = 8,
    of: tuple[int, int] | None = None,
    options: RunOptions | None = None,
    wait: bool = True,
    progress: Progress | None = None,
    report: Report | None = None,
) -> DirectionMeasurement:
    """Export the adapter with other numbers of directions, measure them, and fit their costs.

    Args:
        adapter: a HEST checkpoint's directory.
        request: how to export, with one precision; its adapter and lowering are set here.
        points: how many artifacts, ``LEAST`` to ``MOST``.
        of: numbers of int8 and fp16 directions to give the bound for; None takes the adapter's.

    Raises:
        CheckpointError: the adapter's directions have no states.
        UsageError: too few or too many points, or several precisions.
        EdgebenchError: as ``export`` and ``run``.
    """
    if not LEAST <= points <= MOST:
        raise UsageError(
            f"{points} artifacts can't be made", where="--points", fix=f"Give {LEAST} to {MOST}."
        )
    if len(request.quants) != 1:
        raise UsageError("direction costs are of one precision", where="--quant", fix="Give one.")
    checkpoint = read_adapter(adapter)
    sizes = state_sizes(checkpoint)
    own, chosen = own_counts(checkpoint), design(sum(sizes.values()), points)
    if of is not None and not (min(of) >= 0 and sum(of) <= sum(sizes.values())):
        raise UsageError(
            f"the adapter has no {of[0]} int8 and {of[1]} fp16 directions",
            where="--int8, --fp16",
            fix=f"It has {sum(sizes.values())} in all.",
        )
    artifacts = []
    with tempfile.TemporaryDirectory(prefix="edgebench-directions-") as scratch:
        for number, (n_int8, n_fp16) in enumerate(chosen):
            made = Path(scratch) / f"{checkpoint.name}-int8x{n_int8}-fp16x{n_fp16}"
            write_variant(checkpoint, sizes, n_int8, n_fp16, made)
            step = _within(progress, made.name, number / len(chosen), 1 / len(chosen))
            named = replace(request, adapter=made, lowering="unmerged", name=made.name)
            artifacts += export(named, step)
    recording = run(device, artifacts, store, options, wait=wait, report=report)
    measured = _points(store, recording.id, artifacts, chosen)
    energy, energy_reason = _fit(measured, [point.energy_j for point in measured])
    latency, latency_reason = _fit(measured, [point.latency_ms for point in measured])
    return DirectionMeasurement(
        recording_id=recording.id,
        created_at=recording.created_at,
        device=recording.device.name,
        fingerprint_digest=recording.device.fingerprint_digest,
        adapter=checkpoint.name,
        base=artifacts[0].manifest.base.name,
        scheme=request.quants[0],
        seq_len=request.seq_len,
        modules=len(sizes),
        directions=sum(sizes.values()),
        points=measured,
        n_int8=(of or own)[0],
        n_fp16=(of or own)[1],
        energy=energy,
        energy_reason=energy_reason,
        latency=latency,
        latency_reason=latency_reason,
    )


def write(found: DirectionMeasurement, directory: Path) -> Path:
    """Replace direction-costs.json in a directory.

    Raises:
        StorageError: the directory can't be written.
    """
    content = json.dumps(found.document(), indent=2, allow_nan=False) + "\n"
    replace_files(directory, {FILE: content.encode()})
    return directory / FILE


def _points(
    store: Store, recording: str, artifacts: Sequence[Artifact], chosen: Sequence[tuple[int, int]]
) -> tuple[Point, ...]:
    """Energy of each artifact, and its latency by the ratio to the first one's."""
    loaded = store.load(recording)
    found = [rows(loaded, index) for index in range(len(artifacts))]
    first = found[0][0]["latency_p50_ms"]
    points = []
    for index, (artifact, pair) in enumerate(zip(artifacts, chosen, strict=True)):
        _, energy, _, verdicts = found[index]
        name = "energy_per_inference_j"
        joules = Figure(reason=str(energy["reason"] or "energy was not measured"))
        if energy[name] is not None:
            joules = Figure(energy[name], energy[f"{name}_lo"], energy[f"{name}_hi"])
        share = latency_ratio(loaded, index, 0) if index else Figure(0.0, 0.0, 0.0)
        time = Figure(reason=share.reason or "not measured")
        if share.value is not None and first is not None:
            ends = (share.value, share.lo or 0.0, share.hi or 0.0)
            time = Figure(*(first * (1 + end) for end in ends))
        both = verdicts["latency"], found[0][3]["latency"]
        points.append(
            Point(
                *pair,
                artifact.digest,
                valid((verdicts["energy"],), joules),
                valid(both, time),
            )
        )
    return tuple(points)


def _fit(points: Sequence[Point], figures: Sequence[Figure]) -> tuple[LinearCosts | None, str]:
    """The costs, or why there are none."""
    values = [figure.value for figure in figures if figure.value is not None]
    if len(values) < len(figures):
        reasons = dict.fromkeys(figure.reason for figure in figures if figure.value is None)
        return None, "; ".join(reasons)
    try:
        return fit_linear_costs([(p.n_int8, p.n_fp16) for p in points], values), ""
    except InputError as error:
        return None, error.what


def _within(progress: Progress | None, name: str, start: float, share: float) -> Progress:
    def nested(step: str, done: float | None) -> None:
        if progress is not None:
            whole = None if done is None else _EXPORTING * (start + share * done)
            progress(f"{name}: {step}", whole)

    return nested
