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


class _Sequence:
    """The last name that this process made, so that the next one is larger."""

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._lock = threading.Lock()
        self._last = 0

    def next(self) -> int:
        with self._lock:
            fresh = (time.time_ns() // 1_000_000) << _RANDOM_BITS
            fresh |= int.from_bytes(os.urandom(_RANDOM_BITS // 8), "big")
            # The clock may stand still or be set back: then count up from the last name.
            stands = fresh >> _RANDOM_BITS <= self._last >> _RANDOM_BITS
            self._last = self._last + 1 if stands else fresh
            return self._last


_sequence = _Sequence()
# A forked child must not count up from its parent's last name: both would make the same one.
os.register_at_fork(after_in_child=_sequence.reset)


def new_ulid() -> str:
    """A new name, larger than every name that this process made before."""
    return encode(_sequence.next())


def encode(value: int) -> str:
    """26 base-32 digits of a 128-bit number."""
    return "".join(_ALPHABET[value >> shift & 31] for shift in range(125, -1, -5))


def is_ulid(text: str) -> bool:
    return PATTERN.fullmatch(text) is not None
