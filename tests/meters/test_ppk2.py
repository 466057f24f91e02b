"""The Power Profiler Kit II on a pseudo-terminal."""

from __future__ import annotations

import math
import sys
import time
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import numpy as np
import pytest

from edgebench.meters import ppk2
from edgebench.meters.base import Meter, MeterError, Reading, clock, make_meter
from edgebench.meters.ppk2 import Blocks, Converter, parse_metadata
from edgebench.recording import MeterChannel
from tests.meters.servers.profiler import METADATA, Profiler, samples, word

pytest.importorskip("serial")

Kits = Callable[..., Profiler]
Meters = Callable[..., Meter]

CONSTANTS = parse_metadata(METADATA.partition("END")[0])


def expected_amperes(code: int, range_: int, vdd_v: float) -> float:
    """The formula, by hand."""
    of = {name: CONSTANTS[f"{name}{range_}"] for name in ("r", "gi", "o", "s", "i")}
    gain = CONSTANTS[f"gs{range_}"] or 1.0  # 0 takes the default, as in Nordic's program
    plain = (code * 4 - of["o"]) * (1.8 / 163840 / of["r"])
    return plain * (gain * plain + of["gi"]) + of["s"] * vdd_v + of["i"]


@pytest.fixture
def kits() -> Iterator[Kits]:
    made: list[Profiler] = []

    def make(**more: Any) -> Profiler:
        made.append(Profiler(**more))
        return made[-1]

    yield make
    for kit in made:
        kit.close()


@pytest.fixture
def meters(kits: Kits) -> Iterator[Meters]:
    made: list[Meter] = []

    def make(kit: Profiler, **more: Any) -> Meter:
        options = {"mode": "ampere", "voltage_mv": 5000, "port": kit.port, **more}
        made.append(make_meter({"kind": "ppk2", **options}))
        return made[-1]

    yield make
    for meter in made:
        meter.close()


def read_until(meter: Meter, enough: int) -> list[Reading]:
    readings: list[Reading] = []
    end = time.monotonic() + 30
    while len(readings) < enough:
        assert time.monotonic() < end, "no readings"
        readings += meter.read()
    return readings


def words(codes: list[int], range_: int = 3, first: int = 0) -> np.ndarray[Any, Any]:
    return np.frombuffer(samples(codes, range_=range_, first=first), dtype="<u4")


def blocks_of(length: int = 10) -> Blocks:
    return Blocks(Converter(CONSTANTS, 3.7), length)


@pytest.mark.parametrize("range_", range(5))
@pytest.mark.parametrize("code", [60, 1000, 12_000])
def test_a_sample_becomes_amperes_by_the_kits_constants(range_: int, code: int) -> None:
    found = Converter(CONSTANTS, 3.7).amperes(words([code], range_))
    assert found[0] == pytest.approx(expected_amperes(code, range_, 3.7), rel=1e-12)


def test_a_constant_that_is_missing_or_nan_takes_its_default() -> None:
    parsed = parse_metadata("R0: 1003.35\nGI0: -nan\nGI1: 0.97\nHW: 9173\ngi0: 1.0\n")
    assert "o0" not in parsed
    assert Converter(parsed, 3.0).amperes(words([100], 0))[0] == pytest.approx(
        (400 * 1.8 / 163840 / 1003.35) * (1 + 400 * 1.8 / 163840 / 1003.35)
    )


def reference_filter(currents: list[float], ranges: list[int]) -> list[float]:
    """Ringing after a change of range as Nordic's program treats it, sample by sample."""
    mean = widest = math.nan
    previous, after, since = ranges[0], 0, 0
    out = []
    for value, range_ in zip(currents, ranges, strict=True):
        before = mean, widest
        mean = value if math.isnan(mean) else 0.18 * value + 0.82 * mean
        widest = value if math.isnan(widest) else 0.06 * value + 0.94 * widest
        if previous != range_ or after > 0:
            if previous != range_:
                since, after = 0, 3
            else:
                since += 1
            if range_ == 4:
                if since < 2:
                    mean, widest = before
                value = widest
            else:
                value = mean
            after -= 1
        previous = range_
        out.append(value)
    return out


