"""One measurement at a time a device: across processes, users and hosts, and never for longer."""

from __future__ import annotations

import fcntl
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edgebench.agent import agent
from tests.agent.agents import Refused, endless, null_plan, processes, wait_until


def busy(served, plan) -> dict:
    with pytest.raises(Refused) as caught:
        served.start(plan)
    assert caught.value.code == "busy"
    return caught.value.error


def test_a_second_run_is_refused_and_told_who_measures(serving, tmp_path):
    first, second = serving(), serving(root=tmp_path / "another-users-root")
    plan = null_plan(stop=endless())
    first.start(plan)
    error = busy(second, null_plan())
    assert error["holder"]["owner"] == "somebody@host"
    assert error["holder"]["run"] == plan["id"]
    assert error["holder"]["pid"] in processes("supervise", first.root)
    assert abs(error["holder"]["since_unix"] - time.time()) < 60
    assert second.request("runs")["runs"] == []
    assert second.request("hello")["lock"]["held_by"]["run"] == plan["id"]


def test_the_lock_is_free_when_the_run_has_ended(serving):
    first, second = serving(), serving()
    plan = null_plan()
    first.start(plan)
    first.result(plan["id"])
    again = null_plan()
    wait_until(lambda: second.request("hello")["lock"]["held_by"] is None, "the lock is free")
    second.start(again)
    assert second.result(again["id"])["status"] == "done"


def test_the_lock_dies_with_its_owner(serving):
    first, second = serving(), serving()
    first.start(null_plan(stop=endless()))
    (supervisor,) = processes("supervise", first.root)
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: second.request("hello")["lock"]["held_by"] is None, "the lock is free")
    plan = null_plan()
    second.start(plan)
    assert second.result(plan["id"])["status"] == "done"


def test_a_lock_file_that_nobody_holds_is_free(served, lock):
    path = Path(agent.lock_path(lock))
    path.write_text(json.dumps({"run": "01OLD", "pid": 1, "owner": "long@gone"}))
    assert served.request("hello")["lock"]["held_by"] is None
    plan = null_plan()
    served.start(plan)
    assert served.result(plan["id"])["status"] == "done"


def test_looking_at_the_lock_does_not_disturb(serving):
    """Hello holds a shared lock for microseconds: neither a start nor another look may trip."""
    watcher, starter = serving(), serving()
    for _ in range(30):
        watcher.say(json.dumps({"id": 0, "op": "hello"}))
    plan = null_plan()
    starter.start(plan)
    starter.result(plan["id"])


def test_a_brief_holder_is_waited_for(tmp_path, lock):
    path = agent.lock_path(lock)
    looker = agent.open_lock(path)
    fcntl.flock(looker, fcntl.LOCK_SH)
    assert agent.take_lock(path) is None
    os.close(looker)
    taken = agent.take_lock(path)
    assert taken is not None
    os.close(taken)


@pytest.mark.skipif(
    os.getuid() != 0 or shutil.which("setpriv") is None, reason="needs root to be somebody else"
)
def test_a_lock_of_another_user_excludes(served, lock):
    path = agent.lock_path(lock)
    script = (
        "import fcntl,os,sys\n"
        "fd = os.open(sys.argv[1], os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o644)\n"
        "fcntl.flock(fd, fcntl.LOCK_EX)\n"
        'os.write(fd, b\'{"owner": "nobody@elsewhere"}\')\n'
        "print('held', flush=True)\n"
        "input()\n"
    )
    identity = ["setpriv", "--reuid=65534", "--regid=65534", "--clear-groups"]
    other = subprocess.Popen(
        [*identity, sys.executable, "-c", script, path],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert other.stdout.readline() == "held\n"
    assert os.stat(path).st_uid == 65534
    assert busy(served, null_plan())["holder"]["owner"] == "nobody@elsewhere"
    other.communicate("\n")
    plan = null_plan()
    served.start(plan)
    assert served.result(plan["id"])["status"] == "done"


def test_another_user_may_hold_a_lock_that_we_made(lock):
    path = agent.lock_path(lock)
    old = os.umask(0o077)
    try:
        os.close(agent.open_lock(path))
    finally:
        os.umask(old)
    assert os.stat(path).st_mode & 0o777 == 0o666


def test_a_lock_that_is_a_link_is_refused(served, lock, tmp_path):
    victim = tmp_path / "victim"
    victim.write_text("keep me")
    Path(agent.lock_path(lock)).symlink_to(victim)
    with pytest.raises(Refused) as caught:
        served.start(null_plan())
    assert caught.value.code == "lock"
    assert victim.read_text() == "keep me"


@pytest.mark.parametrize("text", ["", "not json", "[]", '{"owner": 5}', "\0" * 10_000])
def test_whatever_stands_in_a_lock_file_is_only_told(served, lock, text):
    path = agent.lock_path(lock)
    held = agent.open_lock(path)
    fcntl.flock(held, fcntl.LOCK_EX)
    os.write(held, text.encode())
    assert isinstance(busy(served, null_plan())["holder"], dict)
    os.close(held)
