"""One run from the command to the stored recording::

    connect - identity - send artifacts - lock, start - follow ... ended - collect - store - forget

A run is known to the device by its recording's id. Its spool stays there until the recording is
on this host's disk, so whatever is cut off in between is picked up later: by this process when the
link comes back, by ``resume``, or by the next run. Storing refuses an id that is there already, so
nothing is counted twice.
"""

from __future__ import annotations

import asyncio
import shutil
import tempfile
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edgebench.artifact import Artifact
from edgebench.device import Device
from edgebench.errors import (
    DeviceBusyError,
    DeviceError,
    EdgebenchError,
    Interrupted,
    LinkError,
    MeasurementError,
    RecordingError,
    StorageError,
    UsageError,
)
from edgebench.measure.client import AgentFailure, Ended
from edgebench.measure.collect import assemble, fetch, recording_of
from edgebench.measure.deploy import send_artifacts
from edgebench.measure.host_meters import HostSampling
from edgebench.measure.options import RunOptions
from edgebench.measure.plan import build_plan, spool_bytes, store_name
from edgebench.measure.session import Session, open_session, owner
from edgebench.recording import (
    Recording,
)
from edgebench.results.store import Store
from edgebench.results.ulid import new_ulid
from edgebench.workspace import ensure_dir

#: Called with each event of a run: the agent's own, and {"event": "waiting" | "sending" | ...}.
#: Every event names its "device".
Reporter = Callable[[dict[str, Any]], None]

#: How often a busy device is asked again, and a lost one looked for (seconds).
BUSY_POLL_S = 2.0
RECONNECT_POLL_S = 3.0
#: How long a lost connection is looked for before the run is left to `edgebench resume`.
RECONNECT_S = 120.0


@dataclass(frozen=True)
class Outcome:
    """What became of one device of a run: its recording, or why there is none."""

    device: str
    recording: Recording | None = None
    error: EdgebenchError | None = None


@dataclass
class _Job:
    """One device's part of a run."""

    device: Device
    artifacts: Sequence[Artifact]
    store: Store
    options: RunOptions
    wait: bool
    tell: Reporter
    run_id: str = field(default_factory=new_ulid)
    started: bool = False
    #: The host's own meters, while they are read.
    sampling: HostSampling | None = None

    def report(self, event: dict[str, Any]) -> None:
        self.tell({**event, "device": self.device.id})

    def sample(self, specs: list[dict[str, Any]]) -> None:
        """Begin to read the host's meters; their spool outlives this process."""
        if specs and self.sampling is None:
            directory = ensure_dir(host_spool(self.store, self.run_id))
            self.sampling = HostSampling(specs, directory)
            self.sampling.start()

    def stop_sampling(self) -> None:
        """End it. What was read stays until the recording is stored."""
        if self.sampling is not None:
            self.sampling.stop()
            self.sampling = None


def run(
    device: Device,
    artifacts: Sequence[Artifact],
    store: Store,
    options: RunOptions | None = None,
    *,
    wait: bool = True,
    report: Reporter | None = None,
) -> Recording:
    """Measure artifacts on one device and store the recording; see ``run_many``."""
    (outcome,) = run_many([device], artifacts, store, options, wait=wait, report=report)
    if outcome.error is not None:
        raise outcome.error
    assert outcome.recording is not None
    return outcome.recording


def run_many(
    devices: Sequence[Device],
    artifacts: Sequence[Artifact],
    store: Store,
    options: RunOptions | None = None,
    *,
    wait: bool = True,
    report: Reporter | None = None,
) -> list[Outcome]:
    """Measure artifacts on devices, side by side, and store a recording each.

    Args:
        artifacts: at least one; on each device they take turns in the same workers.
        wait: wait for a device that is in use; otherwise it fails with DeviceBusyError.
        report: called with every event while it goes on.

    Returns:
        One outcome a device, in their order; a device that fails does not stop the others.

    Raises:
        UsageError, StorageError: before anything is measured.
        Interrupted: Ctrl-C. Local runs are ended and leave nothing; those on other devices go on
            there, and ``resume`` collects them.
    """
    if not artifacts:
        raise UsageError("there is nothing to measure", fix="Name at least one artifact.")
    names = [device.id for device in devices]
    if len(set(names)) != len(names):
        raise UsageError("a device is named twice", fix="Name each device once.")
    chosen = options or RunOptions()
    chosen.check()
    for device in devices:
        device.require_usable()
    check_writable(store.root)
    tell = report or _silent
    jobs = [_Job(device, artifacts, store, chosen, wait, tell) for device in devices]
    try:
        return asyncio.run(_run_all(jobs))
    except KeyboardInterrupt as error:
        raise _interrupted(jobs) from error


