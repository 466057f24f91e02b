"""Calibrating a surrogate for a new device from k samples, one metric after the other.

Two ways are fitted: the papers' scale and shift (``scale_shift.py``), which keeps ranks, and the
stack (``stack.py``), which may change them. Each sample is left out in turn and predicted from the
others, and the errors (root mean square of log ratios) are compared: the stack is taken unless its
error is more than ``MARGIN`` times the line's.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from edgebench.errors import InputError
from edgebench.surrogate import scale_shift, stack
from edgebench.surrogate.columns import METRICS
from edgebench.surrogate.leave_out import Errors, LeaveOut
from edgebench.surrogate.model import Added, Surrogate
from edgebench.surrogate.training_table import TrainingTable

Array = NDArray[np.float64]
Method = Literal["stack", "scale-shift"]
METHODS: tuple[Method, ...] = ("scale-shift", "stack")

#: Prediction intervals hold this share of new forward passes.
COVERAGE = 0.9

#: How much worse the stack must look than the line before the line is taken. Five leave-one-out
#: errors are a weak witness, and the stack is near the sources' mean anyway where samples say
#: little. Leaving out each training device of HELP's split, 1.25 was best with 5 and 10 samples.
MARGIN = 1.25

#: When a sample is an outlier; see ``outliers``.
OUTLIER_FACTOR = 3.0
OUTLIER_DEVIATIONS = 5.0

#: How far outside the training range, as a share of it, a sample's feature may lie.
RANGE_SLACK = 0.05

#: A device whose leave-one-out error exceeds this quantile of the left-out devices' is unlike them.
UNLIKE_QUANTILE = 0.95


@dataclass(frozen=True)
class Fitted:
    """One metric's calibration.

    Attributes:
        method: which was taken. loo: each method's leave-one-out log error (empty below 3 samples).
        line: α and β; 1 and 0 where a stack is in use.
        stack: the stack, or None. n_set_aside: samples that were left out as outliers.
    """

    method: Method
    loo: dict[Method, float]
    line: scale_shift.ScaleShift
    stack: stack.Stack | None
    n_set_aside: int = 0

    @property
    def loo_log_rms(self) -> float | None:
        return self.loo.get(self.method)


@dataclass(frozen=True)
class At:
    """What the surrogate says at some rows, for one metric; see ``Surrogate.at``."""

    logs: Array
    z: Array
    mean: Array
    scales: dict[stack.Space, stack.Scale]
    lowest: float

    def rows(self, index: Array | NDArray[np.intp]) -> At:
        return At(self.logs[index], self.z[index], self.mean[index], self.scales, self.lowest)

    @classmethod
    def of(cls, surrogate: Surrogate, metric: str, x: Array) -> At:
        head = surrogate.heads[surrogate.metrics.index(metric)]
        return cls(*surrogate.at(metric, x), head.scales, head.lowest)

    def predict(self, fitted: Fitted) -> Array:
        """Calibrated predictions, in the metric's unit."""
        if fitted.stack is None:
            return fitted.line(self.mean)
        return stack.predict(fitted.stack, self.logs, self.z, self.scales)


def fit_metric(at: At, y: Array, methods: Sequence[Method] = METHODS) -> Fitted:
    """Calibrate one metric to k samples, by the better of the methods.

    Args:
        at: what the surrogate says at the samples. y: [k] measurements, positive.
    """
    sound = ~outliers(at.mean, y)
    if not sound.all():
        kept = np.flatnonzero(sound)
        found = fit_metric(at.rows(kept), y[kept], methods)
        return replace(found, n_set_aside=found.n_set_aside + len(y) - len(kept))
    if len(y) < stack.MIN_SAMPLES:
        return _fit("scale-shift", at, y, {})
    loo: dict[Method, float] = {}
    for method in methods:
        errors = []
        for i in range(len(y)):
            others = np.delete(np.arange(len(y)), i)
            fitted = _fit(method, at.rows(others), y[others], {})
            predicted = at.rows(np.array([i])).predict(fitted)[0]
            errors.append(np.log(y[i] / max(predicted, 1e-3 * y[i])))
        loo[method] = float(np.sqrt(np.mean(np.square(errors))))
    return _fit(_better(loo), at, y, loo)


def _better(loo: dict[Method, float]) -> Method:
    if len(loo) == 1:
        return next(iter(loo))
    return "stack" if loo["stack"] <= MARGIN * loo["scale-shift"] else "scale-shift"


