"""The GitHub Action: its files agree with each other, and its script runs the real command."""

from __future__ import annotations

import json
import os
import re
import stat
import subprocess
import sys
from pathlib import Path

import yaml

from tests.measure.bench import REPOSITORY, Bench

ACTION = REPOSITORY / ".github" / "actions" / "edgebench-check"
WORKFLOW = REPOSITORY / "examples" / "github" / "latency-gate.yml"


def action() -> dict:
    return yaml.safe_load((ACTION / "action.yml").read_text())


def run_script(bench: Bench, **inputs: str) -> tuple[int, dict[str, str], str]:
    """The action's step as a runner runs it: exit code, outputs, job summary."""
    shim = bench.path / "bin" / "edgebench"
    shim.parent.mkdir(exist_ok=True)
    shim.write_text(f'#!/bin/sh\nexec "{sys.executable}" -m edgebench "$@"\n')
    shim.chmod(shim.stat().st_mode | stat.S_IXUSR)
    step = action()["runs"]["steps"][0]
    given = {name: str(spec.get("default", "")) for name, spec in action()["inputs"].items()}
    given |= {name.replace("_", "-"): value for name, value in inputs.items()}
    environment = {
        name: given[re.fullmatch(r"\$\{\{ inputs\.([a-z-]+) \}\}", value)[1]]
        for name, value in step["env"].items()
    }
    files = {name: bench.path / name.lower() for name in ("GITHUB_OUTPUT", "GITHUB_STEP_SUMMARY")}
    for path in files.values():
        path.write_text("")
    done = subprocess.run(
        ["bash", "-c", step["run"]],
        cwd=bench.path,
        env={
            **os.environ,
            **environment,
            **{name: str(path) for name, path in files.items()},
            "PATH": f"{shim.parent}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": str(REPOSITORY),
            "GITHUB_ACTION_PATH": str(ACTION),
            "RUNNER_TEMP": str(bench.path),
        },
        capture_output=True,
        text=True,
        check=False,
    )
    lines = files["GITHUB_OUTPUT"].read_text().splitlines()
    outputs = dict(line.split("=", maxsplit=1) for line in lines)
    return done.returncode, outputs, files["GITHUB_STEP_SUMMARY"].read_text()


def test_the_action_hands_every_input_on():
    step = action()["runs"]["steps"][0]
    used = re.findall(r"inputs\.([a-z-]+)", " ".join(step["env"].values()))
    assert sorted(used) == sorted(action()["inputs"])
    script = (ACTION / "check.sh").read_text()
    for name in step["env"]:
        assert re.search(rf'[$"{{]{name}\b', script), name
    # Nothing that a pull request may write reaches a shell as text.
    assert "${{" not in step["run"] + script


def test_the_example_workflow_uses_inputs_and_outputs_that_there_are():
    workflow = yaml.safe_load(WORKFLOW.read_text())
    steps = workflow["jobs"]["gate"]["steps"]
    (gate,) = [step for step in steps if "edgebench-check" in step.get("uses", "")]
    assert gate["with"].keys() <= action()["inputs"].keys()
    used = set(re.findall(r"steps\.gate\.outputs\.(\w+)", WORKFLOW.read_text()))
    assert used <= action()["outputs"].keys()
    path = gate["uses"].split("@")[0].removeprefix("edgebench/edgebench/")
    assert (REPOSITORY / path / "action.yml").is_file()


def test_its_script_reports_a_verdict_and_fails_only_where_asked(bench: Bench):
    artifact = bench.artifact("tiny", width=64, layers=4)
    inputs = {
        "candidate": str(artifact.path),
        "baseline": str(artifact.path),
        "device": "bench",
        "arguments": "--max-blocks 1 --block-time 0.05 --max-foreign-load 100%",
    }
    code, outputs, summary = run_script(bench, **inputs)
    assert (code, outputs["status"]) == (0, "undecided")
    assert "| tiny-base-fp32 | p50 latency |" in summary.replace("\\_", "_")
    assert json.loads(Path(outputs["json"]).read_text())["exit_code"] == 2
    assert Path(outputs["junit"]).is_file()
    code, outputs, _ = run_script(bench, **inputs, metrics="size", fail_on="undecided")
    assert (code, outputs["status"]) == (0, "pass")


def test_what_keeps_it_from_checking_is_no_verdict(bench: Bench):
    code, outputs, summary = run_script(bench, candidate="nowhere", baseline="nowhere")
    assert (code, outputs["status"], summary) == (3, "error", "")
    code, outputs, _ = run_script(bench, candidate="a", baseline="a", arguments="--no-such-option")
    assert (code, outputs["status"]) == (2, "error")
