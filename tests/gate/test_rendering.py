"""JUnit XML, Markdown, the terminal, and the document: of the same check."""

from __future__ import annotations

import json
from dataclasses import replace
from types import SimpleNamespace
from xml.etree import ElementTree

import pytest

from edgebench.errors import RecordingError
from edgebench.gate import stored
from edgebench.gate.junit import to_junit
from edgebench.gate.markdown import to_markdown
from edgebench.gate.outcome import Finding, Result, Status
from edgebench.gate.sequential import Decision
from edgebench.gate.show import render

PASS = Finding("tiny|fp32", "p50", "p50 latency", Decision.PASS, 1.001, 0.99, 1.01, blocks=8)
SLOW = replace(PASS, metric="size", decision=Decision.REGRESSION, value=1.2)
OPEN = replace(
    PASS, metric="p95", decision=Decision.UNDECIDED, hi=float("inf"), note="needs about 4 more"
)
SELF_TEST = stored.SelfTest(
    device="pi4",
    fingerprint_digest="sha256:abc",
    created_at="2026-01-02T03:04:05+00:00",
    artifact="tiny",
    max_regression=0.03,
    blocks=60,
    seconds=120.0,
    block_s=2.0,
    checks=7,
    alarms=0,
    alarm_rate_hi=0.35,
    replays=10_000,
    replayed_alarms=12,
    spread=0.008,
    smallest_slowdown=0.02,
    canary="edgebench-canary-2",
    canary_ns=1e6,
    batch=1,
    recordings=("a", "b"),
)


def result(*findings: Finding, **more: object) -> Result:
    return Result(
        device="pi4",
        fingerprint_digest="sha256:abc",
        max_regression=0.03,
        max_accuracy_drop=0.01,
        alpha=0.01,
        miss=0.01,
        findings=findings,
        self_test=SELF_TEST,
        **more,
    )


@pytest.mark.parametrize(
    ("findings", "more", "status"),
    [
        ((PASS,), {}, Status.PASS),
        ((PASS, SLOW, OPEN), {}, Status.REGRESSION),
        ((PASS, OPEN), {}, Status.UNDECIDED),
        ((), {}, Status.UNDECIDED),
        ((PASS, SLOW), {"broken": ("throttled",)}, Status.BROKEN),
    ],
)
def test_the_worst_decides_and_a_broken_environment_says_nothing(findings, more, status):
    assert result(*findings, **more).status is status


def test_junit_has_a_case_a_finding():
    root = ElementTree.fromstring(to_junit(result(PASS, SLOW, OPEN)))
    assert root.tag == "testsuites"
    assert (root.get("tests"), root.get("failures"), root.get("skipped")) == ("3", "1", "1")
    cases = root.findall("testsuite/testcase")
    assert [case.get("name") for case in cases] == ["p50", "size", "p95"]
    assert cases[1].find("failure") is not None
    assert "needs about 4 more" in cases[2].find("skipped").get("message")


def test_junit_of_a_broken_environment_has_errors_alone():
    for findings in ((PASS, SLOW), ()):
        root = ElementTree.fromstring(to_junit(result(*findings, broken=("it is <hot>",))))
        assert root.get("failures") == "0"
        assert int(root.get("errors")) == max(len(findings), 1)


def test_markdown_is_one_table_and_keeps_to_its_cells():
    text = to_markdown(result(PASS, OPEN))
    rows = [line for line in text.splitlines() if line.startswith("|")]
    assert len(rows) == 4
    assert "tiny\\|fp32" in rows[2]
    assert "undecided" in text.splitlines()[0]
    assert "0 false alarms in 7 checks" in text
    broken = to_markdown(result(PASS, broken=("throttled <b>",)))
    assert "Nothing is said about the code" in broken
    assert "&lt;b&gt;" in broken


def test_the_terminal_shows_what_is_missing():
    text = render(result(PASS, OPEN))
    assert "1.001× (0.990 – 1.010)  pass" in text
    assert "(0.990 – ∞)" in text
    assert "needs about 4 more" in text
    assert "smallest slowdown found: 2 %" in text


def test_the_document_is_json_without_infinities():
    document = json.loads(json.dumps(result(PASS, OPEN).document(), allow_nan=False))
    assert document["exit_code"] == 2
    assert document["findings"][1]["hi"] is None
    assert document["self_test"]["schema"] == "edgebench.selftest/2"


def test_a_self_test_is_read_as_it_was_written(tmp_path):
    assert stored.read(tmp_path, "sha256:abc") is None
    path = stored.write(tmp_path, SELF_TEST)
    assert stored.read(tmp_path, "sha256:abc") == SELF_TEST
    for broken in ("{", "[]", '{"schema": "edgebench.selftest/9"}', '{"schema": "x", "a": 1}'):
        path.write_text(broken)
        with pytest.raises(RecordingError, match="self-test"):
            stored.read(tmp_path, "sha256:abc")


def test_a_self_test_of_the_first_canary_is_read_and_not_held_against_another(tmp_path):
    path = stored.write(tmp_path, SELF_TEST)
    document = json.loads(path.read_text())
    del document["canary"]
    path.write_text(json.dumps(document | {"schema": "edgebench.selftest/1"}))
    old = stored.read(tmp_path, "sha256:abc")
    assert old == replace(SELF_TEST, canary="edgebench-canary")

    def session(canary, batch):
        entries = [SimpleNamespace(manifest={"name": name}) for name in ("a", "a", canary)]
        recording = SimpleNamespace(artifacts=entries, protocol=SimpleNamespace(batch=batch))
        return SimpleNamespace(recording=recording)

    assert SELF_TEST.canary_of(session("edgebench-canary-2", 1)) == 1e6
    assert SELF_TEST.canary_of(session("edgebench-canary-2", 4)) is None
    assert old.canary_of(session("edgebench-canary-2", 1)) is None
    assert old.canary_of(session("edgebench-canary", 1)) == 1e6
