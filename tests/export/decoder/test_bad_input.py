"""Decoders that can't be exported: one sentence each, and nothing left behind."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebench.errors import CheckpointError, EdgebenchError, ExportError, UsageError
from edgebench.export import ExportRequest, export
from tests.export.decoder import tiny


def refused(kind: type[EdgebenchError], out: Path, base: Path, **changes: Any) -> EdgebenchError:
    with pytest.raises(kind) as caught:
        export(ExportRequest(out=out, base=str(base), **{"seq_len": 16, **changes}))
    assert not [p for p in out.glob("*") if p.name != ".exports"] if out.exists() else True
    return caught.value


@pytest.fixture
def copy(llama: Path, tmp_path: Path) -> Callable[..., Path]:
    def changed(**members: Any) -> Path:
        shutil.copytree(llama, tmp_path / "base")
        file = tmp_path / "base" / "config.json"
        file.write_text(json.dumps(json.loads(file.read_text()) | members))
        return tmp_path / "base"

    return changed


@pytest.mark.parametrize(
    ("members", "kind", "says"),
    [
        ({"model_type": "gpt_bigcode"}, ExportError, "'gpt_bigcode' can't be exported yet"),
        ({"hidden_act": "gelu"}, ExportError, "activation is 'gelu'"),
        ({"rope_parameters": {"rope_type": "yarn"}}, ExportError, "of the type 'yarn'"),
        ({"quantization_config": {"bits": 4}}, ExportError, "quantised already"),
        ({"num_key_value_heads": 3}, CheckpointError, "no multiple of 3"),
        ({"head_dim": 8}, CheckpointError, "multiples of 16"),
        ({"intermediate_size": 100}, CheckpointError, "config.json says 100 x 64"),
        ({"num_hidden_layers": 3}, CheckpointError, "model.layers.2"),
        ({"vocab_size": None}, CheckpointError, "does not say vocab_size"),
    ],
)
def test_a_configuration_that_is_not_computed(
    copy: Callable[..., Path], tmp_path: Path, members: Any, kind: Any, says: str
) -> None:
    assert says in str(refused(kind, tmp_path / "out", copy(**members)))


def test_a_missing_shard(copy: Callable[..., Path], tmp_path: Path) -> None:
    base = copy()
    shard = sorted(base.glob("model-*.safetensors"))[1]
    shard.unlink()
    assert shard.name in str(refused(CheckpointError, tmp_path / "out", base))


def test_weights_that_are_not_finite(copy: Callable[..., Path], tmp_path: Path) -> None:
    from safetensors.numpy import load_file, save_file

    base = copy()
    file = next(f for f in base.glob("*.safetensors") if "up_proj" in str(load_file(f).keys()))
    tensors = load_file(file)
    name = next(n for n in tensors if "up_proj" in n)
    tensors[name][3, 5] = np.inf
    save_file(tensors, file, metadata={"format": "pt"})
    error = refused(CheckpointError, tmp_path / "out", base, quants=("int3",))
    assert "NaN or infinity" in str(error)


def test_another_vocabulary(copy: Callable[..., Path], tmp_path: Path, decoders: Path) -> None:
    small = tiny.write_llama(decoders / "few-words", vocab_size=20)
    assert "the base's vocabulary has 20" in str(refused(CheckpointError, tmp_path / "out", small))


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"seq_len": 300}, "more than the base's 256 positions"),
        ({"quants": ("int8-static",)}, "ranges of a decoder's activations by text"),
        ({"format": "torch"}, "to ONNX alone"),
        ({"via": "optimum"}, "one road"),
    ],
)
def test_options_that_decoders_do_not_have(
    llama: Path, tmp_path: Path, changes: Any, says: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    # With optimum's exporter or without: the road is refused for what the model is.
    monkeypatch.setattr("edgebench.export.optimum_road.require", lambda: None)
    assert says in str(refused(UsageError, tmp_path / "out", llama, **changes))


def test_an_adapter_for_another_base(decoders: Path, adapter: Path, tmp_path: Path) -> None:
    wide = tiny.write_llama(decoders / "wide", hidden_size=96, head_dim=16)
    error = refused(CheckpointError, tmp_path / "out", wide, adapter=adapter)
    assert "hidden size 64, the base has 96" in str(error)


def test_a_tied_head_that_was_adapted_alone(decoders: Path, tmp_path: Path) -> None:
    tied = tiny.write_llama(decoders / "tied-head", tie_word_embeddings=True)
    other = tiny.write_adapter(tied, tmp_path / "adapter", target_modules=["lm_head"])
    error = refused(CheckpointError, tmp_path / "out", tied, adapter=other)
    assert "lm_head" in str(error)


@pytest.mark.parametrize(
    ("changes", "says"),
    [({"use_dora": True}, "DoRA"), ({"bias": "all"}, "trains biases")],
)
def test_an_adapter_that_is_more_than_lora(
    decoders: Path, llama: Path, adapter: Path, tmp_path: Path, changes: Any, says: str
) -> None:
    other = tmp_path / "adapter"
    shutil.copytree(adapter, other)
    config = json.loads((other / "adapter_config.json").read_text())
    (other / "adapter_config.json").write_text(json.dumps(config | changes))
    assert says in str(refused(CheckpointError, tmp_path / "out", llama, adapter=other))
