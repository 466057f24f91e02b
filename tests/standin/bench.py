"""A workspace whose devices are stand-ins: what `tests.measure.bench` is for this machine."""

from __future__ import annotations

from dataclasses import dataclass, replace

from edgebench.device import Device, load
from edgebench.workspace import Workspace
from tests.measure.bench import QUICK, Bench

from .machine import until
from .standin import StandIn

#: A second of measuring is some hundred calls under emulation.
ON_STANDIN = replace(QUICK, warmup_max_s=5.0, max_duration_s=10.0)
#: The same on the command line.
SHORT = ("--launches", "1", "--percentile", "50", "--precision", "90%", "--max-duration", "10")


@dataclass
class StandInBench(Bench):
    """Profiles that extend the shipped ones; the stand-in has as many CPUs as this machine."""

    def profile(self, more: str = "", name: str = "bench") -> None:
        """The local profile of `Bench` has no place here."""

    def stand_in(self, name: str, pi: StandIn, *, extends: str = "pi4", more: str = "") -> Device:
        """A profile of a stand-in, reached by its alias in the ssh configuration."""
        path = self.path / "devices" / f"{name}.toml"
        path.write_text(
            f'extends = "{extends}"\ntransport = {{ host = "{pi.alias}" }}\n'
            f'runtime = {{ threads = 1, affinity = "0" }}\n{more}\n'
        )
        return load(str(path), Workspace.find(self.path))


def until_idle(pi: StandIn) -> None:
    """Wait until nothing of edgebench runs there: the agent ends when it finds its stdin closed."""

    def idle() -> bool:
        return not [p for p in pi.processes() if any(".edgebench" in word for word in p.argv)]

    until("nothing of edgebench runs", idle)
