"""What holds of every transport: the same test over this machine and over a real sshd."""

from __future__ import annotations

import asyncio
import json
import os
import sys
import time
from pathlib import Path

import pytest

from edgebench.errors import DeviceError
from edgebench.transport.base import CommandError, LinkLostError, TransferError, Transport

#: Prints its own arguments: what arrived.
ECHO = [sys.executable, "-c", "import json, sys; print(json.dumps(sys.argv[1:]))"]

HOSTILE = [
    "; rm -rf ~",
    "$(touch /tmp/never)",
    "`id`",
    "a\nb",
    "a'b\"c",
    "\\",
    "\\n",
    "a\\'b",
    "",
    " ",
    "*",
    "~",
    "$HOME",
    "!!",
    "-e",
    "#",
    "&& false",
    "| cat",
    "> /dev/null",
    "\t\r",
    "ünïcode 日本",
    "%s",
]


async def test_a_command_gives_its_code_and_both_its_outputs(transport: Transport) -> None:
    async with transport:
        done = await transport.run(["sh", "-c", "echo out; echo err >&2; exit 3"])
    assert (done.returncode, done.stdout, done.stderr) == (3, b"out\n", b"err\n")


async def test_every_argument_arrives_as_it_is(transport: Transport) -> None:
    async with transport:
        done = await transport.run([*ECHO, *HOSTILE])
    assert json.loads(done.stdout) == HOSTILE


async def test_no_argument_can_hold_a_nul(transport: Transport) -> None:
    async with transport:
        with pytest.raises(CommandError):
            await transport.run(["echo", "a\0b"])


async def test_bytes_pass_unchanged_both_ways(transport: Transport) -> None:
    data = bytes(range(256)) * 5000
    async with transport:
        done = await transport.run(["cat"], stdin=data)
    assert done.stdout == data


async def test_without_stdin_a_command_sees_its_end(transport: Transport) -> None:
    async with transport:
        done = await transport.run(["cat"], timeout_s=10)
    assert done.stdout == b""


async def test_a_signal_is_a_negative_return_code(transport: Transport) -> None:
    async with transport:
        done = await transport.run(["sh", "-c", "kill -KILL $$"])
    assert done.returncode == -9


async def test_a_command_that_does_not_end_in_time_is_a_device_error(transport: Transport) -> None:
    async with transport:
        started = time.monotonic()
        with pytest.raises(CommandError, match="did not end within"):
            await transport.run(["sleep", "20"], timeout_s=0.3)
        assert time.monotonic() - started < 5
        assert (await transport.run(["echo", "still here"])).stdout == b"still here\n"


