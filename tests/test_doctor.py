"""What doctor says of readings, without a device."""

from __future__ import annotations

import pytest

from edgebench.doctor import _clock, _throttling
from edgebench.recording import Clock


@pytest.mark.parametrize(
    ("flags", "level", "what"),
    [
        (0x0, "ok", "never throttled or under-voltage since boot"),
        (0x1, "FAIL", "under-voltage right now (throttled=0x1)"),
        (0x4, "FAIL", "throttled right now (throttled=0x4)"),
        (0x50005, "FAIL", "under-voltage, throttled right now (throttled=0x50005)"),
        (0x10000, "FAIL", "under-voltage has occurred since boot (throttled=0x10000)"),
        (0x50000, "FAIL", "under-voltage, throttled has occurred since boot (throttled=0x50000)"),
        (0x80000, "warn", "soft temperature limit has occurred since boot (throttled=0x80000)"),
    ],
)
def test_throttle_flags_are_judged_as_the_verdict_judges_them(
    flags: int, level: str, what: str
) -> None:
    (found,) = _throttling({"throttled": flags})
    assert (found.level, found.what) == (level, what)
    assert bool(found.fix) == (level != "ok")


def test_a_device_without_flags_is_not_said_to_have_good_ones() -> None:
    assert list(_throttling({"throttled": None})) == []


@pytest.mark.parametrize(
    ("offset_s", "level", "what"),
    [
        (-0.0124, "ok", "clock offset -12.4 ms ± 0.3"),
        (3600.0, "warn", "its clock is 3600 s ahead of this machine's"),
        (-86400.0, "warn", "its clock is 86400 s behind this machine's"),
    ],
)
def test_a_wrong_clock_is_a_warning(offset_s: float, level: str, what: str) -> None:
    clock = Clock(
        offset_ns=0, bound_ns=300_000, method="test", wall_offset_ns=round(offset_s * 1e9)
    )
    (found,) = _clock(clock)
    assert (found.level, found.what) == (level, what)