def outliers(prediction: Array, y: Array) -> NDArray[np.bool_]:
    """Samples that no model of the device should be bent to: [k].

    A run that something disturbed can take ten times as long (one in a hundred of the Raspberry Pi
    encoder latencies of Hardware-Aware Transformers does). Of five samples or more, those are set
    aside whose log ratio to the uncalibrated prediction is off the median by more than a factor of
    ``OUTLIER_FACTOR`` and by more than ``OUTLIER_DEVIATIONS`` robust deviations of the others; one
    in five at most, and where there are more than that, none: then it is the device that is odd.
    """
    none = np.zeros(len(y), dtype=np.bool_)
    if len(y) < 5:
        return none
    ratio = np.log(y) - np.log(prediction)
    off = np.abs(ratio - np.median(ratio))
    usual = 1.4826 * float(np.median(off))
    odd = (off > np.log(OUTLIER_FACTOR)) & (off > OUTLIER_DEVIATIONS * usual)
    return odd if odd.sum() <= len(y) // 5 else none


def _fit(method: Method, at: At, y: Array, loo: dict[Method, float]) -> Fitted:
    if method == "stack":
        fitted = stack.fit(at.logs, at.z, y, at.scales)
        return Fitted("stack", loo, scale_shift.ScaleShift(1.0, 0.0), fitted)
    return Fitted("scale-shift", loo, scale_shift.fit(at.mean, y, at.lowest), None)


@dataclass(frozen=True)
class Calibrated:
    """A calibration of one device: each metric's, intervals, and warnings by name."""

    device: str
    n_samples: int
    metrics: dict[str, Fitted]
    half_width: dict[str, float]
    warnings: tuple[str, ...]

    def added(self) -> dict[str, Added]:
        """What ``Surrogate.with_device`` needs."""
        return {name: Added(fitted.stack) for name, fitted in self.metrics.items()}


def calibrate(
    surrogate: Surrogate,
    samples: TrainingTable,
    leave_out: LeaveOut,
    *,
    range_: tuple[Array, Array] | None = None,
) -> Calibrated:
    """Calibrate for the device of the samples.

    Args:
        samples: rows of one device, with the surrogate's features.
        leave_out: how wrong calibrations of left-out training devices were.
        range_: the least and largest value of each feature in training.

    Raises:
        InputError: samples of several devices, none for any head, or other features.
    """
    if len(samples.devices) != 1:
        raise InputError(
            f"the samples are of several devices: {', '.join(samples.devices)}",
            fix="Calibrate one at a time: --device NAME.",
        )
    if samples.features != surrogate.features:
        raise InputError(
            f"the samples have the features {', '.join(samples.features)}, the surrogate "
            f"{', '.join(surrogate.features)}",
            fix="Give the same ones.",
        )
    (device,) = samples.devices
    fitted: dict[str, Fitted] = {}
    widths: dict[str, float] = {}
    warnings: set[str] = set()
    counts = []
    for name in surrogate.metrics:
        y = samples.y[:, METRICS.index(name)]
        there = np.isfinite(y)
        if not there.any():
            continue
        k = int(there.sum())
        counts.append(k)
        fitted[name] = fit_metric(At.of(surrogate, name, samples.x[there]), y[there])
        errors = leave_out.errors(name, k)
        loo = fitted[name].loo_log_rms
        if fitted[name].n_set_aside:
            warnings.add("sample-set-aside")
        if loo is None:
            warnings.add("too-few-samples")
        if errors is None or loo is None:
            warnings.add("no-interval")
            continue
        widths[name] = errors.half_width(loo, k, COVERAGE)
        if is_unlike(errors, loo):
            warnings.add("device-unlike-training")
    if not fitted:
        raise InputError(
            f"the samples have no figure for {', '.join(surrogate.metrics)}",
            fix="Measure what the surrogate has heads for.",
        )
    if range_ is not None:
        slack = RANGE_SLACK * (range_[1] - range_[0])
        if ((samples.x < range_[0] - slack) | (samples.x > range_[1] + slack)).any():
            warnings.add("features-outside-training")
    return Calibrated(device, max(counts), fitted, widths, tuple(sorted(warnings)))


def is_unlike(errors: Errors, loo_log_rms: float) -> bool:
    """Whether a device's samples fit worse than nearly all of left-out training devices'."""
    return bool(loo_log_rms > errors.loo_quantile(UNLIKE_QUANTILE))
