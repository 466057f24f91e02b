"""A run from start to forget, and every way in which it can go wrong on the device."""

from __future__ import annotations

import hashlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from edgebench.agent import agent
from tests.agent.agents import (
    Refused,
    endless,
    null_entry,
    null_plan,
    onnx_entry,
    onnx_runtime,
    processes,
    wait_until,
)
from tests.tiny import tiny_artifact


def outcomes(result) -> list[str]:
    return [launch["outcome"] for launch in result["launches"]]


def is_free(lock: str) -> bool:
    return not agent.is_held(agent.open_lock(agent.lock_path(lock)))


def test_a_run_of_two_null_artifacts(served, lock):
    plan = null_plan(null_entry("a"), null_entry("b"), launches=2)
    run_dir = served.start(plan)
    events = list(served.following(plan["id"]))
    assert events[-1] == {"ended": "ended"}
    assert [event.get("event") for event in events[:-1] if event["event"] != "progress"] == [
        *["solo"] * 2,
        *["launch"] * 2,
    ]
    found = served.request("collect", run=plan["id"])
    for name, entry in found["files"].items():
        data = (run_dir / name).read_bytes()
        assert entry == {"bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()}
    result = json.loads((run_dir / found["result"]).read_text())
    assert result["status"] == "done"
    assert outcomes(result) == ["ok", "ok"]
    assert [solo["execution"] for solo in result["solo"]] == [{"providers": ["null"]}] * 2
    for entry, launch in zip(result["samples"], result["launches"], strict=True):
        table = np.load(run_dir / entry["file"])
        measured = table[table[:, 2] == agent.MEASURE]
        assert all(np.sum(measured[:, 0] == artifact) >= 20 for artifact in (0, 1))
        assert np.all(np.diff(table[:, 3]) > 0)
        # The floor of the harness: a call that does nothing takes far less than a millisecond.
        assert 0 < np.median(measured[:, 4]) < 100_000
        first, last = launch["window_ns"]
        assert result["started_ns"] < launch["started_ns"] < first < last < launch["ended_ns"]
    states = [json.loads(line) for line in (run_dir / "state.jsonl").read_text().splitlines()]
    assert states[0]["when"] == "before"
    assert states[-1]["when"] == "after"
    assert {line["launch"] for line in states} >= {None, 0, 1}
    assert is_free(lock)
    served.request("forget", run=plan["id"])
    assert not run_dir.exists()
    assert served.request("runs")["runs"] == []


def test_the_state_is_read_every_second_while_it_measures(served):
    stop = endless(min_duration_s=2.5, max_duration_s=2.5)
    plan = null_plan(stop=stop)
    run_dir = served.start(plan)
    result = served.result(plan["id"])
    first, last = result["launches"][0]["window_ns"]
    lines = [json.loads(line) for line in (run_dir / "state.jsonl").read_text().splitlines()]
    inside = [line["t_ns"] for line in lines if first <= line["t_ns"] <= last]
    assert 2 <= len(inside) <= 3
    assert all(0.9e9 < gap < 1.9e9 for gap in np.diff(inside))


def test_the_same_run_started_twice_is_one_run(serving):
    one, other = serving(), serving()
    plan = null_plan(stop=endless())
    replies = [one.request("start", plan=plan), one.request("start", plan=plan)]
    replies.append(other.request("start", plan=plan))
    assert [reply["started"] for reply in replies] == [True, False, False]
    assert len({reply["run_dir"] for reply in replies}) == 1
    assert len(processes("supervise", one.root)) == 1


def test_the_same_run_started_at_once_from_two_hosts_is_one_run(serving):
    agents = [serving() for _ in range(4)]
    plan = null_plan(stop=endless())
    started = []

    def start(each) -> None:
        try:
            started.append(each.request("start", plan=plan)["started"])
        except Refused as refused:
            # It asked between the other's lock and the other's plan.
            assert refused.code == "busy"
            started.append(False)

    threads = [threading.Thread(target=start, args=(each,)) for each in agents]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(started) == [False, False, False, True]
    assert len(processes("supervise", agents[0].root)) == 1


def test_the_agent_ends_with_its_host_and_the_run_goes_on(serving):
    first = serving()
    plan = null_plan(stop=endless(min_duration_s=1.5, max_duration_s=1.5))
    run_dir = first.start(plan)
    first.until(plan["id"], "launch")
    (supervisor,) = processes("supervise", first.root)
    assert os.getsid(supervisor) == supervisor  # no hang-up of the connection reaches it
    assert first.close() == 0
    second = serving()
    (listed,) = second.request("runs")["runs"]
    assert listed == {
        "run": plan["id"],
        "status": "running",
        "owner": "somebody@host",
        "store": "host:/results/runs",
        "names": ["null"],
        "launches": 1,
    }
    # From the beginning: no event is lost, whoever follows.
    events = list(second.following(plan["id"]))
    assert events[0]["event"] == "solo"
    assert events[-1] == {"ended": "ended"}
    result = json.loads((run_dir / "result.json").read_text())
    assert result["launches"][0]["stopped_by"] == "time"


def test_a_follower_can_leave_out_what_was_said_before(served):
    plan = null_plan(stop=endless(min_duration_s=1.5, max_duration_s=1.5))
    served.start(plan)
    served.until(plan["id"], "launch")
    events = [
        event["event"] for event in served.following(plan["id"], offset=-1) if "t_ns" in event
    ]
    assert "progress" in events


def test_a_running_run_can_be_neither_collected_nor_forgotten(served):
    plan = null_plan(stop=endless())
    served.start(plan)
    for op in ("collect", "forget"):
        with pytest.raises(Refused) as caught:
            served.request(op, run=plan["id"])
        assert caught.value.code == "running"


def test_a_killed_worker_is_an_outcome_and_the_next_launch_goes_on(served):
    plan = null_plan(launches=3, stop=endless(min_duration_s=1.0, max_duration_s=1.0))
    served.start(plan)
    served.until(plan["id"], "launch")
    (worker,) = processes("work", served.root)
    os.kill(worker, signal.SIGKILL)
    result = served.result(plan["id"])
    assert outcomes(result) == ["killed", "ok", "ok"]
    assert result["status"] == "done"
    assert [entry["launch"] for entry in result["samples"]] == [1, 2]


def test_a_crashed_worker_is_an_outcome_with_its_signal(served):
    plan = null_plan(stop=endless())
    served.start(plan)
    served.until(plan["id"], "launch")
    (worker,) = processes("work", served.root)
    os.kill(worker, signal.SIGABRT)
    (launch,) = served.result(plan["id"])["launches"]
    assert launch["outcome"] == "crashed"
    assert f"signal {int(signal.SIGABRT)}" in launch["error"]


def test_cancel_ends_a_run_and_keeps_what_it_had(served, lock):
    plan = null_plan(launches=3, stop=endless())
    served.start(plan)
    served.until(plan["id"], "launch")
    served.request("cancel", run=plan["id"])
    result = served.result(plan["id"])
    assert result["status"] == "cancelled"
    assert outcomes(result) == ["cancelled"]
    assert result["solo"][0]["outcome"] == "ok"
    assert is_free(lock)
    assert processes("work", served.root) == []


def test_the_deadline_ends_a_run(served):
    plan = null_plan(launches=3, stop=endless(), deadline_s=1.5)
    served.start(plan)
    result = served.result(plan["id"])
    assert result["status"] == "deadline"
    assert (outcomes(result) or [result["solo"][-1]["outcome"]]) == ["deadline"]


def test_the_deadline_ends_a_cool_down_too(served):
    zones = agent.device_state("before", None, [0])["temperature_c"]
    cooldown = {"below_c": -100.0, "max_s": 50.0}
    plan = null_plan(launches=2, cooldown=cooldown, deadline_s=8.0)
    served.start(plan)
    result = served.result(plan["id"])
    # A device without a sensor does not wait for one.
    assert result["status"] == ("deadline" if zones else "done")


def test_a_dead_supervisor_takes_its_worker_along_and_frees_the_lock(served, lock):
    plan = null_plan(launches=2, stop=endless(max_duration_s=0.5))
    run_dir = served.start(plan)
    for event in served.following(plan["id"]):
        if event.get("event") == "launch" and event["launch"] == 1:
            break
    (worker,) = processes("work", served.root)
    (supervisor,) = processes("supervise", served.root)
    os.kill(worker, signal.SIGSTOP)  # so that it can't find out by itself that nobody listens
    os.kill(supervisor, signal.SIGKILL)
    wait_until(lambda: not Path(f"/proc/{worker}").exists(), "the worker is gone")
    wait_until(lambda: is_free(lock), "the lock is free")
    (listed,) = served.request("runs")["runs"]
    assert listed["status"] == "lost"
    found = served.request("collect", run=plan["id"])
    assert found["status"] == "lost"
    assert "launch-000.npy" in found["files"]
    result = json.loads((run_dir / found["result"]).read_text())
    assert outcomes(result) == ["ok"]
    (followed,) = [event for event in served.following(plan["id"]) if "ended" in event]
    assert followed == {"ended": "lost"}


def test_a_run_that_died_before_it_measured_says_so(served):
    plan = null_plan()
    del plan["protocol"]["deadline_s"]
    served.start(plan)
    assert list(served.following(plan["id"])) == [{"ended": "lost"}]
    with pytest.raises(Refused, match="KeyError: 'deadline_s'") as caught:
        served.request("collect", run=plan["id"])
    assert caught.value.code == "nothing"
    served.request("forget", run=plan["id"])


def unsupported_model() -> onnx.ModelProto:
    """A graph with an operator that no runtime has."""
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    node = helper.make_node("Frobnicate", ["input_ids"], ["logits"], domain="nobody")
    graph = helper.make_graph([node], "bad", [ids], [out])
    opsets = [helper.make_opsetid("", 17), helper.make_opsetid("nobody", 1)]
    return helper.make_model(graph, ir_version=10, opset_imports=opsets)


def hungry_model(gigabytes: int = 4) -> onnx.ModelProto:
    """A graph that fills an array of so many GB when it is called."""
    rows = gigabytes * 10**9 // 4 // 1000
    shape = onnx.numpy_helper.from_array(np.array([rows, 1000], np.int64), "shape")
    ids = helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])
    out = helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2])
    two = onnx.numpy_helper.from_array(np.array([0, 0], np.int64), "two")
    nodes = [
        helper.make_node("Cast", ["input_ids"], ["x"], to=TensorProto.FLOAT),
        helper.make_node("ReduceMean", ["x"], ["mean"], axes=[1], keepdims=1),
        helper.make_node("ReduceMax", ["mean"], ["one"], keepdims=1),
        helper.make_node("Expand", ["one", "shape"], ["huge"]),
        helper.make_node("Gather", ["huge", "two"], ["few"], axis=1),
        helper.make_node("ReduceMean", ["few"], ["sum"], axes=[0], keepdims=1),
        helper.make_node("Add", ["mean", "sum"], ["logits"]),
    ]
    graph = helper.make_graph(nodes, "hungry", [ids], [out], [shape, two])
    return helper.make_model(graph, ir_version=10, opset_imports=[helper.make_opsetid("", 17)])


