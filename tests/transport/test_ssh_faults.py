"""Links break; whoever waits is told so, at once and in a sentence."""

from __future__ import annotations

import asyncio
import os
import signal
import socket
import time
from pathlib import Path

import pytest

import edgebench.transport.ssh_link as ssh_link
from edgebench.transport.base import LinkLostError, TransferError, UnreachableError
from tests.transport.conftest import Lab, free_port


async def test_nothing_listening_is_told_at_once(lab: Lab) -> None:
    started = time.monotonic()
    with pytest.raises(UnreachableError, match="Connect") as caught:
        await lab.transport(host="127.0.0.1", port=free_port()).connect()
    assert "SSH server" in caught.value.fix
    assert time.monotonic() - started < 3


async def test_a_name_that_nobody_has_is_told(lab: Lab) -> None:
    with pytest.raises(UnreachableError, match="no machine of that name"):
        await lab.transport(host="nobody.invalid").connect()


@pytest.mark.parametrize("greeting", [b"", b"HTTP/1.1 400 Bad Request\r\n\r\n"])
async def test_what_is_no_ssh_server_is_told_in_time(lab: Lab, greeting: bytes) -> None:
    async def answer(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        await writer.drain()
        if greeting:
            writer.close()

    server = await asyncio.start_server(answer, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    started = time.monotonic()
    with pytest.raises(UnreachableError):
        await lab.transport(host="127.0.0.1", port=port, connect_timeout_s=1.0).connect()
    assert time.monotonic() - started < 4
    server.close()


async def test_noise_of_start_up_files_comes_before_the_lines(lab: Lab) -> None:
    noisy = lab.directory / "noisy.sh"
    noisy.write_text(
        "#!/bin/sh\necho Welcome to the Pi\nprintf 'no line end'\necho warning >&2\n"
        'exec sh -c "$SSH_ORIGINAL_COMMAND"\n'
    )
    noisy.chmod(0o755)
    server = lab.server(f"ForceCommand {noisy}")
    async with lab.transport(server) as transport:
        channel = await transport.open(["sh", "-c", "echo; echo SENTINEL; cat"])
        lines = []
        while (line := await channel.readline()) != b"SENTINEL\n":
            lines.append(line)
        assert b"Welcome to the Pi\n" in lines
        await channel.write(b'{"id": 1}\n')
        assert await channel.readline() == b'{"id": 1}\n'
        await channel.close()


async def test_a_killed_server_is_noticed_by_whoever_reads(lab: Lab) -> None:
    server = lab.server()
    transport = lab.transport(server)
    await transport.connect()
    channel = await transport.open(["cat"])
    await channel.write(b"a\n")
    assert await channel.readline() == b"a\n"
    reading = asyncio.create_task(channel.readline())
    running = asyncio.create_task(transport.run(["sleep", "30"]))
    await asyncio.sleep(0.3)
    started = time.monotonic()
    server.kill()
    for task in (reading, running):
        with pytest.raises(LinkLostError):
            await asyncio.wait_for(task, 3)
    assert time.monotonic() - started < 2
    with pytest.raises(LinkLostError):
        await transport.run(["true"])
    with pytest.raises(LinkLostError):
        await transport.exists("/")
    with pytest.raises(LinkLostError):
        await channel.write(b"b\n")
    await asyncio.wait_for(channel.close(), 3)
    await asyncio.wait_for(transport.close(), 5)


async def test_a_connection_can_be_opened_again_after_it_was_lost(lab: Lab) -> None:
    server = lab.server()
    transport = lab.transport(server)
    await transport.connect()
    server.kill()
    await transport.close()
    server.start()
    await transport.connect()
    assert (await transport.run(["echo", "again"])).stdout == b"again\n"
    await transport.close()


async def test_a_pulled_cable_is_noticed_without_any_answer(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_link, "KEEPALIVE_INTERVAL_S", 0.2)
    server = lab.server()
    transport = lab.transport(server)
    await transport.connect()
    channel = await transport.open(["cat"])
    reading = asyncio.create_task(channel.readline())
    await asyncio.sleep(0.3)
    started = time.monotonic()
    server.signal(signal.SIGSTOP)  # no process answers, no connection is closed
    with pytest.raises(LinkLostError):
        await asyncio.wait_for(reading, 5)
    assert time.monotonic() - started < 3
    await asyncio.wait_for(channel.close(), 7)
    await asyncio.wait_for(transport.close(), 7)


def test_the_shipped_patience_is_about_fifteen_seconds() -> None:
    waits = ssh_link.KEEPALIVE_INTERVAL_S * (ssh_link.KEEPALIVE_COUNT + 1)
    assert 12 <= waits <= 20


async def test_a_cut_transfer_leaves_nothing_under_the_name(lab: Lab, tmp_path: Path) -> None:
    server = lab.server()
    (tmp_path / "big").write_bytes(os.urandom(40_000_000))
    target = server.home / "big"
    transport = lab.transport(server)
    await transport.connect()

    def cut(done: int, size: int) -> None:
        if done > size // 4:
            server.kill()

    with pytest.raises((LinkLostError, TransferError)):
        await asyncio.wait_for(transport.put(tmp_path / "big", str(target), cut), 30)
    assert not target.exists()
    await transport.close()


async def test_a_cut_fetch_leaves_nothing_under_the_name(lab: Lab, tmp_path: Path) -> None:
    server = lab.server()
    (server.home / "big").write_bytes(os.urandom(40_000_000))
    transport = lab.transport(server)
    await transport.connect()

    def cut(done: int, size: int) -> None:
        if done > size // 4:
            server.kill()

    with pytest.raises((LinkLostError, TransferError)):
        await asyncio.wait_for(
            transport.get(str(server.home / "big"), tmp_path / "here", progress=cut), 30
        )
    assert not (tmp_path / "here").exists()
    assert not list(tmp_path.glob(".here*"))
    await transport.close()


async def test_a_cancelled_connect_leaves_nothing_open(lab: Lab) -> None:
    silent = socket.socket()
    silent.bind(("127.0.0.1", 0))
    silent.listen()
    port = silent.getsockname()[1]
    task = asyncio.create_task(lab.transport(host="127.0.0.1", port=port).connect())
    await asyncio.sleep(0.3)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await asyncio.wait_for(task, 3)
    silent.close()


async def test_many_devices_connect_at_once(lab: Lab) -> None:
    server = lab.server()

    async def one() -> bytes:
        async with lab.transport(server) as transport:
            return (await transport.run(["echo", "in"])).stdout

    assert await asyncio.gather(*(one() for _ in range(40))) == [b"in\n"] * 40


async def test_a_device_that_allows_one_session_says_so(lab: Lab) -> None:
    server = lab.server()
    server.kill()
    config = server.directory / "sshd_config"
    server.start()
    config.write_text(config.read_text().replace("MaxSessions 50", "MaxSessions 1"))
    server.signal(signal.SIGHUP)
    await asyncio.sleep(0.5)
    async with lab.transport(server) as transport:
        channel = await transport.open(["cat"])
        with pytest.raises(Exception, match="MaxSessions"):
            await transport.run(["true"])
        await channel.close()
