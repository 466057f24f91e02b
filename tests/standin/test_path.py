"""The path to a device, end to end by the command line: an arm64 Linux that says it is a Pi 4.

From the first refusal of its host key over set-up, doctor and runs to the tables. Figures mean
nothing here, and the last tests check that edgebench knows it.
"""

from __future__ import annotations

import csv
import json
import math
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from edgebench.errors import DeviceError
from edgebench.measure import run, run_many
from edgebench.recording import Recording
from edgebench.results.tables import build
from edgebench.transport.ssh_link import CONFIG_VARIABLE
from edgebench.verdict import Code, Status, Verdict, judge

from .bench import ON_STANDIN, SHORT, StandInBench, until_idle
from .rootfs import cache_dir
from .standin import StandIn

Done = subprocess.CompletedProcess[str]


@pytest.fixture
def bench(tmp_path: Path) -> Iterator[StandInBench]:
    found = StandInBench(tmp_path)
    yield found
    found.close()


def verdict(loaded: Any, index: int = 0) -> Verdict:
    return judge(loaded.recording, loaded.samples, loaded.state, index)


# -- from nothing to a table, once, by the commands of docs/devices/pi4.md


@dataclass
class Story:
    """What each command said, and what was on the device after it."""

    pi: StandIn
    bench: StandInBench
    done: dict[str, Done] = field(default_factory=dict)
    files: dict[str, dict[str, int]] = field(default_factory=dict)

    def tell(self, chapter: str, *arguments: Any) -> None:
        self.done[chapter] = self.bench.run(*arguments)
        root = self.pi.home() / ".edgebench"
        self.files[chapter] = {
            str(path.relative_to(root)): path.lstat().st_ino
            for path in root.rglob("*")
            if path.is_file() and "runs" not in path.parts
        }


@pytest.fixture(scope="module")
def story(standin_root: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Story]:
    with pytest.MonkeyPatch.context() as patch, StandIn("pi4") as pi:
        patch.setenv(CONFIG_VARIABLE, str(pi.ssh_config_path))
        patch.setenv("XDG_CACHE_HOME", str(cache_dir() / "host"))  # wheels are fetched once
        pi.known_hosts_path.write_text("")  # nobody has ever been there
        bench = StandInBench(tmp_path_factory.mktemp("story"))
        bench.stand_in("bench", pi)
        story = Story(pi, bench)
        a, b = bench.artifact("a"), bench.artifact("b")
        story.tell("stranger", "run", "--device", "bench", a)
        story.tell("wrong", "setup", "--device", "bench", "--accept", "SHA256:" + "A" * 43)
        story.tell("setup", "setup", "--device", "bench", "--accept", pi.host_fingerprint)
        story.tell("again", "setup", "--device", "bench", "--accept", "SHA256:none")
        story.tell("doctor", "doctor", "--device", "bench")
        story.tell("run", "run", "--device", "bench", a, b, *SHORT, "--accuracy", "10")
        story.tell("second", "run", "--device", "bench", b, *SHORT, "--accuracy", "none")
        story.tell("table", "table", "--emulated", "--json")
        yield story
        bench.close()


def test_an_unknown_host_key_is_refused_with_what_mends_it(story: Story) -> None:
    done = story.done["stranger"]
    assert done.returncode == 4
    assert f"is not known: ssh-ed25519 {story.pi.host_fingerprint}" in done.stderr
    assert "accept it with `edgebench setup --device bench`" in done.stderr
    assert story.files["stranger"] == {}


def test_another_fingerprint_than_the_devices_is_not_accepted(story: Story) -> None:
    done = story.done["wrong"]
    assert done.returncode == 4
    assert f"was not accepted ({story.pi.host_fingerprint})" in done.stderr
    assert "ssh-keygen -lf" in done.stderr
    assert story.files["wrong"] == {}


def test_setup_accepts_the_key_and_unpacks_the_runtime_of_this_hosts_wheels(story: Story) -> None:
    done = story.done["setup"]
    assert done.returncode == 0, done.stderr
    assert story.pi.known_hosts_path.read_text().split()[1:3] == story.pi.host_public_key.split()
    assert "bench is ready: Python 3.11" in done.stdout
    assert "aarch64.whl" in done.stdout
    root = story.pi.home() / ".edgebench"
    assert (root / "site/active/onnxruntime/__init__.py").is_file()
    # What was unpacked, and the link to it: no half-unpacked directory beside them.
    (unpacked,) = [path for path in (root / "site").iterdir() if path.name != "active"]
    assert (root / "site/active").readlink() == Path(unpacked.name)
    assert not list((root / "wheels").iterdir())