def test_a_model_that_the_runtime_refuses_is_an_error_and_the_other_is_measured(served, tmp_path):
    bad = tiny_artifact(tmp_path, name="bad", model=unsupported_model())
    good = tiny_artifact(tmp_path, name="good")
    plan = null_plan(onnx_entry(bad), onnx_entry(good), runtime=onnx_runtime())
    served.start(plan)
    result = served.result(plan["id"])
    found = {solo["artifact"]: solo for solo in result["solo"]}
    assert found[0]["outcome"] == "error"
    assert "Frobnicate" in found[0]["error"]
    assert found[1]["outcome"] == "ok"
    assert outcomes(result) == ["ok"]
    assert result["launches"][0]["load_ns"][0] is None
    table = np.load(served.root / "runs" / plan["id"] / "launch-000.npy")
    assert set(table[:, 0].tolist()) == {1}


def test_a_model_that_needs_too_much_memory_is_an_outcome_and_nobody_else_suffers(served, tmp_path):
    neighbour = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    hungry = tiny_artifact(tmp_path, name="hungry", model=hungry_model())
    plan = null_plan(onnx_entry(hungry), runtime=onnx_runtime(), memory_limit_bytes=900_000_000)
    served.start(plan)
    (solo,) = served.result(plan["id"])["solo"]
    assert solo["outcome"] == "out-of-memory", solo
    assert neighbour.poll() is None
    neighbour.communicate(b"\n")


