#!/usr/bin/env python3
"""The edgebench agent: everything that runs on the measured device, in one file.

Needs Python >= 3.8; numpy and onnxruntime only in the worker. It is sent to a device and run there
as it is; on the local machine the same file runs from the package. docs/agent-protocol.md has the
protocol, so that others can write agents.

Three roles, three kinds of process::

    serve      talks JSON lines with the host; exits when its stdin closes; never measures
      |  starts (detached, holds the device's lock)
    supervise  one run: launches workers one after another, samples device state, spools to disk;
      |        goes on to its deadline whether anybody listens or not
      |-- (the meters' own process, edgebench.meters.sampler, where a meter sees the device)
    work       one launch: loads the artifacts, warms up, times them in turns, exits

Time line of one launch, artifacts a and b, turns of k calls (s = settle, m = measured)::

    load a | load b | warm-up a | warm-up b | a: s m m m | b: s m m m | b: s m m m | a: s m ...
                                              '------ round 1 -------' '------ round 2 ------

Where energy is measured, energy rounds follow, with windows as long as the meter needs::

    rest | idle | rest | b b b b b b b b | rest | a a a a a a a a | rest | idle | ...
                        '-- a window ---'        '-- a window ---'

Every time stamp is time.perf_counter_ns, the device's monotonic clock.

Protocol history:
    1   first
"""

from __future__ import annotations

import argparse
import contextlib
import ctypes
import errno
import fcntl
import functools
import gc
import glob
import hashlib
import importlib.util
import io
import json
import math
import os
import platform
import random
import re
import resource
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from typing import TYPE_CHECKING, Any, Callable, Dict, Iterable, Iterator, Mapping, TextIO

if TYPE_CHECKING:
    from random import Random

    import numpy as np
    import numpy.typing as npt

    Ints = npt.NDArray[np.int64]

PROTOCOL = 1
SENTINEL = "EDGEBENCH-AGENT"

#: Columns of a worker's samples (the launch is the file): see edgebench.recording.SAMPLE_COLUMNS.
COLUMNS = ("artifact", "turn", "phase", "start_ns", "duration_ns")
WARMUP, SETTLE, MEASURE, ENERGY = 0, 1, 2, 3

#: Normal quantile of a two-sided 99 % interval.
Z99 = 2.5758293035489004
#: Student's t, two-sided 95 %, for 1 to 10 degrees of freedom; beyond them 2.23 is a little wide.
T95 = (12.706, 4.303, 3.182, 2.776, 2.571, 2.447, 2.365, 2.306, 2.262, 2.228)

#: Kept free on the device's disk so that a full disk can still be reported.
RESERVE_BYTES = 64 * 1024
#: A file that nobody has written to for so long is no transfer under way (seconds).
ABANDONED_S = 3600.0
#: A worker's exit status when the disk is full (errno ENOSPC on Linux).
EXIT_DISK_FULL = 28

#: Where the kernel tells about the device; tests put trees of their own here.
PROC = "/proc"
SYS = "/sys"

#: A JSON object.
Document = Dict[str, Any]
Report = Callable[[Document], None]

clock = time.perf_counter_ns


class AgentError(Exception):
    """A failure with a code for the host and a sentence for people."""

    def __init__(self, code: str, message: str, **more: Any) -> None:
        super().__init__(message)
        self.code = code
        self.message = message
        self.more = more


# ---------------------------------------------------------------- files


def read_text(path: str) -> str | None:
    """The stripped text of a small file, or None where it can't be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read().strip("\0 \t\r\n")
    except OSError:
        return None


def read_int(path: str) -> int | None:
    """The number in a small file, or None where there is none to read."""
    text = read_text(path)
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


def find(pattern: str, path: str) -> str | None:
    """The first group of a pattern at the beginning of a line of a file, or None."""
    match = re.search(pattern, read_text(path) or "", re.MULTILINE)
    return match.group(1) if match else None


def find_int(pattern: str, path: str) -> int | None:
    """The same, as a number."""
    text = find(pattern, path)
    return int(text) if text is not None else None


def kib(number: int | None) -> int | None:
    """Bytes of a number of KiB, as /proc counts memory."""
    return number * 1024 if number is not None else None


def write_json(path: str, document: Document) -> None:
    """Write a file so that it is there whole or not at all."""
    temporary = f"{path}.tmp-{os.getpid()}"
    try:
        with open(temporary, "w", encoding="utf-8") as stream:
            json.dump(document, stream)
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except OSError:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
        raise


def read_json(path: str) -> Document:
    """A document that ``write_json`` wrote."""
    with open(path, encoding="utf-8") as stream:
        document: Document = json.load(stream)
        return document


def age_s(path: str) -> float:
    """Seconds since a file was last written, by the device's wall clock."""
    file_age_s = time.time() - os.path.getmtime(path)
    return file_age_s


def disk_is_full(error: OSError) -> bool:
    """Whether a failure means that there is no room left."""
    return error.errno in (errno.ENOSPC, errno.EDQUOT)


# ---------------------------------------------------------------- identity and state


def gpu_model() -> str | None:
    """The first NVIDIA GPU's name, as its Linux driver says it without any library."""
    for path in sorted(glob.glob("/proc/driver/nvidia/gpus/*/information")):
        match = re.search(r"^Model:\s*(.+)$", read_text(path) or "", re.MULTILINE)
        if match:
            return match.group(1).strip()
    return None


def command_output(argv: list[str]) -> str | None:
    """What a small local command prints, or None where it isn't there or fails."""
    try:
        done = subprocess.run(
            argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=5, check=False
        )
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else None


def machine_model() -> str | None:
    """The device's own name for itself: device tree (Pi, Jetson), DMI (PC), sysctl (Mac) or
    getprop (Android)."""
    for path in (PROC + "/device-tree/model", SYS + "/firmware/devicetree/base/model"):
        text = read_text(path)
        if text:
            return text
    names = [read_text(f"{SYS}/class/dmi/id/{name}") for name in ("sys_vendor", "product_name")]
    if any(names):
        return " ".join(name for name in names if name)
    if sys.platform == "darwin":
        return command_output(["sysctl", "-n", "hw.model"])
    if shutil.which("getprop"):
        return command_output(["getprop", "ro.product.model"]) or None
    return None


def cpu_model() -> str | None:
    """The CPU's name as the kernel says it."""
    for key in ("model name", "Hardware", "CPU part", "Processor"):
        found = find(rf"^{key}\s*:\s*(.*\S)", PROC + "/cpuinfo")
        if found:
            return found
    if sys.platform == "darwin":
        return command_output(["sysctl", "-n", "machdep.cpu.brand_string"])
    return platform.processor() or None


def emulation() -> str | None:
    """The name of the emulator that this process runs under, or None.

    qemu-user fakes /proc/self but not other processes: in a child's and the parents' entries the
    program is qemu-aarch64 or its like. The child is the surer sign, since parents of another user
    (sshd) hide theirs. A whole machine under software emulation shows a virt machine model, which
    can't be told from KVM on Arm, so both are named.
    """
    found = emulator_of_a_child()
    pid = os.getppid()
    for _ in range(16):
        if found or pid < 1:
            break
        found = emulator_of(pid)
        pid = find_int(r"^PPid:\s*(\d+)", f"{PROC}/{pid}/status") or 0
    if found:
        return found
    if os.environ.get("QEMU_CPU"):
        return "qemu-user"
    kernel = read_text(PROC + "/version") or ""
    if platform.machine() in ("aarch64", "armv7l") and re.search(r"amd64|x86_64", kernel):
        return "qemu-user"
    return "virt" if (machine_model() or "").startswith("linux,dummy-virt") else None


def emulator_of(pid: int) -> str | None:
    """The emulator that a process is, by its program and command line, or None."""
    link = ""
    with contextlib.suppress(OSError):
        link = os.readlink(f"{PROC}/{pid}/exe")
    command = (read_text(f"{PROC}/{pid}/cmdline") or "").split("\0")[0]
    for program in (link, command):
        name = re.match(r"qemu-(?!ga\b|img|io|nbd|system)[a-z0-9_]+", os.path.basename(program))
        if name:
            return name.group()
    return None


def emulator_of_a_child() -> str | None:
    """The emulator that a copy of this process is. It waits on a pipe until it was looked at."""
    if not sys.platform.startswith("linux"):
        return None
    reading, writing = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(writing)
        os.read(reading, 1)
        os._exit(0)
    try:
        return emulator_of(pid)
    finally:
        os.close(writing)
        os.close(reading)
        os.waitpid(pid, 0)


