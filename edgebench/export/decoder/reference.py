"""What PyTorch computes: the logits of prompts, and what it generates greedily."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edgebench.export import swappable
from edgebench.export.checkpoint import AdapterCheckpoint
from edgebench.export.decoder.running import Ids
from edgebench.export.decoder.swapping import Form
from edgebench.export.module import Feed, build_base, reference
from edgebench.export.plan import Plan
from edgebench.export.weights import load_tensors, refuse_non_finite

#: Tokens generated from each prompt for the comparison.
GREEDY_TOKENS = 16


@dataclass(frozen=True)
class Prompt:
    """A batch of rows: ids and mask [batch, sequence], padding on the right."""

    ids: Ids
    mask: Ids


@dataclass(frozen=True)
class Reference:
    """PyTorch's answers.

    ``logits``, one array a prompt, hold the rows of tokens alone, [tokens, vocab]. ``generated``
    [batch, GREEDY_TOKENS] continues ``opening`` [batch, sequence].
    """

    what: str
    logits: list[NDArray[np.float32]]
    opening: Ids
    generated: Ids


def whole(plan: Plan, form: Form, prompts: Sequence[Prompt], opening: Ids) -> Reference:
    """The whole model as a transformers module, the form's adapter attached by its own library.

    Raises:
        CheckpointError: transformers or peft can't load it.
        ExportError: PyTorch's output holds NaN or infinity.
    """
    import torch

    module = build_base(plan.base, plan.task, None, frozenset())
    refuse_non_finite(module.state_dict(), "base model", plan.base.path)
    if form.member:
        adapter = form.member.adapter
        module = form.member.found.exporter.attach(adapter, _tensors(adapter), module).eval()
    elif form.source.replaced and plan.adapter:
        provided = swappable.provided_tensors(form.source.replaced, _tensors(plan.adapter))
        module = swappable.give_head(module, provided)

    # Given its model: a class is freed late, and with it what it holds in a closure.
    class Forward(torch.nn.Module):
        def __init__(self, model: Any) -> None:
            super().__init__()
            self.model = model

        def forward(self, ids: Any, mask: Any) -> Any:
            return self.model(input_ids=ids, attention_mask=mask, use_cache=False).logits

    feeds: list[Feed] = [{"ids": prompt.ids, "mask": prompt.mask} for prompt in prompts]
    found = reference(Forward(module).eval(), feeds)
    return Reference(
        what=f"PyTorch in fp32, eval mode, {form.what}: logits",
        logits=[of_tokens(a, p.mask) for a, p in zip(found, prompts, strict=True)],
        opening=opening,
        generated=_generate(module, opening),
    )


def _tensors(adapter: AdapterCheckpoint) -> dict[str, Any]:
    tensors = load_tensors(adapter.weights, "adapter")
    refuse_non_finite(tensors, "adapter", adapter.path)
    return tensors


def of_tokens(logits: NDArray[np.float32], mask: Ids) -> NDArray[np.float32]:
    """[batch, sequence, vocab] without the rows of padding."""
    kept: NDArray[np.float32] = logits[mask.astype(bool)]
    return kept


def _generate(module: Any, opening: Ids) -> Ids:
    import torch
    import transformers

    # Greedy, and on past the end of a sequence: every token is compared.
    target = module.get_base_model() if hasattr(module, "get_base_model") else module
    settings: Any = transformers.GenerationConfig
    target.generation_config = settings(
        do_sample=False, eos_token_id=None, pad_token_id=0, max_new_tokens=GREEDY_TOKENS
    )
    ids = torch.from_numpy(opening)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            made = target.generate(input_ids=ids, attention_mask=torch.ones_like(ids))
    finally:
        torch.set_num_threads(threads)
    generated: Ids = made[:, opening.shape[1] :].numpy()
    return generated
