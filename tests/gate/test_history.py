"""A check against a store of earlier recordings, and the self-test: on real workers."""

from __future__ import annotations

import json
from collections.abc import Iterator

import numpy as np
import pytest

from edgebench.artifact import Artifact
from edgebench.gate import history, selftest
from edgebench.gate.history import differing
from edgebench.measure import run
from edgebench.results.store import Loaded, Store
from edgebench.results.ulid import new_ulid
from tests.measure.bench import QUICK, Bench
from tests.tiny import tiny_artifact

SHORT = ("--block-time", "0.05", "--max-foreign-load", "100%", "--max-canary-shift", "100%")


@pytest.fixture(scope="module")
def real(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Loaded]:
    """One real recording of the model that every test here checks."""
    bench = Bench(tmp_path_factory.mktemp("real"))
    recording = run(bench.device(), [model(bench)], bench.store, QUICK)
    yield bench.store.load(recording.id)
    bench.close()


@pytest.fixture(autouse=True)
def short(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(history, "LAUNCHES", 2)


def model(bench: Bench, directory: str = "artifacts") -> Artifact:
    return tiny_artifact(bench.path / directory, name="tiny", width=64, layers=4)


def fill(bench: Bench, real: Loaded, count: int, factor: float = 1.0, **fingerprint: str) -> None:
    """The candidate, and a history: copies of a real run with times that scatter by 1 %."""
    model(bench)
    store = Store(bench.path / "history" / "runs")
    random = np.random.default_rng(0)
    recording = real.recording
    device = recording.device
    if fingerprint:
        device = device.model_copy(
            update={
                "fingerprint": {**device.fingerprint, **fingerprint},
                "fingerprint_digest": "sha256:other",
            }
        )
    calm = [
        launch.model_copy(update={"foreign_cpu_fraction": 0.0, "steal_fraction": 0.0})
        for launch in recording.launches
    ]
    start = real.samples["start_ns"]
    for _ in range(count):
        stretch = factor * float(np.exp(random.normal(0, 0.01)))
        samples = {
            **real.samples,
            "start_ns": (start[0] + (start - start[0]) * max(stretch, 1.0)).astype(np.int64),
            "duration_ns": (real.samples["duration_ns"] * stretch).astype(np.int64),
        }
        new = recording.model_copy(update={"id": new_ulid(), "device": device, "launches": calm})
        store.write(new, samples, real.state)


def check(bench: Bench, limit: str = "95%"):
    return bench.call(
        *("check", "--device", "bench", "--candidate", bench.path / "artifacts" / "tiny"),
        *("--history", bench.path / "history", "--max-regression", limit, "--json", *SHORT),
    )


def test_a_candidate_much_slower_than_its_history_is_a_regression(bench: Bench, real: Loaded):
    fill(bench, real, 12, factor=0.1)
    done = check(bench)
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert document["mode"] == "history"
    (finding,) = document["findings"]
    assert finding["value"] > 2
    assert finding["note"].startswith("against 12 recordings")


def test_one_much_faster_passes(bench: Bench, real: Loaded):
    fill(bench, real, 12, factor=10.0)
    assert check(bench).returncode == 0


def test_few_recordings_are_undecided_with_their_number(bench: Bench, real: Loaded):
    fill(bench, real, 2)
    done = check(bench)
    assert done.returncode == 2, done.stderr
    (finding,) = json.loads(done.stdout)["findings"]
    assert finding["note"] == "needs 4 more recordings (2 since the last change)"


def test_another_fingerprint_is_refused_with_the_field_that_differs(bench: Bench, real: Loaded):
    fill(bench, real, 2, kernel="5.4.0-other")
    done = check(bench)
    assert done.returncode == 3
    assert "is of this device: kernel was '5.4.0-other' and is" in done.stderr


def test_an_empty_history_and_a_broken_one_are_refused(bench: Bench):
    model(bench)
    (bench.path / "history").mkdir()
    done = check(bench)
    assert done.returncode == 3
    assert "no earlier recording has tiny-base-fp32 in this scenario" in done.stderr
    broken = bench.path / "history" / "runs" / new_ulid()
    broken.mkdir(parents=True)
    (broken / "recording.json").write_text('{"schema": "edgebench.recording/0"}')
    done = check(bench)
    assert done.returncode == 3
    assert "edgebench.recording/0" in done.stderr


def test_fingerprints_differ_field_by_field():
    one = {"kernel": "6.1", "versions": {"python": "3.11", "numpy": "2"}, "cpus": 4}
    other = {"kernel": "6.8", "versions": {"python": "3.11", "numpy": "1"}, "cpus": 4}
    assert differing(one, one) == []
    assert differing(one, other) == [
        "kernel was '6.1' and is '6.8'",
        "versions.numpy was '2' and is '1'",
    ]


def test_the_self_test_measures_and_later_checks_print_it(bench: Bench, monkeypatch):
    monkeypatch.setattr(selftest, "LEAST_BLOCKS", 2)
    monkeypatch.setattr(selftest, "REPLAYS", 200)
    artifact = model(bench)
    done = bench.call(
        *("check", "--device", "bench", "--self-test", "--candidate", artifact),
        *("--time-limit", "9", "--max-regression", "60%", "--json", *SHORT),
    )
    assert done.returncode == 0, done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == "edgebench.selftest/2"
    assert document["replays"] == 200
    assert document["alarms"] <= document["checks"]
    assert 0 < document["alarm_rate_hi"] <= 1
    assert document["canary_ns"] > 0
    done = bench.call(
        *("check", "--device", "bench", "--baseline", artifact, "--candidate", artifact),
        *("--max-blocks", "1", "--metric", "size", "--metric", "p50", *SHORT),
    )
    assert "this device's self-test of" in done.stdout
    assert "no self-test yet" not in done.stdout


def test_a_self_test_without_enough_blocks_says_so(bench: Bench):
    done = bench.call(*("check", "--device", "bench", "--self-test", "--time-limit", "0.1", *SHORT))
    assert done.returncode == 6
    assert "blocks can be used, and 12 are needed" in done.stderr
    assert not (bench.path / "results" / "selftests").exists()
