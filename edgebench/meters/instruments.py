"""What the meters of the host share: stated accuracy, patience with a link, and arrival times.

An instrument beside the device has a clock of its own, or none; its readings reach this machine
late, sometimes later than other times, never early. ``ArrivalClock`` makes host time of its time.
"""

from __future__ import annotations

import socket
from typing import Any, Dict, Mapping, Optional, Tuple

from edgebench.meters.base import MeterError, Option, clock

#: For instruments whose maker's figure edgebench does not know: it stands in the profile.
ACCURACY: Dict[str, Option] = {
    "accuracy_percent": Option(
        (int, float), "bound of its relative error (1 = ± 1 %), by the data sheet of your model"
    ),
    "accuracy_w": Option((int, float), "bound of its absolute error in W, likewise"),
}

#: Two quartz clocks differ by less than this (each ± 50 ppm, and some for temperature).
DRIFT = 200e-6

#: Late arrivals for so long are no delay any more (seconds).
LATE_FOR_S = 2.0

#: A link may be silent for so long before the source counts as gone (seconds).
GONE_S = 10.0


def accuracy(options: Mapping[str, Any], unknown: str) -> Dict[str, Any]:
    """Accuracy for ``Channel``: what the profile states, or nothing and why.

    Raises:
        MeterError: bad-option: a negative bound.
    """
    stated = {name: options.get(name) for name in ACCURACY}
    for name, value in stated.items():
        if value is not None and value < 0:
            raise MeterError("bad-option", f"{name} is a bound: it can't be {value}")
    if all(value is None for value in stated.values()):
        return {"accuracy_source": unknown}
    percent, watts = stated["accuracy_percent"], stated["accuracy_w"]
    return {
        "gain_error": None if percent is None else percent / 100,
        "offset_error_w": None if watts is None else float(watts),
        "accuracy_source": "stated in the device's profile",
    }


class Patience:
    """Lets a link fail for a while: a lost packet is a gap, a lost plug is an error.

    Args:
        limit_s: how long nothing may answer.
    """

    def __init__(self, limit_s: float = GONE_S) -> None:
        self._limit_ns = int(limit_s * 1e9)
        self._answered_ns = clock()

    def answered(self) -> None:
        """The source said something."""
        self._answered_ns = clock()

    def failed(self, error: MeterError) -> None:
        """The source did not answer, for this reason.

        Raises:
            MeterError: vanished, with that reason, once it has lasted.
        """
        silent_ns = clock() - self._answered_ns
        if silent_ns > self._limit_ns:
            text = f"it has not answered for {silent_ns / 1e9:.0f} s: {error.message}"
            raise MeterError("vanished", text, error.fix) from error


class ArrivalClock:
    """The host's time for moments that an instrument counts by its own clock.

    Arrival less instrument time is the offset between the clocks plus a delay that is never
    negative, so the smallest of these differences is the best estimate. It may rise again only as
    fast as two clocks can drift apart; where everything has been late for a while, the
    instrument's time has jumped, and the estimate begins anew.

    Args:
        late_s: more than a delay can be.

    Attributes:
        offset_ns: host time less instrument time; None before the first arrival.
    """

    def __init__(self, late_s: float) -> None:
        self.offset_ns: Optional[int] = None
        self._late_ns = int(late_s * 1e9)
        self._seen_ns = 0
        self._late_since_ns: Optional[int] = None

    def arrived(self, source_ns: int, arrival_ns: int) -> int:
        """What the instrument calls ``source_ns`` was here at ``arrival_ns``; gives the offset."""
        found = arrival_ns - source_ns
        if self.offset_ns is not None:
            risen = self.offset_ns + int(DRIFT * max(arrival_ns - self._seen_ns, 0))
            if found - risen < self._late_ns:
                self._late_since_ns = None
            elif self._late_since_ns is None:
                self._late_since_ns = arrival_ns
            if self._late_since_ns is None or arrival_ns - self._late_since_ns < LATE_FOR_S * 1e9:
                found = min(found, risen)
            else:
                self._late_since_ns = None
        self.offset_ns = found
        self._seen_ns = arrival_ns
        return found

    def restart(self) -> None:
        """The instrument's time has jumped: forget what was learnt."""
        self.offset_ns = None
        self._late_since_ns = None


def host_and_port(text: str, port: int) -> Tuple[str, int]:
    """An address of a profile ("192.0.2.7", "plug.lan:8080") with its port.

    Raises:
        MeterError: bad-option.
    """
    host, colon, number = text.rpartition(":")
    if not colon:
        host, number = text, str(port)
    if not host or any(sign in text for sign in "/@ ") or not number.isdigit():
        raise MeterError(
            "bad-option",
            f"{text!r} is no address of a meter",
            'Write a name or an IPv4 address, and a port if need be: "192.0.2.7", "plug.lan:80".',
        )
    return host, int(number)


def unreachable(what: str, error: OSError) -> MeterError:
    """A failure of the network as a sentence."""
    reason = "no answer in time" if isinstance(error, TimeoutError) else (error.strerror or error)
    if isinstance(error, socket.gaierror):
        reason = "its name is not known"
    return MeterError(
        "no-device",
        f"{what} can't be reached: {reason}",
        "Is it on, and in the same network as this machine? Its address may have changed.",
    )
