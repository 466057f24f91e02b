"""Gated adapters exported: the file is smaller, and its statistics are the gates'."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from edgebench.adapters import gated_files
from edgebench.adapters.hard_concrete import fix
from edgebench.errors import CheckpointError
from edgebench.export import ExportRequest, export
from tests.adapters.gated_models import HEADS, LABELS, LAYERS, gated, model
from tests.export.tiny import write_tokenizer

#: Heads kept of each layer: even groups, uneven groups (of two key-value heads), a dropped layer.
KEPT = ((0, 2), (0, 1, 3), ())
RANKS = (True, False, True)


def checkpoint(directory: Path, kind: str, **options) -> tuple[Path, Path]:
    """A base, and an adapter on it with fixed gates."""
    base, adapter = directory / "base", directory / "adapter"
    changes = {} if kind == "distilbert" else {"max_position_embeddings": 300}
    module = model(kind, **changes)
    module.save_pretrained(base)
    extra = ["token_type_ids"] if kind == "bert" else []
    write_tokenizer(base, ["input_ids", "attention_mask", *extra])
    made = gated(module, **options)
    open_ = torch.zeros(LAYERS, HEADS, dtype=torch.bool)
    for layer, heads in enumerate(KEPT):
        open_[layer, list(heads)] = True
    fix(made.layer_gates, torch.tensor([bool(heads) for heads in KEPT]))
    if made.head_gates is not None:
        fix(made.head_gates, open_)
    for part in made.factors().values():
        fix(part.gate, torch.tensor(RANKS))
    gated_files.save(
        made,
        adapter,
        kind="METAS_PEFT",
        base_name=str(base),
        task_type="SEQ_CLS",
        labels=[str(i) for i in range(LABELS)],
    )
    return base, adapter


@pytest.mark.parametrize("kind", ["bert", "llama", "deberta-v2"])
def test_the_exported_graph_has_what_the_gates_leave_and_no_more(kind, tmp_path):
    base, adapter = checkpoint(tmp_path, kind)
    (pruned,) = export(
        ExportRequest(out=tmp_path / "out", adapter=adapter, lowering="unmerged", seq_len=16)
    )
    statistics = pruned.manifest.statistics
    assert statistics.kept_layers == 2
    assert statistics.kept_heads == 5
    assert statistics.kept_ranks == 2 * 3 * 2  # layers, modules, ranks
    assert pruned.manifest.parity.max_abs_error <= 1e-4
    assert pruned.manifest.adapter.kind == "metas_peft"
    made = gated_files.attach(
        gated_files.read_members(json.loads((adapter / "adapter_config.json").read_text()), ""),
        _tensors(adapter),
        model(kind, **({"max_position_embeddings": 300})),
        "",
    )
    expected = 32 * float(made.expected().parameters.detach())
    # The graph may fold a few weights (positions) into constants of their own.
    assert statistics.param_bits == pytest.approx(expected, rel=0.25)
    assert base.is_dir()


def _tensors(adapter: Path):
    from safetensors.torch import load_file

    return load_file(adapter / "adapter_model.safetensors")


def refused(base: Path, adapter: Path, out: Path, said: str) -> None:
    with pytest.raises(CheckpointError, match=said):
        export(ExportRequest(out=out, adapter=adapter, base=str(base)))
    assert not list(out.glob("[!.]*")) if out.exists() else True


def rewrite(adapter: Path, **tensors) -> None:
    from safetensors.torch import save_file

    save_file(_tensors(adapter) | tensors, adapter / "adapter_model.safetensors")


def test_bad_checkpoints_are_named_before_anything_is_written(tmp_path):
    base, adapter = checkpoint(tmp_path, "bert")
    out = tmp_path / "out"
    rewrite(adapter, **{"gates.layers": torch.full((LAYERS,), -20.0)})
    refused(base, adapter, out, "all layer gates are closed")
    rewrite(adapter, **{"gates.layers": torch.full((LAYERS + 1,), 20.0)})
    refused(base, adapter, out, "gates.layers of 4, the base has layers: 3")
    rewrite(adapter, **{"gates.layers": torch.full((LAYERS,), float("nan"))})
    refused(base, adapter, out, "NaN or infinity")
