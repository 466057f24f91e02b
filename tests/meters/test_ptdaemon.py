"""PTDaemon's line protocol over real TCP."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from itertools import pairwise
from typing import Any

import pytest

from edgebench.meters import ptdaemon
from edgebench.meters.base import Meter, MeterError, clock, make_meter
from edgebench.recording import MeterChannel
from tests.meters.servers.analyser import PtDaemon

Daemons = Callable[..., PtDaemon]


@pytest.fixture
def daemons() -> Iterator[Daemons]:
    made: list[PtDaemon] = []

    def make(**more: Any) -> PtDaemon:
        made.append(PtDaemon(**more))
        return made[-1]

    yield make
    for daemon in made:
        daemon.close()


@pytest.fixture
def meters() -> Iterator[Callable[..., Meter]]:
    made: list[Meter] = []

    def make(daemon: PtDaemon, **more: Any) -> Meter:
        made.append(make_meter({"kind": "ptdaemon", "host": daemon.host, **more}))
        return made[-1]

    yield make
    for meter in made:
        meter.close()


Meters = Callable[..., Meter]


@pytest.mark.parametrize("reader", ["RL", "RL,*,*", "DC-RL"])
def test_samples_are_read_whatever_the_analyser(
    daemons: Daemons, meters: Meters, reader: str
) -> None:
    daemon = daemons(reader=reader)
    meter = meters(daemon)
    [channel] = meter.open()
    assert meter.read() == []
    daemon.sample("15:05:14.313", "22.970000")
    daemon.sample("15:05:15.322", "25.650000")
    readings = meter.read()
    assert [value for _, _, value in readings] == [22.97, 25.65]
    assert readings[1][1] - readings[0][1] == 1_009_000_000
    assert readings[1][1] <= clock()
    assert (channel.averaging_s, channel.scope) == (1.0, "wall")
    assert "WT310" in channel.source
    MeterChannel.model_validate(channel.document())
    meter.close()
    assert "Stop" in daemon.commands
    assert daemon.commands.count("Go,1000,0,edgebench") == 1


def test_interval_and_ranges_are_asked_for(daemons: Daemons, meters: Meters) -> None:
    daemon = daemons()
    meter = meters(daemon, interval_ms=200, volts=300, amps="Auto")
    [channel] = meter.open()
    meter.read()
    assert {"SR,V,300", "SR,A,Auto", "Go,200,0,edgebench"} <= set(daemon.commands)
    assert channel.period_s == 0.2


def test_both_orders_of_the_date_are_read(daemons: Daemons, meters: Meters) -> None:
    daemon = daemons()
    meter = meters(daemon)
    meter.open()
    daemon.sample("15:21:14.682", "22.950000", date="28-12-2020")
    daemon.sample("15:21:15.682", "22.950000", date="12-28-2020")
    assert len(meter.read()) == 2


def test_time_goes_on_over_midnight(daemons: Daemons, meters: Meters) -> None:
    daemon = daemons()
    meter = meters(daemon)
    meter.open()
    daemon.sample("23:59:59.500", "20.0")
    daemon.sample("00:00:00.500", "21.0")
    daemon.sample("00:00:01.500", "22.0")
    times = [t_ns for _, t_ns, _ in meter.read()]
    assert [b - a for a, b in pairwise(times)] == [10**9, 10**9]


@pytest.mark.parametrize("then", ["14:00:01.000", "14:59:59.000", "15:00:30.000", "18:00:00.000"])
def test_a_clock_that_is_set_does_not_move_readings(
    daemons: Daemons, meters: Meters, then: str
) -> None:
    daemon = daemons()
    meter = meters(daemon)
    meter.open()
    daemon.sample("15:00:00.000", "20.0")
    [first] = meter.read()
    daemon.sample(then, "20.0")
    before = clock()
    [second] = meter.read()
    assert first[1] < before <= second[1] <= clock()


def test_a_sample_that_comes_late_is_stamped_when_it_happened(
    daemons: Daemons, meters: Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = daemons()
    now = [clock()]
    monkeypatch.setattr(ptdaemon, "clock", lambda: now[0])
    meter = meters(daemon)
    meter.open()
    daemon.sample("15:00:00.000", "20.0")
    [(_, first, _)] = meter.read()
    now[0] += 1_400_000_000  # the second arrives 0.4 s late
    daemon.sample("15:00:01.000", "20.0")
    [(_, second, _)] = meter.read()
    assert second - first == pytest.approx(1e9, abs=1e6)


@pytest.mark.parametrize(
    ("watts", "said"),
    [
        ("-1.000000", "no power from its analyser"),
        ("nan", "no power from its analyser"),
        ("inf", "no power from its analyser"),
        ("overload", "no power from its analyser"),
        ("-22.500000", "wrong way round"),
    ],
)
def test_what_is_no_power_is_named(daemons: Daemons, meters: Meters, watts: str, said: str) -> None:
    daemon = daemons()
    meter = meters(daemon)
    meter.open()
    daemon.sample("15:00:00.000", watts)
    with pytest.raises(MeterError, match=said) as caught:
        meter.read()
    assert caught.value.code == "bad-reading"


def test_a_line_that_is_no_sample_is_named(daemons: Daemons, meters: Meters) -> None:
    daemon = daemons()
    meter = meters(daemon)
    meter.open()
    daemon.unread.append("Time,11-07-2020 17:54:49.071,ERROR,Bad volts reading nan from WT310")
    with pytest.raises(MeterError, match="ERROR"):
        meter.read()


def test_a_measurement_of_somebody_else_is_left_alone(daemons: Daemons, meters: Meters) -> None:
    daemon = daemons()
    daemon.go_reply = "Error: measurement already running"
    meter = meters(daemon)
    meter.open()
    with pytest.raises(MeterError, match="already running"):
        meter.read()
    meter.close()
    assert "Stop" not in daemon.commands


def test_a_range_that_is_refused_is_a_bad_option(daemons: Daemons, meters: Meters) -> None:
    with pytest.raises(MeterError) as caught:
        meters(daemons(), volts=7777).open()
    assert caught.value.code == "bad-option"


def test_what_is_no_ptdaemon_is_named(daemons: Daemons, meters: Meters) -> None:
    with pytest.raises(MeterError) as caught:
        meters(daemons(greeting="220 mail.example.org ESMTP")).open()
    assert caught.value.code == "not-supported"


def test_a_daemon_that_goes_away_has_vanished(daemons: Daemons, meters: Meters) -> None:
    daemon = daemons()
    meter = meters(daemon)
    meter.open()
    meter.read()
    daemon.hang_up = True
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert caught.value.code == "vanished"


def test_an_analyser_without_samples_has_vanished(
    daemons: Daemons, meters: Meters, monkeypatch: pytest.MonkeyPatch
) -> None:
    daemon = daemons()
    now = [clock()]
    monkeypatch.setattr(ptdaemon, "clock", lambda: now[0])
    meter = meters(daemon)
    meter.open()
    meter.read()
    now[0] += 12 * 10**9
    assert meter.read() == []
    now[0] += 2 * 10**9
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert caught.value.code == "vanished"


def test_nobody_listens_is_no_device() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(MeterError) as caught:
            make_meter({"kind": "ptdaemon", "host": host}).open()
    assert caught.value.code == "no-device"


def test_it_is_found_where_it_listens(daemons: Daemons, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ptdaemon, "PORT", int(daemons().host.rpartition(":")[2]))
    assert ptdaemon.Ptdaemon.find() == [{"kind": "ptdaemon"}]
    other = daemons(greeting="SSH-2.0-OpenSSH_9.6")
    monkeypatch.setattr(ptdaemon, "PORT", int(other.host.rpartition(":")[2]))
    with pytest.raises(MeterError):
        ptdaemon.Ptdaemon.find()
