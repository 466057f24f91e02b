"""TP-Link Kasa plugs and power strips with energy metering, over their first local protocol.

TCP port 9999. A message is its length (4 bytes, big-endian) and JSON under an autokey XOR: each
byte of the text is combined with the byte of the cipher before it, beginning with 171 (softScheck,
"Reverse engineering the TP-Link HS110", 2016). The plug closes the connection when it likes, so
each question has its own.

    {"system": {"get_sysinfo": {}}}      model, alias, relay_state, feature ("TIM:ENE" measures),
                                         children of a strip: id, state
    {"emeter": {"get_realtime": {}}}     HS110 hardware 1:  voltage (V), current (A), power (W),
                                                            total (kWh)
                                         later hardware:    voltage_mv, current_ma, power_mw,
                                                            total_wh

The two answers differ by a factor of 1,000 under one model name. Which it is stands in the names
of the keys, and power is held against voltage times current besides.

Newer firmware and Tapo devices speak KLAP, which is encrypted with the account's password. The
library that knows it (python-kasa) is under the GPL and is not used here.
"""

from __future__ import annotations

import json
import socket
import struct
from typing import Any, ClassVar, Dict, List, Mapping, Optional, Tuple

from edgebench.meters.base import (
    Channel,
    MeterError,
    Option,
    clock,
    now_between,
)
from edgebench.meters.instruments import (
    ACCURACY,
    Patience,
    accuracy,
    host_and_port,
    unreachable,
)
from edgebench.meters.plugs import Plug, check_mains, number

PORT = 9999
FIRST_KEY = 171
TIMEOUT_S = 2.0
POLL_S = 1.0
#: Not published. Sense's energy monitor, which reads these plugs, asks every 2 s.
UPDATE_S = 2.0
WATT_HOUR_J = 3600.0
LARGEST_ANSWER = 1 << 16

#: name -> (key and divisor of later hardware, key and divisor of the first). W, V, A, Wh.
KEYS = {
    "power": (("power_mw", 1000), ("power", 1)),
    "voltage": (("voltage_mv", 1000), ("voltage", 1)),
    "current": (("current_ma", 1000), ("current", 1)),
    "total": (("total_wh", 1), ("total", 1e-3)),
}

UNKNOWN_ACCURACY = "not published by TP-Link. Put your model's into accuracy_percent if you know it"


def encrypt(text: bytes) -> bytes:
    """Autokey XOR: the key of a byte is the cipher's byte before it."""
    key, cipher = FIRST_KEY, bytearray()
    for byte in text:
        key ^= byte
        cipher.append(key)
    return bytes(cipher)


def decrypt(cipher: bytes) -> bytes:
    """The inverse of ``encrypt``."""
    key, text = FIRST_KEY, bytearray()
    for byte in cipher:
        text.append(byte ^ key)
        key = byte
    return bytes(text)


def quantity(realtime: Mapping[str, Any], name: str, what: str) -> Optional[float]:
    """One of KEYS in W, V, A or Wh, whichever hardware says it; None where it is not told.

    Raises:
        MeterError: bad-reading: no number, or both forms at once.
    """
    told = [(key, divisor) for key, divisor in KEYS[name] if key in realtime]
    if not told:
        return None
    if len(told) > 1:
        raise MeterError("bad-reading", f"{what} tells both {told[0][0]} and {told[1][0]}")
    key, divisor = told[0]
    return number(realtime, key, what) / divisor


