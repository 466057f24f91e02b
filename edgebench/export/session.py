"""Running an exported graph once in ONNX Runtime: for parity, for shapes, and as a smoke test."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebench.errors import ExportError
from edgebench.export.module import Feed


def run_graph(
    model: Path | bytes, feeds: Sequence[Feed], what: str, outputs: Sequence[str] | None = None
) -> list[list[npt.NDArray[np.float32]]]:
    """The outputs for each feed.

    Args:
        model: a file, or a serialised graph.
        feeds: arrays by input name; names that the graph does not have are left out.
        what: the artifact, for messages.
        outputs: names of outputs; None means all.

    Raises:
        ExportError: the runtime refuses the graph, fails on it, or gives NaN or infinity.
    """
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    failures = tuple(
        value
        for value in vars(state).values()
        if isinstance(value, type) and issubclass(value, Exception)
    )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal only: what goes wrong comes back as an exception
    # One thread: results don't depend on how many cores are there, nor on what else runs.
    options.intra_op_num_threads = 1
    source: Any = model if isinstance(model, bytes) else str(model)
    try:
        session = onnxruntime.InferenceSession(
            source, options, providers=["CPUExecutionProvider"]
        )
        names = {value.name for value in session.get_inputs()}
        results = [
            session.run(outputs, {n: a for n, a in feed.items() if n in names}) for feed in feeds
        ]
    except (*failures, RuntimeError, ValueError) as error:
        raise ExportError(
            f"ONNX Runtime {onnxruntime.__version__} can't run the {what} graph: "
            f"{str(error).strip().partition(chr(10))[0][:300]}"
        ) from error
    if outputs is None and not all(np.isfinite(a).all() for result in results for a in result):
        raise ExportError(
            f"the {what} graph gives NaN or infinity where PyTorch gives numbers",
            fix="Choose a scheme with more bits.",
        )
    return results
