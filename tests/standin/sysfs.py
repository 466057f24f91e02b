"""The keeper of a stand-in: holds its disk and network, and plays its /sys by FUSE.

One keeper process lives as long as a stand-in does, across reboots of it. It is started in fresh
mount and network namespaces, so that everything it mounts goes away with it, whichever way it
ends, and it ends when the test process closes its end of the control socket or dies.

The played files are those of sysfs and a few of procfs. Each is a text that the test process sets,
or is *live*: asked from the test process at every read. Reads go past the page cache
(`direct_io`), as a kernel attribute's do: a read at offset 0 takes a new value, and a read further
on continues the one taken before. A file removed while open reads as ENODEV, like the attribute of
a driver that was unbound.

Run as ``python -m <package>.sysfs CONTROL_FD LIVE_FD CONFIG`` by `machine.Keeper`. Both sockets
carry one JSON object a packet, a request and then its answer.
"""

from __future__ import annotations

import errno
import itertools
import json
import os
import socket
import stat
import sys
import threading
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import mfusepy  # type: ignore[import-untyped]

from .mounts import MS_NODEV, MS_NOSUID, PACKET_BYTES, mount

PAGE_BYTES = 4096  # what sysfs says every attribute's size is


@dataclass
class Node:
    """One played file: its text (None when live), or the errno that reading it gives.

    A link's text is what it points to.
    """

    text: str | None
    kind: str = "attribute"  # or "setting" (root may write it), "secret" (root may read it), "link"
    error: int = 0


# Where init.py mounts this, the emulator looks for /proc/... before it looks at the real one.
EMULATOR_PROC = "/emulator_proc"


class Tree(mfusepy.Operations):  # type: ignore[misc]
    """The played files, by absolute path ("/sys/..." or "/proc/..."); directories are implied."""

    use_ns = True

    def __init__(self, live: socket.socket) -> None:
        self._nodes: dict[str, Node] = {}
        self._children: dict[str, set[str]] = {"/": set()}
        self._open: dict[int, tuple[str, bytes]] = {}
        self._handles = itertools.count(1)
        self._guard = threading.Lock()
        self._live = live
        self._live_guard = threading.Lock()

    # What the test process asks for

    def put(self, path: str, node: Node) -> None:
        """Add or replace a file."""
        with self._guard:
            self._nodes[path] = node
            while path != "/":
                parent, _, name = path.rpartition("/")
                path = parent or "/"
                self._children.setdefault(path, set()).add(name)

    def text(self, path: str) -> str | None:
        """The text that stands in a file now; None where it is live or absent."""
        with self._guard:
            node = self._nodes.get(path)
        return node.text if node else None

    def remove(self, path: str) -> None:
        """Take away a file, or a directory with everything below it."""
        with self._guard:
            for known in [p for p in self._nodes if p == path or p.startswith(path + "/")]:
                del self._nodes[known]
            for known in [p for p in self._children if p == path or p.startswith(path + "/")]:
                del self._children[known]
            parent, _, name = path.rpartition("/")
            self._children.get(parent or "/", set()).discard(name)

    # What the kernel asks for

    def getattr(self, path: str, fh: int | None = None) -> dict[str, Any]:
        with self._guard:
            if path in self._children:
                return {"st_mode": stat.S_IFDIR | 0o755, "st_nlink": 2}
            node = self._nodes.get(path)
        if node is None:
            raise mfusepy.FuseOSError(errno.ENOENT)
        if node.kind == "link":
            return {"st_mode": stat.S_IFLNK | 0o777, "st_nlink": 1}
        mode = {"setting": 0o644, "secret": 0o400}.get(node.kind, 0o444)
        size = 0 if path.startswith("/proc/") else PAGE_BYTES
        return {"st_mode": stat.S_IFREG | mode, "st_nlink": 1, "st_size": size}

    def access(self, path: str, amode: int) -> int:
        # The emulator asks by access(F_OK) whether to look here. It must for /proc/device-tree,
        # but never for /proc itself: a program that lists /proc wants the real one.
        if path == EMULATOR_PROC and amode == os.F_OK:
            raise mfusepy.FuseOSError(errno.ENOENT)
        return 0

    def readdir(self, path: str, fh: int) -> list[str]:
        with self._guard:
            return [".", "..", *sorted(self._children.get(path, ()))]

    def readlink(self, path: str) -> str:
        return self.text(path) or ""

    def open(self, path: str, flags: int) -> int:
        # The kernel leaves permissions to this file system, so that access() above is asked.
        uid, _, _ = mfusepy.fuse_get_context()
        with self._guard:
            node = self._nodes.get(path)
            settable = node is not None and node.kind == "setting" and uid == 0
            if flags & os.O_ACCMODE != os.O_RDONLY and not settable:
                raise mfusepy.FuseOSError(errno.EACCES)
            if node is not None and node.kind == "secret" and uid != 0:
                raise mfusepy.FuseOSError(errno.EACCES)
            handle = next(self._handles)
            self._open[handle] = (path, b"")
        return handle

    def release(self, path: str, fh: int) -> int:
        with self._guard:
            self._open.pop(fh, None)
        return 0

    def read(self, path: str, size: int, offset: int, fh: int) -> bytes:
        if offset == 0:
            data = self._now(path)
            with self._guard:
                self._open[fh] = (path, data)
            return data[:size]
        with self._guard:
            return self._open[fh][1][offset : offset + size]

    def truncate(self, path: str, length: int, fh: int | None = None) -> int:
        return 0

    def write(self, path: str, data: bytes, offset: int, fh: int) -> int:
        with self._guard:
            node = self._nodes.get(path)
            if node is None:
                raise mfusepy.FuseOSError(errno.ENODEV)
            node.text = data.decode()
        return len(data)

    def _now(self, path: str) -> bytes:
        with self._guard:
            node = self._nodes.get(path)
            if node is None:
                raise mfusepy.FuseOSError(errno.ENODEV)
            text, error = node.text, node.error
        if error:
            raise mfusepy.FuseOSError(error)
        if text is None:
            with self._live_guard:
                self._live.send(json.dumps({"path": path}).encode())
                answer = json.loads(self._live.recv(PACKET_BYTES))
            if answer.get("error"):
                raise mfusepy.FuseOSError(answer["error"])
            text = str(answer["text"])
        return text.encode()


