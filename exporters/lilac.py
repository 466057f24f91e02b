"""LILAC: LoRA of rank 4 mixed from a dictionary of 64 atoms, in 8 bits.

The mathematics is in ``edgebench/adapters/lilac.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from edgebench.adapters.members import Integer, Member, Number, Roles
from edgebench.adapters.sites import LINEAR_ROLES, Site
from edgebench.export.family import FamilyExporter, rows_shapes


class Lilac(FamilyExporter):
    name = "lilac"
    kinds = ("LILAC",)
    summary = "LoRA whose factors are mixed from one shared dictionary, stored in int8"
    members: ClassVar[Mapping[str, Member]] = {
        "rank": Integer(1, 256, 4),
        "alpha": Number(default=8),
        "atoms": Integer(1, 4096, 64),
        "targets": Roles(LINEAR_ROLES),
    }

    def shapes(
        self, members: Mapping[str, Any], sites: tuple[Site, ...]
    ) -> dict[str, tuple[int, ...]]:
        rank, atoms = members["rank"], members["atoms"]
        found: dict[str, tuple[int, ...]] = {}
        for width in {width for site in sites for width in (site.d_in, site.d_out)}:
            found |= rows_shapes(f"dictionary.{width}", (atoms, width))
        for name in ("down", "up"):
            found |= rows_shapes(name, (len(sites), rank, atoms))
        return found

    def module(self, members: Mapping[str, Any], sites: tuple[Site, ...]) -> Any:
        from edgebench.adapters.lilac import Lilac as Module

        return Module(members, sites)


EXPORTER = Lilac()
