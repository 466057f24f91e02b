"""The model as exported, in fp32, written afresh so that equal models are equal files."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from edgebench.artifact import Quantization
from edgebench.quantize import bits, files
from edgebench.quantize.graph import Graph

if TYPE_CHECKING:
    from edgebench.quantize import Progress


def convert(source: Path, target: Path, progress: Progress) -> Quantization:
    """Copy ``source`` to ``target``; see ``edgebench.quantize.quantize``."""
    progress("reading the model", None)
    model = files.load(source)
    Graph(model).check_finite()
    counted = bits.count(model)
    progress("writing", 0.5)
    files.save(model, target)
    progress("written", 1.0)
    return Quantization(
        scheme="fp32",
        storage_bits=32,
        compute_bits=32,
        activation_bits=32,
        storage_bits_per_weight=counted.file_bits_per_weight,
        file_bits_per_weight=counted.file_bits_per_weight,
        total_weights=counted.total_weights,
    )
