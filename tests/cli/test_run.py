"""``edgebench run``, ``resume``, ``table``, ``devices`` and ``doctor``, as real processes."""

from __future__ import annotations

import json
import signal

import pytest

from tests.agent.agents import PATIENCE_S, wait_until
from tests.agent.test_runs import hungry_model, unsupported_model
from tests.measure.bench import Bench

#: One launch of a second: what a test of the command line needs, and no figure.
SHORT = ("--launches", "1", "--percentile", "50", "--precision", "90%", "--accuracy", "none")
#: More samples than a test waits for.
LONG = (*SHORT, "--min-count", "10000000", "--max-duration", "100")


def test_a_run_prints_a_table_and_writes_the_files(bench: Bench):
    done = bench.run("run", "--device", "bench", bench.artifact("a"), bench.artifact("b"), *SHORT)
    assert done.returncode == 0, done.stderr
    assert "device bench" in done.stdout
    assert "p50 ms" in done.stdout
    tables = sorted(p.name for p in (bench.path / "results" / "tables").iterdir())
    assert tables == [
        f"{n}.{e}" for n in ("energy", "latency", "power") for e in ("csv", "parquet")
    ]
    assert "launch 1/1" in done.stderr
    again = bench.call("table", "--json")
    (first, second) = json.loads(again.stdout)["latency"]
    assert [row["artifact"][:2] for row in (first, second)] == ["a-", "b-"]
    assert first["latency_p50_ms"] > 0
    assert first["verdict"] in ("UNDECIDED", "INVALID")  # one launch, and a busy machine perhaps
    printed = bench.call("table", first["recording_id"]).stdout
    assert printed.count(first["recording_id"]) == 1


def test_json_is_one_document_with_no_error(bench: Bench):
    done = bench.call("run", "--device", "bench", bench.artifact(), *SHORT, "--json")
    document = json.loads(done.stdout)
    assert set(document) == {"latency", "energy", "power", "errors"}
    assert document["errors"] == []
    (energy,) = document["energy"]
    assert energy["energy_per_inference_j"] is None
    assert energy["reason"] == "no power source on this device"


def test_devices_and_doctor_speak_json(bench: Bench):
    devices = json.loads(bench.call("devices", "--json").stdout)
    assert {"bench", "local", "pi4"} <= {device["id"] for device in devices}
    done = bench.call("doctor", "--device", "bench", "--json")
    report = json.loads(done.stdout)
    assert report["device"] == "bench"
    assert done.returncode == any(finding["level"] == "FAIL" for finding in report["findings"])
    assert {finding["level"] for finding in report["findings"]} <= {"ok", "warn", "FAIL", "--"}


def test_resume_finds_nothing_and_says_so(bench: Bench):
    assert "no run to pick up on bench" in bench.call("resume", "--device", "bench").stdout
    document = json.loads(bench.call("resume", "--device", "bench", "--json").stdout)
    assert document["latency"] == document["errors"] == []


# -- an artifact that can't be measured


def test_too_little_memory_is_exit_6_after_the_table(bench: Bench):
    bench.profile("limits = { memory_mb = 900 }")
    hungry, small = bench.artifact("hungry", model=hungry_model()), bench.artifact("small")
    done = bench.run("run", "--device", "bench", hungry, small, *SHORT)
    assert done.returncode == 6
    assert "INVALID out-of-memory" in done.stdout
    (said,) = [line for line in done.stderr.splitlines() if line.startswith("error: ")]
    assert said.startswith("error: hungry could not be measured: out-of-memory: ")
    assert "(bench)" in said
    assert said.endswith("Use a smaller artifact, batch or sequence, or a device with more memory.")
    assert len(bench.store.list()) == 1
    assert "Traceback" not in done.stderr


def test_a_refused_model_is_exit_6_with_its_own_words(bench: Bench):
    bad = bench.artifact("bad", model=unsupported_model())
    done = bench.call("run", "--device", "bench", bad, *SHORT, "--json")
    assert done.returncode == 6
    document = json.loads(done.stdout)
    (error,) = document["errors"]
    assert error["kind"] == "MeasurementError"
    assert "bad could not be measured: error: " in error["what"]
    assert "Frobnicate" in error["what"]
    assert "\n" not in error["what"]
    (row,) = document["latency"]
    assert row["verdict"] == "INVALID"
    assert row["latency_p50_ms"] is None


