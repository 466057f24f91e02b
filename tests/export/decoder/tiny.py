"""Decoders of a few kilobytes, with a tokenizer that knows letters, and LoRA adapters for them."""

from __future__ import annotations

import string
from pathlib import Path
from typing import Any

VOCABULARY = 80


def write_tokenizer(directory: Path) -> None:
    """A tokenizer of single letters; <s> begins a row."""
    from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    letters = string.ascii_lowercase + string.digits + ".,▁"
    words = ["<unk>", "<s>", "</s>", *letters]
    tokenizer = Tokenizer(
        models.BPE({w: i for i, w in enumerate(words)}, merges=[], unk_token="<unk>")
    )
    tokenizer.normalizer = normalizers.Lowercase()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A", special_tokens=[("<s>", 1)]
    )
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        unk_token="<unk>",
        bos_token="<s>",
        eos_token="</s>",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(directory)


def write_llama(directory: Path, *, shards: bool = False, **changes: Any) -> Path:
    """A Llama of two layers with grouped-query attention."""
    import torch
    from transformers import AutoModelForCausalLM, LlamaConfig

    torch.manual_seed(0)
    settings: dict[str, Any] = {
        "vocab_size": VOCABULARY,
        "hidden_size": 64,
        "intermediate_size": 96,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "max_position_embeddings": 256,
        "initializer_range": 0.2,
        "tie_word_embeddings": False,
        "eos_token_id": 2,
    }
    kind = changes.pop("config", LlamaConfig)
    model = AutoModelForCausalLM.from_config(kind(**settings | changes))
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name.endswith("norm.weight") or name.endswith(".bias"):
                parameter.add_(0.3 * torch.randn_like(parameter))
    model.save_pretrained(directory, **({"max_shard_size": "60KB"} if shards else {}))
    write_tokenizer(directory)
    return directory


def write_adapter(base: Path, directory: Path, **changes: Any) -> Path:
    """A LoRA adapter on some of a decoder's matrices, with a rank and a scale of its own on one."""
    import peft
    import torch
    from transformers import AutoModelForCausalLM

    torch.manual_seed(1)
    settings: dict[str, Any] = {
        "task_type": "CAUSAL_LM",
        "r": 4,
        "lora_alpha": 8,
        "target_modules": ["q_proj", "v_proj", "down_proj"],
        "rank_pattern": {"layers.1.self_attn.q_proj": 2},
        "alpha_pattern": {"layers.0.mlp.down_proj": 3},
        "init_lora_weights": False,
    }
    module = AutoModelForCausalLM.from_pretrained(base)
    adapted = peft.get_peft_model(module, peft.LoraConfig(**settings | changes))
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.2)
    adapted.save_pretrained(directory, save_embedding_layers=False)
    return directory
