"""Joulescope at the boundary of its driver.

The driver's Python interface is stood in for by a module of the same shape (binding.pyx at
jetperch/joulescope_driver); no instrument was at hand. Discovery runs the real driver where it is
installed.
"""

from __future__ import annotations

import importlib.util
import sys
import types
from collections.abc import Callable
from typing import Any, ClassVar

import pytest

from edgebench.meters import joulescope
from edgebench.meters.base import MeterError, clock, make_meter
from edgebench.recording import MeterChannel


class FakeDriver:
    """What ``Driver`` offers, and a way for tests to publish statistics."""

    paths: ClassVar[list[str]] = ["u/js220/000415"]
    made: ClassVar[list[FakeDriver]] = []
    refuse: ClassVar[type[Exception] | None] = None

    def __init__(self) -> None:
        self.published: list[tuple[str, Any]] = []
        self.opened: list[str] = []
        self.subscribers: dict[str, Callable[[str, Any], None]] = {}
        self.finalized = False
        FakeDriver.made.append(self)

    def device_paths(self) -> list[str]:
        return list(self.paths)

    def open(self, path: str, mode: Any = None) -> None:
        if self.refuse:
            raise self.refuse("jsdrv_open failed 6 IN_USE")
        self.opened.append(path)

    def close(self, path: str) -> None:
        self.opened.remove(path)

    def publish(self, topic: str, value: Any) -> None:
        self.published.append((topic, value))

    def subscribe(self, topic: str, flags: str, fn: Callable[[str, Any], None]) -> None:
        assert flags == "pub"
        self.subscribers[topic] = fn

    def unsubscribe(self, topic: str, fn: Callable[[str, Any], None]) -> None:
        assert self.subscribers.pop(topic) is fn

    def finalize(self) -> None:
        self.finalized = True

    def statistics(self, k: int, power_w: float, energy_j: float, *, block: int = 20_000) -> None:
        [(topic, fn)] = self.subscribers.items()
        fn(
            topic,
            {
                "time": {
                    "samples": {"value": [k * block, (k + 1) * block], "units": "samples"},
                    "sample_freq": {"value": 1_000_000, "units": "Hz"},
                },
                "signals": {"power": {"avg": {"value": power_w, "units": "W"}}},
                "accumulators": {"energy": {"value": energy_j, "units": "J"}},
                "source": "sensor",
            },
        )


@pytest.fixture
def driver(monkeypatch: pytest.MonkeyPatch) -> type[FakeDriver]:
    module = types.ModuleType("pyjoulescope_driver")
    module.Driver = FakeDriver  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "pyjoulescope_driver", module)
    monkeypatch.setattr(FakeDriver, "paths", ["u/js220/000415"])
    monkeypatch.setattr(FakeDriver, "made", [])
    monkeypatch.setattr(FakeDriver, "refuse", None)
    return FakeDriver


def test_power_and_energy_of_a_block(driver: type[FakeDriver]) -> None:
    meter = make_meter({"kind": "joulescope"})
    channels = meter.open()
    [fake] = driver.made
    assert ("u/js220/000415/s/stats/scnt", 20_000) in fake.published
    assert ("u/js220/000415/s/stats/ctrl", 1) in fake.published
    fake.statistics(0, 2.5, 0.05)
    fake.statistics(1, 2.6, 0.102)
    readings = meter.read()
    assert [(index, value) for index, _, value in readings] == [
        (0, 2.5),
        (1, 0.05),
        (0, 2.6),
        (1, 0.102),
    ]
    # The second block ends 20 ms after the first by the instrument's clock, though both are here.
    assert readings[2][1] > readings[0][1]
    assert readings[3][1] <= clock()
    assert [channel.quantity for channel in channels] == ["power", "energy"]
    assert channels[0].averaging_s == 0.02
    for channel in channels:
        MeterChannel.model_validate(channel.document())
    meter.close()
    assert fake.finalized
    assert fake.opened == [] and fake.subscribers == {}
    assert fake.published[-1] == ("u/js220/000415/s/stats/ctrl", 0)


