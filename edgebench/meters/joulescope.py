"""Joulescope JS220 and JS110: statistics that the instrument computes, through its driver.

Jetperch's ``pyjoulescope_driver`` (Apache-2.0; entry_points/statistics.py and binding.pyx of
github.com/jetperch/joulescope_driver) publishes, every ``scnt`` samples of the converter, a
document under ``<device>/s/stats/value``:

    time.samples.value          first sample and the one after the last; time.sample_freq.value (Hz)
    signals.power.avg.value     mean over the block (W)
    accumulators.energy.value   since the instrument was opened (J)

The JS220 samples at 1 MHz and computes in the instrument; of a JS110 (2 MHz) the driver does, from
the streamed samples. A moment is the sample's number by the instrument's clock, brought to this
machine's by its arrival. Not tried with an instrument: what is proved is in docs/meters.
"""

from __future__ import annotations

import importlib
import math
import queue
from typing import Any, ClassVar, Dict, List, Mapping, Optional, Tuple

from edgebench.meters.base import (
    ENERGY,
    POWER,
    Channel,
    Meter,
    MeterError,
    Option,
    Reading,
    clock,
)
from edgebench.meters.instruments import ACCURACY, ArrivalClock, accuracy

#: model -> samples a second that ``scnt`` counts.
MODELS = {"js220": 1_000_000, "js110": 2_000_000}
DEFAULT_AVERAGING_MS = 20
#: Blocks cross USB and the driver's threads (estimated, not published).
LAG_S, LATE_S = 0.02, 0.2
GONE_S = 2.0
READ_S = 0.25
#: The driver's energy accumulator counts in steps of 2**-27 J (binding.pyx, int_scale).
ENERGY_STEP_J = 2.0**-27
#: Blocks that wait to be read: a minute of the shortest.
WAITING = 60_000

UNKNOWN_ACCURACY = (
    "differs by range; the data sheet was not at hand. Put your instrument's into accuracy_percent"
)


