"""Comparing a decoder with PyTorch one layer at a time, so that neither is ever whole in memory.

Every layer of the stored graph is a model of its own (``writer.Decoder`` keeps the parts), and
every layer of the checkpoint a transformers module of its own. Prompts go through both, and what
one layer gives the next one takes. A swappable graph's forms (the base alone, each adapter) go
through each layer one after another, so that it is read once. The graph's stream is cut in a
prefill and two steps of one token through the key-value cache, PyTorch's is one pass over the whole
prompt: where the logits agree, layers, cache and assembly do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from onnx import TensorProto

from edgebench.errors import ExportError
from edgebench.export.decoder import network
from edgebench.export.decoder.architecture import HEAD, NORM, TABLE, Architecture
from edgebench.export.decoder.network import IDS, KEEP, LOGITS, MASK, Value, hidden, past, present
from edgebench.export.decoder.running import Ids
from edgebench.export.decoder.source import Source
from edgebench.export.decoder.storage import Part
from edgebench.export.decoder.writer import Decoder
from edgebench.export.plan import Plan
from edgebench.export.request import Progress
from edgebench.export.session import not_finite, open_session, runtime_errors

Values = NDArray[np.float32]

#: Tokens at the end of a prompt that the graph is given one by one.
STEPS = 2

_PIECE = ".piece.onnx"


@dataclass(frozen=True)
class Reference:
    """PyTorch's logits [batch, sequence, vocab] of each form for prompts without padding
    [batch, sequence]."""

    ids: Ids
    logits: list[Values]


def reference(plan: Plan, sources: Sequence[Source], ids: Ids, step: Progress) -> Reference:
    """PyTorch's logits, each layer built, run and dropped; an adapter as a branch beside it.

    Args:
        sources: one base, with or without an adapter; where there are several, these differ in
            branches alone.

    Raises:
        CheckpointError: a tensor holds NaN or infinity.
        ExportError: the logits do.
    """
    import torch
    import transformers

    assert plan.decoder is not None
    a, source = plan.decoder.architecture, sources[0]
    auto_config: Any = transformers.AutoConfig
    config = auto_config.from_pretrained(plan.base.path, local_files_only=True)
    auto_model: Any = transformers.AutoModelForCausalLM
    with torch.device("meta"):
        skeleton = auto_model.from_config(
            config, attn_implementation="eager", dtype=torch.float32
        ).eval()
    rotary = type(skeleton.model.rotary_emb)(config)
    length = ids.shape[1]
    positions = torch.arange(length)[None]
    causal = torch.full((length, length), torch.finfo(torch.float32).min).triu(1)[None, None]
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as for ``edgebench.export.module.reference``
    try:
        with torch.inference_mode():
            table = torch.from_numpy(source.plain(f"{TABLE}.weight"))
            states = [table[torch.from_numpy(ids)]] * len(sources)
            if not a.tied:
                del table
            turned = rotary(states[0], positions)
            for index in range(a.layers):
                step(f"running layer {index + 1} of {a.layers} in PyTorch", index / a.layers)
                layer = skeleton.model.layers[index]
                _fill(layer, a, source, index)
                for i, own in enumerate(sources):
                    with _branches(layer, a, own, index):
                        made = layer(
                            states[i],
                            attention_mask=causal,
                            position_ids=positions,
                            position_embeddings=turned,
                        )
                    states[i] = made[0] if isinstance(made, tuple) else made
                skeleton.model.layers[index] = torch.nn.Identity()
                del layer
            norm = skeleton.model.norm
            norm.load_state_dict(
                {"weight": torch.from_numpy(source.plain(f"{NORM}.weight"))}, assign=True
            )
            head = table if a.tied else torch.from_numpy(source.plain(f"{HEAD}.weight"))
            found = []
            for x, own in zip((norm(state) for state in states), sources, strict=True):
                logits = x @ head.T
                branch = own.branch(a.head)
                if branch is not None:
                    down, up = torch.from_numpy(branch.down), torch.from_numpy(branch.up)
                    logits = logits + x @ down @ up
                found.append(logits)
    finally:
        torch.set_num_threads(threads)
    if not all(bool(logits.isfinite().all()) for logits in found):
        raise ExportError(
            "PyTorch's own output holds NaN or infinity",
            fix="The checkpoint can't be used; train it again or use an earlier one.",
        )
    return Reference(ids, [logits.numpy() for logits in found])


def _fill(layer: Any, a: Architecture, source: Source, index: int) -> None:
    """Give a layer its weights."""
    import torch

    names = a.layer(index)
    prefix = f"model.layers.{index}."
    parameters = [f"{names.attention_norm}.weight", f"{names.feed_forward_norm}.weight"]
    parameters += [f"{matrix.name}.weight" for matrix in names.matrices]
    parameters += [f"{matrix.name}.bias" for matrix in names.matrices if matrix.biased]
    state = {n.removeprefix(prefix): torch.from_numpy(source.plain(n)) for n in parameters}
    layer.load_state_dict(state, assign=True)


@contextlib.contextmanager
def _branches(layer: Any, a: Architecture, source: Source, index: int) -> Iterator[None]:
    """Hang an adapter's branches beside a layer's matrices for a while."""
    import torch

    prefix = f"model.layers.{index}."
    hooks = []
    for matrix in a.layer(index).matrices:
        branch = source.branch(matrix)
        if branch is not None:
            down, up = torch.from_numpy(branch.down), torch.from_numpy(branch.up)

            def joined(_module: Any, given: Any, made: Any, down: Any = down, up: Any = up) -> Any:
                return made + given[0] @ down @ up

            changed = layer.get_submodule(matrix.name.removeprefix(prefix))
            hooks.append(changed.register_forward_hook(joined))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def run(
    written: Decoder,
    directory: Path,
    ids: Ids,
    what: str,
    session_options: Mapping[str, str],
    adapters: Sequence[Mapping[str, Values]],
    step: Progress,
) -> list[Values]:
    """The stored graph's logits [batch, sequence, vocab] of each form, part by part.

    Args:
        adapters: by form, what the inputs of a swappable adapter are given.

    Raises:
        ExportError: the runtime refuses a part, fails on it, or gives NaN or infinity.
    """
    a = written.architecture
    batch, length = ids.shape
    cut = max(length - STEPS, 1)
    # (first position, end): the prefill, then the steps.
    spans = [(0, cut), *((i, i + 1) for i in range(cut, length))]
    masks = [np.ones((batch, end), np.int64) for _, end in spans]

    def session(parts: Sequence[Part], given: list[Value], made: list[Value]) -> Any:
        file = directory / _PIECE
        try:
            piece = network.model(parts, given, made)
            file.write_bytes(piece.SerializeToString())
            with runtime_errors(what):
                return open_session(str(file), session_options)
        finally:
            file.unlink(missing_ok=True)

    def state(index: int) -> Value:
        return hidden(index), TensorProto.FLOAT, ("batch", "sequence", a.hidden)

    ids_in: Value = (IDS, TensorProto.INT64, ("batch", "sequence"))
    mask_in: Value = (MASK, TensorProto.INT64, ("batch", "total_sequence"))
    embed = session([written.embed], [ids_in], [state(0)])
    with runtime_errors(what):
        embedded = [embed.run(None, {IDS: ids[:, start:end]})[0] for start, end in spans]
    del embed
    states = [list(embedded) for _ in adapters]
    for index, part in enumerate(written.layers):
        step(f"running layer {index + 1} of {a.layers}", index / a.layers)
        layer = session(
            [written.shared, part],
            [state(index), mask_in, *network.caches(a, index, past)],
            [state(index + 1), *network.caches(a, index, present)],
        )
        shape = (batch, a.kv_heads, length, a.head_dim)
        for x, adapter in zip(states, adapters, strict=True):
            caches = {name: np.zeros(shape, np.float32) for name in past(index)}
            given_by = _factors(layer, adapter)
            for position, mask in enumerate(masks):
                feed = {hidden(index): x[position], MASK: mask, **caches, **given_by}
                with runtime_errors(what):
                    x[position], *after = layer.run(None, feed)
                caches = dict(zip(past(index), after, strict=True))
        del layer
    given: list[Value] = [state(a.layers), (KEEP, TensorProto.INT64, (1,))]
    parts = [written.head]
    if a.tied:  # the head multiplies by the table
        parts, given = [written.embed, written.head], [ids_in, *given]
    logits_out: Value = (LOGITS, TensorProto.FLOAT, ("batch", "kept", a.vocab_size))
    head = session(parts, given, [logits_out])
    takes = {value.name for value in head.get_inputs()}
    found: list[Values] = []
    for x, adapter in zip(states, adapters, strict=True):
        rows = []
        for last in x:
            feed = {hidden(a.layers): last, KEEP: np.array([last.shape[1]]), IDS: ids[:1, :1]}
            feed = {n: v for n, v in feed.items() if n in takes} | _factors(head, adapter)
            with runtime_errors(what):
                rows += head.run(None, feed)
        found.append(np.concatenate(rows, axis=1))
    if not all(np.isfinite(logits).all() for logits in found):
        raise not_finite(what)
    return found


def _factors(session: Any, adapter: Mapping[str, Values]) -> dict[str, Values]:
    """What an adapter gives the inputs of a part of the graph."""
    names = (value.name for value in session.get_overridable_initializers())
    return {name: adapter[name] for name in names if name in adapter}
