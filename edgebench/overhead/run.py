"""One adapter in all its forms, measured against the base alone in one session on a device."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from edgebench.artifact import Artifact, Manifest
from edgebench.device import Device
from edgebench.errors import UsageError
from edgebench.export import ExportRequest, export
from edgebench.export import flops as counting
from edgebench.export.checkpoint import read_adapter
from edgebench.export.exporter import Lowering, find_exporter
from edgebench.export.swappable import read_file
from edgebench.measure import RunOptions, run
from edgebench.overhead.budget import Answer, Budgets, Figure, Line, exit_code
from edgebench.overhead.figures import Counted, Form, forms_of
from edgebench.results.store import Store
from edgebench.workspace import builtin_root

SCHEMA = "edgebench.overhead/1"

Progress = Callable[[str, float | None], None]
Report = Callable[[dict[str, Any]], None]

#: The share of the whole that exporting takes, where nothing is in the cache.
_EXPORTING = 0.5


@dataclass(frozen=True)
class Overhead:
    """What an adapter costs on a device, and whether it keeps within budgets."""

    recording_id: str
    created_at: str
    device: str
    adapter: str
    base: str
    forms: tuple[Form, ...]
    lines: tuple[Line, ...]

    @property
    def exit_code(self) -> int:
        """0 where every budget is kept, 1 where one is broken, 2 where one is undecided."""
        return exit_code([line.answer for line in self.lines])

    def document(self) -> dict[str, Any]:
        """overhead.json (docs/formats.md)."""
        return {
            "schema": SCHEMA,
            **{name: value for name, value in asdict(self).items() if name != "lines"},
            "budgets": [{**asdict(line), "answer": str(line.answer)} for line in self.lines],
        }

    def rows(self) -> list[dict[str, Any]]:
        """overhead.csv: one row a form (``COLUMNS``)."""
        return [_csv_row(self, form) for form in self.forms]


def measure(
    adapter: Path,
    device: Device,
    store: Store,
    *,
    request: ExportRequest,
    lowerings: Sequence[Lowering] | None = None,
    budgets: Budgets | None = None,
    options: RunOptions | None = None,
    wait: bool = True,
    progress: Progress | None = None,
    report: Report | None = None,
) -> Overhead:
    """Export base, merged, unmerged and swappable (or take them from the cache), and measure them.

    Args:
        adapter: a checkpoint's directory.
        request: how to export; its adapter and lowering are set here.
        lowerings: the forms to compare; None takes all that the family has and the format takes.

    Raises:
        EdgebenchError: as ``export`` and ``run``.
    """
    wanted = _lowerings(adapter, request, lowerings)
    base: Lowering = "base"
    artifacts: list[Artifact] = []
    for number, lowering in enumerate((base, *wanted)):
        start = _EXPORTING * number / (1 + len(wanted))
        step = _within(progress, lowering, start, _EXPORTING / (1 + len(wanted)))
        artifacts += export(replace(request, adapter=adapter, lowering=lowering), step)
    counted = {}
    for artifact in artifacts:
        counted[artifact.digest] = count(artifact)
    recording = run(device, artifacts, store, options, wait=wait, report=report)
    loaded = store.load(recording.id)
    forms = forms_of(loaded, artifacts, counted)
    asked = budgets or Budgets()
    return Overhead(
        recording_id=recording.id,
        created_at=recording.created_at,
        device=recording.device.name,
        adapter=adapter.resolve().name,
        base=artifacts[0].manifest.base.name,
        forms=tuple(forms),
        lines=tuple(line for form in forms for line in form.lines(asked)),
    )


def count(artifact: Artifact, adapter: str | None = None) -> Counted:
    """An artifact's operations for one sample; of a swappable one with an adapter active."""
    cost = count_artifact(artifact, adapter)
    return Counted(cost.flops, cost.uncounted)