def test_a_second_setup_sends_and_installs_nothing(story: Story) -> None:
    done = story.done["again"]
    assert done.returncode == 0, done.stderr
    assert "nothing to install" in done.stdout
    assert story.files["again"] == story.files["setup"]


def test_doctor_names_what_it_sees_and_what_to_do(story: Story) -> None:
    done = story.done["doctor"]
    assert done.returncode == 1, done.stderr
    title, *lines = done.stdout.splitlines()
    assert title.startswith(
        "bench · Raspberry Pi 4 Model B Rev 1.4 · aarch64 · Debian GNU/Linux 12"
    )
    assert "Python 3.11" in title
    assert "onnxruntime 1." in title
    text = "\n".join(lines)
    for finding in (
        " ok    reachable in ",
        "host key known",
        " ok    clock offset ",
        "FAIL  this is an emulated machine (qemu-aarch64)",
        " ok    CPUExecutionProvider, 1 thread on CPU 0",
        "free memory, ",
        "free disk at /home/pi/.edgebench",
        "foreign load",
        "warn  governor is ondemand: p50 will wander  echo performance | sudo tee",
        " ok    48 °C (cpu-thermal)",
        " ok    never throttled or under-voltage since boot",
        "no power source in its profile",
    ):
        assert finding in text, f"{finding!r} is missing in\n{text}"
    assert lines[-1].endswith("1 failure: runs on this device will be INVALID until mended.")


def test_a_run_is_recorded_as_a_local_one_is_and_marked_emulated(story: Story) -> None:
    done = story.done["run"]
    assert done.returncode == 0, done.stderr
    assert "device bench · EMULATED" in done.stdout
    assert "launch 1/1" in done.stderr
    store = story.bench.store
    assert len(store.list()) == 2
    loaded = store.load(store.list()[0])
    assert loaded.recording.device.emulated
    assert loaded.recording.device.fingerprint["arch"] == "aarch64"
    assert loaded.recording.device.fingerprint["emulator"] == "qemu-aarch64"
    assert loaded.recording.status == "done"
    assert [solo.accuracy.n for solo in loaded.recording.solo if solo.accuracy] == [10, 10]
    for index in (0, 1):
        found = verdict(loaded, index)
        assert found.status is Status.INVALID
        assert Code.EMULATED in found.codes
    until_idle(story.pi)
    assert not list((story.pi.home() / ".edgebench/runs").iterdir())


def test_a_second_run_sends_nothing(story: Story) -> None:
    assert story.done["second"].returncode == 0, story.done["second"].stderr
    assert "sending" in story.done["run"].stderr
    assert "sending" not in story.done["second"].stderr
    assert story.files["second"] == story.files["run"]


def test_emulated_rows_stay_out_of_the_files_and_come_when_asked_for(story: Story) -> None:
    rows = json.loads(story.done["table"].stdout)["latency"]
    assert len(rows) == 3
    assert len({row["recording_id"] for row in rows}) == 2
    assert all(row["emulated"] for row in rows)
    assert "edgebench table --emulated" in story.bench.run("table").stdout
    for name in ("latency", "energy", "power"):
        path = story.bench.path / "results/tables" / f"{name}.csv"
        assert list(csv.reader(path.open()))[1:] == []


# -- what it is, and what happens to it while it measures


def connect(pi: StandIn, monkeypatch: pytest.MonkeyPatch, *others: StandIn) -> None:
    """Let edgebench find stand-ins by their aliases."""
    config = pi.ssh_config_path.with_name("all")
    config.write_text("".join(each.ssh_config_path.read_text() for each in (pi, *others)))
    monkeypatch.setenv(CONFIG_VARIABLE, str(config))


