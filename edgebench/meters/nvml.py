"""NVIDIA GPUs through NVML: the total-energy counter and the power that the board reports.

``import pynvml`` (the package nvidia-ml-py) is a binding to the driver's own libnvidia-ml.so.1.
NVML answers mW and mJ; we give W and J. Scope: one GPU board with its memory, never a MIG slice.

What is known of the sensor:

- NVML API reference, "Device Queries": nvmlDeviceGetTotalEnergyConsumption counts mJ since the
  driver was loaded (Volta and newer); nvmlDeviceGetPowerUsage is the mean of the last second on
  Ampere and newer, and instantaneous on GA100 and older; accuracy ± 5 % is stated for Fermi and
  Kepler, none for newer boards. NVML_FI_DEV_POWER_INSTANT asks for the latest value on any.
- Yang, Adamek, Armour: "Part-time Power Measurements: nvidia-smi's Lack of Attention",
  arXiv 2312.02741 (as "Accurate and Convenient Energy Measurements for GPUs", SC24,
  doi 10.1109/SC41406.2024.00028): against an external meter on over 70 boards the error is about
  ± 5 % and differs between boards of one model; a new value comes every 20 or 100 ms; between, the
  sensor averages over a window that on A100 and H100 is 25 ms of each 100 ms. SENSORS has these.

What the counter adds up is not published. It can't know more than the sensor, so its share of time
is taken to be the sensor's, and the interval says so.
"""

from __future__ import annotations

import importlib
import os
import statistics
from time import sleep
from typing import Any, ClassVar, Dict, List, Mapping, NamedTuple, Optional, Tuple

from edgebench.meters.base import (
    ENERGY,
    POWER,
    Channel,
    Meter,
    MeterError,
    Option,
    Reading,
    clock,
    now_between,
)

#: NVML_FI_DEV_POWER_INSTANT; older bindings lack the name, not the field.
FIELD_POWER_INSTANT = 186

#: The bound of the board's relative error (arXiv 2312.02741, section 5).
GAIN_ERROR = 0.05

#: How long ``open`` watches the counter for its real period (seconds).
WATCH_S = 0.5


class Sensor(NamedTuple):
    """What a generation's sensor does: a new value every ``period_s``, of a window before it."""

    name: str
    period_s: float
    window_s: Optional[float]
    source: str

    @property
    def duty(self) -> float:
        """Share of the time that the window covers."""
        return 1.0 if self.window_s is None else min(1.0, self.window_s / self.period_s)


_PAPER = "arXiv 2312.02741"

#: CUDA compute capability -> sensor (arXiv 2312.02741, its table of update periods and windows).
SENSORS: Dict[Tuple[int, int], Sensor] = {
    (6, 0): Sensor("Pascal", 0.02, 0.01, _PAPER),
    (6, 1): Sensor("Pascal", 0.02, 0.01, _PAPER),
    (7, 0): Sensor("Volta", 0.02, 0.01, _PAPER),
    (7, 5): Sensor("Turing", 0.1, 0.1, _PAPER),
    (8, 0): Sensor("Ampere GA100", 0.1, 0.025, _PAPER),
    (8, 6): Sensor("Ampere GA10x", 0.1, 0.1, _PAPER),
    (9, 0): Sensor("Hopper", 0.1, 0.025, _PAPER),
}

#: Has Hopper's compute capability, and a window of its own.
GRACE_HOPPER = Sensor("Grace Hopper", 0.1, 0.02, _PAPER)

#: For every other board: the least attentive sensor that is known.
UNKNOWN = Sensor(
    "unknown", 0.1, 0.02, "nothing is published for this GPU; as the worst known (" + _PAPER + ")"
)

