"""What ``train_family.py`` trains for each family: edgebench's own, and PEFT's methods."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bbc_news
import train_minilm_bbc
from family_fit import BATCH, Data, Trainee, fit_head, groups, judge, new_base
from train_minilm_bbc import BASE

EVERY = ["q", "k", "v", "o", "ffn_in", "ffn_out"]


@dataclass(frozen=True)
class Recipe:
    """What to train: members of adapter_config.json, or arguments of a PEFT configuration."""

    kind: str
    options: dict[str, Any]
    rate: float = 3e-3


#: Sizes as published where they are (docs/adapters.md); MiniLM is 384 wide and 6 layers deep.
OWN = {
    "sat_lora": Recipe(
        "SatLora", {"rank": 8, "alpha": 16, "share_layers": False, "targets": EVERY}, 2e-3
    ),
    "lilac": Recipe("Lilac", {"rank": 4, "alpha": 8, "atoms": 64, "targets": EVERY}),
    "dictionary": Recipe(
        "Dictionary", {"atoms": 64, "active_atoms": 16, "targets": ["q", "v"]}, 5e-3
    ),
    "representation_edit": Recipe("RepresentationEdit", {"rank": 4, "targets": ["hidden"]}, 5e-3),
    "himalaya": Recipe(
        "Himalaya",
        {
            "core_atoms": 24,
            "elastic_atoms": 0,
            "active_atoms": 3,
            "router_width": 54,
            "tasks": 1,
            "task_width": 16,
            "task": 0,
            "targets": ["q", "o"],  # square in every architecture, grouped queries included
        },
        1e-2,
    ),
    "unihyperlora": Recipe(
        "UniHyperLora",
        {
            "atoms": 128,
            "width": 256,
            "projector_rank": 8,
            "frequencies": 128,
            "active_atoms": 2,
            "routing": "token",
            "labels": len(bbc_news.LABELS),
            "targets": EVERY,
        },
        1e-3,
    ),
}

QV = {"target_modules": ["query", "value"]}
PEFT = {
    "lora": Recipe("LoraConfig", {"r": 8, "lora_alpha": 16, **QV}),
    "iw_lora": Recipe("LoraConfig", {"r": 8, "lora_alpha": 16, **QV}),
    "dora": Recipe("LoraConfig", {"r": 8, "lora_alpha": 16, "use_dora": True, **QV}),
    "adalora": Recipe("AdaLoraConfig", {"init_r": 12, "target_r": 8, "lora_alpha": 16, **QV}),
    "ia3": Recipe(
        "IA3Config",
        {
            "target_modules": ["key", "value", "output.dense"],
            "feedforward_modules": ["output.dense"],
        },
        1e-2,
    ),
    "vera": Recipe("VeraConfig", {"r": 64, **QV}, 1e-2),
    "loha": Recipe("LoHaConfig", {"r": 8, "alpha": 16, **QV}),
    "lokr": Recipe("LoKrConfig", {"r": 8, "alpha": 16, **QV}),
    "oft": Recipe("OFTConfig", {"oft_block_size": 8, **QV}),
    "boft": Recipe("BOFTConfig", {"boft_block_size": 8, **QV}),
}


def own(family: str, data: Data) -> Trainee:
    """A family of edgebench's own, from its members."""
    from edgebench.adapters import base as torch_side

    recipe = OWN[family]
    model = new_base(data.head).requires_grad_(False)
    kind = getattr(importlib.import_module(f"edgebench.adapters.{family}"), recipe.kind)
    adapter = kind(recipe.options, torch_side.sites_of(model, recipe.options["targets"]))
    head_alone = data.head_alone
    trained = dict(model.classifier.requires_grad_(True).named_parameters(prefix="classifier"))
    if family == "unihyperlora":  # its head is generated, from parts that the updates share
        trained = {}
        model.classifier = _universal_head(adapter, data)
        head_alone = judge(model.classifier, data.held_states, data.held_out["labels"])
    torch_side.inject(model, adapter)

    def stage(epoch: int, epochs: int) -> None:
        if epoch == epochs // 2:
            grow(model, data)

    def save(directory: Path) -> None:
        torch_side.save(
            directory,
            adapter_of(model).eval(),
            head=trained,
            task_type="SEQ_CLS",
            base_name=BASE,
            labels=bbc_news.LABELS,
        )

    return Trainee(
        model,
        lambda: groups(model.parameters(), trained.values(), recipe.rate),
        save,
        stage=stage if family == "himalaya" else None,
        head_alone=head_alone,
    )


