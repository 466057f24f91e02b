"""PTDaemon on 127.0.0.1, as far as MLCommons' public client shows its replies."""

from __future__ import annotations

import socketserver
import threading


class PtDaemon:
    """A test adds samples; ``RL`` gives those that were not given before.

    ``reader``: which command reads samples; the others are answered as PTDaemon does.
    """

    def __init__(self, *, reader: str = "RL", greeting: str = "Hello, PTDaemon here!") -> None:
        self.reader = reader
        self.greeting = greeting
        self.go_reply: str | None = None
        self.commands: list[str] = []
        self.unread: list[str] = []
        self.hang_up = False
        self._lock = threading.Lock()
        daemon = self

        class Handler(socketserver.StreamRequestHandler):
            def handle(self) -> None:
                while line := self.rfile.readline():
                    if daemon.hang_up:
                        return
                    command = line.decode().strip()
                    daemon.commands.append(command)
                    for reply in daemon.reply(command):
                        self.wfile.write(reply.encode() + b"\r\n")

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

    def sample(self, time_of_day: str, watts: str, *, date: str = "01-22-2021") -> None:
        line = f"Time,{date} {time_of_day},Watts,{watts},Volts,227.370000,Amps,0.204340,PF,0.494400"
        if self.reader == "RL,*,*":
            line += ",Watts,11.000000,Volts,120.950000,Amps,0.832100,PF,0.938900" * 2
        with self._lock:
            self.unread.append(line)

    def reply(self, command: str) -> list[str]:
        name = command.split(",", maxsplit=1)[0]
        if name == "Hello":
            return [self.greeting]
        if name == "Identify":
            return ["WT310,1,version=1.9.2-de03c0de-20210105,C2PH13047V"]
        if name == "SR":
            _, letter, value = command.split(",")
            return [f"Range {letter} changed" if value != "7777" else "Error: no such range"]
        if name == "Go":
            milliseconds = command.split(",")[1]
            return [
                self.go_reply
                or f"Starting untimed measurement, maximum 500000 samples at {milliseconds}ms with "
                "0 rampup samples"
            ]
        if name == "Stop":
            return ["Stopping untimed measurement"]
        if command == self.reader:
            with self._lock:
                lines, self.unread = self.unread, []
            return [f"Last {len(lines)} samples", *lines]
        if command == "RL,*,*":
            return ["Invalid number of parameters" if self.reader == "RL" else "Unknown command"]
        return ["Unknown command"]