async def test_a_cancelled_command_leaves_the_connection_in_use(transport: Transport) -> None:
    async with transport:
        task = asyncio.create_task(transport.run(["sleep", "20"]))
        await asyncio.sleep(0.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await asyncio.wait_for(task, 5)
        assert (await transport.run(["echo", "ok"])).stdout == b"ok\n"


async def test_a_channel_carries_lines_both_ways(transport: Transport) -> None:
    async with transport:
        channel = await transport.open(["cat"])
        for line in (b"one\n", b"two\n", b"{}\n"):
            await channel.write(line)
            assert await channel.readline() == line
        await channel.close()
        assert await channel.wait() == 0


async def test_a_line_of_megabytes_arrives_whole(transport: Transport) -> None:
    line = b"x" * 3_000_000 + b"\n"
    async with transport:
        channel = await transport.open(["cat"])
        writing = asyncio.create_task(channel.write(line))
        assert await channel.readline() == line
        await writing
        await channel.close()


async def test_the_end_of_a_command_is_an_empty_line_however_late_one_reads(
    transport: Transport,
) -> None:
    async with transport:
        channel = await transport.open(["true"])
        assert await channel.wait() == 0
        await asyncio.sleep(0.1)
        assert await channel.readline() == b""
        await channel.close()


async def test_the_end_of_a_command_is_an_empty_line(transport: Transport) -> None:
    async with transport:
        channel = await transport.open(["printf", "a\\nb"])
        assert [await channel.readline() for _ in range(3)] == [b"a\n", b"b", b""]
        await channel.close()


async def test_noise_on_stderr_neither_stops_nor_joins_the_lines(transport: Transport) -> None:
    script = "head -c 8000000 /dev/zero >&2; echo the last words >&2; echo line; cat"
    async with transport:
        channel = await transport.open(["sh", "-c", script])
        assert await asyncio.wait_for(channel.readline(), 20) == b"line\n"
        await channel.close()
        assert channel.last_words.endswith("the last words")


async def test_a_missing_program_is_told(transport: Transport) -> None:
    async with transport:
        try:
            done = await transport.run(["/no/such/python3"])
        except CommandError as error:
            assert "/no/such/python3" in str(error)
        else:
            assert done.returncode in (126, 127)
            assert b"/no/such/python3" in done.stderr


async def test_closing_a_channel_ends_what_listens_to_it(transport: Transport) -> None:
    async with transport:
        channel = await transport.open(["sh", "-c", "cat; echo closed"])
        started = time.monotonic()
        await channel.close()
        assert time.monotonic() - started < 3


async def test_writing_to_a_command_that_has_ended_is_a_device_error(
    transport: Transport,
) -> None:
    async with transport:
        channel = await transport.open(["true"])
        await channel.wait()
        with pytest.raises(LinkLostError):
            for _ in range(50):
                await channel.write(b"x" * 65536)
        await channel.close()


async def test_files_move_whole_with_their_progress(transport: Transport, tmp_path: Path) -> None:
    data = os.urandom(5_000_000)
    (tmp_path / "local").write_bytes(data)
    target = tmp_path / "device" / "a" / "b.bin"
    seen: list[tuple[int, int]] = []
    async with transport:
        assert not await transport.exists(str(target))
        await transport.put(tmp_path / "local", str(target), lambda n, of: seen.append((n, of)))
        assert await transport.exists(str(target))
        await transport.get(str(target), tmp_path / "back")
    assert target.read_bytes() == data == (tmp_path / "back").read_bytes()
    assert seen[-1] == (5_000_000, 5_000_000)
    assert [path.name for path in target.parent.iterdir()] == ["b.bin"]
    assert not list(tmp_path.glob(".*part"))


@pytest.mark.parametrize("name", ["with space", "a*[b]?.npz", "quote's \"$(x)", "new\nline", "~x"])
async def test_a_file_may_have_any_name(transport: Transport, tmp_path: Path, name: str) -> None:
    (tmp_path / name).write_bytes(b"data")
    async with transport:
        await transport.put(tmp_path / name, str(tmp_path / "there" / name))
        await transport.get(str(tmp_path / "there" / name), tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == b"data"


async def test_put_replaces_what_was_there(transport: Transport, tmp_path: Path) -> None:
    (tmp_path / "new").write_bytes(b"new")
    (tmp_path / "old").write_bytes(b"something older and longer")
    async with transport:
        await transport.put(tmp_path / "new", str(tmp_path / "old"))
    assert (tmp_path / "old").read_bytes() == b"new"


async def test_an_empty_file_is_a_file(transport: Transport, tmp_path: Path) -> None:
    (tmp_path / "empty").touch()
    async with transport:
        await transport.put(tmp_path / "empty", str(tmp_path / "there"))
    assert (tmp_path / "there").read_bytes() == b""


async def test_get_sends_only_what_is_not_here_yet(transport: Transport, tmp_path: Path) -> None:
    data = os.urandom(200_000)
    (tmp_path / "there").write_bytes(data)
    (tmp_path / "here").write_bytes(data[:150_000])
    seen: list[tuple[int, int]] = []
    async with transport:
        await transport.get(
            str(tmp_path / "there"),
            tmp_path / "here",
            offset=150_000,
            progress=lambda n, of: seen.append((n, of)),
        )
        await transport.get(str(tmp_path / "there"), tmp_path / "here", offset=200_000)
    assert (tmp_path / "here").read_bytes() == data
    assert seen[-1] == (50_000, 50_000)


async def test_the_tilde_is_the_home_directory(transport: Transport, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"data")
    async with transport:
        home = await transport.expand("~")
        assert home.endswith("/home")
        assert await transport.expand("~/.edgebench") == f"{home}/.edgebench"
        assert await transport.expand("/abs/~") == "/abs/~"
        await transport.put(tmp_path / "file", "~/.edgebench/blobs/file")
        assert await transport.exists("~/.edgebench/blobs/file")
        await transport.get("~/.edgebench/blobs/file", tmp_path / "back")
    assert (Path(home) / ".edgebench" / "blobs" / "file").read_bytes() == b"data"


async def test_a_missing_file_is_named_on_either_side(transport: Transport, tmp_path: Path) -> None:
    async with transport:
        with pytest.raises(TransferError, match="nowhere"):
            await transport.put(tmp_path / "nowhere", str(tmp_path / "x"))
        with pytest.raises(TransferError, match="nowhere"):
            await transport.get(str(tmp_path / "nowhere"), tmp_path / "x")
    assert not (tmp_path / "x").exists()
    assert not list(tmp_path.glob(".*part"))


async def test_a_place_that_cannot_be_written_is_a_device_error(
    transport: Transport, tmp_path: Path
) -> None:
    (tmp_path / "file").write_bytes(b"data")
    async with transport:
        with pytest.raises(DeviceError):
            await transport.put(tmp_path / "file", "/proc/edgebench/file")


@pytest.mark.skipif(os.geteuid() != 0, reason="mounting a small disk needs root")
async def test_a_full_disk_is_named_and_nothing_half_written_stays(
    transport: Transport, tmp_path: Path
) -> None:
    disk = tmp_path / "disk"
    disk.mkdir()
    (tmp_path / "big").write_bytes(os.urandom(5_000_000))
    mount = await asyncio.create_subprocess_exec(
        "mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(disk)
    )
    if await mount.wait():
        pytest.skip("this machine allows no mount")
    try:
        async with transport:
            with pytest.raises(TransferError, match=r"disk is full|No space left"):
                await transport.put(tmp_path / "big", str(disk / "big"))
        assert list(disk.iterdir()) == []
    finally:
        await (await asyncio.create_subprocess_exec("umount", str(disk))).wait()


async def test_a_transport_says_where_it_leads(transport: Transport) -> None:
    assert "127.0.0.1" in transport.describe() or transport.describe() == "this machine"
