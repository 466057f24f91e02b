"""Every family of our own with members of a small size, on tiny random encoders."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch

from edgebench.adapters import base as torch_side
from edgebench.adapters.base import Adapter
from edgebench.export.exporter import load_exporter
from edgebench.workspace import builtin_root
from tests.export import tiny

ALL = ["q", "k", "v", "o", "ffn_in", "ffn_out"]

MEMBERS: dict[str, dict[str, Any]] = {
    "sat_lora": {"rank": 4, "alpha": 8, "share_layers": False, "targets": ALL},
    "lilac": {"rank": 2, "alpha": 4, "atoms": 16, "targets": ALL},
    "dictionary": {"atoms": 16, "active_atoms": 5, "targets": ["q", "v"]},
    "representation_edit": {"rank": 3, "targets": ["hidden"]},
    "himalaya": {
        "core_atoms": 12,
        "elastic_atoms": 2,
        "active_atoms": 3,
        "router_width": 8,
        "tasks": 2,
        "task_width": 4,
        "task": 1,
        "targets": ["q", "v"],
    },
    "unihyperlora": {
        "atoms": 24,
        "width": 16,
        "projector_rank": 6,
        "frequencies": 20,
        "active_atoms": 2,
        "routing": "token",
        "labels": len(tiny.LABELS),
        "targets": ALL,
    },
}
LINEAR = ("sat_lora", "lilac", "dictionary")
"""Families whose update is a matrix."""


def exporter(family: str) -> Any:
    return load_exporter(builtin_root() / "exporters" / f"{family}.py")


def model(base: Path) -> Any:
    from transformers import AutoModelForSequenceClassification

    torch.manual_seed(0)
    return AutoModelForSequenceClassification.from_pretrained(
        base, num_labels=len(tiny.LABELS), attn_implementation="eager", local_files_only=True
    ).eval()


def adapter(family: str, module: Any, *, seed: int = 0, **changes: Any) -> Adapter:
    """A family's adapter with random parameters, all of them other than zero."""
    torch.manual_seed(seed)
    members = MEMBERS[family] | changes
    made: Adapter = exporter(family).module(
        members, torch_side.sites_of(module, members["targets"])
    )
    with torch.no_grad():
        for parameter in made.parameters():
            parameter += 0.1 * torch.randn(parameter.shape)
    return made.eval()


def write(family: str, base: Path, directory: Path, **changes: Any) -> Path:
    """A checkpoint with random parameters."""
    module = model(base)
    made = adapter(family, module, **changes)
    trained = {n: p for n, p in module.named_parameters() if n.startswith(("classifier", "score"))}
    torch_side.save(
        directory,
        made,
        head={} if family == "unihyperlora" else trained,
        task_type="SEQ_CLS",
        base_name="tiny",
        labels=tiny.LABELS,
    )
    return directory


def restored(family: str, made: Adapter, module: Any) -> Adapter:
    """What is read back of an adapter."""
    again: Adapter = exporter(family).module(made.members, made.sites)
    again.restore(made.stored())
    return again.eval()
