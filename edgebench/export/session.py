"""Running an exported graph once in ONNX Runtime: for parity, for shapes, and as a smoke test."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebench.errors import ExportError
from edgebench.export.module import Feed


def run_graph(
    model: Path | bytes,
    feeds: Sequence[Feed],
    what: str,
    outputs: Sequence[str] | None = None,
    session_options: Mapping[str, str] | None = None,
    adapter: Path | None = None,
) -> list[list[npt.NDArray[np.float32]]]:
    """The outputs for each feed.

    Args:
        model: a file, or a serialised graph.
        feeds: arrays by input name; names that the graph does not have are left out.
        what: the artifact, for messages.
        outputs: names of outputs; None means all.
        session_options: the runtime's configuration entries that the scheme asks for.
        adapter: an adapter file of ONNX Runtime's to make active.

    Raises:
        ExportError: the runtime refuses the graph, fails on it, or gives NaN or infinity.
    """
    import onnxruntime

    source: Any = model if isinstance(model, bytes) else str(model)
    with runtime_errors(what):
        session = open_session(source, session_options)
        active = None
        if adapter is not None:
            loaded = onnxruntime.LoraAdapter()
            loaded.Load(str(adapter))
            active = onnxruntime.RunOptions()
            active.add_active_adapter(loaded)
        takes = (*session.get_inputs(), *session.get_overridable_initializers())
        names = {value.name for value in takes}
        results = [
            session.run(outputs, {n: a for n, a in feed.items() if n in names}, active)
            for feed in feeds
        ]
    if outputs is None and not all(np.isfinite(a).all() for result in results for a in result):
        raise not_finite(what)
    return results


def open_session(source: Any, session_options: Mapping[str, str] | None = None) -> Any:
    """A session on the CPU, quiet, with the configuration entries that a scheme asks for."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # fatal only: what goes wrong comes back as an exception
    # All cores: the CPU provider's results are the same, bit for bit, with one thread or several.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    for key, value in (session_options or {}).items():
        options.add_session_config_entry(key, value)
    return onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])


@contextlib.contextmanager
def runtime_errors(what: str) -> Iterator[None]:
    """Turn the runtime's own exceptions, which have no common base, into ExportError."""
    import onnxruntime
    from onnxruntime.capi import onnxruntime_pybind11_state as state

    own = (v for v in vars(state).values() if isinstance(v, type) and issubclass(v, Exception))
    failures: tuple[type[Exception], ...] = (RuntimeError, ValueError, *own)
    try:
        yield
    except failures as error:
        raise ExportError(
            f"ONNX Runtime {onnxruntime.__version__} can't run the {what} graph: "
            f"{str(error).strip().partition(chr(10))[0][:300]}"
        ) from error


def not_finite(what: str) -> ExportError:
    """The sentence for a graph that gives NaN or infinity."""
    return ExportError(
        f"the {what} graph gives NaN or infinity where PyTorch gives numbers",
        fix="Choose a scheme with more bits.",
    )
