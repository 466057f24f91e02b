"""The PyTorch side: building the base, the reference outputs, and one forward with named inputs."""

from __future__ import annotations

import contextlib
import importlib
import logging
import os
import warnings
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebench.errors import CheckpointError, ExportError
from edgebench.export.base import BaseModel
from edgebench.export.exporter import Task

Feed = Mapping[str, npt.NDArray[np.int64]]

#: Name of the graph's output, by task.
OUTPUTS: dict[Task, str] = {
    "text-classification": "logits",
    "token-classification": "logits",
    "feature-extraction": "last_hidden_state",
    "text-generation": "logits",
}

# Absent from many encoder checkpoints, and without effect on last_hidden_state.
_UNUSED_BY_FEATURES = "pooler."


def build_base(
    base: BaseModel, task: Task, num_labels: int | None, provided: frozenset[str]
) -> Any:
    """The base as a transformers module in fp32, on the CPU, in eval mode.

    Args:
        base: a checkpoint read by ``read_base``.
        task: decides the head.
        num_labels: size of the head.
        provided: parameters that the adapter brings, which the base may lack.

    Raises:
        CheckpointError: the weights leave a part of the model without a value.
    """
    import torch
    import transformers

    head = {
        "text-classification": transformers.AutoModelForSequenceClassification,
        "token-classification": transformers.AutoModelForTokenClassification,
        "feature-extraction": transformers.AutoModel,
        "text-generation": transformers.AutoModelForCausalLM,
    }[task]
    options: dict[str, Any] = {} if num_labels is None else {"num_labels": num_labels}
    try:
        module, report = head.from_pretrained(
            base.path,
            local_files_only=True,
            output_loading_info=True,
            dtype=torch.float32,
            # One plain formulation of attention, which every road exports alike.
            attn_implementation="eager",
            **options,
        )
    except (OSError, ValueError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"transformers can't load the base model: {_first_line(error)}",
            where=str(base.path),
            fix="Check that the directory holds a whole transformers checkpoint.",
        ) from error
    lacking = sorted(set(report["missing_keys"]) - provided)
    if task == "feature-extraction":
        lacking = [name for name in lacking if not name.startswith(_UNUSED_BY_FEATURES)]
    if lacking:
        raise CheckpointError(
            f"neither the base nor the adapter holds a value for {lacking[0]}",
            where=str(base.path),
            fix="Without it the outputs would be random. Give the base that the adapter was "
            "trained on, or save the head with the adapter (modules_to_save).",
        )
    return module.eval()


def forward_module(module: Any, inputs: tuple[str, ...], output: str) -> Any:
    """A module that takes the inputs in order and returns one tensor, in eval mode."""
    import torch

    class Forward(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.model = module

        def forward(self, *tensors: Any) -> Any:
            return self.model(**dict(zip(inputs, tensors, strict=True)))[output]

    # eval() on the outermost module: a wrapper made in train mode would leave dropout on.
    return Forward().eval()


def reference(module: Any, feeds: list[Feed]) -> list[npt.NDArray[np.float32]]:
    """PyTorch's outputs for each feed.

    One thread: with several, the order of sums and so the last bits depend on the machine's load,
    and an export would not give the same digest twice.

    Raises:
        ExportError: PyTorch itself gives NaN or infinity.
    """
    import torch

    outputs = []
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with torch.inference_mode():
            for feed in feeds:
                tensors = [torch.from_numpy(np.ascontiguousarray(a)) for a in feed.values()]
                outputs.append(module(*tensors).numpy())
    finally:
        torch.set_num_threads(threads)
    if not all(np.isfinite(o).all() for o in outputs):
        raise ExportError(
            "PyTorch's own output holds NaN or infinity",
            fix="The checkpoint can't be used; train it again or use an earlier one.",
        )
    return outputs


@contextlib.contextmanager
def quiet() -> Iterator[None]:
    """Keep the libraries' progress bars, notes and warnings off the user's terminal, offline.

    The environment is afterwards as it was: peft 0.21's BOFT, where no CUDA compiler is, leaves
    ``CC`` and ``CXX`` set to gcc, which links no C++.
    """
    # Set first: transformers reads these when it is imported.
    settings = {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_NO_ADVISORY_WARNINGS": "1"}
    before = {name: os.environ.get(name) for name in (*settings, "CC", "CXX")}
    os.environ.update(settings)
    # Imported before the levels are set: each sets its own when it is.
    import torch.onnx  # noqa: F401
    import transformers  # noqa: F401

    loggers = [logging.getLogger(name) for name in _LOGGERS]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.CRITICAL)
    bars = _progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value
        if bars is not None:
            bars.enable_progress_bar()


_LOGGERS = (
    "transformers",
    "torch.onnx",
    "torch.export",
    "onnxscript",
    "onnx_ir",
    "peft",
    "optimum",
)


def _progress_bars() -> Any | None:
    """Switch transformers' bars off; what must switch them on again, or None if they were off."""
    bars: Any = importlib.import_module("transformers.utils.logging")

    if not bars.is_progress_bar_enabled():
        return None
    bars.disable_progress_bar()
    return bars


def _first_line(error: BaseException) -> str:
    return str(error).strip().partition("\n")[0][:200]
