"""The sampling process, real: what it writes, how it ends, and that one meter is not another's."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, ClassVar

import pytest

from edgebench.meters import sampler
from edgebench.meters.base import KINDS, Channel, Meter, MeterError, clock
from edgebench.meters.sampler import EVENTS, READINGS, RECORD, Sampling, Writer, opened
from tests.meters.bundle import meter_bundle
from tests.meters.sysfs_trees import INA226, Tree, battery, hwmon, rapl

#: A test that waits so long for something has failed.
WAIT_S = 30.0

HWMON = {"kind": "hwmon", "scope": "board"}


def until(what: str, happened: Callable[[], Any]) -> Any:
    """Wait for a condition; its value."""
    end = time.monotonic() + WAIT_S
    while time.monotonic() < end:
        found = happened()
        if found:
            return found
        time.sleep(0.01)
    raise AssertionError(f"{what} did not happen in {WAIT_S:.0f} s")


class Process:
    """A sampling process that runs from the files of a bundle."""

    def __init__(self, bundle: Path, directory: Path, meters: list[Any], **more: Any) -> None:
        self.directory = directory
        directory.mkdir(exist_ok=True)
        config = directory.parent / "config.json"
        config.write_text(json.dumps({"meters": meters, "directory": str(directory), **more}))
        self.child = subprocess.Popen(
            [sys.executable, "-m", "edgebench.meters.sampler", "record", str(config)],
            cwd=bundle,
            env={"PYTHONPATH": str(bundle)},
            stdin=subprocess.PIPE,
        )

    def readings(self) -> list[tuple[int, int, int, float]]:
        """Whole records: meter, channel, t_ns, value."""
        path = self.directory / READINGS
        data = path.read_bytes() if path.exists() else b""
        return list(RECORD.iter_unpack(data[: len(data) // RECORD.size * RECORD.size]))

    def values(self, meter: int = 0) -> list[float]:
        return [value for index, _, _, value in self.readings() if index == meter]

    def events(self, name: str) -> list[dict[str, Any]]:
        """Whole lines of that event."""
        path = self.directory / EVENTS
        text = path.read_text() if path.exists() else ""
        lines = text[: text.rfind("\n") + 1].splitlines()
        return [event for event in map(json.loads, lines) if event["event"] == name]

    def end(self) -> int:
        """Close its stdin and wait for its end."""
        assert self.child.stdin is not None
        self.child.stdin.close()
        return self.child.wait(WAIT_S)


@pytest.fixture
def record(tmp_path: Path) -> Iterator[Callable[..., Process]]:
    """Starts sampling processes; those that are left are killed."""
    bundle = meter_bundle(tmp_path, ("hwmon", "battery", "rapl"))
    processes: list[Process] = []

    def start(*meters: Any, directory: Path = tmp_path / "out", **more: Any) -> Process:
        processes.append(Process(bundle, directory, list(meters), **more))
        return processes[-1]

    yield start
    for process in processes:
        process.child.kill()
        process.end()


def test_it_writes_what_a_changing_file_says_with_its_time(tree: Tree, record):
    folder = hwmon(tree, 0, INA226)
    begin_ns = clock()
    process = record({**HWMON, **tree.option}, cpus=None)
    until("the first value", lambda: 3.0625 in process.values())
    tree.put(f"{folder}/power1_input", 5000000)
    until("the second value", lambda: 5.0 in process.values())
    assert process.end() == 0
    values = process.values()
    assert set(values) == {3.0625, 5.0}
    assert values == sorted(values)
    times = [t_ns for _, _, t_ns, _ in process.readings()]
    assert times == sorted(times)
    assert begin_ns < times[0] < times[-1] < clock()
    assert (process.directory / READINGS).stat().st_size % RECORD.size == 0
    (event,) = process.events("open")
    assert event["channels"][0]["source"] == "ina226 (hwmon0)"
    assert event["poll_s"] == 0.0175
    assert [event["meter"] for event in process.events("closed")] == [0]
    assert process.events("failed") == []


def test_it_reads_at_the_meters_pace(tree: Tree, record):
    """Never earlier than asked; a machine that is busy may be later."""
    hwmon(tree, 0, INA226)
    process = record({**HWMON, **tree.option})
    until("ten readings", lambda: len(process.readings()) >= 10)
    process.end()
    times = [t_ns for _, _, t_ns, _ in process.readings()]
    assert (times[-1] - times[0]) / (len(times) - 1) >= 0.0175e9 * 0.99


def test_a_meter_that_fails_does_not_stop_another(tree: Tree, record):
    hwmon(tree, 0, INA226)
    folder = battery(tree)
    process = record(
        {**HWMON, **tree.option},
        {"kind": "battery", **tree.option},
        {"kind": "rapl", **tree.option},
        {"kind": "dowsing-rod"},
    )
    until("the battery is read", lambda: process.values(1))
    tree.put(f"{folder}/status", "Charging")
    until("the battery fails", lambda: [e for e in process.events("failed") if e["meter"] == 1])
    count = len(process.values(0))
    until("the other one goes on", lambda: len(process.values(0)) > count + 3)
    assert process.end() == 0
    failures = {event["meter"]: event for event in process.events("failed")}
    assert {meter: event["code"] for meter, event in failures.items()} == {
        1: "charging",
        2: "no-device",
        3: "bad-option",
    }
    assert "Pull the charger" in failures[1]["fix"]
    assert failures[1]["t_ns"] > max(t for meter, _, t, _ in process.readings() if meter == 1)
    assert sorted(event["meter"] for event in process.events("closed")) == [0, 1, 2, 3]
    assert process.values(2) == process.values(3) == []


def test_a_reading_that_can_not_be_ends_its_meter_and_is_not_written(tree: Tree, record):
    folder = hwmon(tree, 0, INA226)
    process = record({**HWMON, **tree.option})
    until("it is read", process.values)
    tree.put(f"{folder}/power1_input", "nan")
    (event,) = until("it fails", lambda: process.events("failed"))
    assert (event["code"], "'nan'" in event["message"]) == ("bad-reading", True)
    assert process.end() == 0
    assert set(process.values()) == {3.0625}


def test_it_ends_when_its_parent_does(tree: Tree, record):
    """The parent's end of the pipe closes whichever way it dies."""
    hwmon(tree, 0, INA226)
    process = record({**HWMON, **tree.option})
    until("it is read", process.values)
    assert process.end() == 0


