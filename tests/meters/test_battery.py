"""Battery gauges: signs, units, chargers, and what is refused rather than guessed."""

from __future__ import annotations

import errno
import os

import pytest

from edgebench.meters.base import MeterError
from edgebench.meters.battery import Battery
from tests.meters.sysfs_trees import battery


def test_a_battery_that_discharges_tells_its_power(tree, make):
    folder = battery(tree)
    meter = make("battery")
    (channel,) = meter.open()
    assert (channel.name, channel.quantity, channel.scope) == ("battery", "power", "battery")
    assert (channel.period_s, channel.lag_s, meter.poll_s) == (1.0, 1.0, 0.25)
    assert channel.resolution == pytest.approx(4e-6)
    assert channel.gain_error is None
    assert "not published" in channel.accuracy_source
    assert meter.read()[0][2] == pytest.approx(2.0)
    tree.put(f"{folder}/current_now", -900000)
    assert meter.read()[0][2] == pytest.approx(3.6)


def test_a_vendor_with_the_other_sign_is_understood_by_the_status(tree, make):
    battery(tree, current_now=500000)
    meter = make("battery")
    meter.open()
    assert meter.read()[0][2] == pytest.approx(2.0)


@pytest.mark.parametrize("status", ["Charging", "Full", "Not charging"])
def test_a_phone_on_a_charger_says_nothing_about_its_load(tree, refused, status):
    battery(tree, status=status, current_now=-500000)
    error = refused("battery")
    assert error.code == "charging"
    assert f"says {status}" in error.message
    assert "Pull the charger" in error.fix


def test_a_cable_that_is_plugged_in_during_the_run_ends_it(tree, make):
    folder = battery(tree)
    meter = make("battery")
    meter.open()
    meter.read()
    tree.put(f"{folder}/status", "Charging")
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert caught.value.code == "charging"


def test_a_current_that_turns_round_is_charging_whatever_the_status(tree, make):
    folder = battery(tree)
    meter = make("battery")
    meter.open()
    tree.put(f"{folder}/current_now", 700000)
    with pytest.raises(MeterError, match=r"0\.700 A flow into the battery") as caught:
        meter.read()
    assert caught.value.code == "charging"


def test_without_a_telling_status_the_sign_is_not_guessed(tree, refused, make):
    battery(tree, status="Unknown")
    error = refused("battery")
    assert (error.code, "says Unknown" in error.message) == ("bad-option", True)
    assert "discharge_sign = -1" in error.fix
    meter = make("battery", discharge_sign=-1)
    meter.open()
    assert meter.read()[0][2] == pytest.approx(2.0)


def test_a_supply_without_status_needs_the_sign_too(tree, refused):
    folder = battery(tree)
    tree.remove(f"{folder}/status")
    assert "says nothing" in refused("battery").message


def test_a_sign_that_is_declared_wrong_shows_as_charging(tree, refused):
    battery(tree)
    error = refused("battery", discharge_sign=1)
    assert (error.code, "discharge_sign" in error.fix) == ("charging", True)


@pytest.mark.parametrize("milliamperes", [-30, -500, -5000 + 1, 0])
def test_a_vendor_that_shows_milliamperes_is_refused_with_the_factor(tree, refused, milliamperes):
    battery(tree, current_now=milliamperes)
    error = refused("battery")
    assert error.code == "bad-reading"
    assert "factor of 1000" in error.message
    assert "current_unit" in error.fix


def test_a_vendor_that_shows_nanoamperes_is_refused_with_the_factor(tree, refused):
    battery(tree, current_now=-500_000_000)
    assert "factor of 1000" in refused("battery").message


def test_the_profile_can_say_the_unit(tree, make):
    battery(tree, current_now=-500)
    meter = make("battery", current_unit="mA")
    (channel,) = meter.open()
    assert meter.read()[0][2] == pytest.approx(2.0)
    assert channel.resolution == pytest.approx(4e-3)


def test_a_unit_that_goes_off_during_the_run_is_refused(tree, make):
    folder = battery(tree)
    meter = make("battery")
    meter.open()
    tree.put(f"{folder}/current_now", "-500")
    with pytest.raises(MeterError, match="factor of 1000"):
        meter.read()


