"""A decoder's graph against PyTorch: logits of prompts, and greedily generated tokens."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
from numpy.typing import NDArray

from edgebench.artifact import Parity
from edgebench.errors import ExportError
from edgebench.export.decoder.reference import GREEDY_TOKENS, Prompt, Reference, of_tokens
from edgebench.export.decoder.running import Runner
from edgebench.export.parity import FP32_TOLERANCE, compare

Logits = NDArray[np.float32]

# Rows that are compared at a time, in fp64: vocabularies have up to 150,000 tokens.
_ROWS = 64


def check(
    runner: Runner, prompts: Sequence[Prompt], reference: Reference, scheme: str, where: str
) -> Parity:
    """Compare prompts' logits, then what both generate; fp32 must agree.

    Raises:
        ExportError: fp32 logits are off by more than ``FP32_TOLERANCE`` of the largest logit, or
            fp32 generates other tokens.
    """
    pairs = (
        (expected, of_tokens(runner.prefill(prompt.ids, prompt.mask)[0], prompt.mask))
        for expected, prompt in zip(reference.logits, prompts, strict=True)
    )
    scale = max(1.0, *(float(np.abs(a).max()) for a in reference.logits))
    exact = scheme == "fp32"
    tolerance = FP32_TOLERANCE * scale
    parity = summarise(
        pairs,
        reference=f"{reference.what}; tolerance {FP32_TOLERANCE:g} of the largest, {scale:.4g}",
        n=sum(len(prompt.ids) for prompt in prompts),
        tolerance=tolerance if exact else None,
    )
    # Written so that a NaN fails too.
    if exact and not parity.max_abs_error <= tolerance:
        raise ExportError(
            f"the fp32 graph is off PyTorch by {parity.max_abs_error:.2g}, more than "
            f"{tolerance:.2g}, so no artifact was written",
            where=where,
            fix="Report this with the versions in use.",
        )
    if reference.opening is None or reference.generated is None:
        return parity
    made = runner.greedy(reference.opening, GREEDY_TOKENS)
    agreement = float((made == reference.generated).mean())
    if exact and agreement < 1:
        raise ExportError(
            f"the fp32 graph generates other tokens than PyTorch (of {made.size}, "
            f"{agreement:.0%} are the same), so no artifact was written",
            where=where,
            fix="Report this with the versions in use.",
        )
    return parity.model_copy(update={"greedy_tokens": made.size, "greedy_agreement": agreement})


def summarise(
    pairs: Iterable[tuple[Logits, Logits]], *, reference: str, n: int, tolerance: float | None
) -> Parity:
    """``edgebench.export.parity.compare`` over pairs of [tokens, vocab], a few rows at a time."""
    parts: list[tuple[int, Parity]] = []
    for expected, actual in pairs:
        for start in range(0, len(expected), _ROWS):
            rows = slice(start, start + _ROWS)
            part = compare(
                [expected[rows]],
                [actual[rows]],
                reference=reference,
                logits=True,
                tolerance=tolerance,
            )
            parts.append((part.n, part))
    total = sum(count for count, _ in parts)

    def mean(member: str) -> float:
        value = sum(count * getattr(part, member) for count, part in parts) / total
        return float(f"{value:.9g}")

    return Parity(
        reference=reference,
        n=n,
        max_abs_error=max(part.max_abs_error for _, part in parts),
        mean_abs_error=mean("mean_abs_error"),
        cosine_min=min(part.cosine_min for _, part in parts),
        cosine_mean=mean("cosine_mean"),
        kl_mean=mean("kl_mean"),
        top1_agreement=mean("top1_agreement"),
        tolerance=tolerance,
    )
