"""Files of the kernel's sysfs, as the meters on a device read them.

An attribute is kept open, and ``os.pread`` at offset 0 takes a new value from its driver: 10.4 kHz
here, against 1.8 kHz for opening it each time. sysfs promises that a read at offset 0 calls the
driver's ``show`` again, and that an attribute whose driver was unbound reads as ENODEV
(Documentation/filesystems/sysfs.rst, "Reading/Writing Attribute Data").
"""

from __future__ import annotations

import errno
import os
import re
from typing import List, Optional, Tuple

from edgebench.meters.base import MeterError, Option, clock, now_between, read_text

#: The option that all of these kinds take.
SYSFS = Option((str,), "where sysfs is mounted; /sys unless said otherwise (containers)")

#: Longer than any number that a driver prints.
NUMBER_BYTES = 64

#: What a driver answers when the thing behind an attribute is gone.
GONE = (errno.ENODEV, errno.ENXIO, errno.ENOENT, errno.ESTALE)


class Attribute:
    """An open attribute.

    Args:
        path: the file.
        fix: the sentence that mends a denied permission; None says how in general.

    Raises:
        MeterError: no-device (there is no such file), permission, io.
    """

    def __init__(self, path: str, fix: Optional[str] = None) -> None:
        self.path = path
        self._fix = fix
        try:
            self._fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
        except FileNotFoundError as error:
            raise MeterError("no-device", f"there is no {path}") from error
        except PermissionError as error:
            raise self._denied() from error
        except OSError as error:
            raise MeterError("io", f"{path} can't be opened: {error.strerror}") from error

    def _denied(self) -> MeterError:
        fix = f"Let its reader have it: sudo chmod a+r {self.path} (until the next boot)."
        message = f"{self.path} can't be read: permission denied"
        return MeterError("permission", message, fix if self._fix is None else self._fix)

    def text(self, limit: int = NUMBER_BYTES) -> str:
        """What the driver says now, stripped; at most so many bytes of it.

        Raises:
            MeterError: vanished, permission, not-supported (the driver has no data: the channel is
                switched off), io.
        """
        try:
            data = os.pread(self._fd, limit, 0)
        except PermissionError as error:
            raise self._denied() from error
        except OSError as error:
            if error.errno in GONE:
                raise MeterError("vanished", f"{self.path} is gone") from error
            if error.errno == errno.ENODATA:
                raise MeterError("not-supported", f"{self.path} has no data: is it off?") from error
            raise MeterError("io", f"{self.path} can't be read: {error.strerror}") from error
        return data.decode("utf-8", "replace").strip("\0 \t\r\n")

    def number(self) -> int:
        """The whole number that the driver says now.

        Raises:
            MeterError: as ``text``; bad-reading where it is no number.
        """
        text = self.text()
        try:
            return int(text)
        except ValueError as error:
            message = f"{self.path} holds no number: {text[:40]!r}"
            raise MeterError("bad-reading", message) from error

    def timed(self) -> Tuple[int, int]:
        """The moment of the reading (ns), and the number.

        Raises:
            MeterError: as ``number``.
        """
        begin_ns = clock()
        value = self.number()
        return now_between(begin_ns, clock()), value

    def close(self) -> None:
        """Close the file; harmless the second time."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1


class Attributes:
    """The attributes that a meter has open; closes them together."""

    def __init__(self) -> None:
        self._open: List[Attribute] = []

    def open(self, path: str, fix: Optional[str] = None) -> Attribute:
        """Open one more.

        Raises:
            MeterError: as ``Attribute``.
        """
        attribute = Attribute(path, fix)
        self._open.append(attribute)
        return attribute

    def close(self) -> None:
        """Close all of them."""
        for attribute in self._open:
            attribute.close()
        self._open.clear()


def entries(directory: str, pattern: str) -> List[str]:
    """Paths in a directory whose names match all of a regular expression, numbers in order.

    A directory that is not there has none.

    Raises:
        MeterError: permission, io.
    """
    try:
        names = os.listdir(directory)
    except (FileNotFoundError, NotADirectoryError):
        return []
    except PermissionError as error:
        message = f"{directory} can't be listed: permission denied"
        raise MeterError("permission", message, "Run as a user who can list it.") from error
    except OSError as error:
        raise MeterError("io", f"{directory} can't be listed: {error.strerror}") from error
    matching = [name for name in names if re.fullmatch(pattern, name)]
    return [os.path.join(directory, name) for name in sorted(matching, key=in_order)]


def in_order(name: str) -> List[Tuple[int, str]]:
    """A key that sorts hwmon2 before hwmon10."""
    parts = re.findall(r"\d+|\D+", name)
    return [(int(part), "") if part.isdigit() else (-1, part) for part in parts]


def optional_text(path: str) -> Optional[str]:
    """The text of a file that may be missing.

    Raises:
        MeterError: it is there and can't be read (permission, io).
    """
    try:
        return read_text(path)
    except MeterError as error:
        if error.code == "no-device":
            return None
        raise


def optional_number(path: str) -> Optional[int]:
    """The whole number in a file that may be missing.

    Raises:
        MeterError: it is there and can't be read (permission, io), or holds none (bad-reading).
    """
    text = optional_text(path)
    if text is None:
        return None
    try:
        return int(text)
    except ValueError as error:
        raise MeterError("bad-reading", f"{path} holds no number: {text[:40]!r}") from error
