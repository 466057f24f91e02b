"""The one place where an argument list becomes a shell line.

SSH has no argument lists: the server hands one string to the user's login shell (RFC 4254, 6.5).
POSIX shells (sh, bash, dash, ksh, zsh) take single-quoted text literally, newlines and ``$(...)``
included. csh and fish don't in all cases; a device whose login shell is one of these works as long
as no argument holds a backslash, a quote, an exclamation mark or a newline.
"""

from __future__ import annotations

import shlex
from collections.abc import Sequence

from edgebench.transport.base import CommandError


def shell_line(argv: Sequence[str]) -> str:
    """A POSIX shell line that runs exactly this program with exactly these arguments.

    ``exec`` replaces the shell, so that the program is what sshd watches and what a signal reaches.

    Raises:
        CommandError: nothing to run, or an argument that no shell line can hold (NUL, bytes that
            are no text).
    """
    if isinstance(argv, str) or not argv or not argv[0]:
        raise CommandError("there is no command to run")
    line = "exec " + shlex.join(argv)
    if "\0" in line:
        raise CommandError("an argument has a NUL character, which no command can be given")
    try:
        line.encode()
    except UnicodeEncodeError as error:
        raise CommandError(
            f"an argument is no text that can be sent: {argv[0]}",
            fix="Rename the file whose name is not UTF-8.",
        ) from error
    return line
