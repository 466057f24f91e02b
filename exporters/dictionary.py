"""The generic dictionary adapter, which stands for COLTAS and, with 64 atoms, GloDiS-64.

Nothing is published about either, so this is a form of their kind and not a reproduction. The
mathematics is in ``edgebench/adapters/dictionary.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from edgebench.adapters.members import Integer, Member, Roles
from edgebench.adapters.sites import LINEAR_ROLES, Site
from edgebench.errors import CheckpointError
from edgebench.export.checkpoint import AdapterCheckpoint
from edgebench.export.family import FamilyExporter, rows_shapes


class Dictionary(FamilyExporter):
    name = "dictionary"
    kinds = ("DICTIONARY",)
    summary = "generic: global atoms with a coefficient a site; stands for COLTAS and GloDiS-64"
    members: ClassVar[Mapping[str, Member]] = {
        "atoms": Integer(1, 4096, 64),
        "active_atoms": Integer(1, 4096),
        "targets": Roles(LINEAR_ROLES),
    }

    def check(
        self, members: Mapping[str, Any], sites: tuple[Site, ...], adapter: AdapterCheckpoint
    ) -> None:
        if members["active_atoms"] > members["atoms"]:
            raise CheckpointError(
                f"{members['active_atoms']} of {members['atoms']} atoms can't be active",
                where="adapter_config.json: active_atoms",
                fix="Give at most as many as there are.",
            )

    def rank(self, members: Mapping[str, Any]) -> int | None:
        return int(members["active_atoms"])

    def shapes(
        self, members: Mapping[str, Any], sites: tuple[Site, ...]
    ) -> dict[str, tuple[int, ...]]:
        atoms = members["atoms"]
        found = rows_shapes("coefficients", (len(sites), atoms))
        for site in sites:
            key = f"{site.d_out}x{site.d_in}"
            found |= rows_shapes(f"u.{key}", (atoms, site.d_out))
            found |= rows_shapes(f"v.{key}", (atoms, site.d_in))
        return found

    def module(self, members: Mapping[str, Any], sites: tuple[Site, ...]) -> Any:
        from edgebench.adapters.dictionary import Dictionary as Module

        return Module(members, sites)


EXPORTER = Dictionary()
