"""The events of a run as one line of progress."""

from __future__ import annotations

from typing import Any

from edgebench.cli.output import Update

#: What the steps of an artifact alone are called.
_STEPS = {"load": "load time and memory", "tokens": "its tokens against PyTorch's"}


class FleetProgress:
    """Events of several devices: each has its line, the bar shows the slowest of them."""

    def __init__(self, update: Update) -> None:
        self.update = update
        self.lines: dict[str, str] = {}
        self.shares: dict[str, float | None] = {}
        self.parts: dict[str, RunProgress] = {}

    def __call__(self, event: dict[str, Any]) -> None:
        device = event["device"]
        if device not in self.parts:
            self.parts[device] = RunProgress(device, self._updater(device))
        self.parts[device](event)

    def _updater(self, device: str) -> Update:
        def said(text: str, share: float | None = None, /) -> None:
            self.lines[device], self.shares[device] = text, share
            if len(self.lines) == 1:
                self.update(text, share)
                return
            known = [value for value in self.shares.values() if value is not None]
            self.update("\n".join(self.lines.values()), min(known, default=None))

        return said


class RunProgress:
    """Turns a run's events into a line and a share of the whole.

    The share counts stages (each artifact alone, each launch), the last one by its sample count:
    an estimate for the bar, nothing more.
    """

    def __init__(self, device: str, update: Update) -> None:
        self.device = device
        self.update = update
        self.names: list[str] = []
        self.launches = 1
        self.needed = 1
        self.done = 0.0
        self.solos = 0
        #: Energy rounds of a launch, at least; how much of a launch its latency part counts for.
        self.rounds = 0
        self.latency_share = 1.0

    def __call__(self, event: dict[str, Any]) -> None:
        handler = getattr(self, "_" + event["event"].replace("-", "_"), None)
        if handler is not None:
            handler(event)

    def _connecting(self, event: dict[str, Any]) -> None:
        self.update(f"{self.device}  connecting")

    def _reconnecting(self, event: dict[str, Any]) -> None:
        self.update(f"{self.device}  connection lost, the measurement goes on: {event['why']}")

    def _failed(self, event: dict[str, Any]) -> None:
        self.update(f"{self.device}  failed", 1.0)

    def _lost(self, event: dict[str, Any]) -> None:
        self.update(f"{self.device}  run {event['run']} is lost: {event['why']}")

    def _unreadable(self, event: dict[str, Any]) -> None:
        self.update(f"{self.device}  run {event['run']} can't be read there: {event['why']}")

    def _waiting(self, event: dict[str, Any]) -> None:
        self.update(f"{self.device}  waiting: {event['why']}")

    def _sending(self, event: dict[str, Any]) -> None:
        self.update(f"{self.device}  sending {event['name']}", event["share"])

    def _started(self, event: dict[str, Any]) -> None:
        plan = event["plan"]
        self.names = [entry.get("label", entry["name"]) for entry in plan["artifacts"]]
        self.launches = plan["protocol"]["launches"]
        self.needed = plan["protocol"]["stop"]["min_count"]
        rule = plan["protocol"].get("energy")
        if rule:
            self.rounds, self.latency_share = rule["min_rounds"], 0.5

    def _resuming(self, event: dict[str, Any]) -> None:
        self.names = event["names"]
        self.launches = event["launches"]
        self.update(f"{self.device}  picking up run {event['run']}")

    def _solo(self, event: dict[str, Any]) -> None:
        if event["step"] == "load":
            self.solos += 1
        step = _STEPS.get(event["step"], event["step"])
        self._say(f"{self._name(event['artifact'])}: {step}", self.solos - 1)

    def _cool_down(self, event: dict[str, Any]) -> None:
        self.update(
            f"{self.device}  cooling down: {event['temperature_c']:.0f} °C, "
            f"to {event['below_c']:.0f} °C"
        )

    def _launch(self, event: dict[str, Any]) -> None:
        self._say(f"launch {event['launch'] + 1}/{self.launches}", self._before(event))

    def _progress(self, event: dict[str, Any]) -> None:
        medians = "  ".join(
            f"{self._short(int(index))} {value / 1e6:.2f} ms"
            for index, value in sorted(event["median_ns"].items(), key=lambda pair: int(pair[0]))
        )
        share = self.latency_share * min(1.0, min(event["counts"].values()) / self.needed)
        self._say(
            f"launch {event['launch'] + 1}/{self.launches} · p50 {medians}",
            self._before(event) + share,
        )

    def _energy(self, event: dict[str, Any]) -> None:
        power = f" · {event['power_w']:.3g} W" if "power_w" in event else ""
        share = min(1.0, event["rounds"] / max(self.rounds, 1))
        self._say(
            f"launch {event['launch'] + 1}/{self.launches} · energy round {event['rounds']}{power}",
            self._before(event) + self.latency_share + (1 - self.latency_share) * share,
        )

    def _collecting(self, event: dict[str, Any]) -> None:
        self.update(f"{self.device}  collecting", 1.0)

    def _before(self, event: dict[str, Any]) -> float:
        return len(self.names) + float(event["launch"])

    def _say(self, text: str, stages: float) -> None:
        self.update(f"{self.device}  {text}", stages / (len(self.names) + self.launches))

    def _name(self, index: int) -> str:
        return self.names[index] if index < len(self.names) else str(index)

    def _short(self, index: int) -> str:
        """The part of the name by which the artifacts differ: usually the precision."""
        return self._name(index).rsplit(" ", 1)[-1]