def memory_total_bytes() -> int | None:
    """All memory that the kernel has."""
    found = find_int(r"^MemTotal:\s*(\d+) kB", PROC + "/meminfo")
    if found is not None:
        return kib(found)
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def available_cpus() -> list[int]:
    """The CPUs that this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def pin(cpus: Iterable[int]) -> None:
    """Bind this process to CPUs, where the system can."""
    if hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, cpus)


def identity() -> Document:
    """What the device is: nothing here changes while it is switched on."""
    return {
        "model": machine_model(),
        "arch": platform.machine(),
        "cpu_model": cpu_model(),
        "gpu": gpu_model(),
        "cpus": available_cpus(),
        "memory_total_bytes": memory_total_bytes(),
        "system": platform.system(),
        "kernel": platform.release(),
        "os": find(r'^PRETTY_NAME="?([^"\n]+)', "/etc/os-release") or platform.platform(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "emulator": emulation(),
        "boot_id": read_text(PROC + "/sys/kernel/random/boot_id"),
        "hostname": platform.node(),
    }


def versions() -> dict[str, str]:
    """Versions of what decides the speed."""
    from importlib import metadata

    found = {"python": platform.python_version()}
    for name in ("numpy", "onnxruntime", "onnxruntime-gpu", "torch", "transformers", "peft"):
        with contextlib.suppress(metadata.PackageNotFoundError):
            found[name] = metadata.version(name)
    return found


def cpu_ticks(cpus: Iterable[int]) -> dict[str, int] | None:
    """Clock ticks of some CPUs since boot: total, busy and stolen. Source: proc(5), /proc/stat."""
    chosen = {f"cpu{number}" for number in cpus}
    total = busy = steal = 0
    for line in (read_text(PROC + "/stat") or "").splitlines():
        name, *rest = line.split()
        if name not in chosen:
            continue
        # Guest time is within user time; kernels before 2.6.11 have no steal.
        fields = [int(field) for field in rest[:8]] + [0] * (8 - len(rest))
        user, nice, system, idle, iowait, irq, softirq, stolen = fields
        total += user + nice + system + idle + iowait + irq + softirq + stolen
        busy += user + nice + system + irq + softirq
        steal += stolen
    return {"total": total, "busy": busy, "steal": steal} if total else None


def throttled_flags() -> int | None:
    """Raspberry Pi's get_throttled bits, or None on anything else.

    The kernel writes "50000" (hexadecimal), vcgencmd writes "throttled=0x50000".
    """
    text = read_text(SYS + "/devices/platform/soc/soc:firmware/get_throttled")
    if text is None and shutil.which("vcgencmd"):
        text = command_output(["vcgencmd", "get_throttled"])
    match = re.match(r"(?:throttled=)?(?:0x)?([0-9a-fA-F]+)$", text or "")
    return int(match.group(1), 16) if match else None


def device_state(
    when: str, launch: int | None, cpus: Iterable[int], flags: bool = True
) -> Document:
    """One line of state.jsonl. A member that the device can't tell is null.

    Args:
        flags: read the throttle flags too, which may start a process.
    """
    cpus = list(cpus)
    temperature: dict[str, float] = {}
    for zone in sorted(glob.glob(SYS + "/class/thermal/thermal_zone*")):
        value = read_int(zone + "/temp")
        if value is not None:
            name = f"{os.path.basename(zone)}:{read_text(zone + '/type') or 'zone'}"
            temperature[name] = value / 1000.0
    cpufreq: dict[str, dict[str, Any]] = {
        "scaling_cur_freq": {},
        "cpuinfo_max_freq": {},
        "scaling_governor": {},
    }
    for name, found in cpufreq.items():
        for cpu in cpus:
            path = f"{SYS}/devices/system/cpu/cpu{cpu}/cpufreq/{name}"
            reading = read_text(path) if name == "scaling_governor" else read_int(path)
            if reading is not None:
                found[str(cpu)] = reading
    try:
        load1: float | None = os.getloadavg()[0]
    except OSError:
        load1 = None
    return {
        "t_ns": clock(),
        "when": when,
        "launch": launch,
        "temperature_c": temperature or None,
        "frequency_khz": cpufreq["scaling_cur_freq"] or None,
        "frequency_max_khz": cpufreq["cpuinfo_max_freq"] or None,
        "governor": cpufreq["scaling_governor"] or None,
        "load1": load1,
        "memory_available_bytes": kib(find_int(r"^MemAvailable:\s*(\d+) kB", PROC + "/meminfo")),
        "swap_in_pages": find_int(r"^pswpin (\d+)", PROC + "/vmstat"),
        "swap_out_pages": find_int(r"^pswpout (\d+)", PROC + "/vmstat"),
        "cpu_ticks": cpu_ticks(cpus),
        "throttled": throttled_flags() if flags else None,
    }


# ---------------------------------------------------------------- the worker: runtimes


class Runtime:
    """One loaded model: ``bind`` makes a call's inputs once, ``call`` runs it."""

    call: Callable[[Any], Any]

    def __init__(self, model: str | None, options: Document) -> None:
        raise NotImplementedError

    def bind(self, feed: Mapping[str, Any]) -> Any:
        """What ``call`` takes, for one batch of inputs."""
        raise NotImplementedError

    def infer(self, feed: Mapping[str, Any]) -> Any:
        """The first output for a batch of inputs, as an array."""
        raise NotImplementedError

    def adapter_times(self) -> Document:
        """How long it takes to change adapters (ns), of a runtime that was given some."""
        raise NotImplementedError

    #: One whose calls are of several tokens takes the rows in which to note each token's time.
    rows: Callable[[Any], None] | None = None

    #: Of decoders: how likely they find texts, and the tokens that their last calls gave.
    perplexity: Callable[[Any, Any], Document]
    generated: Callable[[], list[Document]]
    check: Callable[[Any], Document | None]
    prompts: Callable[[Any], list[Any]]

    #: A runtime with a clock of its own (CUDA events) times calls itself, as ``time_calls`` does.
    time_calls: Callable[[list[Any], int, int, Any, Any], None] | None = None

    def synchronize(self) -> None:
        """Return when everything that was called has been done."""

    def execution(self) -> Document:
        """What really executes the model."""
        raise NotImplementedError


class OnnxRuntime(Runtime):
    """A model in ONNX Runtime, its inputs and outputs bound beforehand."""

    def __init__(self, model: str | None, options: Document) -> None:
        import onnxruntime

        onnxruntime.set_default_logger_severity(3)
        settings = onnxruntime.SessionOptions()
        settings.intra_op_num_threads = options["threads"]
        settings.inter_op_num_threads = 1
        settings.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        settings.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
        settings.add_session_config_entry(
            "session.intra_op.allow_spinning", "1" if options.get("allow_spinning") else "0"
        )
        self.entries = dict(options.get("session_options", {}))
        for key, value in sorted(self.entries.items()):
            settings.add_session_config_entry(key, str(value))
        self.native: Document = {}
        if options.get("native") and options["provider"] == "CPUExecutionProvider":
            self.native = tried_kernels()
            if "path" in self.native:
                try:
                    settings.register_custom_ops_library(self.native["path"])
                except Exception as error:  # noqa: BLE001 - told in the row; the bodies serve
                    self.native = {"warning": f"{self.native['path']}: {error}"}
        wanted = options["provider"]
        offered = onnxruntime.get_available_providers()
        if wanted not in offered:
            has = ", ".join(offered)
            raise AgentError("provider", f"this ONNX Runtime has no {wanted} (it has {has})")
        self.session = onnxruntime.InferenceSession(
            model,
            settings,
            providers=[wanted],
            provider_options=[provider_options(options.get("options") or {})],
            disabled_optimizers=options.get("disabled_optimizers") or None,
        )
        used = self.session.get_providers()[0]
        if used != wanted:
            raise AgentError("provider", f"{wanted} was asked for, the session fell back to {used}")
        self.inputs = [item.name for item in self.session.get_inputs()]
        self.outputs = [item.name for item in self.session.get_outputs()]
        self.call = self.session.run_with_iobinding
        self.adapters: dict[str, str] = options.get("adapters") or {}
        self.active: Any = None
        if self.adapters:
            self.open_adapters(options.get("active_adapter"))

    def open_adapters(self, active: str | None) -> None:
        """Load every adapter, and make one active, or none. From now on a call is ``run`` with run
        options: with bound inputs ONNX Runtime ignores an active adapter, and says so in a log."""
        import onnxruntime

        if not hasattr(onnxruntime, "LoraAdapter"):
            raise AgentError(
                "adapters",
                f"this device's ONNX Runtime {onnxruntime.__version__} can't swap adapters: it has "
                "no LoraAdapter, which came with 1.20",
            )
        self.loaded = {name: load_adapter(path) for name, path in self.adapters.items()}
        options = onnxruntime.RunOptions()
        if active is not None:
            options.add_active_adapter(self.loaded[active])
        run, outputs = self.session.run, self.outputs
        self.active = options

        def call(feed: Any) -> None:
            run(outputs, feed, options)

        self.call = call

    def adapter_times(self) -> Document:
        """Medians (ns): making a loaded adapter active in new run options, and loading one from
        its file, which the system has cached."""
        import onnxruntime

        loaded, paths = list(self.loaded.values()), list(self.adapters.values())
        swaps, loads = [], []
        for turn in range(SWAPS):
            adapter = loaded[turn % len(loaded)]
            begin = clock()
            onnxruntime.RunOptions().add_active_adapter(adapter)
            swaps.append(clock() - begin)
        for turn in range(ADAPTER_LOADS):
            path = paths[turn % len(paths)]
            begin = clock()
            load_adapter(path)
            loads.append(clock() - begin)
        return {"adapter_swap_ns": median_of(swaps), "adapter_load_ns": median_of(loads)}

    def bind(self, feed: Mapping[str, Any]) -> Any:
        import onnxruntime

        if self.adapters:
            return {name: feed[name] for name in self.inputs}
        binding = self.session.io_binding()
        for name in self.inputs:
            value = onnxruntime.OrtValue.ortvalue_from_numpy(feed[name])
            binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            binding.bind_output(name)
        return binding

    def infer(self, feed: Mapping[str, Any]) -> Any:
        given = {name: feed[name] for name in self.inputs}
        return self.session.run(None, given, self.active)[0]

    def execution(self) -> Document:
        found = {"providers": self.session.get_providers(), "session_options": self.entries}
        return dict(found, native=self.native) if self.native else found


#: How often a swap and a load of an adapter are timed in a launch.
SWAPS, ADAPTER_LOADS = 500, 50


def load_adapter(path: str) -> Any:
    """An adapter file in ONNX Runtime."""
    import onnxruntime

    adapter = onnxruntime.LoraAdapter()
    adapter.Load(path)
    return adapter


#: The signatures and layouts of edgebench's own ops that this version exports.
NATIVE_ABI = 1

#: Names, for the agent's children, the library that `edgebench setup --kernels` installed.
NATIVE_INSTALLED = "EDGEBENCH_NATIVE_INSTALLED"


def native_kernels() -> Document:
    """The library of few-bit kernels on this device, as ``native_library`` has it; {} for none.

    It is what EDGEBENCH_NATIVE names, what `edgebench setup --kernels` put into the agent's
    directory, or comes in the companion package. Without it ONNX Runtime computes the ops' bodies,
    which are in the model's file.
    """
    path = os.environ.get("EDGEBENCH_NATIVE") or os.environ.get(NATIVE_INSTALLED)
    if path:
        return native_library(os.path.abspath(path))
    found = importlib.util.find_spec("edgebench_native")
    if found is None or not found.origin:
        return {}
    return native_library(os.path.join(os.path.dirname(found.origin), "libedgebench_ops.so"))