#: Names of NVML's own errors -> our code and what mends it.
ERRORS: Mapping[str, Tuple[str, str]] = {
    "NVML_ERROR_LIBRARY_NOT_FOUND": (
        "driver-missing",
        "Install NVIDIA's driver; in a container, start it with --gpus all.",
    ),
    "NVML_ERROR_DRIVER_NOT_LOADED": (
        "driver-missing",
        "Load the driver: sudo modprobe nvidia, or reboot after installing it.",
    ),
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": (
        "driver-missing",
        "The driver was updated under the running one: reboot.",
    ),
    "NVML_ERROR_NO_PERMISSION": (
        "permission",
        "Let this user read /dev/nvidiactl and /dev/nvidia0 (in a container: --gpus all).",
    ),
    "NVML_ERROR_NOT_SUPPORTED": ("not-supported", ""),
    "NVML_ERROR_FUNCTION_NOT_FOUND": ("not-supported", "Update NVIDIA's driver."),
    "NVML_ERROR_GPU_IS_LOST": (
        "vanished",
        "The GPU has fallen off its bus: see dmesg for its Xid, and reboot.",
    ),
    "NVML_ERROR_RESET_REQUIRED": ("vanished", "The GPU needs a reset: reboot."),
    "NVML_ERROR_UNINITIALIZED": ("vanished", ""),
}

#: On a Jetson NVML starts and answers nothing: its GPU shares the SoC's rails.
JETSON = 'Jetson: use kind = "ina3221", which reads the board\'s own power monitor.'