def test_resident_memory_beyond_the_limit_kills_the_worker(served, tmp_path):
    """Where the limit on data does not count it: a file that is mapped and touched."""
    eater = tmp_path / "sitecustomize.py"
    # Shared anonymous memory is not "data" to setrlimit(2).
    eater.write_text(
        "import sys, mmap\n"
        "if 'work' in sys.argv or 'work' in sys.orig_argv:\n"
        "    room = mmap.mmap(-1, 400_000_000)\n"
        "    for i in range(0, len(room), 4096):\n"
        "        room[i] = 1\n"
    )
    plan = null_plan(memory_limit_bytes=300_000_000, stop=endless())
    plan["protocol"]["runtime"]["environment"] = {"PYTHONPATH": str(tmp_path)}
    served.start(plan)
    (solo,) = served.result(plan["id"])["solo"]
    assert solo["outcome"] == "out-of-memory"
    assert solo["error"] == agent.KILLED["out-of-memory"]


def test_a_provider_that_is_not_there_is_an_error_that_says_what_is(served, tmp_path):
    plan = null_plan(
        onnx_entry(tiny_artifact(tmp_path)), runtime=onnx_runtime(provider="NoSuchProvider")
    )
    served.start(plan)
    (solo,) = served.result(plan["id"])["solo"]
    assert solo["outcome"] == "error"
    assert "no NoSuchProvider" in solo["error"]
    assert "CPUExecutionProvider" in solo["error"]


def test_an_unknown_runtime_is_an_error(served):
    plan = null_plan(null_entry(runtime="abacus"))
    served.start(plan)
    (solo,) = served.result(plan["id"])["solo"]
    assert (solo["outcome"], solo["error"]) == ("error", "this agent has no runtime 'abacus'")


def test_what_a_library_prints_is_not_an_event(served, tmp_path):
    (tmp_path / "sitecustomize.py").write_text("print('welcome', flush=True)\nprint('7')\n")
    plan = null_plan()
    plan["protocol"]["runtime"]["environment"] = {"PYTHONPATH": str(tmp_path)}
    served.start(plan)
    assert served.result(plan["id"])["status"] == "done"


def test_a_clock_step_changes_nothing():
    """Durations and stamps come from the monotonic clock; the wall clock is only told."""
    source = Path(agent.__file__).read_text()
    wall = re.compile(r"\btime\.time(_ns)?\(")
    uses = [line.strip() for line in source.splitlines() if wall.search(line)]
    assert len(uses) == 3, uses
    assert all("since_unix" in use or "unix_ns" in use or "age_s" in use for use in uses)
