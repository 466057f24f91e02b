"""``edgebench setup``: make a device ready, once.

    show and accept host keys - send the agent - runtime there? drivers of the profile's meters
    there? - fetch wheels here - send - unpack

They go into the agent's own directory (``~/.edgebench/site/…``) and touch nothing else on the
device, so removing that directory undoes it. Wheels come from this host, by pip's own resolution
for the device's Python and C library: the device needs neither internet nor pip.
"""

from __future__ import annotations

import asyncio
import hashlib
import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from edgebench import kernels
from edgebench.artifact import sha256_file
from edgebench.device import Device, SshSpec
from edgebench.errors import DeviceError, StorageError
from edgebench.measure.deploy import remote_python
from edgebench.measure.session import Session, open_session
from edgebench.meters.base import HOST_KINDS, KINDS, meter_class
from edgebench.transport.base import Transport
from edgebench.transport.known_hosts import HostKey
from edgebench.workspace import Workspace, builtin_root, ensure_dir

Reporter = Callable[[dict[str, Any]], None]

#: What the worker imports; pip adds what these need.
REQUIREMENTS = ("numpy", "onnxruntime")


@dataclass(frozen=True)
class Setup:
    """What a set-up found and did. ``installed``: wheels that were unpacked there, now;
    ``kernels``: the library of native kernels that was asked for."""

    device: str
    installed: tuple[str, ...]
    versions: dict[str, str]
    providers: tuple[str, ...]
    kernels: kernels.Installed | None = None


def accept_host_keys(device: Device, accept: Callable[[HostKey], bool]) -> tuple[str, ...]:
    """Show every host key on the way there that nobody has accepted yet, jump hosts first.

    Args:
        accept: answers whether a person has compared the key's fingerprint and takes it; the key
            is then remembered in the user's known_hosts.

    Returns:
        "host fingerprint" of each key that was accepted now.

    Raises:
        DeviceError: unreachable, a key was not accepted, or one has changed (never mended here).
    """
    device.require_usable()
    return asyncio.run(_accept_keys(device, accept))


def setup(
    device: Device,
    *,
    reinstall: bool = False,
    with_kernels: bool = False,
    kernels_from: Path | None = None,
    report: Reporter | None = None,
) -> Setup:
    """Install the runtime on a device whose host key is known.

    Args:
        reinstall: install it even where one is there.
        with_kernels: install the library of native few-bit kernels as well.
        kernels_from: where that comes from, see ``kernels.choose``; without it from `make kernels`
            (``dist/kernels`` in the workspace) or the companion package.

    Raises:
        DeviceError: unreachable, no wheels for it, it stays without a working runtime, or no
            library of kernels works there.
        InputError: ``kernels_from`` holds no library.
    """
    device.require_usable()
    report = report or (lambda event: None)
    done = asyncio.run(_setup(device, reinstall, report))
    if not with_kernels and kernels_from is None:
        return done
    if device.runtime.kind != "onnxruntime":
        raise DeviceError(
            "the native kernels are ONNX Runtime's, and this profile's runtime is PyTorch",
            where=device.id,
            fix="Leave --kernels out.",
        )
    return replace(done, kernels=asyncio.run(_kernels(device, kernels_from, report)))


async def _kernels(device: Device, source: Path | None, report: Reporter) -> kernels.Installed:
    report({"event": "step", "text": "installing the native kernels"})
    places = [Workspace.find().root / "dist" / "kernels", builtin_root() / "dist" / "kernels"]
    async with open_session(device) as session:
        library = kernels.choose(session.identity, source, places)
        python = session.hello["executable"]
        root = session.hello["root"]
        return await kernels.install(session.transport, python, root, library, device.id)


