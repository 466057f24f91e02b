"""``edgebench setup``: make a device ready for runs, once."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from edgebench.cli.options import DeviceName, Json

if TYPE_CHECKING:
    from edgebench.transport.known_hosts import HostKey


def register(app: typer.Typer) -> None:
    app.command("setup")(setup)


def setup(
    device: DeviceName = "local",
    accept: Annotated[
        str | None,
        typer.Option(
            "--accept",
            metavar="SHA256:...",
            help="Accept the host key with this fingerprint without asking.",
        ),
    ] = None,
    reinstall: Annotated[
        bool, typer.Option("--reinstall", help="Install the runtime even where one is there.")
    ] = False,
    kernels: Annotated[
        bool,
        typer.Option(
            "--kernels",
            help="Install the native few-bit kernels, too: from `make kernels`, or from the "
            "package edgebench-native here.",
        ),
    ] = False,
    kernels_from: Annotated[
        Path | None,
        typer.Option(
            "--kernels-from",
            metavar="PATH",
            help="Install them from this library, wheel, or directory with either.",
        ),
    ] = None,
    as_json: Json = False,
) -> None:
    """Accept a device's host key after showing it, and install the runtime there.

    Wheels come from this machine, so the device needs neither internet nor pip; they go into
    edgebench's own directory there.
    """
    import edgebench.api
    from edgebench.cli.output import console, progress, say_json

    def asked(key: HostKey) -> bool:
        if accept is not None:
            return key.fingerprint == accept
        typer.echo(f"{key.host} shows the {key.algorithm} key {key.fingerprint}", err=True)
        typer.echo(
            "Compare it with what the device says: ssh-keygen -lf "
            "/etc/ssh/ssh_host_ed25519_key.pub",
            err=True,
        )
        return typer.confirm("Is it the same?", err=True)

    # The question comes first and must not be drawn over by a progress bar.
    edgebench.api.accept_host_keys(device, asked)
    with progress() as update:
        done = edgebench.api.setup(
            device,
            reinstall=reinstall,
            kernels=kernels,
            kernels_from=kernels_from,
            report=lambda event: update(f"{device}  {event['text']}", event.get("share")),
        )
    if as_json:
        say_json(asdict(done))
        return
    output = console()
    what = f"installed {', '.join(done.installed)}" if done.installed else "nothing to install"
    output.print(
        f"{device} is ready: Python {done.versions['python']}, "
        f"onnxruntime {done.versions['onnxruntime']} ({', '.join(done.providers)}); {what}."
    )
    if done.kernels is not None:
        verb = "sent" if done.kernels.sent else "there already"
        output.print(
            f"native kernels {done.kernels.version} ({verb}, tried there): {done.kernels.kernel}."
        )
    output.print(f"Look it over with: edgebench doctor --device {device}")
