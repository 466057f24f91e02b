"""What can be wrong on the device: in use, stale, outdated, cut short, noisy, out of memory."""

from __future__ import annotations

import os
import signal
import subprocess
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from edgebench.agent import agent
from edgebench.agent.agent import PROTOCOL
from edgebench.artifact import sha256_file
from edgebench.errors import DeviceBusyError, DeviceError
from edgebench.measure import client, resume, run
from edgebench.measure.deploy import AGENT_PATH
from edgebench.transport.ssh import SshTransport
from edgebench.transport.ssh_link import CONFIG_VARIABLE
from tests.agent.agents import processes, wait_until
from tests.agent.test_runs import hungry_model
from tests.faults.far import SHORT, Far, measure, once
from tests.measure.bench import QUICK

# -- in use


def second_laptop(far: Far) -> list[str]:
    """A run of somebody with other results, by the command line."""
    return ["--device", "far", "--results", str(far.path / "theirs"), *SHORT]


def test_a_second_host_waits_with_a_message_and_then_measures(far: Far) -> None:
    artifact = far.artifact()
    options = replace(QUICK, min_duration_s=3.0)
    started: list[Any] = []

    def other_host() -> None:
        started.append(far.start("run", artifact, *second_laptop(far)))

    recording = run(far.device(), [artifact], far.store, options, report=once("launch", other_host))
    _, said = started[0].communicate(timeout=60)
    assert started[0].returncode == 0, said
    assert "far  waiting: another measurement holds the device: " in said
    assert len(list((far.path / "theirs/runs").iterdir())) == 1
    assert far.store.list() == (recording.id,)
    far.settled()


def test_a_second_host_that_will_not_wait_fails(far: Far) -> None:
    artifact = far.artifact()
    options = replace(QUICK, min_duration_s=1.0)
    said: list[str] = []

    def other_host() -> None:
        # In a thread with a loop of its own: this one waits meanwhile.
        with ThreadPoolExecutor(1) as pool, pytest.raises(DeviceBusyError) as caught:
            pool.submit(run, far.device(), [artifact], far.store, QUICK, wait=False).result()
        assert caught.value.exit_code == 4
        said.append(str(caught.value))

    run(far.device(), [artifact], far.store, options, report=once("launch", other_host))
    assert said[0].startswith("another measurement holds the device: ")
    assert ", since " in said[0]
    assert "without --no-wait" in said[0]
    far.settled()


def test_a_lock_whose_owner_died_is_free(far: Far) -> None:
    artifact = far.artifact()
    options = replace(QUICK, launches=2, min_duration_s=1.0)

    def power_of_the_kernel() -> None:
        (supervisor,) = processes("supervise", far.root)
        os.kill(supervisor, signal.SIGKILL)

    lost = run(
        far.device(),
        [artifact],
        far.store,
        options,
        report=once("launch", power_of_the_kernel, launch=1, step="warm-up"),
    )
    assert lost.status == "lost"
    assert [launch.outcome for launch in lost.launches] == ["ok"]
    far.is_whole(lost.id)
    assert "pid" in agent.holder(agent.lock_path(far.lock))  # what it wrote is still there
    recording = run(far.device(), [artifact], far.store, QUICK, wait=False)
    assert recording.status == "done"
    far.settled()


def test_a_run_that_died_before_its_first_sample_is_said_so_and_forgotten(far: Far) -> None:
    def power_of_the_kernel() -> None:
        (supervisor,) = processes("supervise", far.root)
        os.kill(supervisor, signal.SIGKILL)

    # The launch behind it takes longer than the kernel needs, on a busy machine too.
    options = replace(QUICK, min_duration_s=30.0)
    done = once("solo", power_of_the_kernel)
    with pytest.raises(Exception, match="died before it had measured anything") as caught:
        run(far.device(), [far.artifact()], far.store, options, report=done)
    assert caught.value.exit_code == 6
    assert far.store.list() == ()
    assert resume(far.device(), far.store) == []
    far.settled()


# -- agents of other versions


