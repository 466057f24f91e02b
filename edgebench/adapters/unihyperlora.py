"""UniHyperLoRA: one set of atoms for models of any width and depth.

    dW = sum_{j in top-k} g_j pi_j  P_out u_j v_j^T P_in

    u_j, v_j in R^{d0}          M = 128 atoms, d0 = 256
    P_in(d)  = A diag(h_in(log10 d))  B Phi_d           [d0, d]
    P_out(d) = Phi_d^T B^T diag(h_out(log10 d)) A^T     [d, d0]
    g(depth, role) = W2 sin(W1 [depth, one-hot role] + b1) + b2 + delta_role      [M]
    pi = softmax over the top-k (k <= 2) of  R P_in x

Phi_d [F, d] is the orthonormal cosine basis over the d channels (DCT-II, the F lowest; F <= d), and
A [d0, rho], B [rho, F] are shared: that is what makes the projectors thin, and independent of d. h
is one MLP of log10(d) with two outputs of rho. ``depth`` is the layer's place from 0 (first) to 1
(last). delta [6, M] is all that is tuned on a new model. The routing is for each token, or for each
sequence by its first token.

A classification head of d inputs fits no other width, so the head is generated too: its matrix is
H P_in(d) with H [labels, d0]; what a model's head has before its last matrix and has no trained
weights for is the identity.

Stored: atoms, router, projectors and H as int8 rows; mixer and delta as int4 rows; scales and the
bias of the head in fp16.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from edgebench.adapters import storage
from edgebench.adapters.base import Adapter
from edgebench.adapters.sites import LINEAR_ROLES, Site, depth
from edgebench.adapters.unihyperlora_parts import EIGHT, FOUR, HEADS, part_shapes


class UniHyperLora(Adapter):
    """Members: ``atoms``, ``width``, ``projector_rank``, ``frequencies``, ``active_atoms``,
    ``routing``, ``labels``, ``targets``.
    """

    kind = "UNIHYPERLORA"

    def __init__(self, members: Mapping[str, Any], sites: Iterable[Site]) -> None:
        super().__init__(members, sites)
        self.last = max(1, depth(self.sites) - 1)
        self.values = nn.ParameterDict()
        for name, size in part_shapes(members).items():
            zero = name.endswith("bias") or name == "delta"
            value = torch.zeros(size) if zero else torch.randn(size) / math.sqrt(size[-1])
            self.values[name] = nn.Parameter(value)
        with torch.no_grad():
            self.values["hyper2_bias"].fill_(1.0)  # every direction is open, whatever the width
            self.values["mixer2"].mul_(0.1)  # and the update small
        self.head_bias = nn.Parameter(torch.zeros(members["labels"]))
        self._bases: dict[int, Tensor] = {}

    def part(self, name: str) -> Tensor:
        """A part's values; in training as they will be stored."""
        values: Tensor = self.values[name]
        if not self.training:
            return values
        return storage.rounded_rows(values, 8 if name in EIGHT else 4)

    def projector(self, d: int, output: bool) -> Tensor:
        """diag(h(log10 d)) B Phi_d, [rho, d]: with A it is P_in, and transposed P_out."""
        size = torch.tensor([[math.log10(d)]])
        hidden = torch.tanh(size @ self.part("hyper1").T + self.part("hyper1_bias"))
        h = (hidden @ self.part("hyper2").T + self.part("hyper2_bias"))[0]
        rho = self.members["projector_rank"]
        h = h[rho:] if output else h[:rho]
        basis = self._basis(d)
        return h[:, None] * (self.part("b")[:, : len(basis)] @ basis)

    def _basis(self, d: int) -> Tensor:
        """Phi_d, made once: training asks for it at every site in every step."""
        if d not in self._bases:
            with torch.inference_mode(False):  # made while judging, it is for training too
                self._bases[d] = cosines(d, self.members["frequencies"])
        return self._bases[d]

    def mixture(self, site: Site) -> Tensor:
        """g of a site, [M]."""
        place = torch.zeros(1, 1 + len(LINEAR_ROLES))
        place[0, 0] = site.layer / self.last
        role = LINEAR_ROLES.index(site.role)
        place[0, 1 + role] = 1.0
        hidden = torch.sin(place @ self.part("mixer1").T + self.part("mixer1_bias"))
        mixed = hidden @ self.part("mixer2").T + self.part("mixer2_bias")
        return mixed[0] + self.part("delta")[role]

    def parts(self, site: Site) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """K_in [rho, d_in], V A and R A [M, rho], and diag(g) U A K_out [M, d_out] of a site."""
        a = self.part("a")
        up = (self.part("u") @ a) @ self.projector(site.d_out, True)
        return (
            self.projector(site.d_in, False),
            self.part("v") @ a,
            self.part("router") @ a,
            self.mixture(site)[:, None] * up,
        )

    def update(self, site: Site, x: Tensor) -> Tensor:
        return routed(x, self.members, *self.parts(site))

    def branch(self, site: Site) -> nn.Module:
        return _Branch(self.members, *(part.detach().clone() for part in self.parts(site)))

    def stored(self) -> dict[str, Tensor]:
        tensors = {"head_bias": self.head_bias.detach().half()}
        for name in (*EIGHT, *FOUR):
            bits = 8 if name in EIGHT else 4
            codes, scale = storage.to_rows(self.values[name].detach(), bits)
            tensors |= {name: codes, f"{name}.scale": scale}
        return tensors

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self.head_bias.copy_(tensors["head_bias"].float())
        for name in (*EIGHT, *FOUR):
            values = self.values[name]
            bits = 8 if name in EIGHT else 4
            codes, scale = tensors[name], tensors[f"{name}.scale"]
            values.copy_(storage.from_rows(codes, scale, bits, values.shape[-1]))

    def head_matrix(self, d: int) -> Tensor:
        """H P_in(d), [labels, d]."""
        return (self.part("head") @ self.part("a")) @ self.projector(d, False)

    @torch.no_grad()
    def head(self, module: nn.Module) -> dict[str, Tensor]:
        config: Any = module.config
        last, before = HEADS[config.model_type]
        have = dict(module.named_parameters())
        if f"{last}.weight" not in have:  # token classifiers have one matrix everywhere
            last, before = "classifier", ()
        d = have[f"{last}.weight"].shape[1]
        made = {f"{last}.weight": self.head_matrix(d)}
        if f"{last}.bias" in have:
            made[f"{last}.bias"] = self.head_bias.detach()
        for name in before:
            if f"{name}.weight" in have:
                made[f"{name}.weight"] = torch.eye(have[f"{name}.weight"].shape[0])
                made[f"{name}.bias"] = torch.zeros_like(have[f"{name}.bias"])
        return made


