"""The serving agent: requests and replies, files by digest, and its end."""

from __future__ import annotations

import hashlib
import json
import os
import platform

import pytest

from edgebench.agent import agent
from tests.agent.agents import Refused, null_plan


def refusal(call, *arguments, **more) -> str:
    with pytest.raises(Refused) as caught:
        call(*arguments, **more)
    return caught.value.code


def test_hello_says_what_the_device_is(served, tmp_path):
    hello = served.request("hello")
    assert hello["protocol"] == agent.PROTOCOL
    assert hello["pid"] == served.process.pid
    assert hello["identity"]["arch"] == platform.machine()
    assert hello["identity"]["cpus"] == sorted(os.sched_getaffinity(0))
    assert hello["identity"]["memory_total_bytes"] > 10**8
    assert hello["versions"]["python"] == platform.python_version()
    assert hello["disk_free_bytes"] > 0
    assert hello["root"] == str(tmp_path / "root")
    assert hello["lock"]["held_by"] is None


def test_the_clock_is_the_one_that_stamps_samples(served):
    before = agent.clock()
    told = served.request("clock")["monotonic_ns"]
    assert before < told < agent.clock()


def test_the_state_is_read_twice_that_far_apart(served):
    reply = served.request("state", seconds=0.3, cpus=[min(os.sched_getaffinity(0))])
    apart = reply["later"]["t_ns"] - reply["state"]["t_ns"]
    assert 0.3e9 <= apart < 10e9
    assert reply["later"]["cpu_ticks"]["total"] > reply["state"]["cpu_ticks"]["total"]


def test_it_says_what_onnx_runtime_offers(served):
    assert "CPUExecutionProvider" in served.request("provider")["runtime"]["providers"]


def test_it_says_why_onnx_runtime_does_not_import(serving, tmp_path):
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "onnxruntime.py").write_text("raise ImportError('libgomp is not here')\n")
    served = serving(env={**os.environ, "PYTHONPATH": str(broken)})
    assert served.request("provider") == {"missing": "ImportError: libgomp is not here"}


@pytest.mark.parametrize(
    ("line", "code", "number"),
    [
        ("not json", "bad-request", None),
        ("[]", "bad-request", None),
        ("7", "bad-request", None),
        ('{"id": 5}', "bad-request", 5),
        ('{"id": 5, "op": 3}', "unknown-op", 5),
        ('{"id": 5, "op": "fly"}', "unknown-op", 5),
        ('{"id": 5, "op": "__init__"}', "unknown-op", 5),
        ('{"id": 5, "op": "forget"}', "bad-request", 5),
        ('{"id": 5, "op": "forget", "run": 3}', "bad-request", 5),
        ('{"id": 5, "op": "start", "plan": []}', "bad-request", 5),
        ('{"id": 5, "op": "missing", "files": ["a"]}', "bad-request", 5),
        ('{"id": 5, "op": "state", "seconds": "x"}', "bad-request", 5),
    ],
)
def test_a_bad_request_is_refused_and_the_agent_goes_on(served, line, code, number):
    served.request("clock")
    served.say(line)
    reply = served.answer()
    assert reply["error"]["code"] == code
    assert reply["id"] == number
    assert served.request("clock")


@pytest.mark.parametrize("run", ["../../etc", "a/b", "", ".", "x" * 65, "a\nb"])
def test_a_run_id_can_not_leave_the_spool(served, run):
    assert refusal(served.request, "forget", run=run) == "bad-request"


@pytest.mark.parametrize("op", ["follow", "collect", "cancel", "forget"])
def test_an_unknown_run_is_said_to_be_none(served, op):
    assert refusal(served.request, op, run="01ABC") == "no-run"


def test_a_plan_of_another_protocol_is_refused(served):
    plan = {**null_plan(), "agent_protocol": agent.PROTOCOL + 1}
    assert refusal(served.start, plan) == "protocol"
    assert served.request("runs")["runs"] == []


