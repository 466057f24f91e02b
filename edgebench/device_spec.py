"""What a device profile may say: the tables of ``devices/*.toml`` as strict, frozen models.

Each model is one table of the file; docs/devices/README.md documents every key (a test compares
the two). Nothing is coerced: a number in quotes is a text, and refused where a number belongs.
Reading files, ``extends`` and the wording of errors are in :mod:`edgebench.device`.

Units: ``_mb`` is 10**6 bytes, ``_c`` degrees Celsius, ``_s`` seconds.
"""

from __future__ import annotations

import re
from collections.abc import Collection
from fnmatch import fnmatchcase
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field, model_validator

#: A CPU number above any machine's: Linux's own limit, NR_CPUS_DEFAULT with MAXSMP, is 8192.
MAX_CPU = 8191

#: What a meter sees. ``board``: all that the device draws at its input; ``module``: a compute
#: module without its carrier; ``wall``: before the power supply.
Scope = Literal["wall", "board", "module", "soc", "rail", "package", "gpu", "battery"]
Provider = Literal["cpu", "cuda", "tensorrt", "coreml", "xnnpack"]
#: What ``runtime.options`` may say to PyTorch: edgebench.runtimes.torch_runtime has the meanings.
TORCH_OPTIONS = {"device_id", "mode", "attention", "matmul_precision"}


def parse_cpus(text: str) -> tuple[int, ...]:
    """The CPU numbers of a list such as ``"0-3,6"``, ascending, each once.

    The form is that of Linux cpusets (cpuset(7), "List format"), without strides.

    Raises:
        ValueError: the text is not such a list; the message says what is wrong.
    """
    cpus: set[int] = set()
    for part in text.split(","):
        match = re.fullmatch(r"\s*([0-9]{1,4})(?:-([0-9]{1,4}))?\s*", part)
        if match is None:
            raise ValueError(f'{part.strip()!r} is no CPU or range of CPUs; write "0-3" or "0,2"')
        first = int(match[1])
        last = int(match[2]) if match[2] is not None else first
        if last < first or last > MAX_CPU:
            raise ValueError(f"the range {part.strip()} runs backwards or past CPU {MAX_CPU}")
        cpus.update(range(first, last + 1))
    return tuple(sorted(cpus))


def _host(value: str) -> str:
    # OpenSSH refuses these too (ssh.c, valid_hostname): a name may end in a ProxyCommand's shell.
    if not re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9_.:%-]*", value):
        raise ValueError("must be a host name, an IP address, or a Host of ~/.ssh/config")
    return value


def _user(value: str) -> str:
    if re.search(r"[\s'\"`$;&<>|(){}]", value) or value.startswith("-"):
        raise ValueError("must be a user name")
    return value


def _jumps(value: str) -> str:
    for hop in value.split(","):
        user, _, rest = hop.strip().rpartition("@")
        host, _, port = rest.partition(":") if rest.count(":") == 1 else (rest, "", "")
        try:
            _host(host)
            _user(user)
            int(port or "22")
        except ValueError as error:
            raise ValueError('must be jump hosts such as "me@gate.lab:2222"') from error
    return value


def _threads(value: Any) -> Any:
    whole = isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= MAX_CPU + 1
    if value != "auto" and not whole:
        raise ValueError('must be a number of threads (1 or more) or "auto"')
    return value


def _affinity(value: str) -> str:
    if value not in ("auto", "none"):
        try:
            parse_cpus(value)
        except ValueError as error:
            raise ValueError(
                f'must be a list of CPUs such as "0-3,6", "auto" or "none" ({error})'
            ) from error
    return value


Name = Annotated[str, Field(min_length=1, max_length=64, pattern=r"^[a-z0-9][a-z0-9-]*$")]
Text = Annotated[str, Field(min_length=1)]
Port = Annotated[int, Field(ge=1, le=65535)]


