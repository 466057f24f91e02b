"""The files of ours that run on a device beside the agent: meters, PyTorch, and decoders' driver.

They are sent by digest like an artifact's files and put together below the agent's root as a
package ``edgebench`` of their own, which hides any other there. Locally the package itself serves.
"""

from __future__ import annotations

import hashlib
from collections.abc import Collection
from pathlib import Path
from typing import Any

import edgebench
from edgebench.artifact import canonical_json, sha256_file
from edgebench.measure.session import Session
from edgebench.meters.base import modules_for

_PACKAGE = Path(edgebench.__file__).parent
#: Stands for the package's own __init__.py there: it says nothing and imports nothing.
_EMPTY = _PACKAGE / "meters" / "__init__.py"


#: What runs beside the agent for a runtime, and for decoders in ONNX Runtime.
_RUNTIMES = {
    "torch": ("torch_runtime",),
    "decoder": ("decoder_runtime", "decoder_driver", "decoder_graph", "decoder_adapters"),
}


def bundle_files(
    kinds: Collection[str], runtime: str = "onnxruntime", *, decoders: bool = False
) -> dict[str, Path]:
    """Name in the bundle -> file, for meters of some kinds, one runtime, and decoders."""
    files: dict[str, Path] = {}
    if kinds:
        names = modules_for(list(kinds))
        files |= {f"edgebench/meters/{name}.py": _PACKAGE / f"meters/{name}.py" for name in names}
    asked = [runtime, *(["decoder"] if decoders else [])]
    if names := [name for each in asked for name in _RUNTIMES.get(each, ())]:
        for name in ("__init__", *names):
            files[f"edgebench/runtimes/{name}.py"] = _PACKAGE / f"runtimes/{name}.py"
    if files:
        files["edgebench/__init__.py"] = _EMPTY
    return files


async def provide_bundle(session: Session, files: dict[str, Path]) -> dict[str, Any] | None:
    """What the agent takes as ``bundle``, after sending what the device lacks; None for no files.

    Raises:
        LinkError, DeviceError: a file could not be sent.
    """
    if not files:
        return None
    if session.local:
        return {"path": str(_PACKAGE.parent)}
    entries = {
        name: {"sha256": sha256_file(path), "bytes": path.stat().st_size}
        for name, path in sorted(files.items())
    }
    by_digest = {str(entries[name]["sha256"]): path for name, path in files.items()}
    sizes = {str(entry["sha256"]): entry["bytes"] for entry in entries.values()}
    reply = await session.client.request("missing", files=sizes)
    for digest in reply["missing"]:
        await session.transport.put(by_digest[digest], f"{reply['cache']}/{digest}")
        await session.client.request("verify", digest=digest)
    digest = hashlib.sha256(canonical_json(entries)).hexdigest()
    return {"digest": digest, "files": entries}
