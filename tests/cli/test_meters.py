"""``edgebench meters``: what is there, and why the rest is not."""

from __future__ import annotations

import json
from collections.abc import Iterator

import pytest

from edgebench.cli import meters as command
from edgebench.meters.base import KINDS
from edgebench.meters_listing import Found, Line
from edgebench.recording import MeterChannel
from tests.measure.bench import Bench
from tests.measure.power_world import PowerWorld


@pytest.fixture
def world(bench: Bench) -> Iterator[PowerWorld]:
    world = PowerWorld(bench.path / "sys", bench.root)
    yield world
    world.close()


def profile(world: PowerWorld) -> str:
    return (
        f'[[meters]]\nkind = "hwmon"\nscope = "board"\nchip = "ina226"\nsysfs = "{world.sysfs}"\n'
        "shunt_tolerance_percent = 1\n"
    )


def test_every_kind_is_there_or_says_why_and_what_would_mend_it(bench: Bench):
    done = bench.call("meters", "--device", "bench", "--json")
    assert done.returncode == 0, done.stderr
    entries = json.loads(done.stdout)
    assert {entry["kind"] for entry in entries} == set(KINDS)
    for entry in entries:
        if not entry["there"]:
            assert entry["code"]
            assert entry["why"]
            assert entry["channels"] == []


def test_the_profile_s_meter_is_opened_and_read(bench: Bench, world: PowerWorld):
    bench.profile(profile(world))
    entries = json.loads(bench.call("meters", "--device", "bench", "--json").stdout)
    (mine,) = [entry for entry in entries if entry["in_profile"]]
    assert entries[0] == mine  # what is there comes first
    (channel,) = mine["channels"]
    assert (mine["kind"], mine["runs_on"], channel["scope"]) == ("hwmon", "device", "board")
    assert (channel["quantity"], channel["unit"]) == ("power", "W")
    assert channel["first_reading"] > 0
    assert channel["period_s"] > 0
    assert channel["gain_error"] > 0.01


def test_people_see_period_resolution_accuracy_and_its_source(bench: Bench, world: PowerWorld):
    bench.profile(profile(world))
    out = bench.call("meters", "--device", "bench").stdout
    there, absent = out.split("bench: not there")
    assert "hwmon (in the profile)" in there
    for said in (" W, power, board (all that the device draws)", "new every", "steps of", "± "):
        assert said in there
    assert "rapl" in absent or "rapl" in there
    assert out.strip().endswith(".")


def test_a_meter_of_the_profile_that_is_gone_says_so(bench: Bench):
    bench.profile('[[meters]]\nkind = "shelly"\nhost = "127.0.0.1:9"\nscope = "wall"\n')
    entries = json.loads(bench.call("meters", "--device", "bench", "--json").stdout)
    (plug,) = [entry for entry in entries if entry["kind"] == "shelly"]
    assert (plug["in_profile"], plug["there"], plug["runs_on"]) == (True, False, "host")
    assert "127.0.0.1:9" in plug["why"]


def test_a_profile_with_a_meter_that_does_not_exist(bench: Bench):
    bench.profile('[[meters]]\nkind = "abacus"\n')
    done = bench.call("meters", "--device", "bench")
    assert done.returncode == 3
    assert "abacus" in done.stderr


def test_kinds_that_are_absent_for_one_reason_are_said_once():
    i2c = {"why": "there is no /dev/i2c-*", "fix": "Enable I2C."}
    found = [
        Found("ina219", {"kind": "ina219"}, "device", **i2c),
        Found("rapl", {"kind": "rapl"}, "device", why="no powercap"),
        Found("ina226", {"kind": "ina226"}, "device", **i2c),
    ]
    kinds = [[each.kind for each in group] for group in command._alike(found)]
    assert kinds == [["ina219", "ina226"], ["rapl"]]


def test_what_is_unknown_is_called_unknown():
    channel = MeterChannel(
        name="x", quantity="power", scope="rail", source="y", period_s=0.02, resolution=0.0
    )
    line = Line(channel, None)
    assert command._reading(line).startswith("no reading yet, power, rail")
    assert "accuracy unknown (not published)" in command._properties(line)
    assert "steps" not in command._properties(line)


def test_a_sparse_sensor_says_how_much_of_the_time_it_looks():
    channel = MeterChannel(
        name="power",
        quantity="power",
        scope="gpu",
        source="NVIDIA A100",
        period_s=0.1,
        resolution=0.001,
        gain_error=0.05,
        offset_error_w=5.0,
        duty=0.25,
        accuracy_source="a data sheet",
    )
    text = command._properties(Line(channel, 77.8))
    assert "looks 25% of the time" in text
    assert "± 5 % ± 5 W (a data sheet)" in text
    assert "new every 100 ms; steps of 1 mW" in text