def test_a_js110_counts_two_million_samples_a_second(
    driver: type[FakeDriver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "paths", ["u/js110/001234"])
    make_meter({"kind": "joulescope", "averaging_ms": 100}).open()
    assert ("u/js110/001234/s/stats/scnt", 200_000) in driver.made[0].published


def test_several_have_to_be_told_apart(
    driver: type[FakeDriver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "paths", ["u/js220/000415", "u/js220/000416"])
    with pytest.raises(MeterError, match="2 Joulescopes"):
        make_meter({"kind": "joulescope"}).open()
    make_meter({"kind": "joulescope", "device": "000416"}).open()
    assert driver.made[-1].opened == ["u/js220/000416"]
    with pytest.raises(MeterError) as caught:
        make_meter({"kind": "joulescope", "device": "000417"}).open()
    assert caught.value.code == "no-device"
    assert joulescope.Joulescope.find()[1] == {"kind": "joulescope", "device": "u/js220/000416"}


def test_an_instrument_in_use_is_named(
    driver: type[FakeDriver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "refuse", RuntimeError)
    meter = make_meter({"kind": "joulescope"})
    with pytest.raises(MeterError, match="IN_USE"):
        meter.open()
    meter.close()
    assert driver.made[-1].finalized


def test_a_block_of_lost_samples_is_no_reading(driver: type[FakeDriver]) -> None:
    meter = make_meter({"kind": "joulescope"})
    meter.open()
    driver.made[0].statistics(0, float("nan"), 0.0)
    assert meter.read() == []


def test_the_wrong_way_round_is_named(driver: type[FakeDriver]) -> None:
    meter = make_meter({"kind": "joulescope"})
    meter.open()
    driver.made[0].statistics(0, -2.5, -0.05)
    with pytest.raises(MeterError, match="wrong way round"):
        meter.read()


def test_another_document_is_named(driver: type[FakeDriver]) -> None:
    meter = make_meter({"kind": "joulescope"})
    meter.open()
    [(topic, fn)] = driver.made[0].subscribers.items()
    fn(topic, {"dtype": "stdmsg"})
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert caught.value.code == "bad-reading"


def test_an_instrument_that_falls_silent_has_vanished(
    driver: type[FakeDriver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joulescope, "READ_S", 0.001)
    monkeypatch.setattr(joulescope, "GONE_S", 0.0)
    meter = make_meter({"kind": "joulescope"})
    meter.open()
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert caught.value.code == "vanished"


def test_readings_that_nobody_fetches_are_not_dropped_in_silence(
    driver: type[FakeDriver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(joulescope, "WAITING", 2)
    meter = make_meter({"kind": "joulescope"})
    meter.open()
    for k in range(3):
        driver.made[0].statistics(k, 2.5, 0.05)
    with pytest.raises(MeterError, match="in time"):
        meter.read()


def test_another_model_is_not_read_by_guess(
    driver: type[FakeDriver], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(driver, "paths", ["u/js999/1"])
    with pytest.raises(MeterError) as caught:
        make_meter({"kind": "joulescope"}).open()
    assert caught.value.code == "not-supported"


def test_without_the_driver_it_says_how_to_install_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pyjoulescope_driver", None)
    with pytest.raises(MeterError) as caught:
        joulescope.Joulescope.find()
    assert caught.value.code == "driver-missing"


@pytest.mark.skipif(
    importlib.util.find_spec("pyjoulescope_driver") is None, reason="needs pyjoulescope_driver"
)
def test_the_real_driver_finds_nothing_where_nothing_is_plugged_in() -> None:
    try:
        found = joulescope.Joulescope.find()
    except MeterError as error:
        assert error.code == "no-device"
    else:
        assert all(entry["device"] for entry in found)  # a Joulescope is plugged in here