async def _setup(device: Device, reinstall: bool, report: Reporter) -> Setup:
    report({"event": "step", "text": "connecting"})
    async with open_session(device) as session:
        session.check_identity()
        if device.runtime.kind == "torch":
            await session.check_runtime()  # which nobody but its vendor can install
        else:
            offered = await session.client.request("provider")
        site = await _look(session)
        wheels: list[Path] = []
        anew = device.runtime.kind != "torch" and ("missing" in offered or reinstall)
        if anew:
            report({"event": "step", "text": "fetching wheels for the device"})
            wheels += await asyncio.to_thread(fetch_wheels, session.identity, session.versions)
        if drivers := site.lacking(meter_packages(device), anew=anew):
            report({"event": "step", "text": f"fetching {', '.join(drivers)}"})
            wheels += await asyncio.to_thread(fetch_drivers, drivers, session.versions)
        if wheels:
            beside = "" if anew else site.active
            await _install(session.transport, session.hello["root"], device, wheels, beside, report)
            if missing := (await _look(session)).lacking(meter_packages(device)):
                raise DeviceError(
                    f"{', '.join(missing)} were unpacked, but are not found there",
                    where=device.id,
                    fix="Run `edgebench setup` with --reinstall.",
                )
    if device.runtime.kind == "torch":
        return Setup(device.id, tuple(path.name for path in wheels), dict(session.versions), ())
    if anew:
        async with open_session(device) as session:
            offered = await session.client.request("provider")
    if "missing" in offered:
        raise DeviceError(
            f"the runtime was installed, but does not start: {offered['missing']}",
            where=device.id,
            fix=f"Read {device.docs}." if device.docs else "",
        )
    return Setup(
        device=device.id,
        installed=tuple(path.name for path in wheels),
        versions={**session.versions, "onnxruntime": offered["runtime"]["version"]},
        providers=tuple(offered["runtime"]["providers"]),
    )


def meter_packages(device: Device) -> tuple[str, ...]:
    """Packages that the profile's meters need on the device: pure Python, one wheel each."""
    kinds = [spec.kind for spec in device.meters]
    on_device = [kind for kind in kinds if kind in KINDS and kind not in HOST_KINDS]
    return tuple(sorted({name for kind in on_device for name in meter_class(kind).packages}))


@dataclass(frozen=True)
class _Site:
    """What is installed on a device. ``active``: the directory in use (its name), or ""."""

    active: str
    unpacked: frozenset[str]
    system: frozenset[str]

    def lacking(self, wanted: Sequence[str], *, anew: bool = False) -> list[str]:
        """Of the wanted packages, those that have to be unpacked.

        Args:
            anew: what was unpacked is about to be replaced, so it has to be unpacked again, other
                profiles' drivers with it.
        """
        drivers = {
            name for kind in KINDS if kind not in HOST_KINDS for name in meter_class(kind).packages
        }
        needed = set(wanted) - self.system
        return sorted(needed | (self.unpacked & drivers) if anew else needed - self.unpacked)


async def _look(session: Session) -> _Site:
    """Ask the device's Python what it has."""
    wanted = meter_packages(session.device)
    python = sys.executable
    if not session.local:
        python = await remote_python(session.transport, session.device)
    done = await session.transport.run([python, "-c", _LOOK, session.hello["root"], *wanted])
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise DeviceError(
            f"what is installed there can't be seen: {reason[-1] if reason else 'no reason given'}",
            where=session.device.id,
            fix="Name a working Python 3.8 or newer as runtime.python in the profile.",
        )
    found = json.loads(done.stdout.splitlines()[-1])
    return _Site(found["active"], frozenset(found["unpacked"]), frozenset(found["system"]))


async def _accept_keys(device: Device, accept: Callable[[HostKey], bool]) -> tuple[str, ...]:
    if not isinstance(device.transport, SshSpec):
        return ()
    from edgebench.transport.ssh import SshTransport

    transport = SshTransport(device.transport, device.id)
    accepted: list[str] = []
    while (key := await transport.fetch_host_key()) is not None:
        if not accept(key):
            raise DeviceError(
                f"the host key of {key.host} was not accepted ({key.fingerprint})",
                where=device.id,
                fix="Compare it with `ssh-keygen -lf /etc/ssh/ssh_host_ed25519_key.pub` run on the "
                "device itself, then run setup again.",
            )
        transport.trust_host_key(key)
        accepted.append(f"{key.host} {key.fingerprint}")
    return tuple(accepted)


