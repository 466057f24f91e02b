"""One recording and one artifact -> one row of each table. Pure; the same input, the same row.

Figures are rounded to SIGNIFICANT_DIGITS decimal digits. Nine hold a nanosecond in a second; the
last bits of a sum, which may differ between machines, are beyond them.
"""

from __future__ import annotations

from math import isfinite
from typing import Any

import numpy as np
import numpy.typing as npt
from pydantic import ValidationError

from edgebench import stats
from edgebench.artifact import Adapter, Manifest, SwapAdapter
from edgebench.errors import RecordingError
from edgebench.recording import PHASES, ArtifactEntry, Recording, Solo
from edgebench.results.columns import ENERGY, LATENCY, POWER, Column
from edgebench.results.decoder_rows import figures, protocol_row, solo_row, tokens_per_call
from edgebench.results.encoding import Loaded
from edgebench.results.energy_rows import energy_of
from edgebench.verdict import Verdict, judge, judge_energy

SIGNIFICANT_DIGITS = 9

Row = dict[str, Any]

_NS_PER_MS = 1e6
_NS_PER_US = 1e3
_MB = 1e6
_PERCENTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p999": 0.999}


def rows(loaded: Loaded, index: int) -> tuple[Row, Row, Row, dict[str, Verdict]]:
    """The latency, energy and power row of one artifact, and the verdicts on them.

    The verdicts are by table; energy and power share one.

    Raises:
        RecordingError: the artifact's manifest in the recording is malformed.
    """
    recording = loaded.recording
    verdict = judge(recording, loaded.samples, loaded.state, index)
    manifests = [_manifest(loaded, entry) for entry in recording.artifacts]
    common = {**_run(recording, index, manifests[index]), **_verdict(verdict)}
    latency = {
        **common,
        **_artifact(recording.artifacts[index], manifests[index]),
        **_protocol(recording),
        **_figures(loaded, index),
        **figures(loaded, index, _reference(recording.artifacts, manifests, index)),
        **_solo(recording, index),
        **_against_reference(loaded, manifests, index),
    }
    measured = energy_of(loaded, index, tokens_per_call(recording))
    judged = judge_energy(verdict, measured.reasons)
    powered = {**_run(recording, index, manifests[index]), **_verdict(judged)}
    return (
        _complete(latency, LATENCY),
        _complete({**powered, **measured.energy}, ENERGY),
        _complete({**powered, **measured.power}, POWER),
        {"latency": verdict, "energy": judged},
    )


def artifact_label(manifest: Manifest) -> str:
    """``<name>[-<lowering>]-<scheme>``, the artifact's directory name without its digest."""
    special = [manifest.lowering] if manifest.lowering != "merged" else []
    return "-".join([manifest.name, *special, manifest.quantization.scheme])


def _run(recording: Recording, index: int, manifest: Manifest) -> Row:
    entry = recording.artifacts[index]
    return {
        "run_id": f"{recording.id}-{index}",
        "recording_id": recording.id,
        "created_at": recording.created_at,
        "device": recording.device.name,
        "device_fingerprint_digest": recording.device.fingerprint_digest,
        "emulated": recording.device.emulated,
        "artifact": artifact_label(manifest),
        "artifact_digest": entry.digest,
    }


def _verdict(verdict: Verdict) -> Row:
    return {
        "verdict": str(verdict.status),
        "reasons": ";".join(verdict.codes),
        "reasons_text": " ".join(reason.text for reason in verdict.reasons),
    }