@pytest.mark.parametrize("volts", [4000, 4_000_000_000])
def test_a_voltage_in_another_unit_is_refused(tree, refused, volts):
    battery(tree, voltage_now=volts)
    error = refused("battery")
    assert (error.code, "voltage_now" in error.message) == ("bad-reading", True)


def test_a_battery_that_tells_power_alone_is_read_by_it(tree, make):
    folder = battery(tree, name="BAT0", power_now=8500000)
    tree.remove(f"{folder}/current_now")
    meter = make("battery")
    (channel,) = meter.open()
    assert (channel.name, channel.resolution) == ("BAT0", 1e-6)
    assert meter.read()[0][2] == pytest.approx(8.5)


def test_power_in_another_unit_is_refused_too(tree, refused):
    folder = battery(tree, name="BAT0", power_now=8500)
    tree.remove(f"{folder}/current_now")
    assert "power_now" in refused("battery").message


def test_a_current_without_a_voltage_is_no_power(tree, refused):
    folder = battery(tree)
    tree.remove(f"{folder}/voltage_now")
    assert refused("battery").code == "not-supported"


def test_text_that_is_no_number_is_refused(tree, refused):
    battery(tree, current_now="n/a")
    assert "'n/a'" in refused("battery").message


def test_two_batteries_are_not_chosen_between_nor_added(tree, refused, make):
    battery(tree, name="BAT0")
    battery(tree, name="BAT1", current_now=-1000000)
    error = refused("battery")
    assert (error.code, error.message) == ("bad-option", "2 batteries: BAT0, BAT1")
    meter = make("battery", supply="BAT1")
    meter.open()
    assert meter.read()[0][2] == pytest.approx(4.0)
    assert refused("battery", supply="BAT2").fix == "There are: BAT0, BAT1."


def test_chargers_a_mouse_and_an_empty_bay_are_no_batteries_of_the_device(tree, refused):
    tree.fill("class/power_supply/usb", {"type": "USB", "online": 1, "current_now": 100})
    battery(tree, name="hidpp_battery_0", scope="Device")
    battery(tree, name="BAT1", present=0)
    error = refused("battery")
    assert error.code == "no-device"
    assert error.message.endswith("(supplies: BAT1, hidpp_battery_0, usb)")


def test_without_the_class_it_says_so(refused):
    assert "is not there" in refused("battery").message


def test_a_gauge_that_is_gone_has_vanished(tree, make, monkeypatch):
    battery(tree)
    meter = make("battery")
    meter.open()

    def gone(*_: object) -> bytes:
        raise OSError(errno.ENODEV, os.strerror(errno.ENODEV))

    monkeypatch.setattr(os, "pread", gone)
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert caught.value.code == "vanished"


def test_android_may_deny_it(tree, refused, monkeypatch):
    battery(tree)
    real = os.open

    def denied(path: str, *more: int, **named: int) -> int:
        if str(path).endswith("current_now"):
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return real(path, *more, **named)

    monkeypatch.setattr(os, "open", denied)
    error = refused("battery")
    assert (error.code, "chmod a+r" in error.fix) == ("permission", True)


@pytest.mark.parametrize(
    "wrong",
    [
        {"discharge_sign": 0},
        {"discharge_sign": True},
        {"current_unit": "A"},
        {"period_s": 0},
        {"period_s": float("nan")},
    ],
)
def test_options_that_can_not_be_are_refused(tree, refused, wrong):
    battery(tree)
    assert refused("battery", **wrong).code == "bad-option"


def test_what_is_found_can_be_opened(tree, make):
    battery(tree, name="BAT0")
    battery(tree, name="BAT1")
    found = Battery.find(str(tree.root))
    assert [make(**table).open()[0].name for table in found] == ["BAT0", "BAT1"]


def test_nothing_found_is_an_error_that_says_why(tree):
    with pytest.raises(MeterError) as caught:
        Battery.find(str(tree.root))
    assert caught.value.code == "no-device"
