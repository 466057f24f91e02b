"""A check as people read it on a terminal."""

from __future__ import annotations

from edgebench.gate.outcome import WORDS, Finding, Result
from edgebench.gate.sequential import Decision

_WORDS = {
    Decision.PASS: "pass",
    Decision.REGRESSION: "REGRESSION",
    Decision.UNDECIDED: "undecided",
}


def render(result: Result) -> str:
    """Lines, without a last newline."""
    lines = []
    if result.broken:
        lines.append(f"broken environment on {result.device}: nothing is said about the code")
        lines += [f"  {why}" for why in result.broken]
        return "\n".join([*lines, *_closing(result)])
    rows = [_row(finding, result.mode) for finding in result.findings]
    widths = [max((len(row[i]) for row in rows), default=0) for i in range(3)]
    for row in rows:
        head = "  ".join(cell.ljust(width) for cell, width in zip(row[:3], widths, strict=True))
        lines.append(f" {head}  {row[3]}".rstrip())
    return "\n".join([*lines, *_closing(result)])


def _row(finding: Finding, mode: str) -> tuple[str, str, str, str]:
    verdict = _WORDS[finding.decision].ljust(10)
    more = []
    if finding.blocks and mode == "interleaved":
        more.append(f"after {finding.blocks} blocks, {finding.seconds:.0f} s")
    if finding.left_out:
        more.append(f"{finding.left_out} left out")
    if finding.note:
        more.append(finding.note)
    return finding.benchmark, finding.label, finding.text(), f"{verdict}  {'; '.join(more)}"


def _closing(result: Result) -> list[str]:
    lines = [
        f"{WORDS[result.status]}: limit {100 * result.max_regression:g} %, false alarms at most "
        f"{100 * result.alpha:g} % of all checks, {result.seconds:.0f} s on {result.device}"
    ]
    if result.self_test:
        lines.append(f"this device's {result.self_test.text}")
    return [*lines, *(f"note {note}" for note in result.notes)]
