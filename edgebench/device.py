"""The Device: one validated profile, from one short TOML file.

    device = load("pi4", Workspace.find())

A profile is ``devices/<id>.toml`` in the workspace or among the built-in ones, or any ``.toml``
file given by its path. ``extends = "pi4"`` takes that profile and changes what it says itself:
tables merge, lists and plain values replace. Where ``transport`` or ``runtime`` changes its
``kind``, the inherited table is dropped as a whole, since its keys belong to the other kind. A
workspace's ``pi4.toml`` that extends ``"pi4"`` extends the built-in one.

Anything wrong is a ProfileError that names the file and the key and says what to do.
"""

from __future__ import annotations

import re
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import Field

from edgebench.device_check import check_document, closest, validated
from edgebench.device_spec import (
    AdbSpec,
    AgentSpec,
    Expects,
    Limits,
    LocalSpec,
    MeterSpec,
    NoSpec,
    Placement,
    Profile,
    RuntimeSpec,
    SshSpec,
    parse_cpus,
)
from edgebench.errors import EdgebenchError, ProfileError
from edgebench.workspace import Workspace, builtin_root

__all__ = [
    "AdbSpec",
    "AgentSpec",
    "Device",
    "DeviceSummary",
    "Expects",
    "Limits",
    "LocalSpec",
    "MeterSpec",
    "NoSpec",
    "Placement",
    "RuntimeSpec",
    "SshSpec",
    "available",
    "load",
    "parse_cpus",
]

#: Never inherited: a profile that extends a tested one has not been tested itself.
_OWN = ("tested",)
#: A profile is a page; a larger file is something else, given by mistake.
_MAX_BYTES = 1_000_000


class Device(Profile):
    """A profile ready for use.

    ``id`` is the name of its file ("pi4"), ``name`` the title in it ("Raspberry Pi 4 (4 GB)"),
    ``path`` where it was read from.
    """

    id: str
    path: Path = Field(exclude=True)

    def profile_document(self) -> dict[str, Any]:
        """The profile as used, with inherited and default values: plain data for a recording.

        Holds nothing of the host's file system but what the profile itself says.
        """
        return self.model_dump(mode="json")

    def require_usable(self) -> None:
        """Raise ProfileError with the profile's own text if it refuses to be run."""
        if self.refuses:
            raise ProfileError(
                f"{self.id} can't be measured: {self.refuses}",
                where=str(self.path),
                fix=f"Read {self.docs}." if self.docs else "",
            )


@dataclass(frozen=True)
class DeviceSummary:
    """A line of ``edgebench devices``. ``error``: the profile is broken, and how."""

    id: str
    path: Path
    builtin: bool
    name: str = ""
    transport: str = ""
    provider: str = ""
    refuses: str | None = None
    tested: str = ""
    error: str | None = None


def load(name_or_path: str, workspace: Workspace) -> Device:
    """The device of that name (workspace first, then built-in), or of that file.

    Raises:
        ProfileError: no such profile, or it says something that can't be.
    """
    if name_or_path.endswith(".toml") or "/" in name_or_path:
        path = Path(name_or_path).expanduser()
        _check_id(path.stem, path)
        if not path.is_file():
            raise ProfileError(
                "there is no such profile", where=str(path), fix="Check the path after --device."
            )
    else:
        _check_id(name_or_path, None)
        path = _find(name_or_path, workspace, chain=(), where="")
    document = _document(path, workspace, chain=())
    return validated(Device, {**document, "id": path.stem, "path": path}, path)


def available(workspace: Workspace) -> list[DeviceSummary]:
    """Every profile that ``load`` finds by name, sorted; broken ones with their error."""
    found: dict[str, Path] = {}
    for directory in workspace.device_dirs():
        for path in sorted(directory.glob("*.toml")):
            found.setdefault(path.stem, path)
    builtin = (builtin_root() / "devices").resolve()
    return [
        _summary(path, workspace, builtin=path.parent.resolve() == builtin)
        for _, path in sorted(found.items())
    ]


