"""PyTorch as a runtime: a transformers checkpoint, eager or compiled, on the CPU or a CUDA GPU.

This file is sent to the device beside the agent and imported there, so it runs on Python 3.8 and
imports nothing else of ours. It needs torch, transformers and safetensors, and peft where the
adapter is unmerged. Only safetensors are read, never a pickle, and no code of a checkpoint is run.

A directory of an artifact of format "torch" is what transformers itself would save::

    config.json  model.safetensors                              the model, in its data type
    adapter/adapter_config.json  adapter_model.safetensors      its branch, where it is unmerged

Time line of a turn of k calls on a GPU (docs: torch.cuda.Event, elapsed_time in milliseconds)::

    host  | sync, clock | call call call call          | sync | read the events
    GPU                 R |b  e|b  e|b  e|b  e|
                        reference  one pair of events a call

Calls are queued; an event is a time stamp that the GPU takes when it gets there. A call's duration
is the time between its two events, its start the host's clock at R plus the time from R to b.
"""

from __future__ import annotations

import json
import os
import time
from typing import Any, Callable, Dict, List, Mapping, Optional, Set, Tuple

clock = time.perf_counter_ns

#: What ``runtime.options`` of a profile may say, and what goes without saying.
OPTIONS: Dict[str, Any] = {
    # Which GPU, as CUDA numbers them.
    "device_id": 0,
    # torch.compile's mode: default, reduce-overhead (CUDA graphs), max-autotune.
    "mode": "default",
    # transformers' attn_implementation: sdpa, eager, flash_attention_2.
    "attention": "sdpa",
    # torch.set_float32_matmul_precision: highest is IEEE fp32, high and medium let TF32 in.
    "matmul_precision": "highest",
}

#: Encoder checkpoints often lack it, and it has no part in last_hidden_state.
_POOLER = "pooler."


class TorchError(Exception):
    """The model can't be run as asked; the message says why."""


