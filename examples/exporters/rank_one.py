"""RANK_ONE: the smallest family that there can be, as an example of adding one.

    y = W x + u (v . x)

Copy this file into your workspace's ``exporters/``; docs/adding-a-family.md goes through it. An
adapter is ``adapter_config.json`` ({"peft_type": "RANK_ONE", "task_type": "SEQ_CLS", "targets":
["q", "v"]}) and ``adapter_model.safetensors`` with ``adapter.u`` [sites, d_out] and ``adapter.v``
[sites, d_in], sites ordered by layer, then role.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from edgebench.adapters.members import Member, Roles
from edgebench.adapters.sites import Site
from edgebench.export.family import FamilyExporter


class RankOne(FamilyExporter):
    name = "rank_one"
    kinds = ("RANK_ONE",)
    summary = "an example: y = W x + u (v . x)"
    # q, k, v and o are square, so one stacked tensor holds every site.
    members: ClassVar[Mapping[str, Member]] = {"targets": Roles(("q", "k", "v", "o"))}

    def rank(self, members: Mapping[str, Any]) -> int | None:
        return 1

    def shapes(
        self, members: Mapping[str, Any], sites: tuple[Site, ...]
    ) -> dict[str, tuple[int, ...]]:
        return {"u": (len(sites), sites[0].d_out), "v": (len(sites), sites[0].d_in)}

    def module(self, members: Mapping[str, Any], sites: tuple[Site, ...]) -> Any:
        # torch is imported only here, when an export really begins.
        import torch

        from edgebench.adapters.low_rank import LowRankAdapter

        class Adapter(LowRankAdapter):
            kind = "RANK_ONE"

            def __init__(self) -> None:
                super().__init__(members, sites)
                self.u = torch.nn.Parameter(torch.zeros(len(sites), sites[0].d_out))
                self.v = torch.nn.Parameter(torch.randn(len(sites), sites[0].d_in))

            def factors(self, site: Site) -> tuple[torch.Tensor, torch.Tensor]:
                place = self.sites.index(site)
                return self.v[place][None], self.u[place][:, None]

            def stored(self) -> dict[str, torch.Tensor]:
                return {"u": self.u.detach(), "v": self.v.detach()}

            def restore(self, tensors: Mapping[str, torch.Tensor]) -> None:
                self.load_state_dict(dict(tensors))

        return Adapter()


EXPORTER = RankOne()