def wheel_platforms(identity: dict[str, Any]) -> list[str]:
    """pip's platform tags for a device, the newest first.

    Every manylinux_2_N up to the device's glibc fits (PEP 600); pip wants each of them by name.

    Raises:
        DeviceError: there are no wheels for such a system (Android, musl).
    """
    arch, system = identity["arch"], identity["system"]
    if system == "Darwin":
        return [
            f"macosx_{major}_0_{kind}"
            for major in range(15, 10, -1)
            for kind in (arch, "universal2")
        ]
    found = re.match(r"glibc 2\.(\d+)", identity["libc"] or "")
    if system != "Linux" or found is None:
        raise DeviceError(
            f"there are no ONNX Runtime wheels for {system} with {identity['libc'] or 'this libc'}",
            where=identity["hostname"] or "the device",
            fix="Install it with the device's own package manager (Termux: pkg install "
            "python-onnxruntime), then run setup again.",
        )
    newest = int(found[1])
    tags = [f"manylinux_2_{minor}_{arch}" for minor in range(newest, 16, -1)]
    return [*tags, f"manylinux2014_{arch}"]


def fetch_wheels(identity: dict[str, Any], versions: dict[str, str]) -> list[Path]:
    """Wheels of the runtime and what it needs, for the device's Python and C library.

    Kept in this user's cache by what they were asked for, so a second device asks nobody.

    Raises:
        DeviceError: pip finds none.
        StorageError: the cache can't be written.
    """
    python = _python(versions)
    platforms = wheel_platforms(identity)
    question = "\n".join([python, *platforms, *REQUIREMENTS, _runtime_bound()])
    options = ["--implementation", "cp", "--python-version", python]
    for platform in platforms:
        options += ["--platform", platform]
    return _download(
        f"{identity['arch']}-cp{python}",
        question,
        [*options, "numpy", _runtime_bound()],
        f"pip finds no wheels for Python {python} on {identity['arch']}",
        "Install onnxruntime there by hand, or use a Python that has wheels.",
        where=identity["hostname"] or "the device",
    )


def fetch_drivers(packages: Sequence[str], versions: dict[str, str]) -> list[Path]:
    """Wheels of meters' drivers, which are Python and nothing else; kept as the runtime's are.

    Raises:
        DeviceError: pip finds none.
        StorageError: the cache can't be written.
    """
    python = _python(versions)
    return _download(
        f"drivers-py{python}",
        "\n".join([python, *packages]),
        ["--no-deps", "--platform", "any", "--python-version", python, *packages],
        f"pip finds no wheels of {', '.join(packages)} for Python {python}",
        f"Install them there by hand: pip install {' '.join(packages)}",
    )


def _python(versions: dict[str, str]) -> str:
    return ".".join(versions["python"].split(".")[:2])


def _download(
    name: str,
    question: str,
    options: list[str],
    failure: str,
    fix: str,
    where: str = "the device",
) -> list[Path]:
    """What pip downloads, or has downloaded for the same question."""
    key = hashlib.sha256(question.encode()).hexdigest()[:16]
    target = ensure_dir(_cache_dir() / "wheels" / f"{name}-{key}")
    done = target / ".complete"
    if not done.exists():
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--dest", str(target)]
        command += ["--disable-pip-version-check", "--only-binary=:all:", *options]
        try:
            subprocess.run(command, check=True, capture_output=True, text=True)
        except subprocess.CalledProcessError as error:
            lines = [line for line in error.stderr.splitlines() if line.startswith("ERROR")]
            raise DeviceError(
                f"{failure}: {lines[-1] if lines else error.stderr.strip()[-300:]}",
                where=where,
                fix=fix,
            ) from error
        except OSError as error:
            raise StorageError(f"pip can't be run: {error}", where=sys.executable) from error
        done.touch()
    return sorted(target.glob("*.whl"))


