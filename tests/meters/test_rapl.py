"""RAPL counters: which zones are read, what is declared of them, and what is refused."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from edgebench.meters.base import MeterError
from edgebench.meters.rapl import Rapl
from tests.meters.sysfs_trees import RANGE_UJ, Tree, rapl

ROOT = Path(__file__).parents[2]


def test_a_package_is_a_counter_in_joules_that_wraps(tree, make):
    rapl(tree)
    meter = make("rapl")
    (channel,) = meter.open()
    assert (channel.name, channel.quantity, channel.scope) == ("package-0", "energy", "package")
    assert channel.wrap_j == pytest.approx(262143.32885)
    assert channel.resolution == pytest.approx(2**-14, rel=1e-3)
    assert channel.period_s == 0.001
    assert channel.gain_error is None
    assert "not published" in channel.accuracy_source
    before, after = meter.read(), meter.read()
    assert before[0][0] == 0
    assert before[0][2] == pytest.approx(104500.0)
    assert after[0][1] > before[0][1]


def test_two_sockets_are_two_channels_and_never_a_sum(tree, make):
    rapl(tree, packages=2)
    meter = make("rapl")
    assert [channel.name for channel in meter.open()] == ["package-0", "package-1"]
    assert [reading[0] for reading in meter.read()] == [0, 1]


def test_one_socket_can_be_named(tree, make):
    rapl(tree, packages=2)
    assert [channel.name for channel in make("rapl", domain="package-1").open()] == ["package-1"]


def test_parts_of_a_package_are_rails_and_keep_its_name(tree, make):
    rapl(tree, packages=2)
    cores = make("rapl", domain="core").open()
    assert [channel.name for channel in cores] == ["package-0/core", "package-1/core"]
    assert {channel.scope for channel in cores} == {"rail"}
    (memory,) = make("rapl", domain="package-1/dram").open()
    assert memory.name == "package-1/dram"


def test_psys_is_the_soc_unless_the_profile_knows_more(tree, make):
    rapl(tree, psys=True)
    (channel,) = make("rapl", domain="psys").open()
    assert (channel.scope, channel.resolution) == ("soc", 1.0)  # 1 J steps, as Sapphire Rapids has
    assert make("rapl", domain="psys", scope="board").open()[0].scope == "board"


def test_the_second_road_to_a_package_is_not_counted_beside_the_first(tree, make):
    rapl(tree, mmio=True)
    meter = make("rapl")
    (channel,) = meter.open()
    assert channel.source.endswith("(intel-rapl:0)")
    assert meter.read()[0][2] == pytest.approx(104500.0)


def test_the_second_road_serves_where_there_is_no_first(tree, make):
    tree.fill(
        "class/powercap/intel-rapl-mmio:0",
        {"name": "package-0", "energy_uj": 5, "max_energy_range_uj": RANGE_UJ},
    )
    assert "mmio" in make("rapl").open()[0].source


def test_a_wrapped_counter_is_passed_on_as_it_is(tree, make):
    rapl(tree)
    energy = "class/powercap/intel-rapl:0/energy_uj"
    tree.put(energy, RANGE_UJ - 1000)
    meter = make("rapl")
    meter.open()
    before = meter.read()[0][2]
    tree.put(energy, 2000)
    after = meter.read()[0][2]
    assert before == pytest.approx(262143.32785)
    assert after == pytest.approx(0.002)


def test_a_frozen_counter_is_passed_on_as_it_is(tree, make):
    rapl(tree)
    meter = make("rapl")
    meter.open()
    assert len({meter.read()[0][2] for _ in range(5)}) == 1


def test_without_the_class_it_says_why(refused):
    error = refused("rapl")
    assert error.code == "no-device"
    assert "is not there" in error.message
    assert "modprobe intel_rapl_msr" in error.fix


def test_a_machine_with_other_power_caps_has_no_rapl(tree, refused):
    tree.put("class/powercap/dtpm/enabled", 1)
    tree.fill("class/powercap/dtpm:0", {"name": "soc", "energy_uj": 1})
    assert "has no RAPL zone" in refused("rapl").message


def test_a_domain_that_is_not_there_names_those_that_are(tree, refused):
    rapl(tree)
    error = refused("rapl", domain="psys")
    assert error.code == "no-device"
    assert error.fix == "It has: package-0, package-0/core, package-0/dram."


def test_text_that_is_no_number_is_refused_at_once(tree, refused):
    rapl(tree)
    tree.put("class/powercap/intel-rapl:0/energy_uj", "many")
    error = refused("rapl")
    assert (error.code, "'many'" in error.message) == ("bad-reading", True)


@pytest.mark.parametrize("wrong", [0, -1, "none"])
def test_a_range_that_can_not_be_is_refused(tree, refused, wrong):
    rapl(tree)
    tree.put("class/powercap/intel-rapl:0/max_energy_range_uj", wrong)
    assert refused("rapl").code == "bad-reading"


def test_an_unknown_key_is_refused_with_those_there_are(refused):
    error = refused("rapl", zone="package-0")
    assert (error.code, error.fix) == ("bad-option", "It takes: domain, sysfs.")


@pytest.fixture
def public() -> Iterator[Tree]:
    """A sysfs that everybody can walk, as pytest's own folders can't be."""
    with tempfile.TemporaryDirectory() as folder:
        Path(folder).chmod(0o755)
        yield Tree(Path(folder) / "sys")


@pytest.mark.skipif(os.getuid() != 0, reason="only root can become somebody else")
def test_who_is_not_root_is_told_how_to_be_let_in(public):
    """The file as Linux 5.10 and later make it (mode 0400), read by a real other user."""
    rapl(public)
    path = public.root / "class/powercap/intel-rapl:0/energy_uj"
    path.chmod(0o400)
    program = (
        "import json, os, sys\n"
        "import edgebench.meters.rapl\n"
        "from edgebench.meters.sampler import opened\n"
        "os.setgroups([]); os.setegid(65534); os.seteuid(65534)\n"
        "print(json.dumps(opened({'kind': 'rapl', 'sysfs': sys.argv[1]})))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program, str(public.root)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
    )
    error = json.loads(done.stdout)["error"]
    assert error["code"] == "permission"
    assert error["message"] == f"{path} can't be read: permission denied"
    assert f"sudo chmod a+r {path}" in error["fix"]
    assert 'SUBSYSTEM=="powercap"' in error["fix"]
    assert "CVE-2020-8694" in error["fix"]


def test_a_right_that_is_taken_away_during_the_run_is_named(tree, make, monkeypatch):
    rapl(tree)
    meter = make("rapl")
    meter.open()

    def denied(*_: object) -> bytes:
        raise PermissionError(errno.EACCES, "Permission denied")

    monkeypatch.setattr(os, "pread", denied)
    with pytest.raises(MeterError) as caught:
        meter.read()
    assert (caught.value.code, "udev" in caught.value.fix) == ("permission", True)


@pytest.mark.parametrize("number", [errno.ENODEV, errno.ENXIO, errno.ENOENT])
def test_a_driver_that_is_unbound_during_the_run_has_vanished(tree, make, monkeypatch, number):
    rapl(tree)
    meter = make("rapl")
    meter.open()

    def gone(*_: object) -> bytes:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr(os, "pread", gone)
    with pytest.raises(MeterError, match="energy_uj is gone") as caught:
        meter.read()
    assert caught.value.code == "vanished"


def test_another_failure_of_the_system_is_told_in_its_words(tree, make, monkeypatch):
    rapl(tree)
    meter = make("rapl")
    meter.open()

    def broken(*_: object) -> bytes:
        raise OSError(errno.EIO, os.strerror(errno.EIO))

    monkeypatch.setattr(os, "pread", broken)
    with pytest.raises(MeterError, match="Input/output error") as caught:
        meter.read()
    assert caught.value.code == "io"


def test_what_is_found_can_be_opened(tree, make):
    rapl(tree, packages=2, psys=True)
    found = Rapl.find(str(tree.root))
    assert [table["domain"] for table in found] == ["package", "core", "dram", "psys"]
    names = [channel.name for table in found for channel in make(**table).open()]
    assert len(names) == len(set(names)) == 7


def test_nothing_found_is_an_error_that_says_why(tree):
    with pytest.raises(MeterError) as caught:
        Rapl.find(str(tree.root))
    assert caught.value.code == "no-device"


def test_files_are_closed(tree, make):
    rapl(tree, packages=2)
    before = len(os.listdir("/proc/self/fd"))
    meter = make("rapl")
    meter.open()
    assert len(os.listdir("/proc/self/fd")) == before + 2
    meter.close()
    assert len(os.listdir("/proc/self/fd")) == before
