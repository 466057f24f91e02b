"""The library of native few-bit kernels, from this host onto a device: ``setup --kernels``.

    find one for the device - check its ELF header and symbol versions here - send it by digest -
    load it there, in a process of its own, and compare what it computes - switch over

It lies in the agent's own directory, ``~/.edgebench/native/<sha256>/libedgebench_ops.so``, with
``native/active`` naming the one in use. A library that does not load, computes something else or
ends its process never becomes the active one. Nothing is fetched from the internet: libraries are
built by ``make kernels`` (wheels of ``native/``), or come in the companion package.
"""

from __future__ import annotations

import base64
import hashlib
import importlib.util
import json
import re
import zipfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from io import BytesIO
from pathlib import Path
from typing import Any

from edgebench.agent.agent import NATIVE_ABI
from edgebench.errors import DeviceError, InputError, StorageError
from edgebench.transport.base import Transport

FILE = "libedgebench_ops.so"

_MACHINES = {"x86_64": "EM_X86_64", "aarch64": "EM_AARCH64"}

SMOKE_TIMEOUT_S = 300.0
"""An emulated device takes a minute to import ONNX Runtime; a real one seconds."""


@dataclass(frozen=True)
class Library:
    """A shared library as its ELF file describes it.

    Attributes:
        origin: where it came from, for messages.
        machine: "x86_64", "aarch64", or the ELF name of another.
        glibc: the newest symbol version of glibc that it asks for, (2, 17) for GLIBC_2.17.
        libstdcxx: the newest GLIBCXX version, (3, 4, 21) for GLIBCXX_3.4.21; () for none.
    """

    origin: str
    data: bytes
    machine: str
    glibc: tuple[int, ...]
    libstdcxx: tuple[int, ...]

    @property
    def digest(self) -> str:
        return hashlib.sha256(self.data).hexdigest()


@dataclass(frozen=True)
class Installed:
    """What the device said of the library that is now active there. ``sent``: False where it lay
    there already."""

    kernel: str
    version: str
    origin: str
    sent: bool

    def document(self) -> dict[str, Any]:
        return asdict(self)


def read_library(data: bytes, origin: str) -> Library:
    """A library from its bytes.

    Raises:
        InputError: it is no ELF shared library.
    """
    from elftools.common.exceptions import ELFError
    from elftools.elf.elffile import ELFFile
    from elftools.elf.gnuversions import GNUVerNeedSection

    try:
        elf = ELFFile(BytesIO(data))
        machine = next(
            (name for name, code in _MACHINES.items() if code == elf["e_machine"]),
            str(elf["e_machine"]),
        )
        shared = elf["e_type"] == "ET_DYN" and elf.elfclass == 64
        named = [
            version.name
            for section in elf.iter_sections()
            if isinstance(section, GNUVerNeedSection)
            for _, versions in section.iter_versions()
            for version in versions
        ]
    except (ELFError, ValueError, KeyError, AttributeError, UnicodeDecodeError) as error:
        raise InputError(f"the file is not a shared library: {error}", where=origin) from error
    if not shared:
        raise InputError("the file is not a 64-bit shared library", where=origin)
    return Library(origin, data, machine, _newest(named, "GLIBC_"), _newest(named, "GLIBCXX_"))


def _newest(names: Sequence[str], prefix: str) -> tuple[int, ...]:
    found = [re.fullmatch(rf"{prefix}([0-9.]+)", name) for name in names]
    return max((tuple(map(int, each[1].split("."))) for each in found if each), default=())


def misfit(library: Library, identity: dict[str, Any]) -> str:
    """Why a library can't run on a device, as far as its file tells; "" where it may.

    libstdc++ is not known from here: the device's own loader answers for it.
    """
    if identity["system"] != "Linux":
        return f"it is for Linux, the device runs {identity['system']}"
    if library.machine != identity["arch"]:
        return f"it is for {library.machine}, the device is {identity['arch']}"
    has = re.match(r"glibc (\d+)\.(\d+)", identity["libc"] or "")
    if has is None:
        return f"it needs glibc, the device has {identity['libc'] or 'another C library'}"
    if library.glibc > (there := (int(has[1]), int(has[2]))):
        return f"it needs glibc {_dotted(library.glibc)}, the device has {_dotted(there)}"
    return ""


def _dotted(version: tuple[int, ...]) -> str:
    return ".".join(map(str, version))


