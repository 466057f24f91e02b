"""The drawn configurations: allowed, space-filling, and the same for the same seed."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebench.errors import UsageError
from edgebench.sampling.design import Configuration, Space, draw, everything, place
from edgebench.sampling.estimate import estimate


def space(layers: int = 4, heads: int = 3, rank: int = 2, schemes=("fp32", "int8")) -> Space:
    ranks = tuple({f"m{i}.q": rank, f"m{i}.v": rank} for i in range(layers))
    return Space(layers, heads, ranks, (16, 128), schemes)


@settings(deadline=None)
@given(
    st.lists(st.floats(0, 1), min_size=5, max_size=5),
    st.integers(1, 6),
    st.integers(1, 5),
    st.integers(1, 4),
    st.integers(0, 99),
)
def test_every_point_is_a_configuration_that_the_model_can_have(point, layers, heads, rank, seed):
    where = space(layers, heads, rank)
    found = place(where, point, np.random.default_rng(seed))
    assert 1 <= found.kept_layers <= layers
    assert found.kept_layers <= found.kept_heads <= found.kept_layers * heads
    assert 0 <= found.kept_ranks <= found.kept_layers * 2 * rank
    assert 16 <= found.seq_len <= 128
    assert found.scheme in where.schemes
    for layer, kept in enumerate(found.heads):
        assert len(set(kept)) == len(kept)
        assert all(0 <= head < heads for head in kept)
        for name in where.ranks[layer]:
            assert (name in found.ranks) == bool(kept)
    assert all(set(kept) <= set(range(rank)) for kept in found.ranks.values())


def test_the_same_seed_draws_the_same_and_another_one_does_not():
    assert draw(space(), 8, 1) == draw(space(), 8, 1)
    assert draw(space(), 8, 1) != draw(space(), 8, 2)


def test_sixty_points_reach_both_ends_of_every_coordinate():
    found = draw(space(), 60, 0)
    assert {c.kept_layers for c in found} == {1, 2, 3, 4}
    assert {c.scheme for c in found} == {"fp32", "int8"}
    assert min(c.seq_len for c in found) <= 24
    assert max(c.seq_len for c in found) >= 112
    assert min(c.kept_ranks for c in found) == 0
    assert max(c.kept_ranks / (4 * c.kept_layers) for c in found) == 1


def test_configurations_that_do_not_fit_are_drawn_again():
    found = draw(space(), 10, 0, lambda c: c.kept_layers <= 2)
    assert len(found) == 10
    assert all(c.kept_layers <= 2 for c in found)


def test_a_device_that_nothing_fits_is_refused():
    with pytest.raises(UsageError, match="only 0 of 100 configurations fit"):
        draw(space(), 2, 0, lambda _: False)


def test_the_largest_configuration_keeps_everything():
    found = everything(space())
    assert (found.kept_layers, found.kept_heads, found.kept_ranks) == (4, 12, 16)
    assert found.seq_len == 128


def test_the_estimate_counts_exports_runs_and_their_fixed_cost():
    half = Configuration(64, "fp32", ((0,), (0,), (0,), (0,)), {})
    found = estimate(
        space(), [half] * 3, export_s=10, run_s=7, call_s=0.01, calls=200, max_run_s=60
    )
    # 5 s of the probe's run were not calls; half the tokens need half of its 2 s.
    assert found.total_s == pytest.approx(3 * (10 + 5 + 1))
