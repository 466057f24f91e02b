"""One base and adapters that are changed between two calls: export, files, refusals."""

from __future__ import annotations

import contextlib
import json
import shutil

import numpy as np
import onnxruntime
import peft
import pytest

from edgebench.artifact import NO_ADAPTER
from edgebench.cli.main import main
from edgebench.errors import ArtifactError, CheckpointError, UsageError
from edgebench.export import ExportRequest, export
from edgebench.export.swappable import read_file, write_file
from edgebench.quantize import SCHEMES
from tests.export import tiny

pytestmark = pytest.mark.filterwarnings("ignore")

TOKENS = 24


def outputs(artifact, adapter=None):
    """The graph's answers to its timing inputs, an adapter made active."""
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    asked = artifact.manifest.quantization.details.get("session_options", {})
    for key, value in asked.items():
        options.add_session_config_entry(key, value)
    session = onnxruntime.InferenceSession(str(artifact.model_path), options)
    active = None
    if adapter is not None:
        entry = artifact.swap_adapter(adapter)
        loaded = onnxruntime.LoraAdapter()
        loaded.Load(str(artifact.path / entry.file))
        active = onnxruntime.RunOptions()
        active.add_active_adapter(loaded)
    with np.load(artifact.path / "inputs.npz") as rows:
        return session.run(None, dict(rows), active)[0]


def test_every_adapter_and_the_base_alone_agree_with_pytorch(swappable):
    manifest = swappable["fp32"].manifest
    assert manifest.parity.max_abs_error <= 1e-4
    assert "base alone under the first adapter's head" in manifest.parity.reference
    assert [a.name for a in manifest.adapters] == ["short-adapter", "second", "ada"]
    for adapter in manifest.adapters:
        assert adapter.parity.max_abs_error <= 1e-4
        assert adapter.parity.n == manifest.parity.n
    assert manifest.adapter.name == "short-adapter"


def test_an_active_adapter_answers_as_the_merged_one(swappable, merged, export_short, models):
    ours = swappable["fp32"]
    np.testing.assert_allclose(
        outputs(ours, "short-adapter"), outputs_like(merged, ours), atol=1e-4
    )
    alone = export_short(models / "base-alone", lowering="base")
    assert (alone.manifest.lowering, alone.manifest.adapter) == ("base", None)
    np.testing.assert_allclose(outputs(ours), outputs_like(alone, ours), atol=1e-4)


def outputs_like(artifact, other):
    """What an artifact answers to another's inputs."""
    session = onnxruntime.InferenceSession(str(artifact.model_path))
    with np.load(other.path / "inputs.npz") as rows:
        return session.run(None, dict(rows))[0]


@pytest.mark.parametrize("scheme", SCHEMES)
def test_at_every_precision_an_adapter_changes_the_answers_and_stays_in_fp32(swappable, scheme):
    artifact = swappable[scheme]
    alone, active = outputs(artifact), outputs(artifact, "second")
    assert np.abs(active - alone).max() > 0.1
    parity = artifact.swap_adapter("second").parity
    # A random model of 32 dimensions loses much in few bits; the adapter must still be in it.
    assert parity.cosine_mean > (0.6 if scheme in ("int4", "int3") else 0.9)
    assert (parity.tolerance is None) == (scheme != "fp32")
    session = onnxruntime.InferenceSession(str(artifact.model_path), quiet())
    given = {value.name: value for value in session.get_overridable_initializers()}
    assert set(given) >= {"classifier.weight", "classifier.bias"}
    assert len(given) == 2 + 2 * 4  # query, key, value, intermediate.dense
    assert {value.type for value in given.values()} == {"tensor(float)"}


def quiet():
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    return options


def test_ranks_and_cost_are_each_adapters_own(swappable):
    manifest = swappable["fp32"].manifest
    assert manifest.statistics.kept_ranks == 0
    assert [a.rank for a in manifest.adapters] == [4, 2, 4]
    assert [a.ranks for a in manifest.adapters] == [8, 4, 8]
    h, wide = tiny.HIDDEN, 2 * tiny.HIDDEN
    flops = TOKENS * (2 * 2 * (h + h) + h) + TOKENS * (2 * 2 * (h + wide) + wide)
    assert manifest.adapters[1].extra_flops == flops


