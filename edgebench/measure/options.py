"""What a run is asked for, and the protocol that follows from it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from edgebench.artifact import Artifact
from edgebench.errors import InputError, UsageError
from edgebench.measure.decoding import SCENARIOS, choose_scenario, decoding_of, effort
from edgebench.percentiles import min_samples
from edgebench.recording import (
    CooldownRule,
    EnergyRule,
    Protocol,
    Scenario,
    StopRule,
    WarmupRule,
)

if TYPE_CHECKING:
    from edgebench.device import Device, Placement

#: ONNX Runtime's names of the providers that a profile may ask for; PyTorch's are the same.
PROVIDERS = {
    "cpu": "CPUExecutionProvider",
    "cuda": "CUDAExecutionProvider",
    "tensorrt": "TensorrtExecutionProvider",
    "coreml": "CoreMLExecutionProvider",
    "xnnpack": "XnnpackExecutionProvider",
}


@dataclass(frozen=True)
class RunOptions:
    """What ``edgebench run`` may be asked for. Durations are seconds, per launch.

    Attributes:
        scenario: LoadGen's names: single-stream (one query after another), offline (batches); of
            decoders prefill, decode, generate. None: generate for decoders, else single-stream.
        batch: samples a call; 1 for single-stream.
        seq_len: tokens a sample; None takes what the artifacts were exported with.
        prompt_len: tokens of a decoder's prompt, or in its cache before a decode step; None
            likewise.
        new_tokens: tokens that a call of generate gives; None: 32.
        launches: worker processes; the interval of every absolute figure is taken over them.
        percentile: the highest percentile that the run must support; it sets the sample count.
            None: 99, but 90 for prefill and generate.
        min_count: counted calls an artifact over all launches; None follows from ``percentile``.
        precision: half-width of the median's interval within a launch, relative, that is enough.
        accuracy: "all" held-out examples, a number of them, or None to leave it out.
        reuse_accuracy: take the accuracy over all examples from an earlier recording of the same
            artifact on a device with the same fingerprint: it is a count, not a timing.
        energy: "auto" measures it where a meter of the profile sees the device; "on" makes energy
            windows in any case, for a meter whose trace is attached later; "off" makes none.
        energy_precision: half-width of the energy a call, relative, 95 %, that is enough.
        energy_max_duration_s: the energy rounds of a launch end by then.
        energy_window_s: length of an energy window; None takes what the meters need.
        adapter: of swappable artifacts, the adapter that is active: its name, "none" for the base
            alone, or None for the first.
    """

    scenario: Scenario | None = None
    batch: int | None = None
    seq_len: int | None = None
    prompt_len: int | None = None
    new_tokens: int | None = None
    launches: int = 5
    percentile: float | None = None
    min_count: int | None = None
    precision: float = 0.02
    min_duration_s: float = 1.0
    max_duration_s: float = 120.0
    calls_per_turn: int | None = None
    warmup_window: int | None = None
    warmup_tolerance: float = 0.05
    warmup_max_s: float | None = None
    accuracy: Literal["all"] | int | None = "all"
    reuse_accuracy: bool = True
    seed: int = 0
    threads: int | None = None
    deadline_s: float | None = None
    energy: Literal["auto", "on", "off"] = "auto"
    energy_precision: float = 0.05
    energy_max_duration_s: float = 120.0
    energy_window_s: float | None = None
    adapter: str | None = None

    def check(self) -> None:
        """Raise UsageError for a value that can't be."""
        if self.scenario is not None and self.scenario not in SCENARIOS:
            raise UsageError(
                f"unknown scenario {self.scenario!r}", fix=f"Choose from {', '.join(SCENARIOS)}."
            )
        if self.scenario in (None, "single-stream") and self.batch not in (None, 1):
            raise UsageError(
                f"single-stream has one sample a query, not {self.batch}",
                fix="Use --scenario offline for batches.",
            )
        positive: dict[str, float | None] = {
            "batch": self.batch,
            "seq-len": self.seq_len,
            "prompt-len": self.prompt_len,
            "new-tokens": self.new_tokens,
            "launches": self.launches,
            "min-count": self.min_count,
            "precision": self.precision,
            "max-duration": self.max_duration_s,
            "threads": self.threads,
            "deadline": self.deadline_s,
            "energy-precision": self.energy_precision,
            "energy-max-duration": self.energy_max_duration_s,
            "energy-window": self.energy_window_s,
        }
        for name, value in positive.items():
            if value is not None and not value > 0:
                raise UsageError(f"--{name} must be more than 0, not {value:g}")
        if self.energy not in ("auto", "on", "off"):
            raise UsageError(f"--energy must be auto, on or off, not {self.energy!r}")
        if self.percentile is not None and not 50 <= self.percentile < 100:
            raise UsageError(f"--percentile must be from 50 to below 100, not {self.percentile:g}")
        if isinstance(self.accuracy, int) and self.accuracy < 1:
            raise UsageError("--accuracy must be all, none, or a number of examples")


#: Samples of a batch in the offline scenario when none is asked for.
OFFLINE_BATCH = 8


