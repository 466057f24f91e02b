"""The generic low-rank representation edit, on each layer's output h.

    h' = h + R^T (W h + b - R h),     R, W in R^{r x d}, b in R^r

The form of LoReFT (Wu et al., arXiv:2404.03592), whose R has orthonormal rows; training starts from
such an R. It stands for the ReFT kind of baseline (ReFT-LoRe), of which nothing is published here,
and claims no more than the formula. Every position is edited alike. It changes the residual stream,
not a weight's output, so it can't be folded into a weight. Stored as int8 rows, b in fp16.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgebench.adapters import storage
from edgebench.adapters.base import Adapter
from edgebench.adapters.sites import Site, depth


class RepresentationEdit(Adapter):
    """Members: ``rank``, ``targets`` (``hidden``)."""

    kind = "REPRESENTATION_EDIT"
    edits_output = True

    def __init__(self, members: Mapping[str, Any], sites: Iterable[Site]) -> None:
        super().__init__(members, sites)
        layers, rank, d = depth(self.sites), members["rank"], self.sites[0].d_in
        start = torch.stack(
            [torch.linalg.qr(torch.randn(d, rank)).Q.T.contiguous() for _ in range(layers)]
        )
        self.r = nn.Parameter(start)
        self.w = nn.Parameter(start.clone())
        self.b = nn.Parameter(torch.zeros(layers, rank))

    def parts(self, site: Site) -> tuple[Tensor, Tensor, Tensor]:
        """R [r, d], W [r, d] and b [r] of a site."""
        r, w, b = self.r[site.layer], self.w[site.layer], self.b[site.layer]
        if self.training:
            r, w = storage.rounded_rows(r, 8), storage.rounded_rows(w, 8)
        return r, w, b

    def update(self, site: Site, x: Tensor) -> Tensor:
        r, w, b = self.parts(site)
        return (x @ (w - r).T + b) @ r

    def branch(self, site: Site) -> nn.Module:
        r, w, b = (part.detach().clone() for part in self.parts(site))
        down, up = nn.Linear(r.shape[1], len(r)), nn.Linear(len(r), r.shape[1], bias=False)
        down.weight, down.bias = nn.Parameter(w - r), nn.Parameter(b)
        up.weight = nn.Parameter(r.T.contiguous())
        return nn.Sequential(down, up)

    def stored(self) -> dict[str, Tensor]:
        tensors = {"b": self.b.detach().half()}
        for name in ("r", "w"):
            codes, scale = storage.to_rows(getattr(self, name).detach(), 8)
            tensors |= {name: codes, f"{name}.scale": scale}
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.b.copy_(tensors["b"].float())
        for name in ("r", "w"):
            codes = tensors[name]
            values = storage.from_rows(codes, tensors[f"{name}.scale"], 8, codes.shape[-1])
            getattr(self, name).copy_(values)
