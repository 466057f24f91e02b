"""PEFT's other methods that can be folded and that also export as a branch: IA3, VeRA, LoHa, ..."""

from __future__ import annotations

from edgebench.adapters import peft_checkpoint
from edgebench.export.peft_exporter import PeftExporter


class PeftMethods(PeftExporter):
    name = "peft_methods"
    summary = "PEFT methods other than LoRA, built, loaded and merged by peft"
    prefixes = peft_checkpoint.BOTH
    kinds = tuple(prefixes)


EXPORTER = PeftMethods()