class Table(BaseModel):
    """A table of a profile: unknown keys refused, types as written, never changed."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True, allow_inf_nan=False)


class Expects(Table):
    """What the box must be, so that nobody measures the wrong one. Each is a shell pattern.

    ``model`` is the device tree's or DMI's machine model, ``cpu`` the CPU's own name, ``gpu`` the
    GPU's as its driver says it, ``arch`` and ``system`` as ``uname`` says them.
    """

    model: Text | None = None
    arch: Text | None = None
    system: Text | None = None
    cpu: Text | None = None
    gpu: Text | None = None

    def mismatches(self, **found: str | None) -> tuple[str, ...]:
        """One sentence for each pattern that the box does not match; none when it is the one.

        Args:
            found: ``model``, ``arch``, ``system``, ``cpu``, ``gpu`` as the device said them; None
                or left out where it could not say. What can't be read does not match.
        """
        unknown = found.keys() - Expects.model_fields.keys()
        if unknown:
            raise TypeError(f"no such identity: {', '.join(sorted(unknown))}")
        sentences = []
        for key in Expects.model_fields:
            pattern = getattr(self, key)
            if pattern is None:
                continue
            value = (found.get(key) or "").strip("\0 \t\r\n")
            if key == "arch":
                pattern, value = _ARCH.get(pattern, pattern), _ARCH.get(value, value)
            if not value:
                sentences.append(f'its {key} can\'t be read, its profile expects "{pattern}"')
            elif not fnmatchcase(value, pattern):
                sentences.append(f'its {key} is "{value}", its profile expects "{pattern}"')
        return tuple(sentences)


#: One architecture, two names: macOS says arm64, BSD and Windows say amd64.
_ARCH = {"arm64": "aarch64", "amd64": "x86_64", "AMD64": "x86_64"}


class LocalSpec(Table):
    """This machine."""

    kind: Literal["local"] = "local"


class SshSpec(Table):
    """A machine reached over SSH. What is left out comes from ``~/.ssh/config``."""

    kind: Literal["ssh"]
    host: Annotated[str, AfterValidator(_host)]
    user: Annotated[str, AfterValidator(_user)] | None = None
    port: Port | None = None
    identity_file: Text | None = None
    proxy_jump: Annotated[str, AfterValidator(_jumps)] | None = None
    connect_timeout_s: float = Field(default=15.0, gt=0, le=600)


class AdbSpec(Table):
    """A phone on a USB cable of this machine."""

    kind: Literal["adb"]
    serial: Text | None = None


class NoSpec(Table):
    """Can't be reached: its results are imported."""

    kind: Literal["none"]


TransportSpec = Annotated[LocalSpec | SshSpec | AdbSpec | NoSpec, Field(discriminator="kind")]
TRANSPORTS: dict[str, type[Table]] = {
    "local": LocalSpec,
    "ssh": SshSpec,
    "adb": AdbSpec,
    "none": NoSpec,
}