def _interrupted(jobs: Sequence[_Job]) -> Interrupted:
    left = [job.device for job in jobs if job.started and not is_local(job.device)]
    if not left:
        return Interrupted(
            "interrupted; the measurement was ended and nothing of it is kept",
            where=", ".join(job.device.id for job in jobs),
        )
    collect = " ".join(f"--device {device.id}" for device in left)
    return Interrupted(
        f"interrupted; the measurement goes on on {', '.join(device.id for device in left)}",
        fix=f"Collect it with `edgebench resume {collect}`.",
    )


def is_local(device: Device) -> bool:
    """Whether a device is this machine."""
    return device.transport.kind == "local"


async def _run_all(jobs: Sequence[_Job]) -> list[Outcome]:
    return list(await asyncio.gather(*(_outcome(job) for job in jobs)))


async def _outcome(job: _Job) -> Outcome:
    try:
        return Outcome(job.device.id, recording=await _run(job))
    except EdgebenchError as error:
        job.report({"event": "failed", "why": str(error)})
        return Outcome(job.device.id, error=error)


async def _run(job: _Job) -> Recording:
    job.report({"event": "connecting"})
    try:
        async with open_session(job.device) as session:
            session.check_identity()
            await session.check_runtime()
            await _pick_up(session, job.store, job.report)
            if not session.local:
                await send_artifacts(session.transport, session.client, job.artifacts, job.report)
            plan = await _plan(session, job)
            await _start(session, plan, job)
            job.sample(plan["carry"]["host_meters"])
            await _follow(session, job.run_id, job.report)
            job.stop_sampling()
            return await _collect(session, job.run_id, job.store, job.report)
    except LinkError as error:
        if not job.started or is_local(job.device):
            raise
        return await _attend(job, error)
    except asyncio.CancelledError:
        if job.started and is_local(job.device):
            await _abandon(job)
            shutil.rmtree(host_spool(job.store, job.run_id), ignore_errors=True)
        raise
    finally:
        job.stop_sampling()


async def _plan(session: Session, job: _Job) -> dict[str, Any]:
    return await build_plan(session, job.run_id, job.artifacts, job.store, job.options)


async def _start(session: Session, plan: dict[str, Any], job: _Job) -> None:
    while True:
        # From here on the device may have it, even if the answer is lost on the way.
        job.started = True
        try:
            await session.client.request("start", plan=plan, disk_bytes=spool_bytes(plan))
        except DeviceBusyError as error:
            job.started = False
            if not job.wait:
                raise DeviceBusyError(
                    error.what, where=error.where, fix="Run again later, or without --no-wait."
                ) from error
            job.report({"event": "waiting", "why": error.what})
            await asyncio.sleep(BUSY_POLL_S)
            # The wait may be long, and clocks drift: the offset is to be that of the run's begin.
            plan["carry"]["clock"] = (await session.client.clock()).model_dump(mode="json")
        except AgentFailure:
            job.started = False
            raise
        else:
            job.report({"event": "started", "plan": plan})
            return


async def _follow(session: Session, run_id: str, report: Reporter, *, offset: int = 0) -> None:
    async for event in session.client.follow(run_id, offset):
        if isinstance(event, Ended):
            return
        report(event)


async def _attend(job: _Job, lost: LinkError) -> Recording:
    """Come back to a run after the link was lost: the device has gone on meanwhile.

    Raises:
        LinkError: the device did not come back in time; says how to collect the run.
    """
    until = time.monotonic() + RECONNECT_S
    while time.monotonic() < until:
        job.report({"event": "reconnecting", "why": lost.what})
        await asyncio.sleep(RECONNECT_POLL_S)
        try:
            async with open_session(job.device) as session:
                until = time.monotonic() + RECONNECT_S
                await _follow(session, job.run_id, job.report, offset=-1)
                job.stop_sampling()
                return await _collect(session, job.run_id, job.store, job.report)
        except LinkError as error:
            lost = error
        except AgentFailure as error:
            if error.code != "no-run":
                raise
            if job.run_id in job.store.list():  # lost after it was stored and forgotten
                return (await asyncio.to_thread(job.store.load, job.run_id)).recording
            raise LinkError(
                "the connection was lost before the measurement had begun",
                where=job.device.id,
                fix="Run it again.",
            ) from error
    raise LinkError(
        f"the device can't be reached any more: {lost.what}",
        where=job.device.id,
        fix=f"The measurement goes on there: `edgebench resume --device {job.device.id}` "
        "collects it.",
    ) from lost


async def _abandon(job: _Job) -> None:
    """End a local run and remove what it spooled, within a few seconds."""
    async with open_session(job.device) as session:
        await session.client.request("cancel", run=job.run_id)
        for _ in range(100):
            try:
                await session.client.request("forget", run=job.run_id)
                return
            except AgentFailure as error:
                if error.code == "no-run":
                    return
                await asyncio.sleep(0.1)


