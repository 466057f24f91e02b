"""The host's end of the protocol, against real processes that keep to it or don't."""

from __future__ import annotations

import asyncio
import sys
import time
from pathlib import Path

import pytest

from edgebench.agent.agent import PROTOCOL, SENTINEL, lock_path
from edgebench.errors import DeviceError, LinkError
from edgebench.measure import client as client_module
from edgebench.measure.client import AgentClient, AgentFailure
from edgebench.transport.local import LocalTransport
from tests.agent.agents import AGENT

#: Answers every request as its first argument says.
FAKE = """
import json, sys
print(%r, flush=True)
for line in sys.stdin:
    request = json.loads(line)
    %s
"""


@pytest.fixture(autouse=True)
def no_lock_file_is_left():
    yield
    for name in ("test-noise", "test-clock"):
        Path(lock_path(name)).unlink(missing_ok=True)


def speak(argv, conversation):
    """Start a process, give it to a client, and run a conversation."""

    async def run():
        async with LocalTransport() as transport:
            client = AgentClient(await transport.open(argv), "bench")
            try:
                await client.start()
                return await conversation(client)
            finally:
                await client.close()

    return asyncio.run(run())


def fake(reply: str, sentinel: str = f"{SENTINEL} {PROTOCOL}") -> list[str]:
    return [sys.executable, "-c", FAKE % (sentinel, reply)]


async def nothing(client: AgentClient) -> None:
    return None


def test_noise_of_start_up_files_is_skipped(tmp_path):
    command = f"echo Welcome; echo; echo '{{\"id\": 1}}'; exec {sys.executable} {AGENT} serve"

    async def hello(client):
        return await client.request("hello")

    root = tmp_path / "root"
    found = speak(["sh", "-c", f"{command} --root {root} --lock test-noise"], hello)
    assert found["root"] == str(root)


def test_a_device_without_an_agent_says_what_it_printed():
    argv = ["sh", "-c", "echo python3: not found; exit 127"]
    with pytest.raises(DeviceError, match="did not start: python3: not found") as told:
        speak(argv, nothing)
    assert "bench" in str(told.value)


def test_an_agent_that_never_speaks_is_given_up(monkeypatch):
    monkeypatch.setattr(client_module, "START_TIMEOUT_S", 0.3)
    with pytest.raises(DeviceError, match="did not start within"):
        speak(["sh", "-c", "read line"], nothing)


def test_an_agent_of_another_version_is_refused():
    with pytest.raises(DeviceError, match=f"speaks protocol 99, this edgebench {PROTOCOL}"):
        speak(fake("pass", f"{SENTINEL} 99"), nothing)


@pytest.mark.parametrize("reply", ["sys.exit(1)", "print('not json', flush=True)"])
def test_an_agent_that_breaks_off_is_a_lost_link(reply):
    async def ask(client):
        await client.request("hello")

    with pytest.raises(LinkError):
        speak(fake(reply), ask)


def test_a_refusal_carries_its_code():
    error = {"code": "no-run", "message": "no such run here"}
    reply = f"print(json.dumps({{'id': request['id'], 'error': {error}}}), flush=True)"

    async def ask(client):
        await client.request("collect", run="x")

    with pytest.raises(AgentFailure, match="no such run here") as told:
        speak(fake(reply), ask)
    assert told.value.code == "no-run"


def test_the_clocks_offset_is_within_its_bound(tmp_path):
    argv = [sys.executable, str(AGENT), "serve", "--root", str(tmp_path), "--lock", "test-clock"]

    async def ask(client):
        return await client.clock()

    found = speak(argv, ask)
    # On one machine both clocks can be read together: this is the truth.
    truth = time.time_ns() - time.perf_counter_ns()
    assert abs(found.offset_ns - truth) <= found.bound_ns + 1_000_000  # and what NTP slewed since
    assert found.bound_ns < 50_000_000


def test_requests_on_the_way_at_once_get_their_own_replies():
    reply = "print(json.dumps({'id': request['id'], 'echo': request['word']}), flush=True)"

    async def ask(client):
        words = [f"w{i}" for i in range(50)]
        replies = await asyncio.gather(*(client.request("echo", word=word) for word in words))
        return words, [each["echo"] for each in replies]

    words, echoed = speak(fake(reply), ask)
    assert echoed == words