class Kasa(Plug):
    """A Kasa plug, or one outlet of a strip. Units: W, J."""

    kind: ClassVar[str] = "kasa"
    default_scope: ClassVar[str] = "wall"
    options_taken: ClassVar[Mapping[str, Option]] = {
        "host": Option((str,), "its address in the local network", required=True),
        "outlet": Option((int,), "which outlet of a power strip, from 0"),
        "counter": Option((bool,), "read its energy counter too: for windows of many minutes"),
        **ACCURACY,
    }
    poll_s = POLL_S

    def open(self) -> List[Channel]:
        self._address = host_and_port(self.options["host"], PORT)
        self._what = f"the Kasa plug at {self.options['host']}"
        self._counter = bool(self.options.get("counter", False))
        self._patience = Patience()
        self._child: Optional[str] = None
        about = self._about()
        self._child = self._find_child(about)
        outlet = "" if self._child is None else f", outlet {self.options['outlet']}"
        return self._channels(
            f"Kasa {about.get('model', 'plug')} at {self.options['host']}{outlet}",
            accuracy(self.options, UNKNOWN_ACCURACY),
            period_s=UPDATE_S,
            power_step_w=0.001,
            energy_step_j=WATT_HOUR_J,
        )

    def _about(self) -> Dict[str, Any]:
        """Its system information, after checks.

        Raises:
            MeterError: no-device, not-supported (KLAP, or no meter), bad-reading (off).
        """
        try:
            answer = self._ask({"system": {"get_sysinfo": {}}})
        except MeterError as error:
            if isinstance(error.__cause__, ConnectionRefusedError):
                raise MeterError(
                    "not-supported",
                    f"{self._what} does not speak the first Kasa protocol: port "
                    f"{self._address[1]} is closed",
                    "Newer firmware and Tapo devices speak KLAP only. Export their power with "
                    "another program, and use `edgebench energy attach`.",
                ) from error
            raise
        about = answer.get("system", {}).get("get_sysinfo")
        if not isinstance(about, dict) or about.get("err_code", 0) != 0:
            raise MeterError(
                "not-supported", f"what answers at {self.options['host']} is not a Kasa device"
            )
        # Strips tell no feature list on some firmware: get_realtime decides there.
        if "ENE" not in str(about.get("feature", "ENE")):
            raise MeterError(
                "not-supported", f"{self._what}, a {about.get('model')}, has no energy meter"
            )
        return about

    def _find_child(self, about: Mapping[str, Any]) -> Optional[str]:
        outlet = self.options.get("outlet")
        children = about.get("children") or []
        if not children:
            if outlet is not None:
                raise MeterError("bad-option", f"{self._what} is no strip: it has no outlets")
            self._require_on(about.get("relay_state"), self._what)
            return None
        if outlet is None or not 0 <= outlet < len(children):
            raise MeterError(
                "bad-option",
                f"{self._what} is a strip of {len(children)} outlets",
                f"Say which one feeds the device: outlet = 0 to {len(children) - 1}.",
            )
        child = children[outlet]
        self._require_on(child.get("state"), f"outlet {outlet} of {self._what}")
        # Some firmware tells the whole identifier, some only what follows the device's own.
        name, device = str(child["id"]), str(about.get("deviceId", ""))
        return name if name.startswith(device) else device + name

    def _require_on(self, state: Any, what: str) -> None:
        if state != 1:
            raise MeterError(
                "bad-reading",
                f"{what} is off: it feeds nothing",
                "Switch it on, with the device plugged into it.",
            )

    def _status(self) -> Tuple[int, float, Optional[float]]:
        """Moment, power (W) and energy (J)."""
        question: Dict[str, Any] = {"emeter": {"get_realtime": {}}}
        if self._child is not None:
            question["context"] = {"child_ids": [self._child]}
        begin_ns = clock()
        answer = self._ask(question)
        t_ns = now_between(begin_ns, clock())
        realtime = answer.get("emeter", {})
        realtime = realtime.get("get_realtime", realtime) if isinstance(realtime, dict) else {}
        if not isinstance(realtime, dict) or realtime.get("err_code", 0) != 0:
            said = realtime.get("err_msg") if isinstance(realtime, dict) else realtime
            raise MeterError("not-supported", f"{self._what} does not measure: {said}")
        power_w = quantity(realtime, "power", self._what)
        if power_w is None:
            raise MeterError("not-supported", f"{self._what} tells no power")
        check_mains(
            power_w,
            quantity(realtime, "voltage", self._what),
            quantity(realtime, "current", self._what),
        )
        total_wh = quantity(realtime, "total", self._what)
        return t_ns, power_w, None if total_wh is None else total_wh * WATT_HOUR_J

    def _ask(self, question: Mapping[str, Any]) -> Dict[str, Any]:
        """The answer to a question.

        Raises:
            MeterError: no-device (no answer), not-supported (not this protocol).
        """
        text = encrypt(json.dumps(question).encode())
        try:
            with socket.create_connection(self._address, timeout=TIMEOUT_S) as link:
                link.settimeout(TIMEOUT_S)
                link.sendall(struct.pack(">I", len(text)) + text)
                (length,) = struct.unpack(">I", _receive(link, 4))
                if length > LARGEST_ANSWER:
                    raise self._foreign()
                cipher = _receive(link, length)
        except OSError as error:
            raise unreachable(self._what, error) from error
        try:
            answer = json.loads(decrypt(cipher))
        except ValueError as error:
            raise self._foreign() from error
        if not isinstance(answer, dict):
            raise self._foreign()
        return answer

    def _foreign(self) -> MeterError:
        return MeterError(
            "not-supported",
            f"what answers at {self.options['host']} does not speak the Kasa protocol",
        )

    @classmethod
    def find(cls) -> List[Dict[str, Any]]:
        raise MeterError(
            "no-device",
            "smart plugs are not looked for in the network",
            'Name yours in the profile: [[meters]] kind = "kasa", host = "192.0.2.7".',
        )


def _receive(link: socket.socket, length: int) -> bytes:
    data = b""
    while len(data) < length:
        more = link.recv(length - len(data))
        if not more:
            raise ConnectionResetError(0, "it closes the connection")
        data += more
    return data