def test_a_killed_launch_is_exit_6(bench: Bench):
    host = bench.start("run", "--device", "bench", bench.artifact(), *SHORT)
    bench.wait_for_event("launch")
    bench.kill_worker()
    out, err = host.communicate(timeout=PATIENCE_S)
    assert host.returncode == 6
    assert "INVALID" in out
    assert "launch 1 of 1 could not be measured: killed: killed by SIGKILL from outside" in err


# -- two at once


def test_a_second_run_waits_and_then_runs(bench: Bench):
    first = bench.start("run", "--device", "bench", bench.artifact("a"), *LONG)
    bench.wait_for_event("solo")
    second = bench.start("run", "--device", "bench", bench.artifact("b"), *SHORT)
    lines = iter(second.stderr.readline, "")
    assert any("waiting: another measurement holds the device: " in line for line in lines)
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=PATIENCE_S)
    _, err = second.communicate(timeout=PATIENCE_S)
    assert (first.returncode, second.returncode) == (130, 0), err
    (stored,) = bench.store.list()
    assert bench.store.load(stored).recording.artifacts[0].name == "b"


def test_a_second_run_with_no_wait_fails_and_names_the_owner(bench: Bench):
    first = bench.start("run", "--device", "bench", bench.artifact("a"), *LONG)
    bench.wait_for_event("solo")
    second = bench.run("run", "--device", "bench", bench.artifact("b"), *SHORT, "--no-wait")
    assert second.returncode == 4
    (said,) = [line for line in second.stderr.splitlines() if line.startswith("error: ")]
    assert "another measurement holds the device: " in said
    assert "@" in said
    assert said.endswith("Run again later, or without --no-wait.")
    first.send_signal(signal.SIGINT)
    first.communicate(timeout=PATIENCE_S)
    bench.nothing_is_left()


# -- Ctrl-C


@pytest.mark.parametrize("moment", ["solo", "warm-up", "measuring", "waiting"])
def test_ctrl_c_ends_everything_and_leaves_nothing(bench: Bench, moment):
    if moment == "warm-up":
        # A slow model warms up for as long as it takes to notice.
        arguments = (bench.artifact(width=1200, layers=8), *LONG)
    else:
        arguments = (bench.artifact(), *LONG)
    if moment == "waiting":
        other = bench.start("run", "--device", "bench", bench.artifact("other"), *LONG)
        bench.wait_for_event("launch")
    host = bench.start("run", "--device", "bench", *arguments)
    if moment == "solo":
        bench.wait_for_event("solo")
    elif moment == "warm-up":
        bench.wait_for_event("launch", step="warm-up")
    elif moment == "measuring":
        bench.wait_for_event("progress")
    else:
        lines = iter(host.stderr.readline, "")
        assert any("waiting" in line for line in lines)
    host.send_signal(signal.SIGINT)
    out, err = host.communicate(timeout=PATIENCE_S)
    assert host.returncode == 130, err
    assert out == ""
    (said,) = [line for line in err.splitlines() if not line.startswith("  ")]
    assert said.startswith("error: interrupted; ")
    assert said.endswith(".")
    if moment == "waiting":
        assert len(bench.spools()) == 1  # the other's
        other.send_signal(signal.SIGINT)
        other.communicate(timeout=PATIENCE_S)
    bench.nothing_is_left()


def test_ctrl_c_while_resuming_leaves_the_run_alone(bench: Bench):
    host = bench.start("run", "--device", "bench", bench.artifact(), *LONG)
    bench.wait_for_event("launch")
    host.kill()
    host.communicate(timeout=PATIENCE_S)
    resuming = bench.start("resume", "--device", "bench")
    assert any("picking up" in line for line in iter(resuming.stderr.readline, ""))
    resuming.send_signal(signal.SIGINT)
    _, err = resuming.communicate(timeout=PATIENCE_S)
    assert resuming.returncode == 130
    assert "error: interrupted; nothing was changed" in err
    (spool,) = bench.spools()
    assert not (spool / "result.json").exists()


def test_ctrl_c_in_a_command_that_measures_nothing(bench: Bench):
    doctor = bench.start("doctor", "--device", "bench")
    wait_until(bench.agents, "its agent")
    doctor.send_signal(signal.SIGINT)
    out, err = doctor.communicate(timeout=PATIENCE_S)
    assert doctor.returncode == 130
    assert out == ""
    assert "error: interrupted" in err
    assert "Traceback" not in err
