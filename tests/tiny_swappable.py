"""The tiny decoder with branches of inputs, and two adapters of unlike ranks on unlike products."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from numpy.typing import NDArray

from edgebench.artifact import Artifact, FileEntry, SwapAdapter, sha256_file, write_manifest
from edgebench.export import swappable
from tests.tiny_decoder import (
    HEAD_DIM,
    HIDDEN,
    KV_HEADS,
    decoder_artifact,
    greedy,
    tiny_decoder,
)

#: Products of the graph that have a branch.
SWAPPED = ("q0", "v0", "k1")

Factors = dict[str, NDArray[np.float32]]


def model() -> onnx.ModelProto:
    """Without an adapter it computes what ``tiny_decoder()`` does."""
    return tiny_decoder(swapped=SWAPPED)


def factors() -> dict[str, Factors]:
    """What each adapter gives the graph's inputs."""
    rng = np.random.default_rng(7)
    widths = {"q": HIDDEN, "k": KV_HEADS * HEAD_DIM, "v": KV_HEADS * HEAD_DIM}
    made: dict[str, Factors] = {}
    for name, rank, products in (("news", 4, ("q0", "v0")), ("mood", 3, ("q0", "k1"))):
        made[name] = {}
        for product in products:
            shapes = {"lora_A": (HIDDEN, rank), "lora_B": (rank, widths[product[0]])}
            for end, shape in shapes.items():
                array = (0.6 * rng.normal(size=shape)).astype(np.float32)
                made[name][f"{product}.{end}"] = array
    return made


def adapter_files(directory: Path) -> dict[str, str]:
    """The adapters as files, by name."""
    for name, given in factors().items():
        swappable.write_file(directory / "adapters" / f"{name}.onnx_adapter", given)
    return {name: str(directory / "adapters" / f"{name}.onnx_adapter") for name in factors()}


def swappable_decoder(directory: Path, **settings: Any) -> Artifact:
    """A sealed artifact with both adapters, and the tokens expected of each and of the base."""
    made = decoder_artifact(directory, model=model(), **settings)
    root, manifest = made.path, made.manifest
    files = adapter_files(root)
    with np.load(root / "inputs.npz") as stored:
        arrays = dict(stored)
    for name, given in factors().items():
        rows, count = arrays["input_ids"][:2].tolist(), arrays["expected_tokens"].shape[1]
        tokens = [greedy(model(), row, count, given) for row in rows]
        arrays[f"expected_tokens.{name}"] = np.array(tokens)
    np.savez(root / "inputs.npz", **arrays)
    adapters = tuple(
        SwapAdapter(
            name=name,
            file=Path(file).relative_to(root).as_posix(),
            digest=f"sha256:{name}",
            bytes=10,
            rank=4,
            kind="lora",
            parameters=1,
            ranks=8,
            extra_flops=100.0,
            parity=manifest.parity,
        )
        for name, file in files.items()
    )
    entries = {
        file.relative_to(root).as_posix(): FileEntry(
            sha256=sha256_file(file), bytes=file.stat().st_size
        )
        for file in sorted(root.rglob("*"))
        if file.is_file() and file.name != "artifact.json"
    }
    changed = {"adapters": adapters, "lowering": "swappable", "files": entries}
    write_manifest(root, manifest.model_copy(update=changed))
    return Artifact.load(root)