def choose(identity: dict[str, Any], source: Path | None, places: Sequence[Path]) -> Library:
    """The library for a device.

    Args:
        source: a library, a wheel of ``edgebench-native``, or a directory with either; None looks
            in ``places`` and then for the companion package.
        places: directories of wheels, such as ``dist/kernels`` of the workspace.

    Raises:
        InputError: the source can't be read, or holds no library of ours.
        DeviceError: there is none that fits the device.
    """
    if source is not None:
        found = list(_libraries(source))
        if not found:
            raise InputError(
                f"there is no wheel of edgebench-native and no {FILE} in it",
                where=str(source),
                fix="Name a library, a wheel, or a directory with either.",
            )
    else:
        found = [each for place in places if place.is_dir() for each in _libraries(place)]
        package = importlib.util.find_spec("edgebench_native")
        if package is not None and package.origin:
            beside = Path(package.origin).with_name(FILE)
            if beside.is_file():
                found += _libraries(beside)
    reasons = []
    for library in found:
        reason = misfit(library, identity)
        if not reason:
            return library
        reasons.append(f"{library.origin}: {reason}")
    raise DeviceError(
        f"no library of the native kernels fits this {identity['arch']} device"
        + (f" ({'; '.join(reasons)})" if reasons else ""),
        where=identity["hostname"] or "the device",
        fix="Build wheels of it with `make kernels` (for aarch64 it needs g++-aarch64-linux-gnu), "
        "or name one with --kernels-from.",
    )


def _libraries(source: Path) -> Iterator[Library]:
    """Libraries in a file or a directory: newest wheels first."""
    try:
        if source.is_dir():
            wheels = sorted(
                source.glob("edgebench_native-*.whl"), key=lambda p: -p.stat().st_mtime_ns
            )
            for path in [*wheels, *sorted(source.glob(FILE))]:
                yield from _libraries(path)
        elif source.suffix == ".whl":
            with zipfile.ZipFile(source) as archive:
                yield read_library(archive.read(f"edgebench_native/{FILE}"), str(source))
        else:
            yield read_library(source.read_bytes(), str(source))
    except (OSError, KeyError, zipfile.BadZipFile) as error:
        raise InputError(
            f"no library of the native kernels can be read from it: {error}",
            where=str(source),
            fix="Name a library, a wheel of edgebench-native, or a directory with either.",
        ) from error


async def install(
    transport: Transport, python: str, root: str, library: Library, device: str
) -> Installed:
    """Send a library that fits, try it on the device, and make it the active one.

    Args:
        python: the interpreter there, which has ONNX Runtime (or the agent's site has).
        root: the agent's directory there, absolute.

    Raises:
        DeviceError: it does not load there, ends its process, or computes something else. What was
            active stays so.
    """
    directory = f"{root}/native/{library.digest}"
    remote = f"{directory}/{FILE}"
    sent = not await transport.exists(remote)
    if sent:
        await _put(transport, library, remote)
    model, wanted = smoke_model()
    task = {
        "root": root,
        "path": remote,
        "digest": library.digest,
        "abi": NATIVE_ABI,
        "model": base64.b64encode(model).decode(),
        "wanted": wanted,
    }
    done = await transport.run([python, "-c", _TRY, json.dumps(task)], timeout_s=SMOKE_TIMEOUT_S)
    try:
        said = json.loads(done.stdout.splitlines()[-1]) if not done.returncode else {}
    except (IndexError, ValueError):
        said = {}
    if "kernel" not in said:
        words = done.stderr.decode("utf-8", "replace").strip().splitlines()
        reason = said.get("reason") or (words[-1] if words else "it said nothing")
        if done.returncode < 0:
            reason = f"it ended the process that tried it (signal {-done.returncode})"
        await transport.run([python, "-c", _REMOVE, directory])
        raise DeviceError(
            f"the native kernels do not work there: {reason}",
            where=f"{device}, {library.origin}",
            fix="ONNX Runtime's own 4-bit kernel goes on serving. Build the library for this "
            "device (docs/native.md).",
        )
    return Installed(said["kernel"], said["version"], library.origin, sent)


async def _put(transport: Transport, library: Library, remote: str) -> None:
    from tempfile import TemporaryDirectory

    try:
        with TemporaryDirectory(prefix="edgebench-kernels-") as name:
            local = Path(name) / FILE
            local.write_bytes(library.data)
            local.chmod(0o755)
            await transport.put(local, remote)
    except OSError as error:
        raise StorageError(f"the library can't be written: {error}", where=FILE) from error


