"""Shelly plugs: both generations over real HTTP, and what goes wrong with them."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edgebench.meters import shelly
from edgebench.meters.base import MeterError, clock, make_meter
from edgebench.meters.sampler import opened
from edgebench.recording import MeterChannel
from tests.meters.servers.plugs import ShellyPlug

Plugs = Callable[..., ShellyPlug]


@pytest.fixture
def plugs() -> Iterator[Plugs]:
    made: list[ShellyPlug] = []

    def make(generation: int, **more: Any) -> ShellyPlug:
        made.append(ShellyPlug(generation, **more))
        return made[-1]

    yield make
    for plug in made:
        plug.close()


def spec(plug: ShellyPlug, **more: Any) -> dict[str, Any]:
    return {"kind": "shelly", "host": plug.host, **more}


def refusal(plug: ShellyPlug, **more: Any) -> MeterError:
    with pytest.raises(MeterError) as caught:
        make_meter(spec(plug, **more)).open()
    return caught.value


@pytest.mark.parametrize("generation", [1, 2])
def test_power_comes_in_watts_with_the_moment_between_question_and_answer(
    plugs: Plugs, generation: int
) -> None:
    plug = plugs(generation)
    meter = make_meter(spec(plug))
    [channel] = meter.open()
    before = clock()
    [(index, t_ns, value)] = meter.read()
    assert (index, value) == (0, 12.5)
    assert before <= t_ns <= clock()
    assert (channel.quantity, channel.scope, channel.lag_s) == ("power", "wall", 1.0)
    MeterChannel.model_validate(channel.document())


def test_the_counter_of_the_first_generation_is_in_watt_minutes(plugs: Plugs) -> None:
    plug = plugs(1)
    plug.total_wh = 10.0
    meter = make_meter(spec(plug, counter=True))
    channels = meter.open()
    assert channels[1].resolution == 60.0
    assert meter.read()[1][2] == 10.0 * 3600


def test_the_counter_of_the_second_generation_is_in_watt_hours(plugs: Plugs) -> None:
    plug = plugs(2)
    plug.total_wh = 10.0
    meter = make_meter(spec(plug, counter=True))
    channels = meter.open()
    assert channels[1].resolution == pytest.approx(3.6)
    assert channels[1].period_s == 60
    assert meter.read()[1][2] == 10.0 * 3600


def test_a_meter_without_a_relay_is_read_through_pm1(plugs: Plugs) -> None:
    meter = make_meter(spec(plugs(2, component="pm1")))
    meter.open()
    assert meter.read()[0][2] == 12.5


def test_accuracy_is_unknown_unless_the_profile_states_it(plugs: Plugs) -> None:
    plug = plugs(2)
    [silent] = make_meter(spec(plug)).open()
    assert silent.gain_error is None
    assert "accuracy_percent" in silent.accuracy_source
    [stated] = make_meter(spec(plug, accuracy_percent=1)).open()
    assert (stated.gain_error, stated.offset_error_w) == (0.01, None)
    assert "profile" in stated.accuracy_source


def test_a_negative_bound_is_refused(plugs: Plugs) -> None:
    assert refusal(plugs(2), accuracy_percent=-1).code == "bad-option"


def test_a_relay_that_is_off_is_refused_not_read_as_zero(plugs: Plugs) -> None:
    for generation in (1, 2):
        plug = plugs(generation)
        plug.on, plug.power_w = False, 0.0
        error = refusal(plug)
        assert error.code == "bad-reading"
        assert "off" in error.message


def test_a_relay_that_is_switched_off_during_a_run_ends_the_readings(plugs: Plugs) -> None:
    plug = plugs(2)
    meter = make_meter(spec(plug))
    meter.open()
    plug.on, plug.power_w = False, 0.0
    with pytest.raises(MeterError, match="off"):
        meter.read()


def test_zero_watts_is_no_reading_of_a_running_device(plugs: Plugs) -> None:
    plug = plugs(2)
    plug.power_w = 0.0
    error = refusal(plug)
    assert (error.code, "0 W" in error.message) == ("bad-reading", True)


def test_power_that_flows_backwards_is_named(plugs: Plugs) -> None:
    plug = plugs(2)
    plug.power_w = -3.0
    assert "backwards" in refusal(plug).message


def test_a_voltage_off_by_a_thousand_is_named(plugs: Plugs) -> None:
    plug = plugs(2)
    plug.voltage_v = 231_400.0
    assert "unit" in refusal(plug).message


def test_power_that_voltage_and_current_do_not_allow_is_named(plugs: Plugs) -> None:
    plug = plugs(2)
    plug.power_w = 12_500.0  # milliwatts
    error = refusal(plug)
    assert (error.code, "unit" in error.message) == ("bad-reading", True)


def test_a_password_is_asked_for_in_a_sentence(plugs: Plugs) -> None:
    for generation in (1, 2):
        plug = plugs(generation)
        plug.auth = True
        error = refusal(plug)
        assert error.code == "permission"
        assert "authentication" in error.fix


def test_http_401_is_a_password_too(plugs: Plugs) -> None:
    plug = plugs(2)

    def locked(plug: ShellyPlug, path: str, query: dict[str, str]) -> tuple[int, bytes]:
        return (401, b"") if path != "/shelly" else plug.answer(path, query)

    plug.fault = locked
    assert refusal(plug).code == "permission"


@pytest.mark.parametrize("body", [b"<html>It works!</html>", b"[1, 2]", b'{"ok": true}', b""])
def test_what_is_no_shelly_is_named(plugs: Plugs, body: bytes) -> None:
    plug = plugs(2)
    plug.fault = lambda plug, path, query: (200, body)
    assert refusal(plug).code == "not-supported"


def test_a_web_server_without_the_page_is_no_shelly(plugs: Plugs) -> None:
    plug = plugs(2)
    plug.fault = lambda plug, path, query: (404, b"")
    assert refusal(plug).code == "not-supported"


def test_an_answer_that_breaks_off_is_no_reading(plugs: Plugs) -> None:
    plug = plugs(2)
    plug.fault = lambda plug, path, query: (0, b"HTTP/1.1 200 OK\r\nContent-Length: 99\r\n\r\n{")
    assert refusal(plug).code in ("no-device", "not-supported")


def test_a_shelly_without_a_meter_is_named(plugs: Plugs) -> None:
    plug = plugs(2)

    def bare(plug: ShellyPlug, path: str, query: dict[str, str]) -> tuple[int, bytes]:
        if path == "/shelly":
            return plug.answer(path, query)
        return 200, b'{"id": 0, "output": true, "temperature": {"tC": 40.0}}'

    plug.fault = bare
    assert refusal(plug).code == "not-supported"


def test_an_output_that_it_has_not_is_named(plugs: Plugs) -> None:
    for generation in (1, 2):
        error = refusal(plugs(generation), relay=3)
        assert (error.code, "3" in error.message) == ("bad-option", True)


def test_power_that_is_no_number_is_named(plugs: Plugs) -> None:
    plug = plugs(2)
    plug.power_w = None  # type: ignore[assignment]
    assert refusal(plug).code == "bad-reading"


def test_a_meter_that_calls_itself_invalid_is_believed(plugs: Plugs) -> None:
    plug = plugs(1)
    plug.valid = False
    assert "not valid" in refusal(plug).message
    second = plugs(2)
    second.errors = ["power_meter_failure"]
    assert "power_meter_failure" in refusal(second).message


def test_nobody_there_is_no_device(plugs: Plugs) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))  # bound, not listening: connections are refused
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(MeterError) as caught:
            make_meter({"kind": "shelly", "host": host}).open()
    assert caught.value.code == "no-device"


def test_a_plug_that_does_not_answer_times_out(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shelly, "TIMEOUT_S", 0.05)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        host = f"127.0.0.1:{silent.getsockname()[1]}"
        with pytest.raises(MeterError, match="no answer in time"):
            make_meter({"kind": "shelly", "host": host}).open()


@pytest.mark.parametrize("host", ["http://192.0.2.7", "", "a b", "admin@192.0.2.7", "plug:http"])
def test_what_is_no_address_is_a_bad_option(host: str) -> None:
    with pytest.raises(MeterError) as caught:
        make_meter({"kind": "shelly", "host": host}).open()
    assert caught.value.code == "bad-option"


def test_a_lost_answer_is_a_gap_and_a_lost_plug_an_error(
    plugs: Plugs, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug = plugs(2)
    now = [clock()]
    monkeypatch.setattr("edgebench.meters.instruments.clock", lambda: now[0])
    meter = make_meter(spec(plug))
    meter.open()
    plug.fault = lambda plug, path, query: (503, b"")
    now[0] += 9 * 10**9
    assert meter.read() == []
    plug.fault = None
    assert len(meter.read()) == 1
    plug.fault = lambda plug, path, query: (503, b"")
    now[0] += 9 * 10**9
    assert meter.read() == []
    now[0] += 2 * 10**9
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert caught.value.code == "vanished"


def test_a_plug_whose_minute_stands_still_is_frozen(
    plugs: Plugs, monkeypatch: pytest.MonkeyPatch
) -> None:
    plug = plugs(2)
    now = [clock()]
    monkeypatch.setattr(shelly, "clock", lambda: now[0])
    meter = make_meter(spec(plug))
    meter.open()
    now[0] += 170 * 10**9
    assert meter.read()
    now[0] += 20 * 10**9
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert caught.value.code == "frozen"
    plug.minute += 180
    assert meter.read()


def test_it_is_not_looked_for_and_says_how_to_name_it() -> None:
    with pytest.raises(MeterError) as caught:
        shelly.Shelly.find()
    assert "host" in caught.value.fix


def test_the_sampler_opens_it_once(plugs: Plugs) -> None:
    found = opened(spec(plugs(2)))
    assert found["readings"][0][2] == 12.5
