"""HIMALAYA: a rank-one update from a two-tier dictionary that all layers share.

    r = (D_c U + D_e V) / ||D_c U + D_e V||,     y = W x + r (r . x) / sqrt(d)

D_c [24, d] is the core dictionary, of fixed size; D_e [at most 16, d] the elastic one, which grows
with the tasks; x, r in R^d. U and V are the coefficients of at most three atoms, chosen for each
token by a router from the token, the sequence's first token (CLS), and the task's embedding:

    h = silu(R_t x + R_c x_0 + R_k e_task + b)           [width]
    p = sigmoid(G h + g)                                 [atoms]   Bernoulli gates
    u = tanh(C h + c)                                    [atoms]   coefficients

At inference a gate is open where p > 1/2; of the open ones the three largest count, and the largest
of all always does, so that r exists. Coefficients are rounded to int8 (their common scale cancels
in r). The d x d matrix r r^T is never built. It is symmetric, so the sites are square: by default
the query and value projections.

Stored: both dictionaries in three bits (``storage.to_dictionary``), the router in int8 rows with
fp16 biases. In ONNX the update is ``edgebench::DictionaryUpdate`` (``dictionary_op``).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from edgebench.adapters import storage
from edgebench.adapters.base import Adapter
from edgebench.adapters.sites import Site

_PLANES = ("low", "high", "scales", "smooth")
_ROUTER = ("token", "cls", "task", "gate", "coefficient")
_BIASES = ("bias", "gate_bias", "coefficient_bias")

#: Coefficients in -1..1 are this many steps.
STEPS = 127


class Himalaya(Adapter):
    """The dictionaries and the router.

    Members: ``core_atoms``, ``elastic_atoms``, ``active_atoms``, ``router_width``, ``tasks``,
    ``task_width``, ``task`` (the one that this adapter runs), ``targets`` (roles).
    """

    kind = "HIMALAYA"

    def __init__(self, members: Mapping[str, Any], sites: Iterable[Site]) -> None:
        super().__init__(members, sites)
        d = self.sites[0].d_in
        atoms = members["core_atoms"] + members["elastic_atoms"]
        width, tasks, task_width = (members[n] for n in ("router_width", "tasks", "task_width"))
        self.d = d
        self.atoms = nn.Parameter(torch.randn(atoms, d) / math.sqrt(d))
        self.token = nn.Parameter(torch.randn(width, d) / math.sqrt(d))
        self.cls = nn.Parameter(torch.randn(width, d) / math.sqrt(d))
        self.task = nn.Parameter(torch.randn(width, task_width) / math.sqrt(task_width))
        self.bias = nn.Parameter(torch.zeros(width))
        self.gate = nn.Parameter(torch.randn(atoms, width) / math.sqrt(width))
        self.gate_bias = nn.Parameter(torch.zeros(atoms))
        self.coefficient = nn.Parameter(torch.randn(atoms, width) / math.sqrt(width))
        self.coefficient_bias = nn.Parameter(torch.zeros(atoms))
        self.embedding = nn.Parameter(torch.randn(tasks, task_width))
        for name, tensor in storage.to_dictionary(self.atoms.detach()).items():
            self.register_buffer(name, tensor, persistent=False)

    def route(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Indices and coefficients of the active atoms.

        x [batch, tokens, d] -> int64 [batch, tokens, k] and float [batch, tokens, k] of whole
        numbers in -127..127; 0 is an atom that is not active.
        """
        w = self._router()
        hidden = x @ w["token"].T + x[:, :1] @ w["cls"].T
        task = w["embedding"][self.members["task"]] @ w["task"].T
        hidden = nn.functional.silu(hidden + (task + w["bias"]))
        logits = hidden @ w["gate"].T + w["gate_bias"]
        values = (hidden @ w["coefficient"].T + w["coefficient_bias"]).tanh()
        if self.training:  # Bernoulli gates by the logistic trick
            noise = torch.rand_like(logits).clamp(1e-6, 1 - 1e-6)
            logits = logits + (noise / (1 - noise)).log()
        best, indices = logits.topk(self.members["active_atoms"], dim=-1)
        first = torch.arange(best.shape[-1], device=x.device) == 0
        gates = ((best > 0) | first).to(x.dtype)
        steps = STEPS * values.gather(-1, indices)
        rounded = steps.round()
        # A coefficient that rounds to zero would leave the first atom, and so r, without a value.
        rounded = torch.where((rounded == 0) & first, torch.ones_like(rounded), rounded)
        if self.training:  # straight through: the gradients of what was rounded
            rounded = steps + (rounded - steps).detach()
            chance = best.sigmoid()
            gates = chance + (gates - chance).detach()
        return indices, rounded * gates

    def direction(self, x: Tensor) -> Tensor:
        """The unit vector r [batch, tokens, d] of each token."""
        indices, coefficients = self.route(x)
        atoms = storage.rounded_dictionary(self.atoms) if self.training else self.dictionary()
        dense = torch.zeros(*x.shape[:-1], len(atoms), dtype=x.dtype, device=x.device)
        r = dense.scatter(-1, indices, coefficients) @ atoms
        unit: Tensor = r / r.norm(dim=-1, keepdim=True).clamp_min(1e-12)
        return unit

    def update(self, site: Site, x: Tensor) -> Tensor:
        if torch.onnx.is_in_onnx_export():
            return self._symbolic(x)
        r = self.direction(x)
        return r * ((r * x).sum(-1, keepdim=True) / math.sqrt(self.d))

    def dictionary(self) -> Tensor:
        """The atoms [M, d] as they are stored."""
        if self.training or not self._packed_is_current():
            return storage.rounded_dictionary(self.atoms).detach()
        return self.atoms

    def stored(self) -> dict[str, Tensor]:
        if not self._packed_is_current():
            self._take(storage.to_dictionary(self.atoms.detach()))
        named = {f"dictionary.{n}": getattr(self, n) for n in _PLANES}
        for name in (*_ROUTER, "embedding"):
            codes, scale = storage.to_rows(getattr(self, name).detach(), 8)
            named |= {f"router.{name}": codes, f"router.{name}.scale": scale}
        return named | {f"router.{n}": getattr(self, n).detach().half() for n in _BIASES}

    @torch.no_grad()
    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        self._take({n: tensors[f"dictionary.{n}"] for n in _PLANES})
        for name in (*_ROUTER, "embedding"):
            codes = tensors[f"router.{name}"]
            scale = tensors[f"router.{name}.scale"]
            getattr(self, name).copy_(storage.from_rows(codes, scale, 8, codes.shape[-1]))
        for name in _BIASES:
            getattr(self, name).copy_(tensors[f"router.{name}"].float())

    def _take(self, planes: Mapping[str, Tensor]) -> None:
        for name, tensor in planes.items():
            setattr(self, name, tensor)
        with torch.no_grad():
            self.atoms.copy_(storage.from_dictionary(dict(planes)))

    def _packed_is_current(self) -> bool:
        planes = {name: getattr(self, name) for name in _PLANES}
        return torch.equal(storage.from_dictionary(planes), self.atoms.detach())

    def _router(self) -> dict[str, Tensor]:
        names = (*_ROUTER, "embedding")
        if self.training:
            rounded = {n: storage.rounded_rows(getattr(self, n), 8) for n in names}
        else:
            rounded = {n: getattr(self, n) for n in names}
        return rounded | {n: getattr(self, n) for n in _BIASES}

    def _symbolic(self, x: Tensor) -> Tensor:
        """The same as one node of our own domain; its body is in ``dictionary_op``."""
        indices, coefficients = self.route(x)
        planes = [getattr(self, name) for name in _PLANES]
        y: Tensor = torch.onnx.ops.symbolic(
            "edgebench::DictionaryUpdate",
            (x, indices.to(torch.int8), coefficients.to(torch.int8), *planes),
            {"K": self.d, "block_size": storage.BLOCK},
            dtype=x.dtype,
            shape=x.shape,
            version=1,
        )
        return y


