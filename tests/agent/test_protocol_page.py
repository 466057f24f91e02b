"""docs/agent-protocol.md says what the agent does."""

from __future__ import annotations

import ast
import json
import re
from typing import get_args

import pytest

from edgebench.agent import agent
from edgebench.recording import Launch, Outcome, Protocol, Solo
from tests.agent.agents import AGENT, null_entry, null_plan
from tests.measure.bench import REPOSITORY

PAGE = (REPOSITORY / "docs" / "agent-protocol.md").read_text()
TREE = ast.parse(AGENT.read_text())


def section(title: str) -> str:
    """The text below a heading, up to the next one of its level or above."""
    match = re.search(rf"^(#+) `?{re.escape(title)}`?$", PAGE, re.MULTILINE)
    assert match, f"no heading {title!r}"
    rest = PAGE[match.end() :]
    end = re.search(rf"^#{{1,{len(match[1])}}} ", rest, re.MULTILINE)
    return rest[: end.start()] if end else rest


def named(title: str) -> set[str]:
    return set(re.findall(r"`([^`\n]+)`", section(title)))


def operations() -> list[str]:
    return sorted(
        name.removeprefix("do_").replace("_", "-")
        for name in vars(agent.Server)
        if name.startswith("do_")
    )


def codes() -> set[str]:
    """Every code that an AgentError or an error reply is made with."""
    found = set()
    for node in ast.walk(TREE):
        if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "AgentError":
            found.add(ast.literal_eval(node.args[0]))
        if isinstance(node, ast.Dict):
            for key, value in zip(node.keys, node.values, strict=True):
                if getattr(key, "value", "") == "code":
                    found |= {
                        part.value
                        for part in ast.walk(value)
                        if isinstance(part, ast.Constant) and isinstance(part.value, str)
                    }
    return found


def test_the_version_and_the_sentinel():
    assert f"# The agent protocol, version {agent.PROTOCOL}\n" in PAGE
    assert f"\n{agent.SENTINEL} {agent.PROTOCOL}\n" in PAGE


def test_every_operation_has_its_heading_and_there_is_no_other():
    headings = re.findall(r"^### `(.+)`$", section("Operations"), re.MULTILINE)
    assert sorted(headings) == operations()


@pytest.mark.parametrize("name", operations())
def test_every_member_that_an_operation_reads_is_named(name):
    method = next(
        node
        for node in ast.walk(TREE)
        if isinstance(node, ast.FunctionDef) and node.name == "do_" + name.replace("-", "_")
    )
    read = set()
    for node in ast.walk(method):
        if isinstance(node, ast.Subscript) and getattr(node.value, "id", "") == "request":
            read.add(node.slice.value)
        if isinstance(node, ast.Call) and ast.unparse(node.func) == "request.get":
            read.add(node.args[0].value)
    assert read <= named(name)


def test_every_error_code_is_in_the_page():
    table = set(re.findall(r"^\| `(.+?)` \|", section("Error codes"), re.MULTILINE))
    assert codes() <= named("Error codes")
    assert table <= codes()
    assert {"busy", "disk-full", "bad-request", "no-run"} <= codes()


def test_what_hello_and_state_say_is_named(served):
    hello = served.request("hello")
    assert {*hello, *hello["identity"], *hello["lock"]} <= named("hello")
    state = served.request("state")
    assert set(state) <= named("state")
    assert set(state["state"]) <= named("state.jsonl")
    assert set(served.request("clock")) <= named("clock")


def test_a_plan_is_named_member_by_member():
    members = named("The plan")
    plan = null_plan()
    assert {*plan, "agent_digest"} <= members
    assert set(plan["protocol"]) <= members
    assert set(plan["protocol"]["runtime"]) <= set(re.findall(r"`(\w+)`", section("The plan")))
    assert set(null_entry()) <= {name.strip("[]") for name in members}
    # What the host writes beyond that is for the recording alone.
    assert set(Protocol.model_fields) - members == {"input_source", "percentiles"}


def test_results_spool_and_events_are_named(served):
    plan = null_plan(stop={**null_plan()["protocol"]["stop"], "min_duration_s": 0.7})
    run_dir = served.start(plan)
    result = served.result(plan["id"])
    (listed,) = served.request("runs")["runs"]
    assert set(listed) <= set(re.findall(r"`(\w+)`", section("runs")))
    assert set(served.request("collect", run=plan["id"])) <= named("collect")
    assert set(result) - {"error"} <= named("result.json")
    assert {*result["solo"][0], *result["launches"][0]} <= named("result.json")
    assert {*Solo.model_fields, *Launch.model_fields} <= named("result.json")
    spool = section("The spool")
    for file in run_dir.iterdir():
        name = re.sub(r"\d{3}", "NNN", file.name)
        assert f"`{name}`" in spool or name.startswith("task-NNN."), name
    events = [json.loads(line) for line in (run_dir / "events.jsonl").read_text().splitlines()]
    assert {event["event"] for event in events} == {"solo", "launch", "progress"}
    for event in events:
        assert {event["event"], *event} <= named("events.jsonl")
    for column in agent.COLUMNS:
        assert f"| `{column}` |" in section("launch-NNN.npy")


def test_every_outcome_is_in_the_page():
    rows = re.findall(r"^\| (`.+?`(?:, `.+?`)*) \|", section("Outcomes of a worker"), re.MULTILINE)
    assert {word for row in rows for word in re.findall(r"`(.+?)`", row)} == set(get_args(Outcome))