class Joulescope(Meter):
    """A Joulescope in the supply line. Units: W, the mean over a block; J since it was opened."""

    kind: ClassVar[str] = "joulescope"
    default_scope: ClassVar[str] = "board"
    packages: ClassVar[Tuple[str, ...]] = ("pyjoulescope_driver",)
    streaming: ClassVar[bool] = True
    options_taken: ClassVar[Mapping[str, Option]] = {
        "device": Option((str,), 'its path or serial number, where there are several ("000415")'),
        "averaging_ms": Option((int, float), "length of a block, 1 to 1000 (default 20)"),
        **ACCURACY,
    }

    def open(self) -> List[Channel]:
        self._driver: Any = None
        self._device: Optional[str] = None
        block_s = self.options.get("averaging_ms", DEFAULT_AVERAGING_MS) / 1000
        if not 0.001 <= block_s <= 1:
            raise MeterError("bad-option", "averaging_ms is 1 to 1000")
        stated = accuracy(self.options, UNKNOWN_ACCURACY)
        self._values: queue.Queue[Tuple[int, Any]] = queue.Queue(WAITING)
        self._overrun = False
        self._times = ArrivalClock(LATE_S)
        self._next_sample: Optional[int] = None
        self._last_ns = 0
        # Subscribing keeps this very object: a bound method is made anew each time it is named.
        self._on_value = self._arrived
        self._driver = _driver()
        path = self._chosen(_paths(self._driver))
        model, rate = _model(path)
        self._what = f"the Joulescope {path}"
        try:
            self._driver.open(path)
            self._device = path
            self._driver.subscribe(f"{path}/s/stats/value", "pub", self._on_value)
            if model == "js110":
                self._driver.publish(f"{path}/s/i/range/select", "auto")
                for signal in ("i", "v", "p"):
                    self._driver.publish(f"{path}/s/{signal}/ctrl", "on")
            else:
                self._driver.publish(f"{path}/s/i/range/mode", "auto")
            self._driver.publish(f"{path}/s/stats/scnt", round(block_s * rate))
            self._driver.publish(f"{path}/s/stats/ctrl", 1)
        except (RuntimeError, TimeoutError) as error:
            raise MeterError(
                "io",
                f"{self._what} can't be opened: {error}",
                "Close the Joulescope UI if it is running; on Linux, install Joulescope's udev "
                "rule so that you may use the device.",
            ) from error
        self._heard_ns = clock()
        source = f"Joulescope {model.upper()} {path.rsplit('/', 1)[-1]}"
        power = Channel(
            "power",
            POWER,
            self.scope,
            source,
            period_s=block_s,
            resolution=0.0,
            lag_s=LAG_S,
            averaging_s=block_s,
            **stated,
        )
        energy = Channel(
            "energy",
            ENERGY,
            self.scope,
            source,
            period_s=block_s,
            resolution=ENERGY_STEP_J,
            lag_s=LAG_S,
            **stated,
        )
        return [power, energy]

    def read(self) -> List[Reading]:
        try:
            blocks = [self._values.get(timeout=READ_S)]
        except queue.Empty:
            silent_s = (clock() - self._heard_ns) / 1e9
            if silent_s > GONE_S:
                text = f"{self._what} has sent nothing for {silent_s:.0f} s"
                raise MeterError("vanished", text, "Check its USB cable; avoid hubs.") from None
            return []
        while not self._values.empty():
            blocks.append(self._values.get_nowait())
        self._heard_ns = clock()
        if self._overrun:
            text = f"readings of {self._what} were not fetched in time"
            raise MeterError("bad-reading", text, "Choose a longer averaging_ms.")
        return [reading for t_ns, value in blocks for reading in self._readings(t_ns, value)]

    def close(self) -> None:
        driver, self._driver = getattr(self, "_driver", None), None
        if driver is None:
            return
        try:
            if self._device is not None:
                driver.publish(f"{self._device}/s/stats/ctrl", 0)
                driver.unsubscribe(f"{self._device}/s/stats/value", self._on_value)
                driver.close(self._device)
        except (RuntimeError, TimeoutError):
            pass  # it is gone: there is nothing to stop
        finally:
            driver.finalize()

    def _arrived(self, topic: str, value: Any) -> None:
        """Called by the driver, in a thread of its own."""
        try:
            self._values.put_nowait((clock(), value))
        except queue.Full:
            self._overrun = True

    def _readings(self, arrival_ns: int, value: Any) -> List[Reading]:
        """A block's readings: none where its samples were lost on the way (not a number)."""
        try:
            begin, end = value["time"]["samples"]["value"]
            rate = float(value["time"]["sample_freq"]["value"])
            power_w = float(value["signals"]["power"]["avg"]["value"])
            energy_j = float(value["accumulators"]["energy"]["value"])
        except (KeyError, TypeError, ValueError) as error:
            raise MeterError(
                "bad-reading", f"{self._what} sends something else than statistics: {error!r}"
            ) from error
        if self._next_sample is not None and begin < self._next_sample:
            self._times.restart()  # its counter began anew
        self._next_sample = end
        source_ns = round(end * 1e9 / rate)
        offset_ns = self._times.arrived(source_ns, arrival_ns)
        if not (math.isfinite(power_w) and math.isfinite(energy_j)):
            return []
        if power_w < 0 and energy_j < 0:
            raise MeterError(
                "bad-reading",
                f"{self._what} tells {power_w:g} W: it is in the supply the wrong way round",
                "Swap its IN and OUT.",
            )
        self._last_ns = max(source_ns + offset_ns, self._last_ns + 1)
        return [(0, self._last_ns, power_w), (1, self._last_ns, energy_j)]

    def _chosen(self, paths: List[str]) -> str:
        wanted = self.options.get("device")
        found = [path for path in paths if wanted in (None, path, path.rsplit("/", 1)[-1])]
        if len(found) == 1:
            return found[0]
        listed = ", ".join(paths)
        if not found:
            raise MeterError("no-device", f"there is no Joulescope {wanted}", f"Here: {listed}.")
        raise MeterError(
            "bad-option",
            f"{len(found)} Joulescopes are plugged in: {listed}",
            "Name the one that feeds the device as device.",
        )

    @classmethod
    def find(cls) -> List[Dict[str, Any]]:
        driver = _driver()
        try:
            return [{"kind": cls.kind, "device": path} for path in _paths(driver)]
        finally:
            driver.finalize()


def _driver() -> Any:
    try:
        module = importlib.import_module("pyjoulescope_driver")
    except ImportError as error:
        raise MeterError(
            "driver-missing",
            "Joulescope's driver is not installed",
            "Install it: pip install 'edgebench[joulescope]' (or pip install pyjoulescope_driver).",
        ) from error
    try:
        return module.Driver()
    except (RuntimeError, TimeoutError) as error:
        raise MeterError("io", f"Joulescope's driver does not start: {error}") from error


def _paths(driver: Any) -> List[str]:
    """The instruments that are plugged in.

    Raises:
        MeterError: no-device, io.
    """
    try:
        paths: List[str] = list(driver.device_paths())
    except (RuntimeError, TimeoutError) as error:
        raise MeterError("io", f"Joulescope's driver does not answer: {error}") from error
    if not paths:
        raise MeterError(
            "no-device",
            "no Joulescope is plugged in",
            "Connect it by USB; on Linux, install Joulescope's udev rule as well.",
        )
    return paths


def _model(path: str) -> Tuple[str, int]:
    for model, rate in MODELS.items():
        if model in path.lower():
            return model, rate
    raise MeterError(
        "not-supported", f"{path} is neither a JS220 nor a JS110: its statistics are not known here"
    )