def test_an_agent_of_an_older_version_stays_and_the_new_one_is_sent_beside_it(far: Far) -> None:
    old = far.root / "agents" / f"{'0' * 64}.py"
    old.parent.mkdir(parents=True)
    old.write_text("print('EDGEBENCH-AGENT 0')\n")
    recording = run(far.device(), [far.artifact()], far.store, QUICK)
    assert recording.agent["digest"] == f"sha256:{sha256_file(AGENT_PATH)}"
    assert sorted(path.name for path in old.parent.iterdir()) == sorted(
        [old.name, f"{sha256_file(AGENT_PATH)}.py"]
    )
    assert old.read_text() == "print('EDGEBENCH-AGENT 0')\n"
    far.settled()


@pytest.mark.parametrize("text", ["", "print('EDGEBENCH-AGENT 0', flush=True)\ninput()\n"])
def test_an_agent_that_is_not_what_its_name_says_is_sent_again(far: Far, text: str) -> None:
    path = far.root / "agents" / f"{sha256_file(AGENT_PATH)}.py"
    path.parent.mkdir(parents=True)
    path.write_text(text)  # emptied by a power cut, or meddled with
    run(far.device(), [far.artifact()], far.store, QUICK)
    assert path.read_bytes() == AGENT_PATH.read_bytes()
    far.settled()


def test_an_agent_of_another_protocol_is_named(far: Far, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client, "PROTOCOL", PROTOCOL + 1)
    with pytest.raises(DeviceError, match=f"speaks protocol {PROTOCOL}, this edgebench") as caught:
        run(far.device(), [far.artifact()], far.store, QUICK)
    assert "`edgebench setup --device far`" in caught.value.fix
    assert caught.value.exit_code == 4
    far.settled()


# -- files that are not what was sent


def test_a_cached_file_that_was_cut_on_the_device_is_sent_again(far: Far) -> None:
    artifact = far.artifact()
    run(far.device(), [artifact], far.store, QUICK)
    cached = far.root / "cache" / artifact.manifest.files["model.onnx"].sha256
    os.truncate(cached, 100)
    report = once("sending", lambda: None)
    recording = run(far.device(), [artifact], far.store, QUICK, report=report)
    assert "sending" in {event["event"] for event in report.events}
    assert sha256_file(cached) == cached.name
    far.is_whole(recording.id)
    far.settled()


