"""Small made-up device families: latency, energy and power as known functions of s."""

from __future__ import annotations

import numpy as np

from edgebench.surrogate.columns import STATISTICS
from edgebench.surrogate.training_table import TrainingTable

#: Tag -> fixed ms, ms a layer and 128 tokens, ms a head, ms a rank, ms a Gbit, idle W, busy W.
FAMILY = {
    "board-a": (8.0, 4.0, 0.10, 0.004, 9.0, 2.5, 1.5),
    "board-b": (5.0, 2.5, 0.08, 0.003, 4.0, 3.0, 3.0),
    "board-c": (2.0, 1.4, 0.03, 0.002, 6.0, 4.0, 5.0),
    "board-d": (9.0, 3.2, 0.12, 0.005, 7.0, 2.0, 2.0),
}
#: Between them, and in no table.
NEW = (6.0, 3.0, 0.06, 0.004, 8.0, 3.2, 2.4)
#: What no member of the family does: gets faster with layers and slower with ranks.
STRANGE = (800.0, -20.0, -0.4, 0.9, -40.0, 2.0, 2.0)


def statistics(n: int, seed: int) -> np.ndarray:
    """[n, 5] random s of a small encoder."""
    rng = np.random.default_rng(seed)
    layers = rng.integers(2, 13, n)
    return np.stack(
        [
            rng.choice([32, 64, 128, 256], n),
            layers,
            layers * rng.integers(4, 13, n),
            rng.integers(0, 400, n),
            rng.uniform(1e8, 3e9, n),
        ],
        axis=1,
    ).astype(float)


def figures(s: np.ndarray, constants: tuple[float, ...], seed: int, noise: float = 0.01):
    """[n, 3] energy, latency, power of a device with these constants."""
    fixed, layer, head, rank, gbit, idle_w, busy_w = constants
    work = layer * s[:, 1] * s[:, 0] / 128
    latency_ms = fixed + work + head * s[:, 2] + rank * s[:, 3] + gbit * s[:, 4] / 1e9
    power_w = idle_w + busy_w * s[:, 2] / 150
    exact = np.stack([power_w * latency_ms / 1e3, latency_ms, power_w], axis=1)
    return exact * np.exp(noise * np.random.default_rng(seed).standard_normal(exact.shape))


def table(tag: str, n: int, seed: int, constants: tuple[float, ...] | None = None):
    s = statistics(n, seed)
    y = figures(s, constants or FAMILY[tag], seed + 1)
    return TrainingTable(STATISTICS, s, np.array([tag] * n), y)


def join(*tables: TrainingTable) -> TrainingTable:
    return TrainingTable(
        tables[0].features,
        np.concatenate([t.x for t in tables]),
        np.concatenate([t.device for t in tables]),
        np.concatenate([t.y for t in tables]),
    )


def family(n: int = 120) -> TrainingTable:
    return join(*(table(tag, n, 10 * i) for i, tag in enumerate(FAMILY)))


def frame(t: TrainingTable):
    """As a CSV would have it: energy_j, latency_ms, power_w; empty where not measured."""
    import pandas as pd

    found = pd.DataFrame(t.x, columns=list(t.features))
    found.insert(0, "device", t.device)
    for i, name in enumerate(("energy_j", "latency_ms", "power_w")):
        if np.isfinite(t.y[:, i]).any():
            found[name] = t.y[:, i]
    return found
