"""Gates over layers, attention heads and LoRA ranks (MetaS-PEFT, EChorda, DiGASE).

With hard-concrete gates z (``hard_concrete.py``) in [0, 1], a layer f_l with H heads, and LoRA
factors A [r, d_in] and B [d_out, r] on a linear module W:

    layer   h_{l+1} = h_l + z_l (f_l(h_l) - h_l)
    head    o_l(concat_h z_lh head_h(x))
    rank    y = W x + (alpha / r) B (z * A x)

DiGASE gates depth and rank; MetaS-PEFT and EChorda gate heads as well. In train mode the gates are
samples. In eval mode they are *hard*: what is computed is what the pruned model computes.

    layer   kept, with z = 1, where the test-time gate exceeds 1/2; else gone. A layer of an encoder
            ends in a norm, so no other value could be folded into its weights.
    head    gone where the gate is 0; else its value is folded into the columns of o.
    rank    gone where the gate is 0; else its value is folded into B.

``prune.py`` then makes the smaller model.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from edgebench.adapters.blocks import Blocks, blocks_of
from edgebench.adapters.expected import Counts, count, probabilities
from edgebench.adapters.hard_concrete import Concrete, HardConcrete
from edgebench.errors import CheckpointError

LAYERS, HEADS, RANKS = "layers", "heads", "ranks"


class GatedLora(nn.Module):
    """A linear module with LoRA factors whose ranks are gated.

    Args:
        linear: the frozen module, weight [d_out, d_in].
        rank: r.
        scale: alpha / r.
        gate: gates [r], or None where ranks are not gated.
    """

    def __init__(
        self, linear: nn.Linear, rank: int, scale: float, gate: HardConcrete | None
    ) -> None:
        super().__init__()
        d_out, d_in = linear.weight.shape
        self.linear = linear
        self.scale = scale
        self.gate = gate
        self.a = nn.Parameter(torch.empty(rank, d_in))
        self.b = nn.Parameter(torch.zeros(d_out, rank))
        nn.init.kaiming_uniform_(self.a, a=5**0.5)  # as LoRA does: B A starts as 0

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d_in] -> [..., d_out]."""
        inner = nn.functional.linear(x, self.a)
        if self.gate is not None:
            inner = inner * self.gate()
        y: Tensor = self.linear(x) + self.scale * nn.functional.linear(inner, self.b)
        return y

    def hard_factors(self) -> tuple[Tensor, Tensor]:
        """A [k, d_in] and B [d_out, k] of the k ranks that are kept, gates and scale in B."""
        values = torch.ones(len(self.a)) if self.gate is None else self.gate.value()
        kept = values > 0
        return self.a[kept], self.scale * values[kept] * self.b[:, kept]


