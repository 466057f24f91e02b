"""One surrogate of the made-up family for the whole session."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.fixtures_export import require
from tests.surrogate import devices


@pytest.fixture(scope="session")
def fitted():
    require("torch", "safetensors")
    import torch

    from edgebench.surrogate.fitting import FitOptions, fit
    from edgebench.surrogate.training import TrainingOptions

    torch.set_num_threads(1)
    options = FitOptions(TrainingOptions(steps=400, batch=128), leave_out_steps=150, draws=5)
    return fit(devices.family(), options)


@pytest.fixture(scope="session")
def directory(fitted, tmp_path_factory) -> Path:
    from edgebench.surrogate import store

    where = tmp_path_factory.mktemp("surrogate")
    store.write(where, fitted)
    return where


@pytest.fixture(scope="session")
def calibrated(directory, tmp_path_factory) -> Path:
    """The directory of a calibration of the new device, from ten samples."""
    from edgebench.surrogate.workflow import calibrate_surrogate

    where = tmp_path_factory.mktemp("calibration")
    samples = where / "samples.csv"
    devices.frame(devices.table("new-board", 10, 77, devices.NEW)).to_csv(samples, index=False)
    calibrate_surrogate(directory, [samples], where / "new-board_10samples.json")
    return where
