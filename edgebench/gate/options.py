"""What a check may be asked for."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from edgebench.errors import UsageError
from edgebench.gate.environment import Limits
from edgebench.gate.metrics import Metric, chosen
from edgebench.gate.sequential import Rule

if TYPE_CHECKING:
    from edgebench.measure import RunOptions

#: Counted calls are the turn less its first: short turns alternate faster than most noise.
CALLS_PER_TURN = 4
#: Rounds of a block, at least: their median is the block's ratio.
LEAST_ROUNDS = 9
#: A block ends after so many times its asked length, whatever is missing.
_PATIENCE = 20.0


@dataclass(frozen=True)
class CheckOptions:
    """What ``edgebench check`` may be asked for.

    Attributes:
        max_regression: the slow-down that must not pass (share of the baseline's cost).
        max_accuracy_drop: the same for accuracy, in shares of the examples.
        metrics: names from ``edgebench.gate.metrics.METRICS``.
        alpha: chance of any false regression in the call. miss: of one that passes.
        time_limit_s: of the whole call.
        block_s: timed seconds of a block, at least.
        max_blocks: of one benchmark.
        scenario, batch, seq_len, prompt_len, new_tokens, threads: as of a run.
        seed: of every random order; None draws one, which the recordings name.
    """

    max_regression: float = 0.03
    max_accuracy_drop: float = 0.01
    metrics: tuple[str, ...] = ()
    alpha: float = 0.01
    miss: float = 0.01
    time_limit_s: float = 600.0
    block_s: float = 1.0
    max_blocks: int = 60
    scenario: str | None = None
    batch: int | None = None
    seq_len: int | None = None
    prompt_len: int | None = None
    new_tokens: int | None = None
    threads: int | None = None
    seed: int | None = None
    limits: Limits = field(default_factory=Limits)

    def check(self) -> tuple[Metric, ...]:
        """The metrics asked for.

        Raises:
            UsageError: a value that can't be.
        """
        for name, share in (
            ("max-regression", self.max_regression),
            ("max-accuracy-drop", self.max_accuracy_drop),
            ("alpha", self.alpha),
            ("miss", self.miss),
        ):
            if not 0 < share < 1:
                raise UsageError(f"--{name} must be a share between 0 and 100 %, not {share:g}")
        for name, value in (
            ("time-limit", self.time_limit_s),
            ("block-time", self.block_s),
            ("max-blocks", self.max_blocks),
        ):
            if not value > 0:
                raise UsageError(f"--{name} must be more than 0, not {value:g}")
        return chosen(self.metrics)

    def rule(self, hypotheses: int) -> Rule:
        return Rule(self.max_regression, self.alpha, self.miss, hypotheses, self.max_blocks)

    def session(
        self,
        blocks: int,
        seed: int,
        metrics: tuple[Metric, ...],
        *,
        accuracy: bool,
        block_s: float | None = None,
    ) -> RunOptions:
        """The options of a session of so many blocks, of ``block_s`` (default: as asked)."""
        from edgebench.measure import RunOptions

        calls = max(LEAST_ROUNDS * (CALLS_PER_TURN - 1), *(metric.calls for metric in metrics))
        return RunOptions(
            scenario=self.scenario,  # type: ignore[arg-type]  # RunOptions.check refuses others
            batch=self.batch,
            seq_len=self.seq_len,
            prompt_len=self.prompt_len,
            new_tokens=self.new_tokens,
            launches=blocks,
            percentile=50.0,
            min_count=calls * blocks,
            precision=0.99,
            min_duration_s=block_s or self.block_s,
            max_duration_s=_PATIENCE * (block_s or self.block_s),
            calls_per_turn=CALLS_PER_TURN,
            accuracy="all" if accuracy else None,
            # Which examples each side got right is not in a count that is taken over.
            reuse_accuracy=False,
            seed=seed,
            threads=self.threads,
            energy="auto" if any(m.name == "energy" for m in metrics) else "off",
            energy_precision=0.99,
            energy_max_duration_s=_PATIENCE * self.block_s,
        )