def count_artifact(artifact: Artifact, adapter: str | None = None) -> counting.GraphCost:
    """The same node by node.

    Args:
        adapter: of a swappable artifact: which one is active; None takes the first.

    Raises:
        UsageError: the artifact is no ONNX graph.
        ArtifactError: it has no adapter of this name.
    """
    if artifact.manifest.format != "onnx":
        raise UsageError(
            "operations are counted on ONNX graphs",
            where=str(artifact.path),
            fix="Export it with --format onnx.",
        )
    takes = {tensor.name for tensor in artifact.manifest.signature.inputs}
    with np.load(artifact.path / artifact.manifest.data.inputs, allow_pickle=False) as rows:
        feed: dict[str, Any] = {name: rows[name][:1] for name in rows.files if name in takes}
    if artifact.manifest.decoder is not None:
        feed |= _empty_cache(artifact.manifest)
    active = artifact.swap_adapter(adapter)
    if active is not None:
        feed |= read_file(artifact.path / active.file)
    return counting.count(artifact.model_path, feed)


def _empty_cache(manifest: Manifest) -> dict[str, Any]:
    """What a decoder's prefill takes beside its prompt: no past, logits of the last position."""
    found: dict[str, Any] = {}
    for tensor in manifest.signature.inputs:
        if tensor.name.startswith("past_key_values."):
            shape = [size if isinstance(size, int) else 0 for size in tensor.shape]
            found[tensor.name] = np.zeros([1, *shape[1:]], tensor.dtype)
        elif tensor.name == "logits_to_keep":
            found[tensor.name] = np.ones(1, np.int64)
    return found


def _lowerings(
    adapter: Path, request: ExportRequest, asked: Sequence[Lowering] | None
) -> tuple[Lowering, ...]:
    """The forms to compare with the base, in the order that the family declares."""
    checkpoint = read_adapter(adapter)
    directories = request.exporter_dirs or (builtin_root() / "exporters",)
    family = find_exporter(directories, checkpoint).exporter
    if asked is None:
        whole = request.format == "onnx" and request.via == "torch"
        return tuple(name for name in family.lowerings if whole or name != "swappable")
    for name in asked:
        if name not in family.lowerings:
            raise UsageError(
                f"adapters of the family {family.name} have no {name} form",
                where="--lowering",
                fix=f"Give {' or '.join(family.lowerings)}.",
            )
    return tuple(dict.fromkeys(asked))


def _within(progress: Progress | None, name: str, start: float, share: float) -> Progress:
    def nested(step: str, done: float | None) -> None:
        if progress is not None:
            progress(f"{name}: {step}", None if done is None else start + share * done)

    return nested


_FIGURES = ("latency", "energy", "memory", "flops")


def _csv_row(overhead: Overhead, form: Form) -> dict[str, Any]:
    row: dict[str, Any] = {
        "recording_id": overhead.recording_id,
        "created_at": overhead.created_at,
        "device": overhead.device,
        "adapter": overhead.adapter,
        "base_model": overhead.base,
        "lowering": form.lowering,
        "scheme": form.scheme,
        "artifact_digest": form.artifact_digest,
        "base_artifact_digest": form.base_digest,
        "latency_p50_ms": form.latency_ms.value,
        "base_latency_p50_ms": form.base_latency_ms.value,
    }
    for name in _FIGURES:
        figure: Figure = getattr(form, name)
        column = f"{name}_overhead"
        row |= {column: figure.value, f"{column}_lo": figure.lo, f"{column}_hi": figure.hi}
    answers = {line.answer for line in overhead.lines if _of(line, form)}
    order = (Answer.FAIL, Answer.UNDECIDED, Answer.PASS)
    return row | {
        "flops": form.flops_count,
        "base_flops": form.base_flops_count,
        "adapter_mb": form.adapter_mb.value,
        "active_atoms": form.active_atoms.value,
        "budgets": next((str(answer) for answer in order if answer in answers), ""),
        "verdict": form.verdict,
        "reasons": "; ".join(
            f"{name}: {getattr(form, name).reason}"
            for name in _FIGURES
            if getattr(form, name).reason
        ),
    }


def _of(line: Line, form: Form) -> bool:
    return (line.lowering, line.scheme) == (form.lowering, form.scheme)
