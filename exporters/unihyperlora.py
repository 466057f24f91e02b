"""UniHyperLoRA: one adapter file for backbones of any width and depth.

The mathematics is in ``edgebench/adapters/unihyperlora.py``. Which atoms count is decided for each
token (or sequence), so the update is never folded into a weight.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, ClassVar

from edgebench.adapters.members import Choice, Integer, Member, Roles
from edgebench.adapters.sites import LINEAR_ROLES, Site
from edgebench.adapters.unihyperlora_parts import EIGHT, HEADS, part_shapes
from edgebench.errors import CheckpointError
from edgebench.export.base import BaseModel
from edgebench.export.checkpoint import AdapterCheckpoint
from edgebench.export.exporter import Lowering
from edgebench.export.family import FamilyExporter, rows_shapes


class UniHyperLora(FamilyExporter):
    name = "unihyperlora"
    kinds = ("UNIHYPERLORA",)
    lowerings: tuple[Lowering, ...] = ("unmerged",)
    summary = "hyper-LoRA atoms for any width and depth, at most two active a token"
    members: ClassVar[Mapping[str, Member]] = {
        "atoms": Integer(1, 4096, 128),
        "width": Integer(1, 4096, 256),
        "projector_rank": Integer(1, 256, 8),
        "frequencies": Integer(1, 4096, 128),
        "active_atoms": Integer(1, 2, 2),
        "routing": Choice(("token", "sequence"), "token"),
        "labels": Integer(1, 100_000),
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

    def labels(self, adapter: AdapterCheckpoint) -> int | None:
        return int(adapter.config["labels"])

    def provides(self, base: BaseModel) -> frozenset[str]:
        last, before = HEADS[base.architecture]
        heads = {last, *before, "classifier"}
        return frozenset(f"{head}.{part}" for head in heads for part in ("weight", "bias"))

    def shapes(
        self, members: Mapping[str, Any], sites: tuple[Site, ...]
    ) -> dict[str, tuple[int, ...]]:
        found: dict[str, tuple[int, ...]] = {"head_bias": (members["labels"],)}
        for name, shape in part_shapes(members).items():
            found |= rows_shapes(name, shape, 8 if name in EIGHT else 4)
        return found

    def module(self, members: Mapping[str, Any], sites: tuple[Site, ...]) -> Any:
        from edgebench.adapters.unihyperlora import UniHyperLora as Module

        return Module(members, sites)


EXPORTER = UniHyperLora()
