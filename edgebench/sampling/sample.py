"""Calibration sampling: draw, export, run in random order, and write what was measured.

    calibration/<device>_<n>samples.json      the document, written when all are measured
    calibration/<device>_<n>samples.csv       the same as a flat table (and .parquet)
    calibration/.<device>_<n>samples.part     finished samples of an interrupted sampling

Every figure is read from a recording, and the statistics from the exported graph. A sample that
could not be measured ends the sampling with its error; the same command goes on from there. One
that was INVALID is measured again after all others, when what disturbed it may be gone.
"""

from __future__ import annotations

import io
import json
import tempfile
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from edgebench.artifact import Artifact
from edgebench.errors import InputError, UsageError
from edgebench.results.atomic import as_storage_error, replace_files
from edgebench.sampling.design import Configuration, draw
from edgebench.sampling.request import COLUMNS, SCHEMA, SampleRequest
from edgebench.sampling.subject import Subject

Report = Callable[[str, float | None], None]

#: Measures artifacts and returns the rows of the three tables for each: see ``api.sample``.
Measure = Callable[[Artifact], dict[str, Any]]

#: The share of a device's memory that weights may take: a session that loads holds the file's
#: weights and, for kernels that reorder them, a second copy.
MEMORY_SHARE = 0.5


def sample(request: SampleRequest, subject: Subject, measure: Measure, report: Report) -> Path:
    """Measure every configuration that has not been measured, and write the document.

    Raises:
        EdgebenchError: of the export or the run; finished samples are kept for the next call.
    """
    out = subject.out
    part = out.with_name(f".{out.stem}.part")
    if out.exists():
        raise UsageError(
            "this sampling is done already", where=str(out), fix="Remove the file, or give --out."
        )
    configurations = design(request, subject)
    done = _read_part(part, request, subject)

    def take(position: int, index: int, what: str, share: float) -> None:
        earlier = done.get(str(index))
        report(f"{what}: exporting", share)
        artifact = export(configurations[index], subject)
        report(f"{what}: measuring", share)
        done[str(index)] = {
            "sample": index,
            "order": position,
            "configuration": _described(configurations[index]),
            **row_of(artifact, measure(artifact)),
            "invalid_recording_ids": _recordings(earlier) if earlier else [],
        }
        _write(part, {"request": _identity(request, subject), "done": done})

    order = list(enumerate(run_order(request)))
    for position, index in order:
        if str(index) not in done:
            take(position, index, f"sample {position + 1}/{request.n}", position / request.n)
    for attempt in range(1, request.again + 1):
        for position, index in order:
            if _is_disturbed(done[str(index)], attempt):
                take(position, index, f"sample {position + 1}/{request.n} again", 1.0)
    return _finish(out, part, request, subject, [done[str(i)] for i in range(request.n)])


def run_order(request: SampleRequest) -> list[int]:
    """The order in which configurations are run: random, and the same for the same seed."""
    return [int(i) for i in np.random.default_rng(request.seed).permutation(request.n)]


def _is_disturbed(entry: dict[str, Any], attempt: int) -> bool:
    """Whether to measure a sample again: it was INVALID, for the ``attempt``-th time.

    All figures of an emulated device are INVALID; measuring again changes nothing there.
    """
    tried = len(_recordings(entry))
    return entry["verdict"] == "INVALID" and not entry["emulated"] and tried == attempt


def _recordings(entry: dict[str, Any]) -> list[str]:
    return [*entry["invalid_recording_ids"], entry["recording_id"]]


def design(request: SampleRequest, subject: Subject) -> tuple[Configuration, ...]:
    """The configurations of a request: the same for the same seed, base, adapter and device.

    Raises:
        UsageError: too few fit the device's memory.
    """
    limit = subject.memory_bytes
    if limit is None:
        return draw(subject.space, request.n, request.seed)
    return draw(
        subject.space,
        request.n,
        request.seed,
        lambda c: subject.weight_bytes(c) <= MEMORY_SHARE * limit,
    )


def export(configuration: Configuration, subject: Subject) -> Artifact:
    """Export a configuration for real, its branches unmerged, so that ranks have their cost."""
    (artifact,) = export_schemes(configuration, subject, (configuration.scheme,))
    return artifact


