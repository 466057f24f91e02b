"""The ``edgebench`` command with a stopwatch beside it: run by ``dispatch.py``.

    python tapped.py LOG shallow|deep run --device ...

Writes to LOG when it ends: host times (Unix ns) of its own begin, of the imported command line, and
of each event of the run; in addition, when deep, begin and end of what it does over the link. Deep
taps import early what they tap, so they move time from one part of the break-down to another:
figures are taken with shallow ones, which cost an append each.
"""

import time

BEGIN = time.time_ns()

import json  # noqa: E402 - the stopwatch starts before anything is imported
import sys  # noqa: E402
from pathlib import Path  # noqa: E402

MARKS: list[tuple[str, int]] = [("begin", BEGIN)]
EVENTS: list[tuple[int, dict[str, object]]] = []
SPANS: list[tuple[str, int, int]] = []
PUTS: list[tuple[str, int]] = []


def tap_events() -> None:
    """See each event that the progress line sees."""
    from edgebench.cli.progress import FleetProgress

    original = FleetProgress.__call__

    def tapped(self, event):  # type: ignore[no-untyped-def]
        EVENTS.append((time.time_ns(), {k: v for k, v in event.items() if k != "plan"}))
        original(self, event)

    FleetProgress.__call__ = tapped  # type: ignore[method-assign]


def tap_link() -> None:
    """Time what goes over the link, and count the bytes of files that are sent."""
    from edgebench.measure import client, session
    from edgebench.transport import ssh

    MARKS.append(("measure and transport imported", time.time_ns()))

    def timed(owner, name, label):  # type: ignore[no-untyped-def]
        original = getattr(owner, name)

        async def wrapped(*args, **kwargs):  # type: ignore[no-untyped-def]
            begin = time.time_ns()
            try:
                return await original(*args, **kwargs)
            finally:
                SPANS.append((label(args), begin, time.time_ns()))

        setattr(owner, name, wrapped)

    timed(ssh.SshTransport, "connect", lambda _: "connect")
    timed(ssh.SshTransport, "expand", lambda _: "expand")
    timed(ssh.SshTransport, "put", lambda _: "put")
    timed(client.AgentClient, "start", lambda _: "agent start")
    timed(client.AgentClient, "request", lambda args: f"request {args[1]}")
    put = ssh.SshTransport.put

    async def counted(self, local, remote, progress=None):  # type: ignore[no-untyped-def]
        PUTS.append((remote, local.stat().st_size))
        await put(self, local, remote, progress)

    ssh.SshTransport.put = counted  # type: ignore[method-assign]
    assert session.start_remote_agent is not None


def main() -> None:
    """Run the command, then write down what was seen."""
    from edgebench.cli.main import main as command

    MARKS.append(("command line imported", time.time_ns()))
    log, depth, *arguments = sys.argv[1:]
    tap_events()
    if depth == "deep":
        tap_link()
    try:
        command(arguments)
    finally:
        MARKS.append(("end", time.time_ns()))
        found = {"marks": MARKS, "events": EVENTS, "spans": SPANS, "puts": PUTS}
        Path(log).write_text(json.dumps(found))


if __name__ == "__main__":
    main()