class UniversalHead(nn.Module):
    """The head generated for a width, live: what is trained in the place of ``classifier``."""

    def __init__(self, adapter: UniHyperLora, d: int) -> None:
        super().__init__()
        self.adapter = adapter
        self.d = d

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.linear(x, self.adapter.head_matrix(self.d), self.adapter.head_bias)


class _Branch(nn.Module):
    """A site's update with everything that depends on no token computed beforehand."""

    def __init__(
        self, members: Mapping[str, Any], down: Tensor, v: Tensor, router: Tensor, up: Tensor
    ) -> None:
        super().__init__()
        self.members = dict(members)
        for name, value in (("down", down), ("v", v), ("router", router), ("up", up)):
            self.register_buffer(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return routed(x, self.members, self.down, self.v, self.router, self.up)  # type: ignore[arg-type]


def routed(
    x: Tensor, members: Mapping[str, Any], down: Tensor, v: Tensor, router: Tensor, up: Tensor
) -> Tensor:
    """The update of x [batch, tokens, d_in] -> [batch, tokens, d_out] (see ``parts``)."""
    low = x @ down.T
    decides = low if members["routing"] == "token" else low[:, :1]
    logits = decides @ router.T
    best, indices = logits.topk(members["active_atoms"], dim=-1)
    weights = torch.zeros_like(logits).scatter(-1, indices, best.softmax(-1))
    return ((low @ v.T) * weights) @ up


def cosines(d: int, frequencies: int) -> Tensor:
    """The orthonormal DCT-II basis of d channels, its lowest frequencies: [min(F, d), d]."""
    k = torch.arange(min(frequencies, d), dtype=torch.float64)[:, None]
    n = torch.arange(d, dtype=torch.float64)[None]
    basis = torch.cos(math.pi / d * (n + 0.5) * k) * math.sqrt(2 / d)
    basis[0] /= math.sqrt(2)
    return basis.float()
