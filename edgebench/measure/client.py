"""The host's end of the agent protocol: requests and replies over one long-lived channel.

docs/agent-protocol.md describes the lines. Anything before the sentinel is noise of the device's
start-up files and is skipped; anything after it that is not JSON means that the agent is broken.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from typing import Any

from edgebench.agent.agent import PROTOCOL, SENTINEL
from edgebench.errors import DeviceBusyError, DeviceError, InputError
from edgebench.recording import Clock
from edgebench.transport.base import Channel, LinkLostError

#: A device that has not begun to answer by then has no working Python (seconds).
START_TIMEOUT_S = 30.0


class AgentFailure(DeviceError):
    """The agent refused a request; ``code`` says why, ``more`` holds its details."""

    def __init__(self, error: dict[str, Any], *, where: str) -> None:
        self.code = str(error.get("code", "unknown"))
        self.more = error
        super().__init__(str(error.get("message", "the agent gave no reason")), where=where)


@dataclass(frozen=True)
class Ended:
    """A followed run has ended on the device: "ended", or "lost" (reboot, killed supervisor)."""

    status: str


class AgentClient:
    """One agent at the other end of a channel. Requests are answered in order."""

    def __init__(self, channel: Channel, device: str) -> None:
        self._channel = channel
        self._device = device
        self._next_id = 0
        self._replies: dict[int, asyncio.Future[dict[str, Any]]] = {}
        self._events: asyncio.Queue[dict[str, Any] | None] = asyncio.Queue()
        self._reader: asyncio.Task[None] | None = None

    async def start(self) -> None:
        """Wait for the sentinel, then listen.

        Raises:
            DeviceError: no agent answers, or it speaks another protocol.
        """
        try:
            version = await asyncio.wait_for(self._find_sentinel(), START_TIMEOUT_S)
        except TimeoutError as error:
            raise DeviceError(
                f"the agent did not start within {START_TIMEOUT_S:g} s",
                where=self._device,
                fix=f"Run `edgebench doctor --device {self._device}`.",
            ) from error
        if version != PROTOCOL:
            raise DeviceError(
                f"the agent there speaks protocol {version}, this edgebench {PROTOCOL}",
                where=self._device,
                fix=f"Run `edgebench setup --device {self._device}` again.",
            )
        self._reader = asyncio.create_task(self._listen())

    async def _find_sentinel(self) -> int:
        noise = b""
        while line := await self._channel.readline():
            text = line.decode("utf-8", "replace").strip()
            if text.startswith(SENTINEL + " "):
                return int(text.split()[1])
            noise = (noise + line)[-1000:]
        words = noise.decode("utf-8", "replace") + "\n" + self._channel.last_words
        said = words.strip().splitlines()
        raise DeviceError(
            "the agent did not start" + (f": {said[-1]}" if said else ""),
            where=self._device,
            fix=f"Run `edgebench setup --device {self._device}`.",
        )

    async def _listen(self) -> None:
        try:
            while line := await self._channel.readline():
                document = json.loads(line)
                if "id" in document:
                    reply = self._replies.pop(document["id"], None)
                    if reply is not None and not reply.done():
                        reply.set_result(document)
                else:
                    self._events.put_nowait(document)
        except (DeviceError, OSError, ValueError):
            # Whoever waits below is told that the connection is lost; nobody else needs to know.
            pass
        finally:
            for reply in self._replies.values():
                if not reply.done():
                    reply.set_exception(self._lost())
            self._replies.clear()
            self._events.put_nowait(None)

    def _lost(self) -> LinkLostError:
        return LinkLostError("the connection to the device was lost", where=self._device)

    async def request(self, op: str, **arguments: Any) -> dict[str, Any]:
        """Send one request and wait for its reply.

        Raises:
            AgentFailure: the agent refused it.
            LinkLostError: the channel closed.
        """
        if self._reader is None or self._reader.done():
            raise self._lost()
        self._next_id += 1
        number = self._next_id
        reply: asyncio.Future[dict[str, Any]] = asyncio.get_running_loop().create_future()
        self._replies[number] = reply
        line = json.dumps({"id": number, "op": op, **arguments}) + "\n"
        try:
            await self._channel.write(line.encode())
        except (DeviceError, OSError) as error:
            self._replies.pop(number, None)
            raise self._lost() from error
        document = await reply
        if "error" in document:
            refusal = document["error"]
            if refusal.get("code") == "busy":
                raise DeviceBusyError(_busy(refusal.get("holder") or {}), where=self._device)
            if refusal.get("code") == "disk-full":
                raise DeviceError(
                    f"the device's disk is full: {refusal['message']}",
                    where=self._device,
                    fix="Free some space there, then run again.",
                )
            raise AgentFailure(refusal, where=self._device)
        return document

    async def follow(self, run: str, offset: int = 0) -> AsyncIterator[dict[str, Any] | Ended]:
        """The run's events from a byte offset of its log, closed by one Ended.

        Raises:
            LinkLostError: the channel closed before the run ended.
        """
        await self.request("follow", run=run, offset=offset)
        while True:
            document = await self._events.get()
            if document is None:
                raise self._lost()
            if document.get("run") != run:
                continue
            if "ended" in document:
                yield Ended(document["ended"])
                return
            yield document["event"]

    async def clock(self, rounds: int = 16) -> Clock:
        """The device's monotonic clock against this host's wall clock.

        Cristian's method: of several exchanges the one with the shortest round trip bounds the
        offset by half that trip, whatever the asymmetry (Cristian 1989, "Probabilistic clock
        synchronization").
        """
        best: Clock | None = None
        for _ in range(rounds):
            before, tick = time.time_ns(), time.perf_counter_ns()
            reply = await self.request("clock")
            trip = time.perf_counter_ns() - tick
            middle = before + trip // 2
            found = Clock(
                offset_ns=middle - int(reply["monotonic_ns"]),
                bound_ns=trip // 2 + 1,
                method=f"Cristian, best of {rounds}",
                wall_offset_ns=int(reply["unix_ns"]) - middle,
                monotonic_offset_ns=tick + trip // 2 - int(reply["monotonic_ns"]),
            )
            if best is None or found.bound_ns < best.bound_ns:
                best = found
        if best is None:
            raise InputError("the clock needs at least one round")
        return best

    async def close(self) -> None:
        """Close the agent's stdin: it exits, its runs go on."""
        with contextlib.suppress(DeviceError, OSError):
            await self._channel.close()
        if self._reader is not None:
            self._reader.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await self._reader


def _busy(holder: dict[str, Any]) -> str:
    owner = holder.get("owner")
    since = holder.get("since_unix")
    text = "another measurement holds the device"
    if owner:
        text += f": {owner}"
    if isinstance(since, int):
        text += f", since {time.strftime('%H:%M:%S', time.localtime(since))}"
    return text
