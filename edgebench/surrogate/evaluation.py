"""How well a surrogate predicts a device that it was calibrated for with k samples."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from scipy.stats import spearmanr

from edgebench.errors import InputError
from edgebench.surrogate.calibration import COVERAGE, At, Method, fit_metric
from edgebench.surrogate.columns import METRICS
from edgebench.surrogate.leave_out import LeaveOut
from edgebench.surrogate.model import Surrogate
from edgebench.surrogate.training_table import TrainingTable

Array = NDArray[np.float64]

#: (generator, k, indices of the rows that may be taken) -> indices of the k samples.
Draw = Callable[[np.random.Generator, int, NDArray[np.intp]], NDArray[np.intp]]


@dataclass(frozen=True)
class Score:
    """Figures of one device and metric over draws of k samples; errors on rows not in the draw.

    Attributes:
        spearman, median_ape, mean_ape: [draws]; the last two are shares, not percent.
        coverage: [draws] share within the 90 % interval; NaN where there is none.
        calibrate_s: [draws] wall time of calibrating. stacked: share of draws that took the stack.
    """

    device: str
    metric: str
    k: int
    spearman: Array
    median_ape: Array
    mean_ape: Array
    coverage: Array
    calibrate_s: Array
    stacked: float


def random_draw(rng: np.random.Generator, k: int, pool: NDArray[np.intp]) -> NDArray[np.intp]:
    """k rows, each set equally likely."""
    return rng.choice(pool, k, replace=False)


def score(
    surrogate: Surrogate,
    leave_out: LeaveOut,
    table: TrainingTable,
    metric: str,
    k: int,
    *,
    draws: int = 30,
    seed: int = 0,
    draw: Draw = random_draw,
    methods: tuple[Method, ...] = ("scale-shift", "stack"),
    at: At | None = None,
    test: NDArray[np.intp] | None = None,
) -> Score:
    """Calibrate with k rows of a device's table, and predict its others; ``draws`` times.

    Args:
        test: rows that are predicted and never drawn; None: all that are not in the draw.
        at: ``At.of(surrogate, metric, table.x)``, where it is known already.

    Raises:
        InputError: the table has several devices, or too few rows.
    """
    if len(table.devices) != 1:
        raise InputError("the table is of several devices", fix="Evaluate one: --device NAME.")
    if metric not in surrogate.metrics:
        raise InputError(
            f"the surrogate has no head {metric}", fix=f"It has {', '.join(surrogate.metrics)}."
        )
    y = table.y[:, METRICS.index(metric)]
    rows = np.flatnonzero(np.isfinite(y))
    if len(rows) < k + 5:
        raise InputError(
            f"{table.devices[0]} has {len(rows)} rows with {metric}",
            fix=f"With {k} samples it takes at least {k + 5}.",
        )
    at = At.of(surrogate, metric, table.x) if at is None else at
    errors = leave_out.errors(metric, k)
    pool = rows if test is None else np.setdiff1d(rows, test)
    figures = []
    stacked = 0
    rng = np.random.default_rng(seed)
    for _ in range(draws):
        chosen = draw(rng, k, pool)
        others = np.setdiff1d(rows if test is None else np.intersect1d(rows, test), chosen)
        started = time.perf_counter()
        fitted = fit_metric(At.of(surrogate, metric, table.x[chosen]), y[chosen], methods)
        took = time.perf_counter() - started
        stacked += fitted.method == "stack"
        predicted, truth = at.rows(others).predict(fitted), y[others]
        ape = np.abs(predicted / truth - 1)
        coverage = np.nan
        if errors is not None and fitted.loo_log_rms is not None:
            width = errors.half_width(fitted.loo_log_rms, k, COVERAGE)
            off = np.abs(np.log(truth) - np.log(np.maximum(predicted, 1e-9 * truth)))
            coverage = float((off <= width).mean())
        rank = 0.0
        if np.ptp(predicted) > 0 and np.ptp(truth) > 0:
            rank = float(spearmanr(predicted, truth).statistic)
        figures.append((rank, np.median(ape), np.mean(ape), coverage, took))
    ranks, medians, means, covered, seconds = np.array(figures, dtype=np.float64).T
    return Score(
        table.devices[0], metric, k, ranks, medians, means, covered, seconds, stacked / draws
    )
