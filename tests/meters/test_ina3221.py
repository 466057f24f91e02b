"""A Jetson's INA3221: lines by label, both drivers, and what is refused."""

from __future__ import annotations

import errno
import os

import pytest

from edgebench.meters.base import MeterError
from edgebench.meters.ina3221 import Ina3221
from tests.meters.sysfs_trees import jetpack4, jetson


def test_the_modules_input_is_current_times_voltage(tree, make):
    folder = jetson(tree)
    meter = make("ina3221")
    (channel,) = meter.open()
    assert (channel.name, channel.quantity, channel.scope) == ("VDD_IN", "power", "module")
    assert channel.source == "ina3221 (1-0040)"
    assert channel.period_s == channel.averaging_s == channel.lag_s == 0.007
    assert channel.duty == pytest.approx(1 / 6)
    assert channel.resolution == pytest.approx(5.0 * 0.008)  # 40 µV at 5 mΩ
    assert meter.poll_s == 0.02  # a read holds the bus until a conversion ends
    assert meter.read()[0][2] == pytest.approx(6.0)
    tree.put(f"{folder}/curr1_input", 2400)
    assert meter.read()[0][2] == pytest.approx(12.0)


def test_several_lines_are_a_channel_each_and_never_a_sum(tree, make):
    jetson(tree)
    meter = make("ina3221", label=["VDD_SOC", "VDD_IN", "VDD_SOC"])
    channels = meter.open()
    assert [channel.name for channel in channels] == ["VDD_SOC", "VDD_IN"]
    assert [channel.scope for channel in channels] == ["rail", "module"]
    assert [(i, round(watts, 4)) for i, _, watts in meter.read()] == [(0, 1.9968), (1, 6.0)]


def test_the_profiles_scope_wins(tree, make):
    jetson(tree)
    assert make("ina3221", label="VDD_SOC", scope="soc").open()[0].scope == "soc"


def test_the_data_sheets_bounds_count_with_the_shunts_tolerance_alone(tree, make):
    jetson(tree)
    (unknown,) = make("ina3221").open()
    assert unknown.gain_error is None
    assert "shunt_tolerance_percent" in unknown.accuracy_source
    assert unknown.offset_error_w == pytest.approx(5.0 * 80e-6 / 0.005)
    (known,) = make("ina3221", shunt_tolerance_percent=1).open()
    assert known.gain_error == pytest.approx(2 * 0.0025 + 100e-6 * 25 + 0.016 / 5 + 0.01)
    assert make("ina3221", accuracy_percent=2).open()[0].gain_error == 0.02


def test_without_a_shunt_in_sysfs_the_offset_is_unknown(tree, make):
    folder = jetson(tree)
    tree.remove(f"{folder}/shunt1_resistor")
    (channel,) = make("ina3221").open()
    assert channel.offset_error_w is None
    assert channel.resolution == pytest.approx(5.0 * 0.001)


def test_a_module_without_that_label_names_those_there_are(tree, refused):
    jetson(tree)
    error = refused("ina3221", label="VDD_GPU_SOC")
    assert (error.code, error.message) == ("no-device", "no line 'VDD_GPU_SOC'")
    assert error.fix == ("There are: VDD_IN (1-0040), VDD_CPU_GPU_CV (1-0040), VDD_SOC (1-0040).")


def test_a_module_without_one_input_says_so(tree, refused):
    """An AGX Orin: rails, and none that is all of it."""
    folder = jetson(tree)
    tree.put(f"{folder}/in1_label", "VDD_GPU_SOC")
    error = refused("ina3221")
    assert error.message == "no line is the whole module's input (VDD_IN or POM_5V_IN)"
    assert "VDD_GPU_SOC (1-0040)" in error.fix


def test_two_lines_of_one_name_are_not_chosen_between(tree, refused):
    folder = jetson(tree)
    tree.put(f"{folder}/in3_label", "VDD_IN")
    assert refused("ina3221").code == "bad-option"


