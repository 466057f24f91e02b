"""What every meter is: a source of power or energy readings with declared properties.

A meter is one file of this package. It runs where it can see the device: *on the device* (sysfs,
I2C, NVML ...) or *on the host* (USB instruments, smart plugs). ``sampler.py`` opens and reads it in
a process of its own; nothing else does.

Files of meters that run on a device are sent there as they are, so they need Python >= 3.8 and the
standard library; a driver library is imported when the meter is opened, never before.

Units: W for power, J for energy, seconds, and nanoseconds of the monotonic clock of the machine
that the meter runs on (``time.perf_counter_ns``).
"""

from __future__ import annotations

import importlib
import time
from typing import Any, ClassVar, Dict, List, Mapping, Optional, Tuple, Type

#: The clock that stamps readings: the one that stamps inferences.
clock = time.perf_counter_ns

POWER, ENERGY = "power", "energy"

#: kind -> (module below edgebench.meters, class). The order is that of `edgebench meters`.
KINDS: Dict[str, Tuple[str, str]] = {
    "nvml": ("nvml", "Nvml"),
    "rapl": ("rapl", "Rapl"),
    "hwmon": ("hwmon", "Hwmon"),
    "ina3221": ("ina3221", "Ina3221"),
    "ina219": ("ina_i2c", "Ina219"),
    "ina226": ("ina_i2c", "Ina226"),
    "ina260": ("ina_i2c", "Ina260"),
    "ina3221-i2c": ("ina_i2c", "Ina3221I2c"),
    "pi5-pmic": ("pi5_pmic", "Pi5Pmic"),
    "battery": ("battery", "Battery"),
    "odpm": ("odpm", "Odpm"),
    "powermetrics": ("powermetrics", "Powermetrics"),
    "ppk2": ("ppk2", "Ppk2"),
    "joulescope": ("joulescope", "Joulescope"),
    "shelly": ("shelly", "Shelly"),
    "kasa": ("kasa", "Kasa"),
    "ptdaemon": ("ptdaemon", "Ptdaemon"),
}

#: Kinds that run on the host, beside the device. The others run on the device itself.
HOST_KINDS = ("ppk2", "joulescope", "shelly", "kasa", "ptdaemon")

#: Modules that meters on a device need besides their own.
COMMON_MODULES = ("__init__", "base", "sampler", "sysfs")


class MeterError(Exception):
    """A meter can't deliver: a stable code, what happened, and the sentence that mends it.

    Codes: ``no-device`` (nothing of this kind here), ``permission``, ``driver-missing`` (a library
    or program), ``not-supported`` (there, but it does not measure), ``bad-option`` (the profile),
    ``vanished`` (was there when the run began), ``frozen`` (readings never change), ``bad-reading``
    (what it said can't be: text that is no number, a unit that is off), ``charging`` (a battery
    that takes current says nothing about the load), ``io`` (another failure of the system).
    """

    def __init__(self, code: str, message: str, fix: str = "") -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.fix = fix

    def document(self) -> Dict[str, str]:
        """The same as JSON."""
        return {"code": self.code, "message": self.message, "fix": self.fix}


class Channel:
    """One quantity that a meter delivers, and what is known of its quality.

    Attributes:
        name: what the source itself calls it ("VDD_IN", "package-0", "total energy").
        quantity: "power" (W) or "energy" (J, a counter that only grows until it wraps).
        scope: what it sees: wall, board, module, soc, rail, package, gpu or battery.
        source: the instrument, for the tables ("ina226 on i2c-1 at 0x40").
        period_s: seconds between two new values of the source itself.
        resolution: one step of the value, in W or J.
        gain_error: bound of the relative error by its data sheet (0.006 = ± 0.6 %), None where
            none is published.
        offset_error_w: bound of the absolute error in W (for a counter: of its rate), or None.
        lag_s: a value may describe the device as it was up to so long ago.
        averaging_s: a power value is the mean over that time up to its moment (less the lag); 0 is
            instantaneous, None unknown.
        duty: share of the time that the sensor looks at all (1 = always).
        wrap_j: a counter starts again at 0 after so much; None: it does not in practice.
        accuracy_source: where gain and offset come from, or why they are unknown.
    """

    FIELDS: ClassVar[Tuple[str, ...]] = (
        "name",
        "quantity",
        "scope",
        "source",
        "period_s",
        "resolution",
        "gain_error",
        "offset_error_w",
        "lag_s",
        "averaging_s",
        "duty",
        "wrap_j",
        "accuracy_source",
    )

    def __init__(
        self,
        name: str,
        quantity: str,
        scope: str,
        source: str,
        *,
        period_s: float,
        resolution: float,
        gain_error: Optional[float] = None,
        offset_error_w: Optional[float] = None,
        lag_s: float = 0.0,
        averaging_s: Optional[float] = None,
        duty: float = 1.0,
        wrap_j: Optional[float] = None,
        accuracy_source: str = "not published",
    ) -> None:
        self.name = name
        self.quantity = quantity
        self.scope = scope
        self.source = source
        self.period_s = period_s
        self.resolution = resolution
        self.gain_error = gain_error
        self.offset_error_w = offset_error_w
        self.lag_s = lag_s
        self.averaging_s = averaging_s
        self.duty = duty
        self.wrap_j = wrap_j
        self.accuracy_source = accuracy_source

    def document(self) -> Dict[str, Any]:
        """The same as JSON (``edgebench.recording.MeterChannel``)."""
        return {name: getattr(self, name) for name in self.FIELDS}