def test_another_machine_than_the_profiles_is_refused_before_anything_is_measured(
    standin_root: Path, bench: StandInBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StandIn("pi5") as pi:
        connect(pi, monkeypatch)
        device = bench.stand_in("bench", pi, extends="pi4")
        with pytest.raises(DeviceError, match='its model is "Raspberry Pi 5') as caught:
            run(device, [bench.artifact()], bench.store, ON_STANDIN)
        assert 'expects "Raspberry Pi 4*"' in caught.value.what
        assert caught.value.exit_code == 4
        assert "another profile" in caught.value.fix
        assert bench.store.list() == ()
        assert not (pi.home() / ".edgebench/runs").exists()
        assert not (pi.home() / ".edgebench/cache").exists()


def test_what_happens_to_the_device_while_it_measures_reaches_the_verdict(
    standin_root: Path, bench: StandInBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StandIn("pi4", onnxruntime=True) as pi:
        connect(pi, monkeypatch)
        device = bench.stand_in("bench", pi)
        seconds = 0

        def trouble(event: dict[str, Any]) -> None:
            nonlocal seconds
            if event["event"] != "progress":
                return
            seconds += 1
            if seconds == 2:
                pi.set("class/thermal/thermal_zone0/temp", 81250)
                pi.set("devices/system/cpu/cpufreq/policy0/scaling_cur_freq", 600000)
                pi.set_throttled(0x50005)

        options = replace(ON_STANDIN, min_duration_s=4.0)
        recording = run(device, [bench.artifact()], bench.store, options, report=trouble)
        doctor = bench.run("doctor", "--device", "bench")
    found = {r.code: r.seen for r in verdict(bench.store.load(recording.id)).reasons}
    assert found[Code.TOO_HOT] == "it reached 81.2 °C, its profile's limit is 75 °C"
    assert "between 600 and 1800 MHz" in found[Code.FREQUENCY_CHANGED]
    assert "throttled=0x50005" in found[Code.UNDER_VOLTAGE]
    assert "throttled" in found[Code.THROTTLED]
    assert Code.GOVERNOR in found
    assert doctor.returncode == 1
    assert "FAIL  81 °C (cpu-thermal), its limit is 75 °C  Let it cool" in doctor.stdout
    assert "FAIL  under-voltage, throttled right now (throttled=0x50005)" in doctor.stdout


def test_two_devices_are_measured_side_by_side(
    standin_root: Path, bench: StandInBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    with StandIn("pi4", onnxruntime=True) as four, StandIn("pi5", onnxruntime=True) as five:
        connect(four, monkeypatch, five)
        devices = [
            bench.stand_in("pi4", four, extends="pi4"),
            bench.stand_in("pi5", five, extends="pi5"),
        ]
        artifacts = [bench.artifact("a")]
        order: list[tuple[str, str]] = []
        outcomes = run_many(
            devices,
            artifacts,
            bench.store,
            replace(ON_STANDIN, energy="off"),  # two minutes of windows prove nothing here
            report=lambda event: order.append((event["device"], event["event"])),
        )
        recordings: list[Recording] = []
        for outcome in outcomes:
            assert outcome.error is None, outcome.error
            assert outcome.recording is not None
            recordings.append(outcome.recording)
        until_idle(four)
        until_idle(five)
    assert [recording.device.name for recording in recordings] == ["pi4", "pi5"]
    models = [recording.device.fingerprint["model"] for recording in recordings]
    assert models[0].startswith("Raspberry Pi 4")
    assert models[1].startswith("Raspberry Pi 5")
    # Side by side: each had begun before the other had ended.
    starts = [order.index((name, "started")) for name in ("pi4", "pi5")]
    ends = [order.index((name, "stored")) for name in ("pi4", "pi5")]
    assert max(starts) < min(ends)


def test_a_meter_on_the_device_fills_the_row_of_energy(
    standin_root: Path, bench: StandInBench, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The meters' files are sent, run by the arm64 Python there, and come back as joules.

    What the sensor says is known: 4 W, give or take a digit that never rests.
    """
    table = '[[meters]]\nkind = "hwmon"\nscope = "board"\nchip = "ina226"\n'
    options = replace(ON_STANDIN, energy_window_s=2.5, energy_precision=0.5)
    with StandIn("pi4", onnxruntime=True) as pi:
        connect(pi, monkeypatch)
        pi.set_power(lambda t: 4 + 0.05 * math.sin(1000 * t))
        device = bench.stand_in("bench", pi, more=table)
        recording = run(device, [bench.artifact()], bench.store, options)
        doctor = bench.run("doctor", "--device", "bench")
        listed = bench.run("meters", "--device", "bench", "--json")
        until_idle(pi)
    (meter,) = recording.meters
    assert meter.failure is None
    loaded = bench.store.load(recording.id)
    (row,) = build([loaded], include_emulated=True).energy.to_dict("records")
    windows = [w for launch in recording.launches for w in launch.energy_windows]
    seconds = sum(w.end_ns - w.begin_ns for w in windows) / 1e9
    a_call_s = seconds / sum(w.calls for w in windows)
    assert row["energy_per_inference_j"] == pytest.approx(4 * a_call_s, rel=0.1), row["reason"]
    assert row["energy_per_inference_j_lo"] < 4 * a_call_s < row["energy_per_inference_j_hi"]
    assert row["idle_power_w"] == pytest.approx(4, rel=0.02)
    assert row["emulated"]
    assert "emulated" in row["reasons"]
    assert "meter hwmon" in doctor.stdout
    assert "board, every 35 ms" in doctor.stdout
    there = [each for each in json.loads(listed.stdout) if each["channels"]]
    assert {"hwmon"} <= {each["kind"] for each in there}
