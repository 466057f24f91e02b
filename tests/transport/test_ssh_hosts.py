"""Host keys are always verified, keys and agents log in, and the ssh configuration is honoured."""

from __future__ import annotations

import asyncio
import os
import re
import stat
import subprocess
from pathlib import Path

import asyncssh
import pytest

from edgebench.errors import StorageError
from edgebench.transport.base import (
    HostKeyChangedError,
    HostKeyUnknownError,
    LoginRefusedError,
    UnreachableError,
)
from tests.transport.conftest import Lab


async def test_an_unknown_host_key_is_refused_with_its_fingerprint(lab: Lab) -> None:
    server = lab.server(known=False)
    with pytest.raises(HostKeyUnknownError) as caught:
        await lab.transport(server).connect()
    assert server.fingerprint in str(caught.value)
    assert "`edgebench setup --device pi4`" in str(caught.value)
    assert not lab.known_hosts.exists()


async def test_an_accepted_host_key_is_remembered_once_and_for_all(lab: Lab) -> None:
    server = lab.server(known=False)
    transport = lab.transport(server)
    key = await transport.fetch_host_key()
    assert key is not None
    assert key.fingerprint == server.fingerprint
    assert key.algorithm == "ssh-ed25519"
    assert key.line == f"[127.0.0.1]:{server.port} {server.public}"
    transport.trust_host_key(key)
    assert lab.known_hosts.read_text() == key.line + "\n"
    assert stat.S_IMODE(lab.known_hosts.stat().st_mode) == 0o600
    assert await transport.fetch_host_key() is None
    async with transport:
        assert (await transport.run(["echo", "in"])).stdout == b"in\n"


async def test_accepting_keeps_every_line_that_was_there(lab: Lab) -> None:
    server = lab.server(known=False)
    lab.known_hosts.write_text("# mine\nother ssh-ed25519 AAAA")  # no line end, one broken key
    transport = lab.transport(server)
    key = await transport.fetch_host_key()
    assert key is not None
    transport.trust_host_key(key)
    assert lab.known_hosts.read_text() == f"# mine\nother ssh-ed25519 AAAA\n{key.line}\n"


async def test_names_are_hashed_where_the_others_are(lab: Lab) -> None:
    known = lab.server()
    subprocess.run(["ssh-keygen", "-q", "-H", "-f", str(lab.known_hosts)], check=True)
    server = lab.server(known=False)
    transport = lab.transport(server)
    key = await transport.fetch_host_key()
    assert key is not None
    transport.trust_host_key(key)
    assert str(server.port) not in lab.known_hosts.read_text()
    found = subprocess.run(
        ["ssh-keygen", "-F", f"[127.0.0.1]:{server.port}", "-f", str(lab.known_hosts)],
        capture_output=True,
        check=True,
    )
    assert server.public.split()[1].encode() in found.stdout
    for one in (known, server):
        async with lab.transport(one) as reached:
            assert (await reached.run(["true"])).returncode == 0


async def test_a_changed_host_key_is_never_accepted(lab: Lab) -> None:
    server = lab.server()
    before = server.fingerprint
    server.kill()
    server.new_host_key()
    server.start()
    transport = lab.transport(server)
    for attempt in (transport.connect, transport.fetch_host_key):
        with pytest.raises(HostKeyChangedError) as caught:
            await attempt()
        assert server.fingerprint in str(caught.value)
        assert f"{lab.known_hosts}:1 ({before})" in str(caught.value)
        assert "ssh-keygen -R" in str(caught.value)
    assert server.fingerprint not in lab.known_hosts.read_text()


async def test_a_revoked_host_key_is_refused(lab: Lab) -> None:
    server = lab.server()
    with lab.known_hosts.open("a") as file:
        file.write(f"@revoked * {server.public}\n")
    with pytest.raises(HostKeyChangedError, match="revoked"):
        await lab.transport(server).connect()


