"""hwmon chips: which one is meant, what a data sheet makes of it, and what is refused."""

from __future__ import annotations

import errno
import os

import pytest

from edgebench.meters.base import MeterError
from edgebench.meters.hwmon import Hwmon
from tests.meters.sysfs_trees import INA226, hwmon

OTHER_CHIPS = ({"name": "cpu_thermal", "temp1_input": 48312}, {"name": "rpi_volt"})


def test_an_ina226_tells_its_power(tree, make):
    for number, files in enumerate(OTHER_CHIPS):
        hwmon(tree, number, files)
    folder = hwmon(tree, 2, INA226, device="1-0040")
    meter = make("hwmon", scope="board")
    (channel,) = meter.open()
    assert (channel.name, channel.quantity, channel.scope) == ("power1", "power", "board")
    assert channel.source == "ina226 (1-0040)"
    assert channel.period_s == channel.averaging_s == channel.lag_s == 0.035
    assert channel.resolution == pytest.approx(0.00625)
    assert channel.duty == 0.5  # the converter looks at the bus in between
    assert meter.poll_s == 0.0175
    ((index, t_ns, watts),) = meter.read()
    assert (index, watts) == (0, pytest.approx(3.0625))
    tree.put(f"{folder}/power1_input", 5000000)
    ((_, later_ns, watts),) = meter.read()
    assert (watts, later_ns > t_ns) == (pytest.approx(5.0), True)


def test_the_scope_is_never_guessed(tree, refused):
    hwmon(tree, 0, INA226)
    error = refused("hwmon")
    assert error.code == "bad-option"
    assert 'Add scope = "board"' in error.fix


# -- accuracy


def test_without_the_shunts_tolerance_the_gain_error_is_unknown(tree, make):
    hwmon(tree, 0, INA226)
    (channel,) = make("hwmon", scope="board").open()
    assert channel.gain_error is None
    assert "shunt_tolerance_percent" in channel.accuracy_source
    # 10 µV on 10 mΩ is 1 mA, at 5.1 V
    assert channel.offset_error_w == pytest.approx(0.0051)


def test_an_ina226s_bounds_are_its_data_sheets_and_the_shunts(tree, make):
    hwmon(tree, 0, INA226)
    (channel,) = make("hwmon", scope="board", shunt_tolerance_percent=1).open()
    # 0.1 % shunt, 0.1 % bus, 100 ppm/°C over 25 °C, 7.5 mV of 5.1 V, 1 % shunt
    assert channel.gain_error == pytest.approx(0.001 + 0.001 + 0.0025 + 0.0075 / 5.1 + 0.01)
    assert channel.accuracy_source.startswith("SBOS547B 5.5, shunt ± 1 %")


def test_an_ina219_is_taken_for_the_worse_grade_and_has_no_update_interval(tree, make):
    files = {**INA226, "name": "ina219", "shunt_resistor": 100000, "power1_input": 3060000}
    del files["update_interval"]
    hwmon(tree, 0, files)
    meter = make("hwmon", scope="board", shunt_tolerance_percent=1.0)
    (channel,) = meter.open()
    assert channel.gain_error == pytest.approx(0.03)
    assert channel.offset_error_w == pytest.approx(5.1 * 200e-6 / 0.1)
    assert channel.period_s == pytest.approx(2 * 532e-6)
    assert channel.resolution == pytest.approx(0.002)  # 20 times 100 µA
    assert meter.poll_s == 0.005


def test_an_ina260_has_its_shunt_inside(tree, make):
    files = {**INA226, "name": "ina260", "power1_input": 3060000}
    del files["shunt_resistor"]
    hwmon(tree, 0, files)
    (channel,) = make("hwmon", scope="board").open()
    assert channel.gain_error == pytest.approx(0.0015 + 0.001 + 10e-6 * 25 + 0.0075 / 5.1)
    assert channel.offset_error_w == pytest.approx(5.1 * 0.005)
    assert channel.resolution == pytest.approx(0.01)


def test_a_calibration_in_the_profile_is_taken_and_named(tree, make):
    hwmon(tree, 0, INA226)
    (channel,) = make("hwmon", scope="board", accuracy_percent=0.5).open()
    assert channel.gain_error == 0.005
    assert channel.accuracy_source == "accuracy_percent in the profile"


