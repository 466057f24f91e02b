"""PyTorch as a runtime: it computes what transformers computes, and says what it runs with."""

from __future__ import annotations

import ast
import importlib.util
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from edgebench.device_spec import TORCH_OPTIONS
from edgebench.runtimes import torch_runtime
from edgebench.runtimes.torch_runtime import OPTIONS, TorchError, TorchRuntime
from tests.agent.test_language import NEWER, NEWER_KEYWORDS

pytestmark = [
    pytest.mark.filterwarnings("ignore"),
    pytest.mark.skipif(
        importlib.util.find_spec("transformers") is None, reason="transformers is not installed"
    ),
]

SOURCE = Path(torch_runtime.__file__)
CPU: dict[str, Any] = {"kind": "torch", "provider": "cpu", "threads": 1, "options": {}}


def model(directory: Path) -> str:
    return str(directory / "model.safetensors")


def feed(rows: int = 4, length: int = 12) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(0)
    return {
        "input_ids": rng.integers(0, 80, size=(rows, length), dtype=np.int64),
        "attention_mask": np.ones((rows, length), dtype=np.int64),
    }


def copied(checkpoint: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(checkpoint, tmp_path / "copy"))


@pytest.fixture
def threads():
    """Leave PyTorch's own number of threads as it was."""
    import torch

    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


@pytest.fixture
def runtime(checkpoint: Path, threads: None) -> TorchRuntime:
    return TorchRuntime(model(checkpoint), CPU)


def test_it_computes_what_transformers_computes(checkpoint, runtime):
    import torch
    from transformers import BertForSequenceClassification

    theirs = BertForSequenceClassification.from_pretrained(checkpoint).eval()
    with torch.no_grad():
        expected = theirs(**{k: torch.from_numpy(v) for k, v in feed().items()}).logits.numpy()
    np.testing.assert_allclose(runtime.infer(feed()), expected, atol=1e-6)


def test_a_call_takes_what_bind_made_and_keeps_no_gradient(runtime):
    output = runtime.call(runtime.bind(feed()))
    assert tuple(output.shape) == (4, 3)
    assert output.is_inference()
    np.testing.assert_array_equal(output.numpy(), runtime.infer(feed()))


def test_on_the_cpu_the_agents_own_loop_times_it(runtime):
    assert runtime.time_calls is None
    runtime.synchronize()


def test_it_says_what_runs(checkpoint, threads):
    import torch

    execution = TorchRuntime(model(checkpoint), dict(CPU, threads=2)).execution()
    assert execution["providers"] == ["cpu"]
    assert execution["torch"] == torch.__version__
    assert execution["dtype"] == "float32"
    assert execution["compiled"] is None
    assert execution["attention"] == "sdpa"
    assert execution["matmul_precision"] == "highest"
    assert execution["threads"] == torch.get_num_threads() == 2
    assert json.loads(json.dumps(execution)) == execution


def test_the_data_type_is_the_checkpoints(checkpoint, tmp_path, threads):
    from transformers import BertForSequenceClassification

    module = BertForSequenceClassification.from_pretrained(checkpoint)
    module.bfloat16().save_pretrained(tmp_path)
    half = TorchRuntime(model(tmp_path), CPU)
    assert half.execution()["dtype"] == "bfloat16"
    output = half.infer(feed())
    assert output.dtype == np.float32
    np.testing.assert_allclose(output, TorchRuntime(model(checkpoint), CPU).infer(feed()), atol=0.2)


def test_attention_is_the_one_asked_for(checkpoint, runtime):
    eager = TorchRuntime(model(checkpoint), dict(CPU, options={"attention": "eager"}))
    assert eager.execution()["attention"] == "eager"
    np.testing.assert_allclose(eager.infer(feed()), runtime.infer(feed()), atol=1e-5)


def test_an_unknown_option_is_refused(checkpoint):
    with pytest.raises(TorchError, match=r"'devise_id'; PyTorch takes device_id, mode"):
        TorchRuntime(model(checkpoint), dict(CPU, options={"devise_id": 1}))


def test_the_profile_knows_the_options_that_there_are():
    assert set(OPTIONS) == TORCH_OPTIONS


