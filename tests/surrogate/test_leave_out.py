"""Conformal intervals over devices: their coverage, by simulation, and what is stored."""

from __future__ import annotations

import json

import numpy as np
import pytest

from edgebench.errors import InputError
from edgebench.surrogate import store
from edgebench.surrogate.leave_out import Errors, LeaveOut


def simulated(n_devices, seed, spread=0.5):
    """Devices of differing difficulty, whose own samples tell it roughly."""
    rng = np.random.default_rng(seed)
    errors, loo = {}, {}
    for i in range(n_devices):
        scale = 0.1 * np.exp(spread * rng.standard_normal())
        errors[f"d{i}"] = scale * rng.standard_normal((10, 100))
        loo[f"d{i}"] = scale * np.sqrt(rng.chisquare(9, 10) / 9)
    return Errors(10, errors, loo, {name: np.ones(10) for name in errors})


def test_ninety_percent_intervals_hold_about_ninety_percent_of_a_new_devices_rows():
    covered = []
    for seed in range(60):
        known, new = simulated(8, seed), simulated(1, 1000 + seed)
        widths = [known.half_width(float(v), 10, 0.9) for v in new.loo["d0"]]
        inside = np.abs(new.log_errors["d0"]) <= np.array(widths)[:, None]
        covered.append(inside.mean())
    assert 0.86 < np.mean(covered) < 0.94


def test_the_measured_coverage_leaves_each_device_out_of_its_own_interval():
    errors = simulated(8, 0)
    hard = {**errors.log_errors, "d0": 50 * errors.log_errors["d0"]}
    found = Errors(10, hard, errors.loo, errors.spearman).coverage(0.9)
    assert found["d0"] < 0.3
    assert np.mean([found[f"d{i}"] for i in range(1, 8)]) > 0.85


def test_a_device_with_more_rows_has_no_more_weight():
    one = Errors(5, {"a": np.full((1, 10), 0.1), "b": np.full((1, 1000), 0.2)}, {}, {})
    loo = {"a": np.array([0.1]), "b": np.array([0.1])}
    errors = Errors(5, one.log_errors, loo, {})
    assert errors.half_width(0.1, 5, 0.49) == pytest.approx(0.1)
    assert errors.half_width(0.1, 5, 0.51) == pytest.approx(0.2)


def test_the_nearest_smaller_sample_size_is_taken():
    leave_out = LeaveOut({"latency_ms": {k: simulated(3, k) for k in (5, 10)}})
    sizes = [leave_out.errors("latency_ms", k) for k in (3, 5, 9, 10, 50)]
    assert [id(e) for e in sizes] == [
        id(leave_out.by_metric["latency_ms"][k]) for k in (5, 5, 5, 10, 10)
    ]
    assert leave_out.errors("power_w", 5) is None


def test_a_surrogate_reads_back_as_it_was(fitted, directory):
    import torch

    from tests.surrogate import devices

    again = store.read(directory)
    stats = torch.tensor(devices.statistics(5, 1), dtype=torch.float32)
    torch.testing.assert_close(
        again.surrogate(stats, "board-a"), fitted.surrogate(stats, "board-a")
    )
    old, new = (f.leave_out.errors("power_w", 5) for f in (fitted, again))
    assert new.half_width(0.1, 5, 0.9) == pytest.approx(old.half_width(0.1, 5, 0.9), rel=1e-5)


def test_writing_again_leaves_one_set_of_weights(fitted, tmp_path):
    store.write(tmp_path, fitted)
    (tmp_path / "surrogate-000000000000.safetensors").write_bytes(b"old")
    store.write(tmp_path, fitted)
    assert len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda d: d.update(schema="edgebench.surrogate/9"), "not a surrogate that this"),
        (lambda d: d.update(digest="0" * 64), "not those that belong to it"),
        (lambda d: d.pop("devices"), "can't be read"),
    ],
)
def test_a_damaged_surrogate_is_refused(fitted, tmp_path, damage, said):
    store.write(tmp_path, fitted)
    path = tmp_path / store.NAME
    document = json.loads(path.read_text())
    damage(document)
    path.write_text(json.dumps(document))
    with pytest.raises(InputError, match=said):
        store.read(tmp_path)
