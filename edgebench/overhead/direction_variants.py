"""A HEST checkpoint with other numbers of int8 and fp16 directions, and which numbers to try."""

from __future__ import annotations

import itertools
import shutil
from pathlib import Path

from edgebench.errors import CheckpointError
from edgebench.export.checkpoint import AdapterCheckpoint
from edgebench.export.weights import load_tensors

#: Shares of all directions that are int8 and fp16: corners, edges and inside of what there is.
_SHARES = (
    (0.0, 0.0),
    (1.0, 0.0),
    (0.0, 1.0),
    (0.5, 0.5),
    (0.5, 0.0),
    (0.0, 0.5),
    (0.25, 0.25),
    (0.75, 0.25),
    (0.25, 0.75),
    (0.75, 0.0),
    (0.0, 0.75),
    (0.25, 0.0),
)
LEAST, MOST = 5, len(_SHARES)

_STATES = ".spectral_states"
#: The logit of the state that a direction has; the others' is 0.
_CHOSEN = 8.0


def design(total: int, points: int) -> list[tuple[int, int]]:
    """Numbers of int8 and fp16 directions, each pair once; the first has none.

    Raises:
        CheckpointError: there are too few directions to vary them.
    """
    pairs = [(round(total * int8), round(total * fp16)) for int8, fp16 in _SHARES]
    found = [pair for pair in dict.fromkeys(pairs) if sum(pair) <= total][:points]
    if len(found) < LEAST:
        raise CheckpointError(
            f"{total} directions are too few to tell what each costs",
            fix=f"At least {LEAST - 1} are needed.",
        )
    return found


def state_sizes(checkpoint: AdapterCheckpoint) -> dict[str, int]:
    """Directions of each module, by the name of its tensor of states.

    Raises:
        CheckpointError: they have no states.
    """
    found = {
        name: tensor.shape[0]
        for name, tensor in sorted(checkpoint.shapes.items())
        if name.endswith(_STATES) and len(tensor.shape) == 2 and tensor.shape[1] == 3
    }
    if not found:
        raise CheckpointError(
            "the adapter's directions have no states (off, int8, fp16) that could be varied",
            where=str(checkpoint.path),
            fix="Give a HEST adapter; `edgebench overhead` says what others cost.",
        )
    return found


def write_variant(
    checkpoint: AdapterCheckpoint, sizes: dict[str, int], n_int8: int, n_fp16: int, out: Path
) -> None:
    """Copy a checkpoint with its directions' states set, spread evenly over its modules."""
    import torch
    from safetensors.torch import save_file

    from edgebench.adapters.spectral import FP16, INT8, OFF

    tensors = load_tensors(checkpoint.weights, "adapter")
    states = [OFF] * sum(sizes.values())
    small = _spread(len(states), n_int8)
    left = [index for index in range(len(states)) if index not in small]
    for index in small:
        states[index] = INT8
    for position in _spread(len(left), n_fp16):
        states[left[position]] = FP16
    given = iter(states)
    for name, size in sizes.items():
        logits = torch.zeros_like(tensors[name])
        for row, state in enumerate(itertools.islice(given, size)):
            logits[row, state] = _CHOSEN
        tensors[name] = logits
    out.mkdir()
    for file in checkpoint.path.glob("*.json"):
        shutil.copyfile(file, out / file.name)
    save_file(tensors, out / "adapter_model.safetensors", metadata={"format": "pt"})


def _spread(of: int, count: int) -> set[int]:
    """``count`` of the numbers below ``of``, as far apart as can be."""
    return {index * of // count for index in range(count)} if count else set()


def own_counts(checkpoint: AdapterCheckpoint) -> tuple[int, int]:
    """The adapter's own numbers of int8 and fp16 directions."""
    from edgebench.adapters.spectral import FP16, INT8

    tensors = load_tensors(checkpoint.weights, "adapter")
    chosen = [s for n, t in tensors.items() if n.endswith(_STATES) for s in t.argmax(1).tolist()]
    return chosen.count(INT8), chosen.count(FP16)
