"""How long blocks are: what pays, from how much launches differ and how noisy their calls are."""

from __future__ import annotations

from math import inf, log, sqrt

import numpy as np
import pytest

from edgebench.gate.blocks import Block, blocks_of
from edgebench.gate.lengths import block_length_s
from edgebench.gate.metrics import chosen
from tests.gate.test_environment import session

LIMIT = log(1.03)
START_S, TIMED_S = 1.2, 1.0


def blocks(noise: float, n: int = 8) -> list[Block]:
    return [
        Block("r", i, {"p50": 0.0}, {}, START_S + TIMED_S, 1e6, 0.0, 0.0, TIMED_S, {"p50": noise})
        for i in range(n)
    ]


def length(noise: float, spread: float, current_s: float = 100.0, metric: str = "p50") -> float:
    return block_length_s(
        blocks(noise), metric, spread=spread, limit=LIMIT, asked_s=1.0, current_s=current_s
    )


def test_blocks_that_scatter_little_stay_as_asked():
    assert length(noise=0.009, spread=0.0095) == 1.0


def test_noisy_calls_make_blocks_longer_and_differing_launches_do_not():
    assert length(noise=0.03, spread=0.03) == 6.0
    assert length(noise=0.005, spread=0.03) == 1.0


def test_a_metric_whose_noise_a_block_does_not_tell_takes_all_scatter_for_noise():
    assert length(noise=0.0, spread=0.016, metric="p99") == pytest.approx(
        (0.016 / (LIMIT / 3)) ** 2
    )


def test_blocks_grow_by_two_at_most_from_session_to_session():
    assert length(noise=0.03, spread=0.03, current_s=1.0) == 2.0


@pytest.mark.parametrize("launches", [0.01, 0.02])
def test_no_other_length_gives_a_smaller_variance_in_the_same_time(launches):
    noise = 0.02
    chosen_s = length(noise, spread=sqrt(launches**2 + noise**2))
    assert 1.0 < chosen_s < 6.0

    def variance(timed_s: float) -> float:
        """Of the mean of blocks, times the seconds that they take."""
        return (START_S + timed_s) * (launches**2 + noise**2 * TIMED_S / timed_s)

    others = np.linspace(1.0, 6.0, 500)
    assert variance(chosen_s) == pytest.approx(min(map(variance, others)), rel=1e-4)


def test_a_block_tells_the_error_of_its_ratio():
    """Launches that do not differ scatter as much as their rounds say."""
    found = blocks_of(session(1.2, launches=200), chosen(["p50", "p95"]))
    said = np.array([block.noise["p50"] for block in found])
    seen = np.std([block.ratios["p50"] for block in found])
    assert sqrt(np.mean(said**2)) == pytest.approx(seen, rel=0.25)
    assert all(0 < block.timed_s <= block.seconds < inf for block in found)
    assert "p95" not in found[0].noise
