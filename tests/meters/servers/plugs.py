"""Smart plugs on 127.0.0.1: Shelly of both generations (HTTP), Kasa's first protocol (TCP)."""

from __future__ import annotations

import json
import socket
import socketserver
import struct
import threading
import urllib.parse
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

Answer = Callable[["ShellyPlug", str, dict[str, str]], "tuple[int, bytes]"]


class ShellyPlug:
    """A Shelly; a test changes its attributes while it runs.

    ``fault``: None, or a function of (plug, path, query) that answers in the plug's place.
    """

    def __init__(self, generation: int, *, component: str = "switch") -> None:
        self.generation = generation
        self.component = component
        self.on = True
        self.power_w = 12.5
        self.voltage_v, self.current_a = 231.4, 0.071
        self.total_wh = 1042.123
        self.minute = 1_790_000_040
        self.auth = False
        self.valid = True
        self.errors: list[str] = []
        self.asked: list[str] = []
        self.fault: Answer | None = None
        plug = self

        class Handler(BaseHTTPRequestHandler):
            def do_GET(self) -> None:
                url = urllib.parse.urlsplit(self.path)
                query = dict(urllib.parse.parse_qsl(url.query))
                plug.asked.append(url.path)
                status, body = (plug.fault or ShellyPlug.answer)(plug, url.path, query)
                if status == 0:  # hang up in the middle
                    self.wfile.write(body)
                    self.connection.shutdown(socket.SHUT_RDWR)
                    return
                self.send_response(status)
                self.send_header("Content-Type", "application/json")
                self.send_header("Content-Length", str(len(body)))
                self.end_headers()
                self.wfile.write(body)

            def log_message(self, format: str, *args: Any) -> None:
                pass

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    def answer(self, path: str, query: dict[str, str]) -> tuple[int, bytes]:
        found = self._first(path) if self.generation == 1 else self._second(path, query)
        if found is None:
            return 404, b"Not Found"
        return 200, json.dumps(found).encode()

    def _first(self, path: str) -> dict[str, Any] | None:
        if path == "/shelly":
            return {
                "type": "SHPLG-S",
                "mac": "7C87CEB4A1B2",
                "auth": self.auth,
                "fw": "20230913-113421/v1.14.0-gcb84623",
                "num_outputs": 1,
                "num_meters": 1,
            }
        if path == "/status":
            return {
                "wifi_sta": {"connected": True, "ip": "192.0.2.7", "rssi": -61},
                "relays": [{"ison": self.on, "overpower": False, "source": "http"}],
                "meters": [
                    {
                        "power": self.power_w,
                        "overpower": 0.0,
                        "is_valid": self.valid,
                        "timestamp": 1790000041,
                        "counters": [12.5, 12.4, 12.6],
                        "total": round(self.total_wh * 60),
                    }
                ],
                "uptime": 48211,
            }
        return None

    def _second(self, path: str, query: dict[str, str]) -> dict[str, Any] | None:
        if path == "/shelly":
            return {
                "name": None,
                "id": "shellyplusplugs-d4d4da7c1234",
                "mac": "D4D4DA7C1234",
                "slot": 0,
                "model": "SNPL-00112EU",
                "gen": 2,
                "ver": "1.4.4",
                "app": "PlusPlugS",
                "auth_en": self.auth,
                "auth_domain": None,
            }
        name = {"switch": "Switch", "pm1": "PM1"}[self.component]
        if path != f"/rpc/{name}.GetStatus" or query.get("id") != "0":
            return None
        status: dict[str, Any] = {
            "id": 0,
            "apower": self.power_w,
            "voltage": self.voltage_v,
            "current": self.current_a,
            "aenergy": {
                "total": self.total_wh,
                "by_minute": [208.3, 207.9, 208.5],
                "minute_ts": self.minute,
            },
        }
        if self.component == "switch":
            status.update(source="init", output=self.on, temperature={"tC": 41.2, "tF": 106.1})
        if self.errors:
            status["errors"] = self.errors
        return status


class KasaPlug:
    """A Kasa plug or strip, with its own XOR (not the one under test)."""

    def __init__(self, *, hardware: int = 2, outlets: int = 0) -> None:
        self.hardware = hardware
        self.outlets = outlets
        self.on = True
        self.power_w, self.voltage_v, self.current_a, self.total_wh = 16.194, 121.917, 0.177, 90051
        self.realtime: dict[str, Any] | None = None
        self.feature = "TIM:ENE"
        self.raw: bytes | None = None
        self.questions: list[dict[str, Any]] = []
        plug = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                head = self.rfile.read(4)
                if len(head) < 4:
                    return
                (length,) = struct.unpack(">I", head)
                question = json.loads(plug.xor(self.rfile.read(length), inverse=True))
                plug.questions.append(question)
                if plug.raw is not None:
                    self.wfile.write(plug.raw)
                    return
                text = plug.xor(json.dumps(plug.answer(question)).encode(), inverse=False)
                self.wfile.write(struct.pack(">I", len(text)) + text)

        class Server(socketserver.ThreadingTCPServer):
            allow_reuse_address = True
            daemon_threads = True

        self._server = Server(("127.0.0.1", 0), Handler)
        self.host = f"127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.01,))
        self._thread.start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()
        self._thread.join()

    @staticmethod
    def xor(data: bytes, *, inverse: bool) -> bytes:
        out, key = [], 0xAB
        for byte in data:
            out.append(byte ^ key)
            key = byte if inverse else out[-1]
        return bytes(out)

    def answer(self, question: dict[str, Any]) -> dict[str, Any]:
        if "system" in question:
            return {"system": {"get_sysinfo": self._sysinfo()}}
        if "emeter" in question:
            return {"emeter": {"get_realtime": self._realtime()}}
        return {}

    def _sysinfo(self) -> dict[str, Any]:
        about: dict[str, Any] = {
            "sw_ver": "1.0.7 Build 210506 Rel.153510",
            "hw_ver": "1.0",
            "model": "HS300(US)" if self.outlets else "HS110(EU)",
            "deviceId": "8006AB",
            "feature": self.feature,
            "err_code": 0,
        }
        if self.outlets:
            about["children"] = [
                {"id": f"8006AB{k:02d}", "state": int(self.on), "alias": f"outlet {k}"}
                for k in range(self.outlets)
            ]
        else:
            about["relay_state"] = int(self.on)
        return about

    def _realtime(self) -> dict[str, Any]:
        if self.realtime is not None:
            return self.realtime
        if self.hardware == 1:
            return {
                "current": self.current_a,
                "voltage": self.voltage_v,
                "power": self.power_w,
                "total": self.total_wh / 1000,
                "err_code": 0,
            }
        return {
            "voltage_mv": round(self.voltage_v * 1000),
            "current_ma": round(self.current_a * 1000),
            "power_mw": round(self.power_w * 1000),
            "total_wh": self.total_wh,
            "err_code": 0,
        }
