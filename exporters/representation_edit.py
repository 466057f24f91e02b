"""The generic low-rank representation edit, which stands for ReFT-LoRe.

Nothing is published about ReFT-LoRe, so this is a form of its kind and not a reproduction. The
mathematics is in ``edgebench/adapters/representation_edit.py``. It edits the residual stream, so it
has no merged form.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from edgebench.adapters.members import Integer, Member, Roles
from edgebench.adapters.sites import Site, depth
from edgebench.export.exporter import Lowering
from edgebench.export.family import FamilyExporter, rows_shapes


class RepresentationEdit(FamilyExporter):
    name = "representation_edit"
    kinds = ("REPRESENTATION_EDIT",)
    lowerings: tuple[Lowering, ...] = ("unmerged",)
    summary = "generic: h + R'(W h + b - R h) on each layer's output; stands for ReFT-LoRe"
    members: ClassVar[Mapping[str, Member]] = {
        "rank": Integer(1, 256),
        "targets": Roles(("hidden",)),
    }

    def shapes(
        self, members: Mapping[str, Any], sites: tuple[Site, ...]
    ) -> dict[str, tuple[int, ...]]:
        layers, rank = depth(sites), members["rank"]
        factor = (layers, rank, sites[0].d_in)
        return {"b": (layers, rank), **rows_shapes("r", factor), **rows_shapes("w", factor)}

    def module(self, members: Mapping[str, Any], sites: tuple[Site, ...]) -> Any:
        from edgebench.adapters.representation_edit import RepresentationEdit as Module

        return Module(members, sites)


EXPORTER = RepresentationEdit()
