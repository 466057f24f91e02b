"""A ``pynvml`` without a GPU: nvidia-ml-py's names and errors over a world that a test sets.

Only what edgebench and its benchmarks call is here. ``tests/meters/test_nvml.py`` compares every
name, constant and error class with the real package, where that is installed.

    world = World([Gpu(power_w=lambda s: 300.0)])
    install(monkeypatch, world)          # this process: `import pynvml` finds the fake
    as_package(directory, "tests.x:f")   # other processes: put the directory on PYTHONPATH

A GPU's sensor is as NVIDIA's are known to be (arXiv 2312.02741, section 4): every ``period_s`` it
publishes the mean of the power over the ``window_s`` before, and sees nothing between. The counter
adds that mean times the period, so it is as blind as the sensor. Units: mW and mJ, as in NVML.
"""

from __future__ import annotations

import bisect
import importlib
import math
import sys
import time
import types
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

NVML_SUCCESS = 0
ERRORS = {
    "NVML_ERROR_UNINITIALIZED": (1, "Uninitialized"),
    "NVML_ERROR_INVALID_ARGUMENT": (2, "Invalid Argument"),
    "NVML_ERROR_NOT_SUPPORTED": (3, "Not Supported"),
    "NVML_ERROR_NO_PERMISSION": (4, "Insufficient Permissions"),
    "NVML_ERROR_NOT_FOUND": (6, "Not Found"),
    "NVML_ERROR_DRIVER_NOT_LOADED": (9, "Driver Not Loaded"),
    "NVML_ERROR_TIMEOUT": (10, "Timeout"),
    "NVML_ERROR_LIBRARY_NOT_FOUND": (12, "NVML Shared Library Not Found"),
    "NVML_ERROR_FUNCTION_NOT_FOUND": (13, "Function Not Found"),
    "NVML_ERROR_GPU_IS_LOST": (15, "GPU is lost"),
    "NVML_ERROR_RESET_REQUIRED": (16, "GPU requires restart"),
    "NVML_ERROR_LIB_RM_VERSION_MISMATCH": (
        18,
        "RM has detected an NVML/RM version mismatch.",
    ),
    "NVML_ERROR_UNKNOWN": (999, "Unknown Error"),
}
CONSTANTS = {
    "NVML_SUCCESS": NVML_SUCCESS,
    "NVML_DEVICE_ARCH_KEPLER": 2,
    "NVML_DEVICE_ARCH_MAXWELL": 3,
    "NVML_DEVICE_ARCH_PASCAL": 4,
    "NVML_DEVICE_ARCH_VOLTA": 5,
    "NVML_DEVICE_ARCH_TURING": 6,
    "NVML_DEVICE_ARCH_AMPERE": 7,
    "NVML_DEVICE_ARCH_ADA": 8,
    "NVML_DEVICE_ARCH_HOPPER": 9,
    "NVML_DEVICE_ARCH_BLACKWELL": 10,
    "NVML_DEVICE_ARCH_UNKNOWN": 0xFFFFFFFF,
    "NVML_DEVICE_MIG_DISABLE": 0,
    "NVML_DEVICE_MIG_ENABLE": 1,
    "NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION": 83,
    "NVML_FI_DEV_POWER_AVERAGE": 185,
    "NVML_FI_DEV_POWER_INSTANT": 186,
    "NVML_VALUE_TYPE_UNSIGNED_INT": 1,
}


class NVMLError(Exception):
    """As in nvidia-ml-py: made with a code, it becomes the subclass of that code."""

    classes: ClassVar[dict[int, type[NVMLError]]] = {}
    value: int

    def __new__(cls, value: int) -> NVMLError:
        made = Exception.__new__(NVMLError.classes.get(value, cls) if cls is NVMLError else cls)
        made.value = value
        return made

    def __str__(self) -> str:
        texts = dict(ERRORS.values())
        return texts.get(self.value, f"NVML Error with code {self.value}")


def _error_class(name: str, code: int) -> type[NVMLError]:
    words = name.removeprefix("NVML_ERROR_").split("_")
    made = type(
        "NVMLError_" + "".join(word.capitalize() for word in words),
        (NVMLError,),
        {"__new__": lambda cls, *_: NVMLError.__new__(cls, code)},
    )
    NVMLError.classes[code] = made
    return made


ERROR_CLASSES = {_error_class(name, code).__name__: code for name, (code, _) in ERRORS.items()}


class Steps:
    """A power trace that is set as it goes: ``steps.set(300.0)`` holds from now on."""

    def __init__(self, watts: float) -> None:
        self.world: World | None = None
        self.at = [-math.inf]
        self.watts = [watts]

    def set(self, watts: float) -> None:
        """Draw so much from now on (W)."""
        assert self.world is not None, "give it to a Gpu of a World first"
        self.at.append(self.world.now())
        self.watts.append(watts)

    def __call__(self, second: float) -> float:
        return self.watts[bisect.bisect_right(self.at, second) - 1]


