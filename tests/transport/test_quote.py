"""A shell line is made in one place, and holds exactly the arguments."""

from __future__ import annotations

import subprocess

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edgebench.transport.base import CommandError
from edgebench.transport.quote import shell_line

ARGUMENT = st.text(st.characters(exclude_characters="\0", exclude_categories=("Cs",)), max_size=30)


@settings(max_examples=200, deadline=None)
@given(st.lists(ARGUMENT, max_size=5))
def test_a_posix_shell_gives_back_every_argument(arguments: list[str]) -> None:
    line = shell_line(["printf", "%s\\0", *arguments])
    done = subprocess.run(["sh", "-c", line], capture_output=True, check=True)
    # printf prints its format once even for no argument at all.
    expected = arguments or [""]
    assert done.stdout.decode().split("\0")[:-1] == expected


@pytest.mark.parametrize("argv", [[], [""], "ls"])
def test_nothing_is_no_command(argv: list[str]) -> None:
    with pytest.raises(CommandError, match="no command"):
        shell_line(argv)


@pytest.mark.parametrize(("argument", "reason"), [("a\0b", "NUL"), ("\udcff", "no text")])
def test_what_cannot_be_said_is_refused(argument: str, reason: str) -> None:
    with pytest.raises(CommandError, match=reason):
        shell_line(["ls", argument])
