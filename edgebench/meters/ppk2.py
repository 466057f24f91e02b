"""Nordic's Power Profiler Kit II, over its USB serial port: current, 100,000 times a second.

Facts of the protocol are from Nordic's own program (pc-nrfconnect-ppk of NordicSemiconductor on
GitHub, at 8da7626: src/constants.ts, src/device/serialDevice.ts, src/actions/deviceActions.ts). Its
licence binds its code to Nordic's hardware, and the Python library ppk2-api is under the GPL:
neither is used here.

    0x19           metadata as text lines "R0: 1003.3506" up to "END": per range 0 to 4 the
                   constants R, GS, GI, O, S, I, UG; VDD (mV); mode (1 ampere, 2 source meter)
    0x11 mode      set the mode          0x0d high low   set the source's voltage (mV)
    0x0c 1         feed the device       0x06, 0x07      start and stop sampling
    a sample       32 bits, little-endian: 0-13 converter, 14-16 range, 18-23 counter, 24-31 logic

The current of a sample, with a = 4 · converter, and the constants of its range:

    i0 = (a - O) · (1.8 / 163840) / R
    i  = UG · (i0 · (GS · i0 + GI) + (S · VDD + I))                    A; VDD in V

A constant that is missing, not a number or 0 takes its default, as there. After a change of range
the instrument rings; the three samples from it on are replaced by a running mean, as there.

Power is current times voltage: the voltage that the kit gives out as a source, or, for an ampere
meter, what the profile says of the supply. The kit can't measure voltage.

Samples are averaged in blocks of 1 ms (``averaging_ms``), which is then the period of peak power.
The counter shows lost samples: a block that misses some is left out, nothing is filled in.
"""

from __future__ import annotations

import errno
import importlib
import math
import time
from typing import TYPE_CHECKING, Any, ClassVar, Dict, List, Mapping, Optional, Tuple

from edgebench.meters.base import (
    POWER,
    Channel,
    Meter,
    MeterError,
    Option,
    Reading,
    clock,
)
from edgebench.meters.instruments import ACCURACY, ArrivalClock, accuracy

if TYPE_CHECKING:
    import numpy as np
    import numpy.typing as npt

USB_VENDOR, USB_PRODUCT = 0x1915, 0xC00A
STOP, START, RUNNING, REGULATOR, MODE, METADATA = 0x07, 0x06, 0x0C, 0x0D, 0x11, 0x19
MODES = {"ampere": 1, "source": 2}
VOLTAGE_MV = (800, 5000)
#: Most that the kit can measure (Nordic's product page: up to 1 A).
LARGEST_A = 1.0

SAMPLE_NS = 10_000
SAMPLES_A_SECOND = 100_000
COUNTER = 64
RANGES = 5
DEFAULTS = {
    "r": (1031.64, 101.65, 10.15, 0.94, 0.043),
    "gs": (1.0,) * RANGES,
    "gi": (1.0,) * RANGES,
    "o": (0.0,) * RANGES,
    "s": (0.0,) * RANGES,
    "i": (0.0,) * RANGES,
    "ug": (1.0,) * RANGES,
}
ADC_STEP = 1.8 / 163840
#: The running means that replace ringing: in all ranges, and in the widest.
ALPHA, ALPHA_WIDEST, RINGING = 0.18, 0.06, 3

#: While the first samples come, the smallest delay of the link is not yet known (seconds).
SETTLE_S = 0.25
#: Silence after which the kit counts as gone (seconds).
GONE_S = 2.0
#: More samples lost than this share of a second: the link can't carry them.
LOST_SHARE = 0.05
#: Samples cross USB in packets and are read every few milliseconds (estimated, not published).
LAG_S = 0.01
READ_S = 0.1
#: No packet is so late (seconds); and so many samples show where the borders between them lie.
LATE_S = 0.05
ALIGN_SAMPLES = 16
GATHER_S = 0.004

UNKNOWN_ACCURACY = (
    "Nordic's figure differs by range and is not known here. Put yours into accuracy_percent"
)