@dataclass
class Gpu:
    """One board: what it draws, how its sensor looks at that, and what is wrong with it.

    Attributes:
        power_w: its true draw (W) at a second of the world.
        period_s, window_s: of the sensor; see the module.
        counter, usage, instant, average: whether that query is supported.
        mig: 1 on, 0 off, None: the board knows no MIG.
        gain, offset_w: what the sensor adds to the truth.
        scale: 0.001 or 1000: a driver that is a unit prefix off.
        faults: function (or field number) -> code that it answers instead of a value.
        frozen_at: from this second on, no new values.
        back_j: the counter's answers are so much lower from ``back_at`` on.
    """

    name: str = "NVIDIA H100 80GB HBM3"
    uuid: str = "GPU-5f3c1e0a-0000-4000-8000-000000000000"
    architecture: int = 9
    capability: tuple[int, int] = (9, 0)
    power_w: Callable[[float], float] = lambda second: 100.0
    period_s: float = 0.1
    window_s: float = 0.025
    phase_s: float = 0.0
    counter: bool = True
    usage: bool = True
    instant: bool = True
    average: bool = True
    mig: int | None = 0
    gain: float = 1.0
    offset_w: float = 0.0
    scale: float = 1.0
    faults: dict[str | int, int] = field(default_factory=dict)
    frozen_at: float = math.inf
    back_at: float = math.inf
    back_j: float = 0.0
    counter_j: float = 1000.0
    updates: int = 0
    recent: list[float] = field(default_factory=list)

    def sensed(self, update: int) -> float:
        """What the sensor publishes at its n-th update (W)."""
        end = self.phase_s + update * self.period_s
        points = 64
        step = self.window_s / points
        mean = sum(self.power_w(end - (i + 0.5) * step) for i in range(points)) / points
        return self.gain * mean + self.offset_w

    def catch_up(self, second: float) -> None:
        """Publish all that is due up to this second."""
        due = math.floor((min(second, self.frozen_at) - self.phase_s) / self.period_s + 1e-9)
        while self.updates < due:
            self.updates += 1
            watts = self.sensed(self.updates)
            self.counter_j += watts * self.period_s
            self.recent.append(watts)
            del self.recent[: -max(1, round(1.0 / self.period_s))]

    def instant_w(self, second: float) -> float:
        """The latest value."""
        self.catch_up(second)
        return (self.recent[-1] if self.recent else self.sensed(0)) * self.scale

    def average_w(self, second: float) -> float:
        """The mean of the last second."""
        self.catch_up(second)
        recent = self.recent or [self.sensed(0)]
        return sum(recent) / len(recent) * self.scale

    def energy_j(self, second: float) -> float:
        """The counter."""
        self.catch_up(second)
        return (self.counter_j - (self.back_j if second >= self.back_at else 0.0)) * self.scale

    @property
    def averages(self) -> bool:
        """Whether nvmlDeviceGetPowerUsage is the mean over a second (Ampere but GA100, newer)."""
        return self.capability > (8, 0)


class World:
    """All GPUs of a machine, its driver and its time.

    Args:
        gpus: the boards, in NVML's order.
        real_time: the world's time goes with the monotonic clock; otherwise only by ``advance``.
        init_error: what nvmlInit answers (0: it works).
    """

    def __init__(
        self, gpus: list[Gpu] | None = None, *, real_time: bool = False, init_error: int = 0
    ) -> None:
        self.gpus = [Gpu()] if gpus is None else gpus
        self.real_time = real_time
        self.init_error = init_error
        self.driver_version = "570.86.15"
        self.initialised = 0
        self.calls: list[str] = []
        self._begin_ns = time.perf_counter_ns()
        self._moved_ns = 0
        for gpu in self.gpus:
            if isinstance(gpu.power_w, Steps):
                gpu.power_w.world = self

    def now_ns(self) -> int:
        """The world's own clock (ns), to stand in for ``time.perf_counter_ns``."""
        if self.real_time:
            return time.perf_counter_ns()
        return self._begin_ns + self._moved_ns

    def now(self) -> float:
        """Seconds since it began."""
        return (self.now_ns() - self._begin_ns) / 1e9

    def advance(self, seconds: float) -> None:
        """Let time pass (where it is not real)."""
        assert not self.real_time
        self._moved_ns += round(seconds * 1e9)


class _Value:
    """c_nvmlValue_t: one number, seen as several types."""

    def __init__(self, number: int) -> None:
        self.uiVal = self.ulVal = self.ullVal = self.siVal = number


class _FieldValue:
    def __init__(self, field_id: int, code: int, number: int) -> None:
        self.fieldId = field_id
        self.scopeId = 0
        self.timestamp = 0
        self.latencyUsec = 0
        self.valueType = CONSTANTS["NVML_VALUE_TYPE_UNSIGNED_INT"]
        self.nvmlReturn = code
        self.value = _Value(number)


