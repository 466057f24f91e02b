"""Changing a decoder's adapter between two calls: its factors are inputs of the graph.

This file is sent to the device beside the agent, so it runs on Python 3.8 with numpy and
onnxruntime, and imports nothing of ours but what travels along.

ONNX Runtime's own way, run options with an active adapter, is not open to a decoder: a call with
bound inputs and outputs ignores them (seen in 1.31; its C API warns that they "won't have an
effect"), and only bound outputs let the cache be written in place. So each adapter file is read
once, and making an adapter active binds its tensors as the graph's inputs. Inputs that it leaves
alone, and all of them without an adapter, get a rank of 0, as their default in the graph has.
"""

from __future__ import annotations

import statistics
import time
from typing import Any, Dict, List, Mapping, Optional

from edgebench.runtimes.decoder_graph import DecoderError

clock = time.perf_counter_ns

#: How often a swap and a load of an adapter are timed in a launch.
SWAPS, LOADS = 200, 50

Values = Dict[str, Any]
"""Tensors in the memory of the device that computes, by the graph's input."""


class Adapters:
    """The adapters of one session, all loaded; one of them or none is active in its calls."""

    def __init__(
        self,
        session: Any,
        files: Mapping[str, str],
        active: Optional[str] = None,
        device: str = "cpu",
    ) -> None:
        """Load every file.

        Args:
            files: adapter files by name; none where the decoder is not swappable.
            active: one of them; None: the base alone.

        Raises:
            DecoderError: this ONNX Runtime reads no adapter files, or a file is for another graph.
        """
        import onnxruntime

        self.session, self.files, self.active, self.device = session, files, active, device
        self.forms: List[Any] = []
        self.empty: Values = {}
        self.loaded: Dict[str, Values] = {}
        if not files:
            return
        if not hasattr(onnxruntime, "AdapterFormat"):
            raise DecoderError(
                f"this device's ONNX Runtime {onnxruntime.__version__} can't swap adapters: it has "
                "no AdapterFormat, which came with 1.20"
            )
        self.empty = {item.name: self._empty(item) for item in inputs(session)}
        for name, file in files.items():
            given = self.load(file)
            unknown = sorted(set(given) - set(self.empty))
            if unknown:
                raise DecoderError(f"the adapter {name} is for an input {unknown[0]!r}, not there")
            self.loaded[name] = given

    def load(self, file: str) -> Values:
        """An adapter file's tensors: on the CPU as the mapped file has them, else copied there."""
        import onnxruntime

        form = onnxruntime.AdapterFormat.read_adapter(file)
        values: Values = form.get_parameters()
        if self.device == "cpu":
            # Up to ONNX Runtime 1.30 the values lie in what the form holds.
            self.forms.append(form)
            return values
        make = onnxruntime.OrtValue.ortvalue_from_numpy
        return {name: make(value.numpy(), self.device, 0) for name, value in values.items()}

    def bind(self, binding: Any, name: Optional[str]) -> None:
        """Make an adapter, or None, active in a binding's next calls."""
        given = self.loaded[name] if name is not None else {}
        for each, empty in self.empty.items():
            binding.bind_ortvalue_input(each, given.get(each, empty))

    def bind_active(self, binding: Any) -> None:
        """Begin with the active adapter; a new binding has none."""
        if self.active is not None:
            self.bind(binding, self.active)

    def times(self) -> Dict[str, float]:
        """Medians (ns): making a loaded adapter active, and loading one from its file, which the
        system has cached; round the adapters."""
        binding = self.session.io_binding()
        names, files = list(self.loaded), list(self.files.values())
        self.bind(binding, names[-1])
        swaps, loads = [], []
        for turn in range(SWAPS):
            name = names[turn % len(names)]
            begin = clock()
            self.bind(binding, name)
            swaps.append(clock() - begin)
        kept = len(self.forms)
        for turn in range(LOADS):
            file = files[turn % len(files)]
            begin = clock()
            self.load(file)
            loads.append(clock() - begin)
            del self.forms[kept:]
        return {
            "adapter_swap_ns": float(statistics.median(swaps)),
            "adapter_load_ns": float(statistics.median(loads)),
        }

    def _empty(self, item: Any) -> Any:
        import numpy
        import onnxruntime

        shape = [size if isinstance(size, int) else 0 for size in item.shape]
        array = numpy.zeros(shape, numpy.float32)
        return onnxruntime.OrtValue.ortvalue_from_numpy(array, self.device, 0)


def inputs(session: Any) -> List[Any]:
    """The graph's inputs that an adapter may give: those with a default, of a free rank.

    Raises:
        DecoderError: one has no free axis, so nothing says what it is without an adapter.
    """
    found = list(session.get_overridable_initializers())
    for item in found:
        if item.type != "tensor(float)" or all(isinstance(size, int) for size in item.shape):
            raise DecoderError(
                f"the graph's input {item.name!r} has a default and is no factor of an adapter"
            )
    return found
