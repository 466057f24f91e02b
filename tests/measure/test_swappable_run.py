"""A swappable artifact on this machine: which adapter ran, and what changing it takes."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnxruntime
import pytest

from edgebench.agent import agent
from edgebench.artifact import Artifact, FileEntry, Parity, SwapAdapter, sha256_file, write_manifest
from edgebench.errors import ArtifactError, UsageError
from edgebench.export import swappable
from edgebench.measure import run
from edgebench.results.tables import build
from tests.measure.bench import QUICK, Bench
from tests.tiny import tiny_artifact, tiny_model

PARITY = Parity(
    reference="the same model",
    n=1,
    max_abs_error=0.0,
    mean_abs_error=0.0,
    cosine_min=1.0,
    cosine_mean=1.0,
    kl_mean=0.0,
    top1_agreement=1.0,
    tolerance=1e-4,
)


@pytest.fixture
def artifact(bench: Bench):
    """The tiny classifier with its head as an input; "flipped" swaps its two logits."""
    model = tiny_model()
    plain = tiny_artifact(bench.path / "artifacts", name="swap", model=model)
    from onnx import numpy_helper

    head = next(t for t in model.graph.initializer if t.name == "head")
    values = numpy_helper.to_array(head)
    swappable.make_inputs(plain.model_path, {"head": values})
    adapters = []
    for name, array in (("same", values), ("flipped", values[:, ::-1])):
        file = f"adapters/{name}.onnx_adapter"
        swappable.write_file(plain.path / file, {"head": np.ascontiguousarray(array)})
        adapters.append(
            SwapAdapter(
                name=name,
                file=file,
                digest=f"sha256:{name}",
                bytes=10,
                rank=None,
                kind="lora",
                parameters=array.size,
                labels=plain.manifest.labels if name == "same" else ("others", "labels"),
                ranks=4,
                extra_flops=100.0,
                parity=PARITY,
            )
        )
    files = {
        file.relative_to(plain.path).as_posix(): FileEntry(
            sha256=sha256_file(file), bytes=file.stat().st_size
        )
        for file in sorted(plain.path.rglob("*"))
        if file.is_file() and file.name != "artifact.json"
    }
    changed = {"adapters": tuple(adapters), "lowering": "swappable", "files": files}
    write_manifest(plain.path, plain.manifest.model_copy(update=changed))
    return Artifact.load(plain.path)


def test_a_row_names_the_active_adapter_and_what_changing_it_takes(bench: Bench, artifact):
    other = bench.artifact("plain")
    options = replace(QUICK, launches=2, adapter="same", accuracy="all")
    recording = run(bench.device(), [artifact, other], bench.store, options)
    assert [entry.active_adapter for entry in recording.artifacts] == ["same", None]
    table = build([bench.store.load(recording.id)], include_emulated=True).latency
    ours, plain = table.iloc[0], table.iloc[1]
    assert (ours["adapter"], ours["lowering"], ours["kept_ranks"]) == ("same", "swappable", 4)
    assert 0 < ours["adapter_swap_us"] < ours["adapter_load_us"]
    assert np.isnan(plain["adapter_swap_us"])
    assert ours["accuracy_n"] == 40


def test_labels_of_another_adapter_are_not_scored(bench: Bench, artifact):
    recording = run(
        bench.device(), [artifact], bench.store, replace(QUICK, adapter="flipped", accuracy="all")
    )
    assert recording.artifacts[0].active_adapter == "flipped"
    assert recording.solo[0].accuracy is None


def test_the_timed_call_computes_with_the_adapter(artifact):
    """Bound inputs would leave it out: ONNX Runtime ignores it there."""
    files = {a.name: str(artifact.path / a.file) for a in artifact.manifest.adapters}
    options = {
        "threads": 1,
        "provider": "CPUExecutionProvider",
        "adapters": files,
        "active_adapter": "flipped",
    }
    runtime = agent.OnnxRuntime(str(artifact.model_path), options)
    feed = {"input_ids": np.array([[1, 2, 3]])}
    seen = []
    inner = runtime.session

    class Watched:
        """The session, with what the timed call got from it kept."""

        def run(self, *arguments):
            seen.append(inner.run(*arguments))
            return seen[-1]

    runtime.session = Watched()
    runtime.open_adapters("flipped")
    runtime.call(runtime.bind(feed))
    runtime.session = inner
    alone = agent.OnnxRuntime(str(artifact.model_path), dict(options, active_adapter=None))
    np.testing.assert_array_equal(seen[0][0], alone.infer(feed)[:, ::-1])
    np.testing.assert_array_equal(seen[0][0], runtime.infer(feed))


def test_a_runtime_without_adapters_is_named(artifact, monkeypatch):
    monkeypatch.delattr(onnxruntime, "LoraAdapter")
    files = {a.name: str(artifact.path / a.file) for a in artifact.manifest.adapters}
    with pytest.raises(agent.AgentError, match="can't swap adapters") as caught:
        agent.OnnxRuntime(
            str(artifact.model_path),
            {"threads": 1, "provider": "CPUExecutionProvider", "adapters": files},
        )
    assert caught.value.code == "adapters"


def test_an_adapter_that_is_not_there(bench: Bench, artifact):
    with pytest.raises(ArtifactError, match="no adapter 'nobody'"):
        run(bench.device(), [artifact], bench.store, replace(QUICK, adapter="nobody"))
    with pytest.raises(UsageError, match="none of these artifacts takes adapters"):
        run(bench.device(), [bench.artifact("b")], bench.store, replace(QUICK, adapter="same"))
