"""An artifact that PyTorch runs: a transformers checkpoint in one data type, and nothing else.

Merged, the adapter is folded into the weights in fp32, then all of it is stored in the data type.
Unmerged, the base is stored without the parameters that the adapter replaces (they are zero), and
the adapter's own tensors in ``adapter/``. Only safetensors are written. What was written is then
loaded and run by the very class that runs it on the device.
"""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from edgebench.errors import ExportError

if TYPE_CHECKING:
    from edgebench.artifact import Quantization
    from edgebench.export.plan import Plan

#: Precision -> PyTorch's name of the data type that everything is stored and computed in.
PRECISIONS = {"fp32": "float32", "fp16": "float16", "bf16": "bfloat16"}

MODEL = "model.safetensors"
_ADAPTER = "adapter"
#: One file, however large: what is sent to a device is listed file by file.
_ONE_FILE = "100000GB"


def write(plan: Plan, lowered: Any, scheme: str, directory: Path) -> None:
    """Write the checkpoint.

    Args:
        lowered: the module with the adapter folded in, in fp32; left as it is. Unmerged, the base
            is read afresh instead.
        scheme: one of ``PRECISIONS``.
    """
    import torch

    dtype = getattr(torch, PRECISIONS[scheme])
    if plan.lowering == "unmerged":
        module = _bare_base(plan)
        _write_adapter(plan, directory / _ADAPTER, dtype)
    else:
        module = copy.deepcopy(lowered)
    if plan.task == "feature-extraction" and hasattr(module, "pooler"):
        module.pooler = None  # no part of last_hidden_state, and often without trained weights
    module.to(dtype).save_pretrained(directory, max_shard_size=_ONE_FILE)


def run(
    directory: Path, feeds: Sequence[Any], scheme: str
) -> tuple[list[npt.NDArray[np.float32]], dict[str, Any]]:
    """Load what was written as a device does, and run it on the CPU.

    One thread, as for the reference: see ``edgebench.export.module.reference``.

    Returns:
        the output for each feed, and facts about the module: ``weights`` and ``bits``, the number
        of its parameters and of the bits that store them.

    Raises:
        ExportError: it can't be loaded or run, or gives NaN or infinity.
    """
    import torch
    from safetensors import SafetensorError

    from edgebench.runtimes.torch_runtime import TorchError, TorchRuntime

    threads = torch.get_num_threads()
    try:
        runtime = TorchRuntime(str(directory / MODEL), {"provider": "cpu", "threads": 1})
        outputs = [runtime.infer(feed) for feed in feeds]
    except (TorchError, SafetensorError, RuntimeError, ValueError, KeyError, OSError) as error:
        raise ExportError(
            f"PyTorch {torch.__version__} can't run the {scheme} artifact: "
            f"{str(error).strip().partition(chr(10))[0][:300]}",
            fix="Export it with --lowering merged, or as --format onnx.",
        ) from error
    finally:
        torch.set_num_threads(threads)
    if not all(np.isfinite(output).all() for output in outputs):
        raise ExportError(
            f"in {scheme} the model gives NaN or infinity where it gives numbers in fp32",
            fix="Use bf16, which has fp32's range, or fp32.",
        )
    # A module that was trained in full stands beside the one that it replaces, which never runs.
    parameters = [p for n, p in runtime.module.named_parameters() if ".original_module." not in n]
    return outputs, {
        "weights": sum(p.numel() for p in parameters),
        "bits": sum(8 * p.numel() * p.element_size() for p in parameters),
    }


def quantization(scheme: str, weights: int, bits: int) -> Quantization:
    """The manifest's account of a checkpoint that is stored and computed in one data type."""
    from edgebench.artifact import Quantization

    width = 32 if scheme == "fp32" else 16
    return Quantization(
        scheme=scheme,
        storage_bits=width,
        compute_bits=width,
        activation_bits=width,
        storage_bits_per_weight=bits / weights,
        file_bits_per_weight=bits / weights,
        total_weights=weights,
        details={"dtype": PRECISIONS[scheme]},
    )


def _bare_base(plan: Plan) -> Any:
    """The base without the adapter; what the adapter brings itself is zero, never random."""
    import torch

    from edgebench.export.module import build_base

    provided = plan.facts.provides if plan.facts else frozenset[str]()
    module = build_base(plan.base, plan.task, plan.num_labels, provided)
    with torch.no_grad():
        for name, parameter in module.named_parameters():
            if name in provided:
                parameter.zero_()
    return module


def _write_adapter(plan: Plan, directory: Path, dtype: Any) -> None:
    from safetensors.torch import save_file

    from edgebench.export.weights import load_tensors

    assert plan.adapter is not None  # nothing else can be unmerged
    tensors = load_tensors(plan.adapter.weights, "adapter")
    stored = {
        name: (tensor.to(dtype) if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in tensors.items()
    }
    # Where the base stood on the machine that trained the adapter is nobody's business here.
    config = {**plan.adapter.config, "base_model_name_or_path": plan.base.name}
    directory.mkdir()
    save_file(stored, directory / "adapter_model.safetensors", metadata={"format": "pt"})
    (directory / "adapter_config.json").write_text(
        json.dumps(config, indent=2, sort_keys=True) + "\n", encoding="utf-8"
    )
