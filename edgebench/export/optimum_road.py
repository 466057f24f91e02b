"""The second road to ONNX: optimum's exporter, for architectures that ours does not know.

It lives in optimum-onnx, which needs transformers 4 and so an environment of its own
(``constraints-optimum.txt``). It writes the same inputs and outputs as our road, by way of the
TorchScript exporter, so each road checks the other.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path
from typing import Any

from edgebench.errors import ExportError, UsageError
from edgebench.export.exporter import Task
from edgebench.export.graph import OPSET, save, tidy
from edgebench.export.module import Feed


def require() -> None:
    """Say at once, before any work, when optimum's exporter is not here.

    Raises:
        UsageError: naming what to install.
    """
    if importlib.util.find_spec("optimum") is None or not _has_exporter():
        raise UsageError(
            "optimum's ONNX exporter is not installed in this environment",
            where="--via optimum",
            fix="It needs transformers 4, so give it an environment of its own: "
            "pip install 'edgebench[optimum]' -c constraints-optimum.txt. Or leave --via out.",
        )


def lower(model: Any, task: Task, example: Feed, output: str, target: Path) -> None:
    """Write a transformers model as an ONNX file with the inputs of ``example``.

    Raises:
        ExportError: optimum does not know the architecture, or names other inputs and outputs.
    """
    import onnx
    from optimum.exporters.onnx import onnx_export_from_model

    with tempfile.TemporaryDirectory() as scratch:
        try:
            onnx_export_from_model(
                model, scratch, task=task, opset=OPSET, do_validation=False, no_post_process=True
            )
        except (ValueError, KeyError, NotImplementedError, RuntimeError) as error:
            raise ExportError(
                f"optimum can't export this model: {str(error).strip().partition(chr(10))[0]}",
                fix="Try our own road: leave --via out.",
            ) from error
        proto = onnx.load(str(Path(scratch) / "model.onnx"))
    names = {value.name for value in proto.graph.input}
    outputs = [value.name for value in proto.graph.output]
    if names != set(example) or output not in outputs:
        raise ExportError(
            f"optimum's graph takes {sorted(names)} and gives {outputs}, "
            f"wanted {sorted(example)} and {output!r}",
            fix="Try our own road: leave --via out.",
        )
    save(tidy(proto), target)


def _has_exporter() -> bool:
    try:
        return importlib.util.find_spec("optimum.exporters.onnx") is not None
    except ImportError:
        return False