@pytest.mark.parametrize("nothing", ["none", "/dev/null"])
async def test_a_configuration_that_keeps_no_known_hosts_trusts_nobody(
    lab: Lab, nothing: str
) -> None:
    server = lab.server()
    lab.config.write_text(
        f"Host *\n  UserKnownHostsFile {nothing}\n  GlobalKnownHostsFile {nothing}\n"
        f"  StrictHostKeyChecking no\n  IdentityFile {lab.key}\n"
    )
    transport = lab.transport(server)
    with pytest.raises(HostKeyUnknownError):
        await transport.connect()
    key = await transport.fetch_host_key()
    assert key is not None
    with pytest.raises(StorageError, match="keeps no known hosts"):
        transport.trust_host_key(key)


async def test_a_known_hosts_file_with_a_mistake_verifies_nothing(lab: Lab) -> None:
    server = lab.server()
    with lab.known_hosts.open("a") as file:
        file.write("@nonsense * ssh-ed25519 AAAA\n")
    with pytest.raises(HostKeyChangedError, match="can't be read"):
        await asyncio.wait_for(lab.transport(server).connect(), 5)


async def test_an_alias_is_one_machine_whatever_its_address(lab: Lab) -> None:
    first, second = lab.server(known=False), lab.server(known=False)
    lab.configure(
        f"Host phone\n  HostName 127.0.0.1\n  Port {first.port}\n  HostKeyAlias phone\n"
        f"Host other\n  HostName 127.0.0.1\n  Port {second.port}\n  HostKeyAlias phone\n"
    )
    transport = lab.transport(host="phone")
    key = await transport.fetch_host_key()
    assert key is not None
    assert key.line == f"phone {first.public}"
    transport.trust_host_key(key)
    async with transport:
        assert (await transport.run(["true"])).returncode == 0
    # The other machine's own address is known; under the alias that does not help it.
    lab.know(second)
    with pytest.raises(HostKeyChangedError):
        await lab.transport(host="other").connect()


async def test_the_configuration_of_ssh_is_honoured(lab: Lab) -> None:
    server = lab.server()
    lab.configure(
        f"Host pi4\n  HostName 127.0.0.1\n  Port {server.port}\n"
        "  RequestTTY force\n  RemoteCommand echo not this\n"
    )
    async with lab.transport(host="pi4") as transport:
        done = await transport.run(["printf", "a\\n"])
    assert done.stdout == b"a\n"