async def _collect(session: Session, run_id: str, store: Store, report: Reporter) -> Recording:
    """Store an ended run here, then let the device forget it.

    Another process of this user may do the same at the same time (`edgebench resume`): whoever
    comes second finds the recording in the store.
    """
    report({"event": "collecting"})
    if run_id not in store.list():
        try:
            await _store(session, run_id, store, report)
        except (AgentFailure, StorageError) as error:
            if isinstance(error, AgentFailure) and error.code == "nothing":
                await _forget(session, run_id)
                raise MeasurementError(
                    error.what,
                    where=session.device.id,
                    fix="Find out what ended it there (a reboot?), then run it again.",
                ) from error
            if run_id in store.list():
                pass
            elif isinstance(error, StorageError):
                raise StorageError(
                    error.what,
                    where=error.where,
                    fix=f"{error.fix} Nothing is lost: `edgebench resume --device "
                    f"{session.device.id} --all` collects the run from the device.",
                ) from error
            else:
                raise
    await _forget(session, run_id)
    return (await asyncio.to_thread(store.load, run_id)).recording


async def _forget(session: Session, run_id: str) -> None:
    try:
        await session.client.request("forget", run=run_id)
    except AgentFailure as error:
        if error.code != "no-run":
            raise


async def _store(session: Session, run_id: str, store: Store, report: Reporter) -> None:
    with tempfile.TemporaryDirectory(prefix="edgebench-") as directory:
        spool = Path(directory)
        result = await fetch(session, run_id, spool)
        after = await session.client.clock()
        host = host_spool(store, run_id)
        parts = await asyncio.to_thread(assemble, spool, result, after, host)
    path = await asyncio.to_thread(
        store.write,
        recording_of(parts.document),
        parts.samples,
        parts.state,
        parts.readings,
        parts.tokens,
    )
    shutil.rmtree(host, ignore_errors=True)
    report({"event": "stored", "path": str(path)})


def host_spool(store: Store, run_id: str) -> Path:
    """Where the readings of the host's own meters are kept until the run is stored."""
    return store.root / f".meters-{run_id}"


def resume(
    device: Device,
    store: Store,
    *,
    everything: bool = False,
    report: Reporter | None = None,
) -> list[Recording]:
    """Pick up the runs that were left on a device, waiting for those still under way.

    Args:
        everything: all of this user's runs there, those begun for other results directories too.

    Raises:
        DeviceError: unreachable, or a spool arrived broken.
        Interrupted: Ctrl-C; what goes on there goes on.
    """
    check_writable(store.root)
    tell = report or _silent

    def named(event: dict[str, Any]) -> None:
        tell({**event, "device": device.id})

    try:
        return asyncio.run(_resume(device, store, everything, named))
    except KeyboardInterrupt as error:
        raise Interrupted("interrupted; nothing was changed", where=device.id) from error


async def _resume(
    device: Device, store: Store, everything: bool, report: Reporter
) -> list[Recording]:
    async with open_session(device) as session:
        return await _pick_up(session, store, report, running=True, everything=everything)


async def _pick_up(
    session: Session,
    store: Store,
    report: Reporter,
    *,
    running: bool = False,
    everything: bool = False,
) -> list[Recording]:
    """Collect this user's runs that nobody has: those begun for this store, or all of them.

    A run that died before it had measured anything is removed, and said so.

    Args:
        running: wait for runs that are still under way; otherwise they are left alone.
    """
    found: list[Recording] = []
    for entry in (await session.client.request("runs"))["runs"]:
        if entry["owner"] != owner():
            continue
        if not (everything or entry["store"] == store_name(store)):
            continue
        under_way = entry["status"] == "running"
        if under_way and not running:
            continue
        report({"event": "resuming", **entry})
        if under_way:
            await _follow(session, entry["run"], report)
        try:
            found.append(await _collect(session, entry["run"], store, report))
        except MeasurementError as error:
            report({"event": "lost", "run": entry["run"], "why": error.what})
        except (DeviceError, RecordingError) as error:
            # A spool that can't be read must not keep the device from measuring.
            if running or isinstance(error, LinkError):
                raise
            report({"event": "unreadable", "run": entry["run"], "why": error.what})
    return found


def check_writable(directory: Path) -> None:
    """Find out before the measurement, not after it, that its result can't be stored.

    Raises:
        StorageError: the directory can't be made or written.
    """
    ensure_dir(directory)
    try:
        with tempfile.TemporaryDirectory(dir=directory, prefix=".tmp-check-"):
            pass
    except OSError as error:
        raise StorageError(
            f"the results directory can't be written: {error.strerror}",
            where=str(directory),
            fix="Give one that you may write to with --results.",
        ) from error


def _silent(event: dict[str, Any]) -> None:
    return None