class Converter:
    """Samples to amperes, by the constants of one kit.

    Args:
        metadata: its text.
        vdd_v: the source's voltage, which some constants depend on.
    """

    def __init__(self, metadata: Mapping[str, float], vdd_v: float) -> None:
        import numpy as np

        table = {
            name: np.array([metadata.get(f"{name}{k}") or values[k] for k in range(RANGES)])
            for name, values in DEFAULTS.items()
        }
        self._table = table
        self._shift = table["s"] * vdd_v + table["i"]
        self._mean = self._mean_widest = math.nan
        self._range = -1
        self._ringing = self._after = 0

    def amperes(self, words: npt.NDArray[np.uint32]) -> npt.NDArray[np.float64]:
        """Current of successive samples.

        Args:
            words: [n], each of a range below RANGES.

        Returns:
            [n] amperes.
        """
        import numpy as np

        ranges = ((words >> 14) & 7).astype(np.intp)
        code = (words & 0x3FFF).astype(np.float64) * 4
        of = {name: values[ranges] for name, values in self._table.items()}
        plain = (code - of["o"]) * (ADC_STEP / of["r"])
        found = of["ug"] * (plain * (of["gs"] * plain + of["gi"]) + self._shift[ranges])
        return self._without_ringing(found, ranges)

    def restart(self) -> None:
        """Samples are missing: the running means begin anew."""
        self._mean = self._mean_widest = math.nan
        self._range = -1
        self._ringing = self._after = 0

    def _without_ringing(
        self, current: npt.NDArray[np.float64], ranges: npt.NDArray[np.intp]
    ) -> npt.NDArray[np.float64]:
        import numpy as np

        if not len(current):
            return current
        if self._range < 0:
            self._range = int(ranges[0])
        changed = np.flatnonzero(np.diff(ranges, prepend=self._range))
        out = current.copy()
        at = 0
        for end in [*changed.tolist(), len(current)]:
            # One by one while it rings, then the rest up to the next change at once.
            while at < end and self._ringing:
                out[at] = self._step(float(current[at]), int(ranges[at]))
                at += 1
            self._advance(current[at:end])
            at = end
            if end < len(current):
                self._ringing, self._after = RINGING, 0
        self._range = int(ranges[-1])
        return out

    def _step(self, value: float, wide: int) -> float:
        """One sample while it rings: takes it into the means, and gives what stands for it."""
        widest = wide == RANGES - 1
        # The first two of the widest range are all spike: the means leave them out.
        if not (widest and self._after < 2):
            self._mean = _blend(self._mean, value, ALPHA)
            self._mean_widest = _blend(self._mean_widest, value, ALPHA_WIDEST)
        self._ringing -= 1
        self._after += 1
        mean = self._mean_widest if widest else self._mean
        return value if math.isnan(mean) else mean

    def _advance(self, values: npt.NDArray[np.float64]) -> None:
        """Take a stretch of samples into the running means."""
        if not len(values):
            return
        self._mean = _advanced(self._mean, values, ALPHA)
        self._mean_widest = _advanced(self._mean_widest, values, ALPHA_WIDEST)


def _blend(mean: float, value: float, alpha: float) -> float:
    return value if math.isnan(mean) else alpha * value + (1 - alpha) * mean


def _advanced(mean: float, values: npt.NDArray[np.float64], alpha: float) -> float:
    """An exponential mean after more values; those before the last 512 weigh below 1e-13."""
    import numpy as np

    if math.isnan(mean):
        mean, values = float(values[0]), values[1:]
    values = values[-512:]
    weights = (1 - alpha) ** np.arange(len(values) - 1, -1, -1)
    return float((1 - alpha) ** len(values) * mean + alpha * weights @ values)


def parse_metadata(text: str) -> Dict[str, float]:
    """The kit's constants, names in lower case; what is no number is left out.

    Raises:
        MeterError: not-supported: it is not the text of a PPK2.
    """
    found: Dict[str, float] = {}
    for line in text.splitlines():
        name, colon, value = line.partition(":")
        try:
            number = float(value) if colon else math.nan
        except ValueError:
            continue
        if math.isfinite(number):
            found[name.strip().lower()] = number
    if "r0" not in found or "gi0" not in found:
        raise MeterError(
            "not-supported",
            f"what answers is no Power Profiler Kit II: {text.strip()[:40]!r}",
        )
    return found