def test_ringing_is_replaced_as_in_nordics_program_however_the_bytes_are_cut() -> None:
    rng = np.random.default_rng(4)
    ranges = np.repeat(rng.integers(0, 5, 120), rng.integers(1, 40, 120))
    codes = rng.integers(50, 3000, len(ranges))
    data = np.frombuffer(
        b"".join(
            word(int(c), int(r), k) for k, (c, r) in enumerate(zip(codes, ranges, strict=True))
        ),
        dtype="<u4",
    )
    plain = [expected_amperes(int(c), int(r), 3.7) for c, r in zip(codes, ranges, strict=True)]
    converter = Converter(CONSTANTS, 3.7)
    cuts = sorted({0, len(data), *rng.integers(1, len(data), 30).tolist()})
    found = np.concatenate([converter.amperes(data[a:b]) for a, b in pairwise(cuts)])
    assert found == pytest.approx(reference_filter(plain, ranges.tolist()), rel=1e-9)


def test_blocks_are_means_with_ends_one_block_apart() -> None:
    blocks = blocks_of()
    codes = [1000 + k for k in range(35)]
    data = samples(codes)
    # Cut within a sample: the rest is kept.
    first = blocks.take(data[:62], 10**9)
    second = blocks.take(data[62:], 10**9 + 200_000)
    found = first + second
    assert len(found) == 3
    plain = [expected_amperes(code, 3, 3.7) for code in codes]
    assert [mean for _, mean in found] == pytest.approx(
        [sum(plain[k : k + 10]) / 10 for k in (0, 10, 20)]
    )
    assert found[2][0] - found[1][0] == pytest.approx(100_000, abs=1)
    assert found[2][0] <= 10**9 + 200_000


def test_lost_samples_are_counted_and_their_block_is_left_out() -> None:
    blocks = blocks_of()
    found = blocks.take(samples([1000] * 15) + samples([1000] * 15, first=20), 10**9)
    assert blocks.lost == 5
    # 0-9 before the gap has no moment yet in the first chunk; 10-14 is no block; 20-29 is one.
    assert len(found) == 1
    more = blocks.take(samples([1000] * 10, first=35), 10**9 + 10**6)
    assert len(more) == 1
    assert blocks.lost == 5


def test_after_a_gap_nothing_from_before_it_is_mixed_in() -> None:
    blocks = blocks_of()
    blocks.take(samples([1000] * 20, range_=3), 10**9)
    found = blocks.take(samples([1000] * 10, range_=4, first=30), 10**9 + 10**6)
    assert [mean for _, mean in found] == pytest.approx([expected_amperes(1000, 4, 3.7)])


def test_a_lost_byte_is_found_again() -> None:
    blocks = blocks_of()
    data = samples([1000] * 400)
    blocks.take(data[:400], 10**9)
    found = []
    for k in range(10):
        found += blocks.take(data[401 + 100 * k : 501 + 100 * k], 10**9 + (k + 1) * 250_000)
    assert blocks.lost > 0
    assert [mean for _, mean in found] == pytest.approx(
        [expected_amperes(1000, 3, 3.7)] * len(found)
    )
    assert len(found) >= 15


def test_samples_of_a_range_that_does_not_exist_are_lost_ones() -> None:
    blocks = blocks_of()
    blocks.take(samples([1000] * 5) + word(1000, 6, 5) + samples([1000] * 12, first=6), 10**9)
    assert blocks.lost == 1


def test_a_loss_that_the_counter_can_not_show_is_seen_by_the_time() -> None:
    blocks = blocks_of()
    t_ns, first = 10**9, 0
    for _ in range(10):
        blocks.take(samples([1000] * 100, first=first), t_ns)
        t_ns, first = t_ns + 10**6, first + 100
    assert blocks.lost == 0
    t_ns += 6400 * 10_000  # 100 times 64 samples are missing: the counter goes on as if nothing
    found: list[tuple[int, float]] = []
    for _ in range(2500):
        found = blocks.take(samples([1000] * 100, first=first), t_ns)
        t_ns, first = t_ns + 10**6, first + 100
    assert blocks.lost == pytest.approx(6400, abs=200)
    assert found[-1][0] == pytest.approx(t_ns - 10**6, abs=10**6)


