"""macOS's powermetrics: a real process that prints as it does."""

from __future__ import annotations

import os
import stat
import sys
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgebench.meters import powermetrics as module
from edgebench.meters.base import Meter, MeterError, Reading, make_meter
from edgebench.meters.powermetrics import Powermetrics

CAPTURED = Path(__file__).parent / "captured"
M2 = (CAPTURED / "powermetrics_m2.txt").read_text()
INTEL = (CAPTURED / "powermetrics_intel.txt").read_text()
COMBINED = "Combined Power (CPU + GPU + ANE)"


class Mac:
    """A powermetrics that prints one block a line of orders, and a sudo that lets it."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.orders = path / "orders"
        os.mkfifo(self.orders)
        self.seen = path / "seen"
        tell = f'printf "%s " "$@" > {self.seen}'
        self.program("sudo", f'[ "$1" = -n ] || exit 8; {tell}; shift; exec "$@"')
        self.program(
            "powermetrics",
            f'exec {sys.executable} -S -c "{READER}" {self.orders} "$@"',
        )
        # Open for reading, too, so that neither side waits for the other.
        self.pen = os.open(self.orders, os.O_RDWR)

    def program(self, name: str, script: str) -> None:
        file = self.path / name
        file.write_text(f"#!/bin/sh\n{script}\n")
        file.chmod(file.stat().st_mode | stat.S_IXUSR)

    def block(self, text: str) -> None:
        """Print this now."""
        os.write(self.pen, text.encode().hex().encode() + b"\n")

    def end(self) -> None:
        """Exit now."""
        os.write(self.pen, b"\n")


#: Prints what the orders say, in hexadecimal, a line an order; an empty one ends it.
READER = """
import os, sys
for order in open(sys.argv[1]):
    if not order.strip(): sys.exit(4)
    os.write(1, bytes.fromhex(order))
