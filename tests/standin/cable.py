"""The network cable between this machine and a stand-in: a pair of virtual network cards."""

# ruff: noqa: RUF005 - a command line reads best as lines of words

from __future__ import annotations

from .machine import Keeper, command
from .slots import Slot


class Cable:
    """Made unplugged. Its far end is eth0 of the keeper's network namespace, and goes with it."""

    def __init__(self, slot: Slot, keeper: Keeper) -> None:
        self._card, self._keeper = slot.link, keeper
        # 02: locally administered
        ours, theirs = (f"02:00:00:00:{slot.number:02x}:{end:02x}" for end in (1, 2))
        command(
            ["ip", "link", "add", self._card, "address", ours, "type", "veth"]
            + ["peer", "name", "eth0", "address", theirs, "netns", str(keeper.pid)]
        )
        command(["ip", "address", "add", f"{slot.host_address}/30", "dev", self._card])
        command(["ip", "link", "set", self._card, "up"])
        # Without this, a cut cable gives "no route to host" after 3 s of unanswered ARP; with it,
        # packets vanish, as they do behind a router.
        command(
            ["ip", "neighbour", "replace", slot.address, "lladdr", theirs, "dev", self._card]
            + ["nud", "permanent"]
        )
        self._inside("ip", "link", "set", "lo", "up")
        self._inside("ip", "address", "add", f"{slot.address}/30", "dev", "eth0")

    def plug(self) -> None:
        self._inside("ip", "link", "set", "eth0", "up")

    def pull(self) -> None:
        """Nothing passes from now on, either way; this machine keeps its route to nowhere."""
        self._inside("ip", "link", "set", "eth0", "down")

    def forget_connections(self) -> None:
        """Drop the device's TCP sockets, those that only the kernel still holds included."""
        self._inside("ss", "--kill", "--no-header", "--tcp")

    def shape(self, mbit_per_s: float | None) -> None:
        """Limit the rate in both directions, by a token bucket at either end."""
        for enter, card in ((list[str], self._card), (self._keeper.enter, "eth0")):
            where = ["dev", card, "root"]
            if mbit_per_s is None:
                command(enter(["tc", "qdisc", "delete", *where]))
            else:
                # tc-tbf(8): burst must be at least rate / HZ; enough for 60 Mbit/s at 250 Hz
                rate = ["rate", f"{mbit_per_s}mbit", "burst", "32kb", "latency", "100ms"]
                command(enter(["tc", "qdisc", "replace", *where, "tbf", *rate]))

    def _inside(self, *argv: str) -> None:
        command(self._keeper.enter(argv))