def test_killed_it_leaves_whole_records_and_lines(tree: Tree, record):
    hwmon(tree, 0, INA226)
    rapl(tree)
    process = record({**HWMON, **tree.option}, {"kind": "rapl", **tree.option})
    until("both are read", lambda: process.values(0) and process.values(1))
    process.child.send_signal(signal.SIGKILL)
    process.child.wait(WAIT_S)
    assert {meter for meter, _, _, _ in process.readings()} == {0, 1}
    assert set(process.values(0)) == {3.0625}
    assert {event["meter"] for event in process.events("open")} == {0, 1}
    assert process.events("closed") == []


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 64 KiB."""
    place = tmp_path / "small"
    place.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=64k", "x", place], check=True)
    yield place
    subprocess.run(["umount", "-l", place], check=True)


@pytest.mark.skipif(os.getuid() != 0, reason="mounting a small disk needs root")
def test_a_disk_that_is_full_ends_it_with_its_error(tree: Tree, record, small_disk: Path):
    hwmon(tree, 0, INA226)
    process = record({**HWMON, **tree.option}, directory=small_disk)
    until("it is read", process.values)
    with (small_disk / "filler").open("wb", buffering=0) as stream, pytest.raises(OSError):
        while True:
            stream.write(b"x" * 4096)
    assert process.child.wait(WAIT_S) == 28  # ENOSPC
    assert set(process.values()) == {3.0625}


def test_it_stays_on_the_cpus_that_it_is_given(tree: Tree, record):
    hwmon(tree, 0, INA226)
    cpu = min(os.sched_getaffinity(0))
    process = record({**HWMON, **tree.option}, cpus=[cpu])
    until("it is read", process.values)
    assert os.sched_getaffinity(process.child.pid) == {cpu}


# -- its other commands


def run(tmp_path: Path, *arguments: str, text: str = "") -> subprocess.CompletedProcess[str]:
    bundle = meter_bundle(tmp_path, ("hwmon",))
    return subprocess.run(
        [sys.executable, "-m", "edgebench.meters.sampler", *arguments],
        cwd=bundle,
        env={"PYTHONPATH": str(bundle)},
        input=text,
        capture_output=True,
        text=True,
    )


def test_open_shows_channels_and_first_readings_or_the_reason(tree: Tree, tmp_path: Path):
    hwmon(tree, 0, INA226)
    specs = [{**HWMON, **tree.option}, {"kind": "hwmon", **tree.option}]
    done = run(tmp_path, "open", text=json.dumps(specs))
    there, not_there = json.loads(done.stdout)
    assert there["spec"] == specs[0]
    assert there["channels"][0]["name"] == "power1"
    assert there["readings"][0][2] == 3.0625
    assert there["poll_s"] == 0.0175
    assert not_there["error"]["code"] == "bad-option"


def test_probe_says_of_a_kind_that_is_not_here_why(tmp_path: Path, monkeypatch):
    found = json.loads(run(tmp_path, "probe", "hwmon").stdout)
    assert {entry["spec"]["kind"] for entry in found} == {"hwmon"}
    for entry in found:  # whatever the machine of this test has
        assert "channels" in entry or entry["error"]["fix"]


def test_anything_else_prints_how_to_use_it(tmp_path: Path):
    done = run(tmp_path, "dowse")
    assert (done.returncode, "sampler record CONFIG.json" in done.stderr) == (2, True)


# -- drivers that fail in their own ways


class Broken(Meter):
    """A driver whose library raises what it likes."""

    kind: ClassVar[str] = "broken"
    default_scope: ClassVar[str] = "rail"
    fails_in: ClassVar[str] = "open"

    def _fail(self, where: str) -> None:
        if self.fails_in == where:
            raise ZeroDivisionError(where)

    def open(self) -> list[Channel]:
        self._fail("open")
        return [Channel("x", "power", "rail", "y", period_s=1.0, resolution=1.0)]

    def read(self) -> list[tuple[int, int, float]]:
        self._fail("read")
        return [(0, clock(), 1.0)]

    def close(self) -> None:
        self._fail("close")


@pytest.fixture
def broken(monkeypatch) -> type[Broken]:
    monkeypatch.setitem(KINDS, "broken", ("broken", "Broken"))
    monkeypatch.setattr(sampler, "make_meter", lambda spec: Broken({}))
    return Broken


@pytest.mark.parametrize("where", ["open", "read", "close"])
def test_a_drivers_own_failure_is_told_and_not_raised(broken, monkeypatch, tmp_path, where):
    monkeypatch.setattr(broken, "fails_in", where)
    stop = threading.Event()
    if where == "close":
        stop.set()
    writer = Writer(str(tmp_path))
    Sampling(0, {"kind": "broken"}, writer, stop).run()
    events = [json.loads(line) for line in (tmp_path / EVENTS).read_text().splitlines()]
    (failed,) = [event for event in events if event["event"] == "failed"]
    assert (failed["code"], failed["message"]) == ("io", f"ZeroDivisionError: {where}")
    assert events[-1]["event"] == "closed"


def test_a_driver_that_fails_when_it_is_opened_once_is_told(broken, monkeypatch):
    monkeypatch.setattr(broken, "fails_in", "read")
    assert opened({"kind": "broken"})["error"]["message"] == "ZeroDivisionError: read"


def test_a_kind_that_finds_nothing_has_an_entry_that_says_why(monkeypatch):
    def find() -> list[dict[str, Any]]:
        raise MeterError("no-device", "none", "buy one")

    monkeypatch.setattr(Broken, "find", find)
    monkeypatch.setattr(sampler, "meter_class", lambda kind: Broken)
    assert sampler.probe(["broken"]) == [
        {
            "spec": {"kind": "broken"},
            "error": {"code": "no-device", "message": "none", "fix": "buy one"},
        }
    ]
