"""A gated adapter on disk: ``adapter_config.json`` and ``adapter_model.safetensors``.

    gates.layers                       log_alpha [L]
    gates.heads                        log_alpha [L, H]
    base_model.model.<m>.lora_A.weight [r, d_in]     as PEFT names them
    base_model.model.<m>.lora_B.weight [d_out, r]
    base_model.model.<m>.lora_gate     log_alpha [r]
    base_model.model.<parameter>       trained in full, such as a head's

Reading the configuration and checking shapes needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebench.adapters import lora
from edgebench.errors import CheckpointError

if TYPE_CHECKING:
    from edgebench.adapters.gated import GatedModel

GATES = ("layers", "heads", "ranks")
LAYER_GATES, HEAD_GATES, RANK_GATE = "gates.layers", "gates.heads", "lora_gate"

#: ``peft_type`` -> the gates that the family has. GATED has any choice of them.
FAMILIES = {
    "METAS_PEFT": GATES,
    "ECHORDA": GATES,
    "DIGASE": ("layers", "ranks"),
    "GATED": GATES,
}
_AGAIN = "Save the adapter again, or copy the whole checkpoint."


@dataclass(frozen=True)
class Members:
    """What ``adapter_config.json`` says of a gated adapter.

    Attributes:
        kind: ``peft_type``.
        gates: which of "layers", "heads", "ranks" are gated.
        scale: alpha / r, the same for every module.
        temperature, stretch: the hard-concrete distribution.
    """

    kind: str
    gates: tuple[str, ...]
    scale: float
    temperature: float
    stretch: tuple[float, float]


def read_members(config: Mapping[str, Any], where: str) -> Members:
    """Read and check the configuration.

    Raises:
        CheckpointError: a member is missing or impossible.
    """

    def refuse(what: str) -> CheckpointError:
        return CheckpointError(f"adapter_config.json: {what}", where=where, fix=_AGAIN)

    def number(name: str, default: float | None = None) -> float:
        value = config.get(name, default)
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise refuse(f"{name} is {value!r}, not a number")
        return float(value)

    kind = str(config.get("peft_type"))
    may = FAMILIES[kind]
    gates = config.get("gates", list(may))
    if not isinstance(gates, list) or not gates or set(gates) - set(may):
        raise refuse(f"gates is {gates!r}; {kind} has a list of some of {', '.join(may)}")
    rank, alpha = number("r"), number("lora_alpha")
    if not rank >= 1 or rank != int(rank):
        raise refuse(f"the rank r is {rank:g}; it must be a whole number from 1")
    stretch = config.get("stretch", [-0.1, 1.1])
    if (
        not isinstance(stretch, list)
        or len(stretch) != 2
        or not all(isinstance(end, int | float) for end in stretch)
        or not (stretch[0] < 0 and stretch[1] > 1)
    ):
        raise refuse(f"stretch is {stretch!r}; it must be two numbers with [0, 1] inside")
    temperature = number("temperature", 2 / 3)
    if not temperature > 0:
        raise refuse(f"the temperature is {temperature:g}; it must be above 0")
    order = tuple(gate for gate in GATES if gate in gates)
    return Members(kind, order, alpha / rank, temperature, (stretch[0], stretch[1]))


def check_gates(
    members: Members, shapes: Mapping[str, tuple[int, ...]], layers: int, heads: int, where: str
) -> None:
    """Compare the gates' shapes with the base's layers and heads, and the ranks' with the factors.

    Raises:
        CheckpointError: gates are missing, extra, or of another size.
    """

    def check(name: str, wanted: tuple[int, ...] | None, of: str) -> None:
        found = shapes.get(name)
        if found == wanted:
            return
        if found is None or wanted is None:
            what = "lacks" if found is None else "holds"
            raise CheckpointError(
                f"the adapter's file {what} {name}, its configuration says "
                f"gates = {list(members.gates)}",
                where=where,
                fix=_AGAIN,
            )
        raise CheckpointError(
            f"the adapter has {name} of {_by(found)}, {of} {_by(wanted)}",
            where=where,
            fix="Give its own base with --base, or check the path.",
        )

    check(LAYER_GATES, (layers,) if "layers" in members.gates else None, "the base has layers:")
    wanted = (layers, heads) if "heads" in members.gates else None
    check(HEAD_GATES, wanted, "the base has layers x heads:")
    for factor in lora.linear_factors(shapes):
        if factor.rank < 1:
            raise CheckpointError(f"the factors on {factor.module} have rank 0", where=where)
        gate = (factor.rank,) if "ranks" in members.gates else None
        check(f"{lora.PREFIX}{factor.module}.{RANK_GATE}", gate, "its factors have rank")


def own_parameters(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Parameters that were trained in full and replace the base's own, with their shapes."""
    replaced = lora.replaced_parameters(shapes)
    return {name: shape for name, shape in replaced.items() if not name.startswith("gates.")}