def send(served, data: bytes, digest: str | None = None) -> str:
    digest = digest or hashlib.sha256(data).hexdigest()
    cache = served.request("missing", files={digest: len(data)})["cache"]
    with open(os.path.join(cache, digest), "wb") as stream:
        stream.write(data)
    return digest


def test_a_file_is_missing_until_it_has_been_sent_and_verified(served):
    digest = send(served, b"weights")
    assert served.request("missing", files={digest: 7})["missing"] == [digest]
    served.request("verify", digest=digest)
    assert served.request("missing", files={digest: 7})["missing"] == []
    assert served.request("missing", files={digest: 8})["missing"] == [digest]


def test_a_file_that_arrived_broken_is_removed(served, tmp_path):
    digest = send(served, b"weig", hashlib.sha256(b"weights").hexdigest())
    assert refusal(served.request, "verify", digest=digest) == "truncated"
    assert not (tmp_path / "root" / "cache" / digest).exists()


def test_a_cached_file_that_was_cut_later_is_missing_again(served, tmp_path):
    digest = send(served, b"weights")
    served.request("verify", digest=digest)
    os.truncate(tmp_path / "root" / "cache" / digest, 3)
    assert served.request("missing", files={digest: 7})["missing"] == [digest]


def cached_entry(served, name: str) -> dict:
    digest = send(served, b"weights")
    served.request("verify", digest=digest)
    plan = null_plan()
    plan["artifacts"][0]["files"] = {name: {"sha256": digest, "bytes": 7}}
    return plan


def test_an_artifact_is_put_together_from_cached_files(served):
    plan = cached_entry(served, "deep/model.onnx")
    run_dir = served.start(plan)
    served.result(plan["id"])
    stored = json.loads((run_dir / "plan.json").read_text())["artifacts"][0]["path"]
    with open(os.path.join(stored, "deep", "model.onnx"), "rb") as stream:
        assert stream.read() == b"weights"


@pytest.mark.parametrize("name", ["../escape", "/etc/escape", "a/../../escape", ".."])
def test_an_artifacts_file_can_not_leave_its_directory(served, tmp_path, name):
    assert refusal(served.start, cached_entry(served, name)) == "bad-request"
    assert not list(tmp_path.rglob("escape"))
    assert served.request("runs")["runs"] == []
    assert os.listdir(tmp_path / "root" / "runs") == []


def test_an_artifact_whose_file_is_not_there_does_not_start(served, tmp_path):
    plan = null_plan()
    plan["artifacts"][0]["files"] = {"model.onnx": {"sha256": "a" * 64, "bytes": 7}}
    assert refusal(served.start, plan) == "truncated"
    assert os.listdir(tmp_path / "root" / "runs") == []


def test_it_ends_with_its_stdin(served):
    assert served.close() == 0


def test_it_ends_when_its_reader_is_gone(served):
    served.process.stdout.close()
    served.say(json.dumps({"id": 1, "op": "clock"}))
    assert served.process.wait(30) == 0


def test_a_start_that_died_leaves_nothing_in_the_way(served, tmp_path):
    plan = null_plan()
    half = tmp_path / "root" / "runs" / plan["id"]
    (half / "artifacts" / "x").mkdir(parents=True)
    old = tmp_path / "root" / "runs" / "OLD"
    old.mkdir()
    os.utime(old, (0, 0))
    served.start(plan)
    assert served.result(plan["id"])["status"] == "done"
    assert os.listdir(old.parent) == [plan["id"]]


def test_packages_that_setup_unpacked_come_first(serving, tmp_path):
    site = tmp_path / "root" / "site" / "active"
    site.mkdir(parents=True)
    (site / "onnxruntime.py").write_text("raise ImportError('the one of setup')\n")
    assert serving().request("provider") == {"missing": "ImportError: the one of setup"}
