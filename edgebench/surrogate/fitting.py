"""Fitting a surrogate to a table: the network, the stack's scales, and leaving each device out."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import numpy as np
import torch
from numpy.typing import NDArray
from scipy.stats import spearmanr

from edgebench.errors import InputError
from edgebench.surrogate import stack, work
from edgebench.surrogate.calibration import At, fit_metric
from edgebench.surrogate.columns import METRICS
from edgebench.surrogate.leave_out import SIZES, Errors, LeaveOut
from edgebench.surrogate.model import Heads, Surrogate
from edgebench.surrogate.network import SurrogateNet
from edgebench.surrogate.training import TrainingOptions, train
from edgebench.surrogate.training_table import TrainingTable

Array = NDArray[np.float64]
Report = Callable[[str, float], None]

#: A device with fewer rows than this beside the samples says too little about errors.
MIN_OTHER_ROWS = 10
ROWS_A_DRAW = 200


@dataclass(frozen=True)
class FitOptions:
    """How a surrogate is fitted.

    Attributes:
        leave_out: train once more without each device; without it there are no intervals.
        leave_out_steps: steps of those trainings; None: as many.
        draws: calibrations of each left-out device, metric and sample size.
    """

    training: TrainingOptions = field(default_factory=TrainingOptions)
    leave_out: bool = True
    leave_out_steps: int | None = None
    draws: int = 12


@dataclass(frozen=True)
class Fit:
    """A fitted surrogate, what its errors on left-out devices were, and its features' range."""

    surrogate: Surrogate
    leave_out: LeaveOut
    range_: tuple[Array, Array]
    n_rows: int


def fit(table: TrainingTable, options: FitOptions, report: Report | None = None) -> Fit:
    """Fit a surrogate to measurements.

    Args:
        report: called with a step's name and the share that is done.

    Raises:
        InputError: fewer than two devices, or a device with fewer rows than features.
    """
    devices = table.devices
    if len(devices) < 2:
        raise InputError(
            f"the table has one device alone, {devices[0]}",
            fix="A surrogate for new devices learns from at least two; three or more are needed "
            "for prediction intervals.",
        )
    few = [d for d in devices if (table.device == d).sum() < 8]
    if few:
        raise InputError(
            f"there are fewer than 8 rows of {', '.join(few)}",
            fix="Measure more of them (`edgebench sample --n 100`), or take the device out.",
        )
    say = report or (lambda text, share: None)
    n_parts = 1 + (len(devices) if options.leave_out and len(devices) > 2 else 0)
    surrogate = _train(table, options.training, lambda s: say("training", s / n_parts))
    found: dict[str, dict[int, dict[str, tuple[Array, Array, Array]]]] = {}
    if n_parts > 1:
        steps = options.leave_out_steps or options.training.steps
        training = replace(options.training, steps=steps)
        for i, device in enumerate(devices):

            def leaving(share: float, i: int = i, device: str = device) -> None:
                say(f"leaving out {device}", (1 + i + share) / n_parts)

            without = _train(table.without(device), training, leaving)
            _errors_of(without, table.of(device), device, options, found)
    leave_out = LeaveOut(
        {
            metric: {
                k: Errors(
                    k,
                    {d: values[0] for d, values in by_device.items()},
                    {d: values[1] for d, values in by_device.items()},
                    {d: values[2] for d, values in by_device.items()},
                )
                for k, by_device in sizes.items()
                if len(by_device) > 1
            }
            for metric, sizes in found.items()
        }
    )
    return Fit(surrogate, leave_out, (table.x.min(0), table.x.max(0)), len(table.x))


def _train(
    table: TrainingTable, options: TrainingOptions, report: Callable[[float], None]
) -> Surrogate:
    devices, metrics = table.devices, table.metrics
    index = {name: i for i, name in enumerate(devices)}
    chosen = [METRICS.index(name) for name in metrics]
    net = train(
        torch.as_tensor(table.x, dtype=torch.float32),
        torch.tensor([index[str(name)] for name in table.device]),
        torch.as_tensor(np.log(table.y[:, chosen]), dtype=torch.float32),
        len(devices),
        options,
        report,
        [work.applies(table.features, name) for name in metrics],
    )
    return assemble(net, table)


def assemble(net: SurrogateNet, table: TrainingTable) -> Surrogate:
    """A surrogate from a trained network and the rows it was trained on."""
    devices, metrics = table.devices, table.metrics
    sources = []
    for name in metrics:
        there = np.isfinite(table.y[:, METRICS.index(name)])
        have = set(table.device[there].tolist())
        sources.append(tuple(i for i, device in enumerate(devices) if device in have))
    blank = [Heads(own, {}, 0.0) for own in sources]
    surrogate = Surrogate(net, table.features, devices, metrics, blank)
    reference = table.x
    if len(reference) > 4000:  # enough for means; the same rows every time
        reference = reference[np.linspace(0, len(reference) - 1, 4000).astype(int)]
    heads = []
    for name, own in zip(metrics, sources, strict=True):
        logs, z, mean = surrogate.at(name, reference)
        scales = {space: stack.learn_scale(logs, z, space) for space in stack.SPACES}
        heads.append(Heads(own, scales, float(mean.min())))
    surrogate.heads = tuple(heads)
    return surrogate


def _errors_of(
    without: Surrogate,
    rows: TrainingTable,
    device: str,
    options: FitOptions,
    found: dict[str, dict[int, dict[str, tuple[Array, Array, Array]]]],
) -> None:
    """Calibrate for a left-out device with k of its rows, many times; add to ``found``."""
    for name in without.metrics:
        y = rows.y[:, METRICS.index(name)]
        there = np.flatnonzero(np.isfinite(y))
        at = At.of(without, name, rows.x)
        for k in SIZES:
            if len(there) < k + MIN_OTHER_ROWS:
                continue
            rng = np.random.default_rng([options.training.seed, k])
            errors, loo, ranks = [], [], []
            n_others = min(ROWS_A_DRAW, len(there) - k)
            for _ in range(options.draws):
                order = rng.permutation(there)
                chosen, others = order[:k], order[k : k + n_others]
                fitted = fit_metric(at.rows(chosen), y[chosen])
                predicted = at.rows(others).predict(fitted)
                errors.append(np.log(y[others]) - np.log(np.maximum(predicted, 1e-3 * y[others])))
                loo.append(fitted.loo_log_rms)
                ranks.append(_rank_correlation(predicted, y[others]))
            found.setdefault(name, {}).setdefault(k, {})[device] = (
                np.array(errors),
                np.array(loo, dtype=np.float64),
                np.array(ranks),
            )


def _rank_correlation(predicted: Array, y: Array) -> float:
    """Spearman's; 0 where all predictions, or all measurements, are alike."""
    if np.ptp(predicted) == 0 or np.ptp(y) == 0:
        return 0.0
    return float(spearmanr(predicted, y).statistic)
