"""How wrong a calibration of a new device is, learned by leaving each training device out.

For every training device a surrogate is trained without it; it is calibrated with k of the
device's rows, many times, and compared with others of its rows. The errors of all devices, each
with the same weight, give

- **prediction intervals**, by conformal calibration: an error is divided by how well that
  calibration fits its own samples (leave-one-out, shrunk to the usual), and the quantile of these
  scores over devices is multiplied back for a new one. Scores within a device are not
  independent, so the pooled distribution over groups is used (Dunn, Wasserman, Ramdas 2022,
  doi:10.1080/01621459.2022.2060112); its guarantee is asymptotic in the number of *devices*;
- **the measured coverage**: each device's quantile taken from the other devices alone;
- **what is usual**, against which a new device can be found unlike.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

#: Weight of the usual error, in samples, when a calibration's own error is estimated.
SHRINK = 5.0

#: Sample sizes that are tried; a calibration takes the largest that is not above its own.
SIZES = (3, 5, 10, 20)


@dataclass(frozen=True)
class Errors:
    """Errors of one metric at one sample size.

    Attributes:
        log_errors: device -> [draws, rows] natural logarithms of measured over predicted.
        loo: device -> [draws] leave-one-out error of each draw's own samples.
        spearman: device -> [draws] rank correlation over the device's other rows.
    """

    k: int
    log_errors: dict[str, Array]
    loo: dict[str, Array]
    spearman: dict[str, Array]

    @property
    def typical(self) -> float:
        """The median over devices of their median leave-one-out error."""
        return float(np.median([np.median(values) for values in self.loo.values()]))

    def half_width(self, loo_log_rms: float, k: int, coverage: float) -> float:
        """Half the width of a new forward pass's interval, on the log scale."""
        return float(self._scale(np.array([loo_log_rms]), k)[0]) * self._quantile(coverage, None)

    def loo_quantile(self, share: float) -> float:
        """A quantile of leave-one-out errors, each device with the same weight."""
        return _quantile(list(self.loo.values()), share)

    def coverage(self, coverage: float) -> dict[str, float]:
        """device -> the share of its rows within intervals made from the other devices' errors."""
        found = {}
        for device, errors in self.log_errors.items():
            widths = self._scale(self.loo[device], self.k) * self._quantile(coverage, device)
            found[device] = float((np.abs(errors) <= widths[:, None]).mean())
        return found

    def _scale(self, loo: Array, k: int) -> Array:
        return np.asarray(np.sqrt((k * loo**2 + SHRINK * self.typical**2) / (k + SHRINK)))

    def _quantile(self, share: float, but: str | None) -> float:
        scores = [
            (np.abs(errors) / self._scale(self.loo[device], self.k)[:, None]).ravel()
            for device, errors in self.log_errors.items()
            if device != but
        ]
        return _quantile(scores, share)


def _quantile(groups: list[Array], share: float) -> float:
    """The quantile of pooled values in which each group has the same weight."""
    values = np.concatenate(groups)
    weights = np.concatenate([np.full(len(group), 1 / len(group)) for group in groups])
    order = np.argsort(values)
    reached = np.cumsum(weights[order]) / len(groups)
    index = min(int(np.searchsorted(reached, share)), len(values) - 1)
    return float(values[order][index])


@dataclass(frozen=True)
class LeaveOut:
    """Errors by metric and sample size; empty where no device could be left out."""

    by_metric: dict[str, dict[int, Errors]]

    def errors(self, metric: str, k: int) -> Errors | None:
        """Those of the largest size tried that is not above k; the smallest, below all."""
        sizes = self.by_metric.get(metric, {})
        if not sizes:
            return None
        return sizes[max((size for size in sizes if size <= k), default=min(sizes))]
