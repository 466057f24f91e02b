"""Shelly plugs and relays with a power meter, over HTTP in the local network.

Two generations, told apart by ``GET /shelly`` (Shelly's API documentation, shelly-api-docs.shelly.
cloud: "Gen1: Common HTTP API, Shelly Plug/PlugS, Shelly1PM"; "Gen2+: Switch, PM1"):

    first       GET /status                     relays[i].ison, meters[i]: power (W), is_valid,
                                                total (watt-minutes)
    second on   GET /rpc/Switch.GetStatus?id=i  output, apower (W), voltage (V), current (A),
                (a PM Mini: PM1.GetStatus)      aenergy.total (Wh), aenergy.minute_ts, errors

What is known of the time: values are of about the last second, so a reading may be a second old.
The energy counter is described by the minute only; it is read where the profile asks for it
(``counter = true``), as a source with a period of a minute.

A relay that is off, or a plug that shows exactly 0 W, says nothing about a device that runs.
"""

from __future__ import annotations

import http.client
import json
import urllib.error
import urllib.request
from typing import Any, ClassVar, Dict, List, Mapping, Optional, Tuple

from edgebench.meters.base import (
    Channel,
    MeterError,
    Option,
    clock,
    now_between,
)
from edgebench.meters.instruments import (
    ACCURACY,
    Patience,
    accuracy,
    host_and_port,
    unreachable,
)
from edgebench.meters.plugs import Plug, check_mains, number

TIMEOUT_S = 2.0
#: The plugs' own pace. A first-generation plug has an ESP8266: it is asked once a second.
UPDATE_S = 1.0
POLL_S = {1: 1.0, 2: 0.5}
WATT_MINUTE_J, WATT_HOUR_J = 60.0, 3600.0
#: The plug's clock minute must have moved after so long (seconds).
FROZEN_S = 180.0
LARGEST_ANSWER = 1 << 16

UNKNOWN_ACCURACY = (
    "differs by model; not in Shelly's API documentation. Put your model's into accuracy_percent"
)


