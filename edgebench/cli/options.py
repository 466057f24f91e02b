"""The options that several commands have, each written once: its name, its help, its type."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print JSON for machines instead of a table.")]
Results = Annotated[
    Path | None,
    typer.Option("--results", help="Results directory (default: the workspace's results/)."),
]
DeviceName = Annotated[
    str,
    typer.Option("--device", "-d", help="A device profile's name (see `edgebench devices`)."),
]
DeviceNames = Annotated[
    list[str] | None,
    typer.Option(
        "--device",
        "-d",
        help="A device profile's name (see `edgebench devices`); repeat it for several. "
        "Default: local.",
    ),
]
Wait = Annotated[bool, typer.Option("--wait/--no-wait", help="Wait for a device that is in use.")]
WorkspaceCode = Annotated[
    bool,
    typer.Option(
        "--workspace-code/--no-workspace-code",
        help="Load the workspace's own exporters/ (they are Python code).",
    ),
]

# What is exported.
BaseModel = Annotated[str | None, typer.Option(help="Base model, as for `edgebench export`.")]
ExportSeqLen = Annotated[int, typer.Option(help="Tokens a sample.")]
TimingTexts = Annotated[
    Path | None, typer.Option(help="Texts for the timing inputs, as for `edgebench export`.")
]

# How it is measured.
SeqLen = Annotated[int | None, typer.Option(help="Tokens a sample (default: as exported).")]
OfflineBatch = Annotated[
    int | None, typer.Option(help="Samples a call in the offline scenario (default 8).")
]
Launches = Annotated[int, typer.Option(help="Worker processes; intervals are taken over them.")]
Precision = Annotated[
    str, typer.Option(help="Half-width of the median's interval that is enough, per launch.")
]
MaxDuration = Annotated[float, typer.Option(help="Seconds after which a launch ends in any case.")]
EnergyPrecision = Annotated[
    str, typer.Option(help="Half-width of the energy a call (95 %) that is enough.")
]
Threads = Annotated[int | None, typer.Option(help="Threads of the model (default: the profile's).")]