def build_protocol(
    options: RunOptions,
    device: Device,
    placement: Placement,
    artifacts: Sequence[Artifact],
    energy: EnergyRule | None = None,
) -> Protocol:
    """The protocol of one session: everything decided before it begins.

    Raises:
        InputError: the artifacts can't be compared in one session, are shorter than asked for, or
            can't do what the scenario asks for.
    """
    options.check()
    scenario = choose_scenario(options, artifacts)
    decoding = decoding_of(options, scenario, artifacts)
    if decoding is not None:
        options = replace(options, seq_len=decoding.prompt_len)
    usual = effort(scenario)
    percentile = options.percentile or usual.percentile
    warmup_max_s = options.warmup_max_s or usual.warmup_max_s
    lengths = {artifact.manifest.statistics.seq_len for artifact in artifacts}
    if len(lengths) > 1 and options.seq_len is None:
        raise InputError(
            f"the artifacts were exported for different lengths ({_list(lengths)} tokens)",
            fix="Give one with --seq-len, or run them one by one.",
        )
    seq_len = options.seq_len or lengths.pop()
    for artifact in artifacts if decoding is None else ():
        if artifact.manifest.statistics.seq_len < seq_len:
            raise InputError(
                f"the artifact's inputs have {artifact.manifest.statistics.seq_len} tokens, "
                f"fewer than the {seq_len} asked for",
                where=str(artifact.path),
                fix=f"Export it again with --seq-len {seq_len}.",
            )
    total = options.min_count or max(min_samples(percentile / 100), 1)
    batch = options.batch or (OFFLINE_BATCH if scenario == "offline" else 1)
    limits = device.limits
    # A run that stops making progress is ended by its deadline; an honest one never comes near.
    deadline = options.deadline_s or (
        600.0 * len(artifacts)
        + options.launches * (options.max_duration_s + len(artifacts) * warmup_max_s + 60.0)
        + (limits.cooldown_max_s * options.launches if limits.cooldown_c is not None else 0.0)
        + (_longest_energy_s(energy, len(artifacts)) * options.launches if energy else 0.0)
    )
    return Protocol(
        scenario=scenario,
        batch=batch,
        seq_len=seq_len,
        launches=options.launches,
        # The first call of a turn settles the caches and is not counted.
        calls_per_turn=options.calls_per_turn or usual.calls_per_turn,
        seed=options.seed,
        stop=StopRule(
            min_count=math.ceil(total / options.launches),
            min_duration_s=options.min_duration_s,
            max_duration_s=options.max_duration_s,
            relative_half_width=options.precision,
        ),
        warmup=WarmupRule(
            window=options.warmup_window or usual.warmup_window,
            tolerance=options.warmup_tolerance,
            max_s=warmup_max_s,
        ),
        deadline_s=deadline,
        accuracy=options.accuracy,
        input_source="; ".join(sorted({a.manifest.data.inputs_source for a in artifacts})),
        runtime=_runtime(device, placement, artifacts),
        memory_limit_bytes=limits.memory_mb * 10**6 if limits.memory_mb else None,
        cooldown=(
            CooldownRule(below_c=limits.cooldown_c, max_s=limits.cooldown_max_s)
            if limits.cooldown_c is not None
            else None
        ),
        energy=energy,
        percentiles=[p for p in (50.0, 90.0, 95.0, 99.0, 99.9) if p <= percentile],
        decoding=decoding,
    )


def _longest_energy_s(rule: EnergyRule, artifacts: int) -> float:
    """Energy rounds end at ``max_duration_s``, but always finish the round that was begun."""
    one = (artifacts + 2) * (rule.window_s + rule.idle_s + rule.settle_s)
    return max(rule.max_duration_s, rule.min_rounds * one) + one


def _runtime(device: Device, placement: Placement, artifacts: Sequence[Artifact]) -> dict[str, Any]:
    spec = device.runtime
    if spec.kind == "torch" and any(a.manifest.decoder is not None for a in artifacts):
        raise InputError(
            f"decoders are measured in ONNX Runtime, and {device.id} runs PyTorch",
            where=device.id,
            fix="Choose a device of the runtime onnxruntime.",
        )
    form = "torch" if spec.kind == "torch" else "onnx"
    for artifact in artifacts:
        if artifact.manifest.format != form:
            raise InputError(
                f"the artifact's format is {artifact.manifest.format}, and the runtime of "
                f"{device.id} ({spec.kind}) takes {form}",
                where=str(artifact.path),
                fix=f"Export it with --format {form}, or choose a device of the other runtime.",
            )
    placed = {
        "threads": placement.threads,
        "cpus": list(placement.cpus) if placement.cpus is not None else None,
        "options": dict(spec.options),
    }
    if spec.kind == "torch":
        return {"kind": spec.kind, "provider": spec.provider, "compile": spec.compile, **placed}
    return {
        "kind": spec.kind,
        "provider": PROVIDERS[spec.provider],
        "allow_spinning": spec.allow_spinning,
        **placed,
    }


def _list(values: set[int]) -> str:
    return ", ".join(str(value) for value in sorted(values))