def tried_kernels() -> Document:
    """As ``native_kernels``, found in a process of its own: a library that ends the process which
    loads it is a warning, too."""
    named = os.environ.get("EDGEBENCH_NATIVE") or os.environ.get(NATIVE_INSTALLED)
    if not named and importlib.util.find_spec("edgebench_native") is None:
        return {}
    done = subprocess.run(
        [sys.executable, os.path.abspath(__file__), "native"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        check=False,
    )
    if done.returncode == 0:
        found: Document = json.loads(done.stdout.splitlines()[-1])
        return found
    ended = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
    words = done.stderr.decode("utf-8", "replace").strip().splitlines()
    return {
        "warning": "the library of native kernels ends the process that loads it "
        f"({ended}{': ' + words[-1] if words else ''})"
    }


def native_library(path: str) -> Document:
    """{"path", "version", "kernel"} of a library, or {"warning"}: why it can't be used here."""
    try:
        library = ctypes.CDLL(path)
        library.edgebench_native_version.restype = ctypes.c_char_p
        library.edgebench_native_kernel.restype = ctypes.c_char_p
        version, kernel = library.edgebench_native_version(), library.edgebench_native_kernel()
        abi = int(library.edgebench_native_abi())
    except OSError as error:
        return {"warning": f"{path} can't be loaded on this device: {error}"}
    except AttributeError:
        return {"warning": f"{path} is not a library of edgebench's kernels"}
    if abi != NATIVE_ABI:
        return {"warning": f"{path} has ABI {abi}, this edgebench writes for ABI {NATIVE_ABI}"}
    if kernel is None:
        named = os.environ.get("EDGEBENCH_NATIVE_KERNEL")
        return {"warning": f"{path} has no kernel named {named!r} (EDGEBENCH_NATIVE_KERNEL)"}
    return {"path": path, "version": version.decode(), "kernel": kernel.decode()}


def provider_options(options: Mapping[str, Any]) -> dict[str, str]:
    """A profile's ``runtime.options`` as ONNX Runtime takes them: texts, with 1 and 0 for bools."""
    return {k: str(int(v)) if isinstance(v, bool) else str(v) for k, v in options.items()}


class NullRuntime(Runtime):
    """A model that does nothing: what remains is the harness's own cost."""

    def __init__(self, model: str | None, options: Document) -> None:
        self.call = nothing

    def bind(self, feed: Mapping[str, Any]) -> Any:
        return None

    def infer(self, feed: Mapping[str, Any]) -> Any:
        raise AgentError("accuracy", "the null artifact has no accuracy")

    def execution(self) -> Document:
        return {"providers": ["null"]}


def nothing(binding: Any) -> None:
    """The null artifact's call."""


def torch_runtime() -> Any:
    """The PyTorch runtime: a file of its own, sent beside this one (docs/agent-protocol.md)."""
    from edgebench.runtimes.torch_runtime import TorchRuntime

    return TorchRuntime


def decoder_runtime() -> Any:
    """What drives a decoder in ONNX Runtime: files of their own, likewise."""
    from edgebench.runtimes.decoder_runtime import DecoderRuntime

    return DecoderRuntime


RUNTIMES: dict[str, type[Runtime]] = {"onnxruntime": OnnxRuntime, "null": NullRuntime}


def runtime_class(kind: str) -> Any:
    """The class of a runtime kind."""
    if kind == "torch":
        return torch_runtime()
    if kind not in RUNTIMES:
        raise AgentError("runtime", f"this agent has no runtime {kind!r}")
    return RUNTIMES[kind]


# ---------------------------------------------------------------- the worker: timing


class Samples:
    """Preallocated columns of timed calls; grows between turns, never inside one.

    Where calls generate, ``tokens`` has a row a call: the durations of its tokens (ns).
    """

    def __init__(self, capacity: int = 4096, tokens: int = 0) -> None:
        import numpy

        self.size = 0
        self.columns: Ints = numpy.zeros((len(COLUMNS), capacity), dtype=numpy.int64)
        self.tokens: Ints = numpy.zeros((capacity, tokens), dtype=numpy.int64)

    def room(self, calls: int) -> None:
        """Make room for so many more."""
        import numpy

        while self.size + calls > self.columns.shape[1]:
            self.columns = numpy.concatenate([self.columns, numpy.zeros_like(self.columns)], axis=1)
            self.tokens = numpy.concatenate([self.tokens, numpy.zeros_like(self.tokens)])

    def table(self) -> Ints:
        """One row a call, in the order of COLUMNS."""
        return self.columns[:, : self.size].T.copy()

    def measured(self, artifact: int) -> Ints:
        """Durations of the counted calls of an artifact."""
        columns = self.columns[:, : self.size]
        found: Ints = columns[4][(columns[0] == artifact) & (columns[2] == MEASURE)]
        return found


def time_calls(
    call: Callable[[Any], Any],
    bindings: list[Any],
    first: int,
    count: int,
    starts: Ints,
    durations: Ints,
) -> None:
    """The timing loop: ``count`` calls, beginning with binding ``first``, round-robin.

    ``starts`` and ``durations`` are preallocated int64 arrays of at least ``count``. Only the call
    stands between the two readings of the clock; storing happens after the second.
    """
    size = len(bindings)
    now = clock
    for i in range(count):
        binding = bindings[(first + i) % size]
        begin = now()
        call(binding)
        end = now()
        starts[i] = begin
        durations[i] = end - begin


class Lane:
    """One artifact in a worker: its runtime, its inputs, and its place in the round-robin."""

    def __init__(self, index: int, runtime: Runtime, bindings: list[Any]) -> None:
        self.index = index
        self.runtime = runtime
        self.bindings = bindings
        self.position = 0
        self.measured = 0

    def turn(self, samples: Samples, turn: int, count: int, first_phase: int, phase: int) -> None:
        """Time ``count`` calls; the first gets ``first_phase``, the others ``phase``."""
        samples.room(count)
        here = slice(samples.size, samples.size + count)
        artifacts, turns, phases, starts, durations = (row[here] for row in samples.columns)
        if samples.tokens.shape[1] and self.runtime.rows is not None:
            self.runtime.rows(samples.tokens[here])
        if self.runtime.time_calls is not None:
            self.runtime.time_calls(self.bindings, self.position, count, starts, durations)
        else:
            time_calls(self.runtime.call, self.bindings, self.position, count, starts, durations)
        artifacts[:] = self.index
        turns[:] = turn
        phases[0] = first_phase
        phases[1:] = phase
        samples.size += count
        self.position = (self.position + count) % len(self.bindings)
        if phase == MEASURE:
            self.measured += count - 1


def median_of(values: Iterable[Any]) -> float:
    """The middle value, or the mean of the two in the middle."""
    ordered = sorted(int(value) for value in values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return float(ordered[middle])
    return (ordered[middle - 1] + ordered[middle]) / 2.0


def median_ranks(n: int) -> tuple[int, int] | None:
    """Ranks (0 = smallest) of the samples that enclose the median at 99 %, or None if n is small.

    The normal approximation to Binomial(n, 1/2) with its continuity correction: good enough to
    decide when to stop; the published interval is computed by the host, exactly.
    """
    low = math.floor(n / 2.0 - 0.5 - Z99 * math.sqrt(n) / 2.0)
    return (low, n - 1 - low) if low >= 0 else None


def median_relative_half_width(durations: Iterable[Any]) -> float:
    """Half the width of the median's 99 % order-statistic interval, over the median."""
    ordered = sorted(int(value) for value in durations)
    ranks = median_ranks(len(ordered))
    if ranks is None:
        return math.inf
    median = median_of(ordered)
    width = (ordered[ranks[1]] - ordered[ranks[0]]) / 2.0
    return width / median if median else (math.inf if width else 0.0)


def warm_up(lane: Lane, samples: Samples, rule: Document) -> Document:
    """Call until two successive windows agree, and say how it went."""
    begin = clock()
    before: float | None = None
    calls, steady = 0, False
    while True:
        lane.turn(samples, -1, rule["window"], WARMUP, WARMUP)
        now = median_of(samples.columns[4, samples.size - rule["window"] : samples.size])
        calls += rule["window"]
        if before is not None and abs(now - before) <= rule["tolerance"] * before:
            steady = True
            break
        before = now
        if (clock() - begin) / 1e9 >= rule["max_s"]:
            break
    return {"calls": calls, "duration_ns": clock() - begin, "steady": steady}


def measure_rounds(
    lanes: list[Lane],
    samples: Samples,
    protocol: Document,
    rng: Random,
    report: Callable[[float], None],
) -> str:
    """Rounds of turns, artifacts in random order in each, until the stop rule is met.

    Args:
        report: called with the elapsed seconds, between rounds, twice a second at most.

    Returns:
        what ended it: "enough", or "time".
    """
    stop = protocol["stop"]
    begin = clock()
    turn, last_report, next_check = 0, 0.0, stop["min_count"]
    while True:
        order = list(lanes)
        rng.shuffle(order)
        for lane in order:
            lane.turn(samples, turn, protocol["calls_per_turn"], SETTLE, MEASURE)
        turn += 1
        elapsed = (clock() - begin) / 1e9
        if elapsed - last_report > 0.5:
            last_report = elapsed
            report(elapsed)
        if elapsed >= stop["max_duration_s"]:
            return "time"
        counted = min(lane.measured for lane in lanes)
        if counted < next_check or elapsed < stop["min_duration_s"]:
            continue
        widths = (median_relative_half_width(samples.measured(lane.index)) for lane in lanes)
        if all(width <= stop["relative_half_width"] for width in widths):
            return "enough"
        # Sorting costs time: look again when a tenth more has been measured.
        next_check = counted + max(1, counted // 10)


# ---------------------------------------------------------------- the worker: energy


def window(lane: Lane, samples: Samples, seconds: float) -> Document:
    """Calls back to back for at least so long: when it began and ended, and how many they were.

    Work that was queued is waited for before the second reading of the clock.
    """
    recent = samples.measured(lane.index)[-50:]
    call_s = max(median_of(recent) / 1e9, 1e-6) if len(recent) else seconds / 20
    chunk = max(2, min(10000, int(0.05 / call_s)))
    samples.room(int(1.5 * seconds / call_s) + 2 * chunk)
    lane.runtime.synchronize()
    calls, begin = 0, clock()
    while clock() - begin < seconds * 1e9:
        lane.turn(samples, -1, chunk, ENERGY, ENERGY)
        calls += chunk
    lane.runtime.synchronize()
    return {"artifact": lane.index, "begin_ns": begin, "end_ns": clock(), "calls": calls}


def energy_rounds(
    lanes: list[Lane],
    samples: Samples,
    rule: Document,
    rng: Random,
    meter: Callable[[], LiveMeter | None],
    report: Callable[[int, float], None],
) -> Document:
    """Energy windows of every artifact between idle stretches, until the energy a call is known.

    Without readings to look at (a meter on the host) there are ``min_rounds`` rounds.
    """
    windows: list[Document] = []
    idle: list[list[int]] = []

    def rest() -> None:
        time.sleep(rule["settle_s"])

    def idle_stretch() -> None:
        rest()
        begin = clock()
        time.sleep(rule["idle_s"])
        idle.append([begin, clock()])

    begin, rounds = clock(), 0
    while True:
        idle_stretch()
        order = list(lanes)
        rng.shuffle(order)
        for lane in order:
            rest()
            windows.append(window(lane, samples, rule["window_s"]))
        rounds += 1
        elapsed = (clock() - begin) / 1e9
        report(rounds, elapsed)
        if rounds < rule["min_rounds"] and elapsed < rule["max_duration_s"]:
            continue
        live = meter()
        stopped_by = "enough" if live is None or live.precise(windows, rule) else "time"
        if rounds < rule["min_rounds"]:
            stopped_by = "time"
        if stopped_by == "enough" or elapsed >= rule["max_duration_s"]:
            break
    idle_stretch()
    return {"energy_windows": windows, "idle_ns": idle, "energy_stopped_by": stopped_by}


class LiveMeter:
    """What the meters' process has written so far: enough to decide when to stop, no more.

    The published figure and its interval are computed by the host.
    """

    def __init__(self, path: str, meter: int, channel: Document, number: int) -> None:
        self.path = path
        self.meter = meter
        self.channel = channel
        self.number = number

    def readings(self) -> tuple[Any, Any]:
        """Times (ns) and values of the channel so far."""
        import numpy

        kinds = [("meter", "<i2"), ("channel", "<i2"), ("t", "<i8"), ("v", "<f8")]
        with open(self.path, "rb") as stream:
            data = stream.read()
        row = numpy.dtype(kinds)
        table = numpy.frombuffer(data[: len(data) // row.itemsize * row.itemsize], dtype=row)
        mine = table[(table["meter"] == self.meter) & (table["channel"] == self.number)]
        return mine["t"], mine["v"]

    def precise(self, windows: list[Document], rule: Document) -> bool:
        """Whether the energy a call of every artifact is known well enough, over its windows."""
        import numpy

        # The last readings of the last window have to reach the disk.
        time.sleep(0.5 + self.channel["lag_s"])
        t, v = self.readings()
        found: dict[int, list[float]] = {}
        for each in windows:
            begin, end = each["begin_ns"], each["end_ns"]
            if not len(t) or t[0] > begin or t[-1] < end:
                return False
            if self.channel["quantity"] == "energy":
                first, last = numpy.interp([begin, end], t, v)
                joules = float(last - first)
            else:
                inside = v[(t >= begin) & (t <= end)]
                joules = float(inside.mean()) * (end - begin) / 1e9 if len(inside) else 0.0
            if joules > 0:  # not where the counter started again
                found.setdefault(each["artifact"], []).append(joules / each["calls"])
        wanted = {each["artifact"] for each in windows}
        return all(
            t_half_width(found.get(artifact, [])) <= rule["relative_half_width"]
            for artifact in wanted
        )


def t_half_width(values: list[float]) -> float:
    """Half of Student's 95 % interval of a mean, over the mean; infinite below two values."""
    n = len(values)
    if n < 2:
        return math.inf
    mean = sum(values) / n
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (n - 1))
    return T95[min(n - 1, len(T95)) - 1] * spread / math.sqrt(n) / mean


def live_meter(directory: str) -> LiveMeter | None:
    """The first meter that still delivers: its counter, else its first channel; or None."""
    opened: dict[int, list[Document]] = {}
    for line in (read_text(os.path.join(directory, "meters.jsonl")) or "").splitlines():
        with contextlib.suppress(ValueError):  # half a line, which is being written
            event = json.loads(line)
            if event["event"] == "open":
                opened[event["meter"]] = event["channels"]
            else:
                opened.pop(event["meter"], None)
    for meter, found in sorted(opened.items()):
        channels = list(enumerate(found))
        counters = [pair for pair in channels if pair[1]["quantity"] == "energy"]
        number, channel = (counters or channels)[0]
        return LiveMeter(os.path.join(directory, "meters.bin"), meter, channel, number)
    return None


# ---------------------------------------------------------------- the worker: tasks


def load_arrays(path: str) -> dict[str, Any]:
    """The arrays of an .npz file; never unpickles."""
    import numpy

    with numpy.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def feeds(arrays: Mapping[str, Any], batch: int, seq_len: int) -> Iterator[dict[str, Any]]:
    """Batches of rows cut to ``seq_len``, as many as the arrays hold, wrapping round if they hold
    fewer than one batch."""
    import numpy

    arrays = {name: value[:, :seq_len] for name, value in arrays.items()}
    rows = len(next(iter(arrays.values())))
    for i in range(max(1, rows // batch)):
        pick = [(i * batch + j) % rows for j in range(batch)]
        yield {name: numpy.ascontiguousarray(value[pick]) for name, value in arrays.items()}


def open_lane(index: int, entry: Document, protocol: Document) -> tuple[Lane, int]:
    """Load one artifact: its lane, and how long loading took (ns)."""
    kind = entry.get("runtime") or protocol["runtime"]["kind"]
    made = runtime_class(kind)
    entries = dict(entry.get("session_options", {}))
    if x86_without_vnni():
        entries.update(entry.get("session_options_x86_without_vnni", {}))
    options = dict(protocol["runtime"], session_options=entries, native=entry.get("native"))
    files = (entry.get("adapters") or {}).items()
    adapters = {name: os.path.join(entry["path"], file) for name, file in files}
    active = entry.get("active_adapter")
    if not entry.get("decoder"):  # whose driver changes them itself
        options.update(adapters=adapters, active_adapter=active)
    model = os.path.join(entry["path"], entry["model"]) if entry.get("model") else None
    begin = clock()
    runtime = made(model, options)
    if entry.get("decoder"):
        rule = protocol["decoding"]
        runtime = decoder_runtime()(runtime, entry["decoder"], rule, adapters, active)
    load_ns = clock() - begin
    bindings = [None]
    if entry.get("inputs"):
        arrays = load_arrays(os.path.join(entry["path"], entry["inputs"]))
        if entry.get("decoder"):
            bindings = runtime.prompts(arrays)
        else:
            batches = feeds(arrays, protocol["batch"], protocol["seq_len"])
            bindings = [runtime.bind(feed) for feed in batches]
    return Lane(index, runtime, bindings), load_ns


def new_samples(protocol: Document) -> Samples:
    """Room for a launch's samples, and for each token's time where a call generates several."""
    decoding = protocol.get("decoding") or {}
    return Samples(tokens=decoding["new_tokens"] if decoding.get("new_tokens", 1) > 1 else 0)


def prepare_runtime(entries: list[Document], protocol: Document) -> None:
    """Import what these artifacts need beside ONNX Runtime: no part of their load time or
    memory."""
    if any(entry.get("decoder") for entry in entries):
        decoder_runtime()
    if protocol["runtime"]["kind"] == "torch":
        for entry in entries:
            torch_runtime().prepare(os.path.join(entry["path"], entry["model"]))


def x86_without_vnni() -> bool:
    """Whether 8-bit products may saturate here: x86-64 without AVX-VNNI or AVX-512 VNNI."""
    if platform.machine() not in ("x86_64", "AMD64"):
        return False
    return "vnni" not in (read_text("/proc/cpuinfo") or "")


def peak_rss_bytes() -> int:
    """Peak resident set of this process. Linux says it in KiB, macOS in bytes (getrusage)."""
    found = kib(find_int(r"^VmHWM:\s*(\d+) kB", "/proc/self/status"))
    if found is not None:
        return found
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def evaluate(runtime: Runtime, entry: Document, limit: str | int, batch: int) -> Document:
    """Task accuracy on the artifact's labelled held-out inputs (argmax of the first output).

    ``right``: which examples were answered rightly, a bit each, the first the highest, as hex.
    Where every token has a label (-100: none), ``n`` counts those, and ``texts`` has
    [correct, n] of each text.
    """
    import numpy

    arrays = load_arrays(os.path.join(entry["path"], entry["evaluation"]))
    labels = arrays.pop("labels")
    count = len(labels) if limit == "all" else min(len(labels), int(limit))
    answers, begin = [], clock()
    for first in range(0, count, batch):
        here = slice(first, min(first + batch, count))
        logits = runtime.infer({name: value[here] for name, value in arrays.items()})
        answers.append(logits.argmax(-1) == labels[here])
    duration_ns = clock() - begin
    right = numpy.concatenate(answers)
    found: Document = {"correct": int(right.sum()), "n": count, "duration_ns": duration_ns}
    if right.ndim == 1:
        found["right"] = numpy.packbits(right).tobytes().hex()
    else:
        counted = labels[:count] != -100
        found["n"] = int(counted.sum())
        found["texts"] = numpy.stack([right.sum(1), counted.sum(1)], axis=1).tolist()
    return found


def work_solo(task: Document, protocol: Document, report: Report) -> Document:
    """One artifact alone: load time, peak memory at the scenario's shape, then accuracy."""
    import numpy  # noqa: F401  - part of the baseline

    if protocol["runtime"]["kind"] == "onnxruntime":
        import onnxruntime  # noqa: F401  - part of the baseline
    index = task["artifact"]
    entry = task["artifacts"][index]
    prepare_runtime([entry], protocol)
    result: Document = {"artifact": index, "baseline_rss_bytes": peak_rss_bytes()}
    report({"event": "solo", "artifact": index, "step": "load"})
    lane, result["load_ns"] = open_lane(index, entry, protocol)
    lane.turn(new_samples(protocol), -1, task["memory_calls"], WARMUP, WARMUP)
    result["peak_rss_bytes"] = peak_rss_bytes()
    result["execution"] = lane.runtime.execution()
    if entry.get("decoder") and entry.get("inputs"):
        report({"event": "solo", "artifact": index, "step": "tokens"})
        arrays = load_arrays(os.path.join(entry["path"], entry["inputs"]))
        result["greedy"] = lane.runtime.check(arrays)
    if task["accuracy"] is not None and entry.get("evaluation"):
        report({"event": "solo", "artifact": index, "step": "accuracy"})
        runtime = lane.runtime
        every = task["all_cpus"]
        if len(every) > protocol["runtime"]["threads"] and hasattr(os, "sched_setaffinity"):
            # Accuracy is not timed, so it may use every CPU. The batch is the timed scenario's:
            # dynamic quantisation takes its activation range over the whole batch.
            pin(every)
            wide = dict(protocol, runtime=dict(protocol["runtime"], threads=len(every)))
            runtime = open_lane(index, dict(entry, inputs=None), wide)[0].runtime
        if entry.get("decoder"):
            arrays = load_arrays(os.path.join(entry["path"], entry["evaluation"]))
            result["perplexity"] = runtime.perplexity(arrays, task["accuracy"])
        else:
            result["accuracy"] = evaluate(runtime, entry, task["accuracy"], protocol["batch"])
    return result


def work_launch(task: Document, protocol: Document, report: Report) -> Document:
    """All artifacts in one process, in turns."""
    rng = random.Random(f"{protocol['seed']}/{task['launch']}")
    entries = task["artifacts"]
    load_ns: list[int | None] = [None] * len(entries)
    warmups: list[Document | None] = [None] * len(entries)
    order = list(task["lanes"])
    rng.shuffle(order)
    prepare_runtime([entries[index] for index in order], protocol)
    swaps: dict[str, list[float | None]] = {
        name: [None] * len(entries) for name in ("adapter_swap_ns", "adapter_load_ns")
    }
    lanes = []
    for index in order:
        lane, load_ns[index] = open_lane(index, entries[index], protocol)
        lanes.append(lane)
    samples = new_samples(protocol)
    gc.collect()
    gc.disable()
    report({"event": "launch", "launch": task["launch"], "step": "warm-up"})
    for lane in lanes:
        warmups[lane.index] = warm_up(lane, samples, protocol["warmup"])
        if entries[lane.index].get("adapters"):
            for name, each in lane.runtime.adapter_times().items():
                swaps[name][lane.index] = each
    cpus = available_cpus()

    def progress(elapsed: float) -> None:
        report(
            {
                "event": "progress",
                "launch": task["launch"],
                "elapsed_s": elapsed,
                "counts": {lane.index: lane.measured for lane in lanes},
                "median_ns": {
                    lane.index: median_of(samples.measured(lane.index)[-200:])
                    for lane in lanes
                    if lane.measured
                },
            }
        )

    usage, load = resource.getrusage(resource.RUSAGE_SELF), ForeignLoad(cpus)
    begin = clock()
    stopped_by = measure_rounds(lanes, samples, protocol, rng, progress)
    end = clock()
    foreign = load.shares()
    after_usage = resource.getrusage(resource.RUSAGE_SELF)
    result: Document = {
        "load_ns": load_ns,
        "warmup": warmups,
        **swaps,
        "stopped_by": stopped_by,
        "window_ns": [begin, end],
        "involuntary_switches": after_usage.ru_nivcsw - usage.ru_nivcsw,
        "major_faults": after_usage.ru_majflt - usage.ru_majflt,
    }
    rule = protocol.get("energy")
    if rule:
        directory = os.path.dirname(task["samples"])

        def energy_progress(rounds: int, elapsed: float) -> None:
            event = {"event": "energy", "launch": task["launch"]}
            report(dict(event, rounds=rounds, elapsed_s=elapsed, **watts(directory)))

        load = ForeignLoad(cpus)
        meter = functools.partial(live_meter, directory)
        result.update(energy_rounds(lanes, samples, rule, rng, meter, energy_progress))
        # The larger of both parts: each of them may void what was measured then.
        foreign = {name: larger(share, foreign[name]) for name, share in load.shares().items()}
    result.update(foreign)
    if protocol.get("decoding"):
        result["generated"] = [None] * len(entries)
        for lane in lanes:
            if entries[lane.index].get("decoder"):
                result["generated"][lane.index] = lane.runtime.generated()
    save_array(task["samples"], samples.table())
    if samples.tokens.shape[1]:
        save_array(task["tokens"], samples.tokens[: samples.size])
    return result


def save_array(path: str, array: Ints) -> None:
    """Write a .npy file. In memory first: numpy's own writing to a full disk fails without an
    errno."""
    import numpy

    buffer = io.BytesIO()
    numpy.save(buffer, array, allow_pickle=False)
    with open(path, "wb") as stream:
        stream.write(buffer.getvalue())


def larger(one: float | None, other: float | None) -> float | None:
    """The larger of two shares; None where neither could be told."""
    known = [share for share in (one, other) if share is not None]
    return max(known) if known else None


def watts(directory: str) -> Document:
    """The live meter's last power reading, for the progress line; nothing where it has none."""
    live = live_meter(directory)
    if live is None:
        return {}
    t, v = live.readings()
    if live.channel["quantity"] == "power" and len(v):
        return {"power_w": float(v[-1])}
    recent = t >= t[-1] - 2_000_000_000 if len(t) else t
    if len(v[recent]) < 2 or v[recent][-1] < v[recent][0]:
        return {}
    return {"power_w": float((v[recent][-1] - v[recent][0]) / (t[recent][-1] - t[recent][0]) * 1e9)}


class ForeignLoad:
    """What others take of some CPUs from here on, while this process works."""

    def __init__(self, cpus: list[int]) -> None:
        self.cpus = cpus
        self.ticks = cpu_ticks(cpus)
        self.begin = clock()
        self.own_s = time.process_time()

    def shares(self) -> dict[str, float | None]:
        """Shares of these CPUs' time that other processes used, and that a hypervisor took."""
        found: dict[str, float | None] = {"foreign_cpu_fraction": None, "steal_fraction": None}
        after = cpu_ticks(self.cpus)
        if self.ticks and after:
            hertz = os.sysconf("SC_CLK_TCK")
            room_s = (clock() - self.begin) / 1e9 * len(self.cpus)
            busy_s = (after["busy"] - self.ticks["busy"]) / hertz
            own_s = time.process_time() - self.own_s
            found["foreign_cpu_fraction"] = max(0.0, busy_s - own_s) / room_s
            found["steal_fraction"] = (after["steal"] - self.ticks["steal"]) / hertz / room_s
        return found


def die_with_parent() -> None:
    """Ask Linux for SIGKILL when the supervisor dies (prctl PR_SET_PDEATHSIG = 1)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)


#: How a failed allocation reads in an exception, or in what the C++ runtime prints as it aborts.
NO_MEMORY = re.compile(
    r"bad.?alloc|Failed to allocate memory|bad_array_new|out of memory", re.IGNORECASE
)


def work(task_path: str) -> int:
    """Role ``work``: one task file, one result file, progress on stdout."""
    die_with_parent()
    task = read_json(task_path)
    if os.getppid() != task["supervisor"]:
        return 1  # it died before it could be watched
    protocol = task["protocol"]
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as stream:
        stream.write("1000")
    limit = protocol.get("memory_limit_bytes")
    if limit and sys.platform.startswith("linux"):
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    if protocol["runtime"].get("cpus"):
        pin(protocol["runtime"]["cpus"])

    def report(event: Document) -> None:
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()

    try:
        result = (work_solo if task["kind"] == "solo" else work_launch)(task, protocol, report)
        write_json(task["result"], dict(result, outcome="ok"))
        return 0
    except MemoryError:
        outcome, text = "out-of-memory", "the process reached its memory limit"
    except AgentError as error:
        outcome, text = "error", error.message
    except Exception as error:  # noqa: BLE001 - whatever a model does to a runtime is an outcome
        if isinstance(error, OSError) and disk_is_full(error):
            report({"event": "disk-full", "error": str(error)})
            return EXIT_DISK_FULL
        text = f"{type(error).__name__}: {error}"
        outcome = "out-of-memory" if NO_MEMORY.search(text) else "error"
        traceback.print_exc()
    write_json(task["result"], {"outcome": outcome, "error": text[:2000]})
    return 0


# ---------------------------------------------------------------- the supervisor


class Spool:
    """A run's directory on the device's disk: everything that happens is written here first."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._lock = threading.Lock()
        # Unbuffered: a line that did not fit must not be tried again when the file is closed.
        self._events = open(self.file("events.jsonl"), "ab", buffering=0)  # noqa: SIM115
        self._state = open(self.file("state.jsonl"), "ab", buffering=0)  # noqa: SIM115

    def file(self, name: str) -> str:
        """The path of a file of this run."""
        return os.path.join(self.path, name)

    def event(self, event: Document) -> None:
        """Append to what the host follows."""
        self._append(self._events, dict(event, t_ns=clock()))

    def state(self, line: Document) -> None:
        """Append a reading of the device's state."""
        self._append(self._state, line)

    def _append(self, stream: io.FileIO, document: Document) -> None:
        data = (json.dumps(document) + "\n").encode()
        with self._lock:
            if stream.write(data) != len(data):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def sync(self) -> None:
        """Make it last through a power cut."""
        os.fsync(self._events.fileno())
        os.fsync(self._state.fileno())

    def release_reserve(self) -> None:
        """Give back the space that was kept for the last words."""
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.file("reserve"))


class Supervisor:
    """One run, from the first state reading to result.json."""

    def __init__(self, run_dir: str) -> None:
        self.spool = Spool(run_dir)
        self.plan = read_json(self.spool.file("plan.json"))
        self.protocol: Document = self.plan["protocol"]
        self.entries: list[Document] = self.plan["artifacts"]
        self.deadline = time.monotonic() + self.protocol["deadline_s"]
        #: What cuts the run short ("deadline", "cancelled"), once something does.
        self.ending: str | None = None
        #: Why a worker's progress could not be written.
        self.disk_error: str | None = None
        self.launch: int | None = None
        self.task_number = 0
        self.result: Document = {
            "run": self.plan["id"],
            "status": "running",
            **self.plan["about"],
            "agent": {"protocol": PROTOCOL, "digest": self.plan.get("agent_digest")},
            "started_ns": clock(),
            "solo": [],
            "launches": [],
            "samples": [],
        }
        self.all_cpus = available_cpus()
        self.cpus: list[int] = self.protocol["runtime"].get("cpus") or self.all_cpus
        others = [cpu for cpu in self.all_cpus if cpu not in self.cpus]
        if others:
            pin(others)

    def run(self) -> None:
        """Measure, then say how it ended, even on a disk that has filled up meanwhile."""
        signal.signal(signal.SIGTERM, lambda *_: self.end("cancelled"))
        status, error = "done", None
        meters = Meters(self.plan, self.spool.path)
        try:
            meters.start([cpu for cpu in self.all_cpus if cpu not in self.cpus])
            self.state("before")
            self.run_tasks()
            self.state("after")
            status = self.ending or status
        except OSError as failure:
            if not disk_is_full(failure):
                raise
            status, error = "disk-full", str(failure)
        finally:
            meters.stop()
        self.spool.release_reserve()
        self.result.update(status=status, ended_ns=clock(), error=error)
        write_json(self.spool.file("result.json"), self.result)

    def end(self, status: str) -> None:
        """Cut the run short; the first reason counts."""
        self.ending = self.ending or status

    def ended(self) -> str | None:
        """What cuts the run short by now, if anything does."""
        if os.path.exists(self.spool.file("cancel")):
            self.end("cancelled")
        if time.monotonic() > self.deadline:
            self.end("deadline")
        return self.ending

    def state(self, when: str, flags: bool = True) -> None:
        """Write down the device's state."""
        self.spool.state(device_state(when, self.launch, self.cpus, flags))

    def keep(self) -> None:
        """What has been measured so far, durable: a reboot from here loses nothing of it."""
        self.spool.sync()
        write_json(self.spool.file("partial.json"), self.result)

    def run_tasks(self) -> None:
        """Each artifact alone, in random order, then the launches with all that could be run."""
        order = list(range(len(self.entries)))
        random.Random(self.protocol["seed"]).shuffle(order)
        usable = []
        for index in order:
            if self.ended():
                return
            found = self.run_worker(
                {
                    "kind": "solo",
                    "artifact": index,
                    "accuracy": self.protocol["accuracy"],
                    "memory_calls": max(4, self.protocol["calls_per_turn"]),
                }
            )
            found.setdefault("artifact", index)
            self.result["solo"].append(found)
            if found["outcome"] == "ok":
                usable.append(index)
            self.keep()
        for launch in range(self.protocol["launches"] if usable else 0):
            self.launch = launch
            self.cool_down()
            if self.ended():
                return
            entry = {"file": f"launch-{launch:03d}.npy", "tokens": f"tokens-{launch:03d}.npy"}
            paths = {"samples": self.spool.file(entry["file"])}
            paths["tokens"] = self.spool.file(entry["tokens"])
            begin = clock()
            found = self.run_worker(
                {"kind": "launch", "launch": launch, "lanes": sorted(usable), **paths}
            )
            found.update(index=launch, started_ns=begin, ended_ns=clock())
            if found["outcome"] == "ok":
                if not os.path.exists(paths["tokens"]):
                    del entry["tokens"]
                for name in entry.values():
                    with open(self.spool.file(name), "rb") as stream:
                        os.fsync(stream.fileno())
                self.result["samples"].append({"launch": launch, **entry})
            self.result["launches"].append(found)
            self.state("during")
            self.keep()
        self.launch = None

    def cool_down(self) -> None:
        """Wait until the device is as cool as its profile asks, or has had its time."""
        rule = self.protocol.get("cooldown")
        begin = time.monotonic()
        while rule and not self.ended() and time.monotonic() - begin < rule["max_s"]:
            zones = device_state("before", self.launch, self.cpus, flags=False)["temperature_c"]
            if not zones or max(zones.values()) <= rule["below_c"]:
                return
            event = {"temperature_c": max(zones.values()), "below_c": rule["below_c"]}
            self.spool.event({"event": "cool-down", **event})
            time.sleep(1.0)

    def run_worker(self, task: Document) -> Document:
        """Start one worker, watch it, and return its result or how it ended."""
        base = self.spool.file(f"task-{self.task_number:03d}")
        self.task_number += 1
        task = dict(
            task,
            protocol=self.protocol,
            artifacts=self.entries,
            all_cpus=self.all_cpus,
            result=base + ".result.json",
            supervisor=os.getpid(),
        )
        write_json(base + ".json", task)
        oom_before = oom_kills()
        with open(base + ".log", "wb") as log:
            worker = subprocess.Popen(
                [sys.executable, os.path.abspath(__file__), "work", base + ".json"],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=dict(
                    bundle_environment(self.plan),
                    **self.protocol["runtime"].get("environment", {}),
                ),
            )
        events = threading.Thread(target=self.forward, args=(worker.stdout,), daemon=True)
        events.start()
        try:
            killed = self.watch(worker)
        finally:
            worker.kill()  # nothing happens to one that has ended
            worker.wait()
            events.join()
        if self.disk_error:
            raise OSError(errno.ENOSPC, self.disk_error)
        if killed:
            return {"outcome": killed, "error": KILLED[killed]}
        if worker.returncode == 0:
            return read_json(task["result"])
        return worker_death(worker.returncode, read_text(base + ".log") or "", oom_before)

    def watch(self, worker: subprocess.Popen[bytes]) -> str | None:
        """Wait for a worker, reading the device's state every second; where it has to be killed
        for memory, deadline or cancellation, say which."""
        limit = self.protocol.get("memory_limit_bytes")
        next_state = time.monotonic()
        while True:
            if time.monotonic() >= next_state:
                self.state("during", flags=False)
                next_state = max(next_state + 1.0, time.monotonic())
            with contextlib.suppress(subprocess.TimeoutExpired):
                worker.wait(0.1)
                return None
            if limit and (rss_bytes(worker.pid) or 0) > limit:
                return "out-of-memory"
            if self.disk_error or self.ended():
                return self.ending

    def forward(self, stream: Iterable[bytes]) -> None:
        """Copy a worker's progress into the spool."""
        for raw in stream:
            try:
                event = json.loads(raw)
            except ValueError:
                continue  # a library printed something of its own
            if not isinstance(event, dict):
                continue
            try:
                if event.get("event") == "disk-full":
                    raise OSError(errno.ENOSPC, event["error"])
                self.spool.event(event)
            except OSError as error:
                self.disk_error = error.strerror or str(error)


def bundle_environment(plan: Document) -> dict[str, str]:
    """The environment in which the files that were sent beside the agent can be imported."""
    path = (plan.get("bundle") or {}).get("path")
    if not path:
        return dict(os.environ)
    paths = [path, os.environ.get("PYTHONPATH", "")]
    return dict(os.environ, PYTHONPATH=os.pathsep.join(each for each in paths if each))


class Meters:
    """The meters' process of a run, where the plan names any."""

    def __init__(self, plan: Document, directory: str) -> None:
        self.plan = plan
        self.directory = directory
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, cpus: list[int]) -> None:
        """Start it on CPUs that are not measured, and wait until every meter is open or failed."""
        specs = self.plan.get("meters") or []
        if not specs:
            return
        config = os.path.join(self.directory, "meters.json")
        write_json(config, {"meters": specs, "directory": self.directory, "cpus": cpus or None})
        with open(os.path.join(self.directory, "meters.log"), "wb") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "edgebench.meters.sampler", "record", config],
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                env=bundle_environment(self.plan),
            )
        until = time.monotonic() + METERS_START_S
        while time.monotonic() < until and self.process.poll() is None:
            settled = set()
            lines = (read_text(os.path.join(self.directory, "meters.jsonl")) or "").splitlines()
            for line in lines:
                with contextlib.suppress(ValueError):  # half a line, which is being written
                    settled.add(json.loads(line)["meter"])
            if len(settled) >= len(specs):
                return
            time.sleep(0.05)

    def stop(self) -> None:
        """End it: it writes down what it has, or is killed."""
        if self.process is None:
            return
        assert self.process.stdin is not None
        with contextlib.suppress(BrokenPipeError):
            self.process.stdin.close()
        try:
            self.process.wait(5.0)
        except subprocess.TimeoutExpired:
            self.process.kill()
            self.process.wait()


#: How long meters may take to open: a board's firmware, a driver's first import (seconds).
METERS_START_S = 15.0


#: Why the supervisor killed a worker.
KILLED = {
    "out-of-memory": "its resident memory passed the device's limit",
    "deadline": "the run's deadline was reached",
    "cancelled": "the run was cancelled",
}


def rss_bytes(pid: int) -> int | None:
    """Resident memory of a process."""
    return kib(find_int(r"^VmRSS:\s*(\d+) kB", f"/proc/{pid}/status"))


def oom_kills() -> int | None:
    """How many processes the kernel has killed for memory (proc(5), /proc/vmstat)."""
    return find_int(r"^oom_kill (\d+)", PROC + "/vmstat")


def worker_death(code: int, log: str, oom_before: int | None) -> Document:
    """How a worker ended that left no result. ``code``: as subprocess gives it."""
    if code == -signal.SIGKILL:
        now = oom_kills()
        if now is not None and oom_before is not None and now > oom_before:
            return {"outcome": "out-of-memory", "error": "the kernel killed it for memory"}
        return {"outcome": "killed", "error": "killed by SIGKILL from outside"}
    if NO_MEMORY.search(log):
        return {"outcome": "out-of-memory", "error": "the process reached its memory limit"}
    how = f"signal {-code}" if code < 0 else f"exit status {code}"
    return {"outcome": "crashed", "error": f"{how}. {log[-2000:]}".strip()}


def supervise(run_dir: str) -> int:
    """Role ``supervise``: detached; the lock and alive files' descriptors are inherited."""
    Supervisor(run_dir).run()
    return 0


# ---------------------------------------------------------------- locks


def lock_path(name: str) -> str:
    """One lock a device, the same for every user: /tmp where there is one (Termux has its own)."""
    base = "/tmp" if os.access("/tmp", os.W_OK | os.X_OK) else tempfile.gettempdir()
    return os.path.join(base, f"edgebench-{name}.lock")


def open_lock(path: str) -> int:
    """Open a lock file that any user may hold; never through a link, never O_CREAT on another
    user's file (fs.protected_regular refuses that in sticky directories)."""
    flags = os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        with contextlib.suppress(FileNotFoundError):
            return os.open(path, flags)
        try:
            descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
        except FileExistsError:
            return os.open(path, flags)
        os.fchmod(descriptor, 0o666)
        return descriptor
    except OSError as error:
        raise AgentError("lock", f"can't open the lock {path}: {error.strerror}") from error


def try_lock(descriptor: int, kind: int = fcntl.LOCK_EX) -> bool:
    """Take a lock if it is free. The kernel drops it with the last process that has it open."""
    try:
        fcntl.flock(descriptor, kind | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK):
            return False
        raise
    return True


def is_held(descriptor: int) -> bool:
    """Whether somebody holds a lock. Closes the descriptor. Looks don't disturb each other."""
    try:
        return not try_lock(descriptor, fcntl.LOCK_SH)
    finally:
        os.close(descriptor)


def take_lock(path: str) -> int | None:
    """A descriptor that holds the lock, or None while somebody else measures."""
    descriptor = open_lock(path)
    for _ in range(5):
        if try_lock(descriptor):
            return descriptor
        time.sleep(0.02)  # somebody may only be looking
    os.close(descriptor)
    return None


def holder(path: str) -> Document:
    """Who holds a lock, as its owner wrote it: data for a message, never trusted."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            found = json.loads(stream.read(4096))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


# ---------------------------------------------------------------- serving the host


#: Runtime kind -> what imports it and says what it offers.
PROVIDER_SCRIPTS = {
    "onnxruntime": (
        "import json,time;t=time.perf_counter();import onnxruntime as o;"
        "print(json.dumps({'version':o.__version__,'providers':o.get_available_providers(),"
        "'import_s':time.perf_counter()-t}))"
    ),
    "torch": (
        "import json,time;t=time.perf_counter();import torch as o,transformers;"
        "print(json.dumps({'version':o.__version__,'providers':['cpu']+"
        "['cuda']*o.cuda.is_available(),'import_s':time.perf_counter()-t}))"
    ),
}


class Server:
    """The host's end of the agent: one request a line, one reply a line, events in between."""

    def __init__(self, root: str, lock: str, stdin: TextIO, stdout: TextIO) -> None:
        self.root = os.path.abspath(os.path.expanduser(root))
        self.lock_path = lock_path(lock)
        self.stdin = stdin
        self.stdout = stdout
        self._writing = threading.Lock()
        self._about: Document | None = None

    def say(self, line: str) -> None:
        """Write one line; replies and events of several threads don't mix."""
        with self._writing:
            self.stdout.write(line + "\n")
            self.stdout.flush()

    def run(self) -> None:
        """Answer until the host is gone. Runs are detached and go on; nothing is left to do."""
        try:
            self.say(f"\n{SENTINEL} {PROTOCOL}")
            for line in self.stdin:
                if line.strip():
                    self.say(json.dumps(self.answer(line)))
        except BrokenPipeError:
            pass
        os._exit(0)  # threads that still follow a run have nobody to tell

    def answer(self, line: str) -> Document:
        """The reply to one request line."""
        number = None
        try:
            request = json.loads(line)
            number = request.get("id")
            name = str(request["op"])
            operation = getattr(self, "do_" + name.replace("-", "_"), None)
            if operation is None:
                raise AgentError("unknown-op", f"this agent does not know {name!r}")
            return dict(operation(request), id=number)
        except AgentError as error:
            found = dict(error.more, code=error.code, message=error.message)
        except OSError as error:
            found = {"code": "disk-full" if disk_is_full(error) else "os", "message": str(error)}
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            found = {"code": "bad-request", "message": repr(error)}
        return {"id": number, "error": found}

    # -- about the device

    def do_hello(self, request: Document) -> Document:
        """Who is there."""
        os.makedirs(self.root, exist_ok=True)
        held = is_held(open_lock(self.lock_path))
        return {
            "protocol": PROTOCOL,
            "pid": os.getpid(),
            "executable": sys.executable,
            "root": self.root,
            **self.about(),
            "disk_free_bytes": shutil.disk_usage(self.root).free,
            "lock": {
                "path": self.lock_path,
                "held_by": holder(self.lock_path) if held else None,
            },
            "clock": self.do_clock(request),
        }

    def about(self) -> Document:
        """What the device is and has; looked up once, since the supervisor needs it too."""
        if self._about is None:
            self._about = {"identity": identity(), "versions": versions()}
        return self._about

    def do_clock(self, request: Document) -> Document:
        """The device's time."""
        return {"monotonic_ns": clock(), "unix_ns": time.time_ns()}

    def do_state(self, request: Document) -> Document:
        """The device's state, now and some seconds later."""
        cpus = request.get("cpus") or available_cpus()
        first = device_state("before", None, cpus)
        time.sleep(min(float(request.get("seconds", 0)), 10.0))
        return {"state": first, "later": device_state("before", None, cpus)}

    def do_provider(self, request: Document) -> Document:
        """Import a runtime, in a process of its own, and say what it offers."""
        script = PROVIDER_SCRIPTS[request.get("kind", "onnxruntime")]
        done = subprocess.run(
            [sys.executable, "-c", script],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            check=False,
        )
        if done.returncode:
            lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
            return {"missing": lines[-1] if lines else f"exit status {done.returncode}"}
        # What a library says while it is imported comes before our line.
        return {"runtime": json.loads(done.stdout.splitlines()[-1]), "native": tried_kernels()}

    # -- files, by digest

    def blob(self, digest: str) -> str:
        """The path of a cached file."""
        if not re.match(r"^[0-9a-f]{64}$", digest):
            raise AgentError("bad-request", f"not a SHA-256: {digest!r}")
        return os.path.join(self.root, "cache", digest)

    def has_blob(self, digest: str, size: int) -> bool:
        """Whether a file has arrived whole: it was verified, and has not been cut since."""
        path = self.blob(digest)
        whole = os.path.isfile(path) and os.path.getsize(path) == size
        return whole and os.path.isfile(path + ".ok")

    def do_missing(self, request: Document) -> Document:
        """Which files of a list of digests and sizes have to be sent, and where to."""
        cache = os.path.join(self.root, "cache")
        os.makedirs(cache, exist_ok=True)
        files = request["files"].items()
        return {"missing": [d for d, size in files if not self.has_blob(d, size)], "cache": cache}

    def do_verify(self, request: Document) -> Document:
        """Hash a file that was just sent; a wrong one is removed."""
        path, hashed = self.blob(request["digest"]), hashlib.sha256()
        with open(path, "rb") as stream:
            for chunk in iter(lambda: stream.read(1 << 20), b""):
                hashed.update(chunk)
            os.fsync(stream.fileno())
        if hashed.hexdigest() != request["digest"]:
            os.unlink(path)
            raise AgentError("truncated", "the file arrived broken: its digest does not match")
        write_json(path + ".ok", {})
        return {}

    # -- runs

    def run_dir(self, run: str) -> str:
        """The spool of a run."""
        if not re.match(r"^[0-9A-Za-z-]{1,64}$", run):
            raise AgentError("bad-request", f"not a run id: {run!r}")
        return os.path.join(self.root, "runs", run)

    def known_run(self, run: str) -> str:
        """The spool of a run that was started here and has not been forgotten."""
        run_dir = self.run_dir(run)
        if not os.path.isfile(os.path.join(run_dir, "plan.json")):
            raise AgentError("no-run", "no such run here")
        return run_dir

    def do_start(self, request: Document) -> Document:
        """Start a run, detached. The same run again is answered without starting it twice."""
        plan = request["plan"]
        if plan["agent_protocol"] != PROTOCOL:
            raise AgentError("protocol", f"this agent speaks protocol {PROTOCOL}")
        run_dir = self.run_dir(plan["id"])
        known = {"started": False, "run_dir": run_dir}
        if os.path.exists(os.path.join(run_dir, "plan.json")):
            return known
        lock = take_lock(self.lock_path)
        if lock is None:
            if os.path.exists(os.path.join(run_dir, "plan.json")):
                return known  # it was started meanwhile, by a request whose reply got lost
            owner = holder(self.lock_path)
            raise AgentError("busy", "another measurement holds the device", holder=owner)
        try:
            self.sweep()
            shutil.rmtree(run_dir, ignore_errors=True)  # left by a start of this run that died
            os.makedirs(run_dir)
            try:
                self.prepare(run_dir, plan, int(request.get("disk_bytes", 0)))
                self.launch(run_dir, plan, lock)
            except BaseException:
                shutil.rmtree(run_dir, ignore_errors=True)
                raise
        finally:
            os.close(lock)
        return {"started": True, "run_dir": run_dir}

    def sweep(self) -> None:
        """Remove what transfers and starts left that died half-way."""
        for run_dir in glob.glob(os.path.join(self.root, "runs", "*", "")):
            if not os.path.exists(os.path.join(run_dir, "plan.json")) and age_s(run_dir) > 60:
                shutil.rmtree(run_dir)
        for part in glob.glob(os.path.join(self.root, "*", ".*.part")):
            if age_s(part) > ABANDONED_S:
                os.unlink(part)

    def prepare(self, run_dir: str, plan: Document, disk_bytes: int) -> None:
        """Make a run's directory ready: room on the disk, the reserve, artifacts, the plan."""
        free, needed = shutil.disk_usage(run_dir).free, disk_bytes + RESERVE_BYTES
        if free < needed:
            text = f"{free >> 20} MiB free, the run needs {(needed >> 20) + 1} MiB"
            raise AgentError("disk-full", text)
        with open(os.path.join(run_dir, "reserve"), "wb") as stream:
            stream.write(b"\0" * RESERVE_BYTES)
        for entry in plan["artifacts"]:
            if entry.get("files") and not entry.get("path"):
                digest = entry["digest"].split(":")[-1]
                target = os.path.join(run_dir, "artifacts", digest)
                entry["path"] = self.assemble(target, entry["files"])
        if plan.get("bundle"):
            plan["bundle"] = {"path": self.bundle(plan["bundle"])}
        plan["about"] = self.about()
        write_json(os.path.join(run_dir, "plan.json"), plan)

    def assemble(self, target: str, files: Document) -> str:
        """A directory of cached files, as hard links into the cache (or links to a path)."""
        for name, file in files.items():
            path = os.path.normpath(os.path.join(target, name))
            if not path.startswith(target + os.sep):
                raise AgentError("bad-request", f"a file name leaves its directory: {name!r}")
            if not self.has_blob(file["sha256"], file["bytes"]):
                raise AgentError("truncated", f"the cached copy of {name} is broken or missing")
            os.makedirs(os.path.dirname(path), exist_ok=True)
            with contextlib.suppress(FileExistsError):
                try:
                    os.link(self.blob(file["sha256"]), path)
                except FileExistsError:
                    raise
                except OSError:
                    os.symlink(self.blob(file["sha256"]), path)
        return target

    def bundle(self, bundle: Document) -> str:
        """Where the files stand that were sent beside the agent (meters, runtimes)."""
        if bundle.get("path"):
            return str(bundle["path"])
        digest = str(bundle["digest"])
        if not re.match(r"^[0-9a-f]{64}$", digest):
            raise AgentError("bad-request", f"not a SHA-256: {digest!r}")
        return self.assemble(os.path.join(self.root, "bundles", digest), bundle["files"])

    def do_meters(self, request: Document) -> Document:
        """What meters are here, or what some of them say when they are opened once."""
        specs = request.get("specs")
        environment = bundle_environment({"bundle": {"path": self.bundle(request["bundle"])}})
        role = ["open"] if specs is not None else ["probe", *request.get("kinds", [])]
        try:
            done = subprocess.run(
                [sys.executable, "-m", "edgebench.meters.sampler", *role],
                input=json.dumps(specs).encode(),
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                env=environment,
                timeout=60,
                check=False,
            )
        except subprocess.TimeoutExpired as error:
            raise AgentError("meters", "a meter did not answer within 60 s") from error
        if done.returncode:
            lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
            why = lines[-1] if lines else f"exit status {done.returncode}"
            raise AgentError("meters", f"the meters' process failed: {why}")
        # What a driver says while it is imported comes before our line.
        return {"meters": json.loads(done.stdout.splitlines()[-1])}

    def launch(self, run_dir: str, plan: Document, lock: int) -> None:
        """Start the supervisor, which inherits the device's lock and its own sign of life."""
        alive = os.open(os.path.join(run_dir, "alive"), os.O_RDWR | os.O_CREAT, 0o600)
        try:
            try_lock(alive)
            with open(os.path.join(run_dir, "supervisor.log"), "ab") as log:
                child = subprocess.Popen(
                    [sys.executable, os.path.abspath(__file__), "supervise", run_dir],
                    stdin=subprocess.DEVNULL,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                    pass_fds=(lock, alive),
                    cwd="/",
                )
        finally:
            os.close(alive)
        mark = {"run": plan["id"], "pid": child.pid, "owner": plan.get("owner")}
        text = json.dumps(dict(mark, since_unix=int(time.time())))
        with contextlib.suppress(OSError):  # who it is is only told; that it is held is what counts
            os.ftruncate(lock, 0)
            os.pwrite(lock, text.encode(), 0)
        # Reap the supervisor if it ends while we are here.
        threading.Thread(target=child.wait, daemon=True).start()

    def status(self, run_dir: str) -> str:
        """running, ended, or lost: its supervisor died before it could say how the run ended.

        One that has written the result still runs until it is gone, and the device's lock with it.
        """
        with contextlib.suppress(FileNotFoundError):
            if is_held(os.open(os.path.join(run_dir, "alive"), os.O_RDWR)):
                return "running"
        return "ended" if os.path.exists(os.path.join(run_dir, "result.json")) else "lost"

    def do_runs(self, request: Document) -> Document:
        """All runs that nobody has forgotten."""
        found = []
        for path in sorted(glob.glob(os.path.join(self.root, "runs", "*", "plan.json"))):
            run_dir = os.path.dirname(path)
            plan = read_json(path)
            found.append(
                {
                    "run": os.path.basename(run_dir),
                    "status": self.status(run_dir),
                    "owner": plan.get("owner"),
                    "store": plan.get("store"),
                    "names": [entry["name"] for entry in plan["artifacts"]],
                    "launches": plan["protocol"]["launches"],
                }
            )
        return {"runs": found}

    def do_follow(self, request: Document) -> Document:
        """Stream the run's events from a byte offset, in a thread, until it ends."""
        run_dir = self.known_run(request["run"])
        arguments = (request["run"], run_dir, int(request.get("offset", 0)))
        threading.Thread(target=self.follow, args=arguments, daemon=True).start()
        return {}

    def follow(self, run: str, run_dir: str, offset: int) -> None:
        """The thread of ``do_follow``. A negative offset leaves out what was there before."""
        path = os.path.join(run_dir, "events.jsonl")
        status = "running"
        while status == "running":
            status = self.status(run_dir)  # before reading, so that nothing is missed
            data = b""
            with contextlib.suppress(FileNotFoundError), open(path, "rb") as stream:
                if offset < 0:
                    offset = stream.read().rfind(b"\n") + 1
                stream.seek(offset)
                data = stream.read()
            whole = data[: data.rfind(b"\n") + 1]
            offset += len(whole)
            with contextlib.suppress(BrokenPipeError):  # the main thread sees it too
                for line in whole.splitlines():
                    self.say(json.dumps({"run": run, "event": json.loads(line)}))
                if status != "running":
                    self.say(json.dumps({"run": run, "ended": status}))
            time.sleep(0.1)

    def do_collect(self, request: Document) -> Document:
        """What to fetch of a run that has ended: file names, sizes and digests."""
        run_dir = self.known_run(request["run"])
        status = self.status(run_dir)
        if status == "running":
            raise AgentError("running", "the run has not ended")
        name = "result.json" if status == "ended" else "partial.json"
        if not os.path.exists(os.path.join(run_dir, name)):
            log = (read_text(os.path.join(run_dir, "supervisor.log")) or "")[-2000:]
            text = f"the run died before it had measured anything. {log}".strip()
            raise AgentError("nothing", text)
        entries = read_json(os.path.join(run_dir, name))["samples"]
        samples = [item[key] for item in entries for key in ("file", "tokens") if key in item]
        files = {}
        spooled = ["meters.bin", "meters.jsonl"]
        meters = [item for item in spooled if os.path.exists(os.path.join(run_dir, item))]
        for item in (name, "plan.json", "state.jsonl", *samples, *meters):
            with open(os.path.join(run_dir, item), "rb") as stream:
                data = stream.read()
            files[item] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        return {"status": status, "result": name, "run_dir": run_dir, "files": files}

    def do_cancel(self, request: Document) -> Document:
        """End a run soon; what it has measured stays until it is forgotten."""
        open(os.path.join(self.known_run(request["run"]), "cancel"), "wb").close()
        return {}

    def do_forget(self, request: Document) -> Document:
        """Remove a run's spool, once the host has stored it."""
        run_dir = self.known_run(request["run"])
        if self.status(run_dir) == "running":
            raise AgentError("running", "the run has not ended")
        shutil.rmtree(run_dir)
        return {}


def serve(root: str, lock: str) -> int:
    """Role ``serve``. Requests on stdin, replies on stdout after the sentinel line."""
    root = os.path.abspath(os.path.expanduser(root))
    activate_site(os.path.join(root, "site", "active"))
    library = os.path.join(root, "native", "active", "libedgebench_ops.so")
    if os.path.isfile(library):
        os.environ[NATIVE_INSTALLED] = library
    else:
        os.environ.pop(NATIVE_INSTALLED, None)
    Server(root, lock, sys.stdin, sys.stdout).run()
    return 0


def activate_site(directory: str) -> None:
    """Packages that `edgebench setup` unpacked on this device come before the system's own."""
    if os.path.isdir(directory):
        sys.path.insert(0, directory)
        paths = [directory, os.environ.get("PYTHONPATH", "")]
        os.environ["PYTHONPATH"] = os.pathsep.join(path for path in paths if path)


def main(argv: list[str] | None = None) -> int:
    """The command line: one role."""
    parser = argparse.ArgumentParser(description="The edgebench agent.")
    roles = parser.add_subparsers(dest="role", required=True)
    serving = roles.add_parser("serve")
    serving.add_argument("--root", default="~/.edgebench")
    serving.add_argument("--lock", default="device")
    roles.add_parser("supervise").add_argument("run_dir")
    roles.add_parser("work").add_argument("task")
    roles.add_parser("native")
    arguments = parser.parse_args(argv)
    if arguments.role == "serve":
        return serve(arguments.root, arguments.lock)
    if arguments.role == "supervise":
        return supervise(arguments.run_dir)
    if arguments.role == "native":
        sys.stdout.write(json.dumps(native_kernels()) + "\n")
        return 0
    return work(arguments.task)


if __name__ == "__main__":
    sys.exit(main())
