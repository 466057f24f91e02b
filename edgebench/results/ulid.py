"""Names of recordings: ULIDs, which sort by the time they were made.

26 characters of Crockford's base 32: 48 bits of Unix time in milliseconds, 80 random bits
(https://github.com/ulid/spec). Within one process they only ever grow, as the specification's
section on monotonicity has it: in the same millisecond the random part is counted up by one.
"""

from __future__ import annotations

import os
import re
import threading
import time

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_RANDOM_BITS = 80
#: 48 bits of time fit in ten characters of five bits only if the first is at most 7.
PATTERN = re.compile(rf"[0-7][{_ALPHABET}]{{25}}")

_lock = threading.Lock()
_last = 0


def new_ulid() -> str:
    """A new name, larger than every name that this process made before."""
    global _last
    with _lock:
        fresh = (time.time_ns() // 1_000_000) << _RANDOM_BITS
        fresh |= int.from_bytes(os.urandom(_RANDOM_BITS // 8), "big")
        # The clock may stand still or be set back: then count up from the last name.
        same_or_earlier = fresh >> _RANDOM_BITS <= _last >> _RANDOM_BITS
        _last = _last + 1 if same_or_earlier else fresh
        return encode(_last)


def encode(value: int) -> str:
    """26 base-32 digits of a 128-bit number."""
    return "".join(_ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))


def is_ulid(text: str) -> bool:
    return PATTERN.fullmatch(text) is not None


def _forget_after_fork() -> None:
    """A forked child must not count up from its parent's last name: both would make the same."""
    global _last, _lock
    _last = 0
    _lock = threading.Lock()  # another thread of the parent may have held it


os.register_at_fork(after_in_child=_forget_after_fork)
