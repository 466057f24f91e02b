"""The two functions that a training script needs, and what lies between them and the files.

    surrogate, calibration = load_and_prepare_surrogate(cfg, device)
    predictions = apply_calibration(surrogate(stats, hardware), calibration)
    energy_j, latency_ms, power_w = predictions.unbind(-1)

``cfg`` is a mapping, or any object with attributes, of which these are read:

=================  ====================================================================
``surrogate``      directory of a fitted surrogate (required)
``calibration``    a calibration file, or a directory of them; default ``calibration/``
``metrics``        the heads to predict, in this order; default energy, latency, power
``torch_device``   where the surrogate computes, ``cpu`` or ``cuda``; default ``cpu``
=================  ====================================================================
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from edgebench.errors import InputError
from edgebench.surrogate import document as files
from edgebench.surrogate import stack, store
from edgebench.surrogate.calibration import COVERAGE, Calibrated
from edgebench.surrogate.columns import METRICS
from edgebench.surrogate.document import CalibrationDocument
from edgebench.surrogate.model import Added, Surrogate
from edgebench.surrogate.training_table import TrainingTable


@dataclass(frozen=True)
class Calibration:
    """What is applied to a prediction: ψ' = α ⊙ ψ + β.

    Attributes:
        device: the tag. metrics: the heads, in the order of the predictions' last axis.
        alpha: [M], without a unit. beta: [M], in each metric's unit.
        log_half_width: [M]: a new forward pass lies within ψ'·exp(±this) in 90 % of cases; NaN
            where that is not known.
        warnings: names of ``document.WARNINGS``.
    """

    device: str
    metrics: tuple[str, ...]
    alpha: Tensor
    beta: Tensor
    log_half_width: Tensor
    warnings: tuple[str, ...] = ()


def load_and_prepare_surrogate(
    cfg: Mapping[str, Any] | object, device: str
) -> tuple[Surrogate, Calibration]:
    """Load a surrogate, and make it know a device.

    Args:
        cfg: see above.
        device: a tag: one of the training devices, or one that has a calibration file.

    Returns:
        The surrogate, frozen (gradients flow to the statistics, not to its weights), and the
        calibration. Call it with ``hardware=device``.

    Raises:
        InputError: a file is missing or broken, a head is absent, or the device is not known.
    """
    where = _get(cfg, "surrogate", None)
    if where is None:
        raise InputError("cfg has no member 'surrogate'", fix="Set it to a surrogate's directory.")
    surrogate = store.read(Path(where)).surrogate
    surrogate.select(tuple(_get(cfg, "metrics", None) or METRICS))
    named = _get(cfg, "calibration", None)
    path = find_calibration(Path(named or "calibration"), device, named is not None)
    if path is not None:
        calibration = attach(surrogate, files.read(path), str(path), device)
    elif device in surrogate.devices:
        n = len(surrogate.selected)
        nan = torch.full((n,), float("nan"))
        calibration = Calibration(device, surrogate.selected, torch.ones(n), torch.zeros(n), nan)
    else:
        raise InputError(
            f"the surrogate was not trained on {device!r}, and there is no calibration of it",
            where=str(named or "calibration/"),
            fix=f"Make one with `edgebench surrogate calibrate`, or use a tag that it knows: "
            f"{', '.join(surrogate.devices)}.",
        )
    torch_device = torch.device(_get(cfg, "torch_device", "cpu"))
    moved = Calibration(
        calibration.device,
        calibration.metrics,
        calibration.alpha.to(torch_device),
        calibration.beta.to(torch_device),
        calibration.log_half_width.to(torch_device),
        calibration.warnings,
    )
    return surrogate.to(torch_device), moved


def apply_calibration(predictions: Tensor, calibration: Calibration) -> Tensor:
    """ψ' = α ⊙ ψ + β, per metric.

    Args:
        predictions: [..., M], from a surrogate's call with ``hardware=calibration.device``. A
            calibration that changes ranks is in ψ already (α = 1, β = 0), for that tag alone.

    Raises:
        InputError: the last axis is not the calibration's metrics.
    """
    if predictions.shape[-1] != len(calibration.metrics):
        raise InputError(
            f"the predictions have {predictions.shape[-1]} columns, the calibration "
            f"{len(calibration.metrics)} ({', '.join(calibration.metrics)})",
            fix="Use the pair that load_and_prepare_surrogate returned.",
        )
    return calibration.alpha.to(predictions) * predictions + calibration.beta.to(predictions)


def find_calibration(path: Path, device: str, required: bool) -> Path | None:
    """A device's calibration file: the one named, or the one with the most samples of a directory.

    Raises:
        InputError: it is required, and not a file nor a directory.
    """
    if path.is_dir():
        found = [p for p in path.glob("*samples.json") if _samples_of(p, device) is not None]
        return max(found, key=lambda p: _samples_of(p, device) or 0, default=None)
    if path.is_file():
        return path
    if required:
        raise InputError(
            "there is no such calibration",
            where=str(path),
            fix="Make it with `edgebench surrogate calibrate`.",
        )
    return None


def _samples_of(path: Path, device: str) -> int | None:
    """The count in ``<device>_<k>samples.json``, or None where it is another device's."""
    stem = path.name.removesuffix("samples.json")
    tag, _, count = stem.rpartition("_")
    return int(count) if tag == device and count.isdecimal() else None


