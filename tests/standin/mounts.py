"""mount(2), and what else the processes of a stand-in share."""

from __future__ import annotations

import ctypes
import os
from pathlib import Path

# From <sys/mount.h>.
MS_NOSUID = 2
MS_NODEV = 4
MS_BIND = 4096

# The longest JSON packet between test process and keeper: a page of text, escaped, and to spare.
PACKET_BYTES = 1 << 18

_libc = ctypes.CDLL(None, use_errno=True)


def mount(source: str, target: Path, kind: str, data: str = "", flags: int = 0) -> None:
    """mount(2). Raises OSError naming the target."""
    done = _libc.mount(
        source.encode(), os.fsencode(target), kind.encode(), ctypes.c_ulong(flags), data.encode()
    )
    if done != 0:
        number = ctypes.get_errno()
        raise OSError(number, f"mount {kind or 'bind'} {source}: {os.strerror(number)}", target)


def bind(source: Path, target: Path) -> None:
    """Make `source` visible at `target`, which is created where it is missing."""
    if source.is_dir():
        target.mkdir(parents=True, exist_ok=True)
    elif not target.exists():
        target.parent.mkdir(parents=True, exist_ok=True)
        target.touch()
    mount(str(source), target, "", flags=MS_BIND)
