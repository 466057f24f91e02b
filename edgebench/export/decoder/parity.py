"""A decoder's graph against PyTorch: logits of prompts, and greedily generated tokens.

Up to ``WHOLE_BYTES`` of fp32 weights both are held whole; beyond, one layer at a time.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from edgebench.artifact import Parity
from edgebench.errors import ExportError
from edgebench.export.decoder import layerwise
from edgebench.export.decoder.reference import (
    GREEDY_TOKENS,
    Prompt,
    Reference,
    of_tokens,
    whole,
)
from edgebench.export.decoder.running import Ids, Runner
from edgebench.export.decoder.swapping import Form, file_name
from edgebench.export.decoder.writer import MODEL, Decoder
from edgebench.export.parity import FP32_TOLERANCE, compare
from edgebench.export.plan import Plan
from edgebench.export.request import Progress
from edgebench.export.swappable import AdapterFile, Array

Logits = NDArray[np.float32]

# Rows that are compared at a time, in fp64: vocabularies have up to 150,000 tokens.
_ROWS = 64


Check = Callable[[Decoder, Path, str, Mapping[str, str], Progress], list[Parity]]
"""Takes what was written, its directory, the scheme, and the scheme's session options; gives the
comparison of each form (``swapping.forms``)."""

# Rows of the timing inputs that are compared, tokens that a greedy prompt has at most.
_PROMPTS = 4
_OPENING = 24

# Rows, and tokens of each, that are compared one layer at a time.
_LAYERWISE_ROWS, _LAYERWISE_TOKENS = 2, 64


@dataclass(frozen=True)
class Answers:
    """What compares an artifact with PyTorch, and what PyTorch generated, if it did.

    ``generated`` [k, m], one array a form, follows the first ``opening_length`` tokens of the first
    k timing rows.
    """

    check: Check
    generated: tuple[Ids, ...] = ()
    opening_length: int = 0


def prepare(plan: Plan, forms: Sequence[Form], ids: Ids, report: Progress) -> Answers:
    """Ask PyTorch, and return what compares an artifact with its answers.

    Args:
        forms: what the graph is compared as.
        ids: timing rows [rows, seq_len] without padding.

    Raises:
        CheckpointError: transformers or peft can't load the model.
        ExportError: PyTorch's output holds NaN or infinity.
    """
    assert plan.decoder is not None
    if 4 * plan.decoder.architecture.matrix_weights <= plan.decoder.whole_bytes:
        return _whole(plan, forms, ids, report)
    part = np.ascontiguousarray(ids[:_LAYERWISE_ROWS, :_LAYERWISE_TOKENS])
    found = layerwise.reference(plan, [form.source for form in forms], part, report)
    return Answers(_layerwise(plan, forms, found))


def _whole(plan: Plan, forms: Sequence[Form], ids: Ids, report: Progress) -> Answers:
    prompts = _prompts(ids)
    opening = ids[:2, :_OPENING]
    references = []
    for position, form in enumerate(forms):
        named = f" with {form.adapter}" if form.adapter else ""
        report(f"running PyTorch{named} for reference", position / len(forms))
        references.append(whole(plan, form, prompts, opening))

    def check(
        _written: Decoder,
        directory: Path,
        scheme: str,
        options: Mapping[str, str],
        report: Progress,
    ) -> list[Parity]:
        assert plan.decoder is not None
        runner = Runner(directory / MODEL, plan.decoder.architecture, scheme, options)
        found = []
        for position, (form, reference) in enumerate(zip(forms, references, strict=True)):
            report("comparing with PyTorch", position / len(forms))
            runner.adapter = _factors(form, directory)
            found.append(_compare(runner, reference, prompts, scheme, _where(plan, form)))
        return found

    return Answers(check, tuple(each.generated for each in references), opening.shape[1])


def _compare(
    runner: Runner, reference: Reference, prompts: Sequence[Prompt], scheme: str, where: str
) -> Parity:
    """One form's logits and tokens against PyTorch's.

    Raises:
        ExportError: fp32 differs.
    """
    parity = _judge(
        (
            (expected, of_tokens(runner.prefill(prompt.ids, prompt.mask)[0], prompt.mask))
            for expected, prompt in zip(reference.logits, prompts, strict=True)
        ),
        reference.what,
        sum(len(prompt.ids) for prompt in prompts),
        _largest(reference.logits),
        scheme,
        where,
    )
    made = runner.greedy(reference.opening, GREEDY_TOKENS)
    agreement = float((made == reference.generated).mean())
    if scheme == "fp32" and agreement < 1:
        raise ExportError(
            f"the fp32 graph generates other tokens than PyTorch (of {made.size}, "
            f"{agreement:.0%} are the same), so no artifact was written",
            where=where,
            fix="Report this with the versions in use.",
        )
    return parity.model_copy(update={"greedy_tokens": made.size, "greedy_agreement": agreement})


def _factors(form: Form, directory: Path) -> Mapping[str, Array]:
    """What a form's adapter gives the graph's inputs, from the artifact's file."""
    return AdapterFile(directory / file_name(form.adapter)) if form.adapter else {}


