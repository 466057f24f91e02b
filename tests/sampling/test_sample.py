"""Sampling a tiny adapter: real exports; the device's answer is played."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest

from edgebench.device import load
from edgebench.errors import CheckpointError, LinkError, UsageError
from edgebench.sampling.request import COLUMNS, SampleRequest
from edgebench.sampling.sample import design, sample
from edgebench.sampling.subject import Subject, read_subject
from edgebench.workspace import Workspace, builtin_root
from tests.export.tiny import write_adapter, write_bert

ANSWER = {
    "latency": {
        "recording_id": "01J",
        "device": "bench",
        "emulated": False,
        "verdict": "VALID",
        "reasons": "",
        "latency_p50_ms": 2.0,
        "latency_p50_ms_lo": 1.9,
        "latency_p50_ms_hi": 2.1,
    },
    "energy": {"energy_per_inference_j": None, "reason": "no power source on this device"},
    "power": {"power_peak_w": None},
}


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory) -> tuple[Path, Path]:
    directory = tmp_path_factory.mktemp("tiny")
    base = write_bert(directory / "base")
    return base, write_adapter(base, directory / "adapter")


def subject(checkpoint, out: Path, **options) -> tuple[SampleRequest, Subject]:
    base, adapter = checkpoint
    request = SampleRequest(
        base=str(base), adapter=adapter, n=2, quants=("fp32",), seq_len=(8, 24), **options
    )
    return request, read_subject(
        request,
        load("local", Workspace.find()),
        exporter_dirs=(builtin_root() / "exporters",),
        artifacts=base.parent / "artifacts",  # a configuration is exported once for all tests
        calibration=out / "calibration",
    )


def quiet(_step, _done):
    return None


def test_a_sampling_that_was_cut_off_goes_on_and_writes_what_was_measured(checkpoint, tmp_path):
    request, found = subject(checkpoint, tmp_path)
    seen = []

    def cut_off(artifact):
        if seen:
            raise LinkError("the device is gone")
        seen.append(artifact.digest)
        return ANSWER

    with pytest.raises(LinkError):
        sample(request, found, cut_off, quiet)
    assert not found.out.exists()
    with pytest.raises(UsageError, match="other options"):
        sample(replace(request, launches=9), found, cut_off, quiet)

    def answer(artifact):
        seen.append(artifact.digest)
        return ANSWER

    path = sample(request, found, answer, quiet)
    assert len(seen) == 2  # the first was not measured again
    document = json.loads(path.read_text())
    assert document["schema"] == "edgebench.calibration/1"
    wanted = design(request, found)
    for entry, configuration in zip(document["samples"], wanted, strict=True):
        s = entry["statistics"]
        assert s["seq_len"] == configuration.seq_len
        assert s["kept_layers"] == configuration.kept_layers
        assert s["kept_heads"] == configuration.kept_heads
        assert s["kept_ranks"] == configuration.kept_ranks
        assert entry["energy_j"] is None
        assert entry["reason"] == "no power source on this device"
        assert entry["recording_id"] == "01J"
    table = pd.read_csv(path.with_suffix(".csv"))
    assert tuple(table.columns) == COLUMNS
    assert set(table["device"]) == {"local"}
    assert table["latency_ms"].tolist() == [2.0, 2.0]
    assert table["energy_j"].isna().all()
    assert not list(path.parent.glob(".*"))
    with pytest.raises(UsageError, match="done already"):
        sample(request, found, answer, quiet)


def test_an_invalid_sample_is_measured_again_once_after_all_others(checkpoint, tmp_path):
    request, found = subject(checkpoint, tmp_path)
    seen = []

    def disturbed(artifact):
        """The first artifact is INVALID whenever it is measured."""
        seen.append(artifact.digest)
        verdict = "INVALID" if artifact.digest == seen[0] else "VALID"
        return ANSWER | {
            "latency": ANSWER["latency"] | {"verdict": verdict, "recording_id": f"R{len(seen)}"}
        }

    document = json.loads(sample(request, found, disturbed, quiet).read_text())
    assert seen == [seen[0], seen[1], seen[0]]
    by_place = {entry["order"]: entry for entry in document["samples"]}
    assert by_place[0]["recording_id"] == "R3"
    assert by_place[0]["invalid_recording_ids"] == ["R1"]
    assert by_place[1]["recording_id"] == "R2"
    assert by_place[1]["invalid_recording_ids"] == []


def test_an_emulated_device_is_not_measured_again(checkpoint, tmp_path):
    request, found = subject(checkpoint, tmp_path)
    seen = []

    def emulated(artifact):
        seen.append(artifact.digest)
        return ANSWER | {"latency": ANSWER["latency"] | {"verdict": "INVALID", "emulated": True}}

    sample(request, found, emulated, quiet)
    assert len(seen) == 2


def test_weights_that_do_not_fit_the_device_are_not_drawn(checkpoint, tmp_path):
    request, found = subject(checkpoint, tmp_path)
    with pytest.raises(UsageError, match="fit the device's memory"):
        design(request, replace(found, memory_bytes=1000.0))


def test_an_adapter_that_is_no_plain_lora_is_refused(checkpoint, tmp_path):
    import peft

    base, _ = checkpoint
    config = peft.LoraConfig(
        task_type="SEQ_CLS", r=2, target_modules=["query"], use_dora=True, init_lora_weights=True
    )
    adapter = write_adapter(base, tmp_path / "dora", config)
    with pytest.raises(CheckpointError, match="DoRA"):
        subject((base, adapter), tmp_path)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n": 0}, "--n must be at least 1"),
        ({"again": -1}, "--again must be at least 0"),
        ({"quants": ("fp12",)}, "fp12"),
        ({"seq_len": (9, 8)}, "from 9 to 8"),
        ({"base": None}, "neither a base nor an adapter"),
    ],
)
def test_a_request_that_can_not_be_is_refused(options, said):
    with pytest.raises(UsageError, match=said):
        SampleRequest(**({"base": "b"} | options)).check()
