"""``edgebench doctor``: what is wrong with a device, and how to mend it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING

import typer

from edgebench.cli.options import DeviceName, Json

if TYPE_CHECKING:
    from edgebench.doctor import Finding


def register(app: typer.Typer) -> None:
    app.command("doctor")(doctor)


def doctor(device: DeviceName = "local", as_json: Json = False) -> None:
    """Look a device over: identity, runtime, load, frequency, temperature, power source.

    Exit code 1 if something would make its runs INVALID.
    """
    import edgebench.api
    from edgebench.cli.output import console, progress, say_json

    with progress() as update:
        update(f"{device}  looking")
        report = edgebench.api.diagnose(device)
    if as_json:
        say_json(asdict(report))
    else:
        from rich.markup import escape

        output = console()
        output.print(escape(report.title))
        for finding in report.findings:
            style = {"ok": "green", "warn": "yellow", "FAIL": "bold red", "--": "dim"}
            fix = f"  [dim]{escape(finding.fix)}[/dim]" if finding.fix else ""
            level = f"[{style[finding.level]}]{finding.level:<5}[/]"
            output.print(f" {level} {escape(finding.what)}{fix}")
        output.print(_summary(report.findings, report.failures, report.warnings))
    if report.failures:
        raise typer.Exit(1)


def _summary(findings: Sequence[Finding], failures: int, warnings: int) -> str:
    fine = sum(finding.level == "ok" for finding in findings)
    text = f"{fine} ok, {warnings} warning{'s'[: warnings != 1]}, "
    text += f"{failures} failure{'s'[: failures != 1]}"
    return text + (": runs on this device will be INVALID until mended." if failures else ".")
