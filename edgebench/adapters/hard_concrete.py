"""The hard-concrete gate: a random number in [0, 1] with mass at both ends, and a gradient.

Louizos, Welling and Kingma, "Learning Sparse Neural Networks through L0 Regularization", ICLR 2018,
arXiv:1712.01312, equations 10 to 13. With u uniform in (0, 1), a temperature beta and a stretch
(gamma, zeta) with gamma < 0 < 1 < zeta:

    s = sigmoid((log u - log(1 - u) + log_alpha) / beta)     the binary concrete
    z = min(1, max(0, s (zeta - gamma) + gamma))             stretched, then cut: the gate
    P(z != 0) = sigmoid(log_alpha - beta log(-gamma / zeta))
    test time: z = min(1, max(0, sigmoid(log_alpha) (zeta - gamma) + gamma))

``expected`` is differentiable in log_alpha, so that counts of what a model keeps are as well: a
count is never rounded, and never taken without a gradient.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn

#: What the paper uses in all its experiments.
TEMPERATURE = 2 / 3
STRETCH = (-0.1, 1.1)


@dataclass(frozen=True)
class Concrete:
    """The shape of the distribution: temperature beta, and the stretch (gamma, zeta).

    Raises:
        ValueError: beta is not positive, or the stretch does not hold [0, 1] inside.
    """

    temperature: float = TEMPERATURE
    low: float = STRETCH[0]
    high: float = STRETCH[1]

    def __post_init__(self) -> None:
        if not self.temperature > 0:
            raise ValueError(f"the temperature {self.temperature} is not above 0")
        if not (self.low < 0 and self.high > 1):
            raise ValueError(f"the stretch ({self.low}, {self.high}) does not hold [0, 1] inside")


class HardConcrete(nn.Module):
    """Gates of any shape, each with its own log_alpha.

    Args:
        shape: shape of the gates.
        start: probability that a gate is not 0 before training, in (0, 1).
        concrete: the distribution.
    """

    def __init__(self, *shape: int, start: float = 0.9, concrete: Concrete | None = None) -> None:
        super().__init__()
        self.concrete = concrete or Concrete()
        self.log_alpha = nn.Parameter(torch.full(shape, math.log(start / (1 - start)) + self._bias))

    @property
    def _bias(self) -> float:
        """beta log(-gamma / zeta): what log_alpha must exceed for P(z != 0) above one half."""
        return self.concrete.temperature * math.log(-self.concrete.low / self.concrete.high)

    def forward(self) -> Tensor:
        """The gates: a sample in train mode, what is used at test time in eval mode."""
        return self.sample() if self.training else self.value()

    def sample(self) -> Tensor:
        """One draw, differentiable in log_alpha."""
        tiny = torch.finfo(self.log_alpha.dtype).eps
        u = torch.rand_like(self.log_alpha).clamp(tiny, 1 - tiny)
        s = torch.sigmoid((u.log() - (-u).log1p() + self.log_alpha) / self.concrete.temperature)
        return self._stretched(s)

    def value(self) -> Tensor:
        """The gates without noise."""
        return self._stretched(torch.sigmoid(self.log_alpha))

    def expected(self) -> Tensor:
        """Each gate's probability of not being 0, differentiable."""
        return torch.sigmoid(self.log_alpha - self._bias)

    def _stretched(self, s: Tensor) -> Tensor:
        low, high = self.concrete.low, self.concrete.high
        return (s * (high - low) + low).clamp(0, 1)


def fix(gates: HardConcrete, open_: Tensor) -> None:
    """Fix gates: exactly 1 where ``open_`` is true, exactly 0 elsewhere, in place."""
    with torch.no_grad():
        gates.log_alpha.copy_(torch.where(open_, SHUT, -SHUT))


#: A log_alpha at which a gate is 1, and at minus which it is 0, under any usable stretch.
SHUT = 20.0
