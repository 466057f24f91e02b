"""Make a decoder checkpoint of random weights in a given shape, and a LoRA adapter for it.

    python benchmarks/make_decoder.py --shape 7b --out /tmp/llama-7b
    python benchmarks/make_decoder.py --shape 7b --layers 4 --out /tmp/llama-4-layers

Writes a Hugging Face checkpoint: config.json, safetensors in fp16, a shard a layer, and a tokenizer
(byte-level BPE, trained on edgebench's own sentences); beside it, in OUT/lora, a PEFT checkpoint of
rank 8 on every query and value. The same command gives the same bytes. Shapes:

    7b    Llama-2-7B         hidden 4096, feed-forward 11008, 32 layers, 32 heads, 32 kv
    1b    TinyLlama-1.1B     hidden 2048, feed-forward 5632, 22 layers, 32 heads, 4 kv
    tiny  for trials         hidden 256, feed-forward 512, 2 layers, 4 heads, 2 kv
    0.1b  SmolLM2-135M       hidden 576, feed-forward 1536, 30 layers, 9 heads, 3 kv, tied head

Memory: one layer. 7b takes 13.5 GB of disk.
"""

from __future__ import annotations

import argparse
import json
import sys
import zlib
from pathlib import Path
from typing import Any

import numpy as np
from common import ROOT  # noqa: F401 - puts this checkout on the path
from numpy.typing import NDArray

SHAPES: dict[str, dict[str, Any]] = {
    "7b": {
        "hidden_size": 4096,
        "intermediate_size": 11008,
        "num_hidden_layers": 32,
        "num_attention_heads": 32,
        "num_key_value_heads": 32,
        "vocab_size": 32000,
        "max_position_embeddings": 4096,
        "tie_word_embeddings": False,
    },
    "1b": {
        "hidden_size": 2048,
        "intermediate_size": 5632,
        "num_hidden_layers": 22,
        "num_attention_heads": 32,
        "num_key_value_heads": 4,
        "vocab_size": 32000,
        "max_position_embeddings": 2048,
        "tie_word_embeddings": False,
    },
    "tiny": {
        "hidden_size": 256,
        "intermediate_size": 512,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "num_key_value_heads": 2,
        "vocab_size": 1024,
        "max_position_embeddings": 256,
        "tie_word_embeddings": False,
    },
    "0.1b": {
        "hidden_size": 576,
        "intermediate_size": 1536,
        "num_hidden_layers": 30,
        "num_attention_heads": 9,
        "num_key_value_heads": 3,
        "vocab_size": 49152,
        "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
}

# What the Llama papers' own code starts from.
_DEVIATION = 0.02
_RANK = 8


def make(directory: Path, shape: str, layers: int | None = None, seed: int = 0) -> Path:
    """Write the checkpoint and its adapter; the directory."""
    from safetensors.numpy import save_file

    sizes = dict(SHAPES[shape])
    if layers is not None:
        sizes["num_hidden_layers"] = layers
    directory.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "torch_dtype": "float16",
        "bos_token_id": 0,
        "eos_token_id": 0,
        **sizes,
    }
    (directory / "config.json").write_text(json.dumps(config, indent=2, sort_keys=True) + "\n")
    shards = _shards(sizes)
    where: dict[str, str] = {}
    for number, shard in enumerate(shards, start=1):
        file = f"model-{number:05}-of-{len(shards):05}.safetensors"
        tensors = {name: _random(name, size, seed) for name, size in shard.items()}
        save_file(tensors, directory / file, metadata={"format": "pt"})
        where |= dict.fromkeys(tensors, file)
    index = {"metadata": {}, "weight_map": where}
    (directory / "model.safetensors.index.json").write_text(json.dumps(index, indent=1))
    _tokenizer(directory)
    _adapter(directory / "lora", sizes, seed)
    return directory


