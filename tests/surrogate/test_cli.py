"""`edgebench surrogate`: from tables to predictions, on the command line."""

from __future__ import annotations

import json

import pytest

from edgebench.cli.main import main
from edgebench.surrogate.columns import STATISTICS
from tests.surrogate import devices

AT = ",".join(
    f"{name}={value}" for name, value in zip(STATISTICS, (128, 6, 60, 50, 1e9), strict=True)
)


@pytest.fixture
def say(capsys):
    def run(*arguments):
        code = 0
        try:
            main([str(a) for a in arguments])
        except SystemExit as done:
            code = done.code or 0
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


def test_fit_calibrate_predict_evaluate(say, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    devices.frame(devices.family(30)).to_csv("table.csv", index=False)
    code, out, err = say("surrogate", "fit", "table.csv", "--steps", "30", "--no-leave-out")
    assert code == 0, err
    assert "4 devices, 120 rows" in out
    assert "no intervals" in out

    measured = devices.table("new-board", 20, 9, devices.NEW)
    devices.frame(measured).to_csv("new.csv", index=False)
    devices.frame(devices.table("new-board", 5, 9, devices.NEW)).to_csv("five.csv", index=False)
    code, out, err = say("surrogate", "calibrate", "five.csv")
    assert code == 0, err
    assert "calibration/new-board_5samples.json: new-board, 5 samples" in out
    assert "warning no-interval" in out
    document = json.loads((tmp_path / "calibration" / "new-board_5samples.json").read_text())
    assert document["schema"] == "edgebench.calibration/1"
    assert len(document["samples"]) == 5

    code, out, err = say("surrogate", "predict", "-d", "new-board", "--at", AT, "--json")
    assert code == 0, err
    (row,) = json.loads(out)["predictions"]
    truth = devices.figures(devices.np.array([[128, 6, 60, 50, 1e9]]), devices.NEW, 0, noise=0)[0]
    for name, exact in zip(("energy_j", "latency_ms", "power_w"), truth, strict=True):
        assert row[name] == pytest.approx(exact, rel=0.5)
        assert row[f"{name}_lo"] is None

    code, out, err = say("surrogate", "evaluate", "new.csv", "-k", "5", "--draws", "2", "--json")
    assert code == 0, err
    scores = json.loads(out)["scores"]
    assert {s["metric"] for s in scores} == {"energy_j", "latency_ms", "power_w"}
    assert not any(s["trained_on"] for s in scores)


def test_predictions_have_their_intervals(say, directory, calibrated):
    code, out, err = say(
        "surrogate", "predict", "-s", directory, "--calibration", calibrated, "-d", "new-board",
        "--at", AT,
    )  # fmt: skip
    assert code == 0, err
    assert " to " in out
    assert "latency_ms" in out


def test_calibrating_a_sample_file_keeps_what_it_has(say, directory, tmp_path):
    table = devices.table("pixel8", 5, 3, devices.NEW)
    samples = [
        {
            "statistics": dict(zip(STATISTICS, map(float, x), strict=True)),
            "measured": {"energy_j": y[0], "latency_ms": y[1], "power_w": y[2]},
            "recording": f"01{i}",
        }
        for i, (x, y) in enumerate(zip(table.x, table.y, strict=True))
    ]
    path = tmp_path / "pixel8_5samples.json"
    path.write_text(json.dumps({"device": "pixel8", "seed": 7, "samples": samples}))
    code, _, err = say("surrogate", "calibrate", path, "-s", directory, "-o", path)
    assert code == 0, err
    document = json.loads(path.read_text())
    assert document["seed"] == 7
    assert document["samples"] == samples
    assert document["metrics"]["latency_ms"]["interval"]["coverage"] == 0.9
    code, _, err = say("surrogate", "predict", "-s", directory, "--calibration", path, "-d",
                       "pixel8", "--at", AT)  # fmt: skip
    assert code == 0, err


@pytest.mark.parametrize(
    ("arguments", "code", "said"),
    [
        (("predict", "-d", "x"), 2, "nothing to predict"),
        (("predict", "-d", "x", "--at", "seq_len=many"), 2, "can't read 'seq_len=many'"),
        (("predict", "-d", "x", "--at", AT, "-s", "nowhere"), 3, "no surrogate here"),
        (("fit", "nowhere.csv"), 3, "can't be read"),
        (("fit", "one.csv"), 3, "one device alone, board-a"),
        (("fit", "one.csv", "--target", "latency"), 2, "HEAD=COLUMN"),
        (("fit", "one.csv", "--target", "speed=latency_ms"), 3, "no head speed"),
    ],
)
def test_what_is_wrong_is_said_in_a_sentence(say, tmp_path, monkeypatch, arguments, code, said):
    monkeypatch.chdir(tmp_path)
    devices.frame(devices.table("board-a", 10, 1)).to_csv("one.csv", index=False)
    found, _, err = say("surrogate", *arguments)
    assert found == code
    assert said in err
    assert len(err.strip().splitlines()) == 1
    assert not (tmp_path / "surrogate").exists()