def export_schemes(
    configuration: Configuration, subject: Subject, schemes: tuple[str, ...]
) -> list[Artifact]:
    """The same configuration at several precisions: its graph is made once for all of them."""
    from edgebench.export import ExportRequest
    from edgebench.export import export as export_artifacts
    from edgebench.sampling.gating import write_gated

    with tempfile.TemporaryDirectory(prefix="edgebench-sample-") as temporary:
        adapter = write_gated(
            Path(temporary) / subject.name,
            configuration,
            subject.base,
            subject.adapter,
            subject.exporter,
        )
        return export_artifacts(
            ExportRequest(
                out=subject.artifacts,
                adapter=adapter,
                base=subject.base_text,
                quants=schemes,
                lowering="unmerged",
                seq_len=configuration.seq_len,
                name=subject.name,
                labels=subject.adapter.labels if subject.adapter else None,
            )
        )


def row_of(artifact: Artifact, measured: dict[str, Any]) -> dict[str, Any]:
    """A sample's members: the statistics of the graph, and the figures of the tables' rows.

    Args:
        measured: ``latency``, ``energy`` and ``power``: a row of each table.
    """
    latency, energy, power = (measured[name] for name in ("latency", "energy", "power"))
    row: dict[str, Any] = {
        "artifact_digest": artifact.digest,
        "scheme": artifact.manifest.quantization.scheme,
        "statistics": artifact.manifest.statistics.model_dump(mode="json"),
        "recording_id": latency["recording_id"],
        "device": latency["device"],
        "emulated": latency["emulated"],
        "verdict": latency["verdict"],
        "reasons": latency["reasons"],
    }
    for ours, table, theirs in (
        ("latency_ms", latency, "latency_p50_ms"),
        ("energy_j", energy, "energy_per_inference_j"),
        ("power_w", power, "power_peak_w"),
    ):
        for end in ("", "_lo", "_hi"):
            row[ours + end] = table.get(theirs + end)
    if row["energy_j"] is None:
        row["reason"] = energy.get("reason") or "no energy was measured"
    return row


def flat(document: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of the flat table, with exactly ``COLUMNS``."""
    rows = []
    for entry in document["samples"]:
        values = {**entry, **entry["statistics"], "device": document["device"]}
        rows.append({column: values.get(column) for column in COLUMNS})
    return rows


def _finish(
    out: Path, part: Path, request: SampleRequest, subject: Subject, samples: list[dict[str, Any]]
) -> Path:
    import pandas as pd

    document = {
        "schema": SCHEMA,
        "device": subject.device_id,
        "n_samples": request.n,
        "seed": request.seed,
        "request": _identity(request, subject),
        "samples": samples,
    }
    table = pd.DataFrame(flat(document), columns=list(COLUMNS))
    sink = io.BytesIO()
    table.to_parquet(sink, index=False)
    replace_files(
        out.parent,
        {
            f"{out.stem}.csv": table.to_csv(index=False, lineterminator="\r\n").encode(),
            f"{out.stem}.parquet": sink.getvalue(),
            out.name: _json(document),
        },
    )
    with as_storage_error(out.parent):
        part.unlink(missing_ok=True)
    return out


def _identity(request: SampleRequest, subject: Subject) -> dict[str, Any]:
    return {
        **request.identity(),
        "base_digest": subject.base.digest,
        "adapter_digest": subject.adapter.digest if subject.adapter else None,
    }


def _read_part(part: Path, request: SampleRequest, subject: Subject) -> dict[str, Any]:
    if not part.exists():
        return {}
    try:
        document = json.loads(part.read_text("utf-8"))
        same = document["request"] == _identity(request, subject)
        done: dict[str, Any] = document["done"]
    except (ValueError, KeyError, TypeError) as error:
        raise InputError(
            "the file of an interrupted sampling is damaged", where=str(part), fix="Remove it."
        ) from error
    if not same:
        raise UsageError(
            "an interrupted sampling with other options is under way there",
            where=str(part),
            fix="Repeat its options, remove the file, or give another --out.",
        )
    return done


def _described(configuration: Configuration) -> dict[str, Any]:
    return {
        **asdict(configuration),
        "kept_layers": configuration.kept_layers,
        "kept_heads": configuration.kept_heads,
        "kept_ranks": configuration.kept_ranks,
    }


def _write(file: Path, document: dict[str, Any]) -> None:
    replace_files(file.parent, {file.name: _json(document)})


def _json(document: dict[str, Any]) -> bytes:
    return (json.dumps(document, indent=2, allow_nan=False) + "\n").encode()
