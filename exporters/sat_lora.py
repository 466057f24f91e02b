"""SAT-LoRA: int8 LoRA factors on every projection, optionally one set for all layers.

The mathematics is in ``edgebench/adapters/sat_lora.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from edgebench.adapters.members import Flag, Integer, Member, Number, Roles
from edgebench.adapters.sites import LINEAR_ROLES, Site, depth
from edgebench.export.family import FamilyExporter, rows_shapes


class SatLora(FamilyExporter):
    name = "sat_lora"
    kinds = ("SAT_LORA",)
    summary = "LoRA on q/k/v/o and both FFN matrices, factors stored in int8"
    members: ClassVar[Mapping[str, Member]] = {
        "rank": Integer(1, 256, 8),
        "alpha": Number(default=16),
        "share_layers": Flag(default=False),
        "targets": Roles(LINEAR_ROLES),
    }

    def shapes(
        self, members: Mapping[str, Any], sites: tuple[Site, ...]
    ) -> dict[str, tuple[int, ...]]:
        layers = 1 if members["share_layers"] else depth(sites)
        found: dict[str, tuple[int, ...]] = {}
        for site in sites:
            found |= rows_shapes(f"{site.role}.a", (layers, members["rank"], site.d_in))
            found |= rows_shapes(f"{site.role}.b", (layers, site.d_out, members["rank"]))
        return found

    def module(self, members: Mapping[str, Any], sites: tuple[Site, ...]) -> Any:
        from edgebench.adapters.sat_lora import SatLora as Module

        return Module(members, sites)


EXPORTER = SatLora()