def test_moments_follow_a_clock_that_drifts_and_a_link_that_dawdles() -> None:
    rng = np.random.default_rng(7)
    blocks = blocks_of(100)
    true_ns, first, errors = 10**9, 0, []
    for k in range(4000):  # 40 s
        true_ns += round(10**7 * (1 + 50e-6))  # the kit's clock is 50 ppm slow
        found = blocks.take(
            samples([1000] * 1000, first=first), true_ns + int(rng.exponential(2e6))
        )
        first = (first + 1000) % 64
        if k > 100 and found:
            errors.append(found[-1][0] - true_ns)
    assert max(errors) < 6e6
    assert min(errors) > -1e6
    assert float(np.median(errors)) < 2e6


def test_readings_arrive_over_the_serial_port(kits: Kits, meters: Meters) -> None:
    kit = kits(stream=samples([1000] * 6400))
    meter = meters(kit)
    [channel] = meter.open()
    assert meter.streaming
    readings = read_until(meter, 20)
    watts = expected_amperes(1000, 3, 3.7) * 5.0  # VDD of the metadata, voltage of the profile
    assert [value for _, _, value in readings] == pytest.approx([watts] * len(readings))
    times = [t_ns for _, t_ns, _ in readings]
    assert all(b > a for a, b in pairwise(times))
    assert times[-1] <= clock()
    assert (channel.averaging_s, channel.period_s, channel.scope) == (0.001, 0.001, "board")
    assert channel.gain_error is None
    MeterChannel.model_validate(channel.document())
    assert kit.commands == [b"\x07", b"\x19", b"\x0c\x01", b"\x06"]


def test_as_a_source_it_sets_its_voltage_and_leaves_it_on(kits: Kits, meters: Meters) -> None:
    kit = kits(stream=samples([1000] * 6400))
    meter = meters(kit, mode="source", voltage_mv=3300)
    meter.open()
    readings = read_until(meter, 1)
    assert readings[0][2] == pytest.approx(expected_amperes(1000, 3, 3.3) * 3.3)
    meter.close()
    deadline = time.monotonic() + 10
    while kit.commands[-1] != b"\x07":
        assert time.monotonic() < deadline
    assert kit.commands[2:5] == [b"\x11\x02", b"\x0d\x0c\xe4", b"\x0c\x01"]
    assert b"\x0c\x00" not in kit.commands


def test_a_measurement_that_was_left_running_is_stopped_first(kits: Kits, meters: Meters) -> None:
    kit = kits(stream=samples([1000] * 6400))
    kit.started.set()
    meter = meters(kit)
    meter.open()
    assert read_until(meter, 5)


@pytest.mark.parametrize(
    "options",
    [
        {"mode": None},
        {"mode": "smu"},
        {"voltage_mv": None},
        {"mode": "source", "voltage_mv": 12_000},
        {"mode": "ampere", "voltage_mv": 0},
        {"averaging_ms": 0},
    ],
)
def test_how_it_is_wired_is_never_guessed(
    kits: Kits, meters: Meters, options: dict[str, Any]
) -> None:
    kit = kits()
    given = {"mode": "ampere", "voltage_mv": 5000, "port": kit.port, **options}
    table = {name: value for name, value in given.items() if value is not None}
    with pytest.raises(MeterError) as caught:
        make_meter({"kind": "ppk2", **table}).open()
    assert caught.value.code == "bad-option"
    assert kit.commands == []  # and nothing was sent to it


def test_another_serial_device_is_named(kits: Kits, meters: Meters) -> None:
    with pytest.raises(MeterError) as caught:
        meters(kits(metadata="Nokia 3310\nEND\n")).open()
    assert caught.value.code == "not-supported"


