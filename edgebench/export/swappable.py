"""The lowering "swappable": one base, and adapters that are changed between two calls.

Each linear layer that any of the adapters changes becomes y = W x + (x A) B, with A [d_in, r] and
B [r, d_out] as *inputs of the graph that have initialisers*: without an adapter they have rank 0,
and the branch adds nothing. The rank is a free axis, so adapters of any ranks fit; the scale
(alpha / r) is folded into B. Layers that adapters bring in full, such as a classification head, are
inputs too: their default is the base's own, or where the base has none the first adapter's.

An adapter's factors stand in a file of ONNX Runtime's own format (``onnxruntime.AdapterFormat``,
its schema: onnxruntime/lora/adapter_format in its repository), which ``LoraAdapter`` maps into
memory and ``RunOptions.add_active_adapter`` makes the inputs of a call. Factors and heads stay in
fp32 whatever the scheme is: the base's weights are what is quantised.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from edgebench import artifact as nouns
from edgebench.adapters.lora import PREFIX
from edgebench.errors import CheckpointError, ExportError, UsageError
from edgebench.export.graph import save

DIRECTORY = "adapters"
SUFFIX = ".onnx_adapter"

#: Rank of the factors that the graph is traced with; it leaves no trace there.
_TRACED_RANK = 3

Array = npt.NDArray[np.float32]

Factors = Mapping[str, tuple[Array, Array]]
"""By linear module: A [d_in, r], and B [r, d_out] with the scale folded in."""


@dataclass(frozen=True)
class Swap:
    """One adapter, ready to be written: what it gives the graph's inputs, and what PyTorch says.

    Attributes:
        parameters: arrays by the name of the graph's input.
        expected: PyTorch's outputs on the parity feeds, with the adapter's branch unmerged.
        ranks: ranks over all changed modules, summed.
        flops: of the branches, for one row of the timing inputs.
    """

    parameters: dict[str, Array]
    expected: list[Array]
    ranks: int
    flops: float


def down_name(module: str) -> str:
    return f"{module}.lora_A"


def up_name(module: str) -> str:
    return f"{module}.lora_B"


def provided_tensors(provides: Iterable[str], tensors: Mapping[str, Any]) -> dict[str, Any]:
    """The checkpoint's values of the base's parameters that an adapter brings itself.

    Raises:
        CheckpointError: the checkpoint names one that it does not hold.
    """
    found = {}
    for name in sorted(provides):
        value = tensors.get(PREFIX + name, tensors.get(name))
        if value is None:
            raise CheckpointError(f"the adapter does not hold {name}, which it is said to bring")
        found[name] = value
    return found


def give_head(module: Any, provided: Mapping[str, Any]) -> Any:
    """Put the parameters that an adapter brings itself into a base module, in place."""
    import torch

    parameters = dict(module.named_parameters())
    with torch.no_grad():
        for name, value in provided.items():
            if name not in parameters or parameters[name].shape != value.shape:
                shape = tuple(parameters[name].shape) if name in parameters else "none"
                raise CheckpointError(
                    f"the adapter's {name} has the shape {tuple(value.shape)}, the base's {shape}",
                    fix="All adapters of one base bring heads of one shape.",
                )
            parameters[name].copy_(value)
    return module


def collect(factors: Factors, provided: Mapping[str, Any], tokens: int) -> tuple[Any, int, float]:
    """An adapter's inputs by name, its summed ranks, and its branches' FLOPs over ``tokens``."""
    arrays: dict[str, Array] = {}
    ranks, flops = 0, 0.0
    for module, (down, up) in factors.items():
        arrays[down_name(module)] = np.ascontiguousarray(down, np.float32)
        arrays[up_name(module)] = np.ascontiguousarray(up, np.float32)
        (d_in, rank), d_out = down.shape, up.shape[1]
        ranks += rank
        # Two products of two FLOPs a weight, and the addition to the base's own output.
        flops += tokens * (2.0 * rank * (d_in + d_out) + d_out)
    for name, value in provided.items():
        array = np.asarray(value.detach().float().numpy(), np.float32)
        # The graph multiplies from the right: a matrix stands there as [d_in, d_out].
        arrays[name] = np.ascontiguousarray(array.T if array.ndim == 2 else array)
    return arrays, ranks, flops


def prepare(module: Any, swaps: Mapping[str, Mapping[str, Array]]) -> dict[str, Array]:
    """Give a base module the inputs that these adapters need, in place; their defaults by name.

    Args:
        module: the base, with the head that is to be the default.
        swaps: each adapter's arrays by input name (``collect``), by the adapter's name.

    Raises:
        CheckpointError: two adapters don't fit one graph: heads of different shapes, a layer that
            one changes and another replaces, or one that is not linear.
    """
    import torch

    generator = torch.Generator().manual_seed(0)
    defaults: dict[str, Array] = {}
    factored: dict[str, tuple[int, int]] = {}
    replaced: dict[str, set[str]] = {}
    for adapter, arrays in swaps.items():
        for name, array in arrays.items():
            path, _, last = name.rpartition(".")
            if last == "lora_A":
                factored[path] = (array.shape[0], arrays[up_name(path)].shape[1])
            elif last != "lora_B":
                replaced.setdefault(path, set()).add(last)
                _same_shape(module, path, last, array, adapter)
    for path, (d_in, d_out) in factored.items():
        layer = _linear(module, path)
        if path in replaced:
            raise CheckpointError(
                f"one adapter changes {path} and another replaces it, so they share no graph",
                fix="Export them as two artifacts.",
            )
        if (layer.in_features, layer.out_features) != (d_in, d_out):
            raise CheckpointError(
                f"an adapter's factors on {path} are for a {d_out} x {d_in} weight, the base's is "
                f"{layer.out_features} x {layer.in_features}",
                fix="Give the base that it was trained on.",
            )
        down = torch.randn(d_in, _TRACED_RANK, generator=generator)
        up = torch.randn(_TRACED_RANK, d_out, generator=generator)
        _put(module, path, _branched(layer, down, up))
        defaults[down_name(path)] = np.zeros((d_in, 0), np.float32)
        defaults[up_name(path)] = np.zeros((0, d_out), np.float32)
    for path in replaced:
        layer = _linear(module, path)
        defaults[f"{path}.weight"] = np.ascontiguousarray(layer.weight.detach().numpy().T)
        if layer.bias is not None:
            defaults[f"{path}.bias"] = layer.bias.detach().numpy().copy()
        _put(module, path, _given(layer))
    return defaults


def make_inputs(file: Path, defaults: Mapping[str, Array]) -> None:
    """Turn the named initialisers of a graph into inputs with these defaults, in place.

    Raises:
        ExportError: the graph has no initialiser of such a name.
    """
    import onnx
    from onnx import helper, numpy_helper

    if not defaults:
        return
    model = onnx.load(str(file))
    graph = model.graph
    initializers = {tensor.name: tensor for tensor in graph.initializer}
    readers = [node for node in graph.node if set(node.input) & set(defaults)]
    # Shapes that were noted with the traced rank.
    stale = {value for node in readers for value in node.output}
    kept = [value for value in graph.value_info if value.name not in stale | set(defaults)]
    del graph.value_info[:]
    graph.value_info.extend(kept)
    for name, default in defaults.items():
        if name not in initializers:
            raise ExportError(
                f"the graph lost the adapters' input {name}",
                fix="Report this with the versions in use; --lowering unmerged works without.",
            )
        initializers[name].CopyFrom(numpy_helper.from_array(default, name))
        shape: list[int | str] = list(default.shape)
        if name.endswith((".lora_A", ".lora_B")):
            module, _, which = name.rpartition(".")
            shape[1 if which == "lora_A" else 0] = f"{module}.rank"
        graph.input.append(helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, shape))
    save(model, file)


def write_file(target: Path, parameters: Mapping[str, Array]) -> None:
    """Write an adapter file; the same parameters give the same bytes."""
    import onnxruntime

    target.parent.mkdir(exist_ok=True)
    form = onnxruntime.AdapterFormat()
    form.set_adapter_version(1)
    form.set_model_version(1)
    form.set_parameters(
        {
            name: onnxruntime.OrtValue.ortvalue_from_numpy(array)
            for name, array in sorted(parameters.items())
        }
    )
    form.export_adapter(str(target))


class AdapterFile(Mapping[str, Array]):
    """The parameters of an adapter file by the names of the graph's inputs, each read when asked
    for: ONNX Runtime maps the file."""

    def __init__(self, source: Path) -> None:
        import onnxruntime

        # Up to ONNX Runtime 1.30 the values lie in what this object holds, so it is kept.
        self._form = onnxruntime.AdapterFormat.read_adapter(str(source))
        self._values: dict[str, Any] = self._form.get_parameters()

    def __getitem__(self, name: str) -> Array:
        array: Array = self._values[name].numpy()
        return array

    def __iter__(self) -> Iterator[str]:
        return iter(self._values)

    def __len__(self) -> int:
        return len(self._values)


def read_file(source: Path) -> dict[str, Array]:
    """The parameters of an adapter file, by the names of the graph's inputs."""
    return dict(AdapterFile(source))


