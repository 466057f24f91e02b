"""The Raspberry Pi 5's PMIC: a real process that answers as vcgencmd does."""

from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest

from edgebench.meters import pi5_pmic
from edgebench.meters.base import Meter, MeterError, make_meter
from edgebench.meters.pi5_pmic import Pi5Pmic, rail_powers

CAPTURED = Path(__file__).parent / "captured"
PI_5 = (CAPTURED / "pi5_pmic_read_adc.txt").read_text()
PI_4 = (CAPTURED / "pi4_pmic_read_adc.txt").read_text()


class Firmware:
    """A vcgencmd in a directory of its own; what it says can be changed."""

    def __init__(self, path: Path) -> None:
        self.answer = path / "answer"
        self.command = path / "vcgencmd"
        self.say(PI_5)

    def say(self, text: str, status: int = 0, before: str = "") -> None:
        self.answer.write_text(text)
        self.command.write_text(
            f'#!/bin/sh\n[ "$*" = pmic_read_adc ] || exit 9\n{before}\n'
            f"/bin/cat '{self.answer}'\nexit {status}\n"
        )
        self.command.chmod(self.command.stat().st_mode | stat.S_IXUSR)


@pytest.fixture
def firmware(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Firmware:
    monkeypatch.setenv("PATH", str(tmp_path))
    return Firmware(tmp_path)


def meter(**options: object) -> Meter:
    return make_meter({"kind": "pi5-pmic", **options})


def refusal(**options: object) -> MeterError:
    with pytest.raises(MeterError) as caught:
        meter(**options).open()
    return caught.value


def test_rails_are_paired_by_name_and_summed(firmware: Firmware) -> None:
    pmic = meter()
    [channel] = pmic.open()
    [(index, _, watts)] = pmic.read()
    assert index == 0
    by_hand = (
        0.08783370 * 3.70466400
        + 0.09759300 * 3.31248600
        + 0.19518600 * 1.80317300
        + 0.21958430 * 1.10671400
        + 0.0 * 0.60146460
        + 0.17566740 * 1.11159800
        + 0.37475720 * 0.80146440
        + 2.85760000 * 0.83875000
        + 0.00006105 * 3.31196200
        + 0.00036630 * 3.30860700
        + 0.00299145 * 0.79862700
        + 0.02393160 * 5.08664000
    )
    assert watts == pytest.approx(by_hand, rel=1e-9)
    assert (channel.scope, channel.quantity) == ("rail", "power")
    assert "12 rails" in channel.source
    assert "without USB" in channel.source
    assert channel.gain_error is None
    assert channel.resolution == pytest.approx(0.00749, rel=0.01)


def test_the_input_has_volts_alone_and_is_left_out() -> None:
    assert "EXT5V" not in rail_powers(PI_5)
    assert "BATT" not in rail_powers(PI_5)


def test_the_order_of_lines_and_the_adcs_numbers_mean_nothing(firmware: Firmware) -> None:
    lines = PI_5.splitlines()
    watts = sum(rail_powers(PI_5).values())
    shuffled = "\n".join(sorted(lines, key=lambda line: line[::-1]))
    renumbered = shuffled.replace("(", "(1")
    assert sum(rail_powers(renumbered).values()) == pytest.approx(watts, rel=1e-12)


def test_how_long_a_reading_takes_is_measured_and_declared(firmware: Firmware) -> None:
    firmware.say(PI_5, before="/bin/sleep 0.05")
    [channel] = meter(interval_ms=200).open()
    assert channel.lag_s >= 0.05
    assert channel.averaging_s == channel.lag_s
    assert channel.duty == min(1.0, channel.lag_s / 0.2)
    assert channel.period_s == 0.2
    assert f"takes {channel.lag_s * 1e3:.1f} ms" in channel.source


def test_it_is_found_on_a_pi_5(firmware: Firmware) -> None:
    assert Pi5Pmic.find() == [{"kind": "pi5-pmic"}]


def test_fault_there_is_no_vcgencmd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    assert refusal().code == "driver-missing"
    with pytest.raises(MeterError):
        Pi5Pmic.find()


@pytest.mark.parametrize("status", [0, 255])
def test_fault_a_pi_4_has_no_current_sensor(firmware: Firmware, status: int) -> None:
    firmware.say(PI_4, status)
    error = refusal()
    assert error.code == "not-supported"
    assert "INA2" in error.fix


@pytest.mark.parametrize(
    "text",
    [
        "VCHI initialization failed\n",
        "Can't open device file: /dev/vcio\n"
        "Try creating a device file with: sudo mknod /dev/vcio c 100 0\n",
    ],
)
def test_fault_the_firmwares_device_may_not_be_opened(
    firmware: Firmware, text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    firmware.say(text, 255)
    assert refusal().code == "no-device"
    really = os.path.exists
    monkeypatch.setattr(os.path, "exists", lambda path: path == "/dev/vcio" or really(path))
    error = refusal()
    assert error.code == "permission"
    assert "-aG video" in error.fix


def test_fault_a_value_is_no_number(firmware: Firmware) -> None:
    pmic = meter()
    pmic.open()
    for broken in ("nan", "1.2.3", "-"):
        firmware.say(PI_5.replace("=2.85760000A", f"={broken}A"))
        with pytest.raises(MeterError) as caught:
            pmic.read()
        assert caught.value.code == "bad-reading"


def test_fault_a_rail_is_missing_in_one_reading(firmware: Firmware) -> None:
    pmic = meter()
    pmic.open()
    firmware.say(PI_5.replace("DDR_VDD2_V", "DDR_VDDX_V"))
    with pytest.raises(MeterError) as caught:
        pmic.read()
    assert caught.value.code == "bad-reading"
    assert "DDR_VDD2" in caught.value.message


@pytest.mark.parametrize("text", ["", "what\n", "EXT5V_V volt(24)=5.09V\n"])
def test_fault_there_is_nothing_to_sum(firmware: Firmware, text: str) -> None:
    firmware.say(text)
    assert refusal().code == "bad-reading"


def test_fault_the_program_vanishes_during_the_run(firmware: Firmware) -> None:
    pmic = meter()
    pmic.open()
    firmware.command.unlink()
    with pytest.raises(MeterError) as caught:
        pmic.read()
    assert caught.value.code == "vanished"


def test_fault_the_program_hangs(firmware: Firmware, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pi5_pmic, "TIMEOUT_S", 0.05)
    firmware.say(PI_5, before="exec /bin/sleep 60")
    assert refusal().code == "io"


def test_fault_it_fails_for_another_reason(firmware: Firmware) -> None:
    firmware.say("out of cheese", 3)
    error = refusal()
    assert error.code == "io"
    assert "out of cheese" in error.message


@pytest.mark.parametrize("options", [{"interval_ms": 5}, {"interval_ms": 0.1}, {"rail": "EXT5V"}])
def test_options_that_can_not_be_are_refused(
    firmware: Firmware, options: dict[str, object]
) -> None:
    assert refusal(**options).code == "bad-option"
