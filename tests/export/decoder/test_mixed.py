"""The scheme mixed on decoders: budgets that are met, widths that follow what was measured."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
import pytest

from edgebench.artifact import Artifact
from edgebench.errors import InputError, UsageError
from edgebench.export import ExportRequest, export
from edgebench.export.decoder import plan
from edgebench.export.sample_text import TEXTS
from edgebench.quantize import bits
from tests.export.decoder import tiny


def one(out: Path, base: Path, **changes: Any) -> Artifact:
    settings = {"seq_len": 24, "quants": ("mixed",), **changes}
    (artifact,) = export(ExportRequest(out=out, base=str(base), **settings))
    return artifact


@pytest.fixture(scope="module")
def text(decoders: Path) -> Path:
    file = decoders / "calibration.txt"
    file.write_text("\n".join(TEXTS))
    return file


def qwen(directory: Path) -> Path:
    from transformers import Qwen2Config

    return tiny.write_llama(directory, config=Qwen2Config, tie_word_embeddings=True)


@pytest.mark.parametrize("calibrated", [False, True])
@pytest.mark.parametrize("budget", [3.7, 5.0, 7.5])
def test_a_budget_over_all_weights_is_met_and_used(
    decoders: Path, llama: Path, text: Path, budget: float, calibrated: bool
) -> None:
    chosen = text if calibrated else None
    manifest = one(decoders / "out", llama, mixed_bits=budget, calibration=chosen).manifest
    stored = manifest.quantization
    assert budget - 0.5 < stored.file_bits_per_weight <= budget
    assert stored.details["budget"] == budget
    # Seven matrices a layer, the table and the head.
    assert len(stored.details["widths"]) == 2 * 7 + 2
    assert stored.activation_bits == 8
    assert (stored.details["calibration_tokens"] > 0) == calibrated
    assert stored.details["chosen_on"].startswith(
        "calibration.txt" if calibrated else "edgebench's"
    )
    assert stored.details["fit"].startswith("error feedback" if calibrated else "plain")


def test_more_bits_lose_less(decoders: Path, llama: Path, text: Path) -> None:
    divergences = [
        one(decoders / "out", llama, mixed_bits=budget, calibration=text).manifest.parity.kl_mean
        for budget in (3.7, 5.0, 7.5)
    ]
    assert divergences == sorted(divergences, reverse=True)


def test_a_tied_table_and_biases_above_what_fits_in_memory(
    decoders: Path, text: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(plan, "WHOLE_BYTES", 0)
    base = qwen(decoders / "mixed-qwen")
    adapter = tiny.write_adapter(base, decoders / "mixed-adapter")
    artifact = one(
        decoders / "out",
        base,
        adapter=adapter,
        lowering="unmerged",
        calibration=text,
        mixed_bits=6.0,
    )
    manifest = artifact.manifest
    assert "a layer at a time" in manifest.parity.reference
    assert manifest.quantization.file_bits_per_weight <= 6.0
    assert len(manifest.quantization.details["widths"]) == 2 * 7 + 1
    counted = bits.count(onnx.load(artifact.model_path, load_external_data=False))
    assert counted.total_weights == manifest.quantization.total_weights
    assert manifest.statistics.kept_ranks == 5 * 4 + 2


@pytest.mark.parametrize(
    ("budget", "says"),
    [
        (2.0, "no choice of widths meets a budget of 2 bits"),
        (9.0, "more than eight bits everywhere take"),
    ],
)
def test_a_budget_that_no_widths_meet(
    llama: Path, tmp_path: Path, budget: float, says: str
) -> None:
    with pytest.raises(UsageError, match=says) as caught:
        one(tmp_path / "out", llama, mixed_bits=budget)
    assert "--mixed-bits" in str(caught.value)
    assert not (tmp_path / "out").exists()


def test_too_little_text(llama: Path, tmp_path: Path) -> None:
    text = tmp_path / "few.txt"
    text.write_text("a few words\n")
    for given in ({"calibration": text}, {"data": text}):
        with pytest.raises(InputError, match="at least 512 are needed"):
            one(tmp_path / "out", llama, **given)
