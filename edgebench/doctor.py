"""``edgebench doctor``: what a device is, what is wrong with it, and how to mend it.

Findings come from the agent on the device, so a Pi is looked at in the same way as this machine.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, Literal

from edgebench.device import Device
from edgebench.errors import DeviceError
from edgebench.health import SINCE_BOOT, THROTTLE_BITS, UNDER_VOLTAGE_BIT, Thresholds
from edgebench.measure.meters import meter_tables, open_on_device, open_on_host
from edgebench.measure.options import PROVIDERS
from edgebench.measure.session import Session, open_session
from edgebench.recording import Clock

Level = Literal["ok", "warn", "FAIL", "--"]

#: Seconds over which foreign load is looked at.
LOAD_WINDOW_S = 1.0
#: A device whose wall clock is further off (seconds) keeps no time: TLS and file dates go wrong.
WRONG_CLOCK_S = 2.0
#: Less free memory or disk than this is worth a warning (bytes): a BERT-base in fp32 is 440 MB.
LOW_MEMORY_BYTES = 500_000_000
LOW_DISK_BYTES = 1_000_000_000


@dataclass(frozen=True)
class Finding:
    """One line: how bad, what was seen, and what to do about it ("" where nothing)."""

    level: Level
    what: str
    fix: str = ""


@dataclass(frozen=True)
class Report:
    """All findings on one device. ``title`` says what the device is, in one line."""

    device: str
    title: str
    findings: tuple[Finding, ...]
    identity: dict[str, Any] = field(default_factory=dict)
    versions: dict[str, str] = field(default_factory=dict)

    @property
    def failures(self) -> int:
        return sum(finding.level == "FAIL" for finding in self.findings)

    @property
    def warnings(self) -> int:
        return sum(finding.level == "warn" for finding in self.findings)


async def examine(device: Device) -> Report:
    """Look a device over.

    Raises:
        ProfileError: the profile refuses to be run.
        DeviceError: it can't be reached, or no agent starts there.
    """
    begin = time.perf_counter()
    async with open_session(device) as session:
        reached_ms = (time.perf_counter() - begin) * 1000
        clock = await session.client.clock()
        looked = await session.client.request("state", seconds=LOAD_WINDOW_S)
        kind = device.runtime.kind
        offered = await session.client.request("provider", kind=kind)
        findings = [
            Finding(
                "ok",
                f"agent started in {reached_ms:.0f} ms"
                if session.local
                else f"reachable in {reached_ms:.0f} ms, host key known",
            ),
            *_clock(clock),
            *_identity(session),
            *_runtime(session, offered),
            *_native(session, offered),
            *_space(session, looked["state"]),
            *_load(looked["state"], looked["later"]),
            *_frequency(looked["state"]),
            *_temperature(session, looked["later"]),
            *_throttling(looked["later"]),
            *_lock(session),
            *await _power(session),
        ]
        known = session.identity
        parts = [device.id, known["model"], known["arch"], known["os"]]
        parts.append(f"Python {session.versions['python']}")
        if "runtime" in offered:
            parts.append(f"{kind} {offered['runtime']['version']}")
        return Report(
            device=device.id,
            title=" · ".join(part for part in parts if part),
            findings=tuple(findings),
            identity=known,
            versions=session.versions,
        )


def _clock(clock: Clock) -> Iterator[Finding]:
    offset_s, bound_ms = (clock.wall_offset_ns or 0) / 1e9, clock.bound_ns / 1e6
    if abs(offset_s) > WRONG_CLOCK_S:
        yield Finding(
            "warn",
            f"its clock is {abs(offset_s):.0f} s {'ahead of' if offset_s > 0 else 'behind'} this "
            "machine's",
            "Let it keep time (`timedatectl set-ntp true`). Durations don't depend on it.",
        )
    else:
        yield Finding("ok", f"clock offset {offset_s * 1e3:+.1f} ms ± {bound_ms:.1f}")


def _identity(session: Session) -> Iterator[Finding]:
    known = session.identity
    found = {key: known.get(key) for key in ("model", "arch", "system", "gpu")}
    wrong = session.device.expects.mismatches(**found, cpu=known.get("cpu_model"))
    for sentence in wrong:
        yield Finding(
            "FAIL", f"not the device of its profile: {sentence}", f"Correct {session.device.path}."
        )
    if known["emulator"]:
        yield Finding(
            "FAIL",
            f"this is an emulated machine ({known['emulator']}): its times mean nothing",
            "Its rows are marked and stay out of the tables.",
        )
    elif not wrong:
        yield Finding("ok", f"CPU {known['cpu_model']}, {len(known['cpus'])} cores to use")


def _runtime(session: Session, offered: dict[str, Any]) -> Iterator[Finding]:
    spec = session.device.runtime
    name = "PyTorch" if spec.kind == "torch" else "ONNX Runtime"
    if "missing" in offered:
        yield Finding(
            "FAIL",
            f"{name} does not import there: {offered['missing']}",
            f"edgebench setup --device {session.device.id}"
            if spec.kind == "onnxruntime"
            else "Install torch and transformers for its hardware (https://pytorch.org/get-started).",
        )
        return
    wanted = spec.provider if spec.kind == "torch" else PROVIDERS[spec.provider]
    has = offered["runtime"]["providers"]
    if wanted not in has:
        yield Finding(
            "FAIL",
            f"{name} {offered['runtime']['version']} there has no {wanted}",
            f"It has {', '.join(has)}: install the runtime's build for this hardware.",
        )
        return
    try:
        place = session.placement()
    except DeviceError as error:
        yield Finding("FAIL", error.what, error.fix)
        return
    pinned = f"CPU {','.join(map(str, place.cpus))}" if place.cpus else "not pinned"
    yield Finding("ok", f"{wanted}, {place.threads} thread{'s'[: place.threads > 1]} on {pinned}")


def _native(session: Session, offered: dict[str, Any]) -> Iterator[Finding]:
    native = offered.get("native")
    if native is None or session.device.runtime.kind != "onnxruntime":
        return
    if "warning" in native:
        yield Finding(
            "warn", native["warning"], "Until then ONNX Runtime's own 4-bit kernel serves."
        )
    elif native:
        yield Finding("ok", f"native few-bit kernels {native['version']}: {native['kernel']}")
    else:
        yield Finding(
            "--",
            "no native 3-bit kernel: ONNX Runtime's own 4-bit kernel serves",
            f"edgebench setup --device {session.device.id} --kernels",
        )


def _space(session: Session, state: dict[str, Any]) -> Iterator[Finding]:
    memory, disk = state["memory_available_bytes"], session.hello["disk_free_bytes"]
    text = (
        f"{memory / 1e9:.1f} GB free memory" if memory is not None else "free memory not readable"
    )
    low = (memory is not None and memory < LOW_MEMORY_BYTES) or disk < LOW_DISK_BYTES
    yield Finding(
        "warn" if low else "ok",
        f"{text}, {disk / 1e9:.1f} GB free disk at {session.hello['root']}",
        "Large models may not fit: free some." if low else "",
    )


def _load(first: dict[str, Any], later: dict[str, Any]) -> Iterator[Finding]:
    before, after = first["cpu_ticks"], later["cpu_ticks"]
    if not before or not after or after["total"] <= before["total"]:
        yield Finding("--", "foreign load can't be read on this system")
        return
    total = after["total"] - before["total"]
    busy, steal = ((after[key] - before[key]) / total for key in ("busy", "steal"))
    if busy > Thresholds.FOREIGN_CPU:
        yield Finding(
            "warn",
            f"other processes use {busy:.0%} of the CPUs",
            "Stop them: a run beside them will be INVALID if they reach the measured CPUs.",
        )
    else:
        yield Finding("ok", f"no foreign load ({busy:.1%} of the CPUs over {LOAD_WINDOW_S:g} s)")
    if steal > Thresholds.STEAL:
        yield Finding(
            "warn",
            f"the hypervisor takes {steal:.0%} of the CPU time away",
            "Measure on a machine of its own.",
        )
    swapped = sum((later[k] or 0) - (first[k] or 0) for k in ("swap_in_pages", "swap_out_pages"))
    if swapped:
        yield Finding("warn", "it is swapping", "Free some memory before a run.")


def _frequency(state: dict[str, Any]) -> Iterator[Finding]:
    governors = sorted(set((state["governor"] or {}).values()))
    if not governors:
        yield Finding(
            "--", "CPU frequency and governor can't be read here (usual in a virtual machine)"
        )
    elif governors != ["performance"]:
        yield Finding(
            "warn",
            f"governor is {', '.join(governors)}: p50 will wander",
            "echo performance | sudo tee /sys/devices/system/cpu/cpu*/cpufreq/scaling_governor",
        )
    else:
        yield Finding("ok", "governor is performance")


def _temperature(session: Session, state: dict[str, Any]) -> Iterator[Finding]:
    zones = state["temperature_c"]
    if not zones:
        yield Finding("--", "no temperature sensor to read")
        return
    hottest = max(zones, key=lambda zone: zones[zone])
    limit = session.device.limits.temperature_c
    text = f"{zones[hottest]:.0f} °C ({hottest.split(':', 1)[-1]})"
    if limit is not None and zones[hottest] > limit:
        yield Finding("FAIL", f"{text}, its limit is {limit:g} °C", "Let it cool, or cool it.")
    else:
        yield Finding("ok", text)


def _throttling(state: dict[str, Any]) -> Iterator[Finding]:
    flags = state["throttled"]
    if flags is None:
        return
    now = [name for bit, name in THROTTLE_BITS.items() if flags >> bit & 1]
    since = [name for bit, name in THROTTLE_BITS.items() if flags >> (bit + SINCE_BOOT) & 1]
    if now:
        yield Finding(
            "FAIL",
            f"{', '.join(now)} right now (throttled={flags:#x})",
            "Use a 5.1 V / 3 A supply and a cooler.",
        )
    elif since:
        # As the verdict has it: a supply that sagged once will again; heat may be gone.
        weak = THROTTLE_BITS[UNDER_VOLTAGE_BIT] in since
        yield Finding(
            "FAIL" if weak else "warn",
            f"{', '.join(since)} has occurred since boot (throttled={flags:#x})",
            "Use a 5.1 V / 3 A supply, then reboot." if weak else "Cool it, then reboot.",
        )
    else:
        yield Finding("ok", "never throttled or under-voltage since boot")


def _lock(session: Session) -> Iterator[Finding]:
    held = session.hello["lock"]["held_by"]
    if held is not None:
        yield Finding(
            "warn",
            f"a measurement is running: {held.get('owner', 'unknown owner')}",
            "A run waits for it; `edgebench resume` collects one of yours.",
        )


async def _power(session: Session) -> list[Finding]:
    here, host = meter_tables(session.device)
    if not here and not host:
        return [
            Finding(
                "--",
                "no power source in its profile: energy and power stay empty",
                f"`edgebench meters --device {session.device.id}` lists what is there.",
            )
        ]
    found = await open_on_device(session, here) + await asyncio.to_thread(open_on_host, host)
    return [finding for entry in found for finding in _meter(entry)]


def _meter(entry: dict[str, Any]) -> Iterator[Finding]:
    kind = entry["spec"]["kind"]
    if "error" in entry:
        error = entry["error"]
        yield Finding("FAIL", f"meter {kind}: {error['message']}", error["fix"])
    for channel in entry.get("channels", []):
        gain = channel["gain_error"]
        accuracy = f"± {100 * gain:.2g} %" if gain is not None else "accuracy not published"
        yield Finding(
            "ok",
            f"meter {kind}, {channel['name']}: {channel['scope']}, every "
            f"{channel['period_s'] * 1e3:.3g} ms, {accuracy}",
        )
