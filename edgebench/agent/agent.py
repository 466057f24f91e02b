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
    work       one launch: loads the artifacts, warms up, times them in turns, exits

Time line of one launch, artifacts a and b, turns of k calls (s = settle, m = measured)::

    load a | load b | warm-up a | warm-up b | a: s m m m | b: s m m m | b: s m m m | a: s m ...
                                              '------ round 1 -------' '------ round 2 ------

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
import gc
import glob
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

PROTOCOL = 1
SENTINEL = "EDGEBENCH-AGENT"

#: Columns of a worker's samples (the launch is the file): see edgebench.recording.SAMPLE_COLUMNS.
COLUMNS = ("artifact", "turn", "phase", "start_ns", "duration_ns")
WARMUP, SETTLE, MEASURE = 0, 1, 2

#: Normal quantile of a two-sided 99 % interval.
Z99 = 2.5758293035489004

#: Kept free on the device's disk so that a full disk can still be reported.
RESERVE_BYTES = 64 * 1024

clock = time.perf_counter_ns


class AgentError(Exception):
    """A failure with a code for the host and a sentence for people."""

    def __init__(self, code, message, **more):
        super().__init__(message)
        self.code = code
        self.message = message
        self.more = more


# ---------------------------------------------------------------- files


def read_text(path):
    """The stripped text of a small file, or None where it can't be read."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read().replace("\0", "").strip()
    except OSError:
        return None


def read_int(path):
    text = read_text(path)
    try:
        return int(text) if text is not None else None
    except ValueError:
        return None


def write_json(path, document):
    """Write a file so that it is there whole or not at all."""
    temporary = "%s.tmp-%d" % (path, os.getpid())
    with open(temporary, "w", encoding="utf-8") as stream:
        json.dump(document, stream)
        stream.flush()
        os.fsync(stream.fileno())
    os.replace(temporary, path)


def read_json(path):
    with open(path, encoding="utf-8") as stream:
        return json.load(stream)


# ---------------------------------------------------------------- identity and state


def boot_id():
    return read_text("/proc/sys/kernel/random/boot_id")


def machine_model():
    """The device's own name for itself: device tree (Pi, Jetson), DMI (PC) or sysctl (Mac)."""
    for path in ("/proc/device-tree/model", "/sys/firmware/devicetree/base/model"):
        text = read_text(path)
        if text:
            return text
    vendor = read_text("/sys/class/dmi/id/sys_vendor")
    product = read_text("/sys/class/dmi/id/product_name")
    if vendor or product:
        return " ".join(part for part in (vendor, product) if part)
    if sys.platform == "darwin":
        return command_output(["sysctl", "-n", "hw.model"])
    getprop = command_output(["getprop", "ro.product.model"]) if shutil.which("getprop") else None
    return getprop or None


def cpu_model():
    text = read_text("/proc/cpuinfo") or ""
    for key in ("model name", "Hardware", "CPU part", "Processor"):
        match = re.search(r"^%s\s*:\s*(.+)$" % re.escape(key), text, re.MULTILINE)
        if match:
            return match.group(1).strip()
    if sys.platform == "darwin":
        return command_output(["sysctl", "-n", "machdep.cpu.brand_string"])
    return platform.processor() or None


def command_output(argv):
    """First line that a small local command prints, or None where it isn't there or fails."""
    try:
        done = subprocess.run(argv, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, timeout=5)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.decode("utf-8", "replace").strip() if done.returncode == 0 else None


def emulation():
    """The name of the emulator that this process runs under, or None.

    qemu-user fakes /proc/self but not its parent's command line; a whole machine under software
    emulation shows a virt machine model on a CPU without a hypervisor flag, which can't be told
    from KVM on Arm, so both are named.
    """
    pid = os.getppid()
    for _ in range(16):
        line = read_text("/proc/%d/cmdline" % pid) or ""
        link = ""
        with contextlib.suppress(OSError):
            link = os.readlink("/proc/%d/exe" % pid)
        match = re.search(r"(qemu-(?!ga\b|system)[a-z0-9_]+)", link + " " + line[:200])
        if match:
            return match.group(1)
        status = read_text("/proc/%d/status" % pid) or ""
        parent = re.search(r"^PPid:\s*(\d+)", status, re.MULTILINE)
        if not parent or int(parent.group(1)) < 1:
            break
        pid = int(parent.group(1))
    if os.environ.get("QEMU_CPU"):
        return "qemu-user"
    kernel = read_text("/proc/version") or ""
    if platform.machine() in ("aarch64", "armv7l") and re.search(r"amd64|x86_64", kernel):
        return "qemu-user"
    if (machine_model() or "").startswith("linux,dummy-virt"):
        return "virt"
    return None


def memory_total_bytes():
    match = re.search(r"^MemTotal:\s*(\d+) kB", read_text("/proc/meminfo") or "", re.MULTILINE)
    if match:
        return int(match.group(1)) * 1024
    try:
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError):
        return None


def available_cpus():
    if hasattr(os, "sched_getaffinity"):
        return sorted(os.sched_getaffinity(0))
    return list(range(os.cpu_count() or 1))


def package_version(name):
    from importlib import metadata

    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        pass
    # A package unpacked on PYTHONPATH by hand may have lost its metadata.
    for base in sys.path:
        for info in glob.glob(os.path.join(base or ".", name.replace("-", "_") + "-*.dist-info")):
            return os.path.basename(info)[len(name) + 1 : -len(".dist-info")]
    return None


def identity():
    """What the device is: nothing here changes while it is switched on."""
    return {
        "model": machine_model(),
        "arch": platform.machine(),
        "cpu_model": cpu_model(),
        "cpus": available_cpus(),
        "memory_total_bytes": memory_total_bytes(),
        "system": platform.system(),
        "kernel": platform.release(),
        "os": os_name(),
        "libc": " ".join(platform.libc_ver()).strip() or None,
        "emulator": emulation(),
        "boot_id": boot_id(),
        "hostname": platform.node(),
    }


