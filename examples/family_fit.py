"""Fitting for ``train_family.py``: the head alone first, then the adapter and the head together.

A new head's random weights would spend most of a short training on themselves, and an adapter's
accuracy would say how far its head came. So the head is fitted to the frozen base's pooled states
before anything else (a minute's work for a whole training otherwise: the states are computed once),
and its accuracy stands beside the adapter's as ``head_alone``.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import bbc_news
import train_minilm_bbc
from train_minilm_bbc import base_directory, batches

SEED, BATCH = 0, 8

#: The head, once fitted, moves slowly beside the adapter.
HEAD_RATE = 3e-3


@dataclass
class Trainee:
    """A model with an adapter on it, and what its training has to know.

    Attributes:
        model: called with a batch of tensors; gives logits, and the loss where there are labels.
        groups: parameters and their learning rates; asked for again after each ``stage``.
        save: writes the checkpoint.
        penalty: added to the loss.
        stage: called before each epoch with its number and how many there are.
        step: called after each step with its number.
        head_alone: accuracy of its head before training, where that is not the fitted one.
    """

    model: Any
    groups: Callable[[], list[tuple[list[Any], float]]]
    save: Callable[[Path], None]
    penalty: Callable[[], Any] | None = None
    stage: Callable[[int, int], None] | None = None
    step: Callable[[int], None] | None = None
    head_alone: float | None = None


@dataclass(frozen=True)
class Data:
    """Tokenised articles and the head that was fitted to the frozen base's states of them.

    Attributes:
        train, held_out: token ids, masks, labels.
        states, held_states: pooled states of each, [n, d].
        head: state of the fitted classifier; its accuracy on ``held_out`` is ``head_alone``.
        epochs: of the training to come.
    """

    train: dict[str, Any]
    held_out: dict[str, Any]
    states: Any
    held_states: Any
    head: dict[str, Any]
    head_alone: float
    epochs: int


def prepare(texts: int, held_out: int, length: int, epochs: int) -> Data:
    """Tokenise, and fit the head."""
    from transformers import AutoTokenizer

    split = bbc_news.load()
    train_minilm_bbc.MAX_LENGTH = length
    tokenizer = AutoTokenizer.from_pretrained(base_directory(), local_files_only=True)
    train = train_minilm_bbc.tokenize(tokenizer, split.train[:texts])
    judged = train_minilm_bbc.tokenize(tokenizer, split.held_out[:held_out])
    base = new_base()
    states = pooled(base, train)
    head = base.classifier
    fit_head(head, head.parameters(), states, train["labels"])
    held_states = pooled(base, judged)
    right = judge(head, held_states, judged["labels"])
    return Data(train, judged, states, held_states, head.state_dict(), right, epochs)


def judge(head: Any, states: Any, labels: Any) -> float:
    """A head's accuracy on pooled states."""
    import torch

    with torch.no_grad():
        return float((head(states).argmax(-1) == labels).float().mean())


def new_base(head: dict[str, Any] | None = None) -> Any:
    """MiniLM for classification, the same every time; its head as fitted where that is given."""
    import torch
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(SEED)
    model = AutoModelForSequenceClassification.from_pretrained(
        base_directory(), num_labels=len(bbc_news.LABELS), local_files_only=True
    )
    if head is not None:
        model.classifier.load_state_dict(head)
    return model


def pooled(model: Any, tensors: dict[str, Any]) -> Any:
    """What the frozen base gives its head: [n, d]."""
    import torch

    model.eval()
    rows = {name: value for name, value in tensors.items() if name != "labels"}
    order = torch.arange(len(tensors["labels"]))
    with torch.no_grad():
        parts = [model.bert(**batch).pooler_output for batch in batches(rows, order, 32)]
    return torch.cat(parts)


def fit_head(
    head: Any, parameters: Iterable[Any], states: Any, labels: Any, *, steps: int = 400
) -> None:
    """Logistic regression by Adam, with a small penalty on the logits' size."""
    import torch

    optimizer = torch.optim.Adam(list(parameters), lr=1e-2)
    for _ in range(steps):
        logits = head(states)
        loss = torch.nn.functional.cross_entropy(logits, labels) + 1e-3 * logits.square().mean()
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()


def fit(trainee: Trainee, data: Data) -> None:
    """AdamW with linearly falling rates; a fixed order of articles."""
    import torch

    torch.manual_seed(SEED)
    generator = torch.Generator().manual_seed(SEED)
    n = len(data.train["labels"])
    steps, done = data.epochs * -(-n // BATCH), 0
    optimizer = None
    for epoch in range(data.epochs):
        if trainee.stage is not None:
            trainee.stage(epoch, data.epochs)
        if optimizer is None or trainee.stage is not None:
            optimizer = torch.optim.AdamW(
                [{"params": p, "lr": r, "rate": r} for p, r in trainee.groups() if p],
                weight_decay=0.0,
            )
        trainee.model.train()
        for batch in batches(data.train, torch.randperm(n, generator=generator), BATCH):
            for group in optimizer.param_groups:
                group["lr"] = group["rate"] * (1 - done / steps)
            loss = trainee.model(**batch).loss
            if trainee.penalty is not None:
                loss = loss + trainee.penalty()
            loss.backward()
            torch.nn.utils.clip_grad_norm_(every(optimizer), 1.0)
            optimizer.step()
            done += 1
            if trainee.step is not None:
                trainee.step(done)  # before gradients go: AdaLoRA looks at them
            optimizer.zero_grad()
    trainee.model.eval()


def every(optimizer: Any) -> list[Any]:
    """All parameters of an optimizer."""
    return [p for group in optimizer.param_groups for p in group["params"]]


def groups(
    parameters: Iterable[Any], head: Iterable[Any], rate: float
) -> list[tuple[list[Any], float]]:
    """Two groups: the head, and what else is trained."""
    slow = [p for p in head if p.requires_grad]
    known = {id(parameter) for parameter in slow}
    others = [p for p in parameters if p.requires_grad and id(p) not in known]
    return [(slow, HEAD_RATE), (others, rate)]
