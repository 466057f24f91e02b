"""The surrogate: ψ(s, device) -> (E, L, P), differentiable in s, batched, on any torch device.

A ``Surrogate`` is the trained network with what is needed to use it: the names of its features,
devices and heads, and the scales of its stack. A calibrated new device is added to it as one more
tag (``with_device``), so that a calibration which changes ranks is part of ψ itself, and
``apply_calibration`` has only α and β left to apply.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

from edgebench.errors import InputError
from edgebench.surrogate import stack as stacking
from edgebench.surrogate.network import SurrogateNet
from edgebench.surrogate.stack import Scale, Space

Array = NDArray[np.float64]


@dataclass(frozen=True)
class Heads:
    """One metric: which devices it was trained on, and its stack's scales over those.

    Attributes:
        sources: indices of the devices whose rows had this metric.
        scales: per space; arrays over ``sources``.
        lowest: the least prediction of the uncalibrated ψ over the training rows.
    """

    sources: tuple[int, ...]
    scales: dict[Space, Scale]
    lowest: float


@dataclass(frozen=True)
class Added:
    """A new device's way of one metric: a stack, or None for the sources' mean tag."""

    stack: stacking.Stack | None


class Surrogate(nn.Module):
    """ψ. ``surrogate(stats, hardware)`` -> predictions [B, M] in J, ms, W, as ``metrics`` says.

    Args of the call:
        stats: [B, F] features in the order of ``features``, or [F]; any float type.
        hardware: a device's tag, one tag a row, or weights over ``devices`` [D] or [B, D].
    """

    def __init__(
        self,
        net: SurrogateNet,
        features: Sequence[str],
        devices: Sequence[str],
        metrics: Sequence[str],
        heads: Sequence[Heads],
    ) -> None:
        super().__init__()
        self.net = net
        self.features = tuple(features)
        self.devices = tuple(devices)
        self.metrics = tuple(metrics)
        self.heads = tuple(heads)
        self.digest = ""
        self.added: dict[str, dict[str, Added]] = {}
        self._selected = tuple(range(len(self.metrics)))
        for parameter in self.parameters():
            parameter.requires_grad_(False)

    # ------------------------------------------------------------------ what it can be asked

    @property
    def selected(self) -> tuple[str, ...]:
        """The heads that a call returns, in order."""
        return tuple(self.metrics[i] for i in self._selected)

    def select(self, metrics: Sequence[str]) -> Surrogate:
        """Return these heads alone from now on.

        Raises:
            InputError: a head is absent, since no row of the training table had its figure.
        """
        absent = [name for name in metrics if name not in self.metrics]
        if absent:
            raise InputError(
                f"the surrogate has no head {', '.join(absent)}: no row that it was trained on had "
                "such a figure",
                fix=f"Ask for what it has (metrics = {list(self.metrics)}), or fit it again to a "
                "table that has them.",
            )
        self._selected = tuple(self.metrics.index(name) for name in metrics)
        return self

    def with_device(self, tag: str, added: dict[str, Added]) -> Surrogate:
        """Know a new device by its tag."""
        self.added[tag] = dict(added)
        return self

    # ------------------------------------------------------------------ prediction

    def forward(self, stats: Tensor, hardware: str | Sequence[str] | Tensor) -> Tensor:
        flat = stats.ndim == 1
        s = stats.unsqueeze(0) if flat else stats
        if s.ndim != 2 or s.shape[1] != len(self.features):
            raise InputError(
                f"the statistics have shape {tuple(stats.shape)}",
                fix=f"They must be [rows, {len(self.features)}]: {', '.join(self.features)}.",
            )
        parameter = self.net.tags
        s = s.to(device=parameter.device, dtype=parameter.dtype)
        columns = [self._head(i, s, hardware) for i in self._selected]
        predictions = torch.stack(columns, dim=-1)
        return predictions[0] if flat else predictions

    def _head(self, metric: int, s: Tensor, hardware: str | Sequence[str] | Tensor) -> Tensor:
        if isinstance(hardware, Tensor):
            tag = hardware.to(s)
            tag = tag.expand(len(s), -1) if tag.ndim == 1 else tag
            return torch.exp(self.net(s, tag)[:, metric])
        if isinstance(hardware, str):
            return self._tagged(metric, s, hardware)
        if len(hardware) != len(s):
            raise InputError(
                f"there are {len(hardware)} device tags for {len(s)} rows",
                fix="Give one tag, or one a row.",
            )
        result = s.new_zeros(len(s))
        for tag_name in dict.fromkeys(hardware):
            rows = torch.tensor([name == tag_name for name in hardware], device=s.device)
            result = result.masked_scatter(rows, self._tagged(metric, s[rows], tag_name))
        return result

    def _tagged(self, metric: int, s: Tensor, tag: str) -> Tensor:
        name = self.metrics[metric]
        if tag in self.added:
            if name not in self.added[tag]:
                raise InputError(
                    f"the calibration of {tag} has no {name}",
                    fix="Measure it there, and calibrate again.",
                )
            added = self.added[tag][name]
            return (
                self.mean_tag(metric, s)
                if added.stack is None
                else self._stacked(metric, s, added.stack)
            )
        if tag not in self.devices:
            known = ", ".join((*self.devices, *self.added))
            raise InputError(
                f"the surrogate does not know the device {tag!r}",
                fix=f"It knows {known}. Calibrate it for a new one with `edgebench surrogate "
                "calibrate`.",
            )
        index = self.devices.index(tag)
        if index not in self.heads[metric].sources:
            raise InputError(
                f"the training table had no {name} of the device {tag}",
                fix="Ask for its other heads, or fit to a table that has it.",
            )
        one_hot = s.new_zeros(len(self.devices))
        one_hot[index] = 1.0
        return torch.exp(self.net(s, one_hot.expand(len(s), -1))[:, metric])

    def mean_tag(self, metric: int, s: Tensor) -> Tensor:
        """ψ of a device about which nothing is known: the mean of the sources' tags; [B]."""
        sources = list(self.heads[metric].sources)
        tag = s.new_zeros(len(self.devices))
        tag[sources] = 1.0 / len(sources)
        return torch.exp(self.net(s, tag.expand(len(s), -1))[:, metric])

    def log_sources(self, metric: int, s: Tensor) -> Tensor:
        """Logarithms of each source's prediction, [B, sources]."""
        sources = list(self.heads[metric].sources)
        one_hot = torch.eye(len(self.devices), dtype=s.dtype, device=s.device)[sources]
        rows = s.unsqueeze(1).expand(-1, len(sources), -1)
        tags = one_hot.expand(len(s), -1, -1)
        result: Tensor = self.net(rows, tags)[..., metric]
        return result

    def _stacked(self, metric: int, s: Tensor, stack: stacking.Stack) -> Tensor:
        """``stacking.predict`` in torch; a test holds the two together."""
        scales = self.heads[metric].scales
        logs, z = self.log_sources(metric, s), self.net.scaling(s)

        def constant(values: Array) -> Tensor:
            return torch.as_tensor(np.asarray(values), dtype=s.dtype, device=s.device)

        values: dict[Space, Tensor] = {}
        parts: dict[Space, stacking.Part] = {"linear": stack.linear, "log": stack.log}
        for space, part in parts.items():
            scale = scales[space]
            relative = logs - constant(scale.level)
            relative = relative.exp() if space == "linear" else relative
            mean = relative.mean(-1)
            theta = constant(part.theta)
            n = relative.shape[-1]
            centre = 1.0 if space == "linear" else 0.0
            values[space] = (
                mean
                + part.intercept
                + (mean - centre) * theta[0]
                + (relative - mean.unsqueeze(-1)) @ (constant(scale.mix) @ theta[1 : 1 + n])
                + z @ (constant(scale.feature_weight * scale.spread) * theta[1 + n :])
            )
        floor = stacking.FLOOR
        linear = floor * functional.softplus(values["linear"] / floor)
        mixed = stack.linear.share * linear + stack.log.share * values["log"].exp()
        return stack.level * mixed

    # ------------------------------------------------------------------ for calibration, in NumPy

    def at(self, metric: str, x: Array) -> tuple[Array, Array, Array]:
        """For rows [N, F]: log sources [N, S], standardised features [N, F], ψ of the mean tag."""
        i = self.metrics.index(metric)
        with torch.no_grad():
            s = torch.as_tensor(x, dtype=self.net.tags.dtype, device=self.net.tags.device)
            found = self.log_sources(i, s), self.net.scaling(s), self.mean_tag(i, s)
        logs, z, mean = (value.double().cpu().numpy() for value in found)
        return logs, z, mean
