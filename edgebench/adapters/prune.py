"""Pruning a gated model: what hard gates close is taken out of the matrices and of the layer list.

A head's share of q is ``head_dim`` rows, of o ``head_dim`` columns. Under grouped-query attention a
key-value head goes when all its query heads have gone. Where the groups that are left have one
size, attention repeats each key-value head that often, as before. Where they have not, every query
head takes its key-value head by index (``_uneven_attention``); nothing is padded or copied into the
weights.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor, nn

from edgebench.adapters.gated import GatedLora, GatedModel, head_count, kv_head_count
from edgebench.errors import CheckpointError

_UNEVEN = "edgebench_uneven_groups"


class Branch(nn.Module):
    """A linear module with a low-rank branch, y = W x + b + B (A x): the factors as they are."""

    def __init__(self, linear: nn.Linear, a: Tensor, b: Tensor) -> None:
        super().__init__()
        self.linear = linear
        self.a = _matrix(a)
        self.b = _matrix(b)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.linear(x) + self.b(self.a(x))
        return y


class NoAttention(nn.Module):
    """Attention without a head: what it puts out is the bias of its output projection."""

    bias: Tensor

    def __init__(self, bias: Tensor | None, width: int) -> None:
        super().__init__()
        self.register_buffer("bias", torch.zeros(width) if bias is None else bias.detach().clone())

    def forward(self, *_args: Any, **_kwargs: Any) -> tuple[Tensor, None]:
        """[d], which broadcasts over [batch, tokens, d]."""
        return self.bias, None


class _Passed(nn.Module):
    """In the output projection's place behind ``NoAttention``."""

    def forward(self, x: Tensor) -> Tensor:
        return x


@torch.no_grad()
def prune(gated: GatedModel, *, merged: bool) -> Any:
    """The transformers model that hard gates leave, made of the gated one in place.

    Args:
        merged: fold the factors into their weights; else they stay as branches of the kept ranks.

    Raises:
        CheckpointError: the gates leave no attention, or a model that can't be cut there.
    """
    layers = gated.layer_list()
    kept = gated.kept_layers()
    values = gated.head_values()
    refuse_nothing(kept, values)
    blocks = gated.blocks
    if getattr(gated.model.base_model, "encoder", None) is not None:
        conv = getattr(gated.model.base_model.encoder, "conv", None)
        if conv is not None and kept[0] != 0:
            raise CheckpointError(
                "the first layer's gate is closed, and this DeBERTa's convolution hangs on it",
                fix="Keep layer 0, or use a base without conv_kernel_size.",
            )
    for index in kept:
        layer = layers[index]
        for name in blocks.linears:
            part = layer.get_submodule(name)
            if isinstance(part, GatedLora):
                _replace(layer, name, _hard(part, merged))
        layer.get_submodule(blocks.o)._forward_pre_hooks.clear()
        layer._forward_hooks.clear()
        layer._forward_hooks_with_kwargs.clear()
        _prune_heads(gated, layer, values[index])
    _keep_layers(gated, kept)
    return gated.model


def refuse_nothing(kept: tuple[int, ...], values: Tensor) -> None:
    """Refuse gates that leave no attention at all.

    Raises:
        CheckpointError: every layer's gate is closed, or every head's in the layers that are left.
    """
    if kept and bool((values[list(kept)] > 0).any()):
        return
    raise CheckpointError(
        "all layer gates are closed: nothing of the model is left"
        if not kept
        else "all head gates of the layers that are left are closed: no attention is left",
        fix="Train with a weaker sparsity penalty, or use an earlier checkpoint.",
    )


def _hard(part: GatedLora, merged: bool) -> nn.Module:
    a, b = part.hard_factors()
    if merged:
        part.linear.weight += b @ a
    return part.linear if merged or not len(a) else Branch(part.linear, a, b)


