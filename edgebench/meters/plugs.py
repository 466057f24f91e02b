"""What the smart plugs share: what a mains socket can say, and how a plug is read.

A plug answers a question about its power; the link to it may be silent for a while. Its energy
counter is coarse, so it is read only where the profile asks for it.
"""

from __future__ import annotations

import math
from typing import Any, Dict, List, Mapping, Optional, Tuple

from edgebench.meters.base import ENERGY, POWER, Channel, Meter, MeterError, Reading
from edgebench.meters.instruments import Patience

COUNTER_PERIOD_S = 60.0
#: What a mains socket can have (V). Outside, a unit is off.
MAINS_V = (80.0, 280.0)
#: More power than voltage times current: a unit is off. The slack is for rounding and for values
#: of different moments.
POWER_FACTOR_SLACK, POWER_SLACK_W = 1.5, 5.0


def check_mains(power_w: float, voltage_v: Optional[float], current_a: Optional[float]) -> None:
    """Power against voltage and current, where a plug tells them.

    Raises:
        MeterError: bad-reading: they can't belong together.
    """
    if voltage_v is not None and not MAINS_V[0] <= voltage_v <= MAINS_V[1]:
        raise MeterError("bad-reading", f"{voltage_v:g} V is no mains voltage: its unit is off")
    if voltage_v is None or current_a is None:
        return
    if power_w > POWER_FACTOR_SLACK * voltage_v * current_a + POWER_SLACK_W:
        raise MeterError(
            "bad-reading",
            f"{power_w:g} W can't come from {voltage_v:g} V and {current_a:g} A: a unit is off",
        )


def check_power(power_w: float, what: str) -> None:
    """Refuse power that a running device can't have.

    Raises:
        MeterError: bad-reading.
    """
    if power_w > 0:
        return
    if power_w < 0:
        raise MeterError(
            "bad-reading",
            f"{what} shows {power_w:g} W: power flows backwards, or it is wired the wrong way",
        )
    raise MeterError(
        "bad-reading",
        f"{what} shows 0 W: the device is not fed through it, or takes less than it can see",
        "Plug the device into it, or use a meter for small power (docs/meters).",
    )


def number(document: Mapping[str, Any], name: str, what: str) -> float:
    """A number of an answer.

    Raises:
        MeterError: bad-reading.
    """
    value = document.get(name)
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise MeterError("bad-reading", f"{what} says {name} = {value!r}, which is no number")
    if not math.isfinite(value):
        raise MeterError("bad-reading", f"{what} says {name} = {value}")
    return float(value)


class Plug(Meter):
    """A plug that tells its power, and perhaps an energy counter. Units: W, J."""

    #: For messages: "the Shelly at 192.0.2.7".
    _what: str
    #: Whether the profile asks for the counter.
    _counter: bool
    _patience: Patience

    def _status(self) -> Tuple[int, float, Optional[float]]:
        """When it was asked (ns), its power (W), and its counter (J), where it tells one.

        Raises:
            MeterError: no-device where it does not answer.
        """
        raise NotImplementedError

    def _channels(
        self,
        source: str,
        stated: Dict[str, Any],
        *,
        period_s: float,
        power_step_w: float,
        energy_step_j: float,
    ) -> List[Channel]:
        """Its channels, after one reading.

        Args:
            stated: accuracy, as of ``instruments.accuracy``.
            period_s: between two values of its power, which may be so old.

        Raises:
            MeterError: bad-reading, or not-supported: no counter where one was asked for.
        """
        _, power_w, energy_j = self._status()
        check_power(power_w, self._what)
        if self._counter and energy_j is None:
            raise MeterError("not-supported", f"{self._what} has no energy counter")
        power = Channel(
            "power",
            POWER,
            self.scope,
            source,
            period_s=period_s,
            resolution=power_step_w,
            lag_s=period_s,
            averaging_s=None,
            **stated,
        )
        if not self._counter:
            return [power]
        counter = Channel(
            "energy counter",
            ENERGY,
            self.scope,
            source,
            period_s=COUNTER_PERIOD_S,
            resolution=energy_step_j,
            lag_s=period_s,
            **stated,
        )
        return [power, counter]

    def read(self) -> List[Reading]:
        try:
            t_ns, power_w, energy_j = self._status()
        except MeterError as error:
            if error.code != "no-device":
                raise
            self._patience.failed(error)
            return []
        self._patience.answered()
        check_power(power_w, self._what)
        readings: List[Reading] = [(0, t_ns, power_w)]
        if self._counter:
            if energy_j is None:
                raise MeterError("bad-reading", f"{self._what} tells no energy any more")
            readings.append((1, t_ns, energy_j))
        return readings
