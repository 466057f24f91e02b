"""What is asked for, and the document that comes of it.

Schema history of ``calibration/<device>_<n>samples.json``:
    edgebench.calibration/1   first; `edgebench surrogate calibrate` adds its own members to it;
                              later: samples[].invalid_recording_ids, request.again
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgebench.errors import UsageError

SCHEMA = "edgebench.calibration/1"

#: Stored bits a weight by which a configuration's size is estimated before it is exported.
BITS = {"fp32": 32.0, "fp16": 16.0, "int8": 8.5, "int8-static": 8.5, "int4": 4.5, "int3": 3.5}

#: Columns of the flat table, and what fills them.
COLUMNS = (
    "device", "sample", "seq_len", "kept_layers", "kept_heads", "kept_ranks", "param_bits",
    "scheme", "latency_ms", "latency_ms_lo", "latency_ms_hi", "energy_j", "energy_j_lo",
    "energy_j_hi", "power_w", "power_w_lo", "power_w_hi", "verdict", "emulated", "reason",
    "recording_id", "artifact_digest",
)  # fmt: skip


@dataclass(frozen=True)
class SampleRequest:
    """Calibration sampling on one device.

    Attributes:
        device: a profile's name or path.
        base: base model, as for an export; None takes what the adapter names.
        adapter: a LoRA adapter; None gates the base alone, which then has no ranks.
        n, seed: how many configurations, and the seed of all that is random.
        quants: precisions to choose from.
        seq_len: shortest and longest row, in tokens.
        launches, max_duration_s: of each run; see ``RunOptions``.
        again: how many times an INVALID sample is measured again, after all others.
        out: the document; None is ``calibration/<device>_<n>samples.json`` in the workspace.
    """

    device: str = "local"
    base: str | None = None
    adapter: Path | None = None
    n: int = 5
    seed: int = 0
    quants: tuple[str, ...] = ("fp32", "int8")
    seq_len: tuple[int, int] = (16, 128)
    launches: int = 3
    max_duration_s: float = 20.0
    threads: int | None = None
    again: int = 1
    out: Path | None = None

    def check(self) -> None:
        """Raise UsageError for a value that can't be."""
        if self.n < 1:
            raise UsageError(f"--n must be at least 1, not {self.n}")
        if self.again < 0:
            raise UsageError(f"--again must be at least 0, not {self.again}")
        unknown = [scheme for scheme in self.quants if scheme not in BITS]
        if unknown or not self.quants:
            raise UsageError(
                f"configurations can't be drawn at {unknown[0]!r}" if unknown else "no precision",
                where="--quant",
                fix=f"Choose from {', '.join(BITS)}.",
            )
        low, high = self.seq_len
        if not 1 <= low <= high:
            raise UsageError(
                f"rows can't have from {low} to {high} tokens",
                where="--min-seq-len, --max-seq-len",
            )
        if self.base is None and self.adapter is None:
            raise UsageError("neither a base nor an adapter is given", fix="Give --base MODEL.")

    def identity(self) -> dict[str, Any]:
        """What must be the same for an interrupted sampling to go on."""
        return {
            "device": self.device,
            "base": self.base,
            "adapter": str(self.adapter) if self.adapter else None,
            "n": self.n,
            "seed": self.seed,
            "quants": list(self.quants),
            "seq_len": list(self.seq_len),
            "launches": self.launches,
            "max_duration_s": self.max_duration_s,
            "threads": self.threads,
            "again": self.again,
        }