def test_a_device_that_says_nothing_is_named(
    kits: Kits, meters: Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    now = [0.0]

    def tick() -> float:
        now[0] += 0.5
        return now[0]

    monkeypatch.setattr(ppk2.time, "monotonic", tick)
    meter = meters(kits(metadata="R0: 1003.3506\n"))
    with pytest.raises(MeterError) as caught:
        meter.open()
    assert caught.value.code == "not-supported"


def test_a_pulled_cable_has_vanished(kits: Kits, meters: Meters) -> None:
    kit = kits(stream=samples([1000] * 6400))
    meter = meters(kit)
    meter.open()
    read_until(meter, 1)
    kit.unplug()
    with pytest.raises(MeterError) as caught:
        for _ in range(10_000):
            meter.read()
    assert caught.value.code == "vanished"


def test_a_kit_that_falls_silent_has_vanished(
    kits: Kits, meters: Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = meters(kits())
    meter.open()
    monkeypatch.setattr(ppk2, "GONE_S", 0.0)
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert caught.value.code == "vanished"


def test_more_than_it_can_measure_is_refused(kits: Kits, meters: Meters) -> None:
    code = next(c for c in range(0, 16_384, 100) if expected_amperes(c, 4, 3.7) > 1.1)
    meter = meters(kits(stream=samples([code] * 6400, range_=4)))
    meter.open()
    with pytest.raises(MeterError) as caught:
        read_until(meter, 10_000)
    assert caught.value.code == "bad-reading"
    assert "more than" in caught.value.message


def test_a_link_that_loses_too_much_is_refused(kits: Kits, meters: Meters) -> None:
    # Of each 64 samples, 16 are missing.
    meter = meters(kits(stream=samples([1000] * 48) * 100), averaging_ms=0.1)
    meter.open()
    with pytest.raises(MeterError) as caught:
        read_until(meter, 10**9)
    assert "loses" in caught.value.message


def test_a_port_that_is_not_there_or_taken_is_named(kits: Kits, meters: Meters) -> None:
    kit = kits(stream=samples([1000] * 640))
    holder = meters(kit)
    holder.open()
    with pytest.raises(MeterError, match="in use"):
        meters(kit).open()
    with pytest.raises(MeterError) as caught:
        meters(kit, port="/dev/ttyACM77").open()
    assert caught.value.code == "no-device"


class _Port:
    def __init__(self, device: str, serial: str, vid: int = 0x1915, pid: int = 0xC00A) -> None:
        self.device, self.serial_number, self.vid, self.pid = device, serial, vid, pid
        self.location = device[-1]


def test_kits_are_found_by_their_usb_numbers(monkeypatch: pytest.MonkeyPatch) -> None:
    listed: list[_Port] = [_Port("/dev/ttyACM4", "X", pid=0x521F)]
    monkeypatch.setattr("serial.tools.list_ports.comports", lambda: listed)
    with pytest.raises(MeterError) as caught:
        ppk2.Ppk2.find()
    assert caught.value.code == "no-device"
    listed += [_Port("/dev/ttyACM1", "A"), _Port("/dev/ttyACM0", "A")]
    assert ppk2.Ppk2.find() == [{"kind": "ppk2", "port": "/dev/ttyACM0"}]
    listed.append(_Port("/dev/ttyACM2", "B"))
    with pytest.raises(MeterError, match="2 PPK2"):
        make_meter({"kind": "ppk2", "mode": "ampere", "voltage_mv": 5000}).open()


def test_a_port_without_permission_says_which_group(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*given: Any, **more: Any) -> None:
        raise PermissionError(13, "Permission denied", "/dev/ttyACM0")

    monkeypatch.setattr("serial.Serial", refuse)
    table = {"kind": "ppk2", "mode": "ampere", "voltage_mv": 5000, "port": "/dev/ttyACM0"}
    with pytest.raises(MeterError) as caught:
        make_meter(table).open()
    assert (caught.value.code, "dialout" in caught.value.fix) == ("permission", True)


def test_without_pyserial_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "serial", None)
    with pytest.raises(MeterError) as caught:
        ppk2.Ppk2.find()
    assert caught.value.code == "driver-missing"
