"""Bad input: one sentence, a documented exit code, a JSON document, and nothing half-written."""

from __future__ import annotations

import json
import os
import subprocess
import tempfile
from pathlib import Path

import pytest
from onnx import TensorProto

from edgebench.artifact import FileEntry, Manifest, sha256_file, write_manifest
from edgebench.errors import StorageError
from edgebench.measure import run as measure
from edgebench.measure.run import check_writable
from tests.measure.bench import QUICK, Bench
from tests.tiny import edit_manifest, tiny_model

root_only = pytest.mark.skipif(os.getuid() != 0, reason="mounting needs root")


def refused(bench: Bench, code: int, kind: str, *arguments) -> dict:
    """Run a command that fails: its error document, after checking how it is said."""
    done = bench.call(*arguments, "--json")
    assert done.returncode == code, done.stderr
    error = json.loads(done.stdout)["error"]
    assert error["kind"] == kind
    assert error["exit_code"] == code
    said = [line for line in done.stderr.splitlines() if not line.startswith("  ")]
    assert len(said) == 1, done.stderr
    assert said[0].startswith("error: " + error["what"])
    assert said[0].endswith((".", "?"))
    assert "Traceback" not in done.stderr
    return error


def reseal(artifact) -> None:
    """Make the manifest fit files that a test has changed."""
    document = artifact.manifest.model_dump(mode="json", by_alias=True)
    document["files"] = {
        name: FileEntry(
            sha256=sha256_file(artifact.path / name), bytes=(artifact.path / name).stat().st_size
        ).model_dump()
        for name in document["files"]
    }
    write_manifest(artifact.path, Manifest.model_validate({**document, "digest": ""}))


def test_an_unknown_device_is_answered_with_the_nearest_name(bench: Bench):
    error = refused(bench, 3, "ProfileError", "run", "--device", "benhc", bench.artifact())
    assert "benhc" in error["what"]
    assert '"bench"' in error["fix"] or "'bench'" in error["fix"] or " bench" in error["fix"]


def test_a_broken_profile_is_named(bench: Bench):
    bench.profile("nmae = 'x'", name="typo")
    error = refused(bench, 3, "ProfileError", "doctor", "--device", "typo")
    assert "nmae" in error["what"]
    assert "typo.toml" in error["where"]
    assert "name" in error["fix"]


def test_a_device_that_is_not_the_one_of_its_profile(bench: Bench):
    bench.profile('expects = { model = "Raspberry Pi 4*" }', name="pi")
    error = refused(bench, 4, "DeviceError", "run", "--device", "pi", bench.artifact())
    assert "Raspberry Pi 4*" in error["what"]
    assert bench.store.list() == ()


def test_a_profile_that_can_not_be_run_says_why(bench: Bench):
    error = refused(bench, 3, "ProfileError", "run", "--device", "iphone15", bench.artifact())
    assert "can't be measured" in error["what"]


def test_an_unknown_quantisation_is_refused_before_anything_is_loaded(bench: Bench):
    pytest.importorskip("torch")
    missing = bench.path / "adapter"
    missing.mkdir()
    error = refused(bench, 2, "UsageError", "export", missing, "--base", "x", "--quant", "int5")
    assert "int5" in error["what"]
    assert "int8" in error["what"] + error["fix"]


def test_nothing_to_measure(bench: Bench):
    error = refused(bench, 3, "ArtifactError", "run", "--device", "bench")
    assert "edgebench export" in error["fix"]


def test_a_directory_that_is_no_artifact(bench: Bench):
    error = refused(bench, 3, "ArtifactError", "run", "--device", "bench", bench.path)
    assert "artifact.json" in error["what"]


def test_an_artifact_whose_manifest_was_edited(bench: Bench):
    artifact = bench.artifact()
    edit_manifest(artifact, name="another")
    error = refused(bench, 3, "ArtifactError", "run", "--device", "bench", artifact)
    assert "digest does not match" in error["what"]


def test_an_artifact_whose_weights_were_changed(bench: Bench):
    artifact = bench.artifact()
    data = bytearray(artifact.model_path.read_bytes())
    data[-1] ^= 1
    artifact.model_path.write_bytes(bytes(data))
    error = refused(bench, 3, "ArtifactError", "run", "--device", "bench", artifact)
    assert "digest of model.onnx" in error["what"]


@pytest.mark.parametrize("name", ["model.onnx", "inputs.npz", "artifact.json"])
def test_a_truncated_artifact(bench: Bench, name):
    artifact = bench.artifact()
    os.truncate(artifact.path / name, (artifact.path / name).stat().st_size // 2)
    refused(bench, 3, "ArtifactError", "run", "--device", "bench", artifact)
    assert bench.store.list() == ()


def test_a_truncated_model_that_was_sealed_again(bench: Bench):
    artifact = bench.artifact()
    os.truncate(artifact.model_path, artifact.model_path.stat().st_size // 2)
    reseal(artifact)
    error = refused(bench, 3, "ArtifactError", "run", "--device", "bench", artifact)
    assert "ONNX" in error["what"]


@pytest.mark.parametrize("location", ["../outside.bin", "/etc/passwd", "link.bin"])
def test_external_data_outside_the_artifact(bench: Bench, location):
    artifact = bench.artifact()
    (bench.path / "artifacts" / "outside.bin").write_bytes(bytes(64))
    (artifact.path / "link.bin").symlink_to(bench.path / "artifacts" / "outside.bin")
    model = tiny_model()
    tensor = model.graph.initializer[0]
    tensor.ClearField("raw_data")
    tensor.data_location = TensorProto.EXTERNAL
    tensor.external_data.add(key="location", value=location)
    artifact.model_path.write_bytes(model.SerializeToString())
    reseal(artifact)
    error = refused(bench, 3, "ArtifactError", "run", "--device", "bench", artifact)
    assert "external data" in error["what"]
    assert location in error["what"]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--scenario", "multi-stream"], "multi-stream"),
        (["--precision", "2 percent"], "--precision"),
        (["--launches", "0"], "--launches"),
        (["--percentile", "100"], "--percentile"),
        (["--accuracy", "most"], "--accuracy"),
        (["--batch", "4"], "single-stream"),
        (["--device", "bench"], "twice"),
    ],
)
def test_an_option_that_can_not_be(bench: Bench, arguments, words):
    artifact = bench.artifact()
    error = refused(bench, 2, "UsageError", "run", "--device", "bench", artifact, *arguments)
    assert words in error["what"]