def adapter_of(model: Any) -> Any:
    """The adapter that is injected in a model."""
    from edgebench.adapters.base import Adapted

    return next(part.adapter for part in model.modules() if isinstance(part, Adapted))


def _universal_head(adapter: Any, data: Data) -> Any:
    from edgebench.adapters.unihyperlora import UniversalHead

    head = UniversalHead(adapter, data.states.shape[1])
    names = ("head", "a", "b")
    parts = [adapter.values[name] for name in names]
    fit_head(head, [*parts, adapter.head_bias], data.states, data.train["labels"])
    return head


def grow(model: Any, data: Data, texts: int = 16) -> None:
    """HIMALAYA's elastic atoms, from what reaches its sites in a few articles."""
    import torch

    from edgebench.adapters.base import Adapted
    from edgebench.adapters.himalaya import grow as grown

    parts = [part for part in model.modules() if isinstance(part, Adapted)]
    seen: list[Any] = []
    hooks = [
        part.register_forward_pre_hook(lambda _part, given: seen.append(given[0][:, ::8].detach()))
        for part in parts
    ]
    model.eval()
    with torch.no_grad():
        model(**{name: tensor[:texts] for name, tensor in data.train.items()})
    for hook in hooks:
        hook.remove()
    adapter = grown(parts[0].adapter, torch.cat([rows.flatten(0, 1) for rows in seen]))
    for part in parts:
        part.adapter = adapter


def peft_method(family: str, data: Data) -> Trainee:
    """One of PEFT's methods, with the head trained in full."""
    import peft

    recipe = PEFT[family]
    options = dict(recipe.options)
    if family == "adalora":
        steps = data.epochs * -(-len(data.train["labels"]) // BATCH)
        options |= {"total_step": steps, "tinit": steps // 6, "tfinal": steps // 3}
    config = getattr(peft, recipe.kind)(
        task_type="SEQ_CLS", modules_to_save=["classifier"], **options
    )
    model = peft.get_peft_model(new_base(data.head), config)
    head = [p for n, p in model.named_parameters() if "classifier" in n and p.requires_grad]
    return Trainee(
        model,
        lambda: groups(model.parameters(), head, recipe.rate),
        lambda directory: train_minilm_bbc.save(model, directory),
        penalty=importance_penalty(model, data.train) if family == "iw_lora" else None,
        # AdaLoRA drops singular values as it goes.
        step=model.base_model.update_and_allocate if family == "adalora" else None,
    )


def importance_penalty(
    model: Any, train: dict[str, Any], *, alpha: float = 1e-2, beta: float = 2.0
) -> Callable[[], Any]:
    """IW-LoRA's term of the loss: alpha * sum_k (1 - w_k)^beta * ||Delta_k||^2.

    Delta_k = (lora_alpha / r) B A is module k's update. w_k in 0..1 is its importance: the squared
    norm of the loss's gradient in B_k before training (where B is zero, that is the weight's own
    gradient seen through A), over the largest. At inference IW-LoRA is LoRA, so this has no part in
    what is exported.
    """
    factors = [
        (part.lora_A["default"].weight, part.lora_B["default"].weight, part.scaling["default"])
        for part in model.modules()
        if hasattr(part, "lora_A") and "default" in part.lora_A
    ]
    rows = {name: tensor[:BATCH] for name, tensor in train.items()}
    model(**rows).loss.backward()
    squares = [float(b.grad.square().sum()) for _, b, _ in factors]
    model.zero_grad()
    weights = [square / max(squares) for square in squares]

    def penalty() -> Any:
        # ||B A||^2 = trace((B'B)(A A')): no d x d matrix.
        return alpha * sum(
            (1 - w) ** beta * scale**2 * ((b.T @ b) * (a @ a.T)).sum()
            for w, (a, b, scale) in zip(weights, factors, strict=True)
        )

    return penalty