class Blocks:
    """Samples as they come to mean currents of whole blocks, with their moments.

    Args:
        converter: of this kit.
        length: samples a block.

    Attributes:
        received, lost: samples so far; lost ones as far as their counter and their time show.
    """

    def __init__(self, converter: Converter, length: int) -> None:
        import numpy as np

        self._converter = converter
        self._length = length
        self._rest = b""
        self._expected: Optional[int] = None
        self._index = 0
        self._held = np.empty(0)
        self._times = ArrivalClock(LATE_S)
        self._last_ns = 0
        self.received = self.lost = 0

    def take(self, data: bytes, arrival_ns: int) -> List[Tuple[int, float]]:
        """More bytes from the kit.

        Returns:
            Of each block that they complete: its end in host time (ns), and its mean current (A).
        """
        import numpy as np

        words = self._words(data)
        if not len(words):
            return []
        before_ns = self._times.offset_ns
        counters = ((words >> 18) & (COUNTER - 1)).astype(np.int64)
        expected = np.empty_like(counters)
        expected[0] = counters[0] if self._expected is None else self._expected
        expected[1:] = counters[:-1] + 1
        missing = np.mod(counters - expected, COUNTER)
        self._expected = int(counters[-1] + 1) % COUNTER
        blocks: List[Tuple[int, float]] = []
        edges = [*np.flatnonzero(missing).tolist(), len(words)]
        begin = 0
        for end in edges:
            ready = self._append(words[begin:end])
            # Before a gap, only the offset from before it is known.
            blocks += ready if end == len(words) else self._stamped(ready, before_ns)
            if end < len(words):
                self._break(int(missing[end]))
            begin = end
        last = len(blocks) - len(ready)
        offset_ns = self._times.arrived(self._index * SAMPLE_NS, arrival_ns)
        if before_ns is not None and offset_ns - before_ns > LATE_S * 1e9:
            # The counter tells losses up to 63; the time tells the rest.
            self.lost += (offset_ns - before_ns) // SAMPLE_NS
            return blocks[:last]
        return blocks[:last] + self._stamped(ready, offset_ns)

    def _words(self, data: bytes) -> npt.NDArray[np.uint32]:
        """Whole samples. Where bytes were lost, the borders between samples are found again."""
        import numpy as np

        data = self._rest + data
        shares = []
        for shift in range(4):
            whole = (len(data) - shift) // 4 * 4
            words = np.frombuffer(data[shift : shift + whole], dtype="<u4")
            steps = np.mod(np.diff(((words >> 18) & (COUNTER - 1)).astype(np.int64)), COUNTER)
            shares.append(float((steps == 1).mean()) if len(steps) >= ALIGN_SAMPLES else 0.0)
            if shift == 0 and (len(steps) < ALIGN_SAMPLES or shares[0] >= 0.5):
                break
        shift = int(np.argmax(shares))
        if shift:
            self._break(1)
            self._expected = None
        whole = (len(data) - shift) // 4 * 4
        self._rest = data[shift + whole :]
        words = np.frombuffer(data[shift : shift + whole], dtype="<u4")
        valid = ((words >> 14) & 7) < RANGES
        return words[valid]

    def _append(self, words: npt.NDArray[np.uint32]) -> List[Tuple[int, float]]:
        """Successive samples; gives the blocks that are whole: index of their end, mean."""
        import numpy as np

        held = np.concatenate((self._held, self._converter.amperes(words)))
        self._index += len(words)
        self.received += len(words)
        count = len(held) // self._length
        means = held[: count * self._length].reshape(count, self._length).mean(axis=1)
        self._held = held[count * self._length :]
        end = self._index - len(self._held)
        ends = [end - (count - 1 - k) * self._length for k in range(count)]
        return [(ends[k], float(means[k])) for k in range(count)]

    def _break(self, missing: int) -> None:
        """Samples are missing here: the block under way is not one."""
        self.lost += missing
        self._index += missing
        self._held = self._held[:0]
        self._converter.restart()
        self._times.restart()

    def _stamped(
        self, blocks: List[Tuple[int, float]], offset_ns: Optional[int]
    ) -> List[Tuple[int, float]]:
        if offset_ns is None:
            return []
        stamped = []
        for end, mean in blocks:
            # The estimate of the delay gets better; time still never runs backwards.
            self._last_ns = max(end * SAMPLE_NS + offset_ns, self._last_ns + 1)
            stamped.append((self._last_ns, mean))
        return stamped