def test_a_line_that_is_switched_off_is_told_how_to_be_on(tree, refused):
    folder = jetson(tree)
    tree.put(f"{folder}/in1_enable", 0)
    error = refused("ina3221")
    assert (error.code, error.message) == ("not-supported", "the line VDD_IN is switched off")
    assert error.fix.endswith(f"{folder}/in1_enable")


def test_fewer_lines_that_are_on_are_each_looked_at_more_often(tree, make):
    folder = jetson(tree)
    tree.put(f"{folder}/in3_enable", 0)
    assert make("ina3221").open()[0].duty == pytest.approx(1 / 4)


def test_a_driver_without_data_is_told_apart_from_a_failure(tree, make, monkeypatch):
    jetson(tree)
    meter = make("ina3221")
    meter.open()

    def off(*_: object) -> bytes:
        raise OSError(errno.ENODATA, os.strerror(errno.ENODATA))

    monkeypatch.setattr(os, "pread", off)
    with pytest.raises(MeterError, match="is it off") as caught:
        meter.read()
    assert caught.value.code == "not-supported"


def test_current_against_the_arrow_is_refused(tree, make, refused):
    folder = jetson(tree)
    meter = make("ina3221")
    meter.open()
    tree.put(f"{folder}/curr1_input", -900)
    with pytest.raises(MeterError, match="flow backwards") as caught:
        meter.read()
    assert caught.value.code == "bad-reading"
    assert refused("ina3221").code == "bad-reading"


def test_text_that_is_no_number_is_refused(tree, refused):
    folder = jetson(tree)
    tree.put(f"{folder}/curr1_input", "1.2 A")
    assert "'1.2 A'" in refused("ina3221").message


def test_jetpack_4_shows_power_itself(tree, make):
    folder = jetpack4(tree)
    meter = make("ina3221")
    (channel,) = meter.open()
    assert (channel.name, channel.scope) == ("POM_5V_IN", "module")
    assert channel.source == "ina3221 (6-0040)"
    assert (channel.period_s, channel.averaging_s) == (1.0, None)
    assert (channel.gain_error, channel.offset_error_w) == (None, None)
    assert meter.read()[0][2] == pytest.approx(2.45)
    tree.put(f"{folder}/in_power0_input", 9000)
    assert meter.read()[0][2] == pytest.approx(9.0)


def test_jetpack_4s_rails_count_from_zero(tree, make):
    jetpack4(tree)
    meter = make("ina3221", label=["POM_5V_CPU", "POM_5V_GPU"], period_s=0.1)
    assert [channel.period_s for channel in meter.open()] == [0.1, 0.1]
    assert [round(watts, 3) for _, _, watts in meter.read()] == [0.65, 0.04]


def test_without_a_driver_it_says_so(refused):
    error = refused("ina3221")
    assert (error.code, "no driver" in error.message) == ("no-device", True)
    assert "ina3221-i2c" in error.fix


def test_a_driver_without_a_chip_says_so(tree, refused):
    tree.put("bus/i2c/drivers/ina3221/bind", "")
    assert refused("ina3221").message == "the driver ina3221 has no chip with labelled channels"


def test_a_chip_that_is_seen_by_two_paths_is_counted_once(tree, make):
    jetson(tree)
    tree.link("bus/i2c/drivers/ina3221x", "ina3221")
    assert len(make("ina3221").open()) == 1


@pytest.mark.parametrize(
    "wrong", [{"label": []}, {"label": [3]}, {"label": 3}, {"shunt_tolerance_percent": -1}]
)
def test_options_that_can_not_be_are_refused(tree, refused, wrong):
    jetson(tree)
    assert refused("ina3221", **wrong).code == "bad-option"


def test_what_is_found_can_be_opened(tree, make):
    jetson(tree)
    names = [make(**table).open()[0].name for table in Ina3221.find(str(tree.root))]
    assert names == ["VDD_IN", "VDD_CPU_GPU_CV", "VDD_SOC"]


def test_nothing_found_is_an_error_that_says_why(tree):
    with pytest.raises(MeterError) as caught:
        Ina3221.find(str(tree.root))
    assert caught.value.code == "no-device"