def test_cuda_without_a_gpu_is_an_error_and_never_the_cpu_instead(checkpoint):
    import torch

    if torch.cuda.is_available():
        pytest.skip("there is a GPU here")
    with pytest.raises(TorchError, match="finds no CUDA GPU"):
        TorchRuntime(model(checkpoint), dict(CPU, provider="cuda"))


def test_another_provider_is_refused(checkpoint):
    with pytest.raises(TorchError, match="no provider 'tensorrt'"):
        TorchRuntime(model(checkpoint), dict(CPU, provider="tensorrt"))


def test_a_checkpoint_that_lacks_a_weight_is_refused(checkpoint, tmp_path):
    from safetensors.torch import load_file, save_file

    directory = copied(checkpoint, tmp_path)
    tensors = load_file(model(directory))
    del tensors["classifier.weight"]
    save_file(tensors, model(directory), metadata={"format": "pt"})
    with pytest.raises(TorchError, match=r"disagree about classifier\.weight"):
        TorchRuntime(model(directory), CPU)


def test_a_class_that_is_no_model_is_refused(checkpoint, tmp_path):
    directory = copied(checkpoint, tmp_path)
    config = json.loads((directory / "config.json").read_text())
    for name in ("AutoTokenizer", "os", "NoSuchModel"):
        (directory / "config.json").write_text(json.dumps({**config, "architectures": [name]}))
        with pytest.raises(TorchError, match=f"no model class '{name}'"):
            TorchRuntime(model(directory), CPU)


class Boom:
    """What a malicious pickle does when it is opened."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __reduce__(self) -> Any:
        return Path.touch, (self.mark,)


def test_a_pickle_in_the_place_of_the_weights_is_never_opened(checkpoint, tmp_path):
    import pickle

    directory, mark = copied(checkpoint, tmp_path), tmp_path / "opened"
    (directory / "model.safetensors").unlink()
    (directory / "pytorch_model.bin").write_bytes(pickle.dumps(Boom(mark)))
    with pytest.raises(OSError, match="safetensors"):
        TorchRuntime(model(directory), CPU)
    assert not mark.exists()


# ---------------------------------------------------------------- compiled

compiler = pytest.mark.skipif(
    shutil.which(os.environ.get("CXX", "g++")) is None,
    reason="torch.compile needs a C++ compiler here (apt install g++)",
)


@compiler
def test_compiled_it_computes_the_same_and_compiles_when_inputs_are_bound(
    checkpoint, runtime, tmp_path, monkeypatch
):
    from torch._dynamo.utils import counters

    monkeypatch.setenv("TORCHINDUCTOR_CACHE_DIR", str(tmp_path))
    compiled = TorchRuntime(model(checkpoint), dict(CPU, compile=True))
    assert compiled.compile_ns == 0
    binding = compiled.bind(feed())
    spent, graphs = compiled.compile_ns, counters["stats"]["unique_graphs"]
    assert spent > 0
    assert graphs >= 1
    np.testing.assert_allclose(compiled.call(binding).numpy(), runtime.infer(feed()), atol=1e-5)
    # A tail of fewer rows runs in what is compiled already, and gives its own rows.
    tail = {name: array[:3] for name, array in feed().items()}
    np.testing.assert_allclose(compiled.infer(tail), runtime.infer(tail), atol=1e-5)
    compiled.bind(feed())
    assert (compiled.compile_ns, counters["stats"]["unique_graphs"]) == (spent, graphs)
    execution = compiled.execution()
    assert execution["compiled"] == "default"
    assert execution["compile_s"] == pytest.approx(spent / 1e9)
    assert execution["graph_breaks"] == 0


def test_without_a_compiler_it_says_what_to_install(checkpoint, tmp_path):
    script = (
        "import sys, json, numpy\n"
        "from edgebench.runtimes.torch_runtime import TorchRuntime\n"
        "options = {'provider': 'cpu', 'threads': 1, 'compile': True}\n"
        "runtime = TorchRuntime(sys.argv[1], options)\n"
        "runtime.bind({'input_ids': numpy.ones((1, 4), dtype='int64')})\n"
    )
    environment = {
        **os.environ,
        "PYTHONPATH": str(SOURCE.parents[2]),
        "PATH": str(tmp_path),
        "CXX": "no-such-compiler",
        "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", script, model(checkpoint)],
        env=environment,
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 1
    assert "torch.compile found no compiler: install g++ (apt install g++)" in done.stderr


# ---------------------------------------------------------------- CUDA's clock, without a GPU


class FakeGpu:
    """A GPU's stream: calls take their time one after another, an event is stamped when it is
    reached. Times are in nanoseconds; what ``elapsed_time`` says is in milliseconds, as CUDA's."""

    def __init__(self, call_ns: list[int]) -> None:
        self.now = 0
        self.call_ns = call_ns
        self.calls: list[Any] = []
        self.synchronised = 0
        gpu = self

        class Event:
            def __init__(self, enable_timing: bool = False) -> None:
                assert enable_timing
                self.at: int | None = None
                self.known = -1

            def record(self) -> None:
                self.at, self.known = gpu.now, gpu.synchronised

            def elapsed_time(self, end: Event) -> float:
                # CUDA's answer to an event that has not been reached: cudaErrorNotReady.
                assert self.known < gpu.synchronised > end.known
                assert self.at is not None and end.at is not None
                return (end.at - self.at) / 1e6

        self.Event = Event

    def call(self, binding: Any) -> None:
        self.now += self.call_ns[len(self.calls)]
        self.calls.append(binding)


