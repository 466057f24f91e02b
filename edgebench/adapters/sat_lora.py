"""SAT-LoRA: LoRA of rank 8 on every projection, its factors in int8, optionally one for all layers.

    y = W x + (alpha / r) B A x,     A in R^{r x d_in}, B in R^{d_out x r}, r = 8, alpha = 16

on q, k, v, o and both feed-forward matrices. Stored as int8 rows with an fp16 scale each, stacked
over the layers: A [L, r, d_in], B [L, d_out, r], where L = 1 if all layers share them. Training
rounds in the forward pass, and the gradient goes straight through.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgebench.adapters import storage
from edgebench.adapters.low_rank import LowRankAdapter
from edgebench.adapters.sites import Site, depth


class SatLora(LowRankAdapter):
    """Members: ``rank``, ``alpha``, ``share_layers``, ``targets``."""

    kind = "SAT_LORA"

    def __init__(self, members: Mapping[str, Any], sites: Iterable[Site]) -> None:
        super().__init__(members, sites)
        layers = 1 if members["share_layers"] else depth(self.sites)
        rank = members["rank"]
        self.a, self.b = nn.ParameterDict(), nn.ParameterDict()
        for site in self.sites:
            if site.role not in self.a:
                noise = torch.randn(layers, rank, site.d_in) / math.sqrt(site.d_in)
                self.a[site.role] = nn.Parameter(noise)
                self.b[site.role] = nn.Parameter(torch.zeros(layers, site.d_out, rank))

    def factors(self, site: Site) -> tuple[Tensor, Tensor]:
        layer = 0 if self.members["share_layers"] else site.layer
        a, b = self.a[site.role][layer], self.b[site.role][layer]
        if self.training:
            a, b = storage.rounded_rows(a, 8), storage.rounded_rows(b, 8)
        return a, b * (self.members["alpha"] / self.members["rank"])

    def stored(self) -> dict[str, Tensor]:
        tensors: dict[str, Tensor] = {}
        for which, stacks in (("a", self.a), ("b", self.b)):
            for role, stack in stacks.items():
                codes, scale = storage.to_rows(stack.detach(), 8)
                tensors |= {f"{role}.{which}": codes, f"{role}.{which}.scale": scale}
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        for which, stacks in (("a", self.a), ("b", self.b)):
            for role, stack in stacks.items():
                codes, scale = tensors[f"{role}.{which}"], tensors[f"{role}.{which}.scale"]
                stack.copy_(storage.from_rows(codes, scale, 8, stack.shape[-1]))