class Ppk2(Meter):
    """A Power Profiler Kit II in the supply line. Unit: W, the mean over a block."""

    kind: ClassVar[str] = "ppk2"
    default_scope: ClassVar[str] = "board"
    packages: ClassVar[Tuple[str, ...]] = ("pyserial",)
    streaming: ClassVar[bool] = True
    options_taken: ClassVar[Mapping[str, Option]] = {
        "port": Option((str,), "its serial port; found by its USB numbers if left out"),
        "mode": Option((str,), '"source" (the kit feeds the device) or "ampere" (in its supply)'),
        "voltage_mv": Option((int,), "what the kit gives out, or what the supply in line has"),
        "averaging_ms": Option((int, float), "length of a block, 0.1 to 100 (default 1)"),
        **ACCURACY,
    }

    def open(self) -> List[Channel]:
        self._serial: Any = None
        serial = _pyserial()
        mode, voltage_mv = self._checked()
        port = self.options.get("port") or _only_port()
        self._what = f"the PPK2 at {port}"
        try:
            self._serial = serial.Serial(
                port, 115200, timeout=READ_S, write_timeout=1.0, exclusive=True
            )
        except (OSError, ValueError) as error:
            raise _refused(port, error) from error
        self._send(STOP)
        self._drain()
        metadata = parse_metadata(self._metadata())
        vdd_mv = float(voltage_mv) if mode == "source" else metadata.get("vdd", 3000.0)
        self._volts = voltage_mv / 1000
        if metadata.get("mode") != MODES[mode]:
            self._send(MODE, MODES[mode])
        if mode == "source":
            self._send(REGULATOR, voltage_mv >> 8, voltage_mv & 0xFF)
        self._send(RUNNING, 1)
        block_s = self.options.get("averaging_ms", 1) / 1000
        length = round(block_s * SAMPLES_A_SECOND)
        self._blocks = Blocks(Converter(metadata, vdd_mv / 1000), length)
        self._send(START)
        self._begun_ns = self._heard_ns = clock()
        self._checked_samples = self._checked_lost = 0
        return [
            Channel(
                "power",
                POWER,
                self.scope,
                f"PPK2 at {port}, {mode} meter at {voltage_mv} mV",
                period_s=block_s,
                resolution=200e-9 * self._volts,  # Nordic's program shows nothing below 0.2 µA
                lag_s=LAG_S,
                averaging_s=block_s,
                **accuracy(self.options, UNKNOWN_ACCURACY),
            )
        ]

    def read(self) -> List[Reading]:
        serial = _pyserial()
        try:
            data = self._serial.read(4)
            if data:
                time.sleep(GATHER_S)
                data += self._serial.read(self._serial.in_waiting)
        except (serial.SerialException, OSError) as error:
            raise MeterError(
                "vanished", f"{self._what} is gone: {error}", "Check its USB cable; avoid hubs."
            ) from error
        now_ns = clock()
        if not data:
            if now_ns - self._heard_ns > GONE_S * 1e9:
                text = f"{self._what} has sent nothing for {GONE_S:.0f} s"
                raise MeterError("vanished", text, "Unplug it, and plug it in again.")
            return []
        self._heard_ns = now_ns
        blocks = self._blocks.take(data, now_ns)
        self._check_losses()
        if now_ns - self._begun_ns < SETTLE_S * 1e9:
            return []
        for _, amperes in blocks:
            if amperes > LARGEST_A:
                raise MeterError(
                    "bad-reading",
                    f"{amperes:.3g} A is more than the PPK2 can measure ({LARGEST_A:g} A)",
                    "Use a meter for larger currents.",
                )
        return [(0, t_ns, amperes * self._volts) for t_ns, amperes in blocks]

    def close(self) -> None:
        port = getattr(self, "_serial", None)
        if port is None:
            return
        serial = _pyserial()
        try:
            # Its output stays on: switching it off would cut the device's power.
            port.write(bytes((STOP,)))
            port.flush()
        except (serial.SerialException, OSError):
            pass  # it is gone: there is nothing to stop
        port.close()
        self._serial = None

    def _checked(self) -> Tuple[str, int]:
        """Mode and voltage. There is no default: either could harm or unpower a device.

        Raises:
            MeterError: bad-option.
        """
        mode, voltage_mv = self.options.get("mode"), self.options.get("voltage_mv")
        if mode not in MODES or voltage_mv is None:
            raise MeterError(
                "bad-option",
                "how the PPK2 is wired can't be known",
                'Say it in its table: mode = "ampere" or "source", and voltage_mv.',
            )
        if mode == "source" and not VOLTAGE_MV[0] <= voltage_mv <= VOLTAGE_MV[1]:
            raise MeterError(
                "bad-option",
                f"a PPK2 gives out {VOLTAGE_MV[0]} to {VOLTAGE_MV[1]} mV, not {voltage_mv}",
            )
        if voltage_mv <= 0:
            raise MeterError("bad-option", f"voltage_mv can't be {voltage_mv}")
        if not 0.1 <= self.options.get("averaging_ms", 1) <= 100:
            raise MeterError("bad-option", "averaging_ms is 0.1 to 100")
        return mode, voltage_mv

    def _send(self, *command: int) -> None:
        serial = _pyserial()
        try:
            self._serial.write(bytes(command))
            self._serial.flush()
        except (serial.SerialException, OSError) as error:
            raise MeterError("io", f"{self._what} takes no command: {error}") from error

    def _drain(self) -> None:
        """Leave behind what an interrupted measurement still sends."""
        end = time.monotonic() + 2.0
        while time.monotonic() < end:
            if not self._serial.read(4096):
                return
        raise MeterError("io", f"{self._what} goes on sending", "Unplug it, and plug it in again.")

    def _metadata(self) -> str:
        self._send(METADATA)
        data, end = b"", time.monotonic() + 3.0
        while b"END" not in data and time.monotonic() < end:
            data += self._serial.read(max(self._serial.in_waiting, 1))
        if b"END" not in data:
            raise MeterError(
                "not-supported",
                f"{self._what} does not tell its constants",
                "Is it a Power Profiler Kit II, and its power switch on?",
            )
        return data[: data.index(b"END")].decode(errors="replace")

    def _check_losses(self) -> None:
        """Refuse to go on where the link does not carry the samples."""
        received = self._blocks.received - self._checked_samples
        lost = self._blocks.lost - self._checked_lost
        if received + lost < SAMPLES_A_SECOND:
            return
        self._checked_samples, self._checked_lost = self._blocks.received, self._blocks.lost
        if lost > LOST_SHARE * (received + lost):
            raise MeterError(
                "bad-reading",
                f"{self._what} loses {lost} of {received + lost} samples on the way",
                "Connect it without a hub, to another USB port, with another cable.",
            )

    @classmethod
    def find(cls) -> List[Dict[str, Any]]:
        return [{"kind": cls.kind, "port": port} for port in _ports()]


