"""A configuration as an adapter: any LoRA adapter with gates fixed open or shut (type GATED).

What is drawn is exported by the gated family's own exporter, with its parity check, so a sample is
as real as a trained gated adapter.
"""

from __future__ import annotations

import re
from pathlib import Path

from edgebench.adapters import gated_files
from edgebench.adapters.blocks import blocks_of
from edgebench.errors import CheckpointError
from edgebench.export.base import BaseModel
from edgebench.export.checkpoint import AdapterCheckpoint
from edgebench.export.exporter import Exporter, LowRank
from edgebench.sampling.design import Configuration, Space

_PREFIX = "base_model.model."
#: log_alpha of a gate that is 1 (open), or at minus which it is 0.
_SHUT = 20.0


def read_space(
    base: BaseModel,
    adapter: AdapterCheckpoint | None,
    exporter: Exporter | None,
    seq_len: tuple[int, int],
    schemes: tuple[str, ...],
) -> Space:
    """What can be gated of an adapter on a base.

    Raises:
        CheckpointError: the adapter is no plain LoRA, or the architecture is not known.
    """
    layers = re.escape(blocks_of(base.architecture).layers)
    ranks: list[dict[str, int]] = [{} for _ in range(base.layers)]
    for module, branch in _branches(adapter, exporter).items():
        found = re.search(rf"(?:^|\.){layers}\.(\d+)\.", module)
        if found is None or adapter is None:
            raise CheckpointError(
                f"the adapter changes {module}, which is in no layer, so its ranks can't be gated",
                where=str(adapter.path if adapter else base.path),
                fix="Give an adapter on the layers' linear modules.",
            )
        ranks[int(found[1])][module] = adapter.shapes[branch.a].shape[0]
    return Space(base.layers, base.heads, tuple(ranks), seq_len, schemes)


def write_gated(
    directory: Path,
    configuration: Configuration,
    base: BaseModel,
    adapter: AdapterCheckpoint | None,
    exporter: Exporter | None,
) -> Path:
    """Write the adapter whose gates are this configuration."""
    import json

    import torch
    from safetensors.torch import save

    from edgebench.export.weights import load_tensors
    from edgebench.results.atomic import replace_files

    def gate(size: int, kept: tuple[int, ...]) -> torch.Tensor:
        values = torch.full((size,), -_SHUT)
        values[list(kept)] = _SHUT
        return values

    layers = tuple(i for i, heads in enumerate(configuration.heads) if heads)
    tensors = {
        gated_files.LAYER_GATES: gate(base.layers, layers),
        gated_files.HEAD_GATES: torch.stack(
            [gate(base.heads, heads) for heads in configuration.heads]
        ),
    }
    rank = 1
    if adapter is not None:
        stored = load_tensors(adapter.weights, "adapter")
        branches = _branches(adapter, exporter)
        factors = {name for branch in branches.values() for name in (branch.a, branch.b)}
        tensors |= {name: value for name, value in stored.items() if name not in factors}
        for module, branch in branches.items():
            a, b = stored[branch.a].float(), stored[branch.b].float() * branch.scale
            rank = max(rank, len(a))
            tensors[f"{_PREFIX}{module}.lora_A.weight"] = a
            tensors[f"{_PREFIX}{module}.lora_B.weight"] = b
            kept = configuration.ranks.get(module, ())
            tensors[f"{_PREFIX}{module}.{gated_files.RANK_GATE}"] = gate(len(a), kept)
    config = {
        "peft_type": "GATED",
        "task_type": adapter.config.get("task_type") if adapter else None,
        "base_model_name_or_path": base.name,
        "gates": list(gated_files.GATES),
        "r": rank,
        "lora_alpha": rank,
    }
    files = {
        "adapter_config.json": json.dumps(config, indent=2, sort_keys=True).encode(),
        "adapter_model.safetensors": save({n: t.contiguous() for n, t in tensors.items()}),
    }
    if adapter is not None and adapter.labels:
        files["labels.json"] = json.dumps({"labels": list(adapter.labels)}).encode()
    replace_files(directory, files)
    return directory


def weight_bytes(configuration: Configuration, base: BaseModel, bits: dict[str, float]) -> float:
    """About how many bytes the weights take: all of the embeddings, a share of each layer.

    From shapes in the base's file: tensors of a dropped layer do not count, and all of the others
    do, so this is the most that the configuration can take.
    """
    layers = re.escape(blocks_of(base.architecture).layers)
    total = 0
    for name, tensor in base.shapes.items():
        found = re.search(rf"(?:^|\.){layers}\.(\d+)\.", name)
        if found is None or configuration.heads[int(found[1])]:
            total += tensor.size
    return total * bits[configuration.scheme] / 8


def _branches(adapter: AdapterCheckpoint | None, exporter: Exporter | None) -> dict[str, LowRank]:
    if adapter is None or exporter is None:
        return {}
    return exporter.low_rank(adapter)
