"""A/A on a device: how often would this gate cry wolf here, and how small a slowdown can it find?

One artifact is checked against itself, block after block, for as long as there is time. The blocks
then tell two things: the checks that they make up (each run until it decides) are counted as they
are, and thousands more are replayed from resampled stretches of them (``edgebench.gate.replay``).
"""

from __future__ import annotations

import secrets
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from edgebench.artifact import Artifact
from edgebench.errors import MeasurementError
from edgebench.gate import replay, stored
from edgebench.gate.blocks import Block, blocks_of
from edgebench.gate.canary import NAME, has_canary, make_canary
from edgebench.gate.environment import broken, sort_blocks
from edgebench.gate.metrics import METRICS
from edgebench.gate.options import CheckOptions
from edgebench.gate.sequential import spreads
from edgebench.results.encoding import Loaded
from edgebench.results.rows import artifact_label
from edgebench.results.store import Store

if TYPE_CHECKING:
    from edgebench.device import Device

REPLAYS = 10_000
#: Blocks of one session: what is lost when one fails.
_SESSION = 20
#: Fewer usable blocks say nothing about a rate.
LEAST_BLOCKS = 12
_CANARY_SEQ_LEN = 16
_FIRST_BLOCK_S = 4.0


def self_test(
    device: Device,
    artifact: Artifact | None,
    results: Path,
    options: CheckOptions | None = None,
    *,
    wait: bool = True,
    report: Callable[[dict[str, Any]], None] | None = None,
) -> stored.SelfTest:
    """Measure the gate on a device and store what was found.

    Args:
        artifact: what is checked against itself; None takes the canary.

    Raises:
        MeasurementError: too few blocks could be used: the environment is broken, or the time too
            short.
    """
    from edgebench.measure import run

    chosen = options or CheckOptions()
    metric = METRICS["p50"]
    chosen.check()
    store = Store(results / "checks")
    sessions: list[Loaded] = []
    blocks: list[Block] = []
    begin = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="edgebench-canary-") as name:
        seq_len = artifact.manifest.statistics.seq_len if artifact else _CANARY_SEQ_LEN
        canary = None
        if artifact is None or has_canary(artifact):
            canary = make_canary(Path(name), seq_len)
        tested = artifact or canary
        assert tested is not None
        while True:
            known = [block.seconds for block in blocks]
            block_s = float(np.mean(known)) if known else chosen.block_s + _FIRST_BLOCK_S
            left_s = chosen.time_limit_s - (time.monotonic() - begin)
            size = min(_SESSION, int(left_s / block_s))
            if size < 1 and blocks:
                break
            seed = secrets.randbits(31) if chosen.seed is None else chosen.seed + len(sessions)
            recording = run(
                device,
                [tested, tested, *([canary] if canary else [])],
                store,
                chosen.session(max(size, 1), seed, (metric,), accuracy=False),
                wait=wait,
                report=report,
            )
            sessions.append(store.load(recording.id))
            blocks += blocks_of(sessions[-1], (metric,), canary=2 if canary else None)
    used = sort_blocks(blocks, chosen.limits)
    why = broken(used, sessions, chosen.limits)
    if why or len(used.used) < LEAST_BLOCKS:
        raise MeasurementError(
            f"{len(used.used)} of {len(blocks)} blocks can be used, and {LEAST_BLOCKS} are needed"
            + (f": {'; '.join(why)}" if why else ""),
            where=device.id,
            fix="Let the device be quiet (see `edgebench doctor`), or give it more --time-limit.",
        )
    found = _summary(used.used, sessions, chosen, artifact_label(tested.manifest))
    stored.write(results, found)
    return found


def _summary(
    used: tuple[Block, ...], sessions: list[Loaded], options: CheckOptions, label: str
) -> stored.SelfTest:
    from scipy.stats import binomtest

    ratios = np.array([block.ratios["p50"] for block in used])
    rule = options.rule(1)
    checks, alarms = replay.real_checks(ratios, rule)
    random = np.random.default_rng(0)
    seconds = float(np.mean([block.seconds for block in used]))
    canary = [block.canary_ns for block in used if block.canary_ns]
    first = sessions[0].recording
    hi = 1.0
    if checks:
        test = binomtest(alarms, checks, alternative="less")
        hi = float(test.proportion_ci(0.95, method="exact").high)
    return stored.SelfTest(
        device=first.device.name,
        fingerprint_digest=first.device.fingerprint_digest,
        created_at=first.created_at,
        artifact=label,
        max_regression=options.max_regression,
        blocks=rule.max_blocks,
        seconds=seconds * rule.max_blocks,
        block_s=seconds,
        checks=checks,
        alarms=alarms,
        alarm_rate_hi=hi,
        replays=REPLAYS,
        replayed_alarms=replay.false_alarms(ratios, rule, REPLAYS, random),
        spread=float(spreads(np.append(ratios, 0.0))[-1]),
        smallest_slowdown=replay.smallest_slowdown(ratios, rule, REPLAYS // 5, random),
        canary=NAME if canary else None,
        canary_ns=float(np.median(canary)) if canary else None,
        batch=first.protocol.batch,
        recordings=tuple(session.id for session in sessions),
    )