@pytest.fixture
def gpu(runtime, monkeypatch) -> FakeGpu:
    """The CPU's runtime, its clock and calls replaced by a GPU's."""
    import torch

    gpu = FakeGpu([1_000_000, 2_000_000, 3_000_000, 4_000_000, 5_000_000])
    monkeypatch.setattr(torch.cuda, "Event", gpu.Event)
    monkeypatch.setattr(torch_runtime, "clock", lambda: 7_000)
    runtime.call = gpu.call

    def synchronize() -> None:
        gpu.synchronised += 1

    runtime.synchronize = synchronize
    return gpu


def test_events_give_each_call_its_start_and_duration(runtime, gpu):
    starts, durations = np.zeros(5, dtype=np.int64), np.zeros(5, dtype=np.int64)
    runtime._time_calls(["a", "b", "c"], 2, 5, starts, durations)
    assert gpu.calls == ["c", "a", "b", "c", "a"]
    assert durations.tolist() == [1_000_000, 2_000_000, 3_000_000, 4_000_000, 5_000_000]
    assert (starts - 7_000).tolist() == [0, 1_000_000, 3_000_000, 6_000_000, 10_000_000]


def test_a_turn_is_synchronised_before_and_after_and_never_within(runtime, gpu):
    columns = np.zeros((2, 8), dtype=np.int64)
    runtime._time_calls(["a"], 0, 3, columns[0, :3], columns[1, :3])
    assert gpu.synchronised == 2
    runtime._time_calls(["a"], 0, 2, columns[0, 3:5], columns[1, 3:5])
    assert gpu.synchronised == 4
    assert columns[1].tolist() == [1_000_000, 2_000_000, 3_000_000, 4_000_000, 5_000_000, 0, 0, 0]


# ---------------------------------------------------------------- what it is written in


def test_it_is_written_in_the_language_of_python_3_8():
    tree = ast.parse(SOURCE.read_text(), feature_version=(3, 8))
    names = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names |= {node.id for node in ast.walk(tree) if isinstance(node, ast.Name)}
    assert not names & NEWER
    keywords = {node.arg for node in ast.walk(tree) if isinstance(node, ast.keyword)}
    assert not keywords & NEWER_KEYWORDS


def test_importing_it_needs_the_standard_library_alone_and_none_of_ours():
    tree = ast.parse(SOURCE.read_text())
    inside = {id(n) for f in ast.walk(tree) if isinstance(f, ast.FunctionDef) for n in ast.walk(f)}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            names = [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            names = [node.module or ""]
        else:
            continue
        roots = {name.split(".")[0] for name in names}
        assert "edgebench" not in roots
        assert id(node) in inside or roots <= set(sys.stdlib_module_names) | {"__future__"}