class GatedModel(nn.Module):
    """A transformers model with gates and gated LoRA factors; its own weights are frozen.

    Args:
        model: changed in place: modules with factors become ``GatedLora``.
        modules: names of the linear modules that get factors, and the rank of each.
        gates: which of "layers", "heads" and "ranks" are gated.
        scale: alpha / r.
        concrete: the gates' distribution.

    Raises:
        CheckpointError: the architecture is not known, or a module is not there.
    """

    def __init__(
        self,
        model: Any,
        modules: dict[str, int],
        *,
        gates: Iterable[str] = (LAYERS, HEADS, RANKS),
        scale: float = 1.0,
        concrete: Concrete | None = None,
    ) -> None:
        super().__init__()
        self.blocks: Blocks = blocks_of(model.config.model_type)
        model.requires_grad_(False)
        model.config.use_cache = False
        self.model = model
        self.gated = tuple(gates)
        self.scale = scale
        self.concrete = concrete or Concrete()
        layers = self.layer_list()
        heads = head_count(model.config)
        self.layer_gates = self._gates(LAYERS, len(layers))
        self.head_gates = self._gates(HEADS, len(layers), heads)
        for name, rank in modules.items():
            self._put_factors(name, rank)
        self._watch(layers)

    def _gates(self, what: str, *shape: int) -> HardConcrete | None:
        return HardConcrete(*shape, concrete=self.concrete) if what in self.gated else None

    def _put_factors(self, name: str, rank: int) -> None:
        if not name.endswith(tuple(f".{linear}" for linear in self.blocks.linears)):
            raise CheckpointError(
                f"the adapter changes {name}, which is no linear module of a layer",
                fix=f"Those are: {', '.join(self.blocks.linears)}.",
            )
        try:
            linear = self.model.get_submodule(name)
        except AttributeError as error:
            raise CheckpointError(
                f"the adapter changes {name}, which the base does not have",
                fix="Give its own base with --base, or check the path.",
            ) from error
        if not isinstance(linear, nn.Linear):
            raise CheckpointError(
                f"the adapter changes {name}, which is a {type(linear).__name__}, not a Linear"
            )
        parent, _, last = name.rpartition(".")
        factors = GatedLora(linear, rank, self.scale, self._gates(RANKS, rank))
        setattr(self.model.get_submodule(parent), last, factors)

    def _watch(self, layers: nn.ModuleList) -> None:
        """Gate layers and heads by hooks, so that every module keeps its name."""
        for index, layer in enumerate(layers):
            if self.layer_gates is not None:
                layer.register_forward_hook(self._layer_hook(index), with_kwargs=True)
            if self.head_gates is not None:
                output = layer.get_submodule(self.blocks.o)
                output.register_forward_pre_hook(self._head_hook(index))

    def _layer_hook(self, index: int) -> Any:
        def gate(_layer: Any, args: Any, kwargs: Any, output: Any) -> Any:
            entered = args[0] if args else kwargs["hidden_states"]
            made = output[0] if isinstance(output, tuple) else output
            passed = entered + self.layer_values()[index] * (made - entered)
            return (passed, *output[1:]) if isinstance(output, tuple) else passed

        return gate

    def _head_hook(self, index: int) -> Any:
        def gate(_module: Any, args: Any) -> Any:
            assert self.head_gates is not None
            values = self.head_gates()[index]
            return (args[0] * values.repeat_interleave(args[0].shape[-1] // len(values)),)

        return gate

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        return self.model(*args, **kwargs)

    @property
    def config(self) -> Any:
        return self.model.config

    def layer_list(self) -> nn.ModuleList:
        """The model's layers."""
        found: nn.ModuleList = self.model.base_model.get_submodule(self.blocks.layers)
        return found

    def factors(self) -> dict[str, GatedLora]:
        """The modules with factors, by name."""
        parts = self.model.named_modules()
        return {name: part for name, part in parts if isinstance(part, GatedLora)}

    def layer_values(self) -> Tensor:
        """The layers' gates [L]: samples in train mode, 0 or 1 in eval mode."""
        if self.layer_gates is None:
            return torch.ones(len(self.layer_list()))
        if self.training:
            return self.layer_gates.sample()
        return (self.layer_gates.value() > 0.5).to(self.layer_gates.log_alpha.dtype)

    def kept_layers(self) -> tuple[int, ...]:
        """The layers that hard gates leave."""
        if self.layer_gates is None:
            return tuple(range(len(self.layer_list())))
        return tuple(int(i) for i in torch.nonzero(self.layer_gates.value() > 0.5))

    def head_values(self) -> Tensor:
        """The heads' test-time gates [L, H]."""
        if self.head_gates is None:
            return torch.ones(len(self.layer_list()), head_count(self.config))
        return self.head_gates.value()

    def trained(self) -> dict[str, nn.Parameter]:
        """The parameters that are trained: factors, gates, and those of a head that is unfrozen."""
        return {name: p for name, p in self.named_parameters() if p.requires_grad}

    def expected(self) -> Counts:
        """Expected counts under the gates' distribution, differentiable (never rounded)."""
        layers, heads = self.layer_list(), head_count(self.config)
        return count(
            self.model,
            layers,
            self.blocks,
            probabilities(self.layer_gates, len(layers)),
            probabilities(self.head_gates, len(layers), heads),
            kv_head_count(self.config),
        )


def head_count(config: Any) -> int:
    """Query heads of a layer (DistilBERT's configuration answers to the common name too)."""
    return int(config.num_attention_heads)


def kv_head_count(config: Any) -> int:
    """Key-value heads of a layer: fewer than query heads in grouped-query attention."""
    return int(getattr(config, "num_key_value_heads", None) or head_count(config))
