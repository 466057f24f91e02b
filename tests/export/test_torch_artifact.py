"""Artifacts that PyTorch runs: a checkpoint in one data type, checked like any other artifact."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnxruntime
import pytest

from edgebench.artifact import Artifact, FileEntry, sha256_file, write_manifest
from edgebench.device_spec import Placement, RuntimeSpec
from edgebench.errors import ArtifactError, ExportError, InputError, UsageError
from edgebench.export import ExportRequest, export
from edgebench.export.plan import make_plan
from edgebench.export.torch_artifact import run
from edgebench.measure.options import RunOptions, build_protocol
from edgebench.runtimes.torch_runtime import TorchRuntime
from tests.fixtures_export import ADAPTER, BASE, NEEDED, REPOSITORY, require

pytestmark = pytest.mark.filterwarnings("ignore")

PRECISIONS = ("fp32", "fp16", "bf16")
CPU = {"provider": "cpu", "threads": 1}


@pytest.fixture(scope="module")
def checkpoints(
    models: Path, short_base: Path, short_adapter: Path, tiny_data: Path
) -> dict[tuple[str, str], Artifact]:
    """(lowering, precision) -> artifact."""
    found = {}
    for lowering in ("merged", "unmerged"):
        request = ExportRequest(
            out=models / "torch",
            adapter=short_adapter,
            base=str(short_base),
            data=tiny_data,
            seq_len=24,
            lowering=lowering,
            quants=PRECISIONS if lowering == "merged" else ("fp32", "fp16"),
            format="torch",
        )
        for artifact in export(request):
            found[lowering, artifact.manifest.quantization.scheme] = artifact
    return found


def inputs(artifact: Artifact) -> dict[str, np.ndarray]:
    with np.load(artifact.path / "inputs.npz") as stored:
        return {name: stored[name][:8] for name in stored.files}


def outputs(artifact: Artifact) -> np.ndarray:
    return TorchRuntime(str(artifact.model_path), CPU).infer(inputs(artifact))


def test_it_is_a_checkpoint_without_a_pickle_and_names_its_format(checkpoints):
    manifest = checkpoints["merged", "fp32"].manifest
    assert manifest.format == "torch"
    assert manifest.model == "model.safetensors"
    assert set(manifest.files) == {
        "config.json",
        "model.safetensors",
        "inputs.npz",
        "evaluation.npz",
    }
    assert manifest.exporter.opset is None
    assert set(checkpoints["unmerged", "fp32"].manifest.files) - set(manifest.files) == {
        "adapter/adapter_config.json",
        "adapter/adapter_model.safetensors",
    }


def test_fp32_is_what_pytorch_computes(checkpoints):
    for lowering in ("merged", "unmerged"):
        parity = checkpoints[lowering, "fp32"].manifest.parity
        assert parity.max_abs_error < 1e-5
        assert parity.top1_agreement == 1
        assert parity.tolerance == 1e-4


def test_merged_unmerged_and_onnx_compute_the_same(checkpoints, merged):
    expected = onnxruntime.InferenceSession(str(merged.model_path)).run(None, inputs(merged))[0]
    for lowering in ("merged", "unmerged"):
        np.testing.assert_allclose(outputs(checkpoints[lowering, "fp32"]), expected, atol=1e-4)


def test_the_adapter_is_in_it(checkpoints, short_base, models):
    """What tells the artifact from the base alone."""
    artifact = checkpoints["unmerged", "fp32"]
    bare = models / "without-its-adapter"
    shutil.copytree(artifact.path, bare)
    shutil.rmtree(bare / "adapter")
    without = TorchRuntime(str(bare / "model.safetensors"), CPU).infer(inputs(artifact))
    assert np.abs(without - outputs(artifact)).max() > 0.01


@pytest.mark.parametrize(
    ("lowering", "scheme"), [("merged", "fp16"), ("merged", "bf16"), ("unmerged", "fp16")]
)
def test_fewer_bits_are_stored_and_their_error_recorded(checkpoints, lowering, scheme):
    full, half = checkpoints[lowering, "fp32"].manifest, checkpoints[lowering, scheme].manifest
    assert half.quantization.total_weights == full.quantization.total_weights
    assert half.statistics.param_bits * 2 == full.statistics.param_bits
    assert half.quantization.storage_bits == half.quantization.compute_bits == 16
    assert half.quantization.file_bits_per_weight == 16
    assert half.parity.tolerance is None
    assert 1e-5 < half.parity.max_abs_error < 1
    assert {output.dtype for output in half.signature.outputs} == {
        {"fp16": "float16", "bf16": "bfloat16"}[scheme]
    }
    runtime = TorchRuntime(str(checkpoints[lowering, scheme].model_path), CPU)
    assert {str(p.dtype) for p in runtime.module.parameters()} == {
        f"torch.{half.quantization.details['dtype']}"
    }


def test_its_statistics_are_those_of_the_graph(checkpoints, merged):
    for lowering, ranks in (("merged", 0), ("unmerged", 8)):
        here = checkpoints[lowering, "fp32"].manifest
        assert here.statistics.kept_ranks == ranks
        assert (
            here.statistics.seq_len,
            here.statistics.kept_layers,
            here.statistics.kept_heads,
        ) == (
            merged.manifest.statistics.seq_len,
            merged.manifest.statistics.kept_layers,
            merged.manifest.statistics.kept_heads,
        )
    assert checkpoints["unmerged", "fp32"].manifest.extra_flops > 0


def test_the_same_data_travel_with_both_formats(checkpoints, merged):
    files = checkpoints["merged", "fp32"].manifest.files
    for name in ("inputs.npz", "evaluation.npz"):
        assert files[name] == merged.manifest.files[name]


def test_the_same_export_gives_the_same_digest(checkpoints, tmp_path, export_short):
    again = export_short(tmp_path, format="torch", lowering="unmerged")
    assert again.digest == checkpoints["unmerged", "fp32"].digest


def test_formats_do_not_answer_for_each_other_from_the_index(short_base, short_adapter, tmp_path):
    plans = [
        make_plan(
            ExportRequest(out=tmp_path, adapter=short_adapter, base=str(short_base), format=f)
        )
        for f in ("onnx", "torch")
    ]
    assert plans[0].key != plans[1].key


def test_numbers_that_fp16_cannot_hold_are_refused_with_a_way_out(checkpoints, tmp_path):
    from safetensors.torch import load_file, save_file

    artifact = checkpoints["merged", "fp16"]
    directory = tmp_path / "huge"
    shutil.copytree(artifact.path, directory)
    tensors = load_file(directory / "model.safetensors")
    tensors["classifier.weight"] *= 65504
    save_file(tensors, directory / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ExportError, match=r"NaN or infinity.*\n?.*bf16") as caught:
        run(directory, [inputs(artifact)], "fp16")
    assert "fp16" in str(caught.value)


def test_a_manifest_from_before_formats_is_of_onnx(merged, tmp_path):
    document = json.loads((merged.path / "artifact.json").read_text())
    del document["format"]
    manifest = type(merged.manifest).model_validate(document)
    assert manifest.format == "onnx"


@pytest.mark.parametrize("name", ["pytorch_model.bin", "modeling_evil.py", "adapter/weights.pkl"])
def test_an_artifact_with_anything_that_can_run_is_refused(checkpoints, tmp_path, name):
    artifact = checkpoints["merged", "fp32"]
    directory = tmp_path / "changed"
    shutil.copytree(artifact.path, directory)
    (directory / name).parent.mkdir(exist_ok=True)
    (directory / name).write_bytes(b"anything")
    entry = FileEntry(sha256=sha256_file(directory / name), bytes=8)
    manifest = artifact.manifest
    write_manifest(
        directory, manifest.model_copy(update={"files": {**manifest.files, name: entry}})
    )
    with pytest.raises(
        ArtifactError, match=rf"holds only JSON, safetensors and inputs, not {name}"
    ):
        Artifact.load(directory)


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"format": "torch", "quants": ("int8",)}, "the format torch has no precision 'int8'"),
        ({"quants": ("bf16",)}, "the format onnx has no precision 'bf16'"),
        ({"format": "torch", "via": "optimum"}, "--format torch writes none"),
        ({"format": "tflite"}, "'tflite' is not one of onnx, torch"),
    ],
)
def test_what_does_not_go_together_is_refused_in_one_sentence(tmp_path, changes, sentence):
    request: dict[str, Any] = {"out": tmp_path, "base": "anything", **changes}
    with pytest.raises(UsageError, match=sentence):
        export(ExportRequest(**request))
    assert not list(tmp_path.iterdir())


def protocol(artifact: Artifact, **runtime: Any) -> dict[str, Any]:
    device = SimpleNamespace(
        id="bench",
        runtime=RuntimeSpec(**runtime),
        limits=SimpleNamespace(memory_mb=None, cooldown_c=None),
    )
    placement = Placement(threads=1, cpus=(0,))
    return build_protocol(RunOptions(), device, placement, [artifact]).runtime  # type: ignore[arg-type]


def test_a_runtime_takes_its_own_format_alone(checkpoints, merged):
    checkpoint = checkpoints["merged", "fp32"]
    with pytest.raises(InputError, match=r"format is torch.*\(onnxruntime\) takes onnx"):
        protocol(checkpoint)
    with pytest.raises(InputError, match=r"format is onnx.*\(torch\) takes torch"):
        protocol(merged, kind="torch")
    assert protocol(merged)["provider"] == "CPUExecutionProvider"
    assert protocol(checkpoint, kind="torch", provider="cuda", compile=True) == {
        "kind": "torch",
        "provider": "cuda",
        "compile": True,
        "threads": 1,
        "cpus": [0],
        "options": {},
    }


@pytest.mark.parametrize(
    ("runtime", "words"),
    [
        ({"kind": "torch", "provider": "tensorrt"}, 'provider "tensorrt"'),
        ({"kind": "torch", "allow_spinning": False}, "allow_spinning"),
        ({"kind": "torch", "options": {"arena": 1}}, r"options\.arena"),
        ({"compile": True}, "compile = true"),
    ],
)
def test_a_profile_that_mixes_runtimes_is_refused(runtime, words):
    with pytest.raises(ValueError, match=words):
        RuntimeSpec(**runtime)


def test_the_bundled_adapter_as_a_checkpoint_is_what_pytorch_computes(tmp_path):
    require(*NEEDED)
    (artifact,) = export(
        ExportRequest(
            out=tmp_path,
            adapter=REPOSITORY / ADAPTER,
            base=BASE,
            format="torch",
            seq_len=32,
        )
    )
    manifest = artifact.manifest
    assert manifest.parity.max_abs_error < 1e-5
    assert manifest.parity.top1_agreement == 1
    assert (manifest.statistics.kept_layers, manifest.statistics.kept_heads) == (6, 72)
    assert manifest.quantization.total_weights == manifest.base.parameters + 5 * 385
    assert artifact.size_bytes > manifest.quantization.total_weights * 4
