"""Training of the gated and the spectral families, for ``train_family.py``.

Gated: an epoch with every gate open; then the gates are trained as hard-concrete samples under
``PENALTY`` times the expected shares of layers, heads and ranks; for the last epoch they are
hardened: the lowest are shut until the shares of ``KEEP`` are left, the others open. How many are
shut is so a choice, and which ones is trained. (A penalty alone, strong enough to shut anything in
so few steps, shut everything.)

HEST: an epoch with the states even, then the states are trained under a penalty on the share of
directions that are on (an int8 one counts half), and for the last epoch each direction is what its
largest logit says.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import bbc_news
from family_fit import Data, Trainee, groups, new_base
from train_minilm_bbc import BASE

GATED = {
    "metas_peft": ("layers", "heads", "ranks"),
    "echorda": ("layers", "heads", "ranks"),
    "digase": ("layers", "ranks"),
}
SPECTRAL = ("hest", "tabs", "bhsp")

#: The module of each layer that has spectral directions.
ROLE = "output.dense"

PENALTY = 0.1
#: Shares that stay when gates are hardened: 5 of 6 layers, 45 of 60 heads, half of the ranks.
KEEP = {"layers": 5 / 6, "heads": 0.75, "ranks": 0.5}

#: log alpha when gates begin to learn: a gate is then 1 in two of three samples.
START = 2.0
GATE_RATE, STATE_RATE = 0.1, 0.1


def gated(family: str, data: Data) -> Trainee:
    """Rank 8 on q, v and o, with the family's gates."""
    from edgebench.adapters import gated_files
    from edgebench.adapters.gated import GatedModel
    from edgebench.adapters.hard_concrete import SHUT

    model = new_base(data.head)
    places = (".self.query", ".self.value", "attention.output.dense")
    modules = {name: 8 for name, _ in model.named_modules() if name.endswith(places)}
    made = GatedModel(model, modules, gates=GATED[family], scale=2.0)
    model.classifier.requires_grad_(True)
    every = made.expected()
    full = [float(v.detach()) for v in (every.layers, every.heads, every.ranks)]
    training = [False]

    def penalty() -> Any:
        if not training[0]:
            return 0.0
        now = made.expected()
        shares = zip((now.layers, now.heads, now.ranks), full, strict=True)
        return PENALTY * sum(value / whole for value, whole in shares)

    def stage(epoch: int, epochs: int) -> None:
        alphas = [gate.log_alpha for gate in _gates(made)]
        if epoch == epochs - 1:
            harden(made)
        elif epoch <= 1:
            for alpha in alphas:
                alpha.data.fill_(START if epoch else SHUT)
        training[0] = 0 < epoch < epochs - 1
        for alpha in alphas:
            alpha.requires_grad_(training[0])

    def parameters() -> list[tuple[list[Any], float]]:
        alphas = [gate.log_alpha for gate in _gates(made)]
        known = {id(alpha) for alpha in alphas}
        rest = [p for p in made.parameters() if id(p) not in known]
        learnt = [alpha for alpha in alphas if alpha.requires_grad]
        return [(learnt, GATE_RATE), *groups(rest, model.classifier.parameters(), 2e-3)]

    def save(directory: Path) -> None:
        gated_files.save(
            made,
            directory,
            kind=family.upper(),
            base_name=BASE,
            task_type="SEQ_CLS",
            labels=bbc_news.LABELS,
        )

    return Trainee(made, parameters, save, penalty, stage)