def test_a_chip_without_a_data_sheet_here_has_unknown_errors(tree, make):
    hwmon(tree, 0, {**INA226, "name": "ina231"})
    (channel,) = make("hwmon", scope="rail", shunt_tolerance_percent=1).open()
    assert (channel.gain_error, channel.offset_error_w) == (None, None)
    assert channel.accuracy_source == "not published"


# -- other chips


def test_an_averaging_power_meter_tells_its_own_interval(tree, make):
    files = {
        "name": "power_meter",
        "power1_average": 187000000,
        "power1_average_interval": 1000,
        "power1_accuracy": "99.5%",
    }
    hwmon(tree, 0, files)
    (channel,) = make("hwmon", scope="wall").open()
    assert (channel.period_s, channel.averaging_s, channel.duty) == (1.0, 1.0, 1.0)
    assert channel.gain_error is None
    assert channel.resolution == 1e-6


def test_a_chip_that_shows_no_period_is_taken_to_be_slow_unless_the_profile_knows(tree, make):
    hwmon(tree, 0, {"name": "macsmc_hwmon", "power1_input": 8500000, "power1_label": "Total"})
    (channel,) = make("hwmon", scope="board").open()
    assert (channel.name, channel.period_s, channel.averaging_s) == ("Total", 1.0, None)
    assert make("hwmon", scope="board", period_s=0.2).open()[0].period_s == 0.2


def test_an_instant_is_preferred_to_an_average_of_the_same_channel(tree, make):
    hwmon(tree, 0, {"name": "amdgpu", "power1_average": 31000000, "power1_input": 30000000})
    meter = make("hwmon", scope="gpu")
    meter.open()
    assert meter.read()[0][2] == pytest.approx(30.0)


def test_current_and_voltage_are_multiplied_where_the_driver_shows_no_power(tree, make):
    files = {name: value for name, value in INA226.items() if name != "power1_input"}
    folder = hwmon(tree, 0, files)
    meter = make("hwmon", scope="board")
    (channel,) = meter.open()
    assert channel.resolution == pytest.approx(5.1 * 1e-3)  # the file's mA, not the chip's 250 µA
    assert meter.read()[0][2] == pytest.approx(3.06)
    tree.put(f"{folder}/in1_input", 5000)
    assert meter.read()[0][2] == pytest.approx(3.0)


def test_lines_that_are_not_known_to_belong_together_are_not_multiplied(tree, refused):
    hwmon(tree, 0, {"name": "pmbus", "in1_input": 12000, "curr1_input": 900})
    assert refused("hwmon", scope="board").message == "no hwmon chip shows power (chips: pmbus)"


# -- which one


def two(tree):
    hwmon(tree, 0, INA226, device="1-0040")
    hwmon(tree, 2, {**INA226, "label": "camera"}, device="1-0041")


def test_two_chips_of_a_kind_are_not_chosen_between_nor_added(tree, refused):
    two(tree)
    error = refused("hwmon", scope="board", chip="ina226")
    assert error.code == "bad-option"
    assert "2 power sensors fit: ina226 (hwmon = '1-0040', channel = 1)" in error.message
    assert "ina226 'camera' (hwmon = '1-0041', channel = 1)" in error.message
    assert error.fix.startswith("Say which by hwmon, label or channel")


@pytest.mark.parametrize("which", [{"hwmon": "1-0041"}, {"hwmon": "hwmon2"}, {"label": "camera"}])
def test_one_of_two_is_named_by_bus_number_or_label(tree, make, which):
    two(tree)
    (channel,) = make("hwmon", scope="rail", **which).open()
    assert channel.source == "ina226 (1-0041)"


def test_channels_of_one_chip_are_told_apart(tree, make, refused):
    files = {"name": "ltc2991", "power1_input": 1000000, "power2_input": 2000000}
    hwmon(tree, 0, {**files, "power2_label": "core"})
    assert "2 power sensors" in refused("hwmon", scope="rail").message
    for which in ({"channel": 2}, {"label": "core"}):
        meter = make("hwmon", scope="rail", **which)
        meter.open()
        assert meter.read()[0][2] == pytest.approx(2.0)


def test_a_chip_that_is_not_there_names_those_that_are(tree, refused):
    two(tree)
    error = refused("hwmon", scope="board", chip="ina219")
    assert error.code == "no-device"
    assert error.message == "no power sensor has chip = 'ina219'"
    assert "camera" in error.fix


