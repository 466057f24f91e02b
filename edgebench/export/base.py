"""The base model: where it is, and what it is, read without torch and without a network.

Three forms name one: a directory; ``package:<import name>/<folder>``, a folder inside an installed
Python package, which is found but not imported; and a Hugging Face model id that is already in
the local cache (layout: ``models--<org>--<name>/refs/main`` names a folder of ``snapshots/``).
"""

from __future__ import annotations

import hashlib
import importlib.util
import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgebench.artifact import canonical_json, sha256_file
from edgebench.errors import CheckpointError
from edgebench.export.weights import TensorInfo, find_weights, read_json, read_shapes

_PACKAGE = "package:"
_OFFLINE = "edgebench never downloads a model: give a directory, or package:<import name>/<folder>."


@dataclass(frozen=True)
class BaseModel:
    """A base checkpoint that exists and is whole.

    ``name`` means the same on every machine; ``digest`` covers config.json and the weights.
    """

    name: str
    path: Path
    config: dict[str, Any] = field(repr=False)
    shapes: dict[str, TensorInfo] = field(repr=False)
    weights: tuple[Path, ...]
    digest: str

    @property
    def hidden_size(self) -> int:
        return self._size("hidden_size", "dim", "d_model", "n_embd")

    @property
    def layers(self) -> int:
        return self._size("num_hidden_layers", "n_layers", "num_layers", "n_layer")

    @property
    def heads(self) -> int:
        return self._size("num_attention_heads", "n_heads", "num_heads", "n_head")

    @property
    def architecture(self) -> str:
        return str(self.config.get("model_type", "unknown"))

    @property
    def parameters(self) -> int:
        """Stored floating-point weights (buffers of indices don't count)."""
        floats = (t for t in self.shapes.values() if t.dtype.lower().startswith(("f", "bf")))
        return sum(tensor.size for tensor in floats)

    @property
    def max_positions(self) -> int | None:
        value = self.config.get("max_position_embeddings")
        return value if isinstance(value, int) else None

    def _size(self, *names: str) -> int:
        for name in names:  # families spell these differently (DistilBERT: dim, n_layers)
            if isinstance(self.config.get(name), int):
                return int(self.config[name])
        raise CheckpointError(
            f"config.json does not say {names[0]}", where=str(self.path), fix="Is it a transformer?"
        )


def read_base(text: str) -> BaseModel:
    """Find a base model and read its shape.

    Raises:
        CheckpointError: it is not there, or is incomplete or damaged.
    """
    path = locate(text)
    if path is None:
        raise CheckpointError(f"there is no base model {text!r} here", where="--base", fix=_OFFLINE)
    config = read_json(path / "config.json")
    weights = find_weights(path, "model", "base model")
    name = text if text.startswith(_PACKAGE) or not Path(text).is_dir() else path.resolve().name
    return BaseModel(
        name=name,
        path=path,
        config=config,
        shapes=read_shapes(weights, "base model"),
        weights=weights,
        digest=digest_files((path / "config.json", *weights)),
    )


#: Files that hold a vocabulary, by the libraries that write them.
_VOCABULARIES = ("tokenizer.json", "vocab.txt", "vocab.json", "*.model", "*.tiktoken")


def require_tokenizer(base: BaseModel) -> None:
    """Refuse a base without a vocabulary (transformers 5 would make up an empty one).

    Raises:
        CheckpointError: none of the files that hold one is there.
    """
    if not any(any(base.path.glob(pattern)) for pattern in _VOCABULARIES):
        raise CheckpointError(
            "the base model has no tokenizer",
            where=str(base.path),
            fix="Put its tokenizer files (tokenizer.json, …) beside config.json.",
        )


def locate(text: str) -> Path | None:
    """The directory that a base name stands for, or None."""
    if text.startswith(_PACKAGE):
        path = _in_package(text.removeprefix(_PACKAGE))
    elif Path(text).is_dir():
        path = Path(text)
    else:
        path = _in_cache(text)
    return path if path is not None and path.is_dir() else None


def digest_files(files: tuple[Path, ...]) -> str:
    """``sha256:`` digest of files' names and contents, whatever directory they stand in."""
    entries = {file.name: sha256_file(file) for file in files}
    return "sha256:" + hashlib.sha256(canonical_json(entries)).hexdigest()


def _in_package(reference: str) -> Path | None:
    package, _, folder = reference.partition("/")
    # Only a top-level name: looking up "a.b" would import a.
    if not package.isidentifier():
        return None
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    root = Path(next(iter(spec.submodule_search_locations))).resolve()
    path = (root / folder).resolve()
    return path if path.is_relative_to(root) else None


def _in_cache(model_id: str) -> Path | None:
    parts = model_id.split("/")
    if len(parts) > 2 or not all(parts) or ".." in parts:
        return None
    home = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    hub = Path(os.environ.get("HF_HUB_CACHE", home / "hub"))
    entry = hub / ("models--" + "--".join(parts))
    reference = entry / "refs" / "main"
    if not reference.is_file():
        return None
    return entry / "snapshots" / reference.read_text().strip()