class RuntimeSpec(Table):
    """What executes the model there, and on which CPUs."""

    kind: Literal["onnxruntime", "torch"] = "onnxruntime"
    provider: Provider = "cpu"
    compile: bool = False
    threads: Annotated[int | Literal["auto"], BeforeValidator(_threads)] = "auto"
    affinity: Annotated[str, AfterValidator(_affinity)] = "auto"
    allow_spinning: bool = True
    python: Text | None = None
    options: dict[str, str | int | float | bool] = Field(default_factory=dict)

    @model_validator(mode="after")
    def _keys_fit_the_kind(self) -> RuntimeSpec:
        if self.kind == "onnxruntime":
            if self.compile:
                raise ValueError('has compile = true, which belongs to kind = "torch"')
            return self
        if self.provider not in ("cpu", "cuda"):
            raise ValueError(f'has provider "{self.provider}", but kind "torch" has cpu and cuda')
        if not self.allow_spinning:
            raise ValueError('has allow_spinning, which belongs to kind = "onnxruntime"')
        unknown = sorted(set(self.options) - TORCH_OPTIONS)
        if unknown:
            known = ", ".join(sorted(TORCH_OPTIONS))
            raise ValueError(f'has options.{unknown[0]}, but kind "torch" has {known}')
        return self

    @model_validator(mode="after")
    def _threads_fit_the_cpus(self) -> RuntimeSpec:
        if self.affinity in ("auto", "none") or self.threads == "auto":
            return self
        cpus = len(parse_cpus(self.affinity))
        if self.threads > cpus:
            raise ValueError(f"has {self.threads} threads for the {cpus} CPUs of its affinity")
        return self

    def place(self, available: Collection[int]) -> Placement:
        """Where the model runs on a device whose process may use the CPUs ``available``.

        ``threads = "auto"`` is all of them but one, which is left to the harness and the meters.
        ``affinity = "auto"`` takes the last ones: the first serves most interrupts, and on phones
        the last are the fast ones.

        Raises:
            ValueError: a CPU of the affinity is not available there, or none is.
        """
        usable = sorted(available)
        if not usable:
            raise ValueError("no CPU is available")
        if self.affinity not in ("auto", "none"):
            cpus = parse_cpus(self.affinity)
            missing = sorted(set(cpus) - set(usable))
            if missing:
                raise ValueError(f"CPU {', '.join(map(str, missing))} of its affinity is not there")
            return Placement(
                threads=len(cpus) if self.threads == "auto" else self.threads, cpus=cpus
            )
        threads = max(1, len(usable) - 1) if self.threads == "auto" else self.threads
        if self.affinity == "none":
            return Placement(threads=threads, cpus=None)
        if threads > len(usable):
            raise ValueError(f"{threads} threads are more than the {len(usable)} CPUs there")
        return Placement(threads=threads, cpus=tuple(usable[-threads:]))


class Placement(Table):
    """Threads of the model, and the CPUs that they are pinned to (None: not pinned)."""

    threads: int
    cpus: tuple[int, ...] | None


class Limits(Table):
    """What the device can bear. Left out: no such limit is set."""

    #: The worker's memory limit: a model that needs more is reported as out of memory.
    memory_mb: int | None = Field(default=None, gt=0)
    #: Above this a run is INVALID.
    temperature_c: float | None = Field(default=None, gt=0, lt=150)
    #: A launch begins at or below this; it waits up to ``cooldown_max_s`` for it.
    cooldown_c: float | None = Field(default=None, gt=0, lt=150)
    cooldown_max_s: float = Field(default=600.0, gt=0)
    #: Least and most power that it can draw at all: readings outside it are refused, since a unit
    #: or a shunt must be wrong.
    power_w: tuple[float, float] | None = Field(default=None, strict=False)

    @model_validator(mode="after")
    def _cooldown_is_cooler(self) -> Limits:
        hot, cool = self.temperature_c, self.cooldown_c
        if hot is not None and cool is not None and cool > hot:
            raise ValueError(f"has cooldown_c = {cool:g} above temperature_c = {hot:g}")
        return self

    @model_validator(mode="after")
    def _power_is_a_range(self) -> Limits:
        if self.power_w is not None and not 0 <= self.power_w[0] < self.power_w[1]:
            raise ValueError("has power_w that is no range; write power_w = [1, 16]")
        return self


class MeterSpec(BaseModel):
    """A power source that sees the device. Its other keys belong to its kind, which checks them."""

    model_config = ConfigDict(extra="allow", frozen=True, strict=True, allow_inf_nan=False)

    kind: Name
    scope: Scope | None = None

    @property
    def options(self) -> dict[str, Any]:
        """The keys of the kind itself, as written."""
        return dict(self.model_extra or {})


class AgentSpec(Table):
    """Where edgebench lives on the device, and the name of the lock that makes its use exclusive.

    Profiles that share a machine share its lock: ``local`` and ``local-cuda`` can't run at once.
    """

    root: Text = "~/.edgebench"
    lock: Name = "device"


class Profile(Table):
    """A whole profile, as in its file."""

    name: Text
    expects: Expects = Expects()
    transport: TransportSpec
    runtime: RuntimeSpec = RuntimeSpec()
    limits: Limits = Limits()
    meters: tuple[MeterSpec, ...] = Field(default=(), strict=False)
    agent: AgentSpec = AgentSpec()
    refuses: str | None = None
    tested: Text = "never on the real thing"
    docs: Text | None = None