def harden(model: Any) -> None:
    """Shut the lowest gates of each kind until the shares of ``KEEP`` are left; open the others."""
    import torch

    from edgebench.adapters.hard_concrete import fix

    if model.layer_gates is not None:
        fix(model.layer_gates, _highest(model.layer_gates.log_alpha.detach(), KEEP["layers"]))
    layers = list(model.kept_layers())
    if model.head_gates is not None:
        alpha = model.head_gates.log_alpha.detach()
        open_ = torch.zeros(alpha.shape, dtype=torch.bool)
        open_[layers] = _highest(alpha[layers], KEEP["heads"])
        fix(model.head_gates, open_)
    ranks = [part.gate for part in model.factors().values() if part.gate is not None]
    alpha = torch.cat([gate.log_alpha.detach() for gate in ranks])
    for gate, open_ in zip(
        ranks, _highest(alpha, KEEP["ranks"]).split([len(g.log_alpha) for g in ranks]), strict=True
    ):
        fix(gate, open_)


def _highest(alpha: Any, share: float) -> Any:
    """True for the highest ``share`` of values."""
    import torch

    open_ = torch.zeros(alpha.numel(), dtype=torch.bool)
    open_[alpha.flatten().topk(round(share * alpha.numel())).indices] = True
    return open_.reshape(alpha.shape)


def _gates(model: Any) -> list[Any]:
    from edgebench.adapters.hard_concrete import HardConcrete

    return [part for part in model.modules() if isinstance(part, HardConcrete)]


def spectral(family: str, data: Data) -> Trainee:
    """16 directions on the last linear module of every layer."""
    from edgebench.adapters import spectral as family_module
    from edgebench.adapters import spectral_files

    model = new_base(data.head)
    parts = family_module.put_directions(
        model,
        ROLE,
        directions=family_module.DIRECTIONS,
        width=None if family == "bhsp" else family_module.WIDTH,
        states=family == "hest",
    )
    model.classifier.requires_grad_(True)
    controller = next(iter(parts.values())).controller
    states = [p.state_logits for p in parts.values() if p.state_logits is not None]
    training = [False]

    def penalty() -> Any:
        if not training[0]:
            return 0.0
        shares = [part.shares() for part in parts.values()]
        on = sum((0.5 * p[:, family_module.INT8] + p[:, family_module.FP16]).mean() for p in shares)
        return PENALTY * on / len(shares)

    def stage(epoch: int, epochs: int) -> None:
        if epoch == epochs - 1:
            for logits in states:
                best = logits.detach().argmax(1, keepdim=True)
                logits.data.fill_(-20.0).scatter_(1, best, 20.0)
        training[0] = bool(states) and 0 < epoch < epochs - 1
        for logits in states:
            logits.requires_grad_(training[0])

    def parameters() -> list[tuple[list[Any], float]]:
        known = {id(logits) for logits in states}
        rest = [p for p in model.parameters() if id(p) not in known]
        rest += list(controller.parameters()) if controller is not None else []
        learnt = [logits for logits in states if logits.requires_grad]
        return [(learnt, STATE_RATE), *groups(rest, model.classifier.parameters(), 3e-3)]

    def save(directory: Path) -> None:
        spectral_files.save(
            model,
            parts,
            directory,
            kind=family.upper(),
            module=ROLE,
            base_name=BASE,
            task_type="SEQ_CLS",
            labels=bbc_news.LABELS,
        )

    return Trainee(model, parameters, save, penalty, stage)


def kept(attached: Any) -> dict[str, int]:
    """What hard gates or states leave of an attached adapter; nothing for other families."""
    from edgebench.adapters import spectral as family_module
    from edgebench.adapters.gated import GatedModel

    parts = [part for part in attached.modules() if isinstance(part, family_module.Spectral)]
    if parts and parts[0].state_logits is not None:
        states = [int(state) for part in parts for state in part.states()]
        return {f"{n}_directions": states.count(i) for i, n in enumerate(family_module.STATES)}
    if not isinstance(attached, GatedModel):
        return {}
    layers = attached.kept_layers()
    inside = {id(m) for index in layers for m in attached.layer_list()[index].modules()}
    ranks = [part for part in attached.factors().values() if id(part) in inside]
    return {
        "kept_layers": len(layers),
        "kept_heads": int((attached.head_values()[list(layers)] > 0).sum()),
        "kept_ranks": sum(len(part.hard_factors()[0]) for part in ranks),
    }
