"""PEFT methods whose forward pass does not export, so that they are folded: BOFT, C3A, HRA, ..."""

from __future__ import annotations

from edgebench.adapters import peft_checkpoint
from edgebench.export.exporter import Lowering
from edgebench.export.peft_exporter import PeftExporter


class PeftFolded(PeftExporter):
    name = "peft_folded"
    lowerings: tuple[Lowering, ...] = ("merged",)
    summary = "PEFT methods whose own forward pass can't be lowered to ONNX: merged alone"
    prefixes = peft_checkpoint.FOLDED_ONLY
    kinds = tuple(prefixes)


EXPORTER = PeftFolded()
