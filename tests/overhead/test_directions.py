"""``edgebench directions``: variants of an adapter, their costs, and the file for a training."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgebench.adapters.energy_bound import read_direction_costs
from edgebench.errors import CheckpointError, InputError
from edgebench.measure import meters
from edgebench.overhead import direction_variants
from tests.fixtures_export import require
from tests.measure.bench import Bench
from tests.measure.power_world import PowerWorld

require("torch", "transformers", "peft", "onnxscript")

pytestmark = pytest.mark.filterwarnings("ignore")

DIRECTIONS = 8


@pytest.fixture(scope="module")
def hest(tmp_path_factory) -> tuple[Path, Path]:
    """A base of one layer and an untrained HEST adapter with two int8 and three fp16 directions."""
    import torch

    from edgebench.adapters import spectral, spectral_files
    from tests.adapters.gated_models import LABELS, model
    from tests.export.tiny import write_tokenizer

    directory = tmp_path_factory.mktemp("hest")
    base, adapter = directory / "base", directory / "hest"
    module = model("bert", num_hidden_layers=1)
    module.save_pretrained(base)
    write_tokenizer(base, ["input_ids", "attention_mask", "token_type_ids"])
    parts = spectral.put_directions(
        module, "output.dense", directions=DIRECTIONS, width=32, states=True
    )
    with torch.no_grad():
        for part in parts.values():
            part.u.normal_()
            part.state_logits[:2, spectral.INT8] = 1
            part.state_logits[2:5, spectral.FP16] = 1
    spectral_files.save(
        module,
        parts,
        adapter,
        kind="HEST",
        module="output.dense",
        base_name=str(base),
        task_type="SEQ_CLS",
        labels=[str(i) for i in range(LABELS)],
    )
    return base, adapter


@pytest.fixture(scope="module")
def shared(tmp_path_factory) -> Iterator[Bench]:
    bench = Bench(tmp_path_factory.mktemp("bench"))
    yield bench
    bench.close()


def asked(hest: tuple[Path, Path], *more: str) -> list[str]:
    base, adapter = hest
    words = ["directions", str(adapter), "--base", str(base), "--device", "bench", "--points", "5"]
    words += ["--seq-len", "12", "--launches", "1", "--precision", "90%", "--max-duration", "1"]
    return [*words, *more]


def test_without_a_meter_the_bound_is_unknown_and_the_latency_is_fitted(shared, hest):
    shared.profile()
    done = shared.call(*asked(hest))
    assert done.returncode == 2, done.stderr
    assert "no E_max: energy is not known (no power source on this device)" in done.stdout
    file = shared.path / "results" / "tables" / "direction-costs.json"
    document = json.loads(file.read_text())
    assert document["energy"] is None
    assert document["e_max_j"] is None
    assert (document["n_int8"], document["n_fp16"]) == (2, 3)
    counts = [(point["n_int8"], point["n_fp16"]) for point in document["points"]]
    assert counts == [(0, 0), (8, 0), (0, 8), (4, 4), (4, 0)]
    assert len({point["artifact_digest"] for point in document["points"]}) == 5
    for point in document["points"]:
        manifest = artifact_of(shared, point["artifact_digest"])
        made = manifest["adapter"]["directions"]
        assert (made["int8"], made["fp16"]) == (point["n_int8"], point["n_fp16"])
        assert manifest["statistics"]["kept_ranks"] == made["int8"] + made["fp16"]
    if document["latency"] is None:  # disturbed by whatever else runs here: and that is said
        assert document["latency_reason"]
    else:
        assert document["latency"]["cost"]["base"] > 0
    with pytest.raises(InputError, match="no bound in joules: no power source"):
        read_direction_costs(file)


def test_with_a_meter_the_bound_is_in_the_file_that_a_training_reads(shared, hest, monkeypatch):
    monkeypatch.setattr(meters, "SETTLE_S", 0.1)
    world = PowerWorld(shared.path / "sys", shared.root)
    try:
        shared.profile(
            f'[[meters]]\nkind = "hwmon"\nscope = "board"\nchip = "ina226"\n'
            f'sysfs = "{world.sysfs}"\nshunt_tolerance_percent = 1\n'
        )
        more = ("--energy-window", "0.5", "--energy-precision", "50%", "--int8", "3", "--fp16", "1")
        done = shared.call(*asked(hest, *more, "--json"))
    finally:
        world.close()
    document = json.loads(done.stdout)
    if document["energy"] is None:  # INVALID for what else runs on this machine
        assert done.returncode == 2
        assert "INVALID" in document["energy_reason"], document["energy_reason"]
        return
    assert done.returncode == 0, done.stderr
    costs = read_direction_costs(shared.path / "results" / "tables" / "direction-costs.json")
    # The played sensor says 8 W while a worker computes: joules are 8 W times a call.
    (nothing, *_) = document["points"]
    assert nothing["energy_j"]["value"] > 0
    assert costs.cost_j[0] == pytest.approx(nothing["energy_j"]["value"], rel=0.5)
    assert document["e_max_j"] == pytest.approx(costs.bound_j(3, 1))
    assert costs.bound_j(3, 1) > costs.predict(3, 1)


def artifact_of(bench: Bench, digest: str) -> dict:
    for file in (bench.path / "results" / "artifacts").glob("*/artifact.json"):
        document = json.loads(file.read_text())
        if document["digest"] == digest:
            return document
    raise AssertionError(digest)


def test_impossible_requests_are_named(shared, hest, tmp_path):
    from tests.export import tiny

    shared.profile()
    for more, said in (
        (("--int8", "9", "--fp16", "0"), "no 9 int8 and 0 fp16 directions"),
        (("--int8", "1"), "one number of directions is not enough"),
        (("--points", "4"), "4 artifacts can't be made"),
    ):
        done = shared.call(*asked(hest, *more))
        assert done.returncode == 2
        assert said in done.stderr
    lora = tiny.write_adapter(tiny.write_bert(tmp_path / "base", layers=1), tmp_path / "lora")
    done = shared.call("directions", str(lora), "--device", "bench")
    assert done.returncode == 3
    assert "directions have no states" in done.stderr


@pytest.mark.parametrize("points", [5, 8, 12])
def test_designs_tell_the_costs_apart(points):
    import numpy as np

    counts = direction_variants.design(96, points)
    assert len(set(counts)) == points
    assert all(min(pair) >= 0 and sum(pair) <= 96 for pair in counts)
    assert np.linalg.matrix_rank([[1, *pair] for pair in counts]) == 3
    with pytest.raises(CheckpointError, match="too few"):
        direction_variants.design(1, points)


@pytest.mark.parametrize(
    ("text", "said"),
    [("{}", "no direction costs"), ("[", "no direction costs"), (None, "no direction costs here")],
)
def test_a_file_that_holds_no_costs_is_named(tmp_path, text, said):
    file = tmp_path / "direction-costs.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(InputError, match=said):
        read_direction_costs(file)