def _shards(sizes: dict[str, Any]) -> list[dict[str, tuple[int, ...]]]:
    """Names and shapes: the table, each layer, and what comes after."""
    hidden, inner, vocabulary = (
        sizes[n] for n in ("hidden_size", "intermediate_size", "vocab_size")
    )
    keys = hidden // sizes["num_attention_heads"] * sizes["num_key_value_heads"]
    shards: list[dict[str, tuple[int, ...]]] = [{"model.embed_tokens.weight": (vocabulary, hidden)}]
    for layer in range(sizes["num_hidden_layers"]):
        prefix = f"model.layers.{layer}."
        shards.append(
            {
                f"{prefix}self_attn.q_proj.weight": (hidden, hidden),
                f"{prefix}self_attn.k_proj.weight": (keys, hidden),
                f"{prefix}self_attn.v_proj.weight": (keys, hidden),
                f"{prefix}self_attn.o_proj.weight": (hidden, hidden),
                f"{prefix}mlp.gate_proj.weight": (inner, hidden),
                f"{prefix}mlp.up_proj.weight": (inner, hidden),
                f"{prefix}mlp.down_proj.weight": (hidden, inner),
                f"{prefix}input_layernorm.weight": (hidden,),
                f"{prefix}post_attention_layernorm.weight": (hidden,),
            }
        )
    last: dict[str, tuple[int, ...]] = {"model.norm.weight": (hidden,)}
    if not sizes["tie_word_embeddings"]:
        last["lm_head.weight"] = (vocabulary, hidden)
    return [*shards, last]


def _random(name: str, shape: tuple[int, ...], seed: int) -> NDArray[np.float16]:
    """Weights that depend on the name and the seed alone; norms are ones."""
    if "norm" in name:
        return np.ones(shape, np.float16)
    generator = np.random.default_rng((seed, zlib.crc32(name.encode())))
    array = generator.standard_normal(shape, dtype=np.float32)
    array *= np.float32(_DEVIATION)
    return array.astype(np.float16)


def _tokenizer(directory: Path) -> None:
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
    from transformers import PreTrainedTokenizerFast

    from edgebench.export.sample_text import TEXTS

    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=1000,
        special_tokens=["<|endoftext|>"],
        initial_alphabet=sorted(pre_tokenizers.ByteLevel.alphabet()),
        show_progress=False,
    )
    tokenizer.train_from_iterator(TEXTS, trainer)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="<|endoftext|>",
        eos_token="<|endoftext|>",
        model_input_names=["input_ids", "attention_mask"],
    ).save_pretrained(directory)


def _adapter(directory: Path, sizes: dict[str, Any], seed: int) -> None:
    from safetensors.numpy import save_file

    directory.mkdir(exist_ok=True)
    config = {
        "peft_type": "LORA",
        "task_type": "CAUSAL_LM",
        "r": _RANK,
        "lora_alpha": 2 * _RANK,
        "target_modules": ["q_proj", "v_proj"],
        "bias": "none",
        "fan_in_fan_out": False,
        "base_model_name_or_path": "",
    }
    (directory / "adapter_config.json").write_text(json.dumps(config, indent=2) + "\n")
    tensors = {}
    for shard in _shards(sizes):
        for name, (n, *rest) in shard.items():
            if "q_proj" not in name and "v_proj" not in name:
                continue
            prefix = f"base_model.model.{name.removesuffix('.weight')}.lora_"
            tensors[f"{prefix}A.weight"] = _random(f"{prefix}A", (_RANK, *rest), seed)
            tensors[f"{prefix}B.weight"] = _random(f"{prefix}B", (n, _RANK), seed)
    save_file(tensors, directory / "adapter_model.safetensors", metadata={"format": "pt"})


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--shape", choices=list(SHAPES), default="0.1b")
    parser.add_argument("--layers", type=int, help="layers instead of the shape's own")
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--seed", type=int, default=0)
    arguments = parser.parse_args()
    print(make(arguments.out, arguments.shape, arguments.layers, arguments.seed))
    return 0


if __name__ == "__main__":
    sys.exit(main())
