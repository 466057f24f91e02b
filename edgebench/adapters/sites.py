"""Where an adapter's updates go: the roles that linear modules play, whatever their names are.

An adapter that is to fit several architectures can't name modules: BERT's ``attention.self.query``
is DistilBERT's ``attention.q_lin``. It names *roles*:

    q, k, v, o          the four projections of attention
    ffn_in, ffn_out     the two of the feed-forward block
    hidden              the norm whose output is the layer's (its representation); decoders of
                        the Llama family have none, and of their feed-forward's two first
                        matrices ffn_in is the one that is not gated (up_proj)

This module imports no torch: a site is found from parameter names and shapes alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from edgebench.errors import CheckpointError

LINEAR_ROLES = ("q", "k", "v", "o", "ffn_in", "ffn_out")
ROLES = (*LINEAR_ROLES, "hidden")

_BERT = {
    "q": "attention.self.query",
    "k": "attention.self.key",
    "v": "attention.self.value",
    "o": "attention.output.dense",
    "ffn_in": "intermediate.dense",
    "ffn_out": "output.dense",
    "hidden": "output.LayerNorm",
}
_DEBERTA = _BERT | {
    "q": "attention.self.query_proj",
    "k": "attention.self.key_proj",
    "v": "attention.self.value_proj",
}
_DISTILBERT = {
    "q": "attention.q_lin",
    "k": "attention.k_lin",
    "v": "attention.v_lin",
    "o": "attention.out_lin",
    "ffn_in": "ffn.lin1",
    "ffn_out": "ffn.lin2",
    "hidden": "output_layer_norm",
}

_LLAMA = {
    "q": "self_attn.q_proj",
    "k": "self_attn.k_proj",
    "v": "self_attn.v_proj",
    "o": "self_attn.o_proj",
    "ffn_in": "mlp.up_proj",
    "ffn_out": "mlp.down_proj",
}

#: transformers' model_type -> (what the list of layers is called, role -> module in a layer).
ARCHITECTURES: dict[str, tuple[str, dict[str, str]]] = {
    "bert": ("encoder.layer", _BERT),
    "roberta": ("encoder.layer", _BERT),
    "xlm-roberta": ("encoder.layer", _BERT),
    "electra": ("encoder.layer", _BERT),
    "deberta-v2": ("encoder.layer", _DEBERTA),
    "distilbert": ("transformer.layer", _DISTILBERT),
    "llama": ("layers", _LLAMA),
    "mistral": ("layers", _LLAMA),
    "qwen2": ("layers", _LLAMA),
}


@dataclass(frozen=True)
class Site:
    """One module that an adapter changes: its name, layer (from 0), role, and its weight's sizes.

    For ``hidden`` both sizes are the width of the representation.
    """

    module: str
    layer: int
    role: str
    d_in: int
    d_out: int


def find_sites(
    shapes: Mapping[str, tuple[int, ...]], architecture: str, roles: Iterable[str]
) -> tuple[Site, ...]:
    """The sites of these roles, layer by layer, in the order of ``ROLES``.

    Args:
        shapes: module name -> shape of its weight.
        architecture: transformers' ``model_type``.
        roles: some of ``ROLES``.

    Raises:
        CheckpointError: the architecture is not known here, or the model lacks a role.
    """
    if architecture not in ARCHITECTURES:
        raise CheckpointError(
            f"this adapter names roles (q, v, ...), and which modules of a {architecture!r} model "
            "play them is not known",
            where="the base's config.json: model_type",
            fix=f"Known: {', '.join(sorted(ARCHITECTURES))}.",
        )
    layers, modules = ARCHITECTURES[architecture]
    found = []
    for role in sorted(set(roles), key=ROLES.index):
        if role not in modules:
            raise CheckpointError(
                f"no module of a {architecture!r} model plays the role {role!r}",
                where="adapter_config.json: targets",
                fix=f"It has {', '.join(modules)}.",
            )
        pattern = re.compile(rf"(?:^|\.){re.escape(layers)}\.(\d+)\.{re.escape(modules[role])}$")
        here = [(m, name, shape) for name, shape in shapes.items() if (m := pattern.search(name))]
        if not here:
            raise CheckpointError(
                f"the base has no module that plays the role {role!r}",
                where=f"{layers}.<n>.{modules[role]}",
                fix="Give the base that the adapter was trained on.",
            )
        for match, name, shape in here:
            d_out, d_in = (shape[0], shape[0]) if len(shape) == 1 else (shape[0], shape[1])
            found.append(Site(name, int(match[1]), role, d_in, d_out))
    return tuple(sorted(found, key=lambda site: (site.layer, ROLES.index(site.role))))


def depth(sites: Iterable[Site]) -> int:
    """The number of layers that sites are in, counting from the first of the model."""
    return 1 + max(site.layer for site in sites)