def check_names(names: Sequence[str]) -> None:
    """Refuse two adapters of one name, and the name that means no adapter.

    Raises:
        UsageError: naming it.
    """
    twice = next((name for name in names if names.count(name) > 1), None)
    if twice is not None:
        raise UsageError(
            f"two adapters are called {twice!r}, and a run chooses one by its name",
            fix="Rename a directory.",
        )
    if nouns.NO_ADAPTER in names:
        raise UsageError(
            f"an adapter is called {nouns.NO_ADAPTER!r}, which means the base alone",
            fix="Rename its directory.",
        )


def _same_shape(module: Any, path: str, last: str, array: Array, adapter: str) -> None:
    value = getattr(_linear(module, path), last, None)
    shape = tuple(reversed(array.shape))
    if value is None or tuple(value.shape) != shape:
        here = " x ".join(map(str, value.shape)) if value is not None else "missing"
        raise CheckpointError(
            f"the adapter {adapter} brings {path}.{last} of shape {' x '.join(map(str, shape))}, "
            f"and on this base it is {here}",
            fix="Adapters that share a base bring heads of one shape; export the others apart.",
        )


def _linear(module: Any, path: str) -> Any:
    import torch

    try:
        layer = module.get_submodule(path)
    except AttributeError:
        layer = None
    if not isinstance(layer, torch.nn.Linear):
        raise CheckpointError(
            f"an adapter changes {path}, which is no linear layer of this base, so it can't be "
            "swapped",
            fix="Export it merged or unmerged.",
        )
    return layer


def _put(module: Any, path: str, layer: Any) -> None:
    parent, _, name = path.rpartition(".")
    setattr(module.get_submodule(parent), name, layer)


def _branched(layer: Any, down: Any, up: Any) -> Any:
    """The same linear layer (its weights shared) with a branch of inputs."""
    import torch

    class Branched(torch.nn.Linear):
        def forward(self, x: Any) -> Any:
            own = torch.nn.functional.linear(x, self.weight, self.bias)
            return own + (x @ self.lora_A) @ self.lora_B

    made = Branched(layer.in_features, layer.out_features, layer.bias is not None, device="meta")
    made.weight, made.bias = layer.weight, layer.bias
    made.lora_A, made.lora_B = torch.nn.Parameter(down), torch.nn.Parameter(up)
    return made.eval()


def _given(layer: Any) -> Any:
    """A linear layer whose weights are inputs: stored as the graph reads them, [d_in, d_out]."""
    import torch

    class Given(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.weight = torch.nn.Parameter(layer.weight.detach().T.contiguous())
            self.bias = None if layer.bias is None else torch.nn.Parameter(layer.bias.detach())

        def forward(self, x: Any) -> Any:
            product = x @ self.weight
            return product if self.bias is None else product + self.bias

    return Given().eval()
