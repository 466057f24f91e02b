"""Finding an export that has been done before, without importing torch.

The key is a digest over everything that decides the result: adapter, base, tokenizer, data,
options, the versions of all libraries, and this package's own code. Beside the artifacts stands
``.exports/<key>.json``, which names one artifact per scheme. It is only an index and safe to
delete; what it names is verified before it is used.
"""

from __future__ import annotations

import hashlib
import importlib.metadata
import json
from pathlib import Path

import edgebench
from edgebench.artifact import Artifact, canonical_json, sha256_file
from edgebench.errors import ArtifactError
from edgebench.export.base import BaseModel
from edgebench.export.checkpoint import AdapterCheckpoint
from edgebench.export.exporter import FoundExporter
from edgebench.export.request import ExportRequest
from edgebench.export.store import write_atomically

INDEX = ".exports"

#: Distributions whose version decides what comes out.
_LIBRARIES = (
    "torch",
    "transformers",
    "tokenizers",
    "peft",
    "safetensors",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "numpy",
)
_OPTIMUM = ("optimum", "optimum-onnx")

#: Parts of edgebench that an export passes through.
_CODE = ("artifact.py", "adapters", "export", "export/decoder", "quantize", "runtimes")


def versions(via: str) -> dict[str, str]:
    """Versions of edgebench and of every library on this road, without importing any."""
    found = {"edgebench": edgebench.__version__}
    for name in (*_LIBRARIES, *(_OPTIMUM if via == "optimum" else ())):
        try:
            found[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def request_key(
    request: ExportRequest,
    name: str,
    base: BaseModel,
    adapters: tuple[tuple[AdapterCheckpoint, FoundExporter], ...],
) -> str:
    """The digest of a request, whatever its schemes (each has its own entry under the key)."""
    # Everything beside the weights may matter: tokenizer, vocabulary, special tokens.
    beside = {
        file.name: sha256_file(file)
        for file in sorted(base.path.iterdir())
        if file.is_file() and file not in base.weights
    }
    document = {
        "name": name,
        "base": [base.name, base.digest, beside],
        "adapters": [[each.name, each.digest, each.labels] for each, _ in adapters],
        "exporters": [[each.exporter.name, each.digest] for _, each in adapters],
        "lowering": request.lowering,
        "seq_len": request.seq_len,
        "data": request.data and [request.data.name, sha256_file(request.data)],
        "labels": request.labels,
        "calibration": request.calibration
        and [request.calibration.name, sha256_file(request.calibration)],
        "mixed_bits": request.mixed_bits,
        "via": request.via,
        "format": request.format,
        "evaluation_limit": request.evaluation_limit,
        "versions": versions(request.via),
        "code": _code_digest(),
    }
    return hashlib.sha256(canonical_json(document)).hexdigest()


def find(out: Path, key: str, schemes: tuple[str, ...]) -> dict[str, Artifact]:
    """The artifacts of an earlier export that are still whole, by scheme."""
    index = _read(out / INDEX / f"{key}.json")
    found = {}
    for scheme in schemes:
        name = index.get(scheme)
        if not isinstance(name, str) or Path(name).name != name:
            continue
        try:
            artifact = Artifact.load(out / name)
        except ArtifactError:
            continue
        if artifact.manifest.quantization.scheme == scheme:
            found[scheme] = artifact
    return found


def remember(out: Path, key: str, artifacts: dict[str, Artifact]) -> None:
    """Add artifacts to the index.

    Raises:
        OSError: it can't be written.
    """
    file = out / INDEX / f"{key}.json"
    file.parent.mkdir(exist_ok=True)
    entries = _read(file) | {scheme: a.path.name for scheme, a in artifacts.items()}
    write_atomically(file, canonical_json(entries) + b"\n")


def _read(file: Path) -> dict[str, object]:
    try:
        value = json.loads(file.read_text())
    except (OSError, ValueError):  # absent or damaged: it is only an index
        return {}
    return value if isinstance(value, dict) else {}


def _code_digest() -> str:
    package = Path(__file__).parent.parent
    files = [
        file
        for part in _CODE
        for file in ([package / part] if part.endswith(".py") else (package / part).glob("*.py"))
    ]
    entries = {str(file.relative_to(package)): sha256_file(file) for file in sorted(files)}
    return hashlib.sha256(canonical_json(entries)).hexdigest()
