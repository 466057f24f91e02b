"""An exporter for PEFT methods that need nothing but peft: it builds, loads and merges."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgebench.adapters import peft_checkpoint
from edgebench.errors import CheckpointError
from edgebench.export.base import BaseModel
from edgebench.export.checkpoint import AdapterCheckpoint
from edgebench.export.exporter import AdapterFacts, Exporter, Lowering
from edgebench.export.family import HEADS, TASKS


class PeftExporter(Exporter):
    """The methods of a table: peft_type -> how the names of its tensors begin."""

    prefixes: Mapping[str, str]

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return config.get("peft_type") in self.kinds

    def inspect(self, adapter: AdapterCheckpoint, base: BaseModel) -> AdapterFacts:
        task = adapter.config.get("task_type")
        if task not in TASKS:
            raise CheckpointError(
                f"the adapter's task {task} can't be exported yet",
                where=str(adapter.path),
                fix="SEQ_CLS, TOKEN_CLS and FEATURE_EXTRACTION can.",
            )
        rank = adapter.config.get("r")
        if isinstance(rank, int) and rank < 1 and adapter.config["peft_type"] != "OFT":
            raise CheckpointError(
                f"the adapter's rank is {rank}",
                where=f"{adapter.path}/adapter_config.json: r",
                fix="Train it again with a rank of at least 1.",
            )
        prefix = self._prefix(adapter)
        peft_checkpoint.check(adapter, base, prefix)
        trained = peft_checkpoint.trained(adapter, prefix)
        labels = [
            shape[0]
            for name, shape in trained.items()
            if name.partition(".")[0] in HEADS and name.endswith(".weight") and len(shape) == 2
        ]
        return AdapterFacts(
            kind=str(adapter.config["peft_type"]).lower(),
            rank=rank if isinstance(rank, int) and rank > 0 else None,
            task=TASKS[task],
            num_labels=labels[-1] if labels else None,
            provides=frozenset(trained),
        )

    def attach(self, adapter: AdapterCheckpoint, tensors: Mapping[str, Any], module: Any) -> Any:
        return peft_checkpoint.attach(adapter, tensors, module, self._prefix(adapter))

    def lower(self, attached: Any, lowering: Lowering) -> Any:
        if lowering != "merged":
            return attached.get_base_model()
        _take_saved_modules(attached)
        return attached.merge_and_unload()

    def _prefix(self, adapter: AdapterCheckpoint) -> str:
        return self.prefixes[adapter.config["peft_type"]]


def _take_saved_modules(attached: Any) -> None:
    """Put modules that were trained in full where their wrappers are.

    peft's own unloading looks for a ``weight`` in each (``BaseTuner._replace_module`` in 0.21.2),
    and fails where one is made of several, such as RoBERTa's head. Only LoRA's does not.
    """
    from peft.utils.other import ModulesToSaveWrapper

    wrapped = {n: m for n, m in attached.named_modules() if isinstance(m, ModulesToSaveWrapper)}
    for name, wrapper in wrapped.items():
        parent, _, child = name.rpartition(".")
        (active,) = wrapper.active_adapters
        setattr(attached.get_submodule(parent), child, wrapper.modules_to_save[active])