"""


@pytest.fixture
def mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Mac]:
    made = Mac(tmp_path)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(module.os, "geteuid", lambda: 501)
    yield made
    os.close(made.pen)


@pytest.fixture
def meters() -> Iterator[list[Meter]]:
    """Meters that are closed at the end."""
    made: list[Meter] = []
    yield made
    for meter in made:
        meter.close()


def opened(mac: Mac, meters: list[Meter], first: str = M2, **options: object) -> Meter:
    meter = make_meter({"kind": "powermetrics", **options})
    meters.append(meter)
    mac.block(first)
    meter.open()
    return meter


def read(meter: Meter, count: int) -> list[Reading]:
    """So many readings, however many calls they take."""
    got: list[Reading] = []
    until = time.monotonic() + 20
    while len(got) < count and time.monotonic() < until:
        got += meter.read()
    return got


def changed(combined: int) -> str:
    """Another block."""
    return M2[M2.index("***") :].replace(
        "(CPU + GPU + ANE): 1172", f"(CPU + GPU + ANE): {combined}"
    )


def test_the_whole_soc_comes_first_then_its_parts_in_watts(mac: Mac, meters: list[Meter]) -> None:
    meter = make_meter({"kind": "powermetrics"})
    meters.append(meter)
    mac.block(M2)
    channels = meter.open()
    assert [(channel.name, channel.scope) for channel in channels] == [
        (COMBINED, "soc"),
        ("CPU Power", "rail"),
        ("GPU Power", "rail"),
        ("ANE Power", "rail"),
    ]
    assert channels[0].averaging_s == channels[0].period_s == 0.2
    assert channels[0].lag_s == pytest.approx(0.00341)
    assert channels[0].gain_error is None
    mac.block(changed(2500))
    got = read(meter, 4)
    assert [(index, watts) for index, _, watts in got] == [
        (0, 2.5),
        (1, pytest.approx(0.823)),
        (2, pytest.approx(0.026)),
        (3, pytest.approx(0.323)),
    ]
    assert len({t_ns for _, t_ns, _ in got}) == 1


def test_it_runs_by_sudo_without_a_password_and_is_told_the_interval(
    mac: Mac, meters: list[Meter]
) -> None:
    opened(mac, meters, interval_ms=250)
    seen = mac.seen.read_text().split()
    assert seen[0] == "-n"
    assert Path(seen[1]).name == "powermetrics"
    assert seen[2:] == ["--samplers", "cpu_power,gpu_power", "-i", "250", "-b", "1"]


def test_root_needs_no_sudo(mac: Mac, meters: list[Meter], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module.os, "geteuid", lambda: 0)
    opened(mac, meters)
    assert not mac.seen.exists()


def test_an_intel_mac_tells_its_package_in_watts(mac: Mac, meters: list[Meter]) -> None:
    meter = opened(mac, meters, INTEL)
    mac.block(INTEL)
    [(index, _, watts)] = read(meter, 1)
    assert (index, watts) == (0, 2.48)


def test_a_block_is_stamped_when_it_begins_to_come_though_it_comes_in_pieces(
    mac: Mac, meters: list[Meter]
) -> None:
    meter = opened(mac, meters)
    text = changed(900)
    cut = text.index("CPU Power") + 7
    mac.block(text[:cut])
    assert meter.read() == []
    between = module.clock()
    mac.block(text[cut:])
    got = read(meter, 4)
    assert got[0][1] < between
    assert got[0][2] == 0.9


def test_several_blocks_at_once_are_all_read(mac: Mac, meters: list[Meter]) -> None:
    meter = opened(mac, meters)
    mac.block(changed(100) + changed(200) + changed(300))
    got = read(meter, 12)
    assert [watts for index, _, watts in got if index == 0] == [0.1, 0.2, 0.3]


def test_closing_ends_the_program(mac: Mac, meters: list[Meter]) -> None:
    meter = opened(mac, meters)
    assert isinstance(meter, Powermetrics)
    process = meter.process
    assert process is not None
    meter.close()
    assert process.returncode is not None
    meter.close()


def test_closing_a_process_that_may_not_be_signalled_ends_it_by_not_reading(
    mac: Mac, meters: list[Meter], monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = opened(mac, meters)
    assert isinstance(meter, Powermetrics)
    process = meter.process
    assert process is not None

    def refused() -> None:
        raise PermissionError(1, "Operation not permitted")

    monkeypatch.setattr(process, "terminate", refused)
    # As powermetrics does on and on: print, into a pipe that nobody reads any more.
    printing = threading.Timer(0.2, mac.block, [changed(1)])
    printing.start()
    meter.close()
    assert process.wait(10) is not None
    printing.join()


def test_it_is_found_where_the_program_is(mac: Mac) -> None:
    assert Powermetrics.find() == [{"kind": "powermetrics"}]


def test_fault_this_is_no_mac(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(MeterError) as caught:
        Powermetrics.find()
    assert caught.value.code == "driver-missing"


@pytest.mark.parametrize(
    "complaint",
    ["sudo: a password is required", "powermetrics must be invoked as the superuser"],
)
def test_fault_it_is_not_allowed(
    mac: Mac, meters: list[Meter], complaint: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USER", "ada")
    mac.program("sudo", f'echo "{complaint}" >&2; exit 1')
    meter = make_meter({"kind": "powermetrics"})
    meters.append(meter)
    with pytest.raises(MeterError) as caught:
        meter.open()
    assert caught.value.code == "permission"
    assert "ada ALL=(root) NOPASSWD: /usr/bin/powermetrics" in caught.value.fix
    assert complaint in caught.value.message


def test_fault_a_virtual_mac_tells_no_power(mac: Mac, meters: list[Meter]) -> None:
    meter = make_meter({"kind": "powermetrics"})
    meters.append(meter)
    empty = "*** Sampled system activity (now) (200.0ms elapsed) ***\n\n**** Processor usage ****\n"
    mac.block(empty + empty)
    with pytest.raises(MeterError) as caught:
        meter.open()
    assert caught.value.code == "not-supported"


def test_fault_it_ends_during_the_run(mac: Mac, meters: list[Meter]) -> None:
    meter = opened(mac, meters)
    mac.end()
    with pytest.raises(MeterError) as caught:
        read(meter, 1)
    assert caught.value.code == "vanished"
    assert "status 4" in caught.value.message


def test_fault_it_goes_silent(
    mac: Mac, meters: list[Meter], monkeypatch: pytest.MonkeyPatch
) -> None:
    meter = opened(mac, meters)
    monkeypatch.setattr(module, "WAIT_S", 0.0)
    monkeypatch.setattr(module, "START_S", 0.0)
    monkeypatch.setattr(module, "SILENT_INTERVALS", 0)
    with pytest.raises(MeterError) as caught:
        read(meter, 1)
    assert caught.value.code == "frozen"


def test_fault_a_power_is_no_number(mac: Mac, meters: list[Meter]) -> None:
    for broken in ("nan", "n/a", "1.2.3"):
        meter = opened(mac, meters)
        mac.block(M2.replace("ANE Power: 323 mW", f"ANE Power: {broken} mW"))
        with pytest.raises(MeterError) as caught:
            read(meter, 1)
        assert caught.value.code == "bad-reading"
        meter.close()


def test_fault_a_part_is_missing_in_one_block(mac: Mac, meters: list[Meter]) -> None:
    meter = opened(mac, meters)
    mac.block(M2.replace("ANE Power: 323 mW\n", ""))
    with pytest.raises(MeterError) as caught:
        read(meter, 1)
    assert caught.value.code == "bad-reading"
    assert "ANE Power" in caught.value.message


def test_fault_its_warnings_do_not_stop_it(mac: Mac, meters: list[Meter]) -> None:
    """A pipe of 64 KiB that nobody reads would."""
    mac.program(
        "sudo", 'i=0; while [ $i -lt 3000 ]; do echo "Second underflow occured." >&2; '
        'i=$((i+1)); done; shift; exec "$@"'
    )  # fmt: skip
    meter = opened(mac, meters)
    mac.block(changed(42))
    assert read(meter, 4)[0][2] == 0.042


@pytest.mark.parametrize("options", [{"interval_ms": 10}, {"interval_ms": "1"}, {"n": 1}])
def test_options_that_can_not_be_are_refused(mac: Mac, options: dict[str, object]) -> None:
    with pytest.raises(MeterError) as caught:
        make_meter({"kind": "powermetrics", **options}).open()
    assert caught.value.code == "bad-option"
