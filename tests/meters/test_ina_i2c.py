"""The INA chips over I2C, against chips made from their data sheets."""

from __future__ import annotations

import errno
import inspect
import sys
from collections.abc import Callable
from typing import Any

import pytest

from edgebench.meters import ina_i2c
from edgebench.meters.base import Meter, MeterError, Reading, make_meter, meter_class
from tests.meters import fake_i2c
from tests.meters.fake_i2c import Bus

CHIPS: dict[str, Callable[..., fake_i2c.Chip]] = {
    "ina219": fake_i2c.Ina219,
    "ina226": fake_i2c.Ina226,
    "ina260": fake_i2c.Ina260,
    "ina3221-i2c": fake_i2c.Ina3221,
}
OPTIONS: dict[str, dict[str, Any]] = {
    "ina219": {"shunt_mohm": 100, "shunt_tolerance_percent": 1},
    "ina226": {"shunt_mohm": 10.0, "shunt_tolerance_percent": 1.0},
    "ina260": {},
    "ina3221-i2c": {"shunt_mohm": 5, "shunt_tolerance_percent": 1, "channel": 1},
}


class Bench:
    """A bus with one chip at 0x40, and a meter for it."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.monkeypatch = monkeypatch
        self.bus = Bus({})

    def put(self, kind: str, chip: str = "", **pins: Any) -> fake_i2c.Chip:
        """Solder a chip (of that kind) to the bus, with the shunt that the options name."""
        if kind != "ina260":
            pins.setdefault("shunt_ohm", OPTIONS[kind]["shunt_mohm"] / 1e3)
        made = CHIPS[chip or kind](**pins)
        self.bus.chips[0x40] = made
        fake_i2c.install(self.monkeypatch, {1: self.bus})
        self.monkeypatch.setattr(ina_i2c, "clock", self.bus.now_ns)
        return made

    def meter(self, kind: str, **more: Any) -> Meter:
        table = {"kind": kind, "bus": 1, "address": 0x40, "scope": "board", **OPTIONS[kind], **more}
        return make_meter({key: value for key, value in table.items() if value is not None})

    def readings(self, meter: Meter, polls: int) -> list[Reading]:
        """What the sampler would get."""
        got = []
        for _ in range(polls):
            got += meter.read()
            self.bus.second += meter.poll_s
        return got

    def refusal(self, kind: str, **more: Any) -> MeterError:
        with pytest.raises(MeterError) as caught:
            self.meter(kind, **more).open()
        return caught.value


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Bench:
    return Bench(monkeypatch)


KINDS = pytest.mark.parametrize("kind", list(CHIPS))


@KINDS
def test_power_is_bus_voltage_times_current(bench: Bench, kind: str) -> None:
    chip = bench.put(kind, volts=lambda second: 5.1, amps=lambda second: 1.2)
    meter = bench.meter(kind)
    [channel] = meter.open()
    got = bench.readings(meter, 40)
    assert 15 < len(got) <= chip.sets(bench.bus.second)
    for index, _, watts in got:
        assert index == 0
        assert watts == pytest.approx(5.1 * 1.2, rel=0.012)
        assert abs(watts - 5.1 * 1.2) <= 0.002 * 6.12 + 1.5 * channel.resolution


@KINDS
def test_each_set_of_means_is_read_once_and_its_moment_is_within_the_lag(
    bench: Bench, kind: str
) -> None:
    chip = bench.put(kind, amps=lambda second: 0.2 + second / 10)
    meter = bench.meter(kind)
    [channel] = meter.open()
    got = bench.readings(meter, 200)
    values = [watts for _, _, watts in got]
    assert values == sorted(values)
    assert channel.averaging_s == channel.period_s
    for _, t_ns, watts in got:
        middle = t_ns / 1e9 - channel.period_s / 2
        late = middle - (watts / 5.0 - 0.2) * 10
        step = channel.resolution / 5.0 * 10
        assert -step - 0.001 <= late <= channel.lag_s + step + 0.002
    assert chip.sets(bench.bus.second) <= len(got) * 1.2


@KINDS
def test_the_declared_period_is_what_the_chip_was_set_to(bench: Bench, kind: str) -> None:
    chip = bench.put(kind)
    [channel] = bench.meter(kind).open()
    assert channel.period_s == pytest.approx(chip.set_s(), rel=0.001)
    assert chip.config & 0b111 == 0b111
    assert 0.8 < channel.duty < 1.0


@KINDS
def test_closing_puts_the_configuration_back_and_lets_go_of_the_bus(
    bench: Bench, kind: str
) -> None:
    chip = bench.put(kind)
    meter = bench.meter(kind)
    meter.open()
    assert chip.config != chip.RESET
    meter.close()
    assert chip.config == chip.RESET
    assert bench.bus.opened == 0
    meter.close()


@KINDS
def test_the_declared_errors_cover_the_worst_chip_of_the_data_sheet(
    bench: Bench, kind: str
) -> None:
    """A chip at its bounds at 25 °C, over a shunt 1 % off, is less wrong than declared."""
    worst = {
        "ina219": (200e-6, 0.005, 0.0, 0.005, 0.1),
        "ina226": (10e-6, 0.001, 7.5e-3, 0.001, 0.01),
        "ina260": (5e-3, 0.0015, 7.5e-3, 0.001, 1.0),
        "ina3221-i2c": (80e-6, 0.0025, 16e-3, 0.0025, 0.005),
    }
    offset_v, gain, bus_offset, bus_gain, ohm = worst[kind]
    off = 1.0 if kind == "ina260" else 1.01
    for amps in (0.3, 1.0, 2.0):
        bench.put(
            kind,
            volts=lambda second: 5.0 * (1 + bus_gain) + bus_offset,
            amps=lambda second, amps=amps: amps * off * (1 + gain) + offset_v / ohm,
        )
        meter = bench.meter(kind)
        [channel] = meter.open()
        [(_, _, watts), *_] = bench.readings(meter, 6)
        assert channel.gain_error is not None
        assert channel.offset_error_w is not None
        true = 5.0 * amps
        bound = channel.gain_error * true + channel.offset_error_w + channel.resolution
        assert 0 < watts - true <= bound * 1.02
        assert bound < 0.2 * true


def test_ina226_figures_are_those_of_its_data_sheet(bench: Bench) -> None:
    bench.put("ina226", volts=lambda second: 12.0)
    [channel] = bench.meter("ina226", shunt_tolerance_percent=0).open()
    assert channel.resolution == pytest.approx(2.5e-6 / 0.01 * 12)
    assert channel.offset_error_w == pytest.approx(12.5e-6 / 0.01 * 12, rel=1e-3)
    assert channel.gain_error == pytest.approx(0.0045 + 8.5e-3 / 12, rel=1e-3)
    assert "SBOS547" in channel.accuracy_source


def test_without_the_shunts_tolerance_the_gain_is_unknown(bench: Bench) -> None:
    bench.put("ina226")
    [unsaid] = bench.meter("ina226", shunt_tolerance_percent=None).open()
    assert unsaid.gain_error is None
    assert unsaid.offset_error_w is not None
    assert "tolerance is not in the profile" in unsaid.accuracy_source
    errors = []
    for percent in (0.1, 1):
        [said] = bench.meter("ina226", shunt_tolerance_percent=percent).open()
        assert f"shunt ± {percent} %" in said.accuracy_source
        errors.append(said.gain_error)
    assert errors[1] - errors[0] == pytest.approx(0.009)


def test_three_channels_of_an_ina3221_take_turns(bench: Bench) -> None:
    chip = bench.put("ina3221-i2c", amps=lambda second: 0.4)
    table = {"kind": "ina3221-i2c", "bus": 1, "address": 0x40, "scope": "rail", "shunt_mohm": 5}
    meter = make_meter(table)
    channels = meter.open()
    assert [channel.name for channel in channels] == ["channel 1", "channel 2", "channel 3"]
    assert channels[0].period_s == pytest.approx(chip.set_s())
    assert channels[0].duty < 1 / 3
    got = bench.readings(meter, 4)[:3]
    assert [index for index, _, _ in got] == [0, 1, 2]
    assert [watts for _, _, watts in got] == pytest.approx([2.0, 4.0, 6.0], rel=0.01)


def test_one_channel_of_an_ina3221_is_enabled_alone(bench: Bench) -> None:
    chip = bench.put("ina3221-i2c", amps=lambda second: 0.4)
    meter = bench.meter("ina3221-i2c", channel=2)
    meter.open()
    assert chip.config >> 12 == 0b010
    assert bench.readings(meter, 4)[0][2] == pytest.approx(4.0, rel=0.01)


@pytest.mark.parametrize(("amps", "range_bits"), [(0.4, 0), (0.8, 1), (1.6, 2), (3.2, 3)])
def test_an_ina219_takes_the_smallest_range_that_does(
    bench: Bench, amps: float, range_bits: int
) -> None:
    chip = bench.put("ina219", amps=lambda second: 0.1)
    [channel] = bench.meter("ina219", max_current_a=amps).open()
    assert chip.config >> 11 & 0b11 == range_bits
    offsets = (100e-6, 125e-6, 150e-6, 200e-6)
    assert channel.offset_error_w == pytest.approx(offsets[range_bits] / 0.1 * 5.0)


def test_chips_are_found_by_their_identity(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.put("ina226")
    bench.bus.chips = {
        0x40: fake_i2c.Ina226(),
        0x41: fake_i2c.Ina3221(),
        0x44: fake_i2c.Ina260(),
        0x4F: fake_i2c.Ina219(),
    }
    monkeypatch.setattr(ina_i2c.glob, "glob", lambda pattern: ["/dev/i2c-1"])
    monkeypatch.setattr(ina_i2c.os.path, "exists", lambda path: True)
    places = {"ina226": 0x40, "ina3221-i2c": 0x41, "ina260": 0x44, "ina219": 0x4F}
    for kind, address in places.items():
        assert meter_class(kind).find() == [{"kind": kind, "bus": 1, "address": address}]
    assert all(not chip.written for chip in bench.bus.chips.values())
    assert bench.bus.opened == 0
    bench.bus.claimed.add(0x40)
    with pytest.raises(MeterError) as caught:
        meter_class("ina226").find()
    assert caught.value.code == "no-device"


# faults


def test_fault_the_current_flows_backwards(bench: Bench) -> None:
    for kind in CHIPS:
        bench.put(kind, amps=lambda second: -0.5)
        meter = bench.meter(kind)
        meter.open()
        [(_, _, watts), *_] = bench.readings(meter, 4)
        assert watts == pytest.approx(-2.5, rel=0.02)


@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("kind", ["ina219", "ina226", "ina3221-i2c"])
def test_fault_more_current_than_the_range(bench: Bench, kind: str, sign: int) -> None:
    now = {"amps": 0.1}
    bench.put(kind, amps=lambda second: sign * now["amps"])
    meter = bench.meter(kind)
    meter.open()
    now["amps"] = 40.0
    with pytest.raises(MeterError) as caught:
        bench.readings(meter, 10)
    assert caught.value.code == "bad-reading"
    assert "shunt" in caught.value.fix


@pytest.mark.parametrize("kind", ["ina219", "ina226", "ina260"])
def test_fault_the_chip_tells_of_an_overflow(bench: Bench, kind: str) -> None:
    chip = bench.put(kind)
    meter = bench.meter(kind)
    meter.open()
    chip.overflow = True
    with pytest.raises(MeterError) as caught:
        bench.readings(meter, 3)
    assert caught.value.code == "bad-reading"


@KINDS
def test_fault_there_is_no_supply_at_the_pin(bench: Bench, kind: str) -> None:
    bench.put(kind, volts=lambda second: 0.01)
    error = bench.refusal(kind)
    assert error.code == "bad-reading"
    assert "VBUS" in error.fix


@KINDS
def test_fault_another_program_puts_it_to_sleep(bench: Bench, kind: str) -> None:
    chip = bench.put(kind)
    meter = bench.meter(kind)
    meter.open()
    chip.asleep = True
    with pytest.raises(MeterError) as caught:
        bench.readings(meter, 500)
    assert caught.value.code == "frozen"


def test_fault_nothing_answers_at_the_address(bench: Bench) -> None:
    bench.put("ina226")
    bench.bus.chips[0x45] = bench.bus.chips.pop(0x40)
    error = bench.refusal("ina226")
    assert error.code == "no-device"
    assert "0x45" in error.message
    bench.bus.chips.clear()
    assert "wires" in bench.refusal("ina226").fix


@pytest.mark.parametrize("kind", ["ina226", "ina260", "ina3221-i2c"])
def test_fault_it_is_another_chip(bench: Bench, kind: str) -> None:
    other = "ina260" if kind != "ina260" else "ina226"
    wrong = CHIPS[other]()
    bench.put(kind)
    bench.bus.chips[0x40] = wrong
    error = bench.refusal(kind)
    assert error.code == "not-supported"
    assert error.fix == f'Use kind = "{other}".'
    assert wrong.written == []


def test_fault_a_stranger_at_the_address_is_not_written_to(bench: Bench) -> None:
    for kind in CHIPS:
        bench.put(kind)
        stranger = fake_i2c.Ina226()
        stranger.identity, stranger.config = {}, 0x1234
        bench.bus.chips[0x40] = stranger
        assert bench.refusal(kind).code == "not-supported"
        assert stranger.written == []


def test_fault_an_ina226_is_not_taken_for_an_ina219(bench: Bench) -> None:
    bench.put("ina219")
    bench.bus.chips[0x40] = fake_i2c.Ina226()
    assert bench.refusal("ina219").fix == 'Use kind = "ina226".'


def test_an_ina219_that_a_killed_run_left_set_is_taken(bench: Bench) -> None:
    bench.put("ina219")
    bench.meter("ina219").open()  # and never closed
    meter = bench.meter("ina219")
    assert meter.open()


def test_fault_a_kernel_driver_has_the_chip(bench: Bench) -> None:
    bench.put("ina226")
    bench.bus.claimed.add(0x40)
    error = bench.refusal("ina226")
    assert error.code == "bad-option"
    assert 'kind = "hwmon"' in error.fix


def test_fault_the_bus_is_not_there(bench: Bench) -> None:
    bench.put("ina226")
    error = bench.refusal("ina226", bus=7)
    assert error.code == "no-device"
    assert "raspi-config nonint do_i2c 0" in error.fix


def test_fault_the_bus_may_not_be_opened(bench: Bench) -> None:
    bench.put("ina226")
    bench.bus.open_error = errno.EACCES
    error = bench.refusal("ina226")
    assert error.code == "permission"
    assert "-aG i2c" in error.fix


def test_fault_the_chip_goes_away_during_the_run(bench: Bench) -> None:
    chip = bench.put("ina226")
    meter = bench.meter("ina226")
    meter.open()
    chip.error = fake_i2c.EREMOTEIO
    with pytest.raises(MeterError) as caught:
        bench.readings(meter, 2)
    assert caught.value.code == "vanished"
    with pytest.raises(MeterError):
        meter.close()
    assert bench.bus.opened == 0


def test_fault_a_disturbed_transfer_is_tried_again_but_not_for_ever(bench: Bench) -> None:
    chip = bench.put("ina226")
    meter = bench.meter("ina226")
    meter.open()
    chip.disturbed = ina_i2c.TRIES - 1
    assert bench.readings(meter, 4)
    chip.disturbed = ina_i2c.TRIES
    with pytest.raises(MeterError):
        bench.readings(meter, 2)


def test_fault_the_chip_does_not_keep_its_configuration(
    bench: Bench, monkeypatch: pytest.MonkeyPatch
) -> None:
    chip = bench.put("ina226")
    monkeypatch.setattr(chip, "write", lambda register, value, second: None)
    assert bench.refusal("ina226").code == "not-supported"


def test_fault_smbus2_is_not_installed(bench: Bench, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "smbus2", None)
    error = bench.refusal("ina226")
    assert error.code == "driver-missing"
    assert "edgebench setup" in error.fix
    assert meter_class("ina226").packages == ("smbus2",)


def test_fault_a_pc_is_not_searched(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ina_i2c.glob, "glob", lambda pattern: ["/dev/i2c-0"])
    monkeypatch.setattr(ina_i2c.os.path, "exists", lambda path: False)
    monkeypatch.setitem(sys.modules, "smbus2", None)
    with pytest.raises(MeterError) as caught:
        meter_class("ina226").find()
    assert caught.value.code == "no-device"
    monkeypatch.setattr(ina_i2c.glob, "glob", lambda pattern: [])
    with pytest.raises(MeterError) as caught:
        meter_class("ina226").find()
    assert "Enable I2C" in caught.value.fix


@pytest.mark.parametrize(
    ("kind", "more"),
    [
        ("ina226", {"address": 0x50}),
        ("ina3221-i2c", {"address": 0x44}),
        ("ina3221-i2c", {"channel": 4}),
        ("ina226", {"shunt_mohm": 0}),
        ("ina226", {"shunt_mohm": -5}),
        ("ina226", {"shunt_mohm": "10"}),
        ("ina226", {"shunt_tolerance_percent": 100}),
        ("ina226", {"max_current_a": 9.0}),
        ("ina219", {"max_current_a": 3.3}),
        ("ina260", {"shunt_mohm": 2}),
        ("ina226", {"scope": None}),
    ],
)
def test_options_that_can_not_be_are_refused(bench: Bench, kind: str, more: dict[str, Any]) -> None:
    bench.put(kind)
    assert bench.refusal(kind, **more).code == "bad-option"


def test_a_shunt_must_be_told() -> None:
    with pytest.raises(MeterError) as caught:
        make_meter({"kind": "ina226", "bus": 1, "address": 0x40, "scope": "board"})
    assert "shunt_mohm" in caught.value.message


def test_the_fakes_calls_are_those_of_the_real_package() -> None:
    real = pytest.importorskip("smbus2").SMBus
    fake = fake_i2c.module({}).SMBus
    for name in ("read_word_data", "write_word_data", "close"):
        theirs = list(inspect.signature(getattr(real, name)).parameters)
        ours = list(inspect.signature(getattr(fake, name)).parameters)
        assert theirs[: len(ours)] == ours


@pytest.mark.skipif(sys.platform != "linux", reason="I2C character devices are Linux's")
def test_the_real_package_on_a_machine_without_the_bus_says_how_to_get_one() -> None:
    pytest.importorskip("smbus2")
    with pytest.raises(MeterError) as caught:
        ina_i2c.open_bus(199)
    assert caught.value.code == "no-device"
