"""Weight files: which there are, and the shapes in them, without loading a weight.

safetensors (format: https://huggingface.co/docs/safetensors): 8 bytes little-endian header length,
a JSON header ``{name: {"dtype", "shape", "data_offsets": [begin, end]}}``, then the data. Reading
the header costs microseconds and needs no library, and a file cut short shows in its length.

The older ``.bin`` and ``.pt`` files are pickles inside. They are opened by
``torch.load(weights_only=True)`` alone, which builds tensors and nothing else; whatever else they
hold is refused. No other pickle is ever opened.
"""

from __future__ import annotations

import json
import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from edgebench.errors import CheckpointError

_DOWNLOAD_AGAIN = "Copy or download the checkpoint again."


@dataclass(frozen=True)
class TensorInfo:
    """A stored tensor's type (as the file names it) and shape."""

    dtype: str
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return math.prod(self.shape)


def find_weights(directory: Path, stem: str, what: str) -> tuple[Path, ...]:
    """The weight files of a checkpoint: one file, or the shards that an index names.

    Args:
        directory: the checkpoint.
        stem: ``adapter_model`` or ``model``.
        what: "adapter" or "base model", for messages.

    Raises:
        CheckpointError: there is none, a shard is missing, or there is only a pickle.
    """
    index = directory / f"{stem}.safetensors.index.json"
    legacy = "pytorch_model" if stem == "model" else stem
    if index.is_file():
        names = set(read_json(index).get("weight_map", {}).values())
        missing = sorted(n for n in names if Path(n).name != n or not (directory / n).is_file())
        if missing or not names:
            raise CheckpointError(
                f"the {what}'s weight file {missing[0] if missing else '(none named)'} is missing",
                where=str(index),
                fix=_DOWNLOAD_AGAIN,
            )
        return tuple(directory / name for name in sorted(names))
    for name in (f"{stem}.safetensors", f"{legacy}.bin", f"{legacy}.pt"):
        if (directory / name).is_file():
            return (directory / name,)
    pickles = [p.name for p in sorted(directory.iterdir()) if p.suffix in {".pkl", ".pickle"}]
    if pickles:
        raise CheckpointError(
            f"the {what} holds only a pickle, {pickles[0]}, and a pickle can run any code",
            where=str(directory),
            fix="Save it as safetensors (save_pretrained does) and try again.",
        )
    raise CheckpointError(
        f"the {what} has no weights: {stem}.safetensors is missing",
        where=str(directory),
        fix="Give the directory that save_pretrained wrote.",
    )


def read_shapes(files: tuple[Path, ...], what: str) -> dict[str, TensorInfo]:
    """Names, types and shapes of every tensor in these files.

    Raises:
        CheckpointError: a file is truncated, malformed, or a pickle with more than tensors.
    """
    shapes: dict[str, TensorInfo] = {}
    for file in files:
        if file.suffix == ".safetensors":
            shapes |= _safetensors_header(file, what)
        else:
            shapes |= {
                name: TensorInfo(str(t.dtype).removeprefix("torch."), tuple(t.shape))
                for name, t in load_tensors((file,), what).items()
            }
    return shapes


def load_tensors(files: tuple[Path, ...], what: str) -> dict[str, Any]:
    """Every tensor in these files, as ``torch.Tensor`` on the CPU.

    Raises:
        CheckpointError: as ``read_shapes``.
    """
    import torch
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    tensors: dict[str, Any] = {}
    for file in files:
        if file.suffix == ".safetensors":
            try:
                tensors |= load_file(file)
            except SafetensorError as error:
                raise _broken(what, file) from error
            continue
        try:
            loaded = torch.load(file, map_location="cpu", weights_only=True)
        except pickle.UnpicklingError as error:
            raise CheckpointError(
                f"the {what}'s {file.name} is a pickle that holds more than tensors, "
                "and could run any code",
                where=str(file),
                fix="Refused. Save it as safetensors (save_pretrained does) and try again.",
            ) from error
        except (RuntimeError, EOFError, ValueError) as error:
            raise _broken(what, file) from error
        if not isinstance(loaded, dict) or not all(torch.is_tensor(t) for t in loaded.values()):
            raise CheckpointError(
                f"the {what}'s {file.name} is not a table of named tensors",
                where=str(file),
                fix="Save it as safetensors (save_pretrained does) and try again.",
            )
        tensors |= loaded
    return tensors


def refuse_non_finite(tensors: Mapping[str, Any], what: str, where: Path) -> None:
    """Refuse weights that hold NaN or infinity.

    Raises:
        CheckpointError: naming the first such tensor.
    """
    for name, tensor in tensors.items():
        # One NaN or infinity makes the sum one; the slow check only where the sum is not finite.
        if not tensor.is_floating_point() or bool(tensor.sum().isfinite()):
            continue
        if not bool(tensor.isfinite().all()):
            raise CheckpointError(
                f"the {what}'s weight {name} holds NaN or infinity: its training diverged, "
                "or the file is damaged",
                where=str(where),
                fix="Use an earlier checkpoint.",
            )


def read_json(file: Path) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        CheckpointError: it is not there, or not a JSON object.
    """
    try:
        value = json.loads(file.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise CheckpointError(
            f"{file.name} is missing", where=str(file.parent), fix=_DOWNLOAD_AGAIN
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(
            f"{file.name} is not readable JSON (truncated?)", where=str(file), fix=_DOWNLOAD_AGAIN
        ) from error
    if not isinstance(value, dict):
        raise CheckpointError(f"{file.name} is not a JSON object", where=str(file))
    return value


def _safetensors_header(file: Path, what: str) -> dict[str, TensorInfo]:
    size = file.stat().st_size
    with file.open("rb") as stream:
        length = int.from_bytes(stream.read(8), "little")
        if size < 8 or length > size - 8:
            raise _broken(what, file)
        raw = stream.read(length)
    try:
        header = json.loads(raw)
        entries = {name: entry for name, entry in header.items() if name != "__metadata__"}
        shapes = {n: TensorInfo(e["dtype"], tuple(e["shape"])) for n, e in entries.items()}
        end = max((e["data_offsets"][1] for e in entries.values()), default=0)
    except (ValueError, KeyError, TypeError, AttributeError, IndexError) as error:
        raise _broken(what, file) from error
    if 8 + length + end != size or not shapes:
        raise _broken(what, file)
    return shapes


def _broken(what: str, file: Path) -> CheckpointError:
    return CheckpointError(
        f"the {what}'s {file.name} is truncated or damaged ({file.stat().st_size} bytes)",
        where=str(file),
        fix=_DOWNLOAD_AGAIN,
    )
