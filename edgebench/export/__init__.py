"""From a trained adapter and its base model to verified ONNX artifacts.

    read checkpoints ─▶ fit? ─▶ PyTorch module ─▶ ONNX ─▶ quantise ─▶ parity ─▶ artifact
    (no torch yet)             (an Exporter)      (a road)  (edgebench.quantize)

``export`` is the one entry point. This package knows no adapter family by name: an *exporter*, one
Python file in a workspace's ``exporters/``, says which checkpoints it recognises and how they load
and lower. torch, transformers and peft are imported only once an export really starts; an export
that has been done before is found again without them.
"""

from __future__ import annotations

from edgebench.export.exporter import AdapterFacts, Exporter
from edgebench.export.pipeline import export
from edgebench.export.request import ExportRequest, Progress

__all__ = ["AdapterFacts", "ExportRequest", "Exporter", "Progress", "export"]
