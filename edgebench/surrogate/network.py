"""The network: one trunk, a vector a device, three heads. Natural logarithms of the targets.

    log ψ(s, device) = log work[device](s) + mean[device]
                       + spread[device] · head(trunk(standardised s, tag · vectors))

``work`` (``work.py``) is there for the metrics that add up over it, and 1 for others. ``tag`` is a
row of weights over devices (one-hot for a known device), so a mixture of devices is an input like
any other, and gradients flow to s and to the tag.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn

from edgebench.surrogate import work

#: Log of a feature is taken where it spans more than this factor (sequence lengths, bits).
LOG_SPAN = 8.0


class Scaling(nn.Module):
    """Features [..., F] to zero mean and unit spread, the wide ones by their logarithm first."""

    is_log: Tensor
    centre: Tensor
    spread: Tensor

    def __init__(self, n_features: int) -> None:
        super().__init__()
        self.register_buffer("is_log", torch.zeros(n_features, dtype=torch.bool))
        self.register_buffer("centre", torch.zeros(n_features))
        self.register_buffer("spread", torch.ones(n_features))

    def set_from(self, x: Tensor) -> None:
        """Take centre and spread from rows [N, F]; a constant feature gets spread 1."""
        low, high = x.min(0).values, x.max(0).values
        self.is_log.copy_((low >= 0) & ((high + 1) / (low + 1) > LOG_SPAN))
        z = self._bent(x)
        spread = z.std(0, correction=0)
        self.centre.copy_(z.mean(0))
        self.spread.copy_(torch.where(spread > 1e-9, spread, torch.ones_like(spread)))

    def _bent(self, x: Tensor) -> Tensor:
        # clamp: a gate can push a statistic below zero for a moment, where log1p has no value.
        return torch.where(self.is_log, torch.log1p(x.clamp_min(0.0)), x)

    def forward(self, x: Tensor) -> Tensor:
        result: Tensor = (self._bent(x) - self.centre) / self.spread
        return result


class SurrogateNet(nn.Module):
    """The network; shapes: s [B, F], tag [B, D] -> log predictions [B, M].

    Args:
        n_features: F. n_devices: D. n_metrics: M.
        width: of the hidden layers. tag_width: of a device's vector.
        worked: for each metric, whether it adds up over work; empty: none does.
    """

    mean: Tensor
    amplitude: Tensor
    rates: Tensor

    def __init__(
        self,
        n_features: int,
        n_devices: int,
        n_metrics: int,
        width: int = 96,
        tag_width: int = 8,
        worked: Sequence[bool] = (),
    ) -> None:
        super().__init__()
        self.worked = tuple(worked) if any(worked) else ()
        self.scaling = Scaling(n_features)
        self.tags = nn.Parameter(0.5 * torch.randn(n_devices, tag_width))
        self.trunk = nn.Sequential(
            nn.Linear(n_features + tag_width, width),
            nn.SiLU(),
            nn.Linear(width, width),
            nn.SiLU(),
        )
        self.heads = nn.Linear(width, n_metrics)
        # A linear road beside the trunk: most of what hardware does is additive.
        self.linear = nn.Linear(n_features, n_metrics, bias=False)
        self.linear_by_tag = nn.Linear(tag_width, n_features * n_metrics, bias=False)
        nn.init.zeros_(self.linear.weight)
        nn.init.zeros_(self.linear_by_tag.weight)
        self.register_buffer("mean", torch.zeros(n_devices, n_metrics))
        self.register_buffer("amplitude", torch.ones(n_devices, n_metrics))
        if self.worked:
            # All zero: no rows of this device had the metric, or it does not add up.
            self.register_buffer("rates", torch.zeros(n_devices, n_metrics, work.N_TERMS))

    def log_work(self, s: Tensor, tag: Tensor) -> Tensor:
        """Logarithm of the work's cost, [..., M]; of a mixture of devices their weighted mean."""
        if not self.worked:
            return s.new_zeros(())
        cost = torch.einsum("...t,dmt->...dm", work.terms(s), self.rates)
        level = torch.where(cost > 0, cost, torch.ones_like(cost)).log()
        result: Tensor = torch.einsum("...d,...dm->...m", tag, level)
        return result

    def forward(self, s: Tensor, tag: Tensor) -> Tensor:
        z = self.scaling(s)
        vector = tag @ self.tags
        bent = self.heads(self.trunk(torch.cat([z, vector], dim=-1)))
        slopes = self.linear_by_tag(vector).unflatten(-1, (bent.shape[-1], z.shape[-1]))
        straight = self.linear(z) + (slopes * z.unsqueeze(-2)).sum(-1)
        level = self.log_work(s, tag) + tag @ self.mean
        result: Tensor = level + (tag @ self.amplitude) * (bent + straight)
        return result
