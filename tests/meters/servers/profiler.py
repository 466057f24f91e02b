"""A Power Profiler Kit II on a pseudo-terminal."""

from __future__ import annotations

import os
import select
import struct
import threading
import tty

#: The text of a kit; figures of the order that Nordic's program shows for a real one.
METADATA = """Calibrated: 0
R0: 1003.3506
R1: 101.5865
R2: 10.3027
R3: 0.9636
R4: 0.0564
GS0: 0.0000
GS1: 112.7890
GS2: 18.0115
GS3: 2.4217
GS4: 0.0729
GI0: 1.0000
GI1: 0.9695
GI2: 0.9609
GI3: 0.9519
GI4: 0.9582
O0: 112.9420
O1: 75.4627
O2: 64.6020
O3: 50.4983
O4: 85.8171
S0: 0.000000048
S1: 0.000000596
S2: 0.000005281
S3: 0.000062577
S4: 0.002940743
I0: -0.000000104
I1: -0.000001443
I2: 0.000036439
I3: -0.000374119
I4: -0.009388455
UG0: 1.00
UG1: 1.00
UG2: 1.00
UG3: 1.00
UG4: 1.00
VDD: 3700
HW: 9173
mode: 1
IA: 56
END
"""


def word(code: int, range_: int, counter: int, logic: int = 0) -> bytes:
    """One sample as the kit sends it."""
    bits = (code & 0x3FFF) | range_ << 14 | (counter % 64) << 18 | (logic & 0xFF) << 24
    return struct.pack("<I", bits)


def samples(codes: list[int], *, range_: int = 3, first: int = 0) -> bytes:
    """Successive samples of one range."""
    return b"".join(word(code, range_, first + k) for k, code in enumerate(codes))


class Profiler:
    """Answers commands; streams what ``stream`` holds, round and round, while it is started."""

    def __init__(self, *, metadata: str = METADATA, stream: bytes = b"", once: bool = False):
        self.metadata = metadata
        self.stream = stream
        self.once = once
        self.commands: list[bytes] = []
        self.started = threading.Event()
        self._controller, self._kit_side = os.openpty()
        tty.setraw(self._kit_side)
        self.port = os.ttyname(self._kit_side)
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._run)
        self._thread.start()

    def close(self) -> None:
        self.unplug()

    def unplug(self) -> None:
        """The cable is pulled."""
        if self._stop.is_set():
            return
        self._stop.set()
        self._thread.join()
        os.close(self._controller)
        os.close(self._kit_side)

    def _run(self) -> None:
        lengths = {0x11: 2, 0x0C: 2, 0x0D: 3}
        waiting, pending = b"", b""
        os.set_blocking(self._controller, False)
        while not self._stop.is_set():
            writers = [self._controller] if pending or self._streaming() else []
            ready, writable, _ = select.select([self._controller], writers, [], 0.01)
            if ready:
                waiting += os.read(self._controller, 4096)
            while waiting and len(waiting) >= lengths.get(waiting[0], 1):
                command = waiting[: lengths.get(waiting[0], 1)]
                waiting = waiting[len(command) :]
                self.commands.append(command)
                if command == b"\x19":
                    pending += self.metadata.encode()
                elif command == b"\x06":
                    self.started.set()
                elif command == b"\x07":
                    self.started.clear()
                    pending = b""
            if writable:
                if not pending and self._streaming():
                    pending = self.stream
                    if self.once:
                        self.stream = b""
                try:
                    pending = pending[os.write(self._controller, pending[:2048]) :]
                except BlockingIOError:
                    continue

    def _streaming(self) -> bool:
        return self.started.is_set() and bool(self.stream)
