"""What `edgebench surrogate` does, as functions over files."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from edgebench.errors import InputError
from edgebench.surrogate import document as files
from edgebench.surrogate import store
from edgebench.surrogate.calibration import calibrate
from edgebench.surrogate.columns import DEVICE, METRICS, STATISTICS
from edgebench.surrogate.document import CalibrationDocument
from edgebench.surrogate.evaluation import score
from edgebench.surrogate.fitting import Fit, FitOptions, fit
from edgebench.surrogate.prepare import apply_calibration, describe, load_and_prepare_surrogate
from edgebench.surrogate.training_table import read_tables


@dataclass(frozen=True)
class Written:
    """Something that was written, and where."""

    path: Path
    fit: Fit


def fit_surrogate(
    tables: Sequence[Path],
    out: Path,
    *,
    features: Sequence[str] = STATISTICS,
    targets: Mapping[str, str] | None = None,
    options: FitOptions | None = None,
    report: Callable[[str, float], None] | None = None,
) -> Written:
    """Fit a surrogate to tables and write it to a directory."""
    table = read_tables(tables, features=features, targets=targets)
    fitted = fit(table, options or FitOptions(), report)
    store.write(out, fitted)
    return Written(out, fitted)


def calibrate_surrogate(
    surrogate: Path,
    samples: Sequence[Path],
    out: Path | None = None,
    *,
    device: str | None = None,
    targets: Mapping[str, str] | None = None,
) -> tuple[Path, CalibrationDocument]:
    """Fit a calibration to samples, and write it.

    Args:
        samples: tables or calibration files with samples.
        out: the file; ``calibration/<device>_<k>samples.json`` by default. Where that file is
            the one with the samples, what it has beside them stays in it.
        device: the device whose rows are taken; needed where the samples are of several.
    """
    fitted = store.read(surrogate)
    table = read_tables(samples, features=fitted.surrogate.features, targets=targets)
    if device is not None:
        table = table.of(device)
    calibrated = calibrate(fitted.surrogate, table, fitted.leave_out, range_=fitted.range_)
    document = describe(calibrated, fitted.surrogate, table)
    name = f"{document.device}_{document.n_samples}samples.json"
    path = out or Path("calibration") / name
    kept = _others(path) if any(path.resolve() == s.resolve() for s in samples) else {}
    if kept:
        document = document.model_copy(update=kept)
    files.write(path, document)
    return path, document


def _others(path: Path) -> dict[str, Any]:
    """What a sample file has beside a calibration, its samples with their recordings included."""
    import json

    own = set(CalibrationDocument.model_fields) - {"samples", "schema_"}
    data = json.loads(path.read_text("utf-8"))
    return {name: value for name, value in data.items() if name not in own and name != "schema"}


def predict_rows(
    surrogate: Path,
    device: str,
    rows: Sequence[Mapping[str, float]],
    *,
    calibration: Path | None = None,
) -> list[dict[str, Any]]:
    """Predictions of rows of features on a device, with 90 % intervals where they are known.

    Returns:
        Each row's features, then per head the figure, ``_lo`` and ``_hi`` (None: not known).
    """
    import torch

    heads = store.read(surrogate).surrogate
    cfg = {"surrogate": surrogate, "calibration": calibration, "metrics": list(heads.metrics)}
    model, calibrated = load_and_prepare_surrogate(cfg, device)
    for row in rows:
        missing = [name for name in model.features if name not in row]
        if missing:
            raise InputError(
                f"the features {', '.join(missing)} are missing",
                fix=f"Give {', '.join(model.features)}.",
            )
    x = torch.tensor([[float(row[name]) for name in model.features] for row in rows])
    with torch.no_grad():
        values = apply_calibration(model(x, device), calibrated)
    width = calibrated.log_half_width
    found = []
    for row, predicted in zip(rows, values, strict=True):
        line: dict[str, Any] = {name: row[name] for name in model.features}
        for name, value, half in zip(calibrated.metrics, predicted, width, strict=True):
            known = bool(torch.isfinite(half))
            line[name] = float(value)
            line[f"{name}_lo"] = float(value * torch.exp(-half)) if known else None
            line[f"{name}_hi"] = float(value * torch.exp(half)) if known else None
        found.append(line)
    return found


def evaluate_surrogate(
    surrogate: Path,
    tables: Sequence[Path],
    *,
    sizes: Sequence[int] = (5, 10),
    draws: int = 30,
    seed: int = 0,
    targets: Mapping[str, str] | None = None,
) -> list[dict[str, Any]]:
    """How well it predicts the tables' devices, each calibrated with k of its own rows.

    A device that the surrogate was trained on is marked: its figure says nothing of new ones.
    """
    fitted = store.read(surrogate)
    model = fitted.surrogate
    table = read_tables(tables, features=model.features, targets=targets)
    lines = []
    for device in table.devices:
        own = table.of(device)
        for metric in model.metrics:
            if not np.isfinite(own.y[:, METRICS.index(metric)]).any():
                continue
            for k in sizes:
                found = score(model, fitted.leave_out, own, metric, k, draws=draws, seed=seed)
                coverage = float(np.mean(found.coverage))
                lines.append(
                    {
                        DEVICE: device,
                        "trained_on": device in model.devices,
                        "metric": metric,
                        "samples": k,
                        "draws": draws,
                        "spearman_mean": float(found.spearman.mean()),
                        "median_ape_percent": 100 * float(found.median_ape.mean()),
                        "mean_ape_percent": 100 * float(found.mean_ape.mean()),
                        "coverage_percent": 100 * coverage if np.isfinite(coverage) else None,
                        "stacked_share": found.stacked,
                        "calibrate_s": float(found.calibrate_s.mean()),
                    }
                )
    return lines
