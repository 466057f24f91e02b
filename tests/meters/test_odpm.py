"""A Pixel's power monitors: rails, the driver's own time, and what is refused."""

from __future__ import annotations

import errno
import os
import time

import pytest

from edgebench.meters import odpm as module
from edgebench.meters.base import MeterError, clock
from edgebench.meters.odpm import Odpm, parse
from tests.meters.sysfs_trees import PIXEL_M, PIXEL_S, boot_ms, energy_value, odpm

#: The layout of a Pixel 6, as captures show it, with figures of our own.
CAPTURED = """t=351207
CH0(T=351207)[S10M_VDD_TPU], 5601234
CH1(T=351207)[VSYS_PWR_MODEM], 29254011
CH2(T=351207)[VSYS_PWR_RFFE], 3180112
CH3(T=351207)[S2M_VDD_CPUCL2], 30311777
CH4(T=351207)[S3M_VDD_CPUCL1], 23451200
CH5(T=351207)[S4M_VDD_CPUCL0], 46412055"""


def pixel(tree) -> tuple[str, str]:
    return odpm(tree, 0, "s2mpg10-odpm", PIXEL_M), odpm(tree, 1, "s2mpg11-odpm", PIXEL_S)


def test_a_captured_text_is_understood():
    t_ms, energies = parse(CAPTURED, "x")
    assert t_ms == 351207
    assert energies["S4M_VDD_CPUCL0"] == 46412055
    assert next(iter(energies)) == "S10M_VDD_TPU"
    assert len(energies) == 6


@pytest.mark.parametrize(
    "wrong",
    [
        "",
        "351207",
        CAPTURED.replace("t=", "time="),
        CAPTURED.replace("[VSYS_PWR_RFFE]", ""),
        CAPTURED.replace("3180112", "many"),
        CAPTURED + "\nCH6(T=349",
    ],
)
def test_another_text_is_refused_and_shown(wrong):
    with pytest.raises(MeterError) as caught:
        parse(wrong, "energy_value")
    assert caught.value.code == "bad-reading"
    assert caught.value.message.startswith("energy_value")


def test_every_enabled_rail_is_a_counter_of_its_own(tree, make):
    pixel(tree)
    meter = make("odpm")
    channels = meter.open()
    assert [channel.name for channel in channels] == [*PIXEL_M, *PIXEL_S]
    assert {channel.quantity for channel in channels} == {"energy"}
    assert {channel.scope for channel in channels} == {"rail"}
    assert channels[0].source == "ODPM s2mpg10-odpm"
    assert channels[0].period_s == 0.08  # 20 samples at 250 Hz
    assert (channels[0].resolution, channels[0].wrap_j) == (1e-6, None)
    assert channels[0].gain_error is None
    assert meter.poll_s == 0.1
    readings = meter.read()
    assert [index for index, _, _ in readings] == [0, 1, 2, 3, 4]
    assert readings[0][2] == pytest.approx(5.601234)
    assert readings[4][2] == pytest.approx(3715.220314)


def test_rails_that_are_named_come_alone(tree, make):
    pixel(tree)
    meter = make("odpm", rails=["S2S_VDD_G3D", "S4M_VDD_CPUCL0"])
    assert [channel.name for channel in meter.open()] == ["S4M_VDD_CPUCL0", "S2S_VDD_G3D"]
    assert [round(joules, 3) for _, _, joules in meter.read()] == [46.412, 3715.22]


def test_a_reading_has_the_drivers_time_on_our_clock(tree, make):
    folder = odpm(tree, 0, "s2mpg10-odpm", PIXEL_M)
    meter = make("odpm")
    meter.open()
    now_ns, boot_ns = clock(), time.clock_gettime_ns(time.CLOCK_BOOTTIME)
    earlier_ms = boot_ns // 1_000_000 - 700
    tree.put(f"{folder}/energy_value", energy_value(PIXEL_M, earlier_ms))
    t_ns = meter.read()[0][1]
    # 700 ms ago, within the driver's millisecond and the two looks at the clocks
    assert (now_ns - t_ns) / 1e6 == pytest.approx(700, abs=5)


def test_values_that_the_driver_repeats_are_left_out(tree, make):
    folders = pixel(tree)
    meter = make("odpm")
    meter.open()
    assert len(meter.read()) == 5
    assert meter.read() == []
    tree.put(f"{folders[0]}/energy_value", energy_value(PIXEL_M, boot_ms() + 1))
    assert [index for index, _, _ in meter.read()] == [0, 1, 2]


def test_a_counter_that_does_not_move_while_its_time_does_is_passed_on(tree, make):
    folder = odpm(tree, 0, "s2mpg10-odpm", PIXEL_M)
    meter = make("odpm")
    meter.open()
    seen = []
    for later in range(3):
        tree.put(f"{folder}/energy_value", energy_value(PIXEL_M, boot_ms() + later))
        seen += [joules for index, _, joules in meter.read() if index == 0]
    assert seen == [pytest.approx(5.601234)] * 3


def test_a_counter_that_starts_again_is_passed_on(tree, make):
    folder = odpm(tree, 0, "s2mpg10-odpm", PIXEL_M)
    meter = make("odpm")
    meter.open()
    meter.read()
    again = dict.fromkeys(PIXEL_M, 0)
    tree.put(f"{folder}/energy_value", energy_value(again, boot_ms() + 1))
    assert [joules for _, _, joules in meter.read()] == [0, 0, 0]