def grow(adapter: Himalaya, states: Tensor, *, least_distance: float = 0.5) -> Himalaya:
    """An adapter with elastic atoms for directions that no atom is near; the old ones stay.

    The nearest atom is found with a KD-tree over unit vectors (SciPy's cKDTree), at growth time
    only. States are taken in their order; each that is farther than ``least_distance`` from every
    atom, of either sign, becomes one, until there are 16 elastic atoms.

    Args:
        states: hidden states [n, d] of the new task.
        least_distance: Euclidean distance between unit vectors, 0..sqrt(2) up to sign.
    """
    from scipy.spatial import cKDTree

    unit = nn.functional.normalize(states.detach().float(), dim=-1).numpy()
    atoms = nn.functional.normalize(adapter.atoms.detach(), dim=-1).numpy()
    room = MOST_ELASTIC - adapter.members["elastic_atoms"]
    taken: list[np.ndarray[Any, Any]] = []
    while len(taken) < room:
        known = np.concatenate([atoms, *(row[None] for row in taken)])
        distance, _ = cKDTree(np.concatenate([known, -known])).query(unit)
        if not len(distance) or distance.max() <= least_distance:
            break
        taken.append(unit[int(distance.argmax())])
    if not taken:
        return adapter
    members = adapter.members | {"elastic_atoms": adapter.members["elastic_atoms"] + len(taken)}
    grown = Himalaya(members, adapter.sites)
    old = len(adapter.atoms)
    with torch.no_grad():
        for name, parameter in adapter.named_parameters():
            target = getattr(grown, name)
            target[: len(parameter)] = parameter
        size = adapter.atoms.norm(dim=-1).mean()
        grown.atoms[old:] = torch.from_numpy(np.stack(taken)) * size
        # New atoms start closed, so that the old tasks see what they saw.
        grown.gate[old:] = 0
        grown.gate_bias[old:] = -4
    return grown


MOST_ELASTIC = 16
