"""What a decoder is, read from config.json: sizes, rotary positions, and which tensors it has.

The Llama family: pre-normalised blocks of grouped-query attention with rotary positions and a
gated SiLU feed-forward (Touvron et al. 2023, arXiv:2302.13971; GQA: Ainslie et al. 2023,
arXiv:2305.13245; RoPE: Su et al. 2021, arXiv:2104.09864). Mistral and Qwen2 differ in biases and
windows alone. What is not computed here is refused, never approximated.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebench.errors import CheckpointError, ExportError
from edgebench.export.base import BaseModel
from edgebench.export.weights import read_json

#: ``model_type`` of config.json.
FAMILIES = ("llama", "mistral", "qwen2")

_ROPE_TYPES = ("default", "linear", "llama3")

TABLE = "model.embed_tokens"
NORM = "model.norm"
HEAD = "lm_head"

Array = NDArray[np.float32]


@dataclass(frozen=True)
class Linear:
    """One matrix [n, k] of a decoder: ``name`` without its ``.weight``."""

    name: str
    n: int
    k: int
    biased: bool = False


@dataclass(frozen=True)
class Layer:
    """The names of one block's tensors."""

    index: int
    q: Linear
    k: Linear
    v: Linear
    o: Linear
    gate: Linear
    up: Linear
    down: Linear
    attention_norm: str
    feed_forward_norm: str

    @property
    def matrices(self) -> tuple[Linear, ...]:
        return (self.q, self.k, self.v, self.o, self.gate, self.up, self.down)


@dataclass(frozen=True)
class Architecture:
    """A decoder's sizes.

    ``max_positions`` is the longest sequence for which the graph computes what the model does: a
    sliding window of attention (Mistral) bounds it, since inside the window there is none.
    ``rope`` holds the rotary parameters under transformers' names.
    """

    family: str
    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    intermediate: int
    vocab_size: int
    max_positions: int
    norm_eps: float
    tied: bool
    eos_token_ids: tuple[int, ...]
    rope: Mapping[str, Any]
    biases: frozenset[str]

    def layer(self, index: int) -> Layer:
        """The tensors of block ``index``."""
        prefix = f"model.layers.{index}"

        def linear(name: str, n: int, k: int) -> Linear:
            full = f"{prefix}.{name}"
            return Linear(full, n, k, full in self.biases)

        queries, keys = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return Layer(
            index=index,
            q=linear("self_attn.q_proj", queries, self.hidden),
            k=linear("self_attn.k_proj", keys, self.hidden),
            v=linear("self_attn.v_proj", keys, self.hidden),
            o=linear("self_attn.o_proj", self.hidden, queries),
            gate=linear("mlp.gate_proj", self.intermediate, self.hidden),
            up=linear("mlp.up_proj", self.intermediate, self.hidden),
            down=linear("mlp.down_proj", self.hidden, self.intermediate),
            attention_norm=f"{prefix}.input_layernorm",
            feed_forward_norm=f"{prefix}.post_attention_layernorm",
        )

    @property
    def table(self) -> Linear:
        return Linear(TABLE, self.vocab_size, self.hidden)

    @property
    def head(self) -> Linear:
        """The output head; of a tied model, the table itself."""
        return self.table if self.tied else Linear(HEAD, self.vocab_size, self.hidden)

    @cached_property
    def matrices(self) -> tuple[Linear, ...]:
        """Every matrix once, in the order in which they are stored."""
        inner = (m for i in range(self.layers) for m in self.layer(i).matrices)
        return (self.table, *inner, *(() if self.tied else (self.head,)))

    @property
    def matrix_weights(self) -> int:
        return sum(matrix.n * matrix.k for matrix in self.matrices)

    def expected(self) -> dict[str, tuple[int, ...]]:
        """Every tensor that the checkpoint must hold, with its shape."""
        shapes: dict[str, tuple[int, ...]] = {}
        for matrix in self.matrices:
            shapes[f"{matrix.name}.weight"] = (matrix.n, matrix.k)
            if matrix.biased:
                shapes[f"{matrix.name}.bias"] = (matrix.n,)
        for index in range(self.layers):
            layer = self.layer(index)
            for norm in (layer.attention_norm, layer.feed_forward_norm):
                shapes[f"{norm}.weight"] = (self.hidden,)
        return shapes | {f"{NORM}.weight": (self.hidden,)}

    def rotary(self) -> tuple[Array, Array]:
        """Cosines and sines [max_positions, head_dim / 2] of every position's angles.

        Taken in fp32 as transformers does: at thousands of radians the rounding of the angle
        itself is what two computations differ by.
        """
        frequencies = _frequencies(self.rope, self.head_dim)
        positions = np.arange(self.max_positions, dtype=np.float32)
        angles = positions[:, None] * frequencies[None, :]
        return np.cos(angles), np.sin(angles)