def _prune_heads(gated: GatedModel, layer: nn.Module, values: Tensor) -> None:
    """Take the heads out of one layer whose value is 0, and fold the others' into o."""
    blocks, config = gated.blocks, gated.config
    attention: Any = layer.get_submodule(blocks.attention)
    heads, kv_heads = head_count(config), kv_head_count(config)
    kept = [h for h in range(heads) if values[h] > 0]
    if not kept:
        _no_attention(gated, layer)
        return
    group = heads // kv_heads
    kept_kv = sorted({h // group for h in kept})
    per_head = _linear(layer.get_submodule(blocks.q)).out_features // heads
    rows, kv_rows = _spread(kept, per_head), _spread(kept_kv, per_head)
    for name in (blocks.q, *(p for p in blocks.positions if _has(layer, p))):
        _cut(layer, name, lambda linear: _take_rows(linear, rows), rows_of_b=rows)
    for name in (blocks.k, blocks.v):
        _cut(layer, name, lambda linear: _take_rows(linear, kv_rows), rows_of_b=kv_rows)
    scales = values[kept].repeat_interleave(per_head)
    _cut(
        layer,
        blocks.o,
        lambda linear: _take_columns(linear, rows, scales),
        columns_of_a=rows,
        scales=scales,
    )
    if blocks.heads is not None:
        setattr(attention, blocks.heads, len(kept))
        if hasattr(attention, "all_head_size"):
            attention.all_head_size = len(rows)
    if kv_heads != heads or hasattr(attention, "num_key_value_groups"):
        _regroup(attention, [kept_kv.index(h // group) for h in kept])


def _regroup(attention: Any, of_head: list[int]) -> None:
    """Say which key-value head each query head that is left takes, [H']."""
    sizes = [of_head.count(kv) for kv in range(max(of_head) + 1)]
    attention.num_key_value_groups = sizes[0]
    if len(set(sizes)) == 1:
        return
    from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

    ALL_ATTENTION_FUNCTIONS.register(_UNEVEN, _uneven_attention)
    attention.config = copy.copy(attention.config)
    attention.config._attn_implementation = _UNEVEN
    attention.register_buffer("kv_of_head", torch.tensor(of_head), persistent=False)


def _uneven_attention(  # transformers' interface of an attention function
    module: Any,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    scaling: float,
    **_kwargs: Any,
) -> tuple[Tensor, Tensor]:
    """Attention where query head h takes key-value head ``kv_of_head[h]``.

    query [batch, H', T, d], key and value [batch, KV', T, d] -> [batch, T, H', d].
    """
    key, value = key[:, module.kv_of_head], value[:, module.kv_of_head]
    scores = query @ key.transpose(2, 3) * scaling
    if attention_mask is not None:
        scores = scores + attention_mask[:, :, :, : key.shape[-2]]
    weights = torch.softmax(scores, dim=-1)
    return (weights @ value).transpose(1, 2).contiguous(), weights


def _no_attention(gated: GatedModel, layer: nn.Module) -> None:
    blocks = gated.blocks
    output = _linear(layer.get_submodule(blocks.o))
    nothing = NoAttention(output.bias, output.out_features)
    _replace(layer, blocks.attention, nothing)
    if not blocks.o.startswith(f"{blocks.attention}."):
        _replace(layer, blocks.o, _Passed())


def _keep_layers(gated: GatedModel, kept: tuple[int, ...]) -> None:
    """Leave only these layers in the list, numbered anew."""
    config, layers = gated.config, gated.layer_list()
    if types := getattr(config, "layer_types", None):
        config.layer_types = [types[index] for index in kept]
    config.num_hidden_layers = len(kept)
    left = nn.ModuleList(layers[index] for index in kept)
    for position, layer in enumerate(left):
        parts: Iterable[Any] = layer.modules()
        for part in parts:
            if hasattr(part, "layer_idx"):
                part.layer_idx = position
    _replace(gated.model.base_model, gated.blocks.layers, left)


def _cut(
    layer: nn.Module,
    name: str,
    change: Callable[[nn.Linear], nn.Linear],
    *,
    rows_of_b: Tensor | None = None,
    columns_of_a: Tensor | None = None,
    scales: Tensor | None = None,
) -> None:
    """Cut a linear module, and the factors beside it in the same way."""
    part = layer.get_submodule(name)
    if isinstance(part, Branch):
        part.linear = change(part.linear)
        if rows_of_b is not None:
            part.b = _matrix(part.b.weight[rows_of_b])
        if columns_of_a is not None and scales is not None:
            part.a = _matrix(part.a.weight[:, columns_of_a] * scales)
        return
    assert isinstance(part, nn.Linear)
    _replace(layer, name, change(part))


def _take_rows(linear: nn.Linear, rows: Tensor) -> nn.Linear:
    return _matrix(linear.weight[rows], None if linear.bias is None else linear.bias[rows])


def _take_columns(linear: nn.Linear, columns: Tensor, scales: Tensor) -> nn.Linear:
    return _matrix(linear.weight[:, columns] * scales, linear.bias)


def _matrix(weight: Tensor, bias: Tensor | None = None) -> nn.Linear:
    """A linear module with these values, [d_out, d_in] and [d_out]."""
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None)
    made.weight = nn.Parameter(weight.detach().clone().contiguous(), requires_grad=False)
    if bias is not None:
        made.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return made


def _linear(part: nn.Module) -> nn.Linear:
    found = part.linear if isinstance(part, Branch) else part
    assert isinstance(found, nn.Linear)
    return found


def _spread(heads: list[int], per_head: int) -> Tensor:
    """Rows of these heads: [len(heads) * per_head]."""
    return (torch.tensor(heads)[:, None] * per_head + torch.arange(per_head)).flatten()


def _has(module: nn.Module, name: str) -> bool:
    return name in dict(module.named_modules())


def _replace(root: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, last = name.rpartition(".")
    setattr(root.get_submodule(parent) if parent else root, last, module)
