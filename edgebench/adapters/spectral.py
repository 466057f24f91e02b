"""Spectral directions with a controller (HEST, TABS, BHSP).

On a linear module W [d_out, d_in] of each layer, R directions U diag(S) V with U [d_out, R],
S [R], V [R, d_in] and gates g in (0, 1):

    y = W x + U (g * S * (V x))

    TABS  g(x) = sigmoid(W_tok x) sigmoid(w_layer)      a gate for each token and direction
    BHSP  g    = sigmoid(w_layer)                       one for all tokens: no controller
    HEST  as TABS, and each direction is off, int8 or fp16

W_tok = E D is a controller of width k, D [k, d_in] and E [R, k], shared by all layers; w_layer [R]
is each layer's own. HEST keeps a logit for each state; in train mode a direction is the mixture

    p_int8 Q8(U_j, V_j) + p_fp16 Q16(U_j, V_j),   p = softmax over (off, int8, fp16)

with Q8 a product of 8-bit integers: one symmetric scale a vector, and activations rounded to 8 bits
when they come (``integer``: V's are x, U's are the gated V x with U's scales in them). Q16 rounds
the vectors to fp16; a CPU computes with them in fp32. The gradient passes through both (straight
through: Bengio et al. 2013, arXiv:1308.3432). In eval mode it is *hard*: each direction is what its
largest logit says. TABS and BHSP have no states: their directions are as they are trained.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from edgebench.adapters.blocks import blocks_of
from edgebench.adapters.integer import (
    IntegerLinear,
    codes_and_scales,
    rounded_activations,
    to_fp16,
    to_int8,
)
from edgebench.errors import CheckpointError

OFF, INT8, FP16 = range(3)
STATES = ("off", "int8", "fp16")

DIRECTIONS, WIDTH = 16, 32


class Controller(nn.Module):
    """W_tok = E D, shared by all layers: x [..., d_in] -> logits [..., R]."""

    def __init__(self, d_in: int, width: int, directions: int) -> None:
        super().__init__()
        self.down = nn.Linear(d_in, width, bias=False)
        self.up = nn.Linear(width, directions, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.up(self.down(x))
        return logits


class Spectral(nn.Module):
    """A linear module with spectral directions beside it.

    Args:
        linear: the frozen module.
        directions: R.
        controller: shared by all layers; None for one gate for all tokens.
        states: whether directions have states (HEST).
    """

    def __init__(
        self, linear: nn.Linear, directions: int, controller: Controller | None, states: bool
    ) -> None:
        super().__init__()
        d_out, d_in = linear.weight.shape
        self.linear = linear
        # In a list, so that a shared module is not a part of each layer.
        self._controller = [controller]
        self.u = nn.Parameter(torch.zeros(d_out, directions))
        self.s = nn.Parameter(torch.ones(directions))
        self.v = nn.Parameter(torch.empty(directions, d_in))
        nn.init.orthogonal_(self.v)
        self.layer_gate = nn.Parameter(torch.zeros(directions))
        self.state_logits = nn.Parameter(torch.zeros(directions, 3)) if states else None

    @property
    def controller(self) -> Controller | None:
        return self._controller[0]

    def states(self) -> Tensor:
        """Each direction's hard state [R]: OFF, INT8 or FP16."""
        if self.state_logits is None:
            return torch.full((len(self.s),), FP16)
        return self.state_logits.argmax(1)

    def shares(self) -> Tensor:
        """p [R, 3]: a softmax in train mode, one-hot of ``states`` in eval mode."""
        if self.training and self.state_logits is not None:
            return torch.softmax(self.state_logits, dim=1)
        return nn.functional.one_hot(self.states(), 3).to(self.s.dtype)

    def forward(self, x: Tensor) -> Tensor:
        """x [..., d_in] -> [..., d_out]."""
        y: Tensor = self.linear(x)
        layer = torch.sigmoid(self.layer_gate) * self.s
        token = None if self.controller is None else torch.sigmoid(self.controller(x))
        if self.state_logits is None:
            return y + nn.functional.linear(
                _gated(nn.functional.linear(x, self.v), token, layer), self.u
            )
        p = self.shares()
        inner = nn.functional.linear(x, to_fp16(self.v))
        y = y + nn.functional.linear(_gated(inner, token, layer * p[:, FP16]), to_fp16(self.u))
        inner = nn.functional.linear(rounded_activations(x), to_int8(self.v, 1))
        scale = codes_and_scales(self.u, 0)[1]
        largest = scale.max()
        inner = _gated(inner, token, layer * p[:, INT8] * (scale[0] / largest))
        codes = to_int8(self.u, 0) / scale
        return y + nn.functional.linear(rounded_activations(inner), codes) * largest

    @torch.no_grad()
    def kept(self) -> Tensor:
        """The directions that are not off, as indices [n]."""
        return torch.nonzero(self.states() != OFF).flatten()

    @torch.no_grad()
    def counts(self) -> dict[str, int]:
        """Directions by state; of an adapter without states all are "fp32"."""
        if self.state_logits is None:
            return {"fp32": len(self.s)}
        states = self.states()
        return {name: int((states == index).sum()) for index, name in enumerate(STATES)}

    @torch.no_grad()
    def delta(self) -> Tensor:
        """The update as a matrix [d_out, d_in], where no gate depends on a token."""
        return (self.u * (torch.sigmoid(self.layer_gate) * self.s)) @ self.v


