"""The Workspace: where devices, exporters and results are looked for.

A workspace is any directory with ``devices/``, ``exporters/`` and ``results/``. It is found by
walking up from the current directory. Where there is none, the current directory serves as a
*bare* workspace: it has only results, and these are made when the first one is written.

Profiles and exporters are looked for in the workspace first, then among the built-in ones. Those
are package data (``edgebench/_builtin/``) in an installed wheel, and the repository's own
directories in a source checkout or an editable install.

Nothing here reads a file or runs code; exporter files are code, so the caller says whether the
workspace's own may be used at all.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from edgebench.errors import EdgebenchError, StorageError

#: What makes a directory a workspace: all three are there.
PARTS = ("devices", "exporters", "results")


@dataclass(frozen=True)
class Workspace:
    """A directory that edgebench works in.

    ``bare``: it is not a workspace proper; it only takes results.
    """

    root: Path
    bare: bool = False

    @classmethod
    def find(cls, start: Path | None = None) -> Workspace:
        """The nearest workspace at or above ``start`` (default: the current directory).

        Raises:
            StorageError: the current directory has been deleted.
        """
        try:
            here = (start if start is not None else Path.cwd()).absolute()
        except FileNotFoundError as error:
            raise StorageError(
                "the current directory no longer exists", fix="Change to another one first."
            ) from error
        for directory in (here, *here.parents):
            if all((directory / part).is_dir() for part in PARTS):
                return cls(directory)
        return cls(here, bare=True)

    @property
    def results_dir(self) -> Path:
        return self.root / "results"

    @property
    def artifacts_dir(self) -> Path:
        """Where ``edgebench export`` puts artifacts and ``edgebench run`` looks for the newest."""
        return self.results_dir / "artifacts"

    @property
    def runs_dir(self) -> Path:
        """The store of recordings."""
        return self.results_dir / "runs"

    @property
    def tables_dir(self) -> Path:
        return self.results_dir / "tables"

    def device_dirs(self) -> tuple[Path, ...]:
        """Directories of device profiles, the first to look in first."""
        own = () if self.bare else (self.root / "devices",)
        return _distinct(*own, builtin_root() / "devices")

    def exporter_dirs(self, workspace_code: bool = True) -> tuple[Path, ...]:
        """Directories of exporters, the first to look in first.

        Args:
            workspace_code: whether the workspace's own exporters may be loaded (they are Python
                code); False leaves the built-in ones (``--no-workspace-code``).
        """
        own = () if self.bare or not workspace_code else (self.root / "exporters",)
        return _distinct(*own, builtin_root() / "exporters")


def builtin_root() -> Path:
    """The directory that holds the built-in ``devices/`` and ``exporters/``.

    Raises:
        EdgebenchError: this installation has lost them.
    """
    package = Path(__file__).resolve().parent
    installed = package / "_builtin"
    # Beside an installed package stands site-packages, where a "devices" could be anybody's: the
    # profile of the local machine tells ours.
    for root in (installed, package.parent):
        if (root / "devices" / "local.toml").is_file():
            return root
    raise EdgebenchError(
        "edgebench's own device profiles are missing from this installation",
        where=str(installed),
        fix="Install edgebench again.",
    )


def ensure_dir(path: Path) -> Path:
    """Make a directory and its parents where they are missing, and return it.

    Raises:
        StorageError: it can't be made, or a file is in its place.
    """
    try:
        path.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"can't make the directory: {error.strerror}",
            where=str(path),
            fix="Choose a directory that you may write to, or mend its permissions.",
        ) from error
    return path


def _distinct(*directories: Path) -> tuple[Path, ...]:
    """Existing directories without repeats: in a checkout the workspace is the built-in one."""
    kept: dict[Path, Path] = {}
    for directory in directories:
        if directory.is_dir():
            kept.setdefault(directory.resolve(), directory)
    return tuple(kept.values())
