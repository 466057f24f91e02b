"""Where a transformer keeps its layers and their attention: a table by architecture, torch-free.

Encoders and decoders spell the same block differently. What gates and pruning need of one is the
list of layers, the attention inside a layer, its four projections, and the feed-forward's.
"""

from __future__ import annotations

from dataclasses import dataclass

from edgebench.errors import CheckpointError


@dataclass(frozen=True)
class Blocks:
    """Names of modules; all but ``layers`` are relative to a layer.

    Attributes:
        layers: the list of layers, relative to the bare model.
        attention: what computes attention from projected states.
        q, k, v, o: the four projections; k and v may have fewer heads (grouped-query attention).
        feed_forward: the other matrices of a layer.
        positions: further matrices whose rows belong to heads (disentangled attention's).
        heads: attribute of ``attention`` that holds the number of heads where its code reads it.
    """

    layers: str
    attention: str
    q: str
    k: str
    v: str
    o: str
    feed_forward: tuple[str, ...]
    positions: tuple[str, ...] = ()
    heads: str | None = None

    @property
    def linears(self) -> tuple[str, ...]:
        return (self.q, self.k, self.v, self.o, *self.feed_forward)


_BERT = Blocks(
    layers="encoder.layer",
    attention="attention.self",
    q="attention.self.query",
    k="attention.self.key",
    v="attention.self.value",
    o="attention.output.dense",
    feed_forward=("intermediate.dense", "output.dense"),
    heads="num_attention_heads",
)
_DEBERTA = Blocks(
    layers="encoder.layer",
    attention="attention.self",
    q="attention.self.query_proj",
    k="attention.self.key_proj",
    v="attention.self.value_proj",
    o="attention.output.dense",
    feed_forward=("intermediate.dense", "output.dense"),
    positions=("attention.self.pos_key_proj", "attention.self.pos_query_proj"),
    heads="num_attention_heads",
)
_DISTILBERT = Blocks(
    layers="transformer.layer",
    attention="attention",
    q="attention.q_lin",
    k="attention.k_lin",
    v="attention.v_lin",
    o="attention.out_lin",
    feed_forward=("ffn.lin1", "ffn.lin2"),
    heads="n_heads",
)
_LLAMA = Blocks(
    layers="layers",
    attention="self_attn",
    q="self_attn.q_proj",
    k="self_attn.k_proj",
    v="self_attn.v_proj",
    o="self_attn.o_proj",
    feed_forward=("mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"),
)

#: transformers' ``model_type`` -> its blocks.
ARCHITECTURES: dict[str, Blocks] = {
    "bert": _BERT,
    "roberta": _BERT,
    "xlm-roberta": _BERT,
    "electra": _BERT,
    "deberta-v2": _DEBERTA,
    "distilbert": _DISTILBERT,
    "llama": _LLAMA,
    "mistral": _LLAMA,
    "qwen2": _LLAMA,
}


def blocks_of(architecture: str) -> Blocks:
    """The blocks of an architecture.

    Raises:
        CheckpointError: it is not in the table.
    """
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"where a {architecture!r} model keeps its layers and heads is not known here",
            where="the base's config.json: model_type",
            fix=f"Known: {', '.join(sorted(ARCHITECTURES))}.",
        )
    return ARCHITECTURES[architecture]