class HardSpectral(nn.Module):
    """The directions that are left: fp32 ones (TABS, BHSP), or fp16 and int8 ones (HEST).

    Each kind is a branch U (gates * (V x)) of its own; one without directions is not there.
    """

    def __init__(self, part: Spectral) -> None:
        super().__init__()
        # "base" tells whoever reads the graph that all else here is the adapter's.
        self.base = part.linear
        self.down = None if part.controller is None else part.controller.down
        self.branches = nn.ModuleList()
        layer = torch.sigmoid(part.layer_gate) * part.s
        up = None if part.controller is None else part.controller.up.weight
        for state, make in ((FP16, _plain if part.state_logits is None else _fp16), (INT8, _int8)):
            chosen = torch.nonzero(part.states() == state).flatten()
            if len(chosen):
                v, u, gate = make(part.v[chosen], part.u[:, chosen], layer[chosen])
                gates = None if up is None else _matrix(up[chosen])
                self.branches.append(Branch(v, u, gate, gates))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        narrow = None if self.down is None else self.down(x)
        for branch in self.branches:
            y = y + branch(x, narrow)
        return y


class Branch(nn.Module):
    """Directions of one kind, U (sigmoid(E D x) * gate * (V x)).

    Args:
        v, u: modules [..., d_in] -> [..., n] and [..., n] -> [..., d_out].
        gate: [n], the same for all tokens.
        up: E; None without a controller.
    """

    gate: Tensor

    def __init__(self, v: nn.Module, u: nn.Module, gate: Tensor, up: nn.Module | None) -> None:
        super().__init__()
        self.v, self.u, self.up = v, u, up
        self.register_buffer("gate", gate.detach().clone())

    def forward(self, x: Tensor, narrow: Tensor | None) -> Tensor:
        """x [..., d_in], and D x [..., k] where there is a controller -> [..., d_out]."""
        token = None if self.up is None else torch.sigmoid(self.up(narrow))
        y: Tensor = self.u(_gated(self.v(x), token, self.gate))
        return y


class Fp16Linear(nn.Linear):
    """A matrix whose values are fp16's; ``edgebench.export.graph`` stores it in fp16."""


def _gated(inner: Tensor, token: Tensor | None, layer: Tensor) -> Tensor:
    return (inner if token is None else inner * token) * layer


def _plain(v: Tensor, u: Tensor, gate: Tensor) -> tuple[nn.Module, nn.Module, Tensor]:
    return _matrix(v), _matrix(u), gate


def _fp16(v: Tensor, u: Tensor, gate: Tensor) -> tuple[nn.Module, nn.Module, Tensor]:
    return _matrix(to_fp16(v), Fp16Linear), _matrix(to_fp16(u), Fp16Linear), gate


def _int8(v: Tensor, u: Tensor, gate: Tensor) -> tuple[nn.Module, nn.Module, Tensor]:
    """V's scales follow its product. U's run along what is summed: the largest follows, and the
    gate has what the others are short of it."""
    inner, inner_scale = codes_and_scales(v, 1)
    outer, outer_scale = codes_and_scales(u, 0)
    largest = outer_scale.max()
    return (
        IntegerLinear(inner, inner_scale[:, 0]),
        IntegerLinear(outer, largest),
        gate * (outer_scale[0] / largest),
    )


def put_directions(
    model: Any, role: str, *, directions: int, width: int | None, states: bool
) -> dict[str, Spectral]:
    """Put directions on one linear module of every layer, in place; name -> module.

    Args:
        role: a module's name inside a layer (``blocks.Blocks.linears``).
        width: of the controller; None for one gate for all tokens.

    Raises:
        CheckpointError: the architecture is not known, or has no such module.
    """
    blocks = blocks_of(model.config.model_type)
    if role not in blocks.linears:
        raise CheckpointError(
            f"no layer has a linear module {role!r}", fix=f"Those are: {', '.join(blocks.linears)}."
        )
    model.requires_grad_(False)
    model.config.use_cache = False
    layers = model.base_model.get_submodule(blocks.layers)
    names = {id(module): name for name, module in model.named_modules()}
    controller = None
    if width is not None:
        d_in = layers[0].get_submodule(role).weight.shape[1]
        controller = Controller(d_in, width, directions)
    found = {}
    for layer in layers:
        linear = layer.get_submodule(role)
        name = names[id(linear)]
        part = Spectral(linear, directions, controller, states)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, part)
        found[name] = part
    return found


def counts(model: nn.Module) -> dict[str, int]:
    """Directions by state, over all modules of a model."""
    found: dict[str, int] = {}
    for part in model.modules():
        if isinstance(part, Spectral):
            for state, number in part.counts().items():
                found[state] = found.get(state, 0) + number
    return found


@torch.no_grad()
def harden(model: Any, parts: Iterable[tuple[str, Spectral]], *, merged: bool) -> Any:
    """Replace directions by what is left of them, in place.

    Args:
        merged: fold directions whose gate depends on no token into the weight.
    """
    for name, part in parts:
        if merged:
            if part.controller is not None or part.state_logits is not None:
                raise CheckpointError(
                    "directions gated for each token can't be folded into a weight",
                    fix="Export with --lowering unmerged.",
                )
            part.linear.weight += part.delta()
        made = part.linear if merged or not len(part.kept()) else HardSpectral(part)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, made)
    return model


def _matrix(weight: Tensor, kind: type[nn.Linear] = nn.Linear) -> nn.Linear:
    made = kind(weight.shape[1], weight.shape[0], bias=False)
    made.weight = nn.Parameter(weight.detach().clone().contiguous(), requires_grad=False)
    return made