def test_without_any_chip_it_names_what_there_is_and_how_to_bind_one(tree, refused):
    for number, files in enumerate(OTHER_CHIPS):
        hwmon(tree, number, files)
    error = refused("hwmon", scope="board")
    assert error.message == "no hwmon chip shows power (chips: cpu_thermal, rpi_volt)"
    assert "new_device" in error.fix


def test_without_the_class_it_says_so(refused):
    assert "is not there" in refused("hwmon", scope="board").message


# -- what can't be


def test_a_shunt_the_wrong_way_round_is_refused(tree, refused):
    hwmon(tree, 0, {**INA226, "curr1_input": -600})
    error = refused("hwmon", scope="board")
    assert (error.code, "-0.600 A flow backwards" in error.message) == ("bad-reading", True)
    assert "Swap IN+ and IN-" in error.fix


def test_a_current_that_turns_round_during_the_run_is_refused(tree, make):
    files = {name: value for name, value in INA226.items() if name != "power1_input"}
    folder = hwmon(tree, 0, files)
    meter = make("hwmon", scope="board")
    meter.open()
    tree.put(f"{folder}/curr1_input", -300)
    with pytest.raises(MeterError, match="flow backwards"):
        meter.read()


def test_the_chips_offset_below_zero_is_passed_on(tree, make):
    files = {name: value for name, value in INA226.items() if name != "power1_input"}
    hwmon(tree, 0, {**files, "curr1_input": -1})
    meter = make("hwmon", scope="board")
    meter.open()
    assert meter.read()[0][2] == pytest.approx(-0.0051)


@pytest.mark.parametrize("wrong", [3062, 3062500000])
def test_a_power_with_a_wrong_prefix_is_found_by_current_and_voltage(tree, refused, wrong):
    hwmon(tree, 0, {**INA226, "power1_input": wrong})
    error = refused("hwmon", scope="board")
    assert (error.code, "a unit is off" in error.message) == ("bad-reading", True)
    assert "1000" in error.fix


def test_a_device_that_draws_next_to_nothing_is_not_taken_for_a_wrong_prefix(tree, make):
    hwmon(tree, 0, {**INA226, "curr1_input": 0, "power1_input": 6250})
    make("hwmon", scope="board").open()


def test_text_that_is_no_number_is_refused(tree, make):
    folder = hwmon(tree, 0, INA226)
    meter = make("hwmon", scope="board")
    meter.open()
    tree.put(f"{folder}/power1_input", "?")
    with pytest.raises(MeterError, match="holds no number"):
        meter.read()


def test_a_chip_that_is_pulled_off_its_bus_has_vanished(tree, make, monkeypatch):
    hwmon(tree, 0, INA226)
    meter = make("hwmon", scope="board")
    meter.open()

    def gone(*_: object) -> bytes:
        raise OSError(errno.ENXIO, os.strerror(errno.ENXIO))

    monkeypatch.setattr(os, "pread", gone)
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert caught.value.code == "vanished"


@pytest.mark.parametrize(
    "wrong",
    [
        {"shunt_tolerance_percent": -1},
        {"shunt_tolerance_percent": float("nan")},
        {"accuracy_percent": float("inf")},
        {"period_s": 0},
        {"channel": "1"},
        {"chip": 226},
    ],
)
def test_options_that_can_not_be_are_refused(tree, refused, wrong):
    hwmon(tree, 0, INA226)
    assert refused("hwmon", scope="board", **wrong).code == "bad-option"


def test_what_is_found_can_be_opened(tree, make):
    two(tree)
    hwmon(tree, 10, {"name": "x", "power1_input": 1000000, "power2_input": 2000000})
    found = Hwmon.find(str(tree.root))
    assert [table["hwmon"] for table in found] == ["1-0040", "1-0041", "hwmon10", "hwmon10"]
    sources = [make(**table).open()[0].source for table in found]
    assert sources == ["ina226 (1-0040)", "ina226 (1-0041)", "x (hwmon10)", "x (hwmon10)"]


def test_nothing_found_is_an_error_that_says_why(tree):
    with pytest.raises(MeterError) as caught:
        Hwmon.find(str(tree.root))
    assert caught.value.code == "no-device"
