"""Whether a graph's outputs are PyTorch's: what of them is compared, and what is refused."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebench.artifact import Parity
from edgebench.errors import ExportError
from edgebench.export.module import OUTPUTS, Feed
from edgebench.export.parity import FP32_TOLERANCE, compare
from edgebench.export.plan import Plan

Outputs = Sequence[npt.NDArray[np.float32]]


def of_tokens(outputs: Sequence[npt.NDArray[Any]], feeds: Sequence[Feed]) -> list[npt.NDArray[Any]]:
    """Outputs a position without those of padding, [tokens, d]: they mean nothing, and differ more.

    Outputs a text, [batch, d], stay as they are.
    """
    kept = []
    for output, feed in zip(outputs, feeds, strict=True):
        mask = feed.get("attention_mask")
        padded = mask is not None and output.ndim > 2 and output.shape[:2] == mask.shape
        kept.append(output[np.asarray(mask, dtype=bool)] if padded else output)
    return kept


def differences(
    plan: Plan,
    feeds: Sequence[Feed],
    expected: Outputs,
    actual: Outputs,
    adapter: str,
    tolerance: float | None = None,
) -> Parity:
    """How far outputs are from PyTorch's; positions of padding are left out.

    Args:
        adapter: how the adapter stood in PyTorch, in words.
    """
    return compare(
        of_tokens(expected, feeds),
        of_tokens(actual, feeds),
        reference=f"PyTorch in fp32, eval mode, {adapter}: {OUTPUTS[plan.task]}",
        logits=plan.task != "feature-extraction",
        tolerance=tolerance,
    )


def require(plan: Plan, parity: Parity, what: str) -> None:
    """Refuse more than fp32's tolerance.

    Raises:
        ExportError: it is more, or not a number.
    """
    # Written so that a NaN fails too.
    if not parity.max_abs_error <= FP32_TOLERANCE:
        raise ExportError(
            f"the {what} is off PyTorch by {parity.max_abs_error:.2g}, "
            f"more than {FP32_TOLERANCE:g}, so no artifact was written",
            where=plan.name,
            fix="Try the other --via, and report this with the versions in use.",
        )
