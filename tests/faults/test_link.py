"""The connection breaks, at every moment of a run: the recording is complete, or nothing is."""

from __future__ import annotations

import signal
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgebench.errors import LinkError
from edgebench.measure import resume, run
from edgebench.measure.client import AgentClient
from edgebench.transport import ssh_link
from edgebench.transport.base import LinkLostError
from edgebench.transport.ssh import SshTransport
from tests.faults.far import SHORT, Far, measure, once, signalled
from tests.measure.bench import QUICK, kill

#: Two launches of half a second.
TWO = replace(QUICK, launches=2, min_duration_s=0.5)


# -- before anything is measured


@pytest.mark.parametrize("what", ["agent", "artifact"])
def test_a_cut_during_deploy_leaves_nothing_in_the_way(
    far: Far, monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    put, seen = SshTransport.put, []

    async def cut_half_way(
        self: SshTransport, local: Path, remote: str, progress: Any = None
    ) -> None:
        hit = ("agents" if what == "agent" else "cache") in remote and not seen

        def cut(done: int, size: int) -> None:
            if hit and not seen:
                seen.append(remote)
                far.cut()

        await put(self, local, remote, cut)

    monkeypatch.setattr(SshTransport, "put", cut_half_way)
    artifact = far.artifact(width=600, layers=4)
    with pytest.raises(LinkError, match="lost") as caught:
        run(far.device(), [artifact], far.store, QUICK)
    assert caught.value.exit_code == 4
    assert not Path(seen[0]).exists()
    far.settled()
    recording = run(far.device(), [artifact], far.store, QUICK)
    assert Path(seen[0]).exists()
    far.is_whole(recording.id)
    far.settled()


@pytest.mark.parametrize("op", ["start", "collect", "forget"])
def test_an_answer_that_is_lost_on_its_way_back_is_asked_for_again(
    far: Far, monkeypatch: pytest.MonkeyPatch, op: str
) -> None:
    request, seen = AgentClient.request, []

    async def lost(self: AgentClient, name: str, **arguments: Any) -> dict[str, Any]:
        reply = await request(self, name, **arguments)
        if name == op and not seen:
            seen.append(name)
            far.cut()
            raise LinkLostError("the connection to the device was lost", where="far")
        return reply

    monkeypatch.setattr(AgentClient, "request", lost)
    recording = run(far.device(), [far.artifact()], far.store, QUICK)
    assert seen == [op]
    assert recording.status == "done"
    far.is_whole(recording.id)
    assert resume(far.device(), far.store) == []
    far.settled()


# -- while it measures


@pytest.mark.parametrize(
    ("event", "members"),
    [
        ("solo", {"step": "load"}),
        ("launch", {"step": "warm-up", "launch": 0}),
        ("launch", {"step": "warm-up", "launch": 1}),
        ("progress", {}),
        ("collecting", {}),
    ],
    ids=["alone", "warm-up", "second-launch", "measuring", "ended"],
)
def test_a_cut_while_it_measures_costs_nothing(
    far: Far, event: str, members: dict[str, Any]
) -> None:
    options = replace(TWO, min_duration_s=0.8)
    report = once(event, far.cut, **members)
    recording = run(far.device(), [far.artifact()], far.store, options, report=report)
    assert recording.status == "done"
    assert [launch.outcome for launch in recording.launches] == ["ok", "ok"]
    assert "reconnecting" in {found["event"] for found in report.events}
    far.is_whole(recording.id)
    assert resume(far.device(), far.store) == []
    far.settled()


def test_a_cut_during_the_transfer_back_is_made_good(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    get, seen = SshTransport.get, []

    async def cut_first(self: SshTransport, remote: str, local: Path, **options: Any) -> None:
        if remote.endswith("launch-001.npy") and not seen:
            seen.append(remote)
            far.cut()
        await get(self, remote, local, **options)

    monkeypatch.setattr(SshTransport, "get", cut_first)
    recording = run(far.device(), [far.artifact()], far.store, TWO)
    assert seen
    far.is_whole(recording.id)
    far.settled()


def test_a_pulled_cable_is_noticed_and_the_run_picked_up(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(ssh_link, "KEEPALIVE_INTERVAL_S", 0.2)
    options = replace(TWO, min_duration_s=1.5)
    report = once("progress", far.freeze)
    recording = run(far.device(), [far.artifact()], far.store, options, report=report)
    assert "reconnecting" in {found["event"] for found in report.events}
    for pid in far.sshds():
        signalled(pid, signal.SIGCONT)
    far.is_whole(recording.id)
    far.settled()


def test_a_killed_and_restarted_server_is_found_again(far: Far) -> None:
    def restart_soon() -> None:
        far.kill_server()
        threading.Timer(1.0, far.server.start).start()

    report = once("launch", restart_soon)
    recording = run(far.device(), [far.artifact()], far.store, TWO, report=report)
    assert recording.status == "done"
    assert [found["event"] for found in report.events].count("reconnecting") > 1
    far.is_whole(recording.id)
    far.settled()


def test_a_device_that_does_not_come_back_keeps_its_run_for_resume(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(measure, "RECONNECT_S", 0.5)
    report = once("launch", far.kill_server)
    with pytest.raises(LinkError, match="can't be reached any more") as caught:
        run(far.device(), [far.artifact()], far.store, TWO, report=report)
    assert "`edgebench resume --device far` collects it" in caught.value.fix
    assert caught.value.exit_code == 4
    assert far.store.list() == ()
    far.server.start()
    (recording,) = resume(far.device(), far.store)
    assert recording.status == "done"
    far.is_whole(recording.id)
    assert resume(far.device(), far.store) == []
    far.settled()


# -- the host goes away


@pytest.mark.parametrize(
    ("number", "ended"),
    [(signal.SIGINT, False), (signal.SIGKILL, True)],
    ids=["interrupted-and-running", "killed-and-ended"],
)
def test_a_run_whose_host_is_gone_is_resumed_whole_and_once(
    far: Far, number: signal.Signals, ended: bool
) -> None:
    host = far.start("run", "--device", "far", far.artifact("a"), far.artifact("b"), *SHORT)
    far.wait_for_event("launch", step="warm-up")
    if number == signal.SIGINT:
        host.send_signal(number)
        _, said = host.communicate(timeout=30)
        assert host.returncode == 130
        assert "interrupted; the measurement goes on on far." in said
        assert "Collect it with `edgebench resume --device far`." in said
    else:
        kill(host, number)
    if ended:
        far.wait_for_end()
    assert far.store.list() == ()
    (recording,) = resume(far.device(), far.store)
    assert recording.status == "done"
    assert [launch.outcome for launch in recording.launches] == ["ok", "ok"]
    far.is_whole(recording.id)
    again = far.run("resume", "--device", "far")
    assert again.returncode == 0, again.stderr
    assert "There is no run to pick up on far." in again.stdout
    far.settled()


def test_resume_by_the_command_line_prints_the_table(far: Far) -> None:
    host = far.start("run", "--device", "far", far.artifact(), *SHORT)
    far.wait_for_event("launch", step="warm-up")
    kill(host)
    done = far.run("resume", "--device", "far")
    assert done.returncode == 0, done.stderr
    assert "device far" in done.stdout
    (run_id,) = far.store.list()
    assert run_id in done.stdout
    far.settled()
