"""A check against a store of earlier recordings, where no old artifact is at hand.

The candidate is measured once (several launches), and its figures are compared with what the
recordings of the same benchmark on the same device fingerprint predict: see ``trend``. One run is
never compared with one run.
"""

from __future__ import annotations

import secrets
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import replace
from math import isfinite, log
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebench.artifact import Artifact, Manifest
from edgebench.errors import InputError, RecordingError, UsageError
from edgebench.gate import stored
from edgebench.gate.environment import Sorted, broken
from edgebench.gate.metrics import Metric
from edgebench.gate.options import CheckOptions
from edgebench.gate.outcome import Finding, Result
from edgebench.gate.sequential import Decision, Rule
from edgebench.gate.trend import LEAST, change_points, step
from edgebench.recording import Recording
from edgebench.results.encoding import Loaded
from edgebench.results.rows import artifact_label, rows
from edgebench.results.store import Store
from edgebench.verdict import Status as VerdictStatus

if TYPE_CHECKING:
    from edgebench.device import Device

LAUNCHES = 5


def check_history(
    device: Device,
    candidates: Sequence[Artifact],
    history: Path,
    results: Path,
    options: CheckOptions | None = None,
    *,
    wait: bool = True,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> Result:
    """Measure candidates and compare them with a history.

    Args:
        history: a results directory; its ``runs`` are the history.
        results: where the new recording goes (``checks``, so that it is no history itself).

    Raises:
        InputError: no earlier recording may be compared; says which field differs.
        RecordingError: a recording of the history can't be read.
    """
    from edgebench.measure import run

    chosen = options or CheckOptions()
    metrics = chosen.check()
    if not candidates:
        raise InputError("there is nothing to check", fix="Name a candidate.")
    if any(metric.name == "accuracy" for metric in metrics):
        raise UsageError(
            "accuracy is compared example by example, which a history does not have",
            fix="Check it against a --baseline.",
        )
    entries, unreadable = Store(history / "runs").load_all()
    if unreadable:
        raise unreadable[0]
    rule = chosen.rule(len(candidates) * len(metrics))
    begin = time.monotonic()
    store = Store(results / "checks")
    seed = secrets.randbits(31) if chosen.seed is None else chosen.seed
    session = chosen.session(LAUNCHES, seed, metrics, accuracy=False)
    findings: list[Finding] = []
    why: list[str] = []
    notes: list[str] = []
    ids: list[str] = []
    digest = ""
    for candidate in candidates:
        recording = run(device, [candidate], store, session, wait=wait, report=report)
        new = store.load(recording.id)
        ids.append(new.id)
        digest = recording.device.fingerprint_digest
        why += broken(Sorted((), ()), [new], chosen.limits)
        why += _loaded_launches(new, chosen.limits.foreign_load)
        past = list(comparable(entries, new))
        if not past:
            raise _nothing_comparable(entries, new, history)
        figures = rows(new, 0)
        label = artifact_label(candidate.manifest)
        for metric in metrics:
            findings.append(_finding(label, metric, figures, past, rule, notes))
    return Result(
        device=device.id,
        fingerprint_digest=digest,
        max_regression=chosen.max_regression,
        max_accuracy_drop=chosen.max_accuracy_drop,
        alpha=chosen.alpha,
        miss=chosen.miss,
        findings=tuple(findings),
        broken=tuple(dict.fromkeys(why)),
        notes=tuple(dict.fromkeys(notes)),
        recordings=tuple(ids),
        seconds=time.monotonic() - begin,
        mode="history",
        self_test=stored.read(results, digest),
    )


def comparable(entries: Sequence[Loaded], new: Loaded) -> Iterator[tuple[Loaded, int]]:
    """Recordings and artifact indices of the same benchmark on the same fingerprint, oldest first;
    without rows whose figures do not describe the artifact (INVALID)."""
    for loaded, index in same_benchmark(entries, new):
        if loaded.recording.device.fingerprint_digest != new.recording.device.fingerprint_digest:
            continue
        verdict = rows(loaded, index)[3]["latency"]
        if verdict.status is not VerdictStatus.INVALID:
            yield loaded, index


def same_benchmark(entries: Sequence[Loaded], new: Loaded) -> Iterator[tuple[Loaded, int]]:
    """The same artifact label in the same scenario, on any device."""
    wanted = _label(new.recording, 0)
    terms = ("scenario", "batch", "seq_len")
    for loaded in entries:
        same = all(
            getattr(loaded.recording.protocol, term) == getattr(new.recording.protocol, term)
            for term in terms
        )
        if not same or loaded.id == new.id:
            continue
        for index in range(len(loaded.recording.artifacts)):
            if _label(loaded.recording, index) == wanted:
                yield loaded, index


def differing(one: Mapping[str, Any], other: Mapping[str, Any], prefix: str = "") -> list[str]:
    """The fields in which two fingerprints differ, in words."""
    found = []
    for name in sorted(one.keys() | other.keys()):
        first, second = one.get(name), other.get(name)
        if isinstance(first, Mapping) and isinstance(second, Mapping):
            found += differing(first, second, f"{prefix}{name}.")
        elif first != second:
            found.append(f"{prefix}{name} was {first!r} and is {second!r}")
    return found


def _label(recording: Recording, index: int) -> str:
    return artifact_label(Manifest.model_validate(recording.artifacts[index].manifest))


def _nothing_comparable(entries: Sequence[Loaded], new: Loaded, history: Path) -> InputError:
    label = _label(new.recording, 0)
    others = list(same_benchmark(entries, new))
    if not others:
        protocol = new.recording.protocol
        return InputError(
            f"no earlier recording has {label} in this scenario ({protocol.scenario}, batch "
            f"{protocol.batch}, seq {protocol.seq_len})",
            where=str(history),
            fix="Make some with `edgebench run`, or check against a --baseline.",
        )
    latest = others[-1][0].recording.device
    fields = differing(latest.fingerprint, new.recording.device.fingerprint)
    if not fields:
        return InputError(
            f"every earlier recording of {label} on this device is INVALID",
            where=str(history),
            fix="See `edgebench table` for the reasons, and measure it again.",
        )
    return InputError(
        f"no earlier recording of {label} is of this device: {'; '.join(fields)}",
        where=str(history),
        fix="Make some on the device as it is now, or check against a --baseline.",
    )


def _loaded_launches(new: Loaded, limit: float) -> list[str]:
    worst = max(
        (launch.foreign_cpu_fraction or 0.0 for launch in new.recording.launches), default=0
    )
    if worst <= limit:
        return []
    return [f"others used {100 * worst:.0f} % of the measured CPUs"]


def _finding(
    label: str,
    metric: Metric,
    figures: tuple[dict[str, Any], dict[str, Any], dict[str, Any], Any],
    past: Sequence[tuple[Loaded, int]],
    rule: Rule,
    notes: list[str],
) -> Finding:
    table = 1 if metric.name == "energy" else 0
    new = _cost(metric, figures[table].get(metric.column))
    known = [(at, _cost(metric, rows(at, index)[table].get(metric.column))) for at, index in past]
    series = [value for _, value in known if value is not None]
    finding = Finding(
        benchmark=label,
        metric=metric.name,
        label=metric.label,
        decision=Decision.UNDECIDED,
        blocks=len(series),
    )
    if new is None:
        reason = figures[table].get("reason") or figures[0].get("reasons_text") or "no figure"
        raise InputError(f"{metric.label} of {label} could not be measured: {reason}")
    cuts = change_points(series)
    present = len(series) - (cuts[-1] if cuts else 0)
    if cuts:
        ids = [at.id for at, value in known if value is not None]
        notes.append(
            f"{label}: {metric.label} changed level at "
            + ", ".join(f"{ids[cut]}" for cut in cuts)
            + "; what came before is not used"
        )
    if present < LEAST:
        return replace(
            finding,
            more_blocks=LEAST - present,
            note=f"needs {LEAST - present} more recordings ({present} since the last change)",
        )
    found = step(series, new, limit=rule.limit, alpha=rule.alpha / rule.hypotheses, miss=rule.miss)
    note = f"against {found.trend.n} recordings"
    if found.trend.slope:
        note += f", drifting by {100 * found.trend.slope:+.2g} % each"
    if found.decision is Decision.UNDECIDED:
        note += (
            f"; needs about {found.more_recordings} more recordings"
            if found.more_recordings
            else "; recordings scatter too widely for this limit, whatever their number"
        )
    return replace(
        finding,
        decision=found.decision,
        value=found.ratio,
        lo=found.lo,
        hi=found.hi,
        p_value=found.p_value,
        more_blocks=found.more_recordings,
        note=note,
    )


def _cost(metric: Metric, value: Any) -> float | None:
    """The log of a table's figure, growing with the cost."""
    if value is None:
        return None
    number = float(value)
    if not isfinite(number) or number <= 0:
        raise RecordingError(f"a recording has {metric.label} {number:g}")
    return -log(number) if metric.inverse else log(number)