class Nvml(Meter):
    """One GPU. Channels: "total energy" (J) where it counts, "power" (W) where it tells."""

    kind = "nvml"
    default_scope = "gpu"
    packages = ("nvidia-ml-py",)
    options_taken: ClassVar[Mapping[str, Option]] = {
        "index": Option((int,), "which GPU, in NVML's order (that of PCI addresses)"),
        "uuid": Option((str,), "which GPU, by its UUID (nvidia-smi -L)"),
    }

    def __init__(self, options: Mapping[str, Any], scope: Optional[str] = None) -> None:
        super().__init__(options, scope)
        if "index" in self.options and "uuid" in self.options:
            raise MeterError("bad-option", "index and uuid both name the GPU", "Keep one of them.")
        if self.scope != "gpu":
            raise MeterError(
                "bad-option",
                f"NVML sees the GPU, not the {self.scope}",
                "Leave scope out of its table.",
            )
        self.nvml: Any = None
        self.initialised = False
        self.handle: Any = None
        self.label = ""
        #: How each channel is read, in their order.
        self.queries: List[str] = []

    def open(self) -> List[Channel]:
        """Initialise NVML, find the GPU, and ask once for all that it can tell.

        Raises:
            MeterError: driver-missing, no-device, not-supported (MIG, Jetson), permission, ...
        """
        self.nvml = load()
        start(self.nvml)
        self.initialised = True
        nvml = self.nvml
        self.handle, self.label = self.choose()
        self.refuse_mig()
        name = call(nvml, self.label, nvml.nvmlDeviceGetName, self.handle)
        driver = call(nvml, self.label, nvml.nvmlSystemGetDriverVersion)
        about = f"nvml {self.label}, {name}, driver {driver}"
        capability = tuple(
            call(nvml, self.label, nvml.nvmlDeviceGetCudaComputeCapability, self.handle)
        )
        sensor = SENSORS.get(capability, UNKNOWN)
        if sensor.name == "Hopper" and "GH200" in name:
            sensor = GRACE_HOPPER
        self.queries = [query for query in ("counter", "instant") if self.supports(query)]
        if "instant" not in self.queries and self.supports("usage"):
            self.queries.append("usage")
        if not self.queries:
            raise MeterError(
                "not-supported", f"NVML is here, but {self.label} ({name}) tells no power", JETSON
            )
        self.poll_s = sensor.period_s / 5
        return [self.channel(query, about, sensor, capability) for query in self.queries]

    def read(self) -> List[Reading]:
        """One value a channel, as NVML has it now: it may be the same as the last.

        Raises:
            MeterError: vanished (the GPU is lost), permission, not-supported, io.
        """
        readings = []
        for index, query in enumerate(self.queries):
            begin = clock()
            value = self.ask(query)
            readings.append((index, now_between(begin, clock()), value))
        return readings

    def close(self) -> None:
        """Shut NVML down; what it answers to that changes nothing any more."""
        if self.initialised:
            self.initialised = False
            try:
                self.nvml.nvmlShutdown()
            except self.nvml.NVMLError as error:
                raise told(self.nvml, self.label, error) from error

    @classmethod
    def find(cls) -> List[Dict[str, Any]]:
        """Every GPU that NVML lists."""
        nvml = load()
        start(nvml)
        try:
            count = call(nvml, "NVML", nvml.nvmlDeviceGetCount)
        finally:
            nvml.nvmlShutdown()
        if not count:
            raise MeterError("no-device", "NVIDIA's driver is here, but no GPU", "")
        return [{"kind": cls.kind, "index": index} for index in range(count)]

    def choose(self) -> Tuple[Any, str]:
        """The GPU's handle and what to call it.

        Without ``index`` and ``uuid`` it is the one that CUDA calls device 0: the first of
        CUDA_VISIBLE_DEVICES, which NVML itself does not obey. CUDA numbers unlike GPUs by speed
        unless CUDA_DEVICE_ORDER is PCI_BUS_ID, so there a UUID has to decide.
        """
        nvml = self.nvml
        count = call(nvml, "NVML", nvml.nvmlDeviceGetCount)
        uuid, index = self.options.get("uuid"), self.options.get("index")
        if uuid is None and index is None:
            visible = os.environ.get("CUDA_VISIBLE_DEVICES")
            first = "0" if visible is None else visible.split(",")[0].strip()
            if first.isdigit():
                index = int(first)
                self.refuse_mixed(count)
            elif first.startswith(("GPU-", "MIG-")):
                uuid = first
            else:
                raise MeterError(
                    "no-device",
                    f"CUDA_VISIBLE_DEVICES={visible!r} hides every GPU",
                    "Unset it, or name the GPU in the profile: index = 0.",
                )
        if uuid is not None:
            if uuid.startswith("MIG-"):
                raise MeterError(
                    "not-supported",
                    f"{uuid} is a MIG slice, and NVML has no power of one",
                    "Measure a whole GPU: turn MIG off (sudo nvidia-smi -mig 0).",
                )
            return self.by_uuid(str(uuid), count), f"GPU {uuid}"
        assert index is not None
        if not 0 <= index < count:
            raise MeterError(
                "no-device", f"there is no GPU {index} in NVML's list of {count}", "nvidia-smi -L"
            )
        return call(nvml, f"GPU {index}", nvml.nvmlDeviceGetHandleByIndex, index), f"GPU {index}"

    def by_uuid(self, uuid: str, count: int) -> Any:
        """The GPU whose UUID begins so (CUDA takes a unique beginning, too)."""
        nvml, found = self.nvml, []
        for index in range(count):
            handle = call(nvml, f"GPU {index}", nvml.nvmlDeviceGetHandleByIndex, index)
            if call(nvml, f"GPU {index}", nvml.nvmlDeviceGetUUID, handle).startswith(uuid):
                found.append(handle)
        if len(found) != 1:
            raise MeterError(
                "no-device", f"{len(found) or 'no'} GPUs here are called {uuid}", "nvidia-smi -L"
            )
        return found[0]

    def refuse_mixed(self, count: int) -> None:
        """CUDA's and NVML's numbers agree among equal GPUs, or in PCI order, and only there."""
        if count < 2 or os.environ.get("CUDA_DEVICE_ORDER") == "PCI_BUS_ID":
            return
        nvml = self.nvml
        names = {
            call(nvml, "NVML", nvml.nvmlDeviceGetName, nvml.nvmlDeviceGetHandleByIndex(index))
            for index in range(count)
        }
        if len(names) > 1:
            raise MeterError(
                "bad-option",
                f"unlike GPUs ({', '.join(sorted(names))}): CUDA's number may be another in NVML",
                'Name the one that runs: uuid = "GPU-..." (nvidia-smi -L), or set '
                "CUDA_DEVICE_ORDER=PCI_BUS_ID.",
            )

    def refuse_mig(self) -> None:
        """Under MIG the board's power belongs to all slices together."""
        nvml = self.nvml
        try:
            mode = nvml.nvmlDeviceGetMigMode(self.handle)[0]
        except nvml.NVMLError as error:
            if told(nvml, self.label, error).code != "not-supported":
                raise told(nvml, self.label, error) from error
            return
        if mode:
            raise MeterError(
                "not-supported",
                f"{self.label} is cut into MIG slices, and its power is that of all of them",
                "Turn MIG off for this GPU: sudo nvidia-smi -mig 0",
            )

    def supports(self, query: str) -> bool:
        """Whether this GPU answers a query.

        Raises:
            MeterError: it fails in another way than by not supporting it.
        """
        try:
            self.ask(query)
        except MeterError as error:
            if error.code == "not-supported":
                return False
            raise
        return True

    def ask(self, query: str) -> float:
        """The value of a query now, in W or J."""
        nvml = self.nvml
        if query == "counter":
            answer = call(nvml, self.label, nvml.nvmlDeviceGetTotalEnergyConsumption, self.handle)
            return float(answer) / 1e3
        if query == "usage":
            return float(call(nvml, self.label, nvml.nvmlDeviceGetPowerUsage, self.handle)) / 1e3
        fields = [FIELD_POWER_INSTANT]
        field = call(nvml, self.label, nvml.nvmlDeviceGetFieldValues, self.handle, fields)[0]
        if field.nvmlReturn == nvml.NVML_ERROR_INVALID_ARGUMENT:
            # An older driver does not know the field's number.
            raise MeterError("not-supported", f"{self.label}: the driver knows no instant power")
        if field.nvmlReturn != nvml.NVML_SUCCESS:
            raise told(nvml, self.label, nvml.NVMLError(field.nvmlReturn))
        return float(field.value.uiVal) / 1e3

    def channel(
        self, query: str, about: str, sensor: Sensor, capability: Tuple[int, ...]
    ) -> Channel:
        """What a query delivers."""
        seen = f"sensor: {sensor.source}"
        if query == "counter":
            period_s = self.counter_period()
            return Channel(
                "total energy",
                ENERGY,
                self.scope,
                f"{about}, nvmlDeviceGetTotalEnergyConsumption",
                period_s=period_s,
                resolution=0.001,
                gain_error=GAIN_ERROR,
                offset_error_w=0.0,
                lag_s=period_s,
                duty=sensor.duty,
                accuracy_source=f"± 5 % ({_PAPER}); what it adds up is not published; {seen}",
            )
        mean_of_a_second = query == "usage" and capability > (8, 0)
        how = "NVML_FI_DEV_POWER_INSTANT" if query == "instant" else "nvmlDeviceGetPowerUsage"
        return Channel(
            "power",
            POWER,
            self.scope,
            f"{about}, {how}",
            period_s=sensor.period_s,
            resolution=0.001,
            gain_error=GAIN_ERROR,
            offset_error_w=0.0,
            lag_s=sensor.period_s,
            averaging_s=1.0 if mean_of_a_second else sensor.window_s,
            duty=sensor.duty,
            accuracy_source=f"± 5 % ({_PAPER}); {seen}",
        )

    def counter_period(self) -> float:
        """Seconds between two steps of the counter, watched for a moment.

        A GPU draws watts even when idle, so a counter of mJ steps at every update. Where fewer
        than three steps are seen, its period is taken to be the whole time of watching.
        """
        pauses: List[int] = []
        value, stepped = self.ask("counter"), 0
        begin = now = clock()
        while now - begin < WATCH_S * 1e9:
            sleep(0.001)
            last, value = value, self.ask("counter")
            now = clock()
            if value != last:
                if stepped:
                    pauses.append(now - stepped)
                stepped = now
        return statistics.median(pauses) / 1e9 if len(pauses) > 1 else WATCH_S


def load() -> Any:
    """The module pynvml.

    Raises:
        MeterError: driver-missing.
    """
    try:
        return importlib.import_module("pynvml")
    except ImportError as error:
        raise MeterError(
            "driver-missing",
            "pynvml, NVIDIA's binding to NVML, is not installed",
            "Install it with `edgebench setup --device NAME`, or there: pip install nvidia-ml-py",
        ) from error


def start(nvml: Any) -> None:
    """Initialise NVML.

    Raises:
        MeterError: driver-missing, permission, io.
    """
    call(nvml, "NVML", nvml.nvmlInit)


def call(nvml: Any, label: str, function: Any, *arguments: Any) -> Any:
    """A call whose failure is told in our words."""
    try:
        return function(*arguments)
    except nvml.NVMLError as error:
        raise told(nvml, label, error) from error


def told(nvml: Any, label: str, error: Any) -> MeterError:
    """NVML's error as ours."""
    for name, (code, fix) in ERRORS.items():
        if getattr(nvml, name, None) == error.value:
            return MeterError(code, f"{label}: {error}", fix)
    return MeterError("io", f"{label}: {error}", "")
