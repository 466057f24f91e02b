"""Hugging Face PEFT checkpoints of the LoRA family: LoRA, AdaLoRA, and what trains like them.

IW-LoRA and static LoRA are LoRA at inference; AdaLoRA is P diag(L) Q. peft itself builds, loads
and merges the modules, so rsLoRA, DoRA and rank patterns come along.
"""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from typing import Any

from edgebench.adapters import lora
from edgebench.errors import CheckpointError
from edgebench.export.base import BaseModel
from edgebench.export.checkpoint import AdapterCheckpoint
from edgebench.export.exporter import AdapterFacts, Exporter, Lowering, LowRank, Task
from edgebench.export.family import HEADS, TASKS
from edgebench.export.fitting import check_linear_shapes, check_present

_TASKS: dict[str | None, Task] = {**TASKS, "CAUSAL_LM": "text-generation"}


class PeftLora(Exporter):
    name = "peft_lora"
    kinds = ("LORA", "ADALORA")
    tasks = (*Exporter.tasks, "text-generation")
    summary = "PEFT's LoRA, AdaLoRA, DoRA, rsLoRA; IW-LoRA and static LoRA are LoRA at inference"
    lowerings = ("merged", "unmerged", "swappable")

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return config.get("peft_type") in self.kinds

    def inspect(self, adapter: AdapterCheckpoint, base: BaseModel) -> AdapterFacts:
        task = adapter.config.get("task_type")
        if task not in _TASKS:
            raise CheckpointError(
                f"the adapter's task {task} can't be exported yet",
                where=str(adapter.path),
                fix="SEQ_CLS, TOKEN_CLS, FEATURE_EXTRACTION and CAUSAL_LM can.",
            )
        shapes = {name: tensor.shape for name, tensor in adapter.shapes.items()}
        factors = lora.linear_factors(shapes)
        if not lora.adapted_modules(shapes):
            raise CheckpointError("the adapter holds no LoRA factors", where=str(adapter.path))
        sizes = [(factor.module, factor.d_in, factor.d_out) for factor in factors]
        check_linear_shapes(adapter, base, sizes, transposed=True)
        check_present(adapter, base, lora.adapted_modules(shapes))
        ranks = {factor.rank for factor in factors}
        replaced = lora.replaced_parameters(shapes)
        heads = [
            shape[0]
            for name, shape in replaced.items()
            if name.partition(".")[0] in HEADS and name.endswith(".weight") and len(shape) == 2
        ]
        return AdapterFacts(
            kind=str(adapter.config["peft_type"]).lower(),
            rank=ranks.pop() if len(ranks) == 1 else None,
            task=_TASKS[task],
            num_labels=heads[-1] if heads else None,
            provides=frozenset(replaced),
        )

    def low_rank(self, adapter: AdapterCheckpoint) -> dict[str, LowRank]:
        _refuse_more_than_lora(adapter)
        shapes = {name: tensor.shape for name, tensor in adapter.shapes.items()}
        branches = {}
        for factor in lora.linear_factors(shapes):
            prefix = f"{lora.PREFIX}{factor.module}.lora_"
            branches[factor.module] = LowRank(
                f"{prefix}A.weight", f"{prefix}B.weight", _scale(adapter, factor)
            )
        return branches

    def attach(self, adapter: AdapterCheckpoint, tensors: Mapping[str, Any], module: Any) -> Any:
        import peft

        config = peft.PeftConfig.from_pretrained(str(adapter.path))
        config.inference_mode = True
        try:
            attached = peft.get_peft_model(module, config)
        except ValueError as error:  # peft's answer when no target module is there
            raise CheckpointError(
                f"the adapter does not fit the base: {error}", where=str(adapter.path)
            ) from error
        try:
            result: Any = peft.set_peft_model_state_dict(attached, dict(tensors))
        except RuntimeError as error:  # torch's answer to tensors of another shape
            raise CheckpointError(
                f"the adapter does not fit the base: {error}", where=str(adapter.path)
            ) from error
        ours = ("lora_", "modules_to_save")
        lost = [n for n in result.missing_keys if any(mark in n for mark in ours)]
        lost += list(result.unexpected_keys)
        if lost:
            raise CheckpointError(
                f"the adapter's configuration and weights disagree about {lost[0]}",
                where=str(adapter.path),
                fix="Copy the whole checkpoint again.",
            )
        return attached

    def lower(self, attached: Any, lowering: Lowering) -> Any:
        return attached.merge_and_unload() if lowering == "merged" else attached.get_base_model()

    def factors(self, attached: Any) -> dict[str, tuple[Any, Any]]:
        from peft.tuners.lora import LoraLayer

        return {
            name: _swap_factors(name, layer)
            for name, layer in attached.get_base_model().named_modules()
            if isinstance(layer, LoraLayer)
        }


def _swap_factors(name: str, layer: Any) -> tuple[Any, Any]:
    """A [d_in, r] and B [r, d_out] of one of peft's layers, its scale folded into B."""
    import torch

    (key,) = layer.active_adapters
    why = None
    if not isinstance(layer.get_base_layer(), torch.nn.Linear):
        why = "is no linear layer"
    elif key in getattr(layer, "lora_magnitude_vector", {}):
        why = "is changed by DoRA, which scales by the norm of the whole weight"
    elif getattr(layer, "lora_bias", {}).get(key):
        why = "has a bias in its branch"
    if why:
        raise CheckpointError(
            f"the adapter can't be swapped: {name} {why}", fix="Export it merged or unmerged."
        )
    down, up = layer.lora_A[key], layer.lora_B[key]
    scale = float(layer.scaling[key])
    if hasattr(layer, "lora_E"):  # AdaLoRA: P diag(E) Q over the ranks that are left
        down = down * layer.lora_E[key]
        scale /= float(layer.ranknum[key]) + 1e-5
    else:
        down, up = down.weight, up.weight
    a, b = down.detach().float(), up.detach().float() * scale
    return a.T.contiguous().numpy(), b.T.contiguous().numpy()


def _refuse_more_than_lora(adapter: AdapterCheckpoint) -> None:
    """Refuse what a scaled product of two factors does not say."""
    config = adapter.config
    kind = str(config.get("peft_type"))
    more = {
        f"{kind} stores more than two factors": kind != "LORA",
        "DoRA scales the rows of the merged weight": config.get("use_dora"),
        "it trains biases": config.get("bias", "none") != "none" or config.get("lora_bias"),
        "it changes the embeddings": any("lora_embedding" in name for name in adapter.shapes),
    }
    for why, found in more.items():
        if found:
            raise CheckpointError(
                f"this adapter can't be put on a decoder yet: {why}",
                where=str(adapter.path / "adapter_config.json"),
                fix="Plain LoRA and rsLoRA can.",
            )


def _scale(adapter: AdapterCheckpoint, factor: lora.Factors) -> float:
    """alpha / r, or alpha / sqrt(r) (rsLoRA, arXiv:2312.03732), as peft looks patterns up."""
    config = adapter.config
    alpha = float(config.get("lora_alpha", 8))
    for pattern, own in (config.get("alpha_pattern") or {}).items():
        if re.match(rf"(.*\.)?({pattern})$", factor.module):
            alpha = float(own)
            break
    return alpha / (math.sqrt(factor.rank) if config.get("use_rslora") else factor.rank)


EXPORTER = PeftLora()
