"""A spectral adapter on disk: ``adapter_config.json`` and ``adapter_model.safetensors``.

    controller.down [k, d_in], controller.up [R, k]      but for BHSP
    base_model.model.<m>.spectral_u [d_out, R]
    base_model.model.<m>.spectral_s [R]
    base_model.model.<m>.spectral_v [R, d_in]
    base_model.model.<m>.spectral_layer [R]              w_layer
    base_model.model.<m>.spectral_states [R, 3]          HEST: logits of off, int8, fp16
    base_model.model.<parameter>                         trained in full, such as a head's

Reading the configuration and checking shapes needs no torch.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from edgebench.errors import CheckpointError

if TYPE_CHECKING:
    from edgebench.adapters.spectral import Spectral

PREFIX = "base_model.model."
FAMILIES = ("HEST", "TABS", "BHSP")
_PARTS = {
    "spectral_u": "u",
    "spectral_s": "s",
    "spectral_v": "v",
    "spectral_layer": "layer_gate",
    "spectral_states": "state_logits",
}
_AGAIN = "Save the adapter again, or copy the whole checkpoint."


@dataclass(frozen=True)
class Members:
    """What ``adapter_config.json`` says: the family, R, the controller's width, and the module."""

    kind: str
    directions: int
    width: int | None
    module: str


def read_members(config: Mapping[str, Any], where: str) -> Members:
    """Read and check the configuration.

    Raises:
        CheckpointError: a member is missing or impossible.
    """

    def whole(name: str) -> int:
        value = config.get(name)
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise CheckpointError(
                f"adapter_config.json: {name} is {value!r}; it must be a whole number from 1",
                where=where,
                fix=_AGAIN,
            )
        return value

    kind, module = str(config.get("peft_type")), config.get("module")
    if not isinstance(module, str):
        raise CheckpointError(
            "adapter_config.json does not name the module that the directions are on",
            where=where,
            fix=_AGAIN,
        )
    width = None if kind == "BHSP" else whole("width")
    return Members(kind, whole("directions"), width, module)


def sites(shapes: Mapping[str, tuple[int, ...]]) -> list[tuple[str, int, int]]:
    """Module, d_in and d_out of every place with directions."""
    found = []
    for name, shape in shapes.items():
        module, _, part = name.removeprefix(PREFIX).rpartition(".")
        outer = shapes.get(f"{PREFIX}{module}.spectral_u")
        if part == "spectral_v" and len(shape) == 2 and outer is not None and len(outer) == 2:
            found.append((module, shape[1], outer[0]))
    return found


def own_parameters(shapes: Mapping[str, tuple[int, ...]]) -> dict[str, tuple[int, ...]]:
    """Parameters that were trained in full, with their shapes."""
    return {
        name.removeprefix(PREFIX): shape
        for name, shape in shapes.items()
        if name.startswith(PREFIX) and name.rpartition(".")[2] not in _PARTS
    }


def attach(
    members: Members, tensors: Mapping[str, Any], model: Any, where: str
) -> dict[str, Spectral]:
    """Put a checkpoint's directions on a transformers model.

    Raises:
        CheckpointError: a tensor is missing, has no place, or has another shape.
    """
    import torch

    from edgebench.adapters.spectral import put_directions

    parts = put_directions(
        model,
        members.module,
        directions=members.directions,
        width=members.width,
        states=members.kind == "HEST",
    )
    places = _places(parts)
    parameters = {f"{PREFIX}{name}": p for name, p in model.named_parameters()}
    for name in places:
        if name not in tensors:
            raise CheckpointError(f"the adapter lacks {name}", where=where, fix=_AGAIN)
    with torch.no_grad():
        for name, value in tensors.items():
            place = places.get(name, parameters.get(name))
            if place is None:
                raise CheckpointError(
                    f"the adapter's file holds {name}, which has no place in this model",
                    where=where,
                    fix=_AGAIN,
                )
            if place.shape != value.shape:
                raise CheckpointError(
                    f"the adapter's {name} is {list(value.shape)}, the model's {list(place.shape)}",
                    where=where,
                    fix="Give its own base with --base, or check the path.",
                )
            place.copy_(value)
    if members.kind == "HEST":
        _check_range(parts, where)
    model.eval()  # the new modules too
    return parts


def save(
    model: Any,
    parts: Mapping[str, Spectral],
    directory: Path,
    *,
    kind: str,
    module: str,
    base_name: str,
    task_type: str,
    labels: Iterable[str] = (),
) -> None:
    """Write an adapter and every other parameter of the model that is trained.

    Raises:
        StorageError: the directory can't be written.
    """
    from safetensors.torch import save as to_bytes

    from edgebench.results.atomic import replace_files

    first = next(iter(parts.values()))
    config = {
        "peft_type": kind,
        "task_type": task_type,
        "base_model_name_or_path": base_name,
        "directions": len(first.s),
        "module": module,
    }
    if first.controller is not None:
        config["width"] = first.controller.down.out_features
    places = _places(parts)
    own = {id(place) for place in places.values()}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad and id(parameter) not in own:
            places[f"{PREFIX}{name}"] = parameter
    tensors = {name: place.detach().contiguous().clone() for name, place in places.items()}
    files = {
        "adapter_model.safetensors": to_bytes(tensors, metadata={"format": "pt"}),
        "adapter_config.json": (json.dumps(config, indent=2, sort_keys=True) + "\n").encode(),
    }
    if names := list(labels):
        files["labels.json"] = (json.dumps({"labels": names}) + "\n").encode()
    replace_files(directory, files)


#: The largest number of fp16.
_LARGEST = 65504.0


def _check_range(parts: Mapping[str, Spectral], where: str) -> None:
    """Refuse directions that fp16 can't hold."""
    for module, part in parts.items():
        for name in ("spectral_u", "spectral_v"):
            largest = float(getattr(part, _PARTS[name]).detach().abs().max())
            if largest > _LARGEST:
                raise CheckpointError(
                    f"{module}.{name} holds {largest:.3g}, which is too large for fp16",
                    where=where,
                    fix="Train it again; HEST's directions are in fp16 or int8.",
                )


def _places(parts: Mapping[str, Spectral]) -> dict[str, Any]:
    places: dict[str, Any] = {}
    for module, part in parts.items():
        for name, attribute in _PARTS.items():
            place = getattr(part, attribute)
            if place is not None:
                places[f"{PREFIX}{module}.{name}"] = place
        if part.controller is not None:
            places["controller.down"] = part.controller.down.weight
            places["controller.up"] = part.controller.up.weight
    return places
