"""Every reason that can stand beside a figure: one closed list.

Each says what was seen, why it matters, and what to do next. A severity decides the verdict:

INVALID     the figures don't describe the device and artifact named; don't publish them
UNDECIDED   nothing is wrong, but the evidence doesn't carry all figures; measure more
NOTE        worth knowing; the figures stand

The table in docs/measurement.md is made from this list (``markdown_table``; a test compares them).
The form follows hyperfine's ``src/output/warnings.rs``: one list, one file.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from types import MappingProxyType


class Severity(StrEnum):
    INVALID = "INVALID"
    UNDECIDED = "UNDECIDED"
    NOTE = "note"


class Code(StrEnum):
    """Stable names, as they stand in the tables' ``reasons`` column, in order of display."""

    OUT_OF_MEMORY = "out-of-memory"
    KILLED = "killed"
    CRASHED = "crashed"
    WORKER_ERROR = "worker-error"
    NOTHING_MEASURED = "nothing-measured"
    LAUNCHES_FAILED = "launches-failed"
    EMULATED = "emulated"
    TOKENS_DIFFER = "tokens-differ"
    CLOCK_BACKWARDS = "clock-backwards"
    FOREIGN_LOAD = "foreign-load"
    STOLEN_TIME = "stolen-time"
    FREQUENCY_CHANGED = "frequency-changed"
    UNDER_VOLTAGE = "under-voltage"
    THROTTLED = "throttled"
    UNDER_VOLTAGE_SINCE_BOOT = "under-voltage-since-boot"
    TOO_HOT = "too-hot"
    SWAPPING = "swapping"
    SOURCES_DISAGREE = "sources-disagree"
    DEADLINE = "deadline"
    CANCELLED = "cancelled"
    CUT_SHORT = "cut-short"
    ONE_LAUNCH = "one-launch"
    FEW_LAUNCHES = "few-launches"
    NOT_STEADY = "not-steady"
    STOPPED_BY_TIME = "stopped-by-time"
    P50_SAMPLES = "p50-samples"
    P90_SAMPLES = "p90-samples"
    P95_SAMPLES = "p95-samples"
    P99_SAMPLES = "p99-samples"
    P999_SAMPLES = "p999-samples"
    TEMPERATURE_DRIFT = "temperature-drift"
    ENERGY_WIDE = "energy-wide"
    NO_ENERGY = "no-energy"
    WITHHELD = "withheld"
    THROTTLED_SINCE_BOOT = "throttled-since-boot"
    NATIVE_UNUSED = "native-unused"
    GOVERNOR = "governor"
    ENERGY_NOTE = "energy-note"
    ACCURACY_UNMEASURED = "accuracy-unmeasured"
    STATE_UNKNOWN = "state-unknown"


@dataclass(frozen=True, slots=True)
class Rule:
    """What a code means. ``seen`` and ``fix`` are templates over the reason's fields."""

    severity: Severity
    seen: str
    why: str
    fix: str


@dataclass(frozen=True)
class Reason:
    """One code with what was seen this time."""

    code: Code
    fields: Mapping[str, object] = field(default_factory=dict)

    @property
    def severity(self) -> Severity:
        return RULES[self.code].severity

    @property
    def seen(self) -> str:
        return RULES[self.code].seen.format_map(self.fields)

    @property
    def why(self) -> str:
        return RULES[self.code].why

    @property
    def fix(self) -> str:
        return RULES[self.code].fix.format_map(self.fields)

    @property
    def text(self) -> str:
        """What was seen and what to do: two sentences."""
        return f"{self.seen}. {self.fix}"


def reason(code: Code, **fields: object) -> Reason:
    """A reason; fails at once (KeyError) if a field of its templates is missing."""
    made = Reason(code, MappingProxyType(dict(fields)))
    assert made.text
    return made


def _few(percentile: str, needed: int) -> Rule:
    return Rule(
        Severity.UNDECIDED,
        f"{percentile} needs {{more}} more samples ({{n}} of {needed})",
        f"Below {needed} samples no sample bounds {percentile} at 99 % confidence, one slow call "
        "allowed, so the figure is withheld.",
        f"Give it more --max-duration or --launches, and --min-count {needed} or more.",
    )


_I, _U, _N = Severity.INVALID, Severity.UNDECIDED, Severity.NOTE