def test_a_time_that_stands_still_is_frozen(tree, make, monkeypatch):
    odpm(tree, 0, "s2mpg10-odpm", PIXEL_M)
    meter = make("odpm")
    meter.open()
    meter.read()
    monkeypatch.setattr(module, "clock", lambda: clock() + 11_000_000_000)
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert caught.value.code == "frozen"


@pytest.mark.parametrize("off_ms", [-60_000, 60_000])
def test_a_time_of_another_boot_or_clock_is_refused(tree, refused, off_ms):
    folder = odpm(tree, 0, "s2mpg10-odpm", PIXEL_M)
    tree.put(f"{folder}/energy_value", energy_value(PIXEL_M, boot_ms() + off_ms))
    error = refused("odpm")
    assert (error.code, "has been up for" in error.message) == ("bad-reading", True)


def test_a_rail_that_no_channel_measures_names_those_that_are(tree, refused):
    pixel(tree)
    error = refused("odpm", rails=["S5S_VDDQ_MEM"])
    assert (error.code, "'S5S_VDDQ_MEM'" in error.message) == ("no-device", True)
    assert error.fix.startswith(f"Measured are: {', '.join([*PIXEL_M, *PIXEL_S])}.")
    assert "enabled_rails" in error.fix


def test_a_channel_that_is_not_enabled_is_not_measured(tree, make, refused):
    folder = odpm(tree, 0, "s2mpg10-odpm", PIXEL_M)
    tree.put(f"{folder}/enabled_rails", "CH2[S4M_VDD_CPUCL0]:CPU")
    assert [channel.name for channel in make("odpm").open()] == ["S4M_VDD_CPUCL0"]
    assert refused("odpm", rails=["S10M_VDD_TPU"]).code == "no-device"
    tree.put(f"{folder}/enabled_rails", "")
    assert refused("odpm").code == "not-supported"


def test_a_kernel_that_does_not_say_what_is_enabled_shows_all(tree, make):
    folder = odpm(tree, 0, "s2mpg10-odpm", PIXEL_M)
    tree.remove(f"{folder}/enabled_rails")
    tree.remove(f"{folder}/sampling_rate")
    channels = make("odpm").open()
    assert [channel.name for channel in channels] == list(PIXEL_M)
    assert channels[0].period_s == 0.05


def test_a_rail_of_two_monitors_is_not_chosen_between(tree, refused, make):
    odpm(tree, 0, "s2mpg10-odpm", PIXEL_M)
    odpm(tree, 1, "s2mpg11-odpm", PIXEL_M)
    assert refused("odpm", rails=["S10M_VDD_TPU"]).code == "bad-option"
    (channel,) = make("odpm", rails=["S10M_VDD_TPU"], device="s2mpg11-odpm").open()
    assert channel.source == "ODPM s2mpg11-odpm"
    assert refused("odpm", device="s2mpg12-odpm").fix == "There are: s2mpg10-odpm, s2mpg11-odpm."


def test_a_rail_that_is_taken_off_its_channel_has_vanished(tree, make):
    folder = odpm(tree, 0, "s2mpg10-odpm", PIXEL_M)
    meter = make("odpm", rails=["S10M_VDD_TPU"])
    meter.open()
    meter.read()
    others = {"S2M_VDD_CPUCL2": 0, "VSYS_PWR_MODEM": 29254011, "S4M_VDD_CPUCL0": 46412055}
    tree.put(f"{folder}/energy_value", energy_value(others, boot_ms() + 1))
    with pytest.raises(MeterError, match="S10M_VDD_TPU any more") as caught:
        meter.read()
    assert caught.value.code == "vanished"


def test_other_iio_devices_are_none(tree, refused):
    tree.fill("bus/iio/devices/iio:device0", {"name": "bmi160", "in_accel_x_raw": 3})
    assert refused("odpm").message.endswith("has no energy_value")


def test_without_iio_it_says_so(refused):
    error = refused("odpm")
    assert (error.code, "Pixel 6" in error.fix) == ("no-device", True)


def test_who_is_not_root_is_told_how_to_be(tree, refused, monkeypatch):
    odpm(tree, 0, "s2mpg10-odpm", PIXEL_M)

    def denied(path: str, *_: int) -> int:
        raise PermissionError(errno.EACCES, "Permission denied", path)

    monkeypatch.setattr(os, "open", denied)
    error = refused("odpm")
    assert (error.code, "adb root" in error.fix) == ("permission", True)


@pytest.mark.parametrize("wrong", [{"rails": []}, {"rails": [1]}, {"rails": "S2S_VDD_G3D"}])
def test_options_that_can_not_be_are_refused(tree, refused, wrong):
    pixel(tree)
    assert refused("odpm", **wrong).code == "bad-option"


@pytest.mark.parametrize("rate", ["fast", ""])
def test_a_rate_that_is_no_number_is_refused(tree, refused, rate):
    folder = odpm(tree, 0, "s2mpg10-odpm", PIXEL_M)
    tree.put(f"{folder}/sampling_rate", rate)
    assert refused("odpm").code == "bad-reading"


def test_what_is_found_can_be_opened(tree, make):
    pixel(tree)
    found = Odpm.find(str(tree.root))
    assert [table["device"] for table in found] == ["s2mpg10-odpm", "s2mpg11-odpm"]
    assert [len(make(**table).open()) for table in found] == [3, 2]


def test_nothing_found_is_an_error_that_says_why(tree):
    with pytest.raises(MeterError) as caught:
        Odpm.find(str(tree.root))
    assert caught.value.code == "no-device"
