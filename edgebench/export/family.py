"""An exporter for a family of ours: everything but the family's own members, shapes and module.

A family's file in ``exporters/`` names its ``peft_type`` (``kinds``), the members of its
``adapter_config.json``, the shapes of its tensors, and the torch module
(``edgebench.adapters.base.Adapter``). The rest is the same for all: finding the sites on the base,
comparing names and shapes (without torch), loading, putting the updates in place, merging.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Mapping
from typing import Any, ClassVar

from edgebench.adapters import members as reading
from edgebench.adapters.members import Member
from edgebench.adapters.sites import Site, find_sites
from edgebench.errors import CheckpointError
from edgebench.export.base import BaseModel
from edgebench.export.checkpoint import AdapterCheckpoint
from edgebench.export.exporter import AdapterFacts, Exporter, Lowering, Task

TASKS: dict[str | None, Task] = {
    "SEQ_CLS": "text-classification",
    "TOKEN_CLS": "token-classification",
    "FEATURE_EXTRACTION": "feature-extraction",
    None: "feature-extraction",
}

#: What transformers calls a classification head; its last matrix has one row per label.
HEADS = {"classifier", "score"}

OWN, HEAD = "adapter.", "base_model.model."

_BASE_FIX = "Give its own base with --base, or check the path."


class FamilyExporter(Exporter):
    """One of edgebench's own families."""

    #: The members of adapter_config.json, beside those that every adapter has.
    members: ClassVar[Mapping[str, Member]]

    @abstractmethod
    def shapes(
        self, members: Mapping[str, Any], sites: tuple[Site, ...]
    ) -> dict[str, tuple[int, ...]]:
        """The tensors that the checkpoint must hold, by name (without ``adapter.``)."""

    @abstractmethod
    def module(self, members: Mapping[str, Any], sites: tuple[Site, ...]) -> Any:
        """The family's ``edgebench.adapters.base.Adapter``. Imports torch."""

    def rank(self, members: Mapping[str, Any]) -> int | None:
        """The rank of each update, where there is one number."""
        return members.get("rank")

    def check(
        self, members: Mapping[str, Any], sites: tuple[Site, ...], adapter: AdapterCheckpoint
    ) -> None:
        """What has to hold beside names and shapes.

        Raises:
            CheckpointError: it does not.
        """

    def provides(self, base: BaseModel) -> frozenset[str]:
        """Parameters of the model's head that the adapter makes itself."""
        return frozenset()

    def recognises(self, config: Mapping[str, Any]) -> bool:
        return config.get("peft_type") in self.kinds

    def inspect(self, adapter: AdapterCheckpoint, base: BaseModel) -> AdapterFacts:
        task = adapter.config.get("task_type")
        if task not in TASKS:
            raise CheckpointError(
                f"the adapter's task {task} can't be exported yet",
                where=str(adapter.path),
                fix="SEQ_CLS, TOKEN_CLS and FEATURE_EXTRACTION can.",
            )
        values = self._read(adapter)
        modules = {
            name.removesuffix(".weight"): tensor.shape
            for name, tensor in base.shapes.items()
            if name.endswith(".weight")
        }
        sites = find_sites(modules, base.architecture, values["targets"])
        self.check(values, sites, adapter)
        self._compare(adapter, self.shapes(values, sites))
        trained = {
            name.removeprefix(HEAD): tensor.shape
            for name, tensor in adapter.shapes.items()
            if name.startswith(HEAD)
        }
        labels = [
            shape[0]
            for name, shape in trained.items()
            if name.partition(".")[0] in HEADS and name.endswith(".weight") and len(shape) == 2
        ]
        return AdapterFacts(
            kind=self.name,
            rank=self.rank(values),
            task=TASKS[task],
            num_labels=labels[-1] if labels else self.labels(adapter),
            provides=frozenset(trained) | self.provides(base),
        )

    def labels(self, adapter: AdapterCheckpoint) -> int | None:
        """Outputs of a head that the adapter makes itself."""
        return None

    def attach(self, adapter: AdapterCheckpoint, tensors: Mapping[str, Any], module: Any) -> Any:
        from edgebench.adapters import base as torch_side

        family = self._restored(adapter, tensors, module)
        head = {n.removeprefix(HEAD): t for n, t in tensors.items() if n.startswith(HEAD)}
        head |= family.head(module)
        parameters = dict(module.named_parameters())
        for name, tensor in head.items():
            place = parameters.get(name)
            if place is None or place.shape != tensor.shape:
                raise CheckpointError(
                    f"the adapter brings {name} {_size(tuple(tensor.shape))}, and the model has "
                    + (f"{_size(tuple(place.shape))} there" if place is not None else "no such"),
                    where=str(adapter.path),
                    fix=_BASE_FIX,
                )
            place.data.copy_(tensor)
        return torch_side.inject(module, family)

    def head(self, adapter: AdapterCheckpoint, tensors: Mapping[str, Any], module: Any) -> Any:
        return self._restored(adapter, tensors, module).head(module)

    def _restored(self, adapter: AdapterCheckpoint, tensors: Mapping[str, Any], module: Any) -> Any:
        """The family's module for a base, with the checkpoint's values."""
        from edgebench.adapters import base as torch_side

        values = self._read(adapter)
        family = self.module(values, torch_side.sites_of(module, values["targets"]))
        family.restore({n.removeprefix(OWN): t for n, t in tensors.items() if n.startswith(OWN)})
        return family

    def lower(self, attached: Any, lowering: Lowering) -> Any:
        from edgebench.adapters import base as torch_side

        return torch_side.merge(attached) if lowering == "merged" else torch_side.settle(attached)

    def _read(self, adapter: AdapterCheckpoint) -> dict[str, Any]:
        return reading.read(adapter.config, self.members, str(adapter.path / "adapter_config.json"))

    def _compare(self, adapter: AdapterCheckpoint, wanted: Mapping[str, tuple[int, ...]]) -> None:
        """Refuse missing, unexpected and misshapen tensors."""
        have = {
            name.removeprefix(OWN): tensor.shape
            for name, tensor in adapter.shapes.items()
            if not name.startswith(HEAD)
        }
        lacking = [name for name in wanted if name not in have]
        spare = [name for name in have if name not in wanted]
        if lacking and spare:
            raise CheckpointError(
                f"the adapter holds {spare[0]} where this base needs {lacking[0]}: it is for "
                "another model, or its configuration is not its own",
                where=f'adapter_config.json: base_model "{adapter.base_name}"',
                fix=_BASE_FIX,
            )
        for name in lacking:
            raise CheckpointError(
                f"the adapter lacks the tensor {name}, which its configuration asks for",
                where=str(adapter.path),
                fix="Copy the whole checkpoint again.",
            )
        for name in spare:
            raise CheckpointError(
                f"the adapter holds a tensor {name} that its configuration does not ask for",
                where=str(adapter.path),
                fix="Copy the whole checkpoint again.",
            )
        for name, shape in wanted.items():
            if have[name] != shape:
                raise CheckpointError(
                    f"the adapter's tensor {name} is {_size(have[name])}; on this base it must be "
                    f"{_size(shape)}",
                    where=f'adapter_config.json: base_model "{adapter.base_name}"',
                    fix=_BASE_FIX,
                )


def rows_shapes(name: str, shape: tuple[int, ...], bits: int = 8) -> dict[str, tuple[int, ...]]:
    """The two tensors that ``edgebench.adapters.storage.to_rows`` makes of values [.., k]."""
    stored = (*shape[:-1], shape[-1] if bits == 8 else -(-shape[-1] // 2))
    return {name: stored, f"{name}.scale": shape[:-1]}


def _size(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape)) or "a scalar"
