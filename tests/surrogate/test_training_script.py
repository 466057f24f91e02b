"""The two lines of a training script: as documented, differentiable, and clear when they can't."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from edgebench.errors import InputError
from edgebench.surrogate import apply_calibration, load_and_prepare_surrogate
from tests.surrogate import devices


def cfg(directory, calibrated, **more):
    return {"surrogate": directory, "calibration": calibrated, **more}


def test_the_documented_lines_predict_a_new_device(directory, calibrated):
    surrogate, calibration = load_and_prepare_surrogate(cfg(directory, calibrated), "new-board")
    s = devices.statistics(200, 5)
    truth = devices.figures(s, devices.NEW, 6)
    stats = torch.tensor(s, dtype=torch.float32)
    energy_j, latency_ms, power_w = apply_calibration(
        surrogate(stats, "new-board"), calibration
    ).unbind(-1)
    for predicted, exact, limit in zip(
        (energy_j, latency_ms, power_w), truth.T, (0.15, 0.15, 0.1), strict=True
    ):
        assert predicted.shape == (200,)
        assert np.median(np.abs(predicted.numpy() / exact - 1)) < limit


def test_cfg_may_be_an_object_and_names_the_heads_and_their_order(directory, calibrated):
    given = SimpleNamespace(
        surrogate=str(directory), calibration=str(calibrated), metrics=["power_w", "latency_ms"]
    )
    surrogate, calibration = load_and_prepare_surrogate(given, "new-board")
    assert calibration.metrics == ("power_w", "latency_ms")
    both, _ = load_and_prepare_surrogate(cfg(directory, calibrated), "new-board")
    stats = torch.tensor(devices.statistics(4, 1), dtype=torch.float32)
    torch.testing.assert_close(surrogate(stats, "new-board"), both(stats, "new-board")[:, [2, 1]])


@pytest.mark.parametrize("device", ["board-a", "new-board"])
def test_the_gradient_in_s_is_not_zero_and_is_the_slope(directory, calibrated, device):
    surrogate, calibration = load_and_prepare_surrogate(cfg(directory, calibrated), device)
    stats = torch.tensor(devices.statistics(8, 3), dtype=torch.float64)
    surrogate = surrogate.double()
    stats.requires_grad_()
    latency_ms = apply_calibration(surrogate(stats, device), calibration)[:, 1]
    (gradient,) = torch.autograd.grad(latency_ms.sum(), stats)
    for feature in range(stats.shape[1]):
        assert (gradient[:, feature] != 0).all()
    step = torch.zeros_like(stats)
    step[:, 1] = 1e-4  # kept_layers
    with torch.no_grad():
        above = apply_calibration(surrogate(stats + step, device), calibration)[:, 1]
        below = apply_calibration(surrogate(stats - step, device), calibration)[:, 1]
    torch.testing.assert_close(gradient[:, 1], (above - below) / 2e-4, rtol=1e-3, atol=1e-4)
    # A layer costs time on these devices: the sign is the world's.
    assert (gradient[:, 1] > 0).float().mean() > 0.8


def test_tags_may_be_one_a_row_or_weights_that_carry_a_gradient(directory, calibrated):
    surrogate, _ = load_and_prepare_surrogate(cfg(directory, calibrated), "new-board")
    stats = torch.tensor(devices.statistics(3, 2), dtype=torch.float32)
    mixed = surrogate(stats, ["board-a", "new-board", "board-b"])
    torch.testing.assert_close(mixed[0], surrogate(stats, "board-a")[0])
    torch.testing.assert_close(mixed[1], surrogate(stats, "new-board")[1])
    weights = torch.tensor([0.5, 0.5, 0.0, 0.0], requires_grad=True)
    surrogate(stats, weights).sum().backward()
    assert (weights.grad != 0).any()
    one_hot = torch.tensor([1.0, 0.0, 0.0, 0.0])
    torch.testing.assert_close(surrogate(stats, one_hot), surrogate(stats, "board-a"))


def test_one_row_without_a_batch_axis(directory, calibrated):
    surrogate, calibration = load_and_prepare_surrogate(cfg(directory, calibrated), "new-board")
    stats = torch.tensor(devices.statistics(1, 2)[0], dtype=torch.float32)
    assert apply_calibration(surrogate(stats, "new-board"), calibration).shape == (3,)


def test_its_weights_are_frozen(directory, calibrated):
    surrogate, _ = load_and_prepare_surrogate(cfg(directory, calibrated), "new-board")
    assert not any(parameter.requires_grad for parameter in surrogate.parameters())


def test_a_head_that_the_table_did_not_have_is_refused(tmp_path, fitted):
    from edgebench.surrogate import store
    from edgebench.surrogate.fitting import FitOptions, fit
    from edgebench.surrogate.training import TrainingOptions

    table = devices.family(20)
    table.y[:, 0] = np.nan
    store.write(tmp_path, fit(table, FitOptions(TrainingOptions(steps=5), leave_out=False)))
    with pytest.raises(
        InputError, match=r"no head energy_j.*metrics = \['latency_ms', 'power_w'\]"
    ):
        load_and_prepare_surrogate({"surrogate": tmp_path}, "board-a")
    surrogate, calibration = load_and_prepare_surrogate(
        {"surrogate": tmp_path, "metrics": ["latency_ms", "power_w"]}, "board-a"
    )
    stats = torch.tensor(devices.statistics(2, 2), dtype=torch.float32)
    assert apply_calibration(surrogate(stats, "board-a"), calibration).shape == (2, 2)


@pytest.mark.parametrize(
    ("change", "device", "said"),
    [
        ({"surrogate": None}, "board-a", "no member 'surrogate'"),
        ({"surrogate": "nowhere"}, "board-a", "there is no surrogate here"),
        ({}, "pixel9", "was not trained on 'pixel9'"),
        ({"calibration": "nowhere.json"}, "new-board", "no such calibration"),
    ],
)
def test_what_can_not_be_loaded_is_said_in_a_sentence(directory, calibrated, change, device, said):
    with pytest.raises(InputError, match=said):
        load_and_prepare_surrogate(cfg(directory, calibrated) | change, device)


def test_a_calibration_of_another_surrogate_is_refused(directory, calibrated, tmp_path):
    import json

    document = json.loads((calibrated / "new-board_10samples.json").read_text())
    document["surrogate_digest"] = "0" * 64
    other = tmp_path / "new-board_10samples.json"
    other.write_text(json.dumps(document))
    with pytest.raises(InputError, match="fitted to another surrogate"):
        load_and_prepare_surrogate(cfg(directory, other), "new-board")


def test_predictions_of_other_heads_are_refused(directory, calibrated):
    _, calibration = load_and_prepare_surrogate(cfg(directory, calibrated), "new-board")
    with pytest.raises(InputError, match="the predictions have 2 columns"):
        apply_calibration(torch.ones(4, 2), calibration)
