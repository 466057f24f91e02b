"""Reading measurements: edgebench's tables, CSV, samples; what can't be is said in a sentence."""

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest

from edgebench.errors import InputError
from edgebench.surrogate.columns import STATISTICS
from edgebench.surrogate.training_table import read_tables
from tests.surrogate import devices


@pytest.fixture
def frame():
    return devices.frame(devices.table("board-a", 6, 1))


def test_a_csv_and_a_parquet_file_read_alike(tmp_path, frame):
    frame.to_csv(tmp_path / "t.csv", index=False)
    frame.to_parquet(tmp_path / "t.parquet")
    one, two = read_tables([tmp_path / "t.csv"]), read_tables([tmp_path / "t.parquet"])
    assert one.features == STATISTICS
    np.testing.assert_allclose(one.x, two.x)
    np.testing.assert_allclose(one.y, two.y)
    assert one.metrics == ("energy_j", "latency_ms", "power_w")


def test_edgebenchs_own_tables_are_joined_by_run(tmp_path):
    tables = tmp_path / "tables"
    tables.mkdir()
    s = devices.statistics(4, 1)
    latency = pd.DataFrame(s, columns=list(STATISTICS))
    latency["run_id"] = list("abcd")
    latency["device"] = "pi4"
    latency["latency_p50_ms"] = [1.0, 2.0, 3.0, 4.0]
    latency["verdict"] = ["VALID", "INVALID", "UNDECIDED", "VALID"]
    latency["emulated"] = [False, False, False, True]
    latency.to_parquet(tables / "latency.parquet")
    energy = pd.DataFrame({"run_id": ["c", "a"], "energy_per_inference_j": [0.3, 0.1]})
    energy.to_parquet(tables / "energy.parquet")
    power = pd.DataFrame({"run_id": ["a", "c"], "power_peak_w": [None, 5.0]})
    power.to_parquet(tables / "power.parquet")
    table = read_tables([tmp_path])
    np.testing.assert_array_equal(table.y, [[0.1, 1.0, np.nan], [0.3, 3.0, 5.0]])
    assert table.n_left_out == 2


def test_two_power_sources_of_a_run_are_not_mixed(tmp_path, frame):
    frame["run_id"] = list("abcdef")
    frame.rename(columns={"latency_ms": "latency_p50_ms"}).drop(
        columns=["energy_j", "power_w"]
    ).to_parquet(tmp_path / "latency.parquet")
    energy = pd.DataFrame({"run_id": ["a", "a"], "energy_per_inference_j": [0.3, 0.1]})
    energy.to_parquet(tmp_path / "energy.parquet")
    with pytest.raises(InputError, match="several power sources a run"):
        read_tables([tmp_path])


def test_the_samples_of_a_calibration_file(tmp_path):
    s = dict(zip(STATISTICS, (128, 6, 72, 0, 1e8), strict=True))
    document = {
        "device": "pixel8",
        "samples": [
            {"statistics": s, "measured": {"latency_ms": 12.5}, "recording": "01X"},
            {**s, "latency_ms": 14.0},
        ],
    }
    path = tmp_path / "pixel8_2samples.json"
    path.write_text(json.dumps(document))
    table = read_tables([path])
    assert table.devices == ("pixel8",)
    assert table.metrics == ("latency_ms",)
    np.testing.assert_array_equal(table.y[:, 1], [12.5, 14.0])


def test_named_features_targets_and_device(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text("width,p50\n1,2\n3,4\n")
    table = read_tables([path], features=["width"], targets={"latency_ms": "p50"}, device="pi4")
    np.testing.assert_array_equal(table.x, [[1], [3]])
    assert table.devices == ("pi4",)


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda f: f.drop(columns="kept_ranks"), "no column kept_ranks"),
        (lambda f: f.drop(columns="device"), "which device each row is of"),
        (lambda f: f.assign(latency_ms=0.0), "zero, negative or infinite"),
        (lambda f: f.assign(latency_ms="fast"), "not a number"),
        (
            lambda f: f.drop(columns=["latency_ms", "energy_j", "power_w"]),
            "no latency, energy or power",
        ),
        (lambda f: f.assign(verdict="INVALID"), "no row that can be used"),
    ],
)
def test_what_is_wrong_with_a_table_is_said_in_a_sentence(tmp_path, frame, change, said):
    path = tmp_path / "t.csv"
    change(frame).to_csv(path, index=False)
    with pytest.raises(InputError, match=said) as raised:
        read_tables([path])
    assert raised.value.fix


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InputError, match="can't be read"):
        read_tables([tmp_path / "none.csv"])
