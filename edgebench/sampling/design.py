"""Which configurations to measure: space-filling over s, and the same for the same seed.

A Halton sequence (scrambled; Owen 2017, arXiv:1706.02808, as in ``scipy.stats.qmc``) fills the unit
cube of five coordinates; each is one member of s = (seq_len, kept_layers, kept_heads, kept_ranks,
param_bits). A sequence goes on for as long as points are refused, which a Latin hypercube can't.
Which layers, heads and ranks are kept, given how many, is drawn at random.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from edgebench.errors import UsageError

#: Sequence lengths are multiples of this, as padded batches have them in practice.
_STEP = 8

#: Points that are tried for each configuration before the memory limit is said to be too small.
_TRIES = 50


@dataclass(frozen=True)
class Space:
    """What can be gated.

    Attributes:
        layers, heads: layers of the model, heads of a layer.
        ranks: for each layer, the rank of each of its modules that has factors, by name.
        seq_len: shortest and longest row, in tokens.
        schemes: precisions to choose from.
    """

    layers: int
    heads: int
    ranks: tuple[dict[str, int], ...]
    seq_len: tuple[int, int]
    schemes: tuple[str, ...]


@dataclass(frozen=True)
class Configuration:
    """One point: what is kept.

    Attributes:
        heads: the heads that are kept, for each layer; () where the layer is dropped.
        ranks: module -> the ranks that are kept; those of dropped layers are left out.
    """

    seq_len: int
    scheme: str
    heads: tuple[tuple[int, ...], ...]
    ranks: dict[str, tuple[int, ...]]

    @property
    def kept_layers(self) -> int:
        return sum(bool(heads) for heads in self.heads)

    @property
    def kept_heads(self) -> int:
        return sum(map(len, self.heads))

    @property
    def kept_ranks(self) -> int:
        return sum(map(len, self.ranks.values()))


def draw(
    space: Space, n: int, seed: int, fits: Callable[[Configuration], bool] = lambda _: True
) -> tuple[Configuration, ...]:
    """n configurations that fit.

    Raises:
        UsageError: too few points fit.
    """
    from scipy.stats import qmc

    points = qmc.Halton(d=5, scramble=True, seed=seed)
    found: list[Configuration] = []
    for tried in range(n * _TRIES):
        configuration = place(space, points.random(1)[0], np.random.default_rng([seed, tried]))
        if fits(configuration):
            found.append(configuration)
        if len(found) == n:
            return tuple(found)
    raise UsageError(
        f"only {len(found)} of {n * _TRIES} configurations fit the device's memory",
        where="--device",
        fix="Give a smaller base, fewer bits (--quant), or a device with more memory_mb.",
    )


def place(space: Space, point: Sequence[float], random: np.random.Generator) -> Configuration:
    """The configuration at a point of the unit cube.

    At least one layer is kept, and at least one head of each.
    """
    u = [min(float(x), np.nextafter(1.0, 0.0)) for x in point]
    low, high = space.seq_len
    # Even in the logarithm: twice as long is as far at 16 tokens as at 256.
    wanted = low * (high / low) ** u[0]
    seq_len = int(min(max(_STEP * round(wanted / _STEP), low), high))
    kept = sorted(random.choice(space.layers, 1 + int(u[1] * space.layers), replace=False))
    counts = _spread(
        len(kept) + int(u[2] * (len(kept) * (space.heads - 1) + 1)), len(kept), space.heads, random
    )
    heads = [()] * space.layers
    chosen: list[tuple[int, ...]] = list(heads)
    for layer, count in zip(kept, counts, strict=True):
        chosen[layer] = _choose(space.heads, count, random)
    slots = [
        (m, r) for layer in kept for m, rank in space.ranks[layer].items() for r in range(rank)
    ]
    picked = _choose(len(slots), int(u[3] * (len(slots) + 1)), random)
    ranks: dict[str, tuple[int, ...]] = {m: () for layer in kept for m in space.ranks[layer]}
    for index in picked:
        module, rank = slots[index]
        ranks[module] = (*ranks[module], rank)
    return Configuration(
        seq_len, space.schemes[int(u[4] * len(space.schemes))], tuple(chosen), ranks
    )


def everything(space: Space) -> Configuration:
    """The largest configuration: all is kept, the longest rows, the first precision."""
    return Configuration(
        seq_len=space.seq_len[1],
        scheme=space.schemes[0],
        heads=(tuple(range(space.heads)),) * space.layers,
        ranks={m: tuple(range(rank)) for layer in space.ranks for m, rank in layer.items()},
    )


def _spread(total: int, parts: int, most: int, random: np.random.Generator) -> list[int]:
    """``total`` heads over layers at random, from 1 to ``most`` in each."""
    seats = random.permutation([p for p in range(parts) for _ in range(most - 1)])
    counts = [1] * parts
    for part in seats[: total - parts]:
        counts[part] += 1
    return counts


def _choose(n: int, count: int, random: np.random.Generator) -> tuple[int, ...]:
    return tuple(sorted(int(i) for i in random.choice(n, count, replace=False))) if count else ()