def smoke_model() -> tuple[bytes, list[list[float]]]:
    """A model of one MatMul3Bit without its body, and what it gives for rows of i % 13 - 6.

    The last value of each block is 127, so rounding to int8 changes nothing and the sums are exact.
    """
    import numpy as np
    from numpy.typing import NDArray
    from onnx import TensorProto, helper, numpy_helper

    from edgebench.quantize import functions
    from edgebench.quantize.packing import pack

    n, k, block, rows = 19, 96, 32, 3
    codes = (np.arange(n * k).reshape(n, k) * 5 % 8 - 4).astype(np.int8)
    scales = (np.arange(n * k // block).reshape(n, -1) % 5 * 0.25 + 0.25).astype(np.float16)
    low, high = pack(codes)
    x = (np.arange(rows * k).reshape(rows, k) % 13 - 6).astype(np.float64)
    x[:, block - 1 :: block] = 127
    wanted = x @ (codes * np.repeat(scales.astype(np.float64), block, axis=1)).T
    node = helper.make_node(
        functions.MATMUL,
        ["X", "low", "high", "scales"],
        ["Y"],
        domain=functions.DOMAIN,
        K=k,
        N=n,
        block_size=block,
    )
    planes: dict[str, NDArray[Any]] = {"low": low, "high": high, "scales": scales}
    graph = helper.make_graph(
        [node],
        "smoke",
        [helper.make_tensor_value_info("X", TensorProto.FLOAT, [rows, k])],
        [helper.make_tensor_value_info("Y", TensorProto.FLOAT, [rows, n])],
        [numpy_helper.from_array(value, name) for name, value in planes.items()],
    )
    opsets = [("", functions.OPSET), (functions.DOMAIN, functions.DOMAIN_VERSION)]
    model = helper.make_model(
        graph, opset_imports=[helper.make_opsetid(*each) for each in opsets], ir_version=9
    )
    return bytes(model.SerializeToString()), wanted.tolist()


#: Runs on the device, under its Python: check what has arrived, load it, compute with it, and name
#: it as the active one. A crash ends this process and nothing else.
_TRY = """
import base64, ctypes, hashlib, json, os, shutil, sys
task = json.loads(sys.argv[1])
def leave(**said):
    print(json.dumps(said))
    sys.exit(0)
with open(task["path"], "rb") as stream:
    if hashlib.sha256(stream.read()).hexdigest() != task["digest"]:
        leave(reason="the file arrived broken: its digest does not match. Run setup again.")
sys.path.insert(0, os.path.join(task["root"], "site", "active"))
try:
    library = ctypes.CDLL(task["path"])
    library.edgebench_native_version.restype = ctypes.c_char_p
    library.edgebench_native_kernel.restype = ctypes.c_char_p
    version, kernel = library.edgebench_native_version(), library.edgebench_native_kernel()
    abi = int(library.edgebench_native_abi())
except OSError as error:
    leave(reason="it can't be loaded: %s" % error)
except AttributeError:
    leave(reason="it is not a library of edgebench's kernels")
if abi != task["abi"]:
    leave(reason="it has ABI %d, this edgebench writes for ABI %d" % (abi, task["abi"]))
if kernel is None:
    leave(reason="EDGEBENCH_NATIVE_KERNEL names no kernel of this processor")
import numpy, onnxruntime
options = onnxruntime.SessionOptions()
options.log_severity_level = 4
try:
    options.register_custom_ops_library(task["path"])
    session = onnxruntime.InferenceSession(
        base64.b64decode(task["model"]), options, providers=["CPUExecutionProvider"])
    rows, k = session.get_inputs()[0].shape
    x = numpy.arange(rows * k).reshape(rows, k) % 13 - 6
    x[:, 31::32] = 127
    found = session.run(None, {"X": x.astype(numpy.float32)})[0]
except Exception as error:
    leave(reason="ONNX Runtime %s can't use it: %s" % (onnxruntime.__version__, error))
wanted = numpy.array(task["wanted"])
worst = float(numpy.abs(found - wanted).max() / numpy.abs(wanted).max())
if not worst < 1e-5:
    leave(reason="it computes something else: off by %.2g of the largest value" % worst)
base, name = os.path.split(os.path.dirname(task["path"]))
link = os.path.join(base, ".link")
if os.path.islink(link):
    os.unlink(link)
os.symlink(name, link)
os.replace(link, os.path.join(base, "active"))
for other in os.listdir(base):
    if other not in (name, "active"):
        shutil.rmtree(os.path.join(base, other), ignore_errors=True)
leave(kernel=kernel.decode(), version=version.decode())
"""

#: Runs on the device: take away a library that does not work, unless it is the active one.
_REMOVE = """
import os, shutil, sys
active = os.path.join(os.path.dirname(sys.argv[1]), "active")
if os.path.realpath(active) != os.path.realpath(sys.argv[1]):
    shutil.rmtree(sys.argv[1], ignore_errors=True)
"""
