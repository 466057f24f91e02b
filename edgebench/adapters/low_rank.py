"""What families of token-independent low-rank updates share: y = W x + B (A x).

A family says what A [r, d_in] and B [d_out, r] are at a site; its scaling is part of B.
"""

from __future__ import annotations

from torch import Tensor, nn

from edgebench.adapters.base import Adapter
from edgebench.adapters.sites import Site


class LowRankAdapter(Adapter):
    """An adapter whose update at each site is a pair of factors."""

    def factors(self, site: Site) -> tuple[Tensor, Tensor]:
        """A [r, d_in] and B [d_out, r] of a site."""
        raise NotImplementedError

    def update(self, site: Site, x: Tensor) -> Tensor:
        a, b = self.factors(site)
        return x @ a.T @ b.T

    def delta(self, site: Site) -> Tensor:
        a, b = self.factors(site)
        return b @ a

    def branch(self, site: Site) -> nn.Module:
        a, b = self.factors(site)
        return nn.Sequential(_linear(a), _linear(b))


def _linear(weight: Tensor) -> nn.Linear:
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    return layer
