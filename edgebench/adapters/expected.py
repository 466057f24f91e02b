"""Expected counts of a gated model: the differentiable half of the statistics vector s.

Gates are independent, so the expectation of a product is the product of expectations. With p_l,
p_lh and p_mr the probabilities that a layer's, a head's and a rank's gate is not 0:

    layers  sum_l p_l (1 - prod_h (1 - p_lh))
    heads   sum_l p_l sum_h p_lh
    ranks   sum_l p_l sum_{m in l} sum_r p_mr

A key-value head is kept while any of its query heads is: 1 - prod over its group of (1 - p_lh).
Nothing is rounded, so every count has a gradient in every gate that it depends on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from edgebench.adapters.blocks import Blocks
from edgebench.adapters.hard_concrete import HardConcrete


@dataclass(frozen=True)
class Counts:
    """Expected counts of what is kept, each a differentiable scalar.

    A layer counts where it has a head left, as it does in an artifact's statistics. ``parameters``
    are those of the model with its branches unmerged; times the bits of each, they are param_bits.
    """

    layers: Tensor
    heads: Tensor
    ranks: Tensor
    parameters: Tensor


def probabilities(gates: HardConcrete | None, *shape: int) -> Tensor:
    """Each gate's probability of not being 0; 1 where nothing is gated."""
    return torch.ones(shape) if gates is None else gates.expected()


def count(
    model: nn.Module,
    layers: nn.ModuleList,
    blocks: Blocks,
    p_layer: Tensor,
    p_head: Tensor,
    kv_heads: int,
) -> Counts:
    """Expected counts.

    Args:
        model: the whole model, with its factors in place.
        layers: its layers.
        blocks: where a layer keeps what.
        p_layer: [L].
        p_head: [L, H].
        kv_heads: key-value heads of a layer.
    """
    p_kv = 1 - (1 - p_head.reshape(len(layers), kv_heads, -1)).prod(-1)
    zero = p_layer.new_zeros(())
    ranks, parameters = zero, zero
    for index, layer in enumerate(layers):
        shares = _Shares(blocks, p_head[index].mean(), p_kv[index].mean())
        inside, of_layer = _layer(layer, shares)
        ranks = ranks + p_layer[index] * of_layer
        parameters = parameters + p_layer[index] * inside
    held = {id(p) for p in layers.parameters()}
    outside = sum(p.numel() for p in model.parameters() if id(p) not in held)
    return Counts(
        layers=(p_layer * (1 - (1 - p_head).prod(-1))).sum(),
        heads=(p_layer[:, None] * p_head).sum(),
        ranks=ranks,
        parameters=parameters + outside,
    )


@dataclass(frozen=True)
class _Shares:
    """The share of a matrix's rows and columns that its heads leave."""

    blocks: Blocks
    heads: Tensor
    kv_heads: Tensor

    def rows(self, module: str) -> Tensor | int:
        if module in (self.blocks.q, *self.blocks.positions):
            return self.heads
        return self.kv_heads if module in (self.blocks.k, self.blocks.v) else 1

    def columns(self, module: str) -> Tensor | int:
        return self.heads if module == self.blocks.o else 1


def _layer(layer: nn.Module, shares: _Shares) -> tuple[Tensor, Tensor]:
    """Expected parameters and ranks of a layer that is kept."""
    from edgebench.adapters.gated import GatedLora

    zero = shares.heads.new_zeros(())
    parameters, ranks = zero, zero
    for name, part in layer.named_modules():
        module = name.removesuffix(".linear")
        if isinstance(part, GatedLora):
            left = probabilities(part.gate, len(part.a)).sum()
            inner = part.a.shape[1] * shares.columns(module)
            outer = part.b.shape[0] * shares.rows(module)
            ranks = ranks + left
            parameters = parameters + left * (inner + outer)
        elif not isinstance(part, HardConcrete):
            for leaf, p in part.named_parameters(recurse=False):
                share = shares.rows(module)
                if leaf == "weight":
                    share = share * shares.columns(module)
                parameters = parameters + p.numel() * share
    return parameters, ranks