def attach(
    surrogate: Surrogate, document: CalibrationDocument, where: str, device: str
) -> Calibration:
    """Make a surrogate know a calibrated device; what is left to apply.

    Raises:
        InputError: the calibration is of another surrogate or device, or lacks a selected head.
    """
    if document.surrogate_digest != surrogate.digest:
        raise InputError(
            "the calibration was fitted to another surrogate",
            where=where,
            fix="Fit it again with `edgebench surrogate calibrate`.",
        )
    if document.device != device:
        raise InputError(
            f"the calibration is of {document.device}, not of {device}",
            where=where,
            fix=f"Ask for {document.device}, or name another file.",
        )
    absent = [name for name in surrogate.selected if name not in document.metrics]
    if absent:
        raise InputError(
            f"the calibration has no {', '.join(absent)}: the samples had no such figure",
            where=where,
            fix=f"Ask for metrics = {list(document.metrics)}, or measure it on {device}.",
        )
    added = {}
    for name, metric in document.metrics.items():
        fitted = None
        if metric.stack is not None:
            parts = [
                stack.Part(part.share, part.intercept, np.array(part.theta))
                for part in (metric.stack.linear, metric.stack.log)
            ]
            fitted = stack.Stack(metric.stack.level, *parts)
        added[name] = Added(fitted)
    surrogate.with_device(device, added)
    own = [document.metrics[name] for name in surrogate.selected]
    nan = float("nan")
    return Calibration(
        device,
        surrogate.selected,
        torch.tensor([metric.alpha for metric in own]),
        torch.tensor([metric.beta for metric in own]),
        torch.tensor([m.interval.log_half_width if m.interval else nan for m in own]),
        tuple(document.warnings),
    )


def describe(
    calibrated: Calibrated, surrogate: Surrogate, samples: TrainingTable
) -> CalibrationDocument:
    """A calibration as it is written."""
    metrics = {}
    for name, fitted in calibrated.metrics.items():
        head = surrogate.heads[surrogate.metrics.index(name)]
        metrics[name] = files.MetricCalibration(
            method=fitted.method,
            alpha=fitted.line.alpha,
            beta=fitted.line.beta,
            loo_log_rms={str(method): value for method, value in fitted.loo.items()},
            sources=[surrogate.devices[i] for i in head.sources],
            stack=_stack_document(fitted.stack) if fitted.stack else None,
            interval=files.Interval(coverage=COVERAGE, log_half_width=calibrated.half_width[name])
            if name in calibrated.half_width
            else None,
        )
    rows = []
    for x, y in zip(samples.x, samples.y, strict=True):
        row: dict[str, Any] = dict(zip(samples.features, map(float, x), strict=True))
        row.update({n: float(v) for n, v in zip(METRICS, y, strict=True) if np.isfinite(v)})
        rows.append(row)
    return CalibrationDocument(
        schema_=files.SCHEMA,
        device=calibrated.device,
        features=list(surrogate.features),
        surrogate_digest=surrogate.digest,
        n_samples=calibrated.n_samples,
        metrics=metrics,
        warnings=list(calibrated.warnings),
        samples=rows,
    )


def _stack_document(fitted: stack.Stack) -> files.StackDocument:
    parts = {
        name: files.StackPart(
            share=part.share, intercept=part.intercept, theta=[float(v) for v in part.theta]
        )
        for name, part in (("linear", fitted.linear), ("log", fitted.log))
    }
    return files.StackDocument(level=fitted.level, **parts)


def _get(cfg: Mapping[str, Any] | object, name: str, default: Any) -> Any:
    if isinstance(cfg, Mapping):
        return cfg.get(name, default)
    return getattr(cfg, name, default)