def test_the_same_parameters_give_the_same_file(tmp_path):
    parameters = {"b": np.ones((2, 3), np.float32), "a": np.zeros((4, 0), np.float32)}
    for name, order in (("one", ("a", "b")), ("two", ("b", "a"))):
        write_file(tmp_path / "adapters" / name, {key: parameters[key] for key in order})
    one, two = (tmp_path / "adapters" / name for name in ("one", "two"))
    assert one.read_bytes() == two.read_bytes()
    back = read_file(one)
    assert {key: array.shape for key, array in back.items()} == {"a": (4, 0), "b": (2, 3)}
    np.testing.assert_array_equal(back["b"], parameters["b"])


def test_a_name_chooses_the_adapter(swappable):
    artifact = swappable["fp32"]
    assert artifact.swap_adapter(None).name == "short-adapter"
    assert artifact.swap_adapter("ada").name == "ada"
    assert artifact.swap_adapter(NO_ADAPTER) is None
    with pytest.raises(
        ArtifactError, match=r"no adapter 'adda'.*It has short-adapter, second, ada"
    ):
        artifact.swap_adapter("adda")


def test_an_adapter_file_that_was_changed_is_refused(swappable, tmp_path):
    copy = tmp_path / "copy"
    shutil.copytree(swappable["fp32"].path, copy)
    file = next((copy / "adapters").iterdir())
    file.write_bytes(file.read_bytes()[:-1] + b"\1")
    with pytest.raises(ArtifactError, match="changed after export"):
        type(swappable["fp32"]).load(copy)


def refused(error, short_base, tmp_path, *adapters, **options):
    with pytest.raises(error) as caught:
        export(
            ExportRequest(
                adapter=adapters[0],
                more_adapters=tuple(adapters[1:]),
                base=str(short_base),
                out=tmp_path / "out",
                **{"lowering": "swappable", "seq_len": TOKENS, **options},
            )
        )
    assert not (tmp_path / "out").exists() or not list((tmp_path / "out").glob("[!.]*"))
    return str(caught.value)


def test_adapters_that_can_not_share_a_graph(short_base, short_adapter, models, tmp_path):
    other = tiny.write_adapter(short_base, tmp_path / "tokens", task="TOKEN_CLS")
    message = refused(CheckpointError, short_base, tmp_path, short_adapter, other)
    assert "can't share a graph" in message
    assert "token-classification" in message
    twin = tmp_path / "twin" / short_adapter.name
    shutil.copytree(short_adapter, twin)
    message = refused(UsageError, short_base, tmp_path, short_adapter, twin)
    assert "two adapters are called 'short-adapter'" in message
    message = refused(UsageError, short_base, tmp_path, short_adapter, other, lowering="merged")
    assert "2 adapters for one base that is merged" in message


def test_heads_of_different_shapes(short_base, short_adapter, models, tmp_path):
    other = tmp_path / "two-labels"
    shutil.copytree(short_adapter, other)
    from safetensors.torch import load_file, save_file

    tensors = load_file(other / "adapter_model.safetensors")
    changed = {n: t[:2].contiguous() if "classifier" in n else t for n, t in tensors.items()}
    save_file(changed, other / "adapter_model.safetensors")
    (other / "labels.json").write_text(json.dumps({"labels": ["no", "yes"]}))
    message = refused(CheckpointError, short_base, tmp_path, short_adapter, other)
    assert "two-labels (2 labels of its own) can't share a graph" in message


def test_an_update_that_is_no_low_rank_product(short_base, tmp_path):
    config = peft.LoraConfig(
        task_type="SEQ_CLS",
        r=4,
        use_dora=True,
        target_modules=["query"],
        init_lora_weights=False,
    )
    dora = tiny.write_adapter(short_base, tmp_path / "dora", config)
    message = refused(CheckpointError, short_base, tmp_path, dora)
    assert "can't be swapped" in message
    assert "DoRA" in message


def test_what_only_onnx_runtime_can_do(short_base, short_adapter, tmp_path):
    message = refused(UsageError, short_base, tmp_path, short_adapter, format="torch")
    assert "swappable adapters are ONNX Runtime's" in message


def test_the_command_line_lists_each_adapter(
    swappable, short_base, short_adapter, second, ada, capsys
):
    """The fixture's own request, so that it is answered from the cache."""
    adapters = [str(path) for path in (short_adapter, second, ada)]
    options = {
        "--base": str(short_base),
        "--lowering": "swappable",
        "--seq-len": str(TOKENS),
        "--mixed-bits": "8",
        "--out": str(swappable["fp32"].path.parent),
    }
    with contextlib.suppress(SystemExit):
        main(["export", *adapters, *(word for pair in options.items() for word in pair)])
    said = capsys.readouterr().out
    assert swappable["fp32"].path.name in said
    assert "adapters/second.onnx_adapter" in said
