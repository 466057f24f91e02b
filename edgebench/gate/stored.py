"""A self-test on disk: ``results/selftests/<fingerprint>.json``, one a device fingerprint.

Format history (``schema``):
    edgebench.selftest/1   first
    edgebench.selftest/2   ``canary``: which canary it was. Version 1 is read: it had the first.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from edgebench.errors import RecordingError
from edgebench.results.atomic import replace_files
from edgebench.results.encoding import Loaded

SCHEMA = "edgebench.selftest/2"
_FIRST, _FIRST_CANARY = "edgebench.selftest/1", "edgebench-canary"


@dataclass(frozen=True)
class SelfTest:
    """What A/A blocks on one device say about its gate.

    Attributes:
        checks, alarms: real checks of a model against itself that the blocks make up, each run
            until it decided, and how many said regression.
        alarm_rate_hi: upper end of the exact one-sided 95 % interval of alarms / checks.
        replays, replayed_alarms: the same over resampled stretches of the blocks.
        spread: of a block's log-ratio.
        smallest_slowdown: share that is found with 95 % probability within ``blocks`` blocks; None
            where even the largest tried is not.
        canary, canary_ns: the canary's name and median call, at ``batch``; None where there was no
            canary.
    """

    device: str
    fingerprint_digest: str
    created_at: str
    artifact: str
    max_regression: float
    blocks: int
    seconds: float
    block_s: float
    checks: int
    alarms: int
    alarm_rate_hi: float
    replays: int
    replayed_alarms: int
    spread: float
    smallest_slowdown: float | None
    canary: str | None
    canary_ns: float | None
    batch: int
    recordings: tuple[str, ...] = ()

    def canary_of(self, session: Loaded) -> float | None:
        """What the canary took then, where the session runs the same one with the same batch."""
        recording = session.recording
        runs_it = self.canary in {entry.manifest["name"] for entry in recording.artifacts}
        return self.canary_ns if runs_it and recording.protocol.batch == self.batch else None

    @property
    def text(self) -> str:
        """One sentence for people."""
        smallest = (
            f"{100 * self.smallest_slowdown:.2g} %"
            if self.smallest_slowdown is not None
            else "none that was tried"
        )
        return (
            f"self-test of {self.created_at[:10]}: {self.alarms} false alarms in {self.checks} "
            f"checks of a model against itself (rate at most {100 * self.alarm_rate_hi:.3g} %), "
            f"{100 * self.replayed_alarms / self.replays:.2g} % in {self.replays} replays; "
            f"smallest slowdown found: {smallest} in {self.blocks} blocks, {self.seconds:.0f} s"
        )

    def document(self) -> dict[str, Any]:
        return {"schema": SCHEMA, **asdict(self), "recordings": list(self.recordings)}


def path_of(results: Path, fingerprint_digest: str) -> Path:
    return results / "selftests" / f"{fingerprint_digest.removeprefix('sha256:')[:24]}.json"


def write(results: Path, found: SelfTest) -> Path:
    """Store a self-test; the device's earlier one is replaced.

    Raises:
        StorageError: the directory can't be written.
    """
    path = path_of(results, found.fingerprint_digest)
    data = json.dumps(found.document(), indent=1, allow_nan=False).encode() + b"\n"
    replace_files(path.parent, {path.name: data})
    return path


def read(results: Path, fingerprint_digest: str) -> SelfTest | None:
    """The self-test of a device's fingerprint, or None where there was none.

    Raises:
        RecordingError: the file is broken or of another version.
    """
    path = path_of(results, fingerprint_digest)
    try:
        document = json.loads(path.read_bytes())
        schema = document.pop("schema")
        if schema == _FIRST:
            document["canary"] = None if document["canary_ns"] is None else _FIRST_CANARY
        elif schema != SCHEMA:
            raise ValueError(f"schema {schema!r}, this edgebench reads {SCHEMA!r}")
        return SelfTest(**{**document, "recordings": tuple(document["recordings"])})
    except FileNotFoundError:
        return None
    except (ValueError, TypeError, KeyError, AttributeError) as error:
        raise RecordingError(
            f"the self-test can't be read: {error}",
            where=str(path),
            fix="Remove it and run `edgebench check --self-test` again.",
        ) from error
