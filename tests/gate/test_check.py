"""``edgebench check`` from the command line to its exit code, on real workers."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from xml.etree import ElementTree

import pytest

from edgebench.errors import ArtifactError, InputError, UsageError
from edgebench.gate.canary import make_canary
from edgebench.gate.pairs import load_side, pair
from tests.measure.bench import Bench
from tests.tiny import edit_manifest, tiny_artifact

#: Short blocks, whatever else this machine does.
SHORT = ("--block-time", "0.05", "--max-canary-shift", "100%")
ANY_LOAD = ("--max-foreign-load", "100%")


def check(bench: Bench, *arguments: object):
    return bench.call("check", "--device", "bench", *arguments, *SHORT)


@pytest.fixture
def models(bench: Bench):
    """The same model twice, and one with several times the work."""
    return (
        bench.artifact("tiny", width=64, layers=4),
        tiny_artifact(bench.path / "new", width=64, layers=4),
        tiny_artifact(bench.path / "slow", width=64, layers=40),
    )


def test_0_pass_and_1_regression_with_reports_for_every_reader(bench: Bench, models):
    old, same, slow = models
    done = check(
        bench, "--baseline", old, "--candidate", same, "--max-regression", "60%", *ANY_LOAD
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "pass: limit 60 %, false alarms at most 1 %" in done.stdout
    assert "no self-test yet" in done.stdout
    junit, markdown = bench.path / "junit.xml", bench.path / "summary.md"
    done = check(
        *(bench, "--baseline", old, "--candidate", slow, "--max-regression", "60%", *ANY_LOAD),
        *("--metric", "p50", "--metric", "size", "--metric", "accuracy", "--json"),
        *("--junit", junit, "--markdown", markdown, "--max-accuracy-drop", "50%"),
    )
    assert done.returncode == 1, done.stderr
    document = json.loads(done.stdout)
    assert document["status"] == "regression"
    found = {finding["metric"]: finding for finding in document["findings"]}
    assert found["p50"]["decision"] == "regression"
    assert found["p50"]["value"] > 1.6
    assert found["p50"]["lo"] > 1.0
    assert found["size"]["decision"] == "regression"
    # Its labels are its own answers but for a tenth.
    assert found["accuracy"]["value"] == 0
    assert ElementTree.parse(junit).getroot().get("failures") == "2"
    assert "regression" in markdown.read_text()
    # Sessions are recordings of their own, and no rows of the tables.
    kept = {path.name for path in (bench.path / "results" / "checks").iterdir()}
    assert set(document["recordings"]) < kept
    assert bench.store.list() == ()


def test_2_undecided_says_how_much_more_it_needs(bench: Bench, models):
    old, same, _ = models
    done = check(
        *(bench, "--baseline", old, "--candidate", same, "--max-blocks", "2", *ANY_LOAD, "--json"),
        *("--metric", "p50", "--metric", "memory"),
    )
    assert done.returncode == 2, done.stderr
    document = json.loads(done.stdout)
    finding, memory = document["findings"]
    # Each pair of fresh workers is a session of its own.
    assert len(document["recordings"]) == 2
    assert memory["blocks"] == 2
    assert 0.8 < memory["value"] < 1.25
    assert finding["decision"] == "undecided"
    assert (finding["more_blocks"] or 0) > 0 or "between half the limit" in finding["note"]
    assert finding["hi"] is None  # too few blocks bound nothing


def test_3_broken_environment_when_others_use_the_processors(bench: Bench, models):
    old, _, slow = models
    burn = [sys.executable, "-c", "while True: pass"]
    burners = [subprocess.Popen(burn) for _ in range(os.cpu_count() or 1)]
    try:
        done = check(
            bench,
            "--baseline",
            old,
            "--candidate",
            slow,
            "--max-blocks",
            "8",
            "--max-foreign-load",
            "1%",
        )
    finally:
        for burner in burners:
            burner.kill()
            burner.wait()
    assert done.returncode == 3, done.stdout + done.stderr
    assert "nothing is said about the code" in done.stdout
    assert "foreign load" in done.stdout


def test_a_candidate_that_crashes_is_an_error_of_its_own(bench: Bench, models):
    import onnx

    from tests.tiny import tiny_model

    model = tiny_model()
    model.graph.node[0].op_type = "NoSuchOperator"
    broken = tiny_artifact(
        bench.path / "broken", model=onnx.ModelProto.FromString(model.SerializeToString())
    )
    done = check(bench, "--baseline", models[0], "--candidate", broken, "--max-blocks", "1")
    assert done.returncode == 6
    assert "could not be measured" in done.stderr


@pytest.mark.parametrize(
    ("arguments", "code", "words"),
    [
        ((), 2, "give either --baseline or --history"),
        (("--baseline", "{old}"), 2, "--candidate is missing"),
        (("--baseline", "nowhere", "--candidate", "{old}"), 3, "no such artifact (nowhere)"),
        (("--baseline", "{old}", "--candidate", "{old}", "--metric", "p42"), 2, "no metric 'p42'"),
        (("--baseline", "{old}", "--candidate", "{old}", "--max-regression", "3"), 2, "a share"),
        (("--baseline", "{old}", "--candidate", "{old}", "--junit", "no/x"), 5, "does not exist"),
        (("--history", "nowhere", "--candidate", "{old}"), 2, "no directory nowhere"),
        (("--self-test", "--baseline", "{old}"), 2, "against itself"),
    ],
)
def test_bad_input_has_the_usual_codes_and_one_sentence(bench: Bench, arguments, code, words):
    old = bench.artifact()
    done = check(bench, *(a.format(old=old.path) for a in arguments))
    assert done.returncode == code, done.stderr
    assert words in done.stderr
    assert not (bench.path / "results" / "checks").exists()


def test_energy_where_no_meter_sees_the_device_is_refused(bench: Bench):
    old = bench.artifact()
    done = check(
        *(bench, "--baseline", old, "--candidate", old, "--metric", "energy", "--max-blocks", "1")
    )
    assert done.returncode == 3
    assert "energy an inference can't be gated here: no power source on this device" in done.stderr


def test_a_baseline_of_another_schema_version_is_refused(bench: Bench):
    old, new = bench.artifact("old"), bench.artifact("new")
    edit_manifest(old, schema="edgebench.artifact/0")
    with pytest.raises(ArtifactError, match=r"edgebench\.artifact/0"):
        load_side([old.path], "--baseline")
    assert load_side([new.path], "--candidate")[0].digest == new.digest


def test_a_directory_of_artifacts_is_paired_by_name(tmp_path: Path):
    for side in ("old", "new"):
        for name in ("a", "b"):
            tiny_artifact(tmp_path / side, name=name)
    old, new = (load_side([tmp_path / side], "--side") for side in ("old", "new"))
    pairs = pair(old, list(reversed(new)))
    assert sorted(each.name for each in pairs) == ["a-base-fp32", "b-base-fp32"]
    assert all(each.baseline.name == each.candidate.name for each in pairs)
    with pytest.raises(InputError, match="b-base-fp32 has no partner among the candidates"):
        pair(old, new[:1])
    with pytest.raises(InputError, match="two artifacts named a-base-fp32"):
        pair([*old, old[0]], new)
    with pytest.raises(ArtifactError, match="no artifact here"):
        load_side([tmp_path], "--baseline")
    with pytest.raises(UsageError, match="--baseline is missing"):
        load_side([], "--baseline")


def test_two_scenarios_are_refused(tmp_path: Path):
    from dataclasses import replace

    old, new = (tiny_artifact(tmp_path / side) for side in ("old", "new"))
    other = new.manifest.model_copy(
        update={"statistics": new.manifest.statistics.model_copy(update={"seq_len": 16})}
    )
    with pytest.raises(InputError, match="sequence length is 8 in the baseline and 16"):
        pair([old], [replace(new, manifest=other)])


def test_the_canary_is_the_same_wherever_it_is_made(tmp_path: Path):
    import numpy as np
    import onnxruntime

    one, two = (make_canary(tmp_path / side, 8) for side in "ab")
    assert one.digest == two.digest
    session = onnxruntime.InferenceSession(str(one.model_path))
    short = session.run(None, {"input_ids": np.ones((1, 4), dtype=np.int64)})[0]
    long = session.run(None, {"input_ids": np.ones((1, 128), dtype=np.int64)})[0]
    assert np.array_equal(short, long)  # its work does not depend on the length
    assert np.all(np.isfinite(short))