def _artifact(entry: ArtifactEntry, manifest: Manifest) -> Row:
    quantization, s = manifest.quantization, manifest.statistics
    adapter = _adapter_of(entry, manifest)
    parity, kept_ranks, extra_flops = manifest.parity, s.kept_ranks, manifest.extra_flops
    if isinstance(adapter, SwapAdapter):
        parity, kept_ranks, extra_flops = adapter.parity, adapter.ranks, adapter.extra_flops
    return {
        "base_model": manifest.base.name,
        "adapter": adapter.name if adapter else None,
        "adapter_bytes": adapter.bytes if adapter else None,
        "lowering": manifest.lowering,
        "scheme": quantization.scheme,
        "storage_bits": quantization.storage_bits,
        "compute_bits": quantization.compute_bits,
        "activation_bits": quantization.activation_bits,
        "storage_bits_per_weight": quantization.storage_bits_per_weight,
        "file_bits_per_weight": quantization.file_bits_per_weight,
        "artifact_size_mb": entry.size_bytes / _MB,
        "parity_max_abs_error": parity.max_abs_error,
        "parity_cosine_mean": parity.cosine_mean,
        "parity_kl_mean": parity.kl_mean,
        "kept_layers": s.kept_layers,
        "kept_heads": s.kept_heads,
        "kept_ranks": kept_ranks,
        "param_bits": s.param_bits,
        "extra_flops": extra_flops,
    }


def _protocol(recording: Recording) -> Row:
    protocol = recording.protocol
    runtime = protocol.runtime
    return {
        "runtime": "torch-compile" if runtime.get("compile") else runtime.get("kind"),
        "runtime_version": recording.versions.get(str(runtime.get("kind"))),
        "provider": runtime.get("provider"),
        "threads": runtime.get("threads"),
        "scenario": protocol.scenario,
        "batch": protocol.batch,
        "seq_len": protocol.seq_len,
        **protocol_row(protocol.decoding),
        "input_source": protocol.input_source,
    }


def _figures(loaded: Loaded, index: int) -> Row:
    """Latency, throughput, load time and warm-up, over launches."""
    recording, samples = loaded.recording, loaded.samples
    mine = _counted(loaded) & (samples["artifact"] == index)
    # The clock problems of a broken device are the verdict's business; no figure is taken then.
    if np.any(samples["duration_ns"][mine] <= 0):
        mine = np.zeros_like(mine)
    durations, launch = samples["duration_ns"][mine], samples["launch"][mine]
    row: Row = {"n": int(durations.size), "launches": int(np.unique(launch).size)}
    for name, percentile in _PERCENTILES.items():
        estimate = stats.percentile_over_launches(durations, launch, percentile)
        row |= _estimate(f"latency_{name}_ms", estimate, _NS_PER_MS)
    mean = stats.mean_over_launches(durations, launch)
    row |= _estimate("latency_mean_ms", mean, _NS_PER_MS)
    if mean is not None:
        row |= _estimate("throughput_per_s", stats.throughput(mean, recording.protocol.batch))
    good = [each for each in recording.launches if each.outcome == "ok"]
    loads = [ns for each in good for ns in each.load_ns[index : index + 1] if ns is not None]
    row |= _estimate("load_time_ms", stats.over_launches(loads), _NS_PER_MS)
    for name in ("adapter_swap", "adapter_load"):
        times = [ns for each in good for ns in getattr(each, f"{name}_ns")[index : index + 1]]
        known = [ns for ns in times if ns is not None]
        row |= _estimate(f"{name}_us", stats.over_launches(known), _NS_PER_US)
    warmups = [w for each in good for w in each.warmup[index : index + 1]]
    done = [w for w in warmups if w is not None]
    row["warmup_calls"] = max((w.calls for w in done), default=None)
    row["warmup_steady"] = all(w is not None and w.steady for w in warmups) if done else None
    return row


def _solo(recording: Recording, index: int) -> Row:
    """Memory and accuracy of the artifact alone in its worker."""
    solo = next((s for s in recording.solo if s.artifact == index), None)
    if solo is None:
        return {}
    native = solo.execution.get("native") or {}
    row: Row = {}
    if "kernel" in native:
        row["native_kernel"] = f"{native['kernel']} {native['version']}"
        if recording.artifacts[index].manifest["quantization"]["scheme"] == "int3":
            row["compute_bits"] = 3
    row |= {
        "memory_peak_rss_mb": _megabytes(solo.peak_rss_bytes),
        "memory_baseline_rss_mb": _megabytes(solo.baseline_rss_bytes),
    }
    return row | _accuracy(recording, solo) | solo_row(solo)


