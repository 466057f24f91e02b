"""Scenarios and what they ask of artifacts: encoders answer samples, decoders generate tokens."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, get_args

from edgebench.artifact import Artifact
from edgebench.errors import InputError, UsageError
from edgebench.recording import Decoding, Scenario

if TYPE_CHECKING:
    from edgebench.measure.options import RunOptions

SCENARIOS: tuple[str, ...] = get_args(Scenario)
#: Those of decoders; the others are LoadGen's, for models that answer a sample with one call.
DECODER_SCENARIOS: tuple[str, ...] = ("prefill", "decode", "generate")

#: Tokens that a call generates when no number is asked for.
NEW_TOKENS = 32


@dataclass(frozen=True)
class Effort:
    """How a scenario is measured unless told otherwise.

    A call that generates lasts as long as dozens of a classifier's: its run asks for p90, which
    needs 64 calls, and has short turns and warm-up windows.
    """

    percentile: float
    calls_per_turn: int
    warmup_window: int
    warmup_max_s: float


_CALLS = Effort(percentile=99.0, calls_per_turn=8, warmup_window=6, warmup_max_s=20.0)
EFFORTS: dict[str, Effort] = {
    "prefill": Effort(percentile=90.0, calls_per_turn=4, warmup_window=3, warmup_max_s=60.0),
    "generate": Effort(percentile=90.0, calls_per_turn=3, warmup_window=2, warmup_max_s=60.0),
}


def effort(scenario: str) -> Effort:
    """The defaults of a scenario."""
    return EFFORTS.get(scenario, _CALLS)


def choose_scenario(options: RunOptions, artifacts: Sequence[Artifact]) -> Scenario:
    """The scenario asked for, if it fits; else ``generate`` for decoders, else ``single-stream``.

    Raises:
        InputError: an artifact can't do what is asked for.
        UsageError: an option belongs to other scenarios.
    """
    decoders = [artifact for artifact in artifacts if artifact.manifest.decoder is not None]
    scenario = options.scenario or ("generate" if decoders else "single-stream")
    wanted = scenario in DECODER_SCENARIOS
    for artifact in artifacts:
        if wanted and artifact.manifest.decoder is None:
            raise InputError(
                f"the scenario {scenario} is of decoders, and this artifact generates no tokens "
                f"(its task is {artifact.manifest.task})",
                where=str(artifact.path),
                fix="Measure it with --scenario single-stream or offline, apart from decoders.",
            )
        if not wanted and artifact.manifest.decoder is not None:
            raise InputError(
                f"the scenario {scenario} is not one of decoders, and this artifact is a decoder",
                where=str(artifact.path),
                fix=f"Measure it with --scenario {', '.join(DECODER_SCENARIOS[:-1])} or "
                f"{DECODER_SCENARIOS[-1]}.",
            )
    _refuse_options(options, scenario)
    return scenario


def _refuse_options(options: RunOptions, scenario: str) -> None:
    if scenario not in DECODER_SCENARIOS:
        if options.prompt_len is not None:
            raise UsageError(f"--prompt-len is of decoders, not of {scenario}; see --seq-len")
    elif options.batch not in (None, 1):
        raise UsageError(
            f"{scenario} has one prompt a call, not {options.batch}", fix="Leave out --batch."
        )
    elif options.seq_len is not None:
        raise UsageError(f"--seq-len is not of {scenario}; the prompt's length is --prompt-len")
    if options.new_tokens is None:
        return
    if scenario != "generate":
        raise UsageError(f"--new-tokens is of the scenario generate, not of {scenario}")
    if options.new_tokens < 2:
        raise UsageError(
            f"generate gives two tokens at least, not {options.new_tokens}",
            fix="For the first token alone use --scenario prefill.",
        )


def decoding_of(
    options: RunOptions, scenario: Scenario, artifacts: Sequence[Artifact]
) -> Decoding | None:
    """What a call of a decoder does; None where the scenario is not of decoders.

    Raises:
        InputError: the prompt and what follows don't fit a decoder's positions, or it has not
            so many real tokens.
    """
    if scenario not in DECODER_SCENARIOS:
        return None
    shortest = min(artifact.manifest.statistics.seq_len for artifact in artifacts)
    prompt_len = options.prompt_len or shortest
    new = (options.new_tokens or NEW_TOKENS) if scenario == "generate" else 1
    for artifact in artifacts:
        decoder, data = artifact.manifest.decoder, artifact.manifest.data
        assert decoder is not None
        if prompt_len + new > decoder.max_positions:
            raise InputError(
                f"{_tokens(prompt_len)} and {new} new make {prompt_len + new} positions, the "
                f"decoder has {decoder.max_positions}",
                where=str(artifact.path),
                fix=f"Give --prompt-len {max(1, decoder.max_positions - new)} at most"
                + (", or fewer --new-tokens." if scenario == "generate" else "."),
            )
        there = artifact.manifest.statistics.seq_len * data.inputs_n
        if prompt_len > there:
            raise InputError(
                f"the artifact's inputs have {there} tokens, fewer than the {prompt_len} asked for",
                where=str(artifact.path),
                fix=f"Export it again with --seq-len {prompt_len}.",
            )
    return Decoding.model_validate(
        {"scenario": scenario, "prompt_len": prompt_len, "new_tokens": new}
    )


def _tokens(count: int) -> str:
    return "a prompt of 1 token" if count == 1 else f"a prompt of {count} tokens"
