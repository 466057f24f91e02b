"""The meter files on an arm64 device: sent over its sshd, run by its Python, reading its sysfs."""

from __future__ import annotations

import errno
import json
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from edgebench.meters.sampler import EVENTS, READINGS, RECORD
from tests.meters.bundle import meter_bundle

from .clients import said
from .machine import until
from .standin import StandIn

KINDS = ("hwmon", "rapl", "ina3221", "battery", "odpm")
HWMON = {"kind": "hwmon", "scope": "board", "chip": "ina226"}
POWER = "class/hwmon/hwmon2/power1_input"
PLACE = "/home/pi/meters"
PYTHON = ("env", f"PYTHONPATH={PLACE}", "python3", "-m", "edgebench.meters.sampler")


@pytest.fixture(scope="module")
def with_files(standin_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[StandIn]:
    """A stand-in with the files of these kinds in a home, and nothing else of ours."""
    with StandIn("pi4") as pi:
        bundle = meter_bundle(tmp_path_factory.mktemp("meters"), KINDS)
        shutil.copytree(bundle, pi.home() / "meters")
        yield pi


@pytest.fixture
def device(with_files: StandIn) -> StandIn:
    """It, with every source at rest."""
    with_files.set_power(3.0625)
    with_files.set_rapl(watts=7.5, packages=2)
    rails = {"VDD_IN": (5.0, 1.2), "VDD_CPU_GPU_CV": (5.0, 0.24), "VDD_SOC": (5.0, 0.4)}
    with_files.set_jetson(rails)
    with_files.set_battery(watts=2.0)
    with_files.set_odpm({"S4M_VDD_CPUCL0": 0.5, "S2S_VDD_G3D": 1.5})
    return with_files


def test_every_source_is_found_and_read_over_ssh(device: StandIn) -> None:
    found = json.loads(said(device.ssh([*PYTHON, "probe", *KINDS])))
    by_kind: dict[str, list[Any]] = {}
    for entry in found:
        by_kind.setdefault(entry["spec"]["kind"], []).append(entry)
    (hwmon,) = by_kind["hwmon"]
    assert (hwmon["spec"]["chip"], hwmon["readings"][0][2]) == ("ina226", 3.0625)
    assert hwmon["channels"][0]["period_s"] == 0.035
    labels = [entry["channels"][0]["name"] for entry in by_kind["ina3221"]]
    assert labels == ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"]
    assert by_kind["ina3221"][0]["readings"][0][2] == pytest.approx(6.0, abs=0.04)
    (battery,) = by_kind["battery"]
    assert battery["readings"][0][2] == pytest.approx(2.0, rel=1e-5)
    (odpm,) = by_kind["odpm"]
    assert [channel["name"] for channel in odpm["channels"]] == ["S4M_VDD_CPUCL0", "S2S_VDD_G3D"]
    (rapl,) = by_kind["rapl"]
    assert rapl["error"]["code"] == "permission"  # the user pi is not root
    assert "sudo chmod a+r /sys/class/powercap/intel-rapl:0/energy_uj" in rapl["error"]["fix"]


def test_counters_grow_by_the_power_that_is_drawn(device: StandIn) -> None:
    """Two openings; their moments are on the device's own clock, their joules in between."""
    command = f"{' '.join(PYTHON[1:])} open"
    specs = json.dumps([{"kind": "rapl"}, {"kind": "odpm"}])
    script = f"cd {PLACE}; echo '{specs}' > s; env {command} < s; sleep 0.3; env {command} < s"
    before, after = map(json.loads, said(device.run(["sh", "-c", script])).splitlines())
    for index, watts in ((0, [7.5, 7.5]), (1, [0.5, 1.5])):
        for channel, expected in enumerate(watts):
            _, t0_ns, joules0 = before[index]["readings"][channel]
            _, t1_ns, joules1 = after[index]["readings"][channel]
            seconds = (t1_ns - t0_ns) / 1e9
            # a reading is stamped within its two looks at the clock, some ms under emulation
            assert (joules1 - joules0) / seconds == pytest.approx(expected, rel=0.1)


def test_a_sampling_process_over_ssh_records_until_the_link_closes(device: StandIn) -> None:
    """One chip changes, one battery is plugged in, one chip is pulled: each is told by itself."""
    folder = device.home() / "meters/out"
    folder.mkdir()
    folder.chmod(0o777)
    meters = [HWMON, {"kind": "battery"}, {"kind": "ina3221"}]
    config = {"meters": meters, "directory": f"{PLACE}/out", "cpus": None}
    (device.home() / "meters/config.json").write_text(json.dumps(config))

    def readings(meter: int) -> list[float]:
        file = folder / READINGS
        data = file.read_bytes() if file.exists() else b""
        whole = data[: len(data) // RECORD.size * RECORD.size]
        return [value for index, _, _, value in RECORD.iter_unpack(whole) if index == meter]

    def failures() -> dict[int, str]:
        text = (folder / EVENTS).read_text() if (folder / EVENTS).exists() else ""
        events = map(json.loads, text[: text.rfind("\n") + 1].splitlines())
        return {event["meter"]: event["code"] for event in events if event["event"] == "failed"}

    with device.client.start([*PYTHON, "record", f"{PLACE}/config.json"]) as link:
        until("all are read", lambda: all(readings(meter) for meter in range(3)))
        device.set("class/power_supply/battery/status", "Charging")
        until("the battery has failed", lambda: 1 in failures())
        device.remove("bus/i2c/drivers/ina3221")
        until("the INA3221 has failed", lambda: 2 in failures())
        device.set_power(5.0)
        until("the INA226 goes on", lambda: 5.0 in readings(0))
        assert link.stdin is not None
        link.stdin.close()
        assert link.wait(30) == 0
    assert failures() == {1: "charging", 2: "vanished"}
    assert set(readings(0)) == {3.0625, 5.0}
    assert not [p for p in device.processes() if "edgebench.meters.sampler" in p.argv]


@pytest.mark.parametrize(
    ("value", "error", "code"),
    [("garbage", 0, "bad-reading"), ("", errno.EIO, "io"), ("", errno.ENODATA, "not-supported")],
)
def test_what_a_driver_answers_instead_of_a_number_is_told(
    device: StandIn, value: str, error: int, code: str
) -> None:
    device.set(POWER, value, error=error)
    (entry,) = json.loads(said(device.ssh([*PYTHON, "open"], input=json.dumps([HWMON]))))
    assert entry["error"]["code"] == code
    assert POWER in entry["error"]["message"]
