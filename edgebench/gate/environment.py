"""May these blocks be used, and is this device in a state to be checked on? Pure.

A block in which others used the measured CPUs, or in which the canary was far from its own median,
is left out and replaced. That is decided from what concerns neither side, so it can't favour one:
what is left is as fair as before. Where more blocks are left out than used, or the device itself
says that it was throttled, the environment is broken, and nothing is said about the code.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import log

import numpy as np

from edgebench import health
from edgebench.gate.blocks import Block
from edgebench.reasons import Code, Severity
from edgebench.results.encoding import Loaded


@dataclass(frozen=True)
class Limits:
    """When an environment is broken.

    Attributes:
        foreign_load: share of the measured CPUs' time that others may use in a block
            (``health.Thresholds`` has the origin of the default).
        canary: how far the canary's median may be from where it was, as a share: in a block from
            the check's own, in a check from the self-test's. A step of a clock (1.5 to 1.2 GHz) is
            25 %; the scatter of short launches on a busy machine is below.
        least_blocks: fewer blocks left out than this are no verdict on the environment.
    """

    foreign_load: float = health.Thresholds.FOREIGN_CPU
    canary: float = 0.2
    least_blocks: int = 4


@dataclass(frozen=True)
class Sorted:
    """Blocks that may be used, and those that may not with the reason."""

    used: tuple[Block, ...]
    left_out: tuple[tuple[Block, str], ...]


def sort_blocks(blocks: Sequence[Block], limits: Limits) -> Sorted:
    """Leave out blocks in which the device was not itself."""
    known = [block.canary_ns for block in blocks if block.canary_ns]
    usual = float(np.median(known)) if known else None
    used, left_out = [], []
    for block in blocks:
        why = _why_not(block, usual, limits)
        if why is None:
            used.append(block)
        else:
            left_out.append((block, why))
    return Sorted(tuple(used), tuple(left_out))


def _why_not(block: Block, usual: float | None, limits: Limits) -> str | None:
    if (block.foreign_cpu or 0.0) > limits.foreign_load:
        return f"foreign load {100 * (block.foreign_cpu or 0):.0f} %"
    if (block.steal or 0.0) > limits.foreign_load:
        return f"stolen time {100 * (block.steal or 0):.0f} %"
    if usual and block.canary_ns and abs(log(block.canary_ns / usual)) > log(1 + limits.canary):
        return f"the canary took {block.canary_ns / usual:.2f} times its median"
    return None


#: Judged block by block above, or no matter where both sides meet it alike.
_BY_BLOCK = {Code.FOREIGN_LOAD, Code.STOLEN_TIME}


def broken(
    sorted_blocks: Sorted,
    sessions: Sequence[Loaded],
    limits: Limits,
    canary_before_ns: float | None = None,
) -> list[str]:
    """Why the environment is broken, in words; empty where it is not.

    Args:
        canary_before_ns: the canary's median in this device's self-test, where there was one.
    """
    found: dict[str, None] = {}
    for loaded in sessions:
        if loaded.recording.device.emulated:
            found["the device is emulated: its time is its host's"] = None
        for reason in health.check(loaded.recording, loaded.samples, loaded.state):
            if reason.severity is Severity.INVALID and reason.code not in _BY_BLOCK:
                found[reason.seen] = None
    out, used = sorted_blocks.left_out, sorted_blocks.used
    if len(out) >= limits.least_blocks and len(out) > len(used):
        whys = sorted({why for _, why in out})
        share = f"{len(out)} of {len(out) + len(used)} blocks"
        found[f"{share} had to be left out ({'; '.join(whys[:3])})"] = None
    medians = [block.canary_ns for block in used if block.canary_ns]
    if canary_before_ns and medians:
        moved = float(np.median(medians)) / canary_before_ns
        if abs(log(moved)) > log(1 + limits.canary):
            found[f"the canary takes {moved:.2f} times what it took in this device's self-test"] = (
                None
            )
    return list(found)
