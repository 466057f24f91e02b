"""LILAC: LoRA of rank 4 whose factors are mixed from one dictionary of 64 atoms, in 8 bits.

    A_s = C_s D_in,   B_s = (E_s D_out)^T,   y = W x + (alpha / r) B_s A_s x

D_in [64, d_in] and D_out [64, d_out] are shared by all layers and by all sites of that width (a
square site reads both from one dictionary); C_s, E_s [r, 64] are a site's coefficients. All is
stored as int8 rows with an fp16 scale each.
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


class Lilac(LowRankAdapter):
    """Members: ``rank``, ``alpha``, ``atoms``, ``targets``."""

    kind = "LILAC"

    def __init__(self, members: Mapping[str, Any], sites: Iterable[Site]) -> None:
        super().__init__(members, sites)
        rank, atoms, count = members["rank"], members["atoms"], len(self.sites)
        widths = sorted({width for site in self.sites for width in (site.d_in, site.d_out)})
        self.dictionaries = nn.ParameterDict(
            {str(d): nn.Parameter(torch.randn(atoms, d) / math.sqrt(d)) for d in widths}
        )
        self.down = nn.Parameter(torch.randn(count, rank, atoms) / math.sqrt(atoms))
        self.up = nn.Parameter(torch.zeros(count, rank, atoms))

    def factors(self, site: Site) -> tuple[Tensor, Tensor]:
        position = self.sites.index(site)
        parts = [
            self.down[position],
            self.dictionaries[str(site.d_in)],
            self.up[position],
            self.dictionaries[str(site.d_out)],
        ]
        if self.training:
            parts = [storage.rounded_rows(part, 8) for part in parts]
        c, d_in, e, d_out = parts
        scale = self.members["alpha"] / self.members["rank"]
        return c @ d_in, (e @ d_out).T * scale

    def stored(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for name, values in self._parts().items():
            codes, scale = storage.to_rows(values.detach(), 8)
            tensors |= {name: codes, f"{name}.scale": scale}
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for name, values in self._parts().items():
            codes, scale = tensors[name], tensors[f"{name}.scale"]
            values.copy_(storage.from_rows(codes, scale, 8, values.shape[-1]))

    def _parts(self) -> dict[str, Tensor]:
        named = {f"dictionary.{width}": atoms for width, atoms in self.dictionaries.items()}
        return {**named, "down": self.down, "up": self.up}