#: One reading: the channel's index in what ``open`` returned, its moment (ns), its value (W or J).
Reading = Tuple[int, int, float]


class Option:
    """A key that a kind takes in its ``[[meters]]`` table."""

    def __init__(self, types: Tuple[type, ...], meaning: str, required: bool = False) -> None:
        self.types = types
        self.meaning = meaning
        self.required = required


class Meter:
    """One source. Subclasses set the class attributes and implement ``open``, ``read``, ``find``.

    Args:
        options: the profile's table without ``kind`` and ``scope``.
        scope: the profile's scope; None takes ``default_scope``.

    Raises:
        MeterError: bad-option.
    """

    #: Its name in profiles; set from KINDS' key by the class.
    kind: ClassVar[str]
    #: What it sees where the profile does not say; "" where only the profile can know.
    default_scope: ClassVar[str] = ""
    #: Keys of the profile's table -> what they mean (docs and checks).
    options_taken: ClassVar[Mapping[str, Option]] = {}
    #: Packages that the driver needs where it runs (`edgebench setup` installs them there).
    packages: ClassVar[Tuple[str, ...]] = ()
    #: ``read`` waits for the source's own pace; otherwise the sampler calls it every ``poll_s``.
    streaming: ClassVar[bool] = False

    def __init__(self, options: Mapping[str, Any], scope: Optional[str] = None) -> None:
        for name, value in options.items():
            option = self.options_taken.get(name)
            if option is None:
                known = ", ".join(sorted(self.options_taken)) or "none"
                raise MeterError(
                    "bad-option",
                    f"a {self.kind} meter has no key {name!r}",
                    f"It takes: {known}.",
                )
            whole = isinstance(value, bool) and bool not in option.types
            if whole or not isinstance(value, option.types):
                names = " or ".join(kind.__name__ for kind in option.types)
                raise MeterError(
                    "bad-option", f"{name} of a {self.kind} meter must be {names}, not {value!r}"
                )
        for name, option in self.options_taken.items():
            if option.required and name not in options:
                text = f"a {self.kind} meter needs {name}: {option.meaning}"
                raise MeterError("bad-option", text)
        self.options = dict(options)
        self.scope = scope or self.default_scope
        if not self.scope:
            raise MeterError(
                "bad-option",
                f"what a {self.kind} meter sees can't be known",
                'Add scope = "board" (or wall, module, soc, rail, battery) to its table.',
            )

    #: Seconds between two reads by the sampler, where it is not streaming; set by ``open``.
    poll_s: float = 0.1

    def open(self) -> List[Channel]:
        """Find the source and get it ready. The channels' order is that of the readings' index.

        Raises:
            MeterError: it is not there, or can't be read; says why and what to do.
        """
        raise NotImplementedError

    def read(self) -> List[Reading]:
        """What is new. A polled source answers at once; a streaming one within half a second.

        Raises:
            MeterError: vanished, bad-reading, charging, ...
        """
        raise NotImplementedError

    def close(self) -> None:
        """Let go of the source. Called once, also after a failure of ``open``."""

    @classmethod
    def find(cls) -> List[Dict[str, Any]]:
        """Tables (``kind`` and options) of the sources of this kind that are really here.

        Cheap and without side effects; for `edgebench meters`. Each is then opened by it.

        Raises:
            MeterError: none is here; says why (no such file, no permission, driver missing) and
                what would mend it.
        """
        raise NotImplementedError


def meter_class(kind: str) -> Type[Meter]:
    """The class of a kind; its module is imported here.

    Raises:
        MeterError: there is no such kind.
    """
    if kind not in KINDS:
        raise MeterError(
            "bad-option", f"there is no meter of kind {kind!r}", f"Kinds: {', '.join(KINDS)}."
        )
    module, name = KINDS[kind]
    found: Type[Meter] = getattr(importlib.import_module(f"edgebench.meters.{module}"), name)
    return found


def make_meter(spec: Mapping[str, Any]) -> Meter:
    """A meter from its profile's table.

    Raises:
        MeterError: bad-option.
    """
    options = {key: value for key, value in spec.items() if key not in ("kind", "scope")}
    return meter_class(str(spec["kind"]))(options, spec.get("scope"))


def modules_for(kinds: List[str]) -> List[str]:
    """Files (without ``.py``) that a device needs to read these kinds."""
    return [*COMMON_MODULES, *sorted({KINDS[kind][0] for kind in kinds if kind in KINDS})]


def now_between(begin_ns: int, end_ns: int) -> int:
    """The moment of a reading that was asked for between two looks at the clock."""
    return (begin_ns + end_ns) // 2


def read_text(path: str) -> str:
    """The stripped text of a small kernel file.

    Raises:
        MeterError: no-device (missing), permission, or io.
    """
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read().strip("\0 \t\r\n")
    except FileNotFoundError as error:
        raise MeterError("no-device", f"there is no {path}") from error
    except PermissionError as error:
        raise MeterError(
            "permission",
            f"{path} can't be read: permission denied",
            f"Let its reader have it: sudo chmod a+r {path} (until the next boot).",
        ) from error
    except OSError as error:
        raise MeterError("io", f"{path} can't be read: {error.strerror}") from error


def read_number(path: str) -> int:
    """The whole number in a small kernel file.

    Raises:
        MeterError: as ``read_text``; bad-reading where it holds no number.
    """
    text = read_text(path)
    try:
        return int(text)
    except ValueError as error:
        raise MeterError("bad-reading", f"{path} holds no number: {text[:40]!r}") from error