def _pyserial() -> Any:
    try:
        return importlib.import_module("serial")
    except ImportError as error:
        raise MeterError(
            "driver-missing",
            "pyserial is not installed",
            "Install it: pip install 'edgebench[ppk2]' (or pip install pyserial).",
        ) from error


def _ports() -> List[str]:
    """Ports of the kits that are plugged in. Newer firmware has two each: the first measures.

    Raises:
        MeterError: driver-missing, no-device.
    """
    _pyserial()
    listed = importlib.import_module("serial.tools.list_ports").comports()
    first: Dict[Any, str] = {}
    for port in sorted(listed, key=lambda port: (str(port.location), port.device)):
        if (port.vid, port.pid) == (USB_VENDOR, USB_PRODUCT):
            first.setdefault(port.serial_number, port.device)
    if not first:
        raise MeterError(
            "no-device",
            "no Power Profiler Kit II is plugged in",
            "Connect it by its USB DATA/POWER socket, and switch it on.",
        )
    return sorted(first.values())


def _only_port() -> str:
    found = _ports()
    if len(found) > 1:
        raise MeterError(
            "bad-option",
            f"{len(found)} PPK2 are plugged in: {', '.join(found)}",
            "Name the one that feeds the device as port.",
        )
    return found[0]


def _refused(port: str, error: Exception) -> MeterError:
    number = getattr(error, "errno", None)
    if number == errno.ENOENT:
        return MeterError("no-device", f"there is no {port}", "Leave port out to have it found.")
    if number in (errno.EACCES, errno.EPERM):
        return MeterError(
            "permission",
            f"{port} can't be opened: permission denied",
            "Join the group that owns it: sudo usermod -aG dialout $USER, then log in again.",
        )
    if number in (errno.EBUSY, errno.EAGAIN) or "lock" in str(error):
        return MeterError(
            "io",
            f"{port} is in use by another program",
            "Close it (nRF Connect Power Profiler?).",
        )
    return MeterError("io", f"{port} can't be opened: {error}")
