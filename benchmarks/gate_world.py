"""Noise for the gate's replays: made-up machines, and traces that were recorded.

Everything is turn medians: [replays, blocks, rounds] of two sides that are the same model, as they
would be measured in randomised rounds. A slow-down multiplies one of them.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

TRACES = Path(__file__).parent / "traces"
ROUNDS = 9
#: Standard deviation of a side's speed in one load of the model, and of one turn's median.
LAUNCH_SD, TURN_SD = 0.004, 0.008

Floats = np.ndarray
Sides = tuple[Floats, Floats]
Machine = Callable[[Floats, np.random.Generator], Floats]


def quiet(t: Floats, random: np.random.Generator) -> Floats:
    """Nothing but launches and turns."""
    return np.zeros_like(t)


def drift(t: Floats, random: np.random.Generator) -> Floats:
    """Warms up: half slower at the end than at the beginning."""
    return 0.4 * t / t[..., -1:]


def autocorrelated(t: Floats, random: np.random.Generator) -> Floats:
    """A wandering of 3 % that lasts for some 50 turns."""
    from scipy.signal import lfilter

    noise = random.normal(0, 0.03 * np.sqrt(1 - 0.98**2), t.shape)
    return np.asarray(lfilter([1.0], [1.0, -0.98], noise, axis=-1))


def bimodal(t: Floats, random: np.random.Generator) -> Floats:
    """Every turn in one of two modes, a tenth apart."""
    return 0.1 * (random.random(t.shape) < 0.3)


def heavy_tails(t: Floats, random: np.random.Generator) -> Floats:
    """Student's t with 1.5 degrees of freedom: no variance."""
    return np.clip(0.006 * random.standard_t(1.5, t.shape), -2, 5)


def periodic(t: Floats, random: np.random.Generator) -> Floats:
    """Every 7.3 turns something else runs for a fifth of the time: a quarter slower."""
    phase = random.random((*t.shape[:-1], 1))
    return 0.22 * (((t / 7.3 + phase) % 1.0) < 0.2)


def frequency_steps(t: Floats, random: np.random.Generator) -> Floats:
    """The clock steps between two frequencies a fifth apart, about every 40 turns."""
    switches = random.random(t.shape) < 1 / 40
    return 0.18 * (np.cumsum(switches, axis=-1) % 2)


MACHINES: dict[str, Machine] = {
    "quiet": quiet,
    "drift": drift,
    "autocorrelated": autocorrelated,
    "two modes": bimodal,
    "heavy tails": heavy_tails,
    "periodic": periodic,
    "clock steps": frequency_steps,
}


def made_up(machine: Machine, replays: int, blocks: int, random: np.random.Generator) -> Sides:
    """Both sides of A/A checks on a made-up machine, each [replays, blocks, ROUNDS]."""
    turns = np.broadcast_to(np.arange(blocks * ROUNDS * 2.0), (replays, blocks * ROUNDS * 2))
    common = machine(turns, random).reshape(replays, blocks, ROUNDS, 2)
    common = common + random.normal(0, TURN_SD, common.shape)
    # Which side has the first turn of a round is drawn anew each time.
    swap = random.random((replays, blocks, ROUNDS)) < 0.5
    launch = random.normal(0, LAUNCH_SD, (2, replays, blocks, 1))
    first, second = common[..., 0], common[..., 1]
    base = np.where(swap, second, first) + launch[0]
    new = np.where(swap, first, second) + launch[1]
    return np.exp(base), np.exp(new)


def recorded_names() -> list[str]:
    return sorted(path.stem for path in TRACES.glob("*.npz"))


def load_trace(name: str) -> Sides:
    """Turn medians of a recorded A/A run, both [launches, rounds that all launches have]."""
    with np.load(TRACES / f"{name}.npz") as file:
        launch, artifact, turn, duration = (
            file[key] for key in ("launch", "artifact", "turn", "duration_ns")
        )
    sides = []
    for side in (0, 1):
        medians = []
        for number in np.unique(launch):
            here = (launch == number) & (artifact == side)
            turns = np.unique(turn[here])
            medians.append([np.median(duration[here & (turn == t)]) for t in turns])
        sides.append(medians)
    rounds = min(len(m) for side in sides for m in side)
    base, new = (np.array([m[:rounds] for m in side]) for side in sides)
    return base, new


def recorded(trace: Sides, replays: int, blocks: int, random: np.random.Generator) -> Sides:
    """Stretches of four consecutive launches of a trace, put together; each launch's two sides are
    exchanged or not by a coin, as the gate's own randomisation would have."""
    base, new = trace
    begin = random.integers(0, len(base), (replays, -(-blocks // 4), 1))
    index = ((begin + np.arange(4)) % len(base)).reshape(replays, -1)[:, :blocks]
    swap = random.random((replays, blocks, 1)) < 0.5
    one, other = base[index], new[index]
    return np.where(swap, other, one), np.where(swap, one, other)