def read_architecture(base: BaseModel) -> Architecture:
    """Read and check config.json and the tensors' shapes.

    Raises:
        ExportError: an architecture, or a part of one, that this exporter does not compute.
        CheckpointError: a size or a tensor is missing, or a tensor has another shape.
    """
    config = base.config
    family = base.architecture
    if family not in FAMILIES:
        raise ExportError(
            f"decoders of the type {family!r} can't be exported yet",
            where=str(base.path),
            fix=f"These can: {', '.join(FAMILIES)}.",
        )
    _refuse_other_parts(base)
    heads = base.heads
    positions = _integer(base, "max_position_embeddings")
    window = config.get("sliding_window")
    if isinstance(window, int) and config.get("use_sliding_window", family == "mistral"):
        positions = min(positions, window)
    architecture = Architecture(
        family=family,
        layers=base.layers,
        hidden=base.hidden_size,
        heads=heads,
        kv_heads=_integer(base, "num_key_value_heads", heads),
        head_dim=_integer(base, "head_dim", base.hidden_size // heads),
        intermediate=_integer(base, "intermediate_size"),
        vocab_size=_integer(base, "vocab_size"),
        max_positions=positions,
        norm_eps=float(config.get("rms_norm_eps", 1e-6)),
        tied=bool(config.get("tie_word_embeddings", False)),
        eos_token_ids=_eos(base),
        rope=_rope(base),
        biases=frozenset(n.removesuffix(".bias") for n in base.shapes if n.endswith(".bias")),
    )
    _check_sizes(base, architecture)
    _check_tensors(base, architecture)
    return architecture


def _refuse_other_parts(base: BaseModel) -> None:
    config = base.config

    def refuse(what: str) -> None:
        raise ExportError(
            f"{what}, which edgebench's decoder graph does not compute",
            where=str(base.path / "config.json"),
            fix="Give a plain Llama, Mistral or Qwen2 checkpoint in fp32, fp16 or bf16.",
        )

    if config.get("quantization_config"):
        refuse("the checkpoint is quantised already")
    if config.get("hidden_act", "silu") not in ("silu", "swish"):
        refuse(f"the feed-forward's activation is {config['hidden_act']!r}")
    if _rope(base).get("rope_type", "default") not in _ROPE_TYPES:
        refuse(f"the positions are of the type {_rope(base)['rope_type']!r}")
    factor = config.get("partial_rotary_factor", 1.0)
    if _rope(base).get("partial_rotary_factor", factor) != 1.0:
        refuse("only a part of each head is rotated")


def _check_sizes(base: BaseModel, architecture: Architecture) -> None:
    a = architecture
    problems = {
        f"{a.heads} heads are no multiple of {a.kv_heads} key-value heads": a.heads % a.kv_heads,
        f"heads of {a.head_dim} values can't be rotated by ONNX Runtime's attention (it takes "
        "multiples of 16)": a.head_dim % 16,
        "there is no layer": a.layers < 1,
        "there is no position": a.max_positions < 1,
    }
    for problem, wrong in problems.items():
        if wrong:
            raise CheckpointError(
                problem, where=str(base.path / "config.json"), fix="Give another base model."
            )


def _check_tensors(base: BaseModel, architecture: Architecture) -> None:
    for name, shape in architecture.expected().items():
        stored = base.shapes.get(name)
        if stored is None:
            raise CheckpointError(
                f"the base model's tensor {name} is missing",
                where=str(base.path),
                fix="Copy or download the whole checkpoint again.",
            )
        if stored.shape != shape:
            raise CheckpointError(
                f"the base model's tensor {name} is {_size(stored.shape)}, "
                f"config.json says {_size(shape)}",
                where=str(base.path),
                fix="config.json belongs to another model.",
            )


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a scalar"


def _integer(base: BaseModel, name: str, default: int | None = None) -> int:
    value = base.config.get(name)
    if value is None:
        value = default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise CheckpointError(
            f"config.json does not say {name}",
            where=str(base.path),
            fix="Is it a decoder of the Llama family?",
        )
    return value


def _eos(base: BaseModel) -> tuple[int, ...]:
    """End-of-sequence ids: generation_config.json's, else config.json's; () where neither says."""
    file = base.path / "generation_config.json"
    found = read_json(file).get("eos_token_id") if file.is_file() else None
    if found is None:
        found = base.config.get("eos_token_id")
    ids = found if isinstance(found, list) else [found]
    return tuple(token for token in ids if isinstance(token, int))


def _rope(base: BaseModel) -> dict[str, Any]:
    """Rotary parameters; transformers 4 spreads them over the configuration."""
    config = base.config
    rope = dict(config.get("rope_parameters") or config.get("rope_scaling") or {})
    rope.setdefault("rope_type", rope.get("type", "default"))
    rope.setdefault("rope_theta", config.get("rope_theta", 10000.0))
    return rope


def _frequencies(rope: Mapping[str, Any], head_dim: int) -> Array:
    """Angle a position, [head_dim / 2]: theta^(-2 i / d), stretched for longer contexts.

    "linear" divides all by a factor (arXiv:2306.15595). "llama3" (arXiv:2407.21783) divides those
    whose wave is longer than the context trained on, and blends in between.
    """
    exponents = np.arange(0, head_dim, 2, dtype=np.float32) / np.float32(head_dim)
    frequencies = (1.0 / np.float32(rope["rope_theta"]) ** exponents).astype(np.float32)
    if rope["rope_type"] == "default":
        return frequencies
    factor = float(rope["factor"])
    if rope["rope_type"] == "linear":
        return (frequencies / factor).astype(np.float32)
    low, high = float(rope["low_freq_factor"]), float(rope["high_freq_factor"])
    trained = float(rope["original_max_position_embeddings"])
    waves = 2 * math.pi / frequencies
    blend = np.clip((trained / waves - low) / (high - low), 0, 1)
    stretched: Array = (1 - blend) * frequencies / factor + blend * frequencies
    return stretched.astype(np.float32)
