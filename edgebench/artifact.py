"""The Artifact: one exported model, immutable, named by its digest.

An artifact is a directory::

    minilm-bbc-int8-4f1c9a0b2d3e/
      artifact.json      the manifest below
      model.onnx         the graph (and model.onnx.data, its external weights, if any)
      inputs.npz         real tokenised inputs for timing: one array per model input, [n, seq_len]
      evaluation.npz     labelled held-out inputs: the same arrays plus ``labels`` [m] (optional)
      adapters/          one ONNX Runtime adapter file each, where the lowering is "swappable"

In the format "torch" a transformers checkpoint stands in the graph's place::

      config.json  model.safetensors                               the model (or the base alone),
      adapter/adapter_config.json  adapter/adapter_model.safetensors   and its unmerged branch

``artifact.json`` holds the SHA-256 of every other file. The artifact's digest is the SHA-256 of the
manifest's canonical JSON (sorted keys, no spaces, UTF-8) without its own ``digest`` member, so it
covers everything. Nothing in the manifest depends on the time or the place of the export.

Schema history (``schema``):
    edgebench.artifact/1   first
                           later: ``format`` (absent: onnx); ``exporter.opset`` and ``ir_version``
                           are null where there is no ONNX file; ``adapters`` (absent: none);
                           ``adapter.active_atoms``
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from edgebench.errors import ArtifactError

SCHEMA = "edgebench.artifact/1"
MANIFEST = "artifact.json"


#: What the model is stored as, and so what can run it: ONNX Runtime, or PyTorch.
Format = Literal["onnx", "torch"]

#: In the place of an adapter's name: the base alone.
NO_ADAPTER = "none"

#: What a model of the format "torch" may consist of: nothing here can hold code.
_TORCH_FILES = (".json", ".safetensors", ".npz")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class FileEntry(_Part):
    sha256: str
    bytes: int


class Base(_Part):
    """The backbone: its name, the digest of its weights, and its shape."""

    name: str
    digest: str
    architecture: str
    hidden_size: int
    layers: int
    heads: int
    parameters: int


class Adapter(_Part):
    """The trained adapter as stored on disk (``bytes`` is the checkpoint's weight file)."""

    name: str
    digest: str
    kind: str
    rank: int | None = None
    bytes: int
    parameters: int
    #: Atoms of a dictionary that one token uses at most, where the family has any.
    active_atoms: float | None = None


class Exporter(_Part):
    """What wrote the model: family file, road, and every version that decides the result."""

    name: str
    road: Literal["torch", "optimum"]
    opset: int | None
    ir_version: int | None
    versions: dict[str, str]


class Quantization(_Part):
    """How weights are stored and computed with.

    ``storage_bits`` is nominal (32, 16, 8, 3); ``storage_bits_per_weight`` counts every stored bit
    of the quantised weights, scales included, divided by their number; ``file_bits_per_weight``
    does the same over all weights of the model, those left in fp32 too. ``compute_bits`` is the
    weight width that the kernel computes with, ``activation_bits`` the width of the activations.
    """

    scheme: str
    storage_bits: int
    compute_bits: int
    activation_bits: int
    storage_bits_per_weight: float
    file_bits_per_weight: float
    block_size: int | None = None
    quantized_weights: int = 0
    total_weights: int
    details: dict[str, Any] = Field(default_factory=dict)


class Tensor(_Part):
    name: str
    dtype: str
    shape: tuple[int | str, ...]


class Signature(_Part):
    inputs: tuple[Tensor, ...]
    outputs: tuple[Tensor, ...]


class Statistics(_Part):
    """The vector s = (seq_len, kept_layers, kept_heads, kept_ranks, param_bits) of the graph.

    ``param_bits`` is the number of stored bits of all parameters of the graph.
    """

    seq_len: int
    kept_layers: int
    kept_heads: int
    kept_ranks: int
    param_bits: int


class Parity(_Part):
    """The graph's outputs against PyTorch's, in fp32, on ``n`` real inputs."""

    reference: str
    n: int
    max_abs_error: float
    mean_abs_error: float
    cosine_min: float
    cosine_mean: float
    kl_mean: float | None
    top1_agreement: float | None
    tolerance: float | None


class SwapAdapter(_Part):
    """One of the adapters that a swappable artifact's base takes.

    ``digest`` and ``bytes`` are the checkpoint's; ``file`` holds the same values in fp32, ready for
    ONNX Runtime. ``ranks`` and ``extra_flops`` are what it adds to the graph while it is active.
    """

    name: str
    file: str
    digest: str
    bytes: int
    rank: int | None
    kind: str
    parameters: int
    labels: tuple[str, ...] = ()
    ranks: int
    extra_flops: float
    parity: Parity


class Data(_Part):
    """The tokenised inputs that travel with the artifact."""

    inputs: str
    inputs_n: int
    inputs_source: str
    evaluation: str | None = None
    evaluation_n: int = 0
    evaluation_source: str | None = None


class Manifest(_Part):
    """artifact.json."""

    schema_: str = Field(alias="schema")
    digest: str = ""
    name: str
    task: str
    labels: tuple[str, ...] = ()
    base: Base
    adapter: Adapter | None
    exporter: Exporter
    lowering: Literal["merged", "unmerged", "swappable", "base"]
    quantization: Quantization
    signature: Signature
    statistics: Statistics
    extra_flops: float
    parity: Parity
    data: Data
    format: Format = "onnx"
    model: str = "model.onnx"
    #: Swappable: what can be made active; ``adapter`` is the first, ``parity`` the base alone's.
    adapters: tuple[SwapAdapter, ...] = ()
    files: dict[str, FileEntry]


@dataclass(frozen=True)
class Artifact:
    """A verified artifact: its directory and its manifest."""

    path: Path
    manifest: Manifest

    @property
    def digest(self) -> str:
        return self.manifest.digest

    @property
    def name(self) -> str:
        return self.manifest.name

    @property
    def model_path(self) -> Path:
        return self.path / self.manifest.model

    @property
    def size_bytes(self) -> int:
        """Bytes of the graph and its weights, without the data that travel along."""
        data = {self.manifest.data.inputs, self.manifest.data.evaluation}
        return sum(f.bytes for n, f in self.manifest.files.items() if n not in data)

    def swap_adapter(self, name: str | None) -> SwapAdapter | None:
        """The adapter of a swappable artifact that a name stands for.

        Args:
            name: None takes the first; ``NO_ADAPTER`` stands for the base alone.

        Raises:
            ArtifactError: there is none of this name.
        """
        adapters = self.manifest.adapters
        if not adapters or name == NO_ADAPTER:
            return None
        if name is None:
            return adapters[0]
        for adapter in adapters:
            if adapter.name == name:
                return adapter
        raise ArtifactError(
            f"the artifact has no adapter {name!r}",
            where=str(self.path),
            fix=f"It has {', '.join(a.name for a in adapters)}; {NO_ADAPTER} runs the base alone.",
        )

    @classmethod
    def load(cls, path: str | os.PathLike[str], *, verify: bool = True) -> Artifact:
        """Read and verify an artifact directory.

        Args:
            path: the directory that holds ``artifact.json``.
            verify: check the SHA-256 of every file, not only the manifest's own digest.

        Raises:
            ArtifactError: missing, truncated, of another schema, changed since it was exported,
                or with file names that leave the directory.
        """
        root = Path(path)
        manifest_path = root / MANIFEST
        if not manifest_path.is_file():
            raise ArtifactError(
                f"no artifact here: {MANIFEST} is missing",
                where=str(root),
                fix="Give a directory written by `edgebench export`.",
            )
        manifest = _parse(manifest_path)
        for name, entry in manifest.files.items():
            check_inside(root, name, what="the manifest names a file")
            file = root / name
            if not file.is_file():
                raise ArtifactError(
                    f"the artifact's file {name} is missing", where=str(root), fix=_REEXPORT
                )
            if file.stat().st_size != entry.bytes:
                raise ArtifactError(
                    f"{name} has {file.stat().st_size} bytes, the manifest says {entry.bytes}",
                    where=str(root),
                    fix=_REEXPORT,
                )
            if verify and sha256_file(file) != entry.sha256:
                raise ArtifactError(
                    f"the digest of {name} does not match: it was changed after export",
                    where=str(root),
                    fix=_REEXPORT,
                )
        if manifest.model not in manifest.files or manifest.data.inputs not in manifest.files:
            raise ArtifactError(
                "the manifest does not list its own model and inputs",
                where=str(root),
                fix=_REEXPORT,
            )
        if lost := [a.file for a in manifest.adapters if a.file not in manifest.files]:
            raise ArtifactError(
                f"the manifest does not list its adapter's file {lost[0]}",
                where=str(root),
                fix=_REEXPORT,
            )
        if manifest.format == "torch":
            _refuse_code(root, manifest)
        else:
            check_external_data(root / manifest.model)
        return cls(root, manifest)


def _refuse_code(root: Path, manifest: Manifest) -> None:
    """Refuse a checkpoint with a pickle or a program in it; safetensors hold tensors alone."""
    for name in manifest.files:
        if not name.endswith(_TORCH_FILES):
            raise ArtifactError(
                f"a torch artifact holds only JSON, safetensors and inputs, not {name}",
                where=str(root),
                fix="Refused: a pickle or a program can run any code. " + _REEXPORT,
            )


_REEXPORT = "Export it again with `edgebench export`; artifacts are never edited."


def sha256_file(path: Path) -> str:
    """Hex SHA-256 of a file's bytes."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def canonical_json(value: Any) -> bytes:
    """JSON with sorted keys and no spaces: the same bytes for the same value."""
    return json.dumps(
        value, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False
    ).encode()


def manifest_digest(document: Mapping[str, Any]) -> str:
    """``sha256:`` digest of a manifest document without its ``digest`` member."""
    body = {key: value for key, value in document.items() if key != "digest"}
    return "sha256:" + hashlib.sha256(canonical_json(body)).hexdigest()


def seal(manifest: Manifest) -> Manifest:
    """The same manifest with its digest filled in."""
    document = manifest.model_dump(mode="json", by_alias=True)
    return manifest.model_copy(update={"digest": manifest_digest(document)})


def write_manifest(directory: Path, manifest: Manifest) -> Manifest:
    """Seal a manifest and write it into a directory that is still being built."""
    sealed = seal(manifest)
    document = sealed.model_dump(mode="json", by_alias=True)
    (directory / MANIFEST).write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
    return sealed


def check_inside(root: Path, name: str, *, what: str) -> None:
    """Refuse a file name that leaves its directory (absolute, ``..``, or through a link)."""
    base = root.resolve()
    target = (base / name).resolve()
    if Path(name).is_absolute() or not target.is_relative_to(base) or target == base:
        raise ArtifactError(
            f"{what} outside the artifact's directory: {name!r}",
            where=str(root),
            fix="Refused: an artifact may only use its own files.",
        )


def check_external_data(model: Path) -> None:
    """Refuse an ONNX file whose external data lie outside its own directory.

    Reads the protobuf's ``external_data`` entries (onnx.proto: TensorProto field 13, key
    "location") without loading any weight. Needs the ``onnx`` package only if the file may have
    external data; a device never calls this.

    Raises:
        ArtifactError: the file is not ONNX, or points outside.
    """
    if _surely_self_contained(model):
        return
    import onnx
    from google.protobuf.message import DecodeError

    try:
        proto = onnx.load(os.fspath(model), load_external_data=False)
    except (DecodeError, ValueError, RuntimeError) as error:
        raise ArtifactError(
            "the file is not a readable ONNX model", where=str(model), fix=_REEXPORT
        ) from error
    if not proto.HasField("graph"):
        raise ArtifactError(
            "the file is not a readable ONNX model: it has no graph",
            where=str(model),
            fix=_REEXPORT,
        )
    for tensor in _tensors(proto):
        for entry in tensor.external_data:
            if entry.key == "location":
                check_inside(model.parent, entry.value, what="the model's external data point")
                if not (model.parent / entry.value).is_file():
                    raise ArtifactError(
                        f"the model's external data file {entry.value} is missing",
                        where=str(model),
                        fix=_REEXPORT,
                    )


def _surely_self_contained(model: Path) -> bool:
    """Whether an ONNX file can be told from its bytes alone to have no external data.

    Each external tensor names its file under the key "location" (onnx.proto): where that text is
    nowhere, there is none. Saves every run the quarter of a second that importing onnx costs.
    """
    if model.stat().st_size == 0:
        return False
    with model.open("rb") as stream, mmap(stream.fileno(), 0, access=ACCESS_READ) as data:
        if data.find(b"location") >= 0:
            return False
        graph = _messages(data, 0, len(data)).get(_MODEL_GRAPH)
        return graph is not None and bool(_messages(data, *graph))


#: ModelProto.graph (onnx.proto).
_MODEL_GRAPH = 7


def _messages(data: mmap, position: int, end: int) -> dict[int, tuple[int, int]]:
    """Begin and end of the length-delimited fields of a protobuf message, by number; the last
    where one is repeated, none where it is malformed (https://protobuf.dev/programming-guides/
    encoding)."""
    found: dict[int, tuple[int, int]] = {}

    def varint() -> int:
        nonlocal position
        value = 0
        for shift in range(0, 70, 7):
            byte = data[position]
            position += 1
            value |= (byte & 0x7F) << shift
            if byte < 0x80:
                return value
        raise IndexError

    try:
        while position < end:
            number, kind = divmod(varint(), 8)
            if kind == 0:
                varint()
            elif kind == 1:
                position += 8
            elif kind == 2:
                size = varint()
                found[number] = (position, position + size)
                position += size
            elif kind == 5:
                position += 4
            else:
                return {}
    except IndexError:
        return {}
    return found if position == end else {}


def _tensors(proto: Any) -> list[Any]:
    """Every TensorProto of a model: initialisers, attributes, subgraphs and functions."""
    found: list[Any] = []

    def from_attributes(nodes: Any) -> None:
        for node in nodes:
            for attribute in node.attribute:
                if attribute.HasField("t"):
                    found.append(attribute.t)
                found.extend(attribute.tensors)
                for graph in [attribute.g, *attribute.graphs]:
                    from_graph(graph)

    def from_graph(graph: Any) -> None:
        found.extend(graph.initializer)
        from_attributes(graph.node)

    from_graph(proto.graph)
    for function in proto.functions:
        from_attributes(function.node)
    return found


def _parse(path: Path) -> Manifest:
    try:
        document = json.loads(path.read_text())
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise ArtifactError(
            "the manifest is not readable JSON (truncated?)", where=str(path), fix=_REEXPORT
        ) from error
    schema = document.get("schema") if isinstance(document, dict) else None
    if schema != SCHEMA:
        raise ArtifactError(
            f"the manifest has schema {schema!r}, this edgebench reads {SCHEMA!r}",
            where=str(path),
            fix="Export the artifact again with this version.",
        )
    try:
        manifest = Manifest.model_validate(document)
    except ValidationError as error:
        first = error.errors()[0]
        place = ".".join(str(part) for part in first["loc"])
        raise ArtifactError(
            f"the manifest is malformed at {place}: {first['msg']}", where=str(path), fix=_REEXPORT
        ) from error
    if manifest.digest != manifest_digest(document):
        raise ArtifactError(
            "the artifact's digest does not match its manifest: it was changed after export",
            where=str(path),
            fix=_REEXPORT,
        )
    return manifest
