"""A check as Markdown, for a pull request's comment or a job's summary."""

from __future__ import annotations

from edgebench.gate.outcome import WORDS, Finding, Result, Status
from edgebench.gate.sequential import Decision

_MARKS = {
    Decision.PASS: "✅ pass",
    Decision.REGRESSION: "❌ regression",
    Decision.UNDECIDED: "❔ undecided",
}
_HEADS = {
    Status.PASS: "✅",
    Status.REGRESSION: "❌",
    Status.UNDECIDED: "❔",
    Status.BROKEN: "🔧",
}


def to_markdown(result: Result) -> str:
    """The summary, ended by a newline."""
    status = result.status
    lines = [
        f"### {_HEADS[status]} edgebench check on {_cell(result.device)}: {WORDS[status]}",
        "",
    ]
    if result.broken:
        lines += [f"- {_cell(why)}" for why in result.broken]
        lines += ["", "Nothing is said about the code.", ""]
    if result.findings:
        lines += [
            "| benchmark | metric | candidate / baseline (95 %) | verdict | blocks | note |",
            "|---|---|---|---|---|---|",
            *(_row(finding, broken=bool(result.broken)) for finding in result.findings),
            "",
        ]
    lines.append(
        f"Limit {100 * result.max_regression:g} %; false alarms at most {100 * result.alpha:g} % "
        f"of all checks; {result.seconds:.0f} s."
    )
    if result.self_test:
        lines.append(f"This device's {_cell(result.self_test.text)}.")
    lines += [f"Note: {_cell(note)}." for note in result.notes]
    return "\n".join(lines) + "\n"


def _row(finding: Finding, *, broken: bool) -> str:
    verdict = "—" if broken else _MARKS[finding.decision]
    blocks = str(finding.blocks) if finding.blocks else ""
    if finding.left_out:
        blocks += f" (+{finding.left_out} left out)"
    cells = (finding.benchmark, finding.label, finding.text(), verdict, blocks, finding.note)
    return "| " + " | ".join(_cell(cell) for cell in cells) + " |"


def _cell(text: str) -> str:
    """Text that can't leave its cell, or become markup."""
    for character in ("\\", "|", "<", ">", "`", "*", "_", "[", "]"):
        text = text.replace(
            character,
            "\\" + character if character not in "<>" else {"<": "&lt;", ">": "&gt;"}[character],
        )
    return text.replace("\n", " ")
