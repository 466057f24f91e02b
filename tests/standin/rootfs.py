"""Build, once, the arm64 Debian root that every stand-in device starts from.

`build_root` returns a directory that is never written to again: each stand-in puts its own
writable layer over it. It is kept in a cache under a key made from the recipe below, so a change
of recipe builds a new root. What is inside is what a fresh Raspberry Pi OS Lite has and the tests
need: Python, OpenSSH, a shell and the usual tools. NumPy and ONNX Runtime are left out on purpose,
because installing them is the job of the tool under test; `arm64_wheels` fetches them.

Assumes: root, Debian, and that install.sh has run.
"""

# ruff: noqa: RUF005 - a command line reads best as lines of words

from __future__ import annotations

import fcntl
import hashlib
import inspect
import os
import shlex
import shutil
import subprocess
import sys
import tempfile
import zipfile
from collections.abc import Callable, Sequence
from pathlib import Path

HERE = Path(__file__).resolve().parent

# Raspberry Pi OS of 2023-2025 is Debian 12; its Python is 3.11, the oldest that ONNX Runtime 1.31
# has wheels for.
SUITE = "bookworm"
PACKAGES = (
    "base-files,base-passwd,bash,coreutils,dash,debianutils,findutils,grep,gzip,hostname,libc-bin,"
    "libgcc-s1,libstdc++6,mawk,openssh-server,openssh-sftp-server,procps,python3,sed,tar,util-linux"
)
LEFT_OUT = ("/usr/share/doc/*", "/usr/share/man/*", "/usr/share/locale/*", "/usr/share/info/*")
# Big parts of the standard library that no test imports; compiling them under emulation is slow.
NOT_COMPILED = "/(test|idlelib|lib2to3|tkinter|turtledemo)/"

ONNXRUNTIME = "onnxruntime==1.31.1"
# What the metadata of that release requires, beyond its extras.
ONNXRUNTIME_NEEDS = ("numpy>=1.21.6", "flatbuffers", "protobuf>=4.25.8", "packaging")
# Every manylinux tag that glibc 2.36 (Debian 12) satisfies and those projects use.
ARM64_TAGS = ("manylinux_2_28_aarch64", "manylinux_2_27_aarch64", "manylinux2014_aarch64")

_SHADOW = "{user}:*:19000:0:99999:7:::\n"  # '*': no password, but not locked, so keys work
_VCGENCMD = """\
#!/bin/sh
# Stand-in for the Raspberry Pi's firmware tool: answers from files that the tests set.
[ $# -gt 0 ] || { echo "Usage: vcgencmd command [ params ]"; exit 0; }
answer="/run/standin/vcgencmd/$(echo "$*" | tr ' ' '_')"
[ -e "$answer" ] && exec cat "$answer"
echo 'error=1 error_msg="Command not registered"'
exit 255
"""


def cache_dir() -> Path:
    """Where roots and wheels are: $EDGEBENCH_STANDIN_CACHE, else ~/.cache/edgebench-standin."""
    named = os.environ.get("EDGEBENCH_STANDIN_CACHE")
    return Path(named) if named else Path.home() / ".cache" / "edgebench-standin"


def recipe_key() -> str:
    """A digest of all that decides what the root contains, except the package versions."""
    parts = [SUITE, PACKAGES, *LEFT_OUT, NOT_COMPILED, _SHADOW, _VCGENCMD]
    parts += [inspect.getsource(_make), inspect.getsource(add_user)]
    parts += [(HERE / "clockstep.c").read_text()]
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def build_root() -> Path:
    """Return the cached root, building it first where needed (about 1 min)."""
    return _cached(f"root-{recipe_key()}", _make)


def build_onnxruntime_layer() -> Path:
    """Return a directory that, laid over the root, gives its Python NumPy and ONNX Runtime."""
    return _cached(f"onnxruntime-{recipe_key()}-{_wheels_key()}", _make_onnxruntime_layer)


def arm64_wheels(dest: Path) -> list[Path]:
    """Put the aarch64 CPython 3.11 wheels of ONNX Runtime and its needs in `dest`; return them.

    pip downloads them once into the cache.
    """
    home = _cached(f"wheels-{_wheels_key()}", _pip_download)
    dest.mkdir(parents=True, exist_ok=True)
    return [Path(shutil.copy2(wheel, dest / wheel.name)) for wheel in sorted(home.glob("*.whl"))]


def add_user(root: Path, user: str, uid: int) -> None:
    """Append an account with a home in /home to the files in `root`; no folder is made."""
    _append(root / "etc/passwd", f"{user}:x:{uid}:{uid}:,,,:/home/{user}:/bin/bash\n")
    _append(root / "etc/group", f"{user}:x:{uid}:\n")
    _append(root / "etc/shadow", _SHADOW.format(user=user))