async def test_a_missing_or_broken_configuration_is_named(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    server = lab.server()
    lab.config.write_text("Host *\n  Port many\n")
    with pytest.raises(UnreachableError, match="configuration has a mistake"):
        await lab.transport(server).connect()
    monkeypatch.setenv("EDGEBENCH_SSH_CONFIG", str(lab.directory / "nowhere"))
    with pytest.raises(UnreachableError, match="no such ssh configuration"):
        await lab.transport(server).connect()


async def test_a_key_that_the_device_does_not_know_is_refused(lab: Lab) -> None:
    server = lab.server()
    (server.directory / "authorized_keys").write_text("")
    with pytest.raises(LoginRefusedError) as caught:
        await lab.transport(server).connect()
    assert "ssh-copy-id" in str(caught.value)
    assert str(server.port) in caught.value.where


async def test_the_identity_file_of_a_profile_logs_in(lab: Lab) -> None:
    server = lab.server()
    key = lab.directory / "own"
    lab.key.rename(key)
    with pytest.raises(LoginRefusedError):
        await lab.transport(server).connect()
    async with lab.transport(server, identity_file=str(key)) as transport:
        assert (await transport.run(["true"])).returncode == 0


@pytest.mark.parametrize("content", [None, "no key at all"])
async def test_an_identity_file_that_is_none_is_named(lab: Lab, content: str | None) -> None:
    server = lab.server()
    key = lab.directory / "own"
    if content is not None:
        key.write_text(content)
    with pytest.raises(LoginRefusedError) as caught:
        await lab.transport(server, identity_file=str(key)).connect()
    assert str(key) in str(caught.value) or "private key" in str(caught.value)


async def test_a_locked_key_works_through_an_agent_and_only_so(
    lab: Lab, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    server = lab.server()
    lab.config.write_text(lab.config.read_text().replace("  IdentityAgent none\n", ""))
    plain = lab.key.read_bytes()
    subprocess.run(["ssh-keygen", "-q", "-p", "-N", "secret", "-f", str(lab.key)], check=True)
    with pytest.raises(LoginRefusedError, match="ssh-add"):
        await lab.transport(server).connect()
    address = tmp_path / "agent"
    agent = await asyncio.create_subprocess_exec(
        "ssh-agent", "-D", "-a", str(address), stdout=asyncio.subprocess.DEVNULL
    )
    try:
        while not address.exists():
            await asyncio.sleep(0.02)
        monkeypatch.setenv("SSH_AUTH_SOCK", str(address))
        unlocked = tmp_path / "unlocked"
        unlocked.touch(mode=0o600)
        unlocked.write_bytes(plain)
        subprocess.run(["ssh-add", "-q", str(unlocked)], check=True)
        async with lab.transport(server) as transport:
            assert (await transport.run(["true"])).returncode == 0
    finally:
        agent.terminate()
        await agent.wait()


async def test_a_jump_host_leads_on(lab: Lab) -> None:
    gate, device = lab.server(), lab.server()
    lab.configure(
        f"Host gate\n  HostName 127.0.0.1\n  Port {gate.port}\n"
        f"Host pi4\n  HostName 127.0.0.1\n  Port {device.port}\n  ProxyJump gate\n"
    )
    for changes in (
        {"host": "pi4"},
        {"host": "127.0.0.1", "port": device.port, "proxy_jump": "gate"},
    ):
        async with lab.transport(**changes) as transport:
            done = await transport.run(["sh", "-c", "echo $SSH_CONNECTION"])
        assert done.stdout.split()[-1] == str(device.port).encode()
    assert b"Accepted publickey" in (gate.directory / "log").read_bytes()


async def test_the_keys_of_jump_hosts_are_verified_and_accepted_one_by_one(lab: Lab) -> None:
    gate, device = lab.server(known=False), lab.server(known=False)
    transport = lab.transport(device, proxy_jump=f"127.0.0.1:{gate.port}")
    with pytest.raises(HostKeyUnknownError, match=re.escape(gate.fingerprint)):
        await transport.connect()
    shown = []
    while (key := await transport.fetch_host_key()) is not None:
        shown.append(key.fingerprint)
        transport.trust_host_key(key)
    assert shown == [gate.fingerprint, device.fingerprint]
    async with transport:
        assert (await transport.run(["true"])).returncode == 0


async def test_what_a_jump_host_cannot_reach_is_named(lab: Lab) -> None:
    gate, device = lab.server(), lab.server()
    device.kill()
    with pytest.raises(UnreachableError, match="jump host can't reach it") as caught:
        await lab.transport(device, proxy_jump=f"127.0.0.1:{gate.port}").connect()
    assert str(device.port) in caught.value.where


async def test_jump_hosts_in_a_circle_are_named(lab: Lab) -> None:
    lab.configure(
        "Host a\n  HostName 127.0.0.1\n  ProxyJump b\nHost b\n  HostName 127.0.0.1\n  ProxyJump a\n"
    )
    with pytest.raises(UnreachableError, match="circle"):
        await lab.transport(host="a").connect()


async def test_a_certificate_of_an_unknown_authority_is_refused_and_of_a_known_one_not(
    lab: Lab,
) -> None:
    authority = asyncssh.generate_private_key("ssh-ed25519")
    server = lab.server(known=False)
    host_key = asyncssh.read_private_key(str(server.directory / "host_key"))
    certificate = authority.generate_host_certificate(host_key, "pi", principals=["127.0.0.1"])
    server.kill()
    certificate.write_certificate(str(server.directory / "host_key-cert.pub"))
    server.extra.append(f"HostCertificate {server.directory}/host_key-cert.pub")
    server.start()
    with pytest.raises(HostKeyUnknownError, match="authority"):
        await lab.transport(server).connect()
    public = authority.export_public_key().decode()
    lab.known_hosts.write_text(f"@cert-authority [127.0.0.1]:{server.port} {public}")
    async with lab.transport(server) as transport:
        assert (await transport.run(["true"])).returncode == 0


def test_nothing_in_the_package_turns_verification_off() -> None:
    package = Path(__file__).resolve().parents[2] / "edgebench"
    for path in package.rglob("*.py"):
        text = path.read_text()
        assert not re.search(r"known_hosts\s*=\s*None", text), path
        assert "get_server_host_key(" not in text or os.path.basename(path) == "never", path
