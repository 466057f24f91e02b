"""What commands share: JSON for machines, tables for people, progress on what takes time.

Results go to stdout, progress to stderr, so that a pipe gets the results alone.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, Protocol

import typer

from edgebench.errors import EdgebenchError

if TYPE_CHECKING:
    from rich.console import Console


class Answer(SystemExit):
    """A command's own answer as its exit code, after it has printed all it has to say.

    Unlike the exit of a wrong command line, which has the code of "undecided".
    """


def say_json(document: Any) -> None:
    """Print a document as JSON; a figure that could not be measured is null."""
    typer.echo(json.dumps(document, indent=2, allow_nan=False, default=str))


def error_document(error: EdgebenchError) -> dict[str, Any]:
    """An error for machines."""
    return {
        "what": error.what,
        "where": error.where,
        "fix": error.fix,
        "kind": type(error).__name__,
        "exit_code": error.exit_code,
    }


def say_error(error: EdgebenchError) -> None:
    """An error for people: one sentence on stderr."""
    typer.echo(f"error: {error}", err=True)


def console(*, stderr: bool = False) -> Console:
    """A rich console that never wraps at 80 columns just because it is not a terminal."""
    from rich.console import Console

    stream = sys.stderr if stderr else sys.stdout
    width = None if stream.isatty() else 160
    return Console(file=stream, width=width, highlight=False, soft_wrap=not stream.isatty())


class Update(Protocol):
    """Called with the text of the present step and the share of the whole (0 to 1) or None."""

    def __call__(self, text: str, share: float | None = None, /) -> None: ...


@contextmanager
def progress() -> Iterator[Update]:
    """A progress bar on stderr: live on a terminal, one line a step elsewhere."""
    if not sys.stderr.isatty():
        said = ""

        def plain(text: str, share: float | None = None, /) -> None:
            nonlocal said
            step = text.split(" · ", maxsplit=1)[0].split(": ", maxsplit=1)[0]
            if step != said:
                said = step
                typer.echo(f"  {text}", err=True)

        yield plain
        return

    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    bar = Progress(
        TextColumn("{task.description}"),
        BarColumn(bar_width=24),
        TimeElapsedColumn(),
        console=console(stderr=True),
        transient=True,
    )
    with bar:
        task = bar.add_task("", total=None)

        def live(text: str, share: float | None = None, /) -> None:
            total = 1.0 if share is not None else None
            bar.update(task, description=text, completed=share or 0.0, total=total)

        yield live
