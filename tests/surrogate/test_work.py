"""Work: what is fitted is what it costs, and it holds where nothing was measured."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebench.surrogate import store, work
from edgebench.surrogate.columns import STATISTICS
from edgebench.surrogate.fitting import FitOptions, fit
from edgebench.surrogate.training import TrainingOptions
from edgebench.surrogate.training_table import TrainingTable
from tests.surrogate import devices

#: ms: a call, a layer, a layer's token, a head's token, a head's pair of tokens, a rank's token,
#: a bit.
RATES = {
    "one": np.array([0.4, 0.1, 0.02, 8e-4, 2e-6, 2e-5, 1e-9]),
    "two": np.array([0.9, 0.2, 0.03, 2e-3, 1e-6, 5e-5, 4e-9]),
    "three": np.array([0.1, 0.3, 0.01, 1e-3, 5e-6, 1e-5, 2e-9]),
}
QUICK = FitOptions(TrainingOptions(steps=60), leave_out=False)


def exact(x: np.ndarray, rates: np.ndarray) -> np.ndarray:
    return work.terms(torch.as_tensor(x)).numpy() @ rates


def table(bend: float = 0.0, noise: float = 0.02) -> TrainingTable:
    """Three devices' latency; ``bend``: what work can't explain."""
    parts = []
    for i, (tag, rates) in enumerate(RATES.items()):
        x = devices.statistics(80, i)
        random = np.random.default_rng(i)
        factor = np.exp(bend * np.sin(x[:, 2] / 20) + noise * random.standard_normal(len(x)))
        y = np.full((len(x), 3), np.nan)
        y[:, 1] = exact(x, rates) * factor
        parts.append(TrainingTable(STATISTICS, x, np.array([tag] * len(x)), y))
    return devices.join(*parts)


def test_terms_are_what_a_layer_does():
    s = torch.tensor([128.0, 6.0, 72.0, 96.0, 7e8])
    expected = [1.0, 6.0, 6 * 128.0, 72 * 128.0, 72 * 128.0**2, 96 * 128.0, 7e8]
    assert work.terms(s).tolist() == expected


@settings(deadline=None, max_examples=30)
@given(st.lists(st.floats(0.0, 3.0), min_size=7, max_size=7), st.integers(0, 99))
def test_rates_without_noise_give_the_measurements_back(relative, seed):
    rates = np.array(relative) * RATES["one"] + [0.01, 0, 0, 0, 0, 0, 0]
    x = devices.statistics(40, seed)
    y = exact(x, rates)
    found = work.fit(x, y)
    assert (found >= 0).all()
    assert exact(x, found) == pytest.approx(y, rel=1e-6)


def test_a_wild_measurement_does_not_move_the_rates():
    x = devices.statistics(60, 0)
    y = exact(x, RATES["one"]) * np.exp(0.01 * np.random.default_rng(0).standard_normal(60))
    y[7] *= 10
    rest = np.arange(60) != 7
    assert exact(x, work.fit(x, y))[rest] == pytest.approx(y[rest], rel=0.06)


def test_beyond_what_was_measured_the_surrogate_goes_on_as_work_does():
    surrogate = fit(table(), QUICK).surrogate
    corner = np.array([[512.0, 12.0, 144.0, 600.0, 3e9], [16.0, 1.0, 4.0, 0.0, 1e8]])
    for tag, rates in RATES.items():
        said = surrogate(torch.as_tensor(corner), tag).numpy()[:, 0]
        assert said == pytest.approx(exact(corner, rates), rel=0.08)
    assert not surrogate.net.amplitude.any()  # noise taught the trunk nothing


def test_the_trunk_learns_what_work_does_not_explain():
    t = table(bend=0.4)
    options = FitOptions(TrainingOptions(steps=600), leave_out=False)
    surrogate = fit(t, options).surrogate
    assert (surrogate.net.amplitude > 0).all()
    x, tag = t.of("one").x, "one"
    said = surrogate(torch.as_tensor(x), tag).numpy()[:, 0]
    alone = exact(x, work.fit(x, t.of("one").y[:, 1]))
    measured = t.of("one").y[:, 1]
    assert np.abs(said / measured - 1).mean() < 0.5 * np.abs(alone / measured - 1).mean()


def test_power_and_other_features_have_no_work():
    assert not work.applies(STATISTICS, "power_w")
    assert not work.applies(("depth", "width"), "latency_ms")
    surrogate = fit(devices.family(40), QUICK).surrogate
    assert surrogate.net.worked == (True, True, False)
    assert not surrogate.net.rates[:, 2].any()


def test_every_statistic_has_a_gradient_that_is_not_negative():
    surrogate = fit(table(), QUICK).surrogate
    s = torch.tensor([[64.0, 4.0, 30.0, 40.0, 5e8]], requires_grad=True)
    surrogate(s, "two")[0, 0].backward()
    assert (s.grad >= 0).all() and (s.grad[0, :3] > 0).all()


def test_written_and_read_it_says_the_same_and_the_first_schema_is_read(tmp_path):
    fitted = fit(table(), QUICK)
    store.write(tmp_path, fitted)
    x = torch.as_tensor(devices.statistics(9, 5))
    again = store.read(tmp_path).surrogate
    assert torch.equal(again(x, "three"), fitted.surrogate(x, "three"))
    # The first schema had no work: neither a member that says so, nor rates.
    other = table()
    other = TrainingTable(tuple("abcde"), other.x, other.device, other.y)
    fitted = fit(other, QUICK)
    store.write(tmp_path, fitted)
    file = tmp_path / store.NAME
    document = json.loads(file.read_text())
    assert document.pop("worked") == []
    document["schema"] = "edgebench.surrogate/1"
    file.write_text(json.dumps(document))
    assert torch.equal(store.read(tmp_path).surrogate(x, "one"), fitted.surrogate(x, "one"))
