"""Kasa plugs and strips over their real TCP protocol."""

from __future__ import annotations

import socket
import struct
from collections.abc import Callable, Iterator
from typing import Any

import pytest

from edgebench.meters import kasa
from edgebench.meters.base import MeterError, clock, make_meter
from edgebench.recording import MeterChannel
from tests.meters.servers.plugs import KasaPlug

Plugs = Callable[..., KasaPlug]


@pytest.fixture
def plugs() -> Iterator[Plugs]:
    made: list[KasaPlug] = []

    def make(**more: Any) -> KasaPlug:
        made.append(KasaPlug(**more))
        return made[-1]

    yield make
    for plug in made:
        plug.close()


def refusal(plug: KasaPlug, **more: Any) -> MeterError:
    with pytest.raises(MeterError) as caught:
        make_meter({"kind": "kasa", "host": plug.host, **more}).open()
    return caught.value


def test_the_cipher_is_that_of_a_known_message() -> None:
    # Captured by softScheck: {"system":{"get_sysinfo":{}}} under the first key 171.
    captured = bytes.fromhex("d0f281f88bff9af7d5ef94b6d1b4c09fec95e68fe187e8caf08bf68bf6")
    assert kasa.encrypt(b'{"system":{"get_sysinfo":{}}}') == captured
    assert kasa.decrypt(captured) == b'{"system":{"get_sysinfo":{}}}'


@pytest.mark.parametrize("hardware", [1, 2])
def test_both_hardware_versions_give_the_same_watts_and_joules(plugs: Plugs, hardware: int) -> None:
    plug = plugs(hardware=hardware)
    meter = make_meter({"kind": "kasa", "host": plug.host, "counter": True})
    channels = meter.open()
    before = clock()
    power, energy = meter.read()
    assert power[2] == pytest.approx(16.194)
    assert energy[2] == pytest.approx(90051 * 3600)
    assert before <= power[1] <= clock()
    assert [channel.quantity for channel in channels] == ["power", "energy"]
    assert channels[1].resolution == 3600
    for channel in channels:
        MeterChannel.model_validate(channel.document())


def test_an_outlet_of_a_strip_is_asked_for_by_its_identifier(plugs: Plugs) -> None:
    plug = plugs(outlets=6)
    meter = make_meter({"kind": "kasa", "host": plug.host, "outlet": 2})
    [channel] = meter.open()
    assert "outlet 2" in channel.source
    assert plug.questions[-1]["context"] == {"child_ids": ["8006AB02"]}


def test_a_strip_without_an_outlet_named_is_refused(plugs: Plugs) -> None:
    error = refusal(plugs(outlets=6))
    assert (error.code, "outlet" in error.fix) == ("bad-option", True)
    assert refusal(plugs(outlets=6), outlet=6).code == "bad-option"
    assert refusal(plugs(), outlet=0).code == "bad-option"


def test_milliwatts_under_the_name_of_watts_are_found_out(plugs: Plugs) -> None:
    plug = plugs()
    plug.realtime = {"voltage": 121.9, "current": 0.177, "power": 16194, "total": 1, "err_code": 0}
    error = refusal(plug)
    assert (error.code, "unit" in error.message) == ("bad-reading", True)


def test_millivolts_under_the_name_of_volts_are_found_out(plugs: Plugs) -> None:
    plug = plugs()
    plug.realtime = {"voltage": 121917, "current": 0.2, "power": 16.2, "total": 1, "err_code": 0}
    assert "unit" in refusal(plug).message


def test_both_forms_at_once_are_refused(plugs: Plugs) -> None:
    plug = plugs()
    plug.realtime = {"power": 16.2, "power_mw": 16194, "err_code": 0}
    assert refusal(plug).code == "bad-reading"


def test_a_plug_that_is_off_is_refused(plugs: Plugs) -> None:
    plug = plugs()
    plug.on = False
    assert "off" in refusal(plug).message


def test_zero_watts_is_no_reading(plugs: Plugs) -> None:
    plug = plugs()
    plug.power_w = 0.0
    assert refusal(plug).code == "bad-reading"


def test_a_plug_without_a_meter_is_named(plugs: Plugs) -> None:
    plug = plugs()
    plug.feature = "TIM"
    assert refusal(plug).code == "not-supported"
    other = plugs()
    other.realtime = {"err_code": -1, "err_msg": "module not support"}
    assert "module not support" in refusal(other).message


def test_a_closed_port_says_that_newer_firmware_speaks_klap() -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        host = f"127.0.0.1:{taken.getsockname()[1]}"
        with pytest.raises(MeterError) as caught:
            make_meter({"kind": "kasa", "host": host}).open()
    assert caught.value.code == "not-supported"
    assert "KLAP" in caught.value.fix


@pytest.mark.parametrize(
    "raw",
    [
        b"HTTP/1.0 400 Bad Request\r\n\r\n",  # a length of a gigabyte
        struct.pack(">I", 8) + b"\x00" * 8,
        struct.pack(">I", 2) + KasaPlug.xor(b"[]", inverse=False),
    ],
)
def test_another_protocol_is_named(plugs: Plugs, raw: bytes) -> None:
    plug = plugs()
    plug.raw = raw
    assert refusal(plug).code == "not-supported"


def test_an_answer_that_breaks_off_is_a_gap_during_a_run(plugs: Plugs) -> None:
    plug = plugs()
    meter = make_meter({"kind": "kasa", "host": plug.host})
    meter.open()
    plug.raw = struct.pack(">I", 100) + b"short"
    assert meter.read() == []
    plug.raw = None
    assert meter.read()[0][2] == pytest.approx(16.194)