def _where(plan: Plan, form: Form) -> str:
    return f"{plan.name}, adapter {form.adapter}" if form.adapter else plan.name


def _layerwise(plan: Plan, forms: Sequence[Form], reference: layerwise.Reference) -> Check:
    assert plan.decoder is not None
    what = (
        f"a layer at a time since the whole takes more "
        f"than {plan.decoder.whole_bytes / 1e9:.1f} GB: logits of a prefill and of "
        f"{layerwise.STEPS} decoding steps through the cache; the graph was run in the same parts"
    )

    def check(
        written: Decoder,
        directory: Path,
        scheme: str,
        options: Mapping[str, str],
        report: Progress,
    ) -> list[Parity]:
        factors = [_factors(form, directory) for form in forms]
        ids = reference.ids
        actual = layerwise.run(written, directory, ids, scheme, options, factors, report)
        return [
            _judge(
                zip(expected, given, strict=True),
                f"PyTorch in fp32, eval mode, {form.what}, {what}",
                len(given),
                _largest([expected]),
                scheme,
                _where(plan, form),
            )
            for form, expected, given in zip(forms, reference.logits, actual, strict=True)
        ]

    return check


def _prompts(ids: Ids) -> list[Prompt]:
    """Some timing rows, then other lengths and batches, and one batch with padding."""
    rows, seq_len = ids.shape
    chosen = [ids[: min(_PROMPTS, rows)]]
    chosen += [ids[i : i + 1 + i % 2, :n] for i, n in enumerate((1, 2, 17)) if n <= seq_len]
    prompts = [Prompt(np.ascontiguousarray(part), np.ones_like(part)) for part in chosen]
    if seq_len > 1:
        mask = np.ones_like(ids[:2])
        mask[1, seq_len // 2 :] = 0
        prompts.append(Prompt(ids[:2] * mask, mask))
    return prompts


def _largest(logits: Sequence[Logits]) -> float:
    return max(1.0, *(float(np.abs(array).max()) for array in logits))


def _judge(
    pairs: Iterable[tuple[Logits, Logits]],
    what: str,
    n: int,
    scale: float,
    scheme: str,
    where: str,
) -> Parity:
    """The comparison; fp32 must agree to ``FP32_TOLERANCE`` of the largest logit.

    Raises:
        ExportError: it does not.
    """
    tolerance = FP32_TOLERANCE * scale if scheme == "fp32" else None
    parity = summarise(
        pairs,
        reference=f"{what}; the largest is {scale:.4g}, and the tolerance 1e-4 of it",
        n=n,
        tolerance=tolerance,
    )
    # Written so that a NaN fails too.
    if tolerance is not None and not parity.max_abs_error <= tolerance:
        raise ExportError(
            f"the fp32 graph is off PyTorch by {parity.max_abs_error:.2g}, more than "
            f"{tolerance:.2g}, so no artifact was written",
            where=where,
            fix="Report this with the versions in use.",
        )
    return parity


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