def os_name():
    text = read_text("/etc/os-release") or ""
    match = re.search(r'^PRETTY_NAME="?([^"\n]+)', text, re.MULTILINE)
    return match.group(1) if match else platform.platform()


def versions():
    found = {"python": platform.python_version()}
    for name in ("numpy", "onnxruntime", "onnxruntime-gpu"):
        version = package_version(name)
        if version:
            found[name] = version
    return found


def cpu_ticks(cpus):
    """(total, busy, steal) clock ticks of some CPUs since boot, or None. Source: proc(5)."""
    text = read_text("/proc/stat")
    if text is None:
        return None
    total = busy = steal = 0
    for line in text.splitlines():
        match = re.match(r"cpu(\d+) (.+)", line)
        if not match or int(match.group(1)) not in cpus:
            continue
        fields = [int(field) for field in match.group(2).split()]
        fields += [0] * (8 - len(fields))
        user, nice, system, idle, iowait, irq, softirq, stolen = fields[:8]
        total += user + nice + system + idle + iowait + irq + softirq + stolen
        busy += user + nice + system + irq + softirq
        steal += stolen
    return {"total": total, "busy": busy, "steal": steal} if total else None


def throttled_flags():
    """Raspberry Pi's get_throttled bits, or None on anything else."""
    text = read_text("/sys/devices/platform/soc/soc:firmware/get_throttled")
    if text is None and shutil.which("vcgencmd"):
        text = command_output(["vcgencmd", "get_throttled"])
    match = re.search(r"(?:throttled=)?(0x)?([0-9a-fA-F]+)\s*$", text or "")
    return int(match.group(2), 16) if match else None


def device_state(when, launch=None, cpus=None, flags=True):
    """One line of state.jsonl. A member that the device can't tell is null."""
    temperature = {}
    for zone in sorted(glob.glob("/sys/class/thermal/thermal_zone*")):
        value = read_int(zone + "/temp")
        if value is not None:
            name = read_text(zone + "/type") or "zone"
            temperature["%s:%s" % (os.path.basename(zone), name)] = value / 1000.0
    frequency, frequency_max, governor = {}, {}, {}
    chosen = cpus if cpus is not None else available_cpus()
    for cpu in chosen:
        base = "/sys/devices/system/cpu/cpu%d/cpufreq/" % cpu
        current, largest = read_int(base + "scaling_cur_freq"), read_int(base + "cpuinfo_max_freq")
        name = read_text(base + "scaling_governor")
        if current is not None:
            frequency[str(cpu)] = current
        if largest is not None:
            frequency_max[str(cpu)] = largest
        if name:
            governor[str(cpu)] = name
    memory = re.search(r"^MemAvailable:\s*(\d+) kB", read_text("/proc/meminfo") or "", re.MULTILINE)
    vmstat = dict(
        line.split(" ", 1) for line in (read_text("/proc/vmstat") or "").splitlines() if " " in line
    )
    try:
        load1 = os.getloadavg()[0]
    except OSError:
        load1 = None
    return {
        "t_ns": clock(),
        "when": when,
        "launch": launch,
        "temperature_c": temperature or None,
        "frequency_khz": frequency or None,
        "frequency_max_khz": frequency_max or None,
        "governor": governor or None,
        "load1": load1,
        "memory_available_bytes": int(memory.group(1)) * 1024 if memory else None,
        "swap_in_pages": int(vmstat["pswpin"]) if "pswpin" in vmstat else None,
        "swap_out_pages": int(vmstat["pswpout"]) if "pswpout" in vmstat else None,
        "cpu_ticks": cpu_ticks(set(chosen)),
        "throttled": throttled_flags() if flags else None,
    }


class Sampler(threading.Thread):
    """Reads a source at a fixed period and keeps (t_ns, value), in its own thread.

    It lives in the supervisor, never in the worker, so that reading costs the measured process
    nothing. ``read`` takes no argument and returns one value; late readings are not made up for.
    """

    def __init__(self, read, period_s):
        super().__init__(daemon=True)
        self.read = read
        self.period_s = period_s
        self.readings = []
        self.error = None
        self._ended = threading.Event()

    def run(self):
        due = time.monotonic()
        while not self._ended.is_set():
            at = clock()
            try:
                value = self.read()
            except OSError as error:
                self.error = str(error)
                return
            self.readings.append((at, value))
            due = max(due + self.period_s, time.monotonic())
            self._ended.wait(max(0.0, due - time.monotonic()))

    def drain(self):
        """The readings since the last call."""
        taken, self.readings = self.readings, []
        return taken

    def stop(self):
        self._ended.set()
        self.join()


# ---------------------------------------------------------------- the worker: runtimes


class OnnxRuntime:
    """One model in ONNX Runtime. ``bind`` makes a call's inputs once, ``call`` runs it."""

    def __init__(self, model, options):
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
        for key, value in sorted(options.get("session_options", {}).items()):
            settings.add_session_config_entry(key, str(value))
        wanted = options["provider"]
        if wanted not in onnxruntime.get_available_providers():
            raise AgentError(
                "provider",
                "this ONNX Runtime has no %s (it has %s)"
                % (wanted, ", ".join(onnxruntime.get_available_providers())),
            )
        self.session = onnxruntime.InferenceSession(
            model,
            settings,
            providers=[wanted],
            disabled_optimizers=options.get("disabled_optimizers") or None,
        )
        if self.session.get_providers()[0] != wanted:
            raise AgentError(
                "provider", "%s was asked for, but the session fell back to %s"
                % (wanted, self.session.get_providers()[0])
            )
        self.inputs = [item.name for item in self.session.get_inputs()]
        self.outputs = [item.name for item in self.session.get_outputs()]
        self.call = self.session.run_with_iobinding

    def bind(self, feed):
        import onnxruntime

        binding = self.session.io_binding()
        for name in self.inputs:
            value = onnxruntime.OrtValue.ortvalue_from_numpy(feed[name])
            binding.bind_ortvalue_input(name, value)
        for name in self.outputs:
            binding.bind_output(name)
        return binding

    def infer(self, feed):
        return self.session.run(None, {name: feed[name] for name in self.inputs})

    def execution(self):
        return {"providers": self.session.get_providers()}


