"""What is sampled: a base and an adapter, and the device that it is sampled for."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgebench.device import Device
from edgebench.errors import CheckpointError, UsageError
from edgebench.export.base import BaseModel, read_base
from edgebench.export.checkpoint import AdapterCheckpoint, read_adapter
from edgebench.export.exporter import Exporter, find_exporter
from edgebench.sampling import gating
from edgebench.sampling.design import Configuration, Space
from edgebench.sampling.request import BITS, SampleRequest


@dataclass(frozen=True)
class Subject:
    """Everything that is known before the first export.

    ``memory_bytes``: the device's memory limit; None where its profile names none.
    """

    device_id: str
    memory_bytes: float | None
    base: BaseModel
    base_text: str
    adapter: AdapterCheckpoint | None
    exporter: Exporter | None
    space: Space
    name: str
    artifacts: Path
    out: Path

    def weight_bytes(self, configuration: Configuration) -> float:
        return gating.weight_bytes(configuration, self.base, BITS)


def read_subject(
    request: SampleRequest,
    device: Device,
    *,
    exporter_dirs: tuple[Path, ...],
    artifacts: Path,
    calibration: Path,
) -> Subject:
    """Read the checkpoints and check that they can be gated.

    Args:
        calibration: the directory that receives the document where the request names none.

    Raises:
        CheckpointError, UsageError: they can't, or the request contradicts itself.
    """
    request.check()
    adapter = read_adapter(request.adapter) if request.adapter else None
    base_text = request.base or (adapter.base_name if adapter else "")
    if not base_text:
        raise CheckpointError(
            "the adapter does not name its base model",
            where=f"{request.adapter}/adapter_config.json",
            fix="Give it with --base.",
        )
    base = read_base(base_text)
    exporter = find_exporter(exporter_dirs, adapter).exporter if adapter else None
    if base.max_positions is not None and request.seq_len[1] > base.max_positions:
        raise UsageError(
            f"{request.seq_len[1]} tokens are more than the base's {base.max_positions} positions",
            where="--max-seq-len",
            fix=f"Give at most {base.max_positions}.",
        )
    space = gating.read_space(base, adapter, exporter, request.seq_len, request.quants)
    memory = device.limits.memory_mb
    name = adapter.name if adapter else base.path.resolve().name
    out = request.out or calibration / f"{device.id}_{request.n}samples.json"
    return Subject(
        device_id=device.id,
        memory_bytes=None if memory is None else memory * 1e6,
        base=base,
        base_text=base_text,
        adapter=adapter,
        exporter=exporter,
        space=space,
        name=f"{name}-sample",
        artifacts=artifacts,
        out=out,
    )