def _runtime_bound() -> str:
    """Not newer than this host's: an artifact that was checked here must be readable there."""
    from importlib.metadata import version

    return f"onnxruntime<={version('onnxruntime')}"


def _cache_dir() -> Path:
    base = os.environ.get("XDG_CACHE_HOME") or "~/.cache"
    return Path(base).expanduser() / "edgebench"


async def _install(
    transport: Transport,
    root: str,
    device: Device,
    wheels: Sequence[Path],
    beside: str,
    report: Reporter,
) -> None:
    """Send wheels and unpack them into a new directory; the last step makes it current.

    Args:
        beside: the directory whose packages stay, with the new ones among them; "" for none.
    """
    digests = [sha256_file(wheel) for wheel in wheels]
    site = hashlib.sha256((beside + "".join(sorted(digests))).encode()).hexdigest()[:16]
    python = await remote_python(transport, device)
    sent = []
    for number, (wheel, digest) in enumerate(zip(wheels, digests, strict=True)):
        remote = f"{root}/wheels/{digest}.whl"
        report({"event": "step", "text": f"sending {wheel.name}", "share": number / len(wheels)})
        if not await transport.exists(remote):
            await transport.put(wheel, remote)
        sent.append(remote)
    report({"event": "step", "text": "unpacking on the device"})
    done = await transport.run([python, "-c", _UNPACK, root, site, beside, *sent])
    if done.returncode:
        reason = done.stderr.decode("utf-8", "replace").strip().splitlines()
        raise DeviceError(
            f"the runtime can't be unpacked there: {reason[-1] if reason else 'no reason given'}",
            where=device.id,
            fix="Free some space there (about 150 MB), then run setup again.",
        )


#: Runs on the device, under its Python: the directory in use, what is in it, and which of the
#: wanted packages the system has without it.
_LOOK = """
import importlib.metadata as metadata, json, os, sys
link = os.path.join(sys.argv[1], "site", "active")
inside = [each.metadata["Name"] for each in metadata.distributions(path=[link])]
outside = [path for path in sys.path if os.path.realpath(path) != os.path.realpath(link)]
around = [each.metadata["Name"] for each in metadata.distributions(path=outside)]
same = lambda names: sorted({str(name).lower().replace("_", "-") for name in names})
active = os.path.basename(os.path.realpath(link)) if os.path.isdir(link) else ""
system = sorted(set(sys.argv[2:]) & set(same(around)))
print(json.dumps({"active": active, "unpacked": same(inside), "system": system}))
"""


#: Runs on the device, under its Python: unpack into a new directory, beside links to the files of
#: another where one is named, put it in the place of an older one of the same wheels (which may be
#: broken), switch over, and remove the wheels. A file that is a link is replaced, not written to.
_UNPACK = """
import glob, os, shutil, sys, zipfile
root, site, beside, wheels = sys.argv[1], sys.argv[2], sys.argv[3], sys.argv[4:]
def link_or_copy(old, new):
    try:
        os.link(old, new)
    except OSError:  # a file system without links
        shutil.copy2(old, new)
base = os.path.join(root, "site")
for left in glob.glob(os.path.join(base, ".[!.]*")):
    if os.path.islink(left):
        os.unlink(left)
    else:
        shutil.rmtree(left)
target = os.path.join(base, site)
new, old, link = (os.path.join(base, "." + name) for name in ("new", "old", "link"))
try:
    if beside:
        shutil.copytree(os.path.join(base, beside), new, copy_function=link_or_copy)
    else:
        os.makedirs(new)
    for wheel in wheels:
        with zipfile.ZipFile(wheel) as archive:
            for name in archive.namelist():
                if os.path.isfile(os.path.join(new, name)):
                    os.unlink(os.path.join(new, name))
            archive.extractall(new)
    if os.path.isdir(target):
        os.rename(target, old)
    os.rename(new, target)
    os.symlink(site, link)
    os.replace(link, os.path.join(base, "active"))
    for wheel in wheels:
        os.unlink(wheel)
finally:
    shutil.rmtree(new, ignore_errors=True)
    shutil.rmtree(old, ignore_errors=True)
"""