def set_up(config: dict[str, Any]) -> None:
    """Mount the disk: an overlay on the shared root, and a small filesystem for the homes."""
    state, root = Path(config["state"]), Path(config["root"])
    mount("standin", state, "tmpfs", f"size={config['disk_bytes']},mode=0755", MS_NODEV)
    (state / "upper").mkdir()
    (state / "work").mkdir()
    lower = config["lower"]
    mount(
        "standin", root, "overlay", f"lowerdir={lower},upperdir={state}/upper,workdir={state}/work"
    )
    mount("home", root / "home", "tmpfs", f"size={config['home_bytes']},mode=0755", MS_NOSUID)
    # The wall clock's offset, which every program in the stand-in maps: see clockstep.c.
    (state / "clock_offset_ns").write_bytes(bytes(8))


def serve_control(control: socket.socket, tree: Tree) -> None:
    """Answer the test process until it is gone; then end this process and with it all mounts."""
    while packet := control.recv(PACKET_BYTES):
        ask = json.loads(packet)
        answer: dict[str, Any] = {}
        if ask["op"] == "put":
            tree.put(ask["path"], Node(ask["text"], ask["kind"], ask["error"]))
        elif ask["op"] == "text":
            answer["text"] = tree.text(ask["path"])
        elif ask["op"] == "remove":
            tree.remove(ask["path"])
        else:
            answer["wrong"] = ask["op"]
        control.send(json.dumps(answer).encode())
    os._exit(0)


def main() -> None:
    control = socket.socket(fileno=int(sys.argv[1]))
    live = socket.socket(fileno=int(sys.argv[2]))
    config = json.loads(sys.argv[3])
    tree = Tree(live)
    tree.put(f"{EMULATOR_PROC}/device-tree", Node("/sys/firmware/devicetree/base", "link"))
    set_up(config)
    threading.Thread(target=serve_control, args=(control, tree), daemon=True).start()
    mfusepy.FUSE(
        tree,
        config["fuse"],
        foreground=True,
        direct_io=True,
        allow_other=True,
        attr_timeout=0,
        entry_timeout=0,
        negative_timeout=0,
        fsname="standin",
    )


if __name__ == "__main__":
    main()