class TorchRuntime:
    """One loaded checkpoint: ``bind`` moves a call's inputs to the device, ``call`` runs it."""

    call: Callable[[Any], Any]
    #: On a GPU: (bindings, first, count, starts, durations), as the agent's own timing loop.
    time_calls: Optional[Callable[[List[Any], int, int, Any, Any], None]] = None

    def __init__(self, model: Optional[str], options: Mapping[str, Any]) -> None:
        """Load a checkpoint onto its device.

        Args:
            model: its ``model.safetensors``; config.json stands beside.
            options: the protocol's ``runtime``: ``provider`` ("cpu", "cuda"), ``threads``,
                ``compile``, and ``options`` (see ``OPTIONS``).

        Raises:
            TorchError: the provider is not there, an option is unknown, or the file is not whole.
        """
        import torch

        if model is None:
            raise TorchError("there is no model to load")
        self.torch = torch
        self.provider = str(options.get("provider", "cpu"))
        self.settings = settings(options.get("options") or {})
        self.compiled = bool(options.get("compile"))
        self.device = self._device()
        torch.set_num_threads(int(options["threads"]))
        precision = self.settings["matmul_precision"]
        torch.set_float32_matmul_precision(precision)
        if self.device.type == "cuda":
            # On by default, for convolutions: no TF32 that nobody asked for.
            torch.backends.cudnn.allow_tf32 = precision != "highest"
        directory = os.path.dirname(os.path.abspath(model))
        self.module = load(directory, self.settings["attention"]).to(self.device)
        self.forward = self.module
        if self.compiled:
            # Read when the compiler is imported: no helper processes that stay beside the timing.
            os.environ.setdefault("TORCHINDUCTOR_COMPILE_THREADS", "1")
            # Static shapes: a run has one, and what is timed must not depend on what came before.
            self.forward = torch.compile(self.module, mode=self.settings["mode"], dynamic=False)
        self.shapes: Set[Tuple[Any, ...]] = set()
        self.compile_ns = 0
        self.events: List[Any] = []
        inference_mode, forward = torch.inference_mode, self.forward

        def call(binding: Mapping[str, Any]) -> Any:
            with inference_mode():
                return forward(return_dict=False, **binding)[0]

        self.call = call
        if self.device.type == "cuda":
            self.time_calls = self._time_calls

    @staticmethod
    def prepare(model: str) -> None:
        """Import all that loading this checkpoint takes, so that its time and memory are its own.

        Importing transformers and one model's module takes seconds, once a process.
        """
        os.environ.setdefault("HF_HUB_OFFLINE", "1")
        directory = os.path.dirname(os.path.abspath(model))
        model_class(directory)
        if os.path.isdir(os.path.join(directory, "adapter")):
            import peft  # noqa: F401

    def bind(self, feed: Mapping[str, Any]) -> Any:
        """The inputs on the device. A shape that is new is compiled here, not in the warm-up."""
        tensors = {name: self.torch.from_numpy(array) for name, array in feed.items()}
        binding = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        if self.compiled:
            shape = tuple((name, tuple(tensor.shape)) for name, tensor in sorted(binding.items()))
            if shape not in self.shapes:
                self._compile(binding)
                self.shapes.add(shape)
        return binding

    def infer(self, feed: Mapping[str, Any]) -> Any:
        """The first output for a batch, as a float32 array.

        Compiled for a larger batch, it is filled up to that: the same code is what is measured.
        """
        rows = len(next(iter(feed.values())))
        wanted = self._compiled_rows(feed)
        if wanted > rows:
            feed = {name: filled(array, wanted) for name, array in feed.items()}
        output = self.call(self.bind(feed))
        return output.float().cpu().numpy()[:rows]

    def synchronize(self) -> None:
        """Return when everything that was called has been done."""
        if self.device.type == "cuda":
            self.torch.cuda.synchronize(self.device)

    def execution(self) -> Dict[str, Any]:
        """What really executes the model."""
        import transformers

        torch = self.torch
        found: Dict[str, Any] = {
            "providers": [self.provider],
            "torch": torch.__version__,
            "transformers": transformers.__version__,
            "dtype": str(next(self.module.parameters()).dtype).replace("torch.", ""),
            "compiled": self.settings["mode"] if self.compiled else None,
            "attention": getattr(self.module.config, "_attn_implementation", None),
            "matmul_precision": torch.get_float32_matmul_precision(),
            "threads": torch.get_num_threads(),
        }
        if self.compiled:
            found["compile_s"] = self.compile_ns / 1e9
            found["graph_breaks"] = graph_breaks()
        if self.device.type == "cuda":
            found["gpu"] = torch.cuda.get_device_name(self.device)
            found["cuda"] = torch.version.cuda
            found["cudnn"] = torch.backends.cudnn.version()
            found["cudnn_allow_tf32"] = torch.backends.cudnn.allow_tf32
        else:
            found["cpu_capability"] = torch.backends.cpu.get_cpu_capability()
        return found

    def _device(self) -> Any:
        torch = self.torch
        if self.provider == "cpu":
            return torch.device("cpu")
        if self.provider != "cuda":
            raise TorchError(f"PyTorch has no provider {self.provider!r} here: cpu or cuda")
        number = int(self.settings["device_id"])
        if not torch.cuda.is_available():
            raise TorchError(f"this PyTorch ({torch.__version__}) finds no CUDA GPU")
        if number >= torch.cuda.device_count():
            raise TorchError(f"there is no CUDA GPU {number}, only {torch.cuda.device_count()}")
        torch.cuda.set_device(number)
        return torch.device("cuda", number)

    def _compile(self, binding: Mapping[str, Any]) -> None:
        """The first call of a shape, in which torch.compile does its work."""
        begin = clock()
        try:
            self.call(binding)
            self.synchronize()
        except Exception as error:
            text = " <- ".join(causes(error))
            if "Compiler" not in text:
                raise
            raise TorchError(
                "torch.compile found no compiler: install g++ (apt install g++), "
                f"or run with compile = false ({text[:300]})"
            ) from error
        self.compile_ns += clock() - begin

    def _compiled_rows(self, feed: Mapping[str, Any]) -> int:
        """Rows of the compiled shape that this feed has but for its rows; 0 where none is."""
        beside = {name: array.shape[1:] for name, array in feed.items()}
        return max(
            (
                shape[0][1][0]
                for shape in self.shapes
                if {name: dims[1:] for name, dims in shape} == beside
            ),
            default=0,
        )

    def _time_calls(
        self, bindings: List[Any], first: int, count: int, starts: Any, durations: Any
    ) -> None:
        """Time ``count`` calls by CUDA events; nanoseconds into two int64 arrays.

        An event's resolution is about half a microsecond (CUDA Runtime API, cudaEventElapsedTime).
        """
        torch, call, size = self.torch, self.call, len(bindings)
        while len(self.events) < 2 * count + 1:
            self.events.append(torch.cuda.Event(enable_timing=True))
        reference, pairs = self.events[0], self.events[1 : 2 * count + 1]
        # The GPU is idle here, so the reference is stamped as soon as it is recorded.
        self.synchronize()
        begin = clock()
        reference.record()
        for i in range(count):
            pairs[2 * i].record()
            call(bindings[(first + i) % size])
            pairs[2 * i + 1].record()
        self.synchronize()
        last = 0
        for i in range(count):
            start = begin + round(reference.elapsed_time(pairs[2 * i]) * 1e6)
            # elapsed_time is a 32-bit float: far from the reference it is off by some nanoseconds,
            # and calls that follow each other at once would overlap.
            starts[i] = max(start, last)
            durations[i] = round(pairs[2 * i].elapsed_time(pairs[2 * i + 1]) * 1e6)
            last = int(starts[i]) + int(durations[i])


