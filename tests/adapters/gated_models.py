"""Tiny random transformers with gates set at random."""

from __future__ import annotations

from typing import Any

import torch

from edgebench.adapters.gated import GatedModel
from edgebench.adapters.hard_concrete import fix

LABELS = 3
HIDDEN, LAYERS, HEADS, RANK = 32, 3, 4, 3


def model(kind: str, **changes: Any) -> Any:
    """A tiny classifier: bert, roberta, distilbert, deberta-v2, llama or qwen2."""
    import transformers as t

    torch.manual_seed(0)
    common = {
        "vocab_size": 80,
        "num_labels": LABELS,
        "max_position_embeddings": 64,
        "initializer_range": 0.3,
        "pad_token_id": 0,
    }
    usual = {
        "hidden_size": HIDDEN,
        "num_hidden_layers": LAYERS,
        "num_attention_heads": HEADS,
        "intermediate_size": 48,
    }
    decoder = {"num_key_value_heads": 2, "hidden_size": 64, "head_dim": 16}
    made: dict[str, Any] = {
        "bert": lambda: t.BertForSequenceClassification(t.BertConfig(**common | usual | changes)),
        "roberta": lambda: t.RobertaForSequenceClassification(
            t.RobertaConfig(**common | usual | changes)
        ),
        "distilbert": lambda: t.DistilBertForSequenceClassification(
            t.DistilBertConfig(
                **common | {"dim": HIDDEN, "n_layers": LAYERS, "n_heads": HEADS, "hidden_dim": 48}
            )
        ),
        "deberta-v2": lambda: t.DebertaV2ForSequenceClassification(
            t.DebertaV2Config(
                **common
                | usual
                | {
                    "relative_attention": True,
                    "position_buckets": 8,
                    "norm_rel_ebd": "layer_norm",
                    "share_att_key": True,
                    "pos_att_type": ["p2c", "c2p"],
                    "position_biased_input": False,
                    "type_vocab_size": 0,
                }
                | changes
            )
        ),
        "llama": lambda: t.LlamaForSequenceClassification(
            t.LlamaConfig(**common | usual | decoder | changes)
        ),
        "qwen2": lambda: t.Qwen2ForSequenceClassification(
            t.Qwen2Config(**common | usual | decoder | {"head_dim": 16} | changes)
        ),
    }
    module = made[kind]()
    module.config._attn_implementation = "eager"
    for parameter in module.parameters():  # biases and norms too: none may hide behind a 0
        if parameter.ndim == 1:
            torch.nn.init.normal_(parameter, mean=0.5, std=0.2)
    return module.eval()


def gated(module: Any, names: tuple[str, ...] = ("q", "v", "o"), **options: Any) -> GatedModel:
    """Gates with random factors on these projections of every layer."""
    from edgebench.adapters.blocks import blocks_of

    blocks = blocks_of(module.config.model_type)
    ends = tuple(f".{getattr(blocks, name)}" for name in names)
    modules = {
        name: RANK
        for name, part in module.named_modules()
        if isinstance(part, torch.nn.Linear) and name.endswith(ends)
    }
    made = GatedModel(module, modules, scale=2.0, **options)
    for part in made.factors().values():
        torch.nn.init.normal_(part.b, std=0.3)
    return made.eval()


def randomise(made: GatedModel, seed: int, keep: float = 0.6) -> GatedModel:
    """Set every gate at random: shut, open, or in between."""
    generator = torch.Generator().manual_seed(seed)
    gates = [made.layer_gates, made.head_gates, *(p.gate for p in made.factors().values())]
    with torch.no_grad():
        for gate in gates:
            if gate is None:
                continue
            shape = gate.log_alpha.shape
            between = torch.rand(shape, generator=generator) * 4 - 1
            gate.log_alpha.copy_(between)
            shut = torch.rand(shape, generator=generator) > keep
            gate.log_alpha[shut] = -20.0
    if not made.kept_layers() or not (made.head_values()[list(made.kept_layers())] > 0).any():
        for gate in (made.layer_gates, made.head_gates):
            if gate is not None:
                everywhere = torch.ones(gate.log_alpha.shape, dtype=torch.bool)
                fix(gate, everywhere)
    return made


def batch(rows: int = 3, tokens: int = 9) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    ids = torch.randint(1, 80, (rows, tokens), generator=generator)
    mask = torch.ones_like(ids)
    mask[1, tokens - 3 :] = 0
    ids[1, tokens - 3 :] = 0
    return {"input_ids": ids, "attention_mask": mask}
