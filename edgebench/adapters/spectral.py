"""Spectral directions with a controller (HEST, TABS, BHSP).

On a linear module W [d_out, d_in] of each layer, R directions U diag(S) V with U [d_out, R],
S [R], V [R, d_in] and gates g in (0, 1):

    y = W x + U (g * S * (V x))

    TABS  g(x) = sigmoid(W_tok x) sigmoid(w_layer)      a gate for each token and direction
    BHSP  g    = sigmoid(w_layer)                       one for all tokens: no controller
    HEST  as TABS, and each direction is off, int8 or fp16

W_tok = E D is a controller of width k, D [k, d_in] and E [R, k], shared by all layers; w_layer [R]
is each layer's own. HEST keeps a logit for each state; in train mode a direction is the mixture

    p_int8 Q(U_j, V_j) + p_fp16 (U_j, V_j),   p = softmax over (off, int8, fp16)

with Q rounding to 8 bits (one scale a vector, symmetric, straight-through gradient: Bengio et al.
2013, arXiv:1308.3432). In eval mode it is *hard*: each direction is what its largest logit says.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from edgebench.adapters.blocks import blocks_of
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
        gate = torch.sigmoid(self.layer_gate)
        if self.controller is not None:
            gate = gate * torch.sigmoid(self.controller(x))
        gate = gate * self.s
        p = self.shares()
        full = nn.functional.linear(x, self.v) * (gate * p[:, FP16])
        y: Tensor = self.linear(x) + nn.functional.linear(full, self.u)
        if self.state_logits is not None:
            rounded = nn.functional.linear(x, to_int8(self.v, 1)) * (gate * p[:, INT8])
            y = y + nn.functional.linear(rounded, to_int8(self.u, 0))
        return y

    @torch.no_grad()
    def hard(self) -> tuple[Tensor, Tensor, Tensor]:
        """What is left: indices [n], V [n, d_in], and U [d_out, n] with S and the layer's gate."""
        states = self.states()
        kept = torch.nonzero(states != OFF).flatten()
        small = (states == INT8)[kept]
        v, u = self.v[kept], self.u[:, kept]
        v = torch.where(small[:, None], to_int8(v, 1), v)
        u = torch.where(small[None, :], to_int8(u, 0), u)
        return kept, v, u * (torch.sigmoid(self.layer_gate) * self.s)[kept]


class HardSpectral(nn.Module):
    """The directions that are left, y = W x + U (sigmoid(E (D x)) * (V x))."""

    def __init__(self, part: Spectral) -> None:
        super().__init__()
        kept, v, u = part.hard()
        self.linear = part.linear
        self.v = _matrix(v)
        self.u = _matrix(u)
        self.down = self.up = None
        if part.controller is not None:
            self.down = part.controller.down
            self.up = _matrix(part.controller.up.weight[kept])

    def forward(self, x: Tensor) -> Tensor:
        inner = self.v(x)
        if self.down is not None and self.up is not None:
            inner = inner * torch.sigmoid(self.up(self.down(x)))
        y: Tensor = self.linear(x) + self.u(inner)
        return y


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


@torch.no_grad()
def harden(model: Any, parts: Iterable[tuple[str, Spectral]], *, merged: bool) -> Any:
    """Replace directions by what is left of them, in place.

    Args:
        merged: fold directions whose gate depends on no token into the weight.
    """
    for name, part in parts:
        kept, v, u = part.hard()
        if merged:
            if part.controller is not None:
                raise CheckpointError(
                    "directions gated for each token can't be folded into a weight",
                    fix="Export with --lowering unmerged.",
                )
            part.linear.weight += u @ v
        made = part.linear if merged or not len(kept) else HardSpectral(part)
        parent, _, last = name.rpartition(".")
        setattr(model.get_submodule(parent), last, made)
    return model


def to_int8(vectors: Tensor, along: int) -> Tensor:
    """Vectors rounded to 8 bits, one symmetric scale each; the gradient passes through.

    Args:
        along: the axis of a vector's elements.
    """
    scale = vectors.detach().abs().amax(dim=along, keepdim=True) / 127
    scale = torch.where(scale > 0, scale, torch.ones_like(scale))
    rounded = (vectors / scale).round() * scale
    return vectors + (rounded - vectors).detach()


def _matrix(weight: Tensor) -> nn.Linear:
    made = nn.Linear(weight.shape[1], weight.shape[0], bias=False)
    made.weight = nn.Parameter(weight.detach().clone().contiguous(), requires_grad=False)
    return made