def attach(members: Members, tensors: Mapping[str, Any], model: Any, where: str) -> GatedModel:
    """Build the gated model of a checkpoint's tensors on a transformers model.

    Raises:
        CheckpointError: a tensor is missing, has no place, or has another shape.
    """
    import torch

    from edgebench.adapters.gated import GatedModel
    from edgebench.adapters.hard_concrete import Concrete

    shapes = {name: tuple(tensor.shape) for name, tensor in tensors.items()}
    factors = lora.linear_factors(shapes)
    gated = GatedModel(
        model,
        {factor.module: factor.rank for factor in factors},
        gates=members.gates,
        scale=members.scale,
        concrete=Concrete(members.temperature, *members.stretch),
    )
    places = _places(gated)
    left = {name: value for name, value in tensors.items() if name not in places}
    with torch.no_grad():
        for name, place in places.items():
            if name not in tensors:
                raise CheckpointError(f"the adapter lacks {name}", where=where, fix=_AGAIN)
            _copy(place, tensors[name], name, where)
        parameters = dict(model.named_parameters())
        for name, value in left.items():
            place = parameters.get(name.removeprefix(lora.PREFIX))
            if place is None or not name.startswith(lora.PREFIX):
                raise CheckpointError(
                    f"the adapter's file holds {name}, which has no place in this model",
                    where=where,
                    fix=_AGAIN,
                )
            _copy(place, value, name, where)
    return gated.eval()


def save(
    gated: GatedModel,
    directory: Path,
    *,
    kind: str,
    base_name: str,
    task_type: str,
    labels: Iterable[str] = (),
) -> None:
    """Write an adapter: its gates and factors, and every parameter of the model that is trained.

    Raises:
        CheckpointError: the family has not the gates that this model has.
        StorageError: the directory can't be written.
    """
    from safetensors.torch import save as to_bytes

    from edgebench.results.atomic import replace_files

    rank = max((len(part.a) for part in gated.factors().values()), default=1)
    members = {
        "peft_type": kind,
        "task_type": task_type,
        "base_model_name_or_path": base_name,
        "gates": list(gated.gated),
        "r": rank,
        "lora_alpha": gated.scale * rank,
        "temperature": gated.concrete.temperature,
        "stretch": [gated.concrete.low, gated.concrete.high],
    }
    read_members(members, str(directory))
    places = _places(gated)
    own = {id(place) for place in places.values()}
    for name, parameter in gated.model.named_parameters():
        if parameter.requires_grad and id(parameter) not in own:
            places[f"{lora.PREFIX}{name}"] = parameter
    tensors = {name: place.detach().contiguous().clone() for name, place in places.items()}
    files = {
        "adapter_model.safetensors": to_bytes(tensors, metadata={"format": "pt"}),
        "adapter_config.json": _json(members),
    }
    if names := list(labels):
        files["labels.json"] = _json({"labels": names})
    replace_files(directory, files)


def _places(gated: GatedModel) -> dict[str, Any]:
    """Name in the file -> the parameter that it is."""
    places: dict[str, Any] = {}
    if gated.layer_gates is not None:
        places[LAYER_GATES] = gated.layer_gates.log_alpha
    if gated.head_gates is not None:
        places[HEAD_GATES] = gated.head_gates.log_alpha
    for module, part in gated.factors().items():
        places[f"{lora.PREFIX}{module}.lora_A.weight"] = part.a
        places[f"{lora.PREFIX}{module}.lora_B.weight"] = part.b
        if part.gate is not None:
            places[f"{lora.PREFIX}{module}.{RANK_GATE}"] = part.gate.log_alpha
    return places


def _copy(place: Any, value: Any, name: str, where: str) -> None:
    if tuple(place.shape) != tuple(value.shape):
        raise CheckpointError(
            f"the adapter's {name} is {_by(tuple(value.shape))}, the model's is "
            f"{_by(tuple(place.shape))}",
            where=where,
            fix="Give its own base with --base, or check the path.",
        )
    place.copy_(value)


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a scalar"
