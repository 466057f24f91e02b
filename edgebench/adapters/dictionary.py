"""The generic dictionary adapter: global atoms, and a coefficient of each at every site.

    y = W x + sum_j c_s[j] u_j (v_j . x),     u_j in R^{d_out}, v_j in R^{d_in}

Atoms are shared by all layers and by all sites of one shape; a site uses its ``active_atoms``
largest coefficients, and the others are zero. It stands for dictionary baselines of which nothing
is published (COLTAS; GloDiS-64 with 64 atoms), and claims to be none of them. Atoms and
coefficients are stored as int8 rows with an fp16 scale each.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgebench.adapters import storage
from edgebench.adapters.low_rank import LowRankAdapter
from edgebench.adapters.sites import Site


class Dictionary(LowRankAdapter):
    """Members: ``atoms``, ``active_atoms``, ``targets``."""

    kind = "DICTIONARY"

    def __init__(self, members: Mapping[str, Any], sites: Iterable[Site]) -> None:
        super().__init__(members, sites)
        atoms = members["atoms"]
        self.u, self.v = nn.ParameterDict(), nn.ParameterDict()
        for site in self.sites:
            if shape(site) not in self.u:
                for atom, d in ((self.u, site.d_out), (self.v, site.d_in)):
                    atom[shape(site)] = nn.Parameter(torch.randn(atoms, d) / math.sqrt(d))
        # Unlike each other from the start, so that the largest are a choice, and small.
        self.coefficients = nn.Parameter(0.1 * torch.randn(len(self.sites), atoms))

    def active(self, site: Site) -> Tensor:
        """The coefficients [atoms] of a site; at most ``active_atoms`` are not zero."""
        row = self.coefficients[self.sites.index(site)]
        if self.training:
            row = storage.rounded_rows(row[None], 8)[0]
        kept = torch.zeros_like(row)
        kept[row.detach().abs().topk(self.members["active_atoms"]).indices] = 1.0
        return row * kept

    def factors(self, site: Site) -> tuple[Tensor, Tensor]:
        row, u, v = self.active(site), self.u[shape(site)], self.v[shape(site)]
        if self.training:
            u, v = storage.rounded_rows(u, 8), storage.rounded_rows(v, 8)
        # At least one atom: a graph has no matrix without rows.
        kept = row.detach().abs().topk(max(1, int(row.count_nonzero()))).indices
        return v[kept] * row[kept, None], u[kept].T

    def stored(self) -> dict[str, Tensor]:
        kept = {"coefficients": torch.stack([self.active(site) for site in self.sites])}
        tensors: dict[str, Tensor] = {}
        for name, values in (self._parts() | kept).items():
            codes, scale = storage.to_rows(values.detach(), 8)
            tensors |= {name: codes, f"{name}.scale": scale}
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for name, values in self._parts().items():
            codes, scale = tensors[name], tensors[f"{name}.scale"]
            values.copy_(storage.from_rows(codes, scale, 8, values.shape[-1]))

    def _parts(self) -> dict[str, Tensor]:
        named = {f"u.{key}": atoms for key, atoms in self.u.items()}
        named |= {f"v.{key}": atoms for key, atoms in self.v.items()}
        return {**named, "coefficients": self.coefficients}


def shape(site: Site) -> str:
    """The name of a site's shape, ``<d_out>x<d_in>``."""
    return f"{site.d_out}x{site.d_in}"
