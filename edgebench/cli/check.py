"""``edgebench check``: the regression gate."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from edgebench.cli.options import DeviceName, Json, OfflineBatch, Results, SeqLen, Threads, Wait

if TYPE_CHECKING:
    from edgebench.cli.output import Update
    from edgebench.gate.options import CheckOptions


def register(app: typer.Typer) -> None:
    app.command("check")(check)


def check(
    device: DeviceName = "local",
    baseline: Annotated[
        list[Path] | None,
        typer.Option(help="Artifacts before the change, or a directory of them; repeatable."),
    ] = None,
    candidate: Annotated[
        list[Path] | None,
        typer.Option(help="Artifacts after it, likewise; paired with the baselines by name."),
    ] = None,
    history: Annotated[
        Path | None,
        typer.Option(help="A results directory with earlier recordings, instead of --baseline."),
    ] = None,
    self_test: Annotated[
        bool,
        typer.Option(
            "--self-test",
            help="Check a candidate (or the canary) against itself, to learn this device's "
            "false-alarm rate and the smallest slowdown that it can find.",
        ),
    ] = False,
    max_regression: Annotated[
        str, typer.Option(help="The slowdown that must not pass; half of it never fails.")
    ] = "3%",
    metric: Annotated[
        list[str] | None,
        typer.Option(
            help="p50, p90, p95, p99, throughput, energy, memory, size or accuracy; repeat it for "
            "several. Default: p50."
        ),
    ] = None,
    max_accuracy_drop: Annotated[
        str, typer.Option(help="The same for accuracy, as a share of the examples.")
    ] = "1%",
    alpha: Annotated[str, typer.Option(help="Chance of any false regression in this call.")] = "1%",
    time_limit: Annotated[
        float, typer.Option(help="Seconds after which what is undecided stays so.")
    ] = 600.0,
    block_time: Annotated[
        float, typer.Option(help="Timed seconds of a block (a fresh worker with both sides).")
    ] = 1.0,
    max_blocks: Annotated[int, typer.Option(help="Blocks of a benchmark, at most.")] = 60,
    max_foreign_load: Annotated[
        str,
        typer.Option(
            help="Share of the measured CPUs that others may use in a block before it is left out."
        ),
    ] = "5%",
    max_canary_shift: Annotated[
        str,
        typer.Option(
            help="How far the canary, a small fixed network timed beside both sides, may be from "
            "its median in a block, and from the self-test's in a check."
        ),
    ] = "20%",
    scenario: Annotated[
        str | None,
        typer.Option(
            help="single-stream or offline; of decoders prefill, decode or generate. Default: "
            "single-stream, and generate for decoders."
        ),
    ] = None,
    batch: OfflineBatch = None,
    seq_len: SeqLen = None,
    prompt_len: Annotated[
        int | None, typer.Option(help="Tokens of a decoder's prompt (default: as exported).")
    ] = None,
    new_tokens: Annotated[
        int | None, typer.Option(help="Tokens that a call of generate gives.")
    ] = None,
    threads: Threads = None,
    seed: Annotated[
        int | None, typer.Option(help="Seed of every random order (default: drawn).")
    ] = None,
    junit: Annotated[Path | None, typer.Option(help="Write JUnit XML to this file.")] = None,
    markdown: Annotated[
        Path | None, typer.Option(help="Write a Markdown summary to this file.")
    ] = None,
    results: Results = None,
    wait: Wait = True,
    as_json: Json = False,
) -> None:
    """Is the candidate slower than the baseline by more than is allowed?

    Exit codes of this command: 0 pass, 1 regression, 2 undecided, 3 broken environment. What keeps
    it from checking at all (a missing artifact, an unreachable device) has the usual ones.
    """
    import edgebench.api
    from edgebench.cli.output import progress
    from edgebench.cli.run import parse_share
    from edgebench.gate.environment import Limits
    from edgebench.gate.options import CheckOptions

    options = CheckOptions(
        max_regression=parse_share(max_regression, "--max-regression"),
        max_accuracy_drop=parse_share(max_accuracy_drop, "--max-accuracy-drop"),
        metrics=tuple(metric or ()),
        alpha=parse_share(alpha, "--alpha"),
        time_limit_s=time_limit,
        block_s=block_time,
        max_blocks=max_blocks,
        scenario=scenario,
        batch=batch,
        seq_len=seq_len,
        prompt_len=prompt_len,
        new_tokens=new_tokens,
        threads=threads,
        seed=seed,
        limits=Limits(
            foreign_load=parse_load(max_foreign_load, "--max-foreign-load"),
            canary=parse_load(max_canary_shift, "--max-canary-shift"),
        ),
    )
    if self_test:
        _self_test(candidate or [], baseline, history, device, options, results, wait, as_json)
        return
    _require_writable(junit, markdown)
    with progress() as update:
        found = edgebench.api.check(
            candidate or [],
            baseline or [],
            history=history,
            device=device,
            options=options,
            results=results,
            wait=wait,
            report=CheckProgress(update),
        )
    from edgebench.cli.output import Answer, console, say_json
    from edgebench.gate.junit import to_junit
    from edgebench.gate.markdown import to_markdown
    from edgebench.gate.show import render

    for path, text in ((junit, to_junit(found)), (markdown, to_markdown(found))):
        if path is not None:
            _write(path, text)
    if as_json:
        say_json(found.document())
    else:
        console().print(render(found), markup=False)
    raise Answer(int(found.status))


def _self_test(
    candidates: list[Path],
    baseline: list[Path] | None,
    history: Path | None,
    device: str,
    options: CheckOptions,
    results: Path | None,
    wait: bool,
    as_json: bool,
) -> None:
    import edgebench.api
    from edgebench.cli.output import console, progress, say_json
    from edgebench.errors import UsageError
    from edgebench.gate.stored import path_of

    if baseline or history or len(candidates) > 1:
        raise UsageError(
            "--self-test checks one artifact against itself",
            fix="Give it one --candidate, or none for the canary.",
        )
    with progress() as update:
        found = edgebench.api.self_test(
            candidates[0] if candidates else None,
            device=device,
            options=options,
            results=results,
            wait=wait,
            report=CheckProgress(update),
        )
    if as_json:
        say_json(found.document())
        return
    output = console()
    output.print(f"{found.artifact} on {found.device}: {found.text}", markup=False)
    output.print(
        f"spread of a block {100 * found.spread:.2g} %, {found.block_s:.2g} s a block", markup=False
    )
    stored = path_of(edgebench.api.results_dir(results), found.fingerprint_digest)
    output.print(f"stored: {stored}", markup=False)


class CheckProgress:
    """Events of a check's sessions as one line: which benchmark, what its blocks say so far."""

    def __init__(self, update: Update) -> None:
        from edgebench.cli.progress import FleetProgress

        self.said = ""
        self.parts: Callable[[dict[str, Any]], None] = FleetProgress(self._say)
        self.update = update

    def _say(self, text: str, share: float | None = None, /) -> None:
        self.update(f"{self.said}{text}", share)

    def __call__(self, event: dict[str, Any]) -> None:
        if event["event"] != "block":
            self.parts(event)
            return
        benchmark = event["benchmark"]
        parts = [
            f"{name} {evidence.ratio:.3f}× {evidence.decision}"
            for name, evidence in benchmark.evidence.items()
        ]
        self.said = (
            f"{benchmark.pair.name} · {len(benchmark.blocks)} blocks · {', '.join(parts)} · "
        )
        self.update(self.said.rstrip(" ·"))


def parse_load(text: str, option: str) -> float:
    """A share from 0 to 100 %, both included."""
    from edgebench.cli.run import parse_share

    if text in ("100%", "1", "1.0"):
        return 1.0
    return 0.0 if text in ("0", "0%") else parse_share(text, option)


def _require_writable(*paths: Path | None) -> None:
    """Find out before the measurement that its report can't be written."""
    from edgebench.errors import StorageError

    for path in paths:
        if path is not None and not path.parent.is_dir():
            raise StorageError(
                "the report's directory does not exist", where=str(path), fix="Make it first."
            )


def _write(path: Path, text: str) -> None:
    from edgebench.results.atomic import replace_files

    replace_files(path.parent, {path.name: text.encode()})
