"""PEFT checkpoints of any method: names, shapes, and loading by peft itself.

peft builds the modules from ``adapter_config.json``, loads the tensors, and merges. What is here is
what it does not do: saying before torch is imported that a checkpoint does not fit a base, and
refusing tensors that are lost or left over on the way.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from edgebench.adapters.lora import PREFIX
from edgebench.errors import CheckpointError
from edgebench.export.base import BaseModel
from edgebench.export.checkpoint import AdapterCheckpoint
from edgebench.export.fitting import base_weight

#: peft_type -> how the names of its own tensors begin (peft's ``BaseTuner.prefix``).
FOLDED_ONLY = {"BOFT": "boft_", "C3A": "c3a_", "FROD": "frod_", "HRA": "hra_", "PSOFT": "psoft_"}
"""Methods whose forward pass the ONNX exporter can't lower, or lowers wrongly: merged alone.

Seen with peft 0.21.2 and torch 2.13: BOFT and PSOFT solve a linear system, C3A uses complex
numbers, HRA loops over a tensor, and FRoD's graph is off PyTorch.
"""

BOTH = {
    "ADAMSS": "adamss_",
    "BEFT": "beft_",
    "DEFT": "deft_",
    "DELORA": "delora_",
    "FOURIERFT": "fourierft_",
    "GLORA": "glora_",
    "GRALORA": "gralora_",
    "HIRA": "hira_",
    "IA3": "ia3_",
    "LN_TUNING": "ln_tuning_",
    "LOHA": "hada_",
    "LOKR": "lokr_",
    "OFT": "oft_",
    "OSF": "osf_",
    "PEANUT": "peanut_",
    "PVERA": "pvera_",
    "RANDLORA": "randlora_",
    "TINYLORA": "tinylora_",
    "VERA": "vera_",
}
"""Methods that export both folded and as a branch."""

_FIX = "Give its own base with --base, or check the path."


def modules(names: Mapping[str, Any], prefix: str) -> dict[str, list[str]]:
    """Module -> the method's own tensors on it; tensors that all modules share are under "".

    Args:
        names: tensors of the checkpoint.
        prefix: how the method's own names begin.
    """
    found: dict[str, list[str]] = {}
    for name in names:
        parts = name.removeprefix(PREFIX).removeprefix("base_model.").split(".")
        own = next((i for i, part in enumerate(parts) if part.startswith(prefix)), None)
        if own is not None:
            found.setdefault(".".join(parts[:own]), []).append(".".join(parts[own:]))
    return found


def check(adapter: AdapterCheckpoint, base: BaseModel, prefix: str) -> None:
    """Compare the names and, where a method's are plain, the sizes with the base's weights.

    Raises:
        CheckpointError: the adapter holds nothing, something empty, or something for another model.
    """
    own = modules(adapter.shapes, prefix)
    if not own:
        raise CheckpointError(
            f"the adapter holds no tensor of its method ({prefix}...)",
            where=str(adapter.path),
            fix="Copy the whole checkpoint again.",
        )
    for name, tensor in adapter.shapes.items():
        if 0 in tensor.shape:
            raise CheckpointError(
                f"the adapter's tensor {name} is empty: a rank of 0?",
                where=str(adapter.path),
                fix="Train it again with a rank of at least 1.",
            )
    where = f'adapter_config.json: base_model "{adapter.base_name}"'
    for module, names in own.items():
        if not module:
            continue
        weight = base_weight(base, module)
        if weight is None:
            raise CheckpointError(
                f"the adapter changes {module}, which the base does not have", where=where, fix=_FIX
            )
        full = {n.removesuffix(".weight"): _shape(adapter, module, n) for n in names}
        if wrong := _sizes(full, weight):
            name, size = wrong
            raise CheckpointError(
                f"the adapter's {name} on {module} is for {size}, the base's weight is "
                + " x ".join(map(str, weight)),
                where=where,
                fix=_FIX,
            )


def trained(adapter: AdapterCheckpoint, prefix: str) -> dict[str, tuple[int, ...]]:
    """Parameters that replace the base's own, by name."""
    return {
        name.removeprefix(PREFIX): tensor.shape
        for name, tensor in adapter.shapes.items()
        if not any(part.startswith(prefix) for part in name.split("."))
    }


def attach(adapter: AdapterCheckpoint, tensors: Mapping[str, Any], module: Any, prefix: str) -> Any:
    """Let peft put the adapter on a base module.

    Raises:
        CheckpointError: it does not fit, or tensors are missing or left over.
    """
    import peft

    try:
        config = peft.PeftConfig.from_pretrained(str(adapter.path))
        config.inference_mode = True
        attached = peft.get_peft_model(module, config)
        result: Any = peft.set_peft_model_state_dict(attached, dict(tensors))
    # peft's answers to targets that are not there and sizes that can't be, and torch's to shapes.
    except (ValueError, TypeError, KeyError, RuntimeError) as error:
        raise CheckpointError(
            f"the adapter does not fit the base: {str(error).strip().partition(chr(10))[0][:200]}",
            where=str(adapter.path),
            fix=_FIX,
        ) from error
    # Random projections belong to all modules: saved once, or drawn again from the seed. peft calls
    # each module's view of them missing.
    saved = getattr(config, "save_projection", None)
    projections = () if saved is None else (f".{prefix}A", f".{prefix}B")
    lost = [
        name
        for name in result.missing_keys
        if (f".{prefix}" in name and not any(part in name for part in projections))
        or "modules_to_save" in name
    ]
    if saved:
        lost += [part[1:] for part in projections if not any(n.endswith(part) for n in tensors)]
    lost += list(result.unexpected_keys)
    if lost:
        raise CheckpointError(
            f"the adapter's configuration and weights disagree about {lost[0]}",
            where=str(adapter.path),
            fix="Copy the whole checkpoint again.",
        )
    return attached


def _shape(adapter: AdapterCheckpoint, module: str, own: str) -> tuple[int, ...]:
    ending = f"{module}.{own}" if module else own
    return next(t.shape for n, t in adapter.shapes.items() if n.endswith(ending))


def _sizes(own: Mapping[str, tuple[int, ...]], weight: tuple[int, ...]) -> tuple[str, str] | None:
    """A tensor that can't belong to a weight [d_out, d_in] or [d], and what it is for."""
    d_out, d_in = weight[0], weight[-1]
    wanted: dict[str, tuple[int, int]] = {  # name -> (axis, size)
        "vera_lambda_b": (0, d_out),
        "hada_w1_a": (0, d_out),
        "hada_w2_a": (0, d_out),
        "hada_w1_b": (1, d_in),
        "hada_w2_b": (1, d_in),
        "delora_A": (1, d_in),
        "delora_B": (0, d_out),
    }
    for name, (axis, size) in wanted.items():
        if name in own and own[name][axis] != size:
            return name, f"a width of {own[name][axis]}"
    if "ia3_l" in own and max(own["ia3_l"]) not in (d_in, d_out):
        return "ia3_l", f"a width of {max(own['ia3_l'])}"
    return None
