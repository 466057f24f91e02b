"""Wheels of ``edgebench-native`` for this machine and, by a cross-compiler, for others.

    python native/make_wheels.py --out dist/kernels [--arch aarch64 ...] [--no-isolation]

Each wheel's platform tag is the oldest manylinux whose libraries have every symbol that the library
asks for (PEP 600; the versions are those of auditwheel's policies). Without ``--arch``: this
machine's, and every other one that a cross-compiler is installed for. Prints the wheels' paths.
"""

from __future__ import annotations

import argparse
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import zipfile
from io import BytesIO
from pathlib import Path

from elftools.elf.elffile import ELFFile
from elftools.elf.gnuversions import GNUVerNeedSection

HERE = Path(__file__).resolve().parent
LIBRARY = "edgebench_native/libedgebench_ops.so"
MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}

# manylinux tag -> newest GLIBC and GLIBCXX that it allows.
POLICIES = {
    "2_17": ((2, 17), (3, 4, 19)),
    "2_24": ((2, 24), (3, 4, 22)),
    "2_27": ((2, 27), (3, 4, 24)),
    "2_28": ((2, 28), (3, 4, 24)),
    "2_31": ((2, 31), (3, 4, 28)),
    "2_34": ((2, 34), (3, 4, 29)),
    "2_35": ((2, 35), (3, 4, 30)),
}


def compiler(arch: str) -> str | None:
    """The C++ compiler for an architecture; None where there is none."""
    if arch == platform.machine():
        return shutil.which("c++") or shutil.which("g++")
    return shutil.which(f"{arch}-linux-gnu-g++")


def build(arch: str, out: Path, isolation: bool) -> Path:
    """One wheel, tagged; replaces an older one of the same name."""
    found = compiler(arch)
    if found is None:
        sys.exit(f"error: there is no C++ compiler for {arch} (Debian: g++-{arch}-linux-gnu)")
    defines = [f"cmake.define.CMAKE_CXX_COMPILER={found}"]
    if arch != platform.machine():
        defines.append("cmake.define.CMAKE_SYSTEM_NAME=Linux")
        defines.append(f"cmake.define.CMAKE_SYSTEM_PROCESSOR={arch}")
    with tempfile.TemporaryDirectory(prefix="edgebench-wheel-") as name:
        command = [
            sys.executable,
            "-m",
            "pip",
            "wheel",
            "--quiet",
            "--no-deps",
            "--wheel-dir",
            name,
        ]
        command += ["--disable-pip-version-check", *([] if isolation else ["--no-build-isolation"])]
        # Below --config-settings: pip hands each to scikit-build-core.
        command += [f"--config-settings={define}" for define in defines]
        subprocess.run([*command, str(HERE)], check=True)
        (made,) = Path(name).glob("*.whl")
        tag = f"manylinux_{policy(made, arch)}_{arch}"
        tagging = [sys.executable, "-m", "wheel", "tags", "--remove", "--platform-tag", tag]
        done = subprocess.run([*tagging, str(made)], check=True, capture_output=True, text=True)
        tagged = Path(name) / done.stdout.split()[-1]
        out.mkdir(parents=True, exist_ok=True)
        # Under a hidden name first: nobody finds half a wheel.
        hidden = out / f".{tagged.name}"
        shutil.copy2(tagged, hidden)
        return hidden.replace(out / tagged.name)


def policy(wheel: Path, arch: str) -> str:
    """The oldest manylinux that has what the library asks for; exits where none has, or where the
    library is for another machine."""
    with zipfile.ZipFile(wheel) as archive:
        elf = ELFFile(BytesIO(archive.read(LIBRARY)))
    if elf["e_machine"] != MACHINES[arch]:
        sys.exit(f"error: the library is for {elf['e_machine']}, not for {arch}")
    names = [
        version.name
        for section in elf.iter_sections()
        if isinstance(section, GNUVerNeedSection)
        for _, versions in section.iter_versions()
        for version in versions
    ]
    needs = [newest(names, "GLIBC_"), newest(names, "GLIBCXX_")]
    for tag, (glibc, libstdcxx) in POLICIES.items():
        if needs[0] <= glibc and needs[1] <= libstdcxx:
            return tag
    sys.exit(f"error: the library needs newer libraries than any manylinux has: {needs}")


def newest(names: list[str], prefix: str) -> tuple[int, ...]:
    """(2, 17) for GLIBC_2.17, the newest of them; () for none."""
    found = [re.fullmatch(rf"{prefix}([0-9.]+)", name) for name in names]
    return max((tuple(map(int, each[1].split("."))) for each in found if each), default=())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.formatter_class = argparse.RawDescriptionHelpFormatter
    parser.add_argument("--out", type=Path, default=Path("dist/kernels"))
    parser.add_argument("--arch", action="append", choices=sorted(MACHINES))
    parser.add_argument(
        "--no-isolation", action="store_true", help="build with the scikit-build-core that is here"
    )
    arguments = parser.parse_args()
    for arch in arguments.arch or [arch for arch in sorted(MACHINES) if compiler(arch)]:
        made = build(arch, arguments.out, not arguments.no_isolation)
        sys.stdout.write(f"{made}\n")


if __name__ == "__main__":
    main()