RULES: Mapping[Code, Rule] = MappingProxyType(
    {
        Code.OUT_OF_MEMORY: Rule(
            _I,
            "the worker ran out of memory ({where})",
            "Where it survives at all it swaps or is near it; such times are the memory's.",
            "Use a smaller artifact, batch or sequence, or a device with more memory.",
        ),
        Code.KILLED: Rule(
            _I,
            "the worker was killed ({where})",
            "Calls that would have been slow may be missing from the samples.",
            "See the device's kernel log (dmesg) for who killed it, then measure again.",
        ),
        Code.CRASHED: Rule(
            _I,
            "the worker crashed ({where})",
            "Calls that would have been slow may be missing from the samples.",
            "Run the artifact on another runtime version; the recording has the error's text.",
        ),
        Code.WORKER_ERROR: Rule(
            _I,
            "the worker reported an error ({where}): {error}",
            "Calls that would have been slow may be missing from the samples.",
            "Mend what the error names, then measure again.",
        ),
        Code.NOTHING_MEASURED: Rule(
            _I,
            "no call of this artifact was counted",
            "There is nothing to take a figure from.",
            "See the other reasons; measure again when they are mended.",
        ),
        Code.LAUNCHES_FAILED: Rule(
            _I,
            "{failed} of {total} launches failed",
            "Launches that survive are not a fair sample of all launches.",
            "Mend what made them fail, then measure again.",
        ),
        Code.EMULATED: Rule(
            _I,
            "the device is emulated",
            "Emulated time is the host's, not the device's.",
            "Measure on the device itself; an emulated one proves the path, never the figure.",
        ),
        Code.TOKENS_DIFFER: Rule(
            _I,
            "the fp32 decoder generated other tokens here than PyTorch did: {where}",
            "Greedy tokens of the same model are the same; this one computes something else here.",
            "Export it again, or use another runtime version; the recording has all tokens.",
        ),
        Code.CLOCK_BACKWARDS: Rule(
            _I,
            "the clock stood still or went back {count} times",
            "Durations taken from such a clock mean nothing.",
            "Check the device's clock source, then measure again.",
        ),
        Code.FOREIGN_LOAD: Rule(
            _I,
            "other processes used {percent} % of the measured CPUs (launch {launch})",
            "The model shared its cores and caches, so it ran slower than it does alone.",
            "Stop what else runs there (`top`), then measure again.",
        ),
        Code.STOLEN_TIME: Rule(
            _I,
            "the hypervisor took {percent} % of the measured CPUs' time (launch {launch})",
            "Time that the virtual machine did not run was counted as the model's.",
            "Use a machine of your own, or measure when its host is quiet.",
        ),
        Code.FREQUENCY_CHANGED: Rule(
            _I,
            "the CPU frequency moved between {low_mhz} and {high_mhz} MHz ({percent} %)",
            "The figures mix two speeds of the same device.",
            "Fix the frequency (governor performance, turbo off), then measure again.",
        ),
        Code.UNDER_VOLTAGE: Rule(
            _I,
            "the supply voltage fell too low while measuring (throttled={flags})",
            "A Raspberry Pi lowers its clock when its supply sags.",
            "Use a supply and cable that hold 5.1 V at 3 A, reboot, then measure again.",
        ),
        Code.THROTTLED: Rule(
            _I,
            "the device was held back while measuring: {what} (throttled={flags})",
            "It ran slower than it can; the figures describe its cooling.",
            "Cool it, reboot, then measure again.",
        ),
        Code.UNDER_VOLTAGE_SINCE_BOOT: Rule(
            _I,
            "the supply voltage fell too low since boot (throttled={flags})",
            "The flag stays set, so it can't be told whether it happened again while measuring.",
            "Use a supply and cable that hold 5.1 V at 3 A, reboot, then measure again.",
        ),
        Code.TOO_HOT: Rule(
            _I,
            "it reached {temperature_c} °C, its profile's limit is {limit_c} °C",
            "Above its limit a device protects itself by slowing down.",
            "Cool it, or let it rest between runs, then measure again.",
        ),
        Code.SWAPPING: Rule(
            _I,
            "memory came back from disk while measuring ({what})",
            "Calls waited for the disk, which is no property of the model.",
            "Free memory on the device, or use a smaller artifact.",
        ),
        Code.SOURCES_DISAGREE: Rule(
            _I,
            "two sources of the same scope disagree: {first} over {second} is {ratio}",
            "At least one of them is wrong by more than its data sheet allows.",
            "Check wiring, shunt and units of both; remove the wrong one from the profile.",
        ),
        Code.DEADLINE: Rule(
            _U,
            "the run's deadline ended it ({where})",
            "Part of what was asked for was not measured.",
            "Allow more time, or ask for less.",
        ),
        Code.CANCELLED: Rule(
            _U,
            "the run was interrupted ({where})",
            "Part of what was asked for was not measured.",
            "Run it again to the end.",
        ),
        Code.CUT_SHORT: Rule(
            _U,
            "the run ended early on the device ({status})",
            "Part of what was asked for was not measured.",
            "Run it again; `edgebench doctor` says what is wrong with the device.",
        ),
        Code.ONE_LAUNCH: Rule(
            _U,
            "only one launch was measured",
            "Launches differ three to ten times more than calls within one, so the intervals here "
            "are too narrow for another launch.",
            "Measure again with --launches 5.",
        ),
        Code.FEW_LAUNCHES: Rule(
            _U,
            "{count} of {total} launches have counted calls",
            "The protocol promised more launches; the intervals stand on those that there are.",
            "See the other reasons, or run it again.",
        ),
        Code.NOT_STEADY: Rule(
            _U,
            "warm-up reached no steady state in {count} of {total} launches",
            "Figures may mix a cold and a warm device.",
            "Allow a longer warm-up, or remove what disturbs the device.",
        ),
        Code.STOPPED_BY_TIME: Rule(
            _U,
            "time was up in {count} of {total} launches: {what}",
            "The stop rule that the protocol promised was not met.",
            "Give it more --max-duration, or be content with a wider --precision.",
        ),
        Code.P50_SAMPLES: _few("p50", 11),
        Code.P90_SAMPLES: _few("p90", 64),
        Code.P95_SAMPLES: _few("p95", 130),
        Code.P99_SAMPLES: _few("p99", 662),
        Code.P999_SAMPLES: _few("p99.9", 6636),
        Code.TEMPERATURE_DRIFT: Rule(
            _U,
            "{zone} warmed from {start_c} to {end_c} °C while measuring",
            "The first minute and the steady state are two figures; these mix them.",
            "Measure again while it is warm, or with a longer warm-up.",
        ),
        Code.ENERGY_WIDE: Rule(
            _U,
            "the energy of a call is known to ± {half} %, asked ± {asked} %",
            "The sensor's own errors, or the spread between windows and launches, allow no less.",
            "Give it more --launches or --energy-max-duration, a better sensor, or be content "
            "with a wider --energy-precision.",
        ),
        Code.NO_ENERGY: Rule(
            _U,
            "no energy: {why}",
            "A figure that could not be measured is empty; it is never 0.",
            "See `edgebench meters` and docs/energy.md for what would mend it.",
        ),
        Code.WITHHELD: Rule(
            _N,
            "withheld, and not asked for: {what}",
            "The samples are too few to bound these percentiles at 99 % confidence.",
            "Ask for them with --percentile when measuring, if you need them.",
        ),
        Code.THROTTLED_SINCE_BOOT: Rule(
            _N,
            "the device was held back at some time since boot: {what} (throttled={flags})",
            "Not seen while measuring, but the flag stays set and would hide a short repeat.",
            "Reboot before measuring to clear the flags.",
        ),
        Code.NATIVE_UNUSED: Rule(
            _N,
            "edgebench's kernels were not used: {why}",
            "ONNX Runtime computed the few-bit weights with its own 4-bit kernel instead.",
            "Build native/ for this device, or unset EDGEBENCH_NATIVE (docs/native.md).",
        ),
        Code.GOVERNOR: Rule(
            _N,
            'the frequency governor is "{governor}"',
            "The frequency may follow the load, and the latency with it.",
            "Set it to performance (`cpupower frequency-set -g performance`).",
        ),
        Code.ENERGY_NOTE: Rule(
            _N,
            "energy: {what}",
            "It bears on how far the figure can be trusted.",
            "See docs/energy.md.",
        ),
        Code.ACCURACY_UNMEASURED: Rule(
            _N,
            "{what} was not measured",
            "A fast artifact that answers wrongly is no gain.",
            "Export with {data}, and measure with --accuracy all.",
        ),
        Code.STATE_UNKNOWN: Rule(
            _N,
            "the device does not tell its {what}",
            "What can't be seen can't be ruled out.",
            "Nothing to do if the device has no such sensor; else see `edgebench doctor`.",
        ),
    }
)


def markdown_table() -> str:
    """The whole list as the table of docs/measurement.md."""
    rows = [
        "| code | severity | what was seen | why it matters | what to do |",
        "|---|---|---|---|---|",
    ]
    for code, rule in RULES.items():
        rows.append(f"| `{code}` | {rule.severity} | {rule.seen} | {rule.why} | {rule.fix} |")
    return "\n".join(rows) + "\n"
