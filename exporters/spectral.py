"""The spectral family: HEST, TABS and BHSP. See ``edgebench/adapters/spectral.py``.

HEST's directions that are off are not in the graph, its int8 directions are products of integers,
and its fp16 ones are stored in fp16.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgebench.adapters import spectral_files
from edgebench.adapters.blocks import blocks_of
from edgebench.errors import CheckpointError
from edgebench.export.base import BaseModel
from edgebench.export.checkpoint import AdapterCheckpoint
from edgebench.export.exporter import AdapterFacts, Exporter, Lowering, Task
from edgebench.export.fitting import check_linear_shapes

_TASKS: dict[str | None, Task] = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "FEATURE_EXTRACTION": "feature-extraction",
    None: "feature-extraction",
}

#: What transformers calls a classification head; its last matrix has one row per label.
_HEADS = {"classifier", "score"}


class Spectral(Exporter):
    name = "spectral"
    kinds = tuple(spectral_files.FAMILIES)
    summary = "spectral directions, each gated off, int8 or fp16 (HEST, TABS, BHSP)"
    lowerings: tuple[Lowering, ...] = ("merged", "unmerged")

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return config.get("peft_type") in spectral_files.FAMILIES

    def inspect(self, adapter: AdapterCheckpoint, base: BaseModel) -> AdapterFacts:
        where = str(adapter.path)
        members = spectral_files.read_members(adapter.config, where)
        task = adapter.config.get("task_type")
        if task not in _TASKS:
            raise CheckpointError(
                f"a spectral adapter for the task {task} can't be exported yet",
                where=where,
                fix="SEQ_CLS, TOKEN_CLS and FEATURE_EXTRACTION can, on encoders and decoders.",
            )
        blocks_of(base.architecture)
        shapes = {name: tensor.shape for name, tensor in adapter.shapes.items()}
        sites = spectral_files.sites(shapes)
        if len(sites) != base.layers:
            raise CheckpointError(
                f"the adapter has directions on {len(sites)} modules, the base has "
                f"{base.layers} layers",
                where=where,
                fix="Give its own base with --base, or check the path.",
            )
        check_linear_shapes(adapter, base, sites)
        own = spectral_files.own_parameters(shapes)
        heads = [
            shape[0]
            for name, shape in own.items()
            if name.partition(".")[0] in _HEADS and name.endswith(".weight") and len(shape) == 2
        ]
        return AdapterFacts(
            kind=members.kind.lower(),
            rank=members.directions,
            task=_TASKS[task],
            num_labels=heads[-1] if heads else None,
            provides=frozenset(own),
        )

    def attach(self, adapter: AdapterCheckpoint, tensors: Mapping[str, Any], module: Any) -> Any:
        where = str(adapter.path)
        members = spectral_files.read_members(adapter.config, where)
        spectral_files.attach(members, tensors, module, where)
        return module

    def directions(self, attached: Any) -> dict[str, int]:
        from edgebench.adapters import spectral

        return spectral.counts(attached)

    def lower(self, attached: Any, lowering: Lowering) -> Any:
        from edgebench.adapters import spectral

        parts = [(n, m) for n, m in attached.named_modules() if isinstance(m, spectral.Spectral)]
        return spectral.harden(attached, parts, merged=lowering == "merged")


EXPORTER = Spectral()