def _accuracy(recording: Recording, solo: Solo) -> Row:
    if solo.accuracy is None:
        return {}
    share = stats.proportion(solo.accuracy.correct, solo.accuracy.n)
    if solo.accuracy.texts is not None:
        share = stats.clustered_proportion(*zip(*solo.accuracy.texts, strict=True))
    return {
        **_estimate("accuracy", share),
        "accuracy_n": solo.accuracy.n,
        "accuracy_recording_id": solo.accuracy.recording or recording.id,
    }


def _against_reference(loaded: Loaded, manifests: list[Manifest], index: int) -> Row:
    """Interleaved speed against the session's reference; nothing for the reference itself."""
    reference = _reference(loaded.recording.artifacts, manifests, index)
    row: Row = {"reference_artifact_digest": loaded.recording.artifacts[reference].digest}
    counted = _counted(loaded)
    columns = {
        name: loaded.samples[name][counted]
        for name in ("duration_ns", "launch", "artifact", "turn")
    }
    if np.any(columns["duration_ns"] <= 0):
        return row
    ratio = stats.speedup(
        columns["duration_ns"],
        columns["launch"],
        columns["artifact"],
        columns["turn"],
        of=index,
        against=reference,
    )
    return row | _estimate("speedup_vs_reference", ratio)


def _reference(entries: list[ArtifactEntry], manifests: list[Manifest], index: int) -> int:
    """The session's fp32 artifact of the same adapter on the same base, else its first artifact."""
    mine = manifests[index]
    digests = [_adapter_digest(entry, m) for entry, m in zip(entries, manifests, strict=True)]
    for number, other in enumerate(manifests):
        if (
            other.quantization.scheme == "fp32"
            and other.base.digest == mine.base.digest
            and digests[number] == digests[index]
        ):
            return number
    return 0


def _adapter_of(entry: ArtifactEntry, manifest: Manifest) -> Adapter | SwapAdapter | None:
    """The adapter that was measured: of a swappable artifact, the active one."""
    if entry.active_adapter is None:
        return manifest.adapter
    return next((a for a in manifest.adapters if a.name == entry.active_adapter), None)


def _adapter_digest(entry: ArtifactEntry, manifest: Manifest) -> str | None:
    adapter = _adapter_of(entry, manifest)
    return adapter.digest if adapter else None


def _counted(loaded: Loaded) -> npt.NDArray[np.bool_]:
    return np.asarray(loaded.samples["phase"] == PHASES.index("measure"))


def _manifest(loaded: Loaded, entry: ArtifactEntry) -> Manifest:
    try:
        return Manifest.model_validate(entry.manifest)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise RecordingError(
            f"the manifest of artifact {entry.name} is malformed at {place}: {first['msg']}",
            where=str(loaded.path),
            fix="Measure the artifact again with this version.",
        ) from error


def _estimate(name: str, estimate: stats.Estimate | None, unit: float = 1.0) -> Row:
    """A figure and its interval, divided by ``unit``; empty where it is withheld or unbounded."""
    if estimate is None:
        return {}
    return {
        name: estimate.value / unit,
        f"{name}_lo": estimate.lo / unit,
        f"{name}_hi": estimate.hi / unit,
    }


def _megabytes(count: int | None) -> float | None:
    return None if count is None else count / _MB


def _complete(row: Row, columns: tuple[Column, ...]) -> Row:
    """Exactly the table's columns, in order; floats rounded, absent values None."""
    return {column.name: _cell(row.get(column.name), column) for column in columns}


def _cell(value: Any, column: Column) -> Any:
    if value is None or column.kind != "float":
        return value
    number = float(value)
    return float(f"{number:.{SIGNIFICANT_DIGITS}g}") if isfinite(number) else None