def _summary(path: Path, workspace: Workspace, *, builtin: bool) -> DeviceSummary:
    try:
        device = load(str(path), workspace)
    except EdgebenchError as error:
        return DeviceSummary(id=path.stem, path=path, builtin=builtin, error=str(error))
    return DeviceSummary(
        id=device.id,
        path=path,
        builtin=builtin,
        name=device.name,
        transport=device.transport.kind,
        provider=device.runtime.provider,
        refuses=device.refuses,
        tested=device.tested,
    )


def _document(path: Path, workspace: Workspace, *, chain: tuple[Path, ...]) -> dict[str, Any]:
    """The file's document with everything that it extends merged below it."""
    document = _read(path)
    base_name = document.pop("extends", None)
    if base_name is not None and not isinstance(base_name, str):
        raise ProfileError(
            f"`extends` must be the name of a profile, not {base_name!r}",
            where=str(path),
            fix='Write it as extends = "pi4".',
        )
    base: dict[str, Any] = {}
    if base_name is not None:
        _check_id(base_name, path)
        chain = (*chain, path.resolve())
        parent = _find(base_name, workspace, chain=chain, where=str(path))
        inherited = _document(parent, workspace, chain=chain)
        base = {key: value for key, value in inherited.items() if key not in _OWN}
    merged = _merge(base, document)
    # Checked file by file, so that a mistake is named in the file that has it.
    check_document(document, path, kinds=merged)
    return merged


def _read(path: Path) -> dict[str, Any]:
    try:
        if path.stat().st_size > _MAX_BYTES:
            raise ProfileError("too large for a device profile", where=str(path))
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        reason = "nested too deeply" if isinstance(error, RecursionError) else str(error)
        raise ProfileError(
            f"not readable as TOML: {reason}", where=str(path), fix="Correct the file."
        ) from error
    except OSError as error:
        raise ProfileError(
            f"can't be read: {error.strerror}", where=str(path), fix="Check its permissions."
        ) from error


def _find(name: str, workspace: Workspace, *, chain: tuple[Path, ...], where: str) -> Path:
    """The first file of that name that is not already being extended."""
    directories = workspace.device_dirs()
    candidates = [d / f"{name}.toml" for d in directories if (d / f"{name}.toml").is_file()]
    for path in candidates:
        if path.resolve() not in chain:
            return path
    if candidates:
        names = " -> ".join([*(path.stem for path in chain), name])
        raise ProfileError(
            f"profiles extend each other in a circle: {names}",
            where=where,
            fix="Let one of them stand alone.",
        )
    known = sorted({path.stem for d in directories for path in d.glob("*.toml")})
    guess = closest(name, known)
    raise ProfileError(
        f"there is no device named {name!r}",
        where=where or ", ".join(map(str, directories)),
        fix=(f"Did you mean {guess}? " if guess else "") + "`edgebench devices` lists them.",
    )


def _check_id(name: str, path: Path | None) -> None:
    if not re.fullmatch(r"[a-z0-9][a-z0-9-]{0,63}", name):
        raise ProfileError(
            f"{name!r} can't name a device",
            where=str(path) if path is not None else "",
            fix="Use small letters, digits and hyphens, as in my-pi4.",
        )


def _merge(base: Mapping[str, Any], over: Mapping[str, Any]) -> dict[str, Any]:
    """``over`` laid over ``base``: tables merge, everything else replaces."""
    merged = dict(base)
    for key, value in over.items():
        below = merged.get(key)
        if isinstance(value, dict) and isinstance(below, dict) and not _other_kind(below, value):
            merged[key] = _merge(below, value)
        else:
            merged[key] = value
    return merged


def _other_kind(below: Mapping[str, Any], over: Mapping[str, Any]) -> bool:
    return "kind" in over and "kind" in below and over["kind"] != below["kind"]