def module(world: World) -> types.ModuleType:
    """A module named pynvml over this world."""
    made = types.ModuleType("pynvml", __doc__)
    not_supported = ERRORS["NVML_ERROR_NOT_SUPPORTED"][0]
    made.__dict__.update(CONSTANTS)
    made.__dict__.update({name: code for name, (code, _) in ERRORS.items()})
    made.__dict__.update({cls.__name__: cls for cls in NVMLError.classes.values()})
    made.__dict__["NVMLError"] = NVMLError

    def api(function: Callable[..., Any]) -> Callable[..., Any]:
        """A call that is recorded, needs nvmlInit, and answers the fault that was set for it."""

        def call(*args: Any) -> Any:
            world.calls.append(function.__name__)
            if not world.initialised:
                raise NVMLError(1)
            if args and isinstance(args[0], Gpu) and function.__name__ in args[0].faults:
                raise NVMLError(args[0].faults[function.__name__])
            return function(*args)

        call.__name__ = function.__name__
        made.__dict__[function.__name__] = call
        return call

    def nvmlInit() -> None:
        world.calls.append("nvmlInit")
        if world.init_error:
            raise NVMLError(world.init_error)
        world.initialised += 1

    made.__dict__["nvmlInit"] = nvmlInit

    @api
    def nvmlShutdown() -> None:
        world.initialised -= 1

    @api
    def nvmlSystemGetDriverVersion() -> str:
        return world.driver_version

    @api
    def nvmlDeviceGetCount() -> int:
        return len(world.gpus)

    @api
    def nvmlDeviceGetHandleByIndex(index: int) -> Gpu:
        if not 0 <= index < len(world.gpus):
            raise NVMLError(ERRORS["NVML_ERROR_INVALID_ARGUMENT"][0])
        return world.gpus[index]

    @api
    def nvmlDeviceGetHandleByUUID(uuid: str | bytes) -> Gpu:
        wanted = uuid.decode() if isinstance(uuid, bytes) else uuid
        for gpu in world.gpus:
            if gpu.uuid == wanted:
                return gpu
        raise NVMLError(ERRORS["NVML_ERROR_NOT_FOUND"][0])

    @api
    def nvmlDeviceGetName(gpu: Gpu) -> str:
        return gpu.name

    @api
    def nvmlDeviceGetUUID(gpu: Gpu) -> str:
        return gpu.uuid

    @api
    def nvmlDeviceGetArchitecture(gpu: Gpu) -> int:
        return gpu.architecture

    @api
    def nvmlDeviceGetCudaComputeCapability(gpu: Gpu) -> tuple[int, int]:
        return gpu.capability

    @api
    def nvmlDeviceGetMigMode(gpu: Gpu) -> list[int]:
        if gpu.mig is None:
            raise NVMLError(not_supported)
        return [gpu.mig, gpu.mig]

    @api
    def nvmlDeviceGetPowerUsage(gpu: Gpu) -> int:
        if not gpu.usage:
            raise NVMLError(not_supported)
        watts = gpu.average_w(world.now()) if gpu.averages else gpu.instant_w(world.now())
        return round(watts * 1e3)

    @api
    def nvmlDeviceGetTotalEnergyConsumption(gpu: Gpu) -> int:
        if not gpu.counter:
            raise NVMLError(not_supported)
        return round(gpu.energy_j(world.now()) * 1e3)

    @api
    def nvmlDeviceGetFieldValues(gpu: Gpu, fields: list[Any]) -> list[_FieldValue]:
        ids = [entry[0] if isinstance(entry, tuple) else entry for entry in fields]
        answers = []
        for number in ids:
            code, value = not_supported, 0
            if number == CONSTANTS["NVML_FI_DEV_POWER_INSTANT"] and gpu.instant:
                code, value = NVML_SUCCESS, round(gpu.instant_w(world.now()) * 1e3)
            elif number == CONSTANTS["NVML_FI_DEV_POWER_AVERAGE"] and gpu.average:
                code, value = NVML_SUCCESS, round(gpu.average_w(world.now()) * 1e3)
            elif number == CONSTANTS["NVML_FI_DEV_TOTAL_ENERGY_CONSUMPTION"] and gpu.counter:
                code, value = NVML_SUCCESS, round(gpu.energy_j(world.now()) * 1e3)
            if number in gpu.faults:
                code, value = gpu.faults[number], 0
            answers.append(_FieldValue(number, code, value))
        return answers

    return made


def install(monkeypatch: Any, world: World) -> types.ModuleType:
    """``import pynvml`` finds this world, in this process, until the test ends."""
    made = module(world)
    monkeypatch.setitem(sys.modules, "pynvml", made)
    return made


def as_package(directory: Path, factory: str) -> Path:
    """A directory for other processes' PYTHONPATH, where ``pynvml`` is a world.

    Args:
        factory: "package.module:function", which returns the World (mostly with real_time=True);
            the package must be importable there too.
    """
    directory.mkdir(parents=True, exist_ok=True)
    (directory / "pynvml.py").write_text(
        "from tests.meters.fake_nvml import made_by\n"
        f"globals().update(vars(made_by({factory!r})))\n"
    )
    return directory


def made_by(factory: str) -> types.ModuleType:
    """The module over the world that "package.module:function" makes."""
    where, name = factory.split(":")
    return module(getattr(importlib.import_module(where), name)())
