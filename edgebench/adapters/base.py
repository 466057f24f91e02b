"""What the families share: an adapter, its updates on a model's modules, and its files.

An ``Adapter`` holds all of a family's parameters and says, for a *site* (``sites.Site``), what is
added to the output of the module there:

    y = module(x) + adapter.update(site, x)

(or, of a family that edits representations, ``adapter.update(site, module(x))``). ``inject`` puts
it there. Where the update is linear and depends on no token, ``delta`` is its matrix and ``merge``
folds it into the weight. ``save`` writes ``adapter_config.json`` and
``adapter_model.safetensors``: the adapter's tensors as the family stores them, under ``adapter.``,
and parameters trained in full (a classification head) as PEFT names them, under
``base_model.model.``.
"""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from edgebench.adapters.sites import Site, find_sites

OWN = "adapter."
HEAD = "base_model.model."


class Adapter(nn.Module):
    """One family's parameters on one model.

    Args:
        members: what stands in ``adapter_config.json``, validated.
        sites: the modules that it changes.
    """

    #: ``peft_type`` in adapter_config.json.
    kind: ClassVar[str]
    #: Whether ``update`` is given the module's output, not its input.
    edits_output: ClassVar[bool] = False

    def __init__(self, members: Mapping[str, Any], sites: Iterable[Site]) -> None:
        super().__init__()
        self.members = dict(members)
        self.sites = tuple(sites)

    def update(self, site: Site, x: Tensor) -> Tensor:
        """What is added at a site. x [batch, tokens, d_in] -> [batch, tokens, d_out]."""
        raise NotImplementedError

    def delta(self, site: Site) -> Tensor:
        """The update as a matrix [d_out, d_in], where it is one."""
        raise NotImplementedError

    def branch(self, site: Site) -> nn.Module | None:
        """A module that computes ``update`` from constants; None where there is none."""
        return None

    def stored(self) -> dict[str, Tensor]:
        """The tensors of the file, by name, in the types and shapes that are stored."""
        raise NotImplementedError

    def restore(self, tensors: Mapping[str, Tensor]) -> None:
        """Take the parameters from what ``stored`` gave."""
        raise NotImplementedError

    def head(self, module: nn.Module) -> dict[str, Tensor]:
        """Parameters of the model's head that the adapter makes itself, by name."""
        return {}


class Adapted(nn.Module):
    """A module with an adapter's update beside it."""

    def __init__(self, base: nn.Module, adapter: Adapter, site: Site) -> None:
        super().__init__()
        self.base = base
        self.adapter = adapter
        self.site = site
        self.branch: nn.Module | None = None

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.base(x)
        given = y if self.adapter.edits_output else x
        if self.branch is not None:
            edited: Tensor = y + self.branch(given)
            return edited
        changed: Tensor = y + self.adapter.update(self.site, given)
        return changed


def sites_of(module: nn.Module, roles: Iterable[str]) -> tuple[Site, ...]:
    """The sites of these roles in a transformers model.

    Raises:
        CheckpointError: see ``sites.find_sites``.
    """
    shapes = {
        name: tuple(part.weight.shape)
        for name, part in module.named_modules()
        if isinstance(getattr(part, "weight", None), Tensor)
    }
    config: Any = module.config
    return find_sites(shapes, config.model_type, roles)


def inject(module: nn.Module, adapter: Adapter) -> nn.Module:
    """Put the adapter's updates on a model, in place."""
    for site in adapter.sites:
        parent, _, name = site.module.rpartition(".")
        owner = module.get_submodule(parent)
        setattr(owner, name, Adapted(getattr(owner, name), adapter, site))
    return module


@torch.no_grad()
def merge(module: nn.Module) -> nn.Module:
    """Fold every update into its module, in place."""
    for name, part in list(module.named_modules()):
        if not isinstance(part, Adapted):
            continue
        weight: Any = part.base.weight
        weight += part.adapter.delta(part.site).to(weight.dtype)
        parent, _, last = name.rpartition(".")
        setattr(module.get_submodule(parent), last, part.base)
    return module


@torch.no_grad()
def settle(module: nn.Module) -> nn.Module:
    """Make what does not depend on the input constant, in place: an exporter then sees no more."""
    for part in list(module.modules()):
        if isinstance(part, Adapted):
            part.branch = part.adapter.branch(part.site)
    return module


def save(
    directory: Path,
    adapter: Adapter,
    *,
    head: Mapping[str, Tensor],
    task_type: str,
    base_name: str,
    labels: Iterable[str] = (),
) -> None:
    """Write an adapter's directory; each file is whole or not there.

    Args:
        head: parameters trained in full, by their names in the model.
    """
    from safetensors.torch import save as to_bytes

    tensors = {OWN + name: tensor.contiguous() for name, tensor in adapter.stored().items()}
    tensors |= {HEAD + name: tensor.detach().contiguous() for name, tensor in head.items()}
    config = {
        "peft_type": adapter.kind,
        "task_type": task_type,
        "base_model_name_or_path": base_name,
        **adapter.members,
    }
    directory.mkdir(parents=True, exist_ok=True)
    _write(directory / "adapter_model.safetensors", to_bytes(tensors, metadata={"format": "pt"}))
    _write(directory / "adapter_config.json", _json(config))
    if names := list(labels):
        _write(directory / "labels.json", _json({"labels": names}))


def _json(value: Any) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()


def _write(file: Path, content: bytes) -> None:
    handle, name = tempfile.mkstemp(prefix=".adapter-", dir=file.parent)
    temporary = Path(name)
    try:
        with os.fdopen(handle, "wb") as stream:
            stream.write(content)
            stream.flush()
            os.fsync(stream.fileno())
        temporary.chmod(0o644)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)
