"""The gated family: MetaS-PEFT, EChorda, DiGASE, and gates set by hand (GATED).

Layers, heads and ranks whose hard gate is closed are taken out of the module before it is traced,
so they are not in the graph. See ``edgebench/adapters/gated.py`` and ``prune.py``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgebench.adapters import gated_files, lora
from edgebench.adapters.blocks import blocks_of
from edgebench.errors import CheckpointError
from edgebench.export.base import BaseModel
from edgebench.export.checkpoint import AdapterCheckpoint
from edgebench.export.exporter import AdapterFacts, Exporter, Lowering
from edgebench.export.family import HEADS, TASKS
from edgebench.export.fitting import check_linear_shapes


class Gated(Exporter):
    name = "gated"
    kinds = tuple(gated_files.FAMILIES)
    summary = "hard gates on layers, heads and ranks: what is closed is not in the graph"

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return config.get("peft_type") in gated_files.FAMILIES

    def inspect(self, adapter: AdapterCheckpoint, base: BaseModel) -> AdapterFacts:
        where = str(adapter.path)
        members = gated_files.read_members(adapter.config, where)
        task = adapter.config.get("task_type")
        if task not in TASKS:
            raise CheckpointError(
                f"a gated adapter for the task {task} can't be exported yet",
                where=where,
                fix="SEQ_CLS, TOKEN_CLS and FEATURE_EXTRACTION can, on encoders and decoders.",
            )
        blocks_of(base.architecture)
        shapes = {name: tensor.shape for name, tensor in adapter.shapes.items()}
        gated_files.check_gates(members, shapes, base.layers, base.heads, where)
        factors = lora.linear_factors(shapes)
        check_linear_shapes(adapter, base, [(f.module, f.d_in, f.d_out) for f in factors])
        ranks = {factor.rank for factor in factors}
        own = gated_files.own_parameters(shapes)
        heads = [
            shape[0]
            for name, shape in own.items()
            if name.partition(".")[0] in HEADS and name.endswith(".weight") and len(shape) == 2
        ]
        return AdapterFacts(
            kind=members.kind.lower(),
            rank=ranks.pop() if len(ranks) == 1 else None,
            task=TASKS[task],
            num_labels=heads[-1] if heads else None,
            provides=frozenset(own),
        )

    def attach(self, adapter: AdapterCheckpoint, tensors: Mapping[str, Any], module: Any) -> Any:
        where = str(adapter.path)
        members = gated_files.read_members(adapter.config, where)
        attached = gated_files.attach(members, tensors, module, where)
        from edgebench.adapters.prune import refuse_nothing

        refuse_nothing(attached.kept_layers(), attached.head_values())
        return attached

    def lower(self, attached: Any, lowering: Lowering) -> Any:
        from edgebench.adapters.prune import prune

        return prune(attached, merged=lowering == "merged")


EXPORTER = Gated()
