"""Blocks from recordings, and whether the device may be believed."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from edgebench.errors import MeasurementError, RecordingError, UsageError
from edgebench.gate.blocks import Block, blocks_of
from edgebench.gate.environment import Limits, broken, sort_blocks
from edgebench.gate.metrics import METRICS, chosen
from edgebench.recording import READING_COLUMNS
from edgebench.results.encoding import Loaded
from edgebench.results.store import Store
from tests.results.energy_recordings import BOARD, World
from tests.results.make import make_launch, make_recording, make_samples, make_state

NOTHING = {name: np.zeros(0, dtype=kind) for name, kind in READING_COLUMNS.items()}
FINE = Block("r", 0, {"p50": 0.0}, {}, 1.0, 1e6, 0.01, 0.0)


def session(ratio: float = 1.0, *, launches: int = 6, state: dict | None = None, **more) -> Loaded:
    samples = more.pop("samples", None) or make_samples(
        launches, (10.0, 10.0 * ratio, 1.0), rounds=40
    )
    return Loaded(
        Path("session"),
        make_recording(("fp32", "fp32", "fp32"), launches=launches, **more),
        samples,
        tuple(make_state(launches, **(state or {}))),
        NOTHING,
    )


def test_a_block_is_a_launch_and_its_ratio_the_truth():
    metrics = chosen(["p50", "p95", "throughput", "memory"])
    blocks = blocks_of(session(1.2), metrics)
    assert [block.launch for block in blocks] == list(range(6))
    for name in ("p50", "p95", "throughput"):
        assert np.mean([b.ratios[name] for b in blocks]) == pytest.approx(np.log(1.2), abs=0.01)
    # One pair of fresh workers a session.
    assert [("memory" in block.ratios) for block in blocks] == [True] + [False] * 5
    assert blocks[0].canary_ns == pytest.approx(1e6, rel=0.1)


def test_a_percentile_with_too_few_calls_names_the_count():
    (block, *_) = blocks_of(session(), chosen(["p99"]))
    assert block.missing["p99"] == "p99 needs 662 calls a side in each block, launch 1 has 160"


@pytest.mark.parametrize("metric", ["latency", ""])
def test_an_unknown_metric_is_refused(metric):
    with pytest.raises(UsageError, match="Choose from p50"):
        chosen([metric])


def test_a_launch_without_samples_is_refused():
    samples = make_samples(2)
    keep = ~((samples["launch"] == 1) & (samples["artifact"] == 0))
    part = {name: column[keep] for name, column in samples.items()}
    with pytest.raises(RecordingError, match="launch 2 has no counted call"):
        blocks_of(session(launches=2, samples=part), chosen(["p50"]))


def test_a_duration_that_can_not_be_is_refused():
    samples = {name: column.copy() for name, column in make_samples(2).items()}
    samples["duration_ns"][samples["phase"] == 2] = -5
    with pytest.raises(RecordingError, match="negative duration"):
        blocks_of(session(launches=2, samples=samples), chosen(["p50"]))


def test_a_worker_that_failed_is_an_error_not_a_verdict():
    bad = [make_launch(0, 3), make_launch(1, 3, outcome="crashed", error="signal 11")]
    with pytest.raises(MeasurementError, match=r"launch 2 could not .* crashed: signal 11"):
        blocks_of(_with(bad), chosen(["p50"]))


def _with(launches: list) -> Loaded:
    whole = session(launches=2)
    return replace(whole, recording=whole.recording.model_copy(update={"launches": launches}))


def test_blocks_with_foreign_load_or_a_moved_canary_are_left_out():
    blocks = [FINE] * 5
    blocks += [replace(FINE, foreign_cpu=0.4), replace(FINE, steal=0.2)]
    blocks += [replace(FINE, canary_ns=1.5e6)]
    found = sort_blocks(blocks, Limits())
    assert len(found.used) == 5
    assert [why.split(" %")[0] for _, why in found.left_out][:2] == [
        "foreign load 40",
        "stolen time 20",
    ]
    assert "canary took 1.50 times" in found.left_out[2][1]
    assert sort_blocks(blocks, Limits(foreign_load=1.0)).left_out == found.left_out[2:]


def test_more_blocks_left_out_than_used_is_a_broken_environment():
    out = [replace(FINE, foreign_cpu=0.4)] * 5
    assert broken(sort_blocks([FINE] * 8 + out, Limits()), [], Limits()) == []
    (why,) = broken(sort_blocks([FINE] * 3 + out, Limits()), [], Limits())
    assert why == "5 of 8 blocks had to be left out (foreign load 40 %)"


def test_a_canary_that_left_its_self_test_is_a_broken_environment():
    used = sort_blocks([FINE] * 8, Limits())
    assert broken(used, [], Limits(), canary_before_ns=1.1e6) == []
    (why,) = broken(used, [], Limits(), canary_before_ns=0.7e6)
    assert "1.43 times what it took" in why


def test_a_throttled_device_is_a_broken_environment():
    used = sort_blocks([FINE] * 8, Limits())
    assert broken(used, [session()], Limits()) == []
    (why,) = broken(used, [session(state={"throttled": 0x4})], Limits())
    assert "held back" in why


def test_every_metric_says_what_it_needs():
    assert METRICS["p99"].calls == 662
    assert METRICS["p50"].calls == 11
    assert METRICS["size"].kind == "counted"


def test_energy_has_a_ratio_a_launch_and_it_is_the_truth(tmp_path: Path):
    world = World(power_w=(6.0, 6.6), call_s=(0.02, 0.02))
    store = Store(tmp_path)
    store.write(*world.recording(BOARD))
    (name,) = store.list()
    blocks = blocks_of(store.load(name), chosen(["energy"]), canary=None)
    assert len(blocks) == world.launches
    truth = np.log(world.energy_j(1) / world.energy_j(0))
    assert [block.ratios["energy"] for block in blocks] == pytest.approx(
        [truth] * world.launches, abs=0.02
    )


def test_energy_without_a_meter_says_why():
    (block, *_) = blocks_of(session(), chosen(["energy"]))
    assert block.missing["energy"] == "no power source on this device"