def _cached(name: str, make: Callable[[Path], None]) -> Path:
    """The directory `name` of the cache; `make` fills it, once, whoever asks at the same time."""
    home = cache_dir() / name
    if home.is_dir():
        return home
    home.parent.mkdir(parents=True, exist_ok=True)
    with (home.parent / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # the kernel drops it when this process ends, however
        if not home.is_dir():
            # In the same directory, so that the rename at the end is atomic.
            scratch = Path(tempfile.mkdtemp(prefix=f"{name}.", dir=home.parent))
            try:
                scratch.chmod(0o755)
                make(scratch)
                scratch.rename(home)
            finally:
                if scratch.exists():
                    shutil.rmtree(scratch)
    return home


def _wheels_key() -> str:
    parts = (ONNXRUNTIME, *ONNXRUNTIME_NEEDS, *ARM64_TAGS)
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _pip_download(dest: Path) -> None:
    platforms = [word for tag in ARM64_TAGS for word in ("--platform", tag)]
    _run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--disable-pip-version-check"]
        + ["--no-deps", "--only-binary=:all:", *platforms, "--implementation", "cp"]
        + ["--python-version", "3.11", "--dest", str(dest), ONNXRUNTIME, *ONNXRUNTIME_NEEDS]
    )


def _make_onnxruntime_layer(layer: Path) -> None:
    packages = layer / "usr/local/lib/python3.11/dist-packages"
    with tempfile.TemporaryDirectory() as folder:
        for wheel in arm64_wheels(Path(folder)):
            zipfile.ZipFile(wheel).extractall(packages)
    # The stand-in's own Python compiles them, so that imports there need not, at each boot. -s and
    # -p write the paths that the files will have.
    inside = shlex.join(
        ["chroot", str(build_root()), "/usr/bin/python3", "-m", "compileall", "-q", "-j", "2"]
        + ["-s", "/mnt", "-p", "/", "-x", "/tests?/", "/mnt"]
    )
    there = shlex.quote(f"{build_root()}/mnt")
    _run(
        ["unshare", "--mount", "--propagation", "private", "sh", "-ec"]
        + [f"mount --bind {shlex.quote(str(layer))} {there}; {inside}"]
    )


def _make(root: Path) -> None:
    """Fill the empty directory `root` with the arm64 userland and this project's few additions."""
    _run(
        ["mmdebstrap", "--quiet", "--arch=arm64", "--variant=extract"]
        + ["--hook-dir=/usr/share/mmdebstrap/hooks/merged-usr", f"--include={PACKAGES}"]
        + [f"--dpkgopt=path-exclude={path}" for path in LEFT_OUT]
        + [SUITE, str(root), _mirror()]
    )
    # `extract` runs none of the packages' scripts; what they would have done follows.
    for name in ("passwd", "group"):
        shutil.copy(root / f"usr/share/base-passwd/{name}.master", root / "etc" / name)
    users = [line.split(":")[0] for line in (root / "etc/passwd").read_text().splitlines()]
    (root / "etc/shadow").write_text("".join(_SHADOW.format(user=user) for user in users))
    (root / "etc/shadow").chmod(0o640)
    _append(root / "etc/passwd", "sshd:x:101:65534::/run/sshd:/usr/sbin/nologin\n")
    add_user(root, "pi", 1000)
    (root / "mnt").mkdir(exist_ok=True)
    (root / "usr/bin/awk").symlink_to("mawk")
    (root / "usr/bin/which").symlink_to("which.debianutils")
    (root / "etc/nsswitch.conf").write_text("passwd: files\ngroup: files\nhosts: files dns\n")
    (root / "etc/hosts").write_text("127.0.0.1 localhost\n127.0.1.1 raspberrypi\n")
    (root / "etc/resolv.conf").write_text("")
    (root / "usr/bin/vcgencmd").write_text(_VCGENCMD)
    (root / "usr/bin/vcgencmd").chmod(0o755)
    _run(["chroot", str(root), "/sbin/ldconfig"])
    _run(
        ["chroot", str(root), "/usr/bin/python3", "-m", "compileall", "-q", "-j", "2"]
        + ["-x", NOT_COMPILED, "/usr/lib/python3.11"]
    )
    library = root / "usr/local/lib/clockstep.so"
    library.parent.mkdir(parents=True, exist_ok=True)
    _run(
        ["aarch64-linux-gnu-gcc", "-O2", "-Wall", "-Wextra", "-Werror", "-shared", "-fPIC"]
        + ["-o", str(library), str(HERE / "clockstep.c")]
    )
    (root / "etc/ld.so.preload").write_text("/usr/local/lib/clockstep.so\n")


def _mirror() -> str:
    """The Debian mirror that this machine's own apt uses."""
    listed = _run(
        ["apt-get", "indextargets", "--format", "$(SITE)"]
        + ["Created-By: Packages", "Origin: Debian", "Label: Debian"]
    ).split()
    if not listed:
        raise RuntimeError("apt knows no Debian mirror here; run `apt-get update` and try again")
    return sorted(set(listed))[0]


def _append(path: Path, line: str) -> None:
    with path.open("a") as file:
        file.write(line)


def _run(argv: Sequence[str]) -> str:
    done = subprocess.run(argv, capture_output=True, text=True, check=False)
    if done.returncode != 0:
        said = (done.stderr or done.stdout).strip()
        raise RuntimeError(f"{argv[0]} ended with {done.returncode}: {' '.join(argv)}\n{said}")
    return done.stdout