class NullRuntime:
    """A model that does nothing: what remains is the harness's own cost."""

    def __init__(self, model, options):
        self.inputs = []

    def bind(self, feed):
        return None

    def call(self, binding):
        return None

    def infer(self, feed):
        raise AgentError("accuracy", "the null artifact has no accuracy")

    def execution(self):
        return {"providers": ["null"]}


RUNTIMES = {"onnxruntime": OnnxRuntime, "null": NullRuntime}


# ---------------------------------------------------------------- the worker: timing


class Samples:
    """Preallocated columns of timed calls; grows between turns, never inside one."""

    def __init__(self, capacity=4096):
        import numpy

        self.numpy = numpy
        self.size = 0
        self.columns = numpy.zeros((len(COLUMNS), capacity), dtype=numpy.int64)

    def room(self, calls):
        while self.size + calls > self.columns.shape[1]:
            self.columns = self.numpy.concatenate(
                [self.columns, self.numpy.zeros_like(self.columns)], axis=1
            )

    def table(self):
        return self.columns[:, : self.size].T.copy()


def time_calls(call, bindings, first, count, starts, durations):
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

    def __init__(self, index, runtime, bindings):
        self.index = index
        self.runtime = runtime
        self.bindings = bindings
        self.position = 0
        self.measured = 0

    def turn(self, samples, turn, count, first_phase, phase):
        """Time ``count`` calls; the first gets ``first_phase``, the others ``phase``."""
        samples.room(count)
        at = samples.size
        columns = samples.columns
        time_calls(
            self.runtime.call,
            self.bindings,
            self.position,
            count,
            columns[3, at : at + count],
            columns[4, at : at + count],
        )
        columns[0, at : at + count] = self.index
        columns[1, at : at + count] = turn
        columns[2, at] = first_phase
        columns[2, at + 1 : at + count] = phase
        samples.size = at + count
        self.position = (self.position + count) % len(self.bindings)
        if phase == MEASURE:
            self.measured += count - 1
        return columns[4, at : at + count]


def median_of(values):
    ordered = sorted(int(value) for value in values)
    middle = len(ordered) // 2
    if len(ordered) % 2:
        return float(ordered[middle])
    return (ordered[middle - 1] + ordered[middle]) / 2.0