def test_an_unknown_option_is_a_usage_error_for_machines_too(bench: Bench):
    done = bench.call("run", "--fly", "--json")
    assert done.returncode == 2
    assert json.loads(done.stdout)["error"]["kind"] == "UsageError"
    assert "No such option: --fly" in done.stderr


def test_a_length_that_the_artifact_was_not_exported_for(bench: Bench):
    artifact = bench.artifact()
    error = refused(
        bench, 3, "InputError", "run", "--device", "bench", artifact, "--seq-len", "512"
    )
    assert "512" in error["what"]


def test_more_threads_than_the_device_has(bench: Bench):
    error = refused(
        bench, 4, "DeviceError", "run", "--device", "bench", bench.artifact(), "--threads", "4096"
    )
    assert "4096" in error["what"]


# -- this host's storage


@root_only
def test_a_results_directory_on_a_read_only_disk(bench: Bench):
    results = bench.path / "fixed"
    results.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "ro", "x", results], check=True)
    try:
        for deep in (results, results / "deeper"):
            error = refused(
                *(bench, 5, "StorageError", "run", "--device", "bench", bench.artifact(deep.name)),
                *("--results", deep),
            )
            assert str(results) in error["where"]
        assert bench.spools() == []
    finally:
        subprocess.run(["umount", results], check=True)


@root_only
def test_a_results_directory_of_somebody_else():
    """Root may write anywhere, so a child becomes nobody."""
    with tempfile.TemporaryDirectory(dir="/tmp") as results:
        os.chmod(results, 0o755)
        child = os.fork()
        if child == 0:
            code = 99
            try:
                os.setgroups([])
                os.setgid(65534)
                os.setuid(65534)
                check_writable(Path(results))
                code = 0
            except StorageError as error:
                code = error.exit_code if "can't be written" in error.what else 98
            finally:
                os._exit(code)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 5


@root_only
def test_a_full_disk_under_the_results(bench: Bench):
    results = bench.path / "full"
    results.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16k", "x", results], check=True)
    try:
        error = refused(
            *(bench, 5, "StorageError", "run", "--device", "bench", bench.artifact()),
            *("--results", results, "--launches", "1", "--percentile", "50"),
            *("--accuracy", "none"),
        )
        assert str(results) in error["where"]
        assert not [p for p in (results / "runs").iterdir() if not p.name.startswith(".tmp")]
        # The measurement is not lost: it can be stored elsewhere.
        done = bench.call("resume", "--device", "bench", "--all", "--json")
        assert done.returncode == 0, done.stderr
        assert len(json.loads(done.stdout)["latency"]) == 1
    finally:
        subprocess.run(["umount", "-l", results], check=True)


# -- recordings


def test_a_broken_recording_is_named_and_the_tables_stay(bench: Bench):
    recording = measure(bench.device(), [bench.artifact()], bench.store, QUICK)
    assert bench.call("table").returncode == 0
    directory = bench.path / "results" / "tables"
    tables = {p.name: p.read_bytes() for p in directory.iterdir()}
    for name in ("recording.json", "samples.parquet", "state.jsonl"):
        file = bench.store.root / recording.id / name
        whole = file.read_bytes()
        os.truncate(file, len(whole) // 2)
        error = refused(bench, 3, "RecordingError", "table")
        assert recording.id in error["where"] + error["what"]
        assert {p.name: p.read_bytes() for p in directory.iterdir()} == tables
        file.write_bytes(whole)
    assert bench.call("table").returncode == 0


def test_a_recording_that_is_not_there(bench: Bench):
    error = refused(bench, 3, "RecordingError", "table", "01ZZZ")
    assert "01ZZZ" in error["what"]


# -- how it is said


def test_an_error_is_said_once_for_people(bench: Bench):
    done = bench.run("run", "--device", "nope")
    assert (done.returncode, done.stdout) == (3, "")
    assert done.stderr.count("error: ") == 1


@pytest.mark.parametrize("place", [0, 3])
def test_debug_shows_a_traceback_wherever_it_stands_and_keeps_the_code(bench: Bench, place):
    arguments = ["run", "--device", "nope"]
    arguments.insert(place, "--debug")
    done = bench.run(*arguments)
    assert done.returncode == 3
    assert "Traceback (most recent call last)" in done.stderr
    assert "ProfileError" in done.stderr
    assert done.stderr.splitlines()[-1].startswith("error: ")
