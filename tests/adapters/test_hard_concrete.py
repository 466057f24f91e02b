"""The hard-concrete distribution against what its paper says of it."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from edgebench.adapters.hard_concrete import SHUT, Concrete, HardConcrete, fix

numbers = st.floats(-6, 6)
shapes = st.builds(
    Concrete, st.floats(0.1, 2.0), low=st.floats(-1.0, -0.01), high=st.floats(1.01, 2.0)
)


def gates(log_alpha: float, concrete: Concrete | None = None, n: int = 1) -> HardConcrete:
    made = HardConcrete(n, concrete=concrete)
    with torch.no_grad():
        made.log_alpha.fill_(log_alpha)
    return made


@pytest.mark.parametrize("log_alpha", [-3.0, -0.5, 0.0, 1.0, 4.0])
def test_the_share_of_samples_above_zero_is_the_expected_one(log_alpha):
    torch.manual_seed(0)
    n = 40_000
    share = float((gates(log_alpha, n=n).sample() > 0).float().mean())
    expected = float(gates(log_alpha).expected().detach())
    # Four standard errors of a share of n draws.
    assert abs(share - expected) < 4 * (expected * (1 - expected) / n) ** 0.5 + 1e-9


@given(numbers, shapes)
def test_values_and_samples_are_in_the_unit_interval(log_alpha, concrete):
    made = gates(log_alpha, concrete, n=20)
    for z in (made.value(), made.sample()):
        assert 0 <= float(z.detach().min()) <= float(z.detach().max()) <= 1


@given(numbers, shapes)
def test_the_expectation_has_a_gradient_everywhere(log_alpha, concrete):
    made = gates(log_alpha, concrete)
    made.expected().sum().backward()
    p = float(made.expected().detach())
    assert float(made.log_alpha.grad) == pytest.approx(p * (1 - p), rel=1e-4)
    assert float(made.log_alpha.grad) > 0


def test_start_is_the_probability_of_being_open():
    assert HardConcrete(4, start=0.7).expected().tolist() == pytest.approx([0.7] * 4)


def test_train_mode_draws_and_eval_mode_does_not():
    made = HardConcrete(50)
    assert not torch.equal(made(), made())
    made.eval()
    assert torch.equal(made(), made())


@given(shapes)
def test_fixed_gates_are_exactly_open_or_shut(concrete):
    made = HardConcrete(3, concrete=concrete)
    fix(made, torch.tensor([True, False, True]))
    assert made.value().tolist() == [1.0, 0.0, 1.0]
    assert made.log_alpha.tolist() == [SHUT, -SHUT, SHUT]


@pytest.mark.parametrize("wrong", [(0.0, -0.1, 1.1), (0.5, 0.0, 1.1), (0.5, -0.1, 1.0)])
def test_a_distribution_without_mass_at_the_ends_is_refused(wrong):
    with pytest.raises(ValueError, match=r"not above 0|does not hold"):
        Concrete(*wrong)