def median_relative_half_width(durations):
    """Half the width of the median's 99 % order-statistic interval over the median.

    Ranks n/2 -+ z sqrt(n)/2: the normal approximation to Binomial(n, 1/2), good enough to decide
    when to stop; the published interval is computed by the host, exactly.
    """
    n = len(durations)
    reach = Z99 * math.sqrt(n) / 2.0
    low, high = int(math.floor(n / 2.0 - reach)), int(math.ceil(n / 2.0 + reach))
    if low < 0 or high >= n:
        return math.inf
    ordered = sorted(int(value) for value in durations)
    return (ordered[high] - ordered[low]) / 2.0 / ordered[n // 2]


def warm_up(lane, samples, rule):
    """Call until two successive windows agree, and say how it went."""
    begin = clock()
    before, calls, steady = None, 0, False
    while True:
        durations = lane.turn(samples, -1, rule["window"], WARMUP, WARMUP)
        calls += rule["window"]
        now = median_of(durations)
        if before is not None and abs(now - before) <= rule["tolerance"] * before:
            steady = True
            break
        before = now
        if (clock() - begin) / 1e9 >= rule["max_s"]:
            break
    return {"calls": calls, "duration_ns": clock() - begin, "steady": steady}


def measure_rounds(lanes, samples, protocol, rng, report):
    """Rounds of turns, artifacts in random order in each, until the stop rule is met."""
    stop = protocol["stop"]
    calls = protocol["calls_per_turn"]
    begin = clock()
    turn, last_report, next_check = 0, 0.0, stop["min_count"]
    while True:
        order = list(lanes)
        rng.shuffle(order)
        for lane in order:
            lane.turn(samples, turn, calls, SETTLE, MEASURE)
        turn += 1
        elapsed = (clock() - begin) / 1e9
        if elapsed - last_report > 0.5:
            last_report = elapsed
            report(elapsed, samples, lanes)
        if elapsed >= stop["max_duration_s"]:
            return "time"
        counted = min(lane.measured for lane in lanes)
        if counted < max(stop["min_count"], next_check) or elapsed < stop["min_duration_s"]:
            continue
        if all(
            median_relative_half_width(measured_durations(samples, lane.index))
            <= stop["relative_half_width"]
            for lane in lanes
        ):
            return "enough"
        # Sorting costs time: look again when a tenth more has been measured.
        next_check = counted + max(1, counted // 10)


def measured_durations(samples, artifact):
    columns = samples.columns[:, : samples.size]
    return columns[4][(columns[0] == artifact) & (columns[2] == MEASURE)]


# ---------------------------------------------------------------- the worker: tasks


def load_arrays(path):
    import numpy

    with numpy.load(path, allow_pickle=False) as archive:
        return {name: archive[name] for name in archive.files}


def feeds(arrays, batch, seq_len):
    """Batches of rows cut to ``seq_len``, as many as the arrays hold, wrapping round if they hold
    fewer than one batch."""
    import numpy

    arrays = {name: value[:, :seq_len] for name, value in arrays.items()}
    rows = len(next(iter(arrays.values())))
    count = max(1, rows // batch)
    for i in range(count):
        pick = [(i * batch + j) % rows for j in range(batch)]
        yield {name: numpy.ascontiguousarray(value[pick]) for name, value in arrays.items()}


def open_lane(index, entry, protocol):
    """Load one artifact: its lane and the time that loading took."""
    runtime_class = RUNTIMES[entry.get("runtime") or protocol["runtime"]["kind"]]
    options = dict(protocol["runtime"], session_options=entry.get("session_options", {}))
    model = os.path.join(entry["path"], entry["model"]) if entry.get("model") else None
    begin = clock()
    runtime = runtime_class(model, options)
    load_ns = clock() - begin
    if entry.get("inputs"):
        arrays = load_arrays(os.path.join(entry["path"], entry["inputs"]))
        bindings = [runtime.bind(feed) for feed in feeds(arrays, protocol["batch"], protocol["seq_len"])]
    else:
        bindings = [None]
    return Lane(index, runtime, bindings), load_ns


def peak_rss_bytes():
    """Peak resident set of this process. Linux says it in KiB, macOS in bytes (getrusage)."""
    status = re.search(r"^VmHWM:\s*(\d+) kB", read_text("/proc/self/status") or "", re.MULTILINE)
    if status:
        return int(status.group(1)) * 1024
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def evaluate(runtime, entry, limit, batch):
    """Task accuracy on the artifact's labelled held-out inputs (argmax of the first output)."""
    arrays = load_arrays(os.path.join(entry["path"], entry["evaluation"]))
    labels = arrays.pop("labels")
    count = len(labels) if limit == "all" else min(len(labels), int(limit))
    correct, begin = 0, clock()
    for first in range(0, count, batch):
        feed = {name: value[first : min(first + batch, count)] for name, value in arrays.items()}
        logits = runtime.infer(feed)[0]
        correct += int((logits.argmax(-1) == labels[first : first + len(logits)]).sum())
    return {"correct": correct, "n": count, "duration_ns": clock() - begin}


def work_solo(task, protocol, report):
    """One artifact alone: load time, peak memory at the scenario's shape, then accuracy."""
    import numpy  # noqa: F401  - part of the baseline

    kind = protocol["runtime"]["kind"]
    if kind == "onnxruntime":
        import onnxruntime  # noqa: F401  - part of the baseline
    index = task["artifact"]
    entry = task["artifacts"][index]
    result = {"artifact": index, "baseline_rss_bytes": peak_rss_bytes()}
    report({"event": "solo", "artifact": index, "step": "load"})
    lane, result["load_ns"] = open_lane(index, entry, protocol)
    samples = Samples()
    lane.turn(samples, -1, task["memory_calls"], WARMUP, WARMUP)
    result["peak_rss_bytes"] = peak_rss_bytes()
    result["execution"] = lane.runtime.execution()
    if task["accuracy"] is not None and entry.get("evaluation"):
        report({"event": "solo", "artifact": index, "step": "accuracy"})
        runtime = lane.runtime
        every = task["all_cpus"]
        if len(every) > protocol["runtime"]["threads"] and hasattr(os, "sched_setaffinity"):
            # Accuracy is not timed, so it may use every CPU. The batch is the timed scenario's:
            # dynamic quantisation takes its activation range over the whole batch.
            os.sched_setaffinity(0, every)
            wide = dict(protocol, runtime=dict(protocol["runtime"], threads=len(every)))
            runtime = open_lane(index, dict(entry, inputs=None), wide)[0].runtime
        result["accuracy"] = evaluate(runtime, entry, task["accuracy"], protocol["batch"])
    return result


def work_launch(task, protocol, report):
    """All artifacts in one process, in turns."""
    rng = random.Random("%s/%d" % (protocol["seed"], task["launch"]))
    entries = task["artifacts"]
    load_ns, warmups = [0] * len(entries), [None] * len(entries)
    order = list(task["lanes"])
    rng.shuffle(order)
    lanes = []
    for index in order:
        lane, load_ns[index] = open_lane(index, entries[index], protocol)
        lanes.append(lane)
    samples = Samples()
    gc.collect()
    gc.disable()
    report({"event": "launch", "launch": task["launch"], "step": "warm-up"})
    for lane in lanes:
        warmups[lane.index] = warm_up(lane, samples, protocol["warmup"])
    cpus = set(available_cpus())
    ticks, usage = cpu_ticks(cpus), resource.getrusage(resource.RUSAGE_SELF)
    begin, begin_cpu = clock(), time.process_time()
    state_begin = begin

    def progress(elapsed, so_far, all_lanes):
        medians = {
            lane.index: median_of(measured_durations(so_far, lane.index)[-200:])
            for lane in all_lanes
            if lane.measured
        }
        report(
            {
                "event": "progress",
                "launch": task["launch"],
                "elapsed_s": elapsed,
                "counts": {lane.index: lane.measured for lane in all_lanes},
                "median_ns": medians,
            }
        )

    stopped_by = measure_rounds(lanes, samples, protocol, rng, progress)
    wall_s, own_s = (clock() - begin) / 1e9, time.process_time() - begin_cpu
    after, after_usage = cpu_ticks(cpus), resource.getrusage(resource.RUSAGE_SELF)
    result = {
        "load_ns": load_ns,
        "warmup": warmups,
        "stopped_by": stopped_by,
        "window_ns": [state_begin, clock()],
        "foreign_cpu_fraction": None,
        "steal_fraction": None,
        "involuntary_switches": after_usage.ru_nivcsw - usage.ru_nivcsw,
        "major_faults": after_usage.ru_majflt - usage.ru_majflt,
    }
    if ticks and after:
        hertz = os.sysconf("SC_CLK_TCK")
        room = wall_s * len(cpus)
        busy_s = (after["busy"] - ticks["busy"]) / hertz
        result["foreign_cpu_fraction"] = max(0.0, busy_s - own_s) / room
        result["steal_fraction"] = (after["steal"] - ticks["steal"]) / hertz / room
    import numpy

    numpy.save(task["samples"], samples.table(), allow_pickle=False)
    return result


def die_with_parent():
    """Ask Linux for SIGKILL when the supervisor dies (prctl PR_SET_PDEATHSIG = 1)."""
    if sys.platform.startswith("linux"):
        ctypes.CDLL(None, use_errno=True).prctl(1, signal.SIGKILL, 0, 0, 0)


def work(task_path):
    """Role ``work``: one task file, one result file, progress on stdout."""
    die_with_parent()
    task = read_json(task_path)
    if os.getppid() != task["supervisor"]:
        return 1
    protocol = task["protocol"]
    with contextlib.suppress(OSError), open("/proc/self/oom_score_adj", "w") as stream:
        stream.write("1000")
    limit = protocol.get("memory_limit_bytes")
    if limit and hasattr(resource, "RLIMIT_DATA") and sys.platform.startswith("linux"):
        resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    if protocol["runtime"].get("cpus") and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, protocol["runtime"]["cpus"])

    def report(event):
        sys.stdout.write(json.dumps(event) + "\n")
        sys.stdout.flush()

    try:
        result = (work_solo if task["kind"] == "solo" else work_launch)(task, protocol, report)
        result["outcome"] = "ok"
    except MemoryError:
        result = {"outcome": "out-of-memory", "error": "the process reached its memory limit"}
    except AgentError as error:
        result = {"outcome": "error", "error": error.message}
    except Exception as error:  # noqa: BLE001 - whatever a model does to a runtime is an outcome
        text = "%s: %s" % (type(error).__name__, error)
        lost = re.search(r"bad.?alloc|Failed to allocate memory|std::bad_array", text, re.IGNORECASE)
        result = {"outcome": "out-of-memory" if lost else "error", "error": text[:2000]}
        traceback.print_exc()
    try:
        write_json(task["result"], result)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        report({"event": "disk-full", "error": str(error)})
        return 28
    return 0


# ---------------------------------------------------------------- the supervisor


class Spool:
    """A run's directory on the device's disk: everything that happens is written here first."""

    def __init__(self, path):
        self.path = path
        self._lock = threading.Lock()
        self._events = open(self.file("events.jsonl"), "ab")  # noqa: SIM115 - lives as long as we do
        self._state = open(self.file("state.jsonl"), "ab")  # noqa: SIM115

    def file(self, name):
        return os.path.join(self.path, name)

    def event(self, event):
        line = json.dumps(dict(event, t_ns=clock())) + "\n"
        with self._lock:
            self._events.write(line.encode())
            self._events.flush()

    def state(self, line):
        with self._lock:
            self._state.write((json.dumps(line) + "\n").encode())
            self._state.flush()

    def sync(self):
        with self._lock:
            os.fsync(self._events.fileno())
            os.fsync(self._state.fileno())

    def release_reserve(self):
        with contextlib.suppress(FileNotFoundError):
            os.unlink(self.file("reserve"))


class Supervisor:
    """One run, from the first state reading to result.json."""

    def __init__(self, run_dir):
        self.spool = Spool(run_dir)
        self.plan = read_json(self.spool.file("plan.json"))
        self.protocol = self.plan["protocol"]
        self.entries = self.plan["artifacts"]
        self.deadline = time.monotonic() + self.protocol["deadline_s"]
        self.ending = None  # the status that cuts the run short, once there is one
        self.task_number = 0
        self.launch = None
        self.disk_error = None
        self.result = {
            "run": self.plan["id"],
            "status": "running",
            "identity": identity(),
            "versions": versions(),
            "agent": {"protocol": PROTOCOL, "digest": self.plan.get("agent_digest")},
            "started_ns": clock(),
            "solo": [],
            "launches": [],
            "samples": [],
        }
        self.all_cpus = available_cpus()
        self.cpus = self.protocol["runtime"].get("cpus") or self.all_cpus
        others = [cpu for cpu in available_cpus() if cpu not in self.cpus]
        if others and hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, others)

    def run(self):
        signal.signal(signal.SIGTERM, lambda *_: self.end("cancelled"))
        try:
            self.state("before")
            self.run_tasks()
            self.state("after")
            status = self.ending or "done"
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            self.disk_error = str(error)
            status = "disk-full"
        self.spool.release_reserve()
        self.result.update(status=status, ended_ns=clock(), error=self.disk_error)
        write_json(self.spool.file("result.json"), self.result)

    def end(self, status):
        self.ending = self.ending or status

    def state(self, when):
        self.spool.state(device_state(when, self.launch, self.cpus))

    def keep(self):
        """What has been measured so far, durable: a reboot from here loses nothing of it."""
        self.spool.sync()
        write_json(self.spool.file("partial.json"), self.result)

    def run_tasks(self):
        rng = random.Random(self.protocol["seed"])
        order = list(range(len(self.entries)))
        rng.shuffle(order)
        usable = []
        for index in order:
            if self.ending:
                return
            accuracy = self.protocol["accuracy"]
            task = {
                "kind": "solo",
                "artifact": index,
                "accuracy": accuracy,
                "memory_calls": max(4, self.protocol["calls_per_turn"]),
            }
            found = self.run_worker(task)
            found.setdefault("artifact", index)
            self.result["solo"].append(found)
            if found["outcome"] == "ok":
                usable.append(index)
            self.keep()
        for launch in range(self.protocol["launches"]):
            if self.ending or not usable:
                return
            self.launch = launch
            self.cool_down()
            name = "launch-%03d.npy" % launch
            samples = self.spool.file(name)
            task = {"kind": "launch", "launch": launch, "lanes": sorted(usable), "samples": samples}
            begin = clock()
            found = self.run_worker(task)
            found.update(index=launch, started_ns=begin, ended_ns=clock())
            if found["outcome"] == "ok":
                with open(samples, "rb") as stream:
                    os.fsync(stream.fileno())
                self.result["samples"].append({"launch": launch, "file": name})
            self.result["launches"].append(found)
            self.state("during")
            self.keep()
        self.launch = None

    def cool_down(self):
        """Wait until the device is as cool as its profile asks, or has had its time."""
        rule = self.protocol.get("cooldown")
        if not rule:
            return
        begin = time.monotonic()
        while not self.ending and time.monotonic() - begin < rule["max_s"]:
            zones = device_state("before", self.launch, self.cpus, flags=False)["temperature_c"]
            if not zones or max(zones.values()) <= rule["below_c"]:
                return
            self.spool.event({"event": "cool-down", "temperature_c": max(zones.values()),
                              "below_c": rule["below_c"]})
            if time.monotonic() > self.deadline:
                self.end("deadline")
            time.sleep(1.0)

    def run_worker(self, task):
        """Start one worker, watch it, and return its result or how it ended."""
        number = self.task_number
        self.task_number += 1
        task_path = self.spool.file("task-%03d.json" % number)
        result_path = self.spool.file("task-%03d.result.json" % number)
        log_path = self.spool.file("task-%03d.log" % number)
        task = dict(
            task,
            protocol=self.protocol,
            artifacts=self.entries,
            all_cpus=self.all_cpus,
            result=result_path,
            supervisor=os.getpid(),
        )
        write_json(task_path, task)
        oom_before = oom_kills()
        with open(log_path, "wb") as log:
            worker = subprocess.Popen(
                [sys.executable, os.path.abspath(__file__), "work", task_path],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=log,
                env=dict(os.environ, **self.protocol["runtime"].get("environment", {})),
            )
        events = threading.Thread(target=self.forward, args=(worker.stdout,), daemon=True)
        events.start()
        sampler = Sampler(lambda: device_state("during", self.launch, self.cpus, flags=False), 1.0)
        sampler.start()
        try:
            killed = self.watch(worker, sampler)
        finally:
            sampler.stop()
            if worker.poll() is None:
                worker.kill()
            worker.wait()
            events.join()
        for _, line in sampler.drain():
            self.spool.state(line)
        if self.disk_error:
            raise OSError(errno.ENOSPC, self.disk_error)
        return worker_outcome(worker.returncode, killed, result_path, log_path, oom_before)

    def watch(self, worker, sampler):
        """Wait for a worker; kill it for memory, deadline or cancellation, and say which."""
        limit = self.protocol.get("memory_limit_bytes")
        while True:
            try:
                worker.wait(0.1)
                return None
            except subprocess.TimeoutExpired:
                pass
            for _, line in sampler.drain():
                self.spool.state(line)
            reason = None
            if limit and (rss_bytes(worker.pid) or 0) > limit:
                reason = "out-of-memory"
            elif time.monotonic() > self.deadline:
                self.end("deadline")
                reason = "deadline"
            elif self.ending or self.disk_error:
                reason = self.ending or "disk-full"
            if reason:
                worker.kill()
                return reason

    def forward(self, stream):
        """Copy a worker's progress into the spool."""
        for raw in stream:
            try:
                event = json.loads(raw)
            except ValueError:
                continue  # a library printed something of its own
            if event.get("event") == "disk-full":
                self.disk_error = event["error"]
                continue
            try:
                self.spool.event(event)
            except OSError as error:
                self.disk_error = str(error)


def rss_bytes(pid):
    match = re.search(r"^VmRSS:\s*(\d+) kB", read_text("/proc/%d/status" % pid) or "", re.MULTILINE)
    return int(match.group(1)) * 1024 if match else None


def oom_kills():
    """How many processes the kernel has killed for memory (proc(5), /proc/vmstat)."""
    match = re.search(r"^oom_kill (\d+)", read_text("/proc/vmstat") or "", re.MULTILINE)
    return int(match.group(1)) if match else None


def worker_outcome(code, killed, result_path, log_path, oom_before):
    if killed:
        return {"outcome": killed, "error": KILLED.get(killed)}
    if code == 0:
        return read_json(result_path)
    log = (read_text(log_path) or "")[-2000:]
    if code == -signal.SIGKILL:
        now = oom_kills()
        if now is not None and oom_before is not None and now > oom_before:
            return {"outcome": "out-of-memory", "error": "the kernel killed it for memory"}
        return {"outcome": "killed", "error": "killed by SIGKILL from outside"}
    if code < 0:
        return {"outcome": "crashed", "error": "signal %d. %s" % (-code, log)}
    return {"outcome": "crashed", "error": "exit status %d. %s" % (code, log)}


KILLED = {
    "out-of-memory": "its resident memory passed the device's limit",
    "deadline": "the run's deadline was reached",
    "cancelled": "the run was cancelled",
}


def supervise(run_dir):
    """Role ``supervise``: detached; the lock and alive files' descriptors are inherited."""
    Supervisor(run_dir).run()
    return 0


# ---------------------------------------------------------------- serving the host


def lock_path(name):
    """One lock a device, the same for every user: /tmp where there is one (Termux has its own)."""
    base = "/tmp" if os.access("/tmp", os.W_OK | os.X_OK) else tempfile.gettempdir()
    return os.path.join(base, "edgebench-%s.lock" % name)


def open_lock(path):
    """Open a lock file that any user may hold; never through a link, never O_CREAT on another
    user's file (fs.protected_regular refuses that in sticky directories)."""
    flags = os.O_RDWR | os.O_CLOEXEC | getattr(os, "O_NOFOLLOW", 0)
    try:
        return os.open(path, flags)
    except FileNotFoundError:
        pass
    try:
        descriptor = os.open(path, flags | os.O_CREAT | os.O_EXCL, 0o666)
    except FileExistsError:
        return os.open(path, flags)
    os.fchmod(descriptor, 0o666)
    return descriptor


def try_lock(descriptor):
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        if error.errno in (errno.EAGAIN, errno.EACCES, errno.EWOULDBLOCK):
            return False
        raise
    return True


def holder(path):
    """Who holds a lock, as its owner wrote it: data for a message, never trusted."""
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            found = json.loads(stream.read(4096))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


class Server:
    """The host's end of the agent: one request a line, one reply a line, events in between."""

    def __init__(self, root, lock, stdin, stdout):
        self.root = os.path.abspath(os.path.expanduser(root))
        self.lock_path = lock_path(lock)
        self.stdin = stdin
        self.stdout = stdout
        self._writing = threading.Lock()

    def say(self, document):
        with self._writing:
            self.stdout.write(json.dumps(document) + "\n")
            self.stdout.flush()

    def run(self):
        with self._writing:
            self.stdout.write("\n%s %d\n" % (SENTINEL, PROTOCOL))
            self.stdout.flush()
        for line in self.stdin:
            if not line.strip():
                continue
            try:
                request = json.loads(line)
                operation = getattr(self, "do_" + request["op"].replace("-", "_"), None)
                if operation is None:
                    raise AgentError("unknown-op", "this agent does not know %r" % request["op"])
                reply = operation(request)
            except AgentError as error:
                reply = {"error": dict(error.more, code=error.code, message=error.message)}
            except OSError as error:
                code = "disk-full" if error.errno in (errno.ENOSPC, errno.EDQUOT) else "os"
                reply = {"error": {"code": code, "message": str(error)}}
            except (KeyError, TypeError, ValueError) as error:
                reply = {"error": {"code": "bad-request", "message": repr(error)}}
                request = request if isinstance(locals().get("request"), dict) else {}
            self.say(dict(reply, id=request.get("id")))
        # EOF: the host is gone. Runs are detached and go on; this process has nothing left to do.
        self.stdout.flush()
        os._exit(0)

    # -- about the device

    def do_hello(self, request):
        os.makedirs(self.root, exist_ok=True)
        disk = shutil.disk_usage(self.root)
        return {
            "protocol": PROTOCOL,
            "pid": os.getpid(),
            "executable": sys.executable,
            "root": self.root,
            "identity": identity(),
            "versions": versions(),
            "disk_free_bytes": disk.free,
            "lock": {"path": self.lock_path, "held_by": self.lock_holder()},
            "clock": self.do_clock(request),
        }

    def do_clock(self, request):
        return {"monotonic_ns": clock(), "unix_ns": time.time_ns()}

    def do_state(self, request):
        cpus = request.get("cpus") or available_cpus()
        first = device_state("before", None, cpus)
        time.sleep(min(float(request.get("seconds", 0)), 10.0))
        return {"state": first, "later": device_state("before", None, cpus)}

    def do_provider(self, request):
        """Import ONNX Runtime, in a process of its own, and say what it offers."""
        script = (
            "import json,time;t=time.perf_counter();import onnxruntime as o;"
            "print(json.dumps({'version':o.__version__,'providers':o.get_available_providers(),"
            "'import_s':time.perf_counter()-t}))"
        )
        done = subprocess.run(
            [sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE
        )
        if done.returncode:
            lines = done.stderr.decode("utf-8", "replace").strip().splitlines()
            return {"missing": lines[-1] if lines else "exit status %d" % done.returncode}
        return {"runtime": json.loads(done.stdout)}

    # -- files, by digest

    def blob(self, digest):
        if not re.match(r"^[0-9a-f]{64}$", digest):
            raise AgentError("bad-request", "not a SHA-256: %r" % digest)
        return os.path.join(self.root, "cache", digest)

    def do_missing(self, request):
        os.makedirs(os.path.join(self.root, "cache"), exist_ok=True)
        lacking = [
            digest
            for digest, size in request["files"].items()
            if not os.path.isfile(self.blob(digest) + ".ok")
            or not os.path.isfile(self.blob(digest))
            or os.path.getsize(self.blob(digest)) != size
        ]
        return {"missing": lacking, "cache": os.path.join(self.root, "cache")}

    def do_verify(self, request):
        """Hash a file that was just sent; a wrong one is removed."""
        import hashlib

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

    def run_dir(self, run):
        if not re.match(r"^[0-9A-Za-z-]{1,64}$", run):
            raise AgentError("bad-request", "not a run id: %r" % run)
        return os.path.join(self.root, "runs", run)

    def lock_holder(self):
        try:
            descriptor = open_lock(self.lock_path)
        except OSError as error:
            raise AgentError("lock", "can't open %s: %s" % (self.lock_path, error)) from error
        try:
            return None if try_lock(descriptor) else holder(self.lock_path)
        finally:
            os.close(descriptor)

    def do_start(self, request):
        """Start a run, detached. The same run again is answered without starting it twice."""
        plan = request["plan"]
        if plan["agent_protocol"] != PROTOCOL:
            raise AgentError("protocol", "this agent speaks protocol %d" % PROTOCOL)
        run_dir = self.run_dir(plan["id"])
        if os.path.exists(os.path.join(run_dir, "plan.json")):
            return {"started": False, "run_dir": run_dir}
        needed = int(request.get("disk_bytes", 0)) + RESERVE_BYTES
        os.makedirs(run_dir, exist_ok=True)
        free = shutil.disk_usage(run_dir).free
        if free < needed:
            shutil.rmtree(run_dir)
            raise AgentError(
                "disk-full", "%d MB free, the run needs %d MB" % (free >> 20, (needed >> 20) + 1)
            )
        lock = open_lock(self.lock_path)
        try:
            if not try_lock(lock):
                shutil.rmtree(run_dir)
                raise AgentError("busy", "another measurement holds the device",
                                 holder=holder(self.lock_path))
            self.assemble(run_dir, plan)
            alive = os.open(os.path.join(run_dir, "alive"), os.O_RDWR | os.O_CREAT, 0o600)
            try_lock(alive)
            with open(os.path.join(run_dir, "reserve"), "wb") as stream:
                stream.write(b"\0" * RESERVE_BYTES)
            write_json(os.path.join(run_dir, "plan.json"), plan)
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
            os.close(alive)
            mark = json.dumps(
                {"run": plan["id"], "pid": child.pid, "owner": plan.get("owner"),
                 "since_unix": int(time.time())}
            )
            os.ftruncate(lock, 0)
            os.pwrite(lock, mark.encode(), 0)
        except BaseException:
            if not os.path.exists(os.path.join(run_dir, "plan.json")):
                shutil.rmtree(run_dir, ignore_errors=True)
            raise
        finally:
            os.close(lock)
        # Reap the supervisor if it ends while we are here.
        threading.Thread(target=child.wait, daemon=True).start()
        return {"started": True, "run_dir": run_dir}

    def assemble(self, run_dir, plan):
        """Artifact directories of this run, as hard links into the cache (or links to a path)."""
        for entry in plan["artifacts"]:
            if entry.get("path") or not entry.get("files"):
                continue
            target = os.path.join(run_dir, "artifacts", entry["digest"].split(":")[-1])
            os.makedirs(target)
            for name, file in entry["files"].items():
                path = os.path.normpath(os.path.join(target, name))
                if not path.startswith(target + os.sep):
                    raise AgentError("bad-request", "file name leaves the artifact: %r" % name)
                os.makedirs(os.path.dirname(path), exist_ok=True)
                blob = self.blob(file["sha256"])
                if not os.path.isfile(blob + ".ok") or os.path.getsize(blob) != file["bytes"]:
                    raise AgentError("truncated", "the cached copy of %s is broken" % name)
                try:
                    os.link(blob, path)
                except OSError:
                    os.symlink(blob, path)
            entry["path"] = target

    def is_alive(self, run_dir):
        try:
            descriptor = os.open(os.path.join(run_dir, "alive"), os.O_RDWR | os.O_CLOEXEC)
        except FileNotFoundError:
            return False
        try:
            return not try_lock(descriptor)
        finally:
            os.close(descriptor)

    def status(self, run_dir):
        if os.path.exists(os.path.join(run_dir, "result.json")):
            return "ended"
        # The order matters: it may end between the two looks.
        if self.is_alive(run_dir):
            return "running"
        return "ended" if os.path.exists(os.path.join(run_dir, "result.json")) else "lost"

    def do_runs(self, request):
        found = []
        base = os.path.join(self.root, "runs")
        for run in sorted(os.listdir(base)) if os.path.isdir(base) else []:
            run_dir = os.path.join(base, run)
            if os.path.exists(os.path.join(run_dir, "plan.json")):
                plan = read_json(os.path.join(run_dir, "plan.json"))
                found.append(
                    {"run": run, "status": self.status(run_dir), "owner": plan.get("owner"),
                     "store": plan.get("store"), "names": [entry["name"] for entry in plan["artifacts"]]}
                )
        return {"runs": found}

    def do_follow(self, request):
        """Stream the run's events from a byte offset, in a thread, until it ends."""
        run_dir = self.run_dir(request["run"])
        if not os.path.isfile(os.path.join(run_dir, "plan.json")):
            raise AgentError("no-run", "no such run here")
        threading.Thread(
            target=self.follow, args=(request["run"], run_dir, int(request.get("offset", 0))),
            daemon=True,
        ).start()
        return {}

    def follow(self, run, run_dir, offset):
        path = os.path.join(run_dir, "events.jsonl")
        while True:
            status = self.status(run_dir)
            if os.path.exists(path):
                with open(path, "rb") as stream:
                    if offset < 0:  # only what is new: after a lost connection
                        offset = stream.read().rfind(b"\n") + 1
                    stream.seek(offset)
                    data = stream.read()
                whole = data[: data.rfind(b"\n") + 1]
                for line in whole.splitlines():
                    self.say({"run": run, "event": json.loads(line)})
                offset += len(whole)
            if status != "running":
                self.say({"run": run, "ended": status})
                return
            time.sleep(0.1)

    def do_collect(self, request):
        """What to fetch of a run that has ended: file names, sizes and digests."""
        import hashlib

        run_dir = self.run_dir(request["run"])
        if not os.path.isfile(os.path.join(run_dir, "plan.json")):
            raise AgentError("no-run", "no such run here")
        status = self.status(run_dir)
        if status == "running":
            raise AgentError("running", "the run has not ended")
        name = "result.json" if status == "ended" else "partial.json"
        if not os.path.exists(os.path.join(run_dir, name)):
            log = (read_text(os.path.join(run_dir, "supervisor.log")) or "")[-2000:]
            raise AgentError("nothing", "the run died before it had measured anything. %s" % log)
        files = {}
        names = [name, "plan.json", "state.jsonl"]
        names += [item["file"] for item in read_json(os.path.join(run_dir, name))["samples"]]
        for item in names:
            path = os.path.join(run_dir, item)
            with open(path, "rb") as stream:
                data = stream.read()
            files[item] = {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
        return {"status": status, "result": name, "run_dir": run_dir, "files": files}

    def do_cancel(self, request):
        """End a run now; what it had finished stays until it is forgotten."""
        run_dir = self.run_dir(request["run"])
        held = holder(self.lock_path)
        if self.status(run_dir) == "running" and held.get("run") == request["run"]:
            os.kill(int(held["pid"]), signal.SIGTERM)
        return {}

    def do_forget(self, request):
        """Remove a run's spool, once the host has stored it."""
        run_dir = self.run_dir(request["run"])
        if self.status(run_dir) == "running":
            raise AgentError("running", "the run has not ended")
        shutil.rmtree(run_dir, ignore_errors=False)
        return {}


def serve(root, lock):
    """Role ``serve``. Requests on stdin, replies on stdout after the sentinel line."""
    activate_site(os.path.join(os.path.abspath(os.path.expanduser(root)), "site", "active"))
    Server(root, lock, sys.stdin, sys.stdout).run()
    return 0


def activate_site(directory):
    """Packages that `edgebench setup` unpacked on this device come before the system's own."""
    if os.path.isdir(directory):
        sys.path.insert(0, directory)
        paths = [directory] + [p for p in (os.environ.get("PYTHONPATH"),) if p]
        os.environ["PYTHONPATH"] = os.pathsep.join(paths)


def main(argv=None):
    parser = argparse.ArgumentParser(description="The edgebench agent.")
    roles = parser.add_subparsers(dest="role", required=True)
    serving = roles.add_parser("serve")
    serving.add_argument("--root", default="~/.edgebench")
    serving.add_argument("--lock", default="device")
    roles.add_parser("supervise").add_argument("run_dir")
    roles.add_parser("work").add_argument("task")
    arguments = parser.parse_args(argv)
    if arguments.role == "serve":
        return serve(arguments.root, arguments.lock)
    if arguments.role == "supervise":
        return supervise(arguments.run_dir)
    return work(arguments.task)


if __name__ == "__main__":
    sys.exit(main())