def settings(options: Mapping[str, Any]) -> Dict[str, Any]:
    """``OPTIONS`` with a profile's own.

    Raises:
        TorchError: one is not known here.
    """
    unknown = sorted(set(options) - set(OPTIONS))
    if unknown:
        raise TorchError(f"runtime.options has {unknown[0]!r}; PyTorch takes {', '.join(OPTIONS)}")
    return dict(OPTIONS, **options)


def model_class(directory: str) -> Tuple[Any, Dict[str, Any]]:
    """The class in transformers that a checkpoint's config.json names, and the configuration.

    Raises:
        TorchError: there is no such class.
    """
    import transformers

    with open(os.path.join(directory, "config.json"), encoding="utf-8") as stream:
        config: Dict[str, Any] = json.load(stream)
    name = (config.get("architectures") or [""])[0]
    kind = getattr(transformers, name, None)
    if kind is None or not issubclass(kind, transformers.PreTrainedModel):
        raise TorchError(f"transformers {transformers.__version__} has no model class {name!r}")
    return kind, config


def load(directory: str, attention: str = "sdpa") -> Any:
    """The module of an artifact's directory, on the CPU, in its data type, in eval mode.

    Raises:
        TorchError: the checkpoint is not whole, or is of a class that transformers does not have.
    """
    # Read when transformers is imported: nothing is ever asked of the network.
    os.environ.setdefault("HF_HUB_OFFLINE", "1")
    import torch
    import transformers

    kind, config = model_class(directory)
    stored = str(config.get("dtype") or config.get("torch_dtype") or "float32")
    dtype = getattr(torch, stored)
    # transformers renamed it in 4.56.
    version = tuple(int(part) for part in transformers.__version__.split(".")[:2])
    asked = {"dtype" if version >= (4, 56) else "torch_dtype": dtype}
    module, report = kind.from_pretrained(
        directory,
        local_files_only=True,
        use_safetensors=True,
        attn_implementation=attention,
        output_loading_info=True,
        **asked,
    )
    missing = list(report["missing_keys"])
    if missing and all(key.startswith(_POOLER) for key in missing):
        module.pooler = None
        missing = []
    lost = missing + list(report["unexpected_keys"])
    if lost:
        raise TorchError(f"model.safetensors and config.json disagree about {sorted(lost)[0]}")
    adapter = os.path.join(directory, "adapter")
    if os.path.isdir(adapter):
        module = attach(module, adapter)
        # Parameters alone: some buffers (rotary frequencies) stay in fp32 on purpose.
        for parameter in module.parameters():
            if parameter.is_floating_point():
                parameter.data = parameter.data.to(dtype)
    return module.eval()


def attach(module: Any, adapter: str) -> Any:
    """The module with a PEFT adapter's branch in it.

    Raises:
        TorchError: its configuration and weights disagree.
    """
    import peft
    from safetensors.torch import load_file

    config = peft.PeftConfig.from_pretrained(adapter)
    config.inference_mode = True
    attached = peft.get_peft_model(module, config)
    tensors = load_file(os.path.join(adapter, "adapter_model.safetensors"))
    result: Any = peft.set_peft_model_state_dict(attached, tensors)
    lost = [key for key in result.missing_keys if "lora_" in key or "modules_to_save" in key]
    lost += list(result.unexpected_keys)
    if lost:
        raise TorchError(f"the adapter's configuration and weights disagree about {lost[0]}")
    return attached.get_base_model()


def filled(array: Any, rows: int) -> Any:
    """An array with its last row repeated up to so many."""
    import numpy

    return numpy.concatenate([array, numpy.repeat(array[-1:], rows - len(array), axis=0)])


def graph_breaks() -> int:
    """How often torch.compile went back to the interpreter in this process."""
    from torch._dynamo.utils import counters

    return int(sum(counters["graph_break"].values()))


def causes(error: BaseException) -> List[str]:
    """An exception and what caused it, innermost last, one line each."""
    found: List[str] = []
    next_one: Optional[BaseException] = error
    while next_one is not None and len(found) < 8:
        found.append(f"{type(next_one).__name__}: {str(next_one).strip().splitlines()[:1]}")
        inner = getattr(next_one, "inner_exception", None)
        next_one = inner or next_one.__cause__
    return found
