"""Meters at the other end of a link: sent once, read while nobody listens, none of it lost."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from edgebench.measure import meters, resume, run
from edgebench.measure.host_meters import read_spool
from edgebench.results.tables import build
from edgebench.transport.ssh import SshTransport
from tests.faults.far import SHORT, Far, once
from tests.measure.bench import QUICK, kill
from tests.measure.power_world import PowerWorld

METERED = replace(QUICK, energy_window_s=0.4, energy_precision=0.9)


@pytest.fixture(autouse=True)
def short_rests(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(meters, "SETTLE_S", 0.1)


@pytest.fixture
def table(far: Far) -> Iterator[str]:
    world = PowerWorld(far.path / "sys", far.path)
    yield (
        f"{far.runtime()}\n"
        f'[[meters]]\nkind = "hwmon"\nscope = "board"\nchip = "ina226"\nsysfs = "{world.sysfs}"\n'
        "shunt_tolerance_percent = 1\n"
    )
    world.close()


def spooled(far: Far) -> Any:
    """The readings that lay on the device when the host came to fetch them."""
    return read_spool(far.copies[-1]).readings


def test_the_files_of_a_meter_are_sent_once(
    far: Far, table: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = far.artifact()
    sent: list[str] = []
    put = SshTransport.put

    async def counted(self: SshTransport, local: Any, remote: str, *more: Any) -> None:
        sent.append(local.name)
        await put(self, local, remote, *more)

    monkeypatch.setattr(SshTransport, "put", counted)
    first = run(far.device(table), [artifact], far.store, METERED)
    assert {"base.py", "sampler.py", "hwmon.py"} <= set(sent)
    assert not {"rapl.py", "nvml.py"} & set(sent)
    sent.clear()
    second = run(far.device(table), [artifact], far.store, METERED)
    assert sent == []
    rows = build([far.store.load(first.id), far.store.load(second.id)]).energy
    assert rows["energy_per_inference_j"].notna().all(), rows["reason"].tolist()
    far.settled()


def test_a_cut_while_energy_is_measured_loses_no_reading(far: Far, table: str) -> None:
    report = once("energy", far.cut, rounds=1)
    recording = run(far.device(table), [far.artifact()], far.store, METERED, report=report)
    assert "reconnecting" in {found["event"] for found in report.events}
    loaded = far.store.load(recording.id)
    mine = spooled(far)
    for name in ("t_ns", "value"):
        assert np.array_equal(loaded.readings[name], mine[name])
    launch = loaded.recording.launches[0]
    # The sensor was read through the cut, up to the last idle stretch.
    assert loaded.readings["t_ns"][0] < launch.started_ns
    assert loaded.readings["t_ns"][-1] > launch.idle_ns[-1][1]
    assert np.diff(loaded.readings["t_ns"]).max() < 1e9
    far.settled()


def test_a_host_that_dies_leaves_the_readings_to_resume(far: Far, table: str) -> None:
    far.profile(table)
    process = far.start(
        *("run", far.artifact(), "--device", "far", *SHORT),
        *("--energy-window", "0.4", "--energy-precision", "90%"),
    )
    far.wait_for_event("energy")
    kill(process, signal.SIGKILL)
    far.wait_for_end()
    (recording,) = resume(far.device(table), far.store)
    loaded = far.store.load(recording.id)
    assert np.array_equal(loaded.readings["t_ns"], spooled(far)["t_ns"])
    assert build([loaded]).energy["energy_per_inference_j"].notna().all()
    far.settled()
