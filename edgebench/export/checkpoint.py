"""The adapter checkpoint, read without torch: configuration, shapes, labels, digest."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgebench.errors import CheckpointError
from edgebench.export.base import digest_files
from edgebench.export.weights import TensorInfo, find_weights, read_json, read_shapes

CONFIG = "adapter_config.json"
LABELS = "labels.json"


@dataclass(frozen=True)
class AdapterCheckpoint:
    """A trained adapter as it stands on disk."""

    name: str
    path: Path
    config: dict[str, Any] = field(repr=False)
    shapes: dict[str, TensorInfo] = field(repr=False)
    weights: tuple[Path, ...]
    digest: str
    labels: tuple[str, ...] | None

    @property
    def bytes(self) -> int:
        """Size of the weight files."""
        return sum(file.stat().st_size for file in self.weights)

    @property
    def parameters(self) -> int:
        return sum(tensor.size for tensor in self.shapes.values())

    @property
    def base_name(self) -> str:
        """The base that the adapter says it was trained on, or ""."""
        return str(self.config.get("base_model_name_or_path") or "")


def read_adapter(path: Path) -> AdapterCheckpoint:
    """Read an adapter directory.

    Raises:
        CheckpointError: it is missing, incomplete, truncated, or a pickle.
    """
    if path.is_file():
        raise CheckpointError(
            f"{path.name} is a file; an adapter is a directory with {CONFIG} and "
            "adapter_model.safetensors",
            where=str(path),
            fix="Give the directory that save_pretrained wrote; a pickle is never opened.",
        )
    if not path.is_dir():
        raise CheckpointError(
            "there is no adapter here", where=str(path), fix="Check the path, or train one first."
        )
    config = read_json(path / CONFIG)
    weights = find_weights(path, "adapter_model", "adapter")
    label_files = tuple(f for f in (path / LABELS, path / "config.json") if f.is_file())
    return AdapterCheckpoint(
        name=path.resolve().name,
        path=path,
        config=config,
        shapes=read_shapes(weights, "adapter"),
        weights=weights,
        digest=digest_files((path / CONFIG, *weights, *label_files)),
        labels=_labels(path),
    )


def _labels(path: Path) -> tuple[str, ...] | None:
    """Label names in the order of the logits.

    From ``labels.json`` (``{"labels": [...]}``), or from the ``id2label`` of a transformers
    ``config.json`` that was saved beside the adapter.
    """
    if (path / LABELS).is_file():
        labels = read_json(path / LABELS).get("labels")
        if not isinstance(labels, list) or not all(isinstance(name, str) for name in labels):
            raise CheckpointError(
                f'{LABELS} does not hold {{"labels": ["...", ...]}}', where=str(path / LABELS)
            )
        return tuple(labels)
    if (path / "config.json").is_file():
        return id2label(read_json(path / "config.json"))
    return None


def id2label(config: dict[str, Any]) -> tuple[str, ...] | None:
    """The label names of a transformers configuration, if it has any."""
    table = config.get("id2label")
    if not isinstance(table, dict) or not table:
        return None
    if set(table) != {str(index) for index in range(len(table))}:
        raise CheckpointError("id2label in config.json does not number the labels from 0")
    return tuple(str(table[str(index)]) for index in range(len(table)))