class Shelly(Plug):
    """A Shelly device with a power meter. Units: W, J."""

    kind: ClassVar[str] = "shelly"
    default_scope: ClassVar[str] = "wall"
    options_taken: ClassVar[Mapping[str, Option]] = {
        "host": Option((str,), "its address in the local network", required=True),
        "relay": Option((int,), "which of its outputs, from 0 (default 0)"),
        "counter": Option((bool,), "read its energy counter too: for windows of minutes"),
        **ACCURACY,
    }

    def open(self) -> List[Channel]:
        self._host = "{}:{}".format(*host_and_port(self.options["host"], 80))
        self._relay = int(self.options.get("relay", 0))
        self._counter = bool(self.options.get("counter", False))
        self._what = f"the Shelly at {self.options['host']}"
        self._patience = Patience()
        self._minute: Optional[Tuple[Any, int]] = None
        about = self._about()
        self._generation = self._generation_of(about)
        self.poll_s = POLL_S[self._generation]
        self._component = "Switch"
        if self._generation == 2:
            self._component = self._find_component()
        model = about.get("model") or about.get("type") or "device"
        first = self._generation == 1
        return self._channels(
            f"Shelly {model} at {self.options['host']}, output {self._relay}",
            accuracy(self.options, UNKNOWN_ACCURACY),
            period_s=UPDATE_S,
            power_step_w=0.01 if first else 0.1,
            # Watt-minutes in the first generation; thousandths of a watt-hour since.
            energy_step_j=WATT_MINUTE_J if first else WATT_HOUR_J / 1000,
        )

    def _about(self) -> Dict[str, Any]:
        try:
            return self._get("/shelly")
        except MeterError as error:
            if error.code != "bad-option":
                raise
            raise MeterError(
                "not-supported", f"what answers at {self.options['host']} is not a Shelly device"
            ) from error

    def _generation_of(self, about: Mapping[str, Any]) -> int:
        if about.get("auth") is True or about.get("auth_en") is True:
            raise self._locked()
        if isinstance(about.get("gen"), int):
            return 2
        if "mac" in about and str(about.get("type", "")).startswith("SH"):
            return 1
        raise MeterError(
            "not-supported", f"what answers at {self.options['host']} is not a Shelly device"
        )

    def _find_component(self) -> str:
        """Which component measures: a relay with a meter, or a meter without a relay."""
        for name in ("Switch", "PM1"):
            try:
                self._get(f"/rpc/{name}.GetStatus?id={self._relay}")
            except MeterError as error:
                if error.code != "bad-option":
                    raise
            else:
                return name
        raise MeterError("bad-option", f"{self._what} has no output {self._relay}")

    def _status(self) -> Tuple[int, float, Optional[float]]:
        """Moment, power (W) and energy (J) of the output."""
        begin_ns = clock()
        if self._generation == 1:
            document = self._get("/status")
            t_ns = now_between(begin_ns, clock())
            return (t_ns, *self._first_generation(document))
        document = self._get(f"/rpc/{self._component}.GetStatus?id={self._relay}")
        t_ns = now_between(begin_ns, clock())
        return (t_ns, *self._second_generation(document))

    def _first_generation(self, document: Mapping[str, Any]) -> Tuple[float, Optional[float]]:
        try:
            meter = document["meters"][self._relay]
            relay = document["relays"][self._relay]
        except (KeyError, IndexError, TypeError) as error:
            raise MeterError(
                "bad-option", f"{self._what} has no output {self._relay} with a power meter"
            ) from error
        self._require_on(relay.get("ison"))
        if meter.get("is_valid") is not True:
            raise MeterError("bad-reading", f"{self._what} says that its meter is not valid")
        total = meter.get("total")
        energy_j = None if total is None else number(meter, "total", self._what) * WATT_MINUTE_J
        return number(meter, "power", self._what), energy_j

    def _second_generation(self, document: Mapping[str, Any]) -> Tuple[float, Optional[float]]:
        if self._component == "Switch":
            self._require_on(document.get("output"))
        if "apower" not in document:
            raise MeterError("not-supported", f"{self._what} does not measure power")
        if document.get("errors"):
            raise MeterError("bad-reading", f"{self._what} reports {document['errors']}")
        power_w = number(document, "apower", self._what)
        seen = {
            name: None if document.get(name) is None else number(document, name, self._what)
            for name in ("voltage", "current")
        }
        check_mains(power_w, seen["voltage"], seen["current"])
        counter = document.get("aenergy")
        if not isinstance(counter, dict):
            return power_w, None
        self._require_alive(counter.get("minute_ts"))
        return power_w, number(counter, "total", self._what) * WATT_HOUR_J

    def _require_on(self, on: Any) -> None:
        if on is not True:
            raise MeterError(
                "bad-reading",
                f"output {self._relay} of {self._what} is off: it feeds nothing",
                "Switch it on, or name the output that feeds the device as relay.",
            )

    def _require_alive(self, minute: Any) -> None:
        """The plug tells the minute that it is in: it has to go on."""
        now_ns = clock()
        if not isinstance(minute, int) or minute <= 0:
            return
        if self._minute is None or self._minute[0] != minute:
            self._minute = (minute, now_ns)
        elif now_ns - self._minute[1] > FROZEN_S * 1e9:
            raise MeterError(
                "frozen",
                f"{self._what} has told the same minute for {FROZEN_S:.0f} s: its meter has hung",
                "Take it out of the socket and put it back.",
            )

    def _locked(self) -> MeterError:
        return MeterError(
            "permission",
            f"{self._what} asks for a password",
            "Switch its authentication off while you measure: a profile holds no passwords.",
        )

    def _get(self, path: str) -> Dict[str, Any]:
        """An answer's JSON object.

        Raises:
            MeterError: no-device (no answer), permission, bad-option (it has no such thing),
                not-supported (it speaks something else).
        """
        # No proxy: the plug is in the local network.
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(f"http://{self._host}{path}", timeout=TIMEOUT_S) as answer:
                data = answer.read(LARGEST_ANSWER)
        except urllib.error.HTTPError as error:
            with error:
                if error.code == 401:
                    raise self._locked() from error
                if error.code in (400, 404, 500):
                    text = f"{self._what} does not know {path} (HTTP {error.code})"
                    raise MeterError("bad-option", text) from error
                raise MeterError(
                    "no-device", f"{self._what} answers with HTTP {error.code}"
                ) from error
        except urllib.error.URLError as error:
            reason = error.reason
            failure = reason if isinstance(reason, OSError) else OSError(0, str(reason))
            raise unreachable(self._what, failure) from error
        except http.client.HTTPException as error:
            text = f"{self._what} breaks off its answer: {type(error).__name__}"
            raise MeterError("no-device", text) from error
        except OSError as error:
            raise unreachable(self._what, error) from error
        try:
            document = json.loads(data)
        except ValueError as error:
            raise MeterError(
                "not-supported",
                f"what answers at {self.options['host']} is not a Shelly device: {path} is no JSON",
            ) from error
        if not isinstance(document, dict):
            raise MeterError("not-supported", f"{self._what} answers {path} with no object")
        return document

    @classmethod
    def find(cls) -> List[Dict[str, Any]]:
        raise MeterError(
            "no-device",
            "smart plugs are not looked for in the network",
            'Name yours in the profile: [[meters]] kind = "shelly", host = "192.0.2.7".',
        )