def test_a_file_that_is_cut_after_it_was_checked_is_noticed_at_the_start(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = far.artifact()
    run(far.device(), [artifact], far.store, QUICK)
    cached = far.root / "cache" / artifact.manifest.files["model.onnx"].sha256
    send = measure.send_artifacts

    async def send_then_cut(*arguments: Any) -> int:
        sent = await send(*arguments)
        os.truncate(cached, 100)
        return sent

    monkeypatch.setattr(measure, "send_artifacts", send_then_cut)
    with pytest.raises(DeviceError, match=r"the cached copy of model\.onnx is broken") as caught:
        run(far.device(), [artifact], far.store, QUICK)
    assert caught.value.exit_code == 4
    assert len(far.store.list()) == 1
    far.settled()


def test_a_file_that_arrives_broken_is_removed_and_nothing_is_measured(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    artifact = far.artifact()
    put, broken = SshTransport.put, far.path / "broken"
    model = artifact.path / "model.onnx"
    broken.write_bytes(model.read_bytes()[:-1] + b"?")

    async def another(self: SshTransport, local: Path, remote: str, progress: Any = None) -> None:
        await put(self, broken if local == model else local, remote, progress)

    monkeypatch.setattr(SshTransport, "put", another)
    with pytest.raises(DeviceError, match="arrived broken: its digest does not match") as caught:
        run(far.device(), [artifact], far.store, QUICK)
    assert caught.value.exit_code == 4
    assert not (far.root / "cache" / sha256_file(model)).exists()
    assert far.store.list() == ()
    far.settled()


# -- values of a profile that a shell would obey

HOSTILE = [
    "; touch PWNED",
    "$(touch PWNED)",
    "`touch PWNED`",
    "a\ntouch PWNED\n",
    "' ; touch PWNED ; '",
    '" && touch PWNED && "',
    "-rf *",
    "$HOME/{a,b}*?[x]~ \\ %s",
]


def test_a_hostile_root_is_a_directory_of_that_name(
    far: Far, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(far.path)
    root = far.path.joinpath("here", *HOSTILE)
    recording = run(far.device(root=str(root)), [far.artifact()], far.store, QUICK)
    assert recording.status == "done"
    assert (root / "agents").is_dir()
    # Each part is one directory, with that name and no other beside it.
    place = far.path / "here"
    for name in root.relative_to(place).parts:
        assert [path.name for path in place.iterdir()] == [name]
        place /= name
    assert pwned(far) == []


@pytest.mark.parametrize("value", HOSTILE)
def test_a_hostile_interpreter_is_a_program_that_does_not_exist(far: Far, value: str) -> None:
    name = f"python3{value}"
    device = far.device(Far.runtime(python=name))
    with pytest.raises(DeviceError, match="does not run on the device") as caught:
        run(device, [far.artifact()], far.store, QUICK)
    assert caught.value.what.startswith(name)
    assert caught.value.exit_code == 4
    assert pwned(far) == []
    assert far.store.list() == ()


def pwned(far: Far) -> list[Path]:
    """Files that only a shell which obeyed a value could have made."""
    places = [Path.home(), far.server.home, Path.cwd(), Path("/")]
    return [place / "PWNED" for place in places if (place / "PWNED").exists()] + list(
        far.path.rglob("PWNED")
    )


# -- start-up files


@pytest.fixture
def noise(far: Far) -> Path:
    """The device's ~/.bashrc, which Debian's bash reads for commands over SSH too."""
    return far.server.home / ".bashrc"


def test_start_up_files_may_print_before_commands(far: Far, noise: Path) -> None:
    noise.write_text(
        'case "$BASH_EXECUTION_STRING" in *sftp-server*) return;; esac\n'
        "echo 'Welcome to the Pi!'; printf '{\"id\": 1, \"ok\"'; echo warning >&2\n"
        "printf '\\000\\377 no line end'\n"
    )
    said = subprocess.run(
        ["ssh", "-F", os.environ[CONFIG_VARIABLE], "-p", str(far.server.port), "127.0.0.1", "true"],
        capture_output=True,
        check=True,
    )
    assert b"Welcome" in said.stdout
    recording = run(far.device(), [far.artifact()], far.store, QUICK)
    far.is_whole(recording.id)
    far.settled()


def test_start_up_files_that_break_file_transfer_are_named(far: Far, noise: Path) -> None:
    noise.write_text("echo 'Welcome to the Pi, this is a long line of noise'\n")
    with pytest.raises(DeviceError, match="start-up files") as caught:
        run(far.device(), [far.artifact()], far.store, QUICK)
    assert caught.value.exit_code == 4
    assert far.store.list() == ()
    assert not (far.root / "runs").exists()


# -- memory


def test_a_model_that_needs_too_much_memory_leaves_the_device_alive(far: Far) -> None:
    hungry = far.artifact("hungry", model=hungry_model())
    far.profile(Far.runtime() + "\nlimits = { memory_mb = 900 }")
    done = far.run("run", "--device", "far", hungry, far.artifact("small"), *SHORT)
    assert done.returncode == 6, done.stderr
    assert "hungry could not be measured: out-of-memory" in done.stderr
    (run_id,) = far.store.list()
    recording = far.store.load(run_id).recording
    assert [solo.outcome for solo in sorted(recording.solo, key=lambda s: s.artifact)] == [
        "out-of-memory",
        "ok",
    ]
    assert [launch.outcome for launch in recording.launches] == ["ok", "ok"]
    assert {call[1] for call in far.stored(run_id)} == {1}
    far.settled()


def test_a_worker_that_is_killed_from_outside_is_an_outcome(far: Far) -> None:
    report = once("launch", far.kill_worker, launch=0, step="warm-up")
    options = replace(QUICK, launches=2, min_duration_s=0.5)
    recording = run(far.device(), [far.artifact()], far.store, options, report=report)
    assert [launch.outcome for launch in recording.launches] == ["killed", "ok"]
    far.is_whole(recording.id)
    wait_until(lambda: not processes("work", far.root), "no worker is left")
    far.settled()
