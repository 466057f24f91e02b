"""HIMALAYA: rank-one updates from a two-tier dictionary in three bits, chosen for each token.

The mathematics is in ``edgebench/adapters/himalaya.py``. The update depends on the token, so it is
never folded into a weight: in the graph it is ``edgebench::DictionaryUpdate``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from edgebench.adapters.members import Integer, Member, Roles
from edgebench.adapters.sites import LINEAR_ROLES, Site
from edgebench.errors import CheckpointError
from edgebench.export.checkpoint import AdapterCheckpoint
from edgebench.export.exporter import Lowering
from edgebench.export.family import FamilyExporter, rows_shapes
from edgebench.quantize.packing import CODES_PER_HIGH_BYTE, CODES_PER_LOW_BYTE, padded

BLOCK = 128


class Himalaya(FamilyExporter):
    name = "himalaya"
    kinds = ("HIMALAYA",)
    lowerings: tuple[Lowering, ...] = ("unmerged",)
    summary = "rank-one r(r.x)/sqrt(d) a token, r from a shared dictionary of 3-bit atoms"
    members: ClassVar[Mapping[str, Member]] = {
        "core_atoms": Integer(1, 64, 24),
        "elastic_atoms": Integer(0, 16),
        "active_atoms": Integer(1, 3, 3),
        "router_width": Integer(1, 4096),
        "tasks": Integer(1, 4096, 1),
        "task_width": Integer(1, 4096),
        "task": Integer(0, 4095, 0),
        "targets": Roles(LINEAR_ROLES),
    }

    def check(
        self, members: Mapping[str, Any], sites: tuple[Site, ...], adapter: AdapterCheckpoint
    ) -> None:
        for site in sites:
            if site.d_in != site.d_out or site.d_in != sites[0].d_in:
                raise CheckpointError(
                    f"a symmetric update needs square weights of one size; {site.module} is "
                    f"{site.d_out} x {site.d_in}",
                    where="adapter_config.json: targets",
                    fix="Give q, k, v, o, or some of them.",
                )
        if members["task"] >= members["tasks"]:
            raise CheckpointError(
                f"task {members['task']} is not one of the adapter's {members['tasks']}",
                where="adapter_config.json: task",
                fix="Tasks are counted from 0.",
            )

    def rank(self, members: Mapping[str, Any]) -> int | None:
        return 1

    def shapes(
        self, members: Mapping[str, Any], sites: tuple[Site, ...]
    ) -> dict[str, tuple[int, ...]]:
        d, width = sites[0].d_in, members["router_width"]
        atoms = members["core_atoms"] + members["elastic_atoms"]
        found: dict[str, tuple[int, ...]] = {
            "dictionary.low": (atoms, padded(d) // CODES_PER_LOW_BYTE),
            "dictionary.high": (atoms, padded(d) // CODES_PER_HIGH_BYTE),
            "dictionary.scales": (atoms, -(-d // BLOCK)),
            "dictionary.smooth": (d,),
            "router.bias": (width,),
            "router.gate_bias": (atoms,),
            "router.coefficient_bias": (atoms,),
        }
        for name, shape in {
            "token": (width, d),
            "cls": (width, d),
            "task": (width, members["task_width"]),
            "gate": (atoms, width),
            "coefficient": (atoms, width),
            "embedding": (members["tasks"], members["task_width"]),
        }.items():
            found |= rows_shapes(f"router.{name}", shape)
        return found

    def module(self, members: Mapping[str, Any], sites: tuple[Site, ...]) -> Any:
        from edgebench.adapters.himalaya import Himalaya as Module

        return Module(members, sites)


EXPORTER = Himalaya()
