"""NVIDIA GPUs over a NVML that a test sets: what is delivered, declared and refused."""

from __future__ import annotations

import ctypes.util
import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from edgebench.meters import nvml as module
from edgebench.meters.base import Meter, MeterError, make_meter
from edgebench.meters.nvml import GRACE_HOPPER, SENSORS, UNKNOWN, Nvml
from tests.meters import fake_nvml
from tests.meters.fake_nvml import Gpu, Steps, World

A100 = {"name": "NVIDIA A100-SXM4-40GB", "architecture": 7, "capability": (8, 0)}
RTX_3090 = {
    "name": "NVIDIA GeForce RTX 3090",
    "architecture": 7,
    "capability": (8, 6),
    "window_s": 0.1,
    "mig": None,
}
RTX_4090 = {"name": "NVIDIA GeForce RTX 4090", "architecture": 8, "capability": (8, 9), "mig": None}


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """One H100 that draws 100 W, in a world whose time goes by when somebody waits."""
    made = World([Gpu(power_w=Steps(100.0))])
    fake_nvml.install(monkeypatch, made)
    monkeypatch.setattr(module, "clock", made.now_ns)
    monkeypatch.setattr(module, "sleep", made.advance)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.delenv("CUDA_DEVICE_ORDER", raising=False)
    return made


def meter(**options: object) -> Meter:
    return make_meter({"kind": "nvml", **options})


def refusal(**options: object) -> MeterError:
    with pytest.raises(MeterError) as caught:
        meter(**options).open()
    return caught.value


def replace(world: World, **changes: object) -> Gpu:
    world.gpus[0] = Gpu(**{"power_w": Steps(100.0), **changes})  # type: ignore[arg-type]
    world.gpus[0].power_w.world = world  # type: ignore[attr-defined]
    return world.gpus[0]


# what is delivered


def test_the_counter_and_the_instant_power_are_read_in_joules_and_watts(world: World) -> None:
    nvml = meter()
    channels = nvml.open()
    assert [(channel.name, channel.quantity) for channel in channels] == [
        ("total energy", "energy"),
        ("power", "power"),
    ]
    before = nvml.read()
    world.gpus[0].power_w.set(300.0)  # type: ignore[attr-defined]
    world.advance(2.0)
    after = nvml.read()
    assert after[0][2] - before[0][2] == pytest.approx(600.0, abs=30.0)
    assert (before[1][2], after[1][2]) == (100.0, 300.0)
    assert [reading[0] for reading in after] == [0, 1]
    assert after[0][1] == world.now_ns()
    nvml.close()
    assert world.initialised == 0


@pytest.mark.parametrize("period_s", [0.02, 0.05, 0.1])
def test_the_counters_period_is_measured_when_it_is_opened(world: World, period_s: float) -> None:
    world.gpus[0].period_s = period_s
    assert meter().open()[0].period_s == pytest.approx(period_s, abs=0.0015)


def test_a_counter_that_does_not_step_while_it_is_watched_is_declared_slow(world: World) -> None:
    world.gpus[0].frozen_at = 0.0
    assert meter().open()[0].period_s == module.WATCH_S


def test_hopper_and_ga100_declare_that_they_look_a_quarter_of_the_time(world: World) -> None:
    for changes in ({}, A100):
        replace(world, **changes)
        counter, power = meter().open()
        assert (counter.duty, power.duty) == (0.25, 0.25)
        assert power.averaging_s == 0.025
        assert power.period_s == 0.1
        assert "2312.02741" in power.accuracy_source


def test_grace_hopper_looks_a_fifth_of_the_time(world: World) -> None:
    replace(world, name="NVIDIA GH200 480GB")
    assert [channel.duty for channel in meter().open()] == pytest.approx([0.2, 0.2])


def test_a_turing_looks_always_and_volta_half_of_the_time(world: World) -> None:
    replace(world, architecture=6, capability=(7, 5), mig=None)
    assert meter().open()[1].duty == 1.0
    replace(world, architecture=5, capability=(7, 0), mig=None)
    power = meter().open()[1]
    assert (power.period_s, power.averaging_s, power.duty) == (0.02, 0.01, 0.5)


def test_a_gpu_of_which_nothing_is_published_counts_as_the_worst_and_says_so(world: World) -> None:
    replace(world, **RTX_4090)
    power = meter().open()[1]
    assert (8, 9) not in SENSORS
    worst = min(sensor.duty for sensor in (*SENSORS.values(), GRACE_HOPPER))
    assert power.duty == UNKNOWN.duty == worst
    assert "nothing is published" in power.accuracy_source


def test_without_the_instant_field_the_power_is_the_mean_of_a_second_from_ampere_on(
    world: World,
) -> None:
    replace(world, **RTX_3090, instant=False)
    power = meter().open()[1]
    assert power.averaging_s == 1.0
    assert "nvmlDeviceGetPowerUsage" in power.source
    replace(world, **A100, instant=False)
    assert meter().open()[1].averaging_s == 0.025


def test_a_driver_that_does_not_know_the_instant_field_is_asked_for_the_other(world: World) -> None:
    world.gpus[0].faults[186] = 2
    assert "nvmlDeviceGetPowerUsage" in meter().open()[1].source


def test_a_gpu_older_than_volta_has_power_alone(world: World) -> None:
    replace(world, architecture=4, capability=(6, 1), counter=False, instant=False, mig=None)
    nvml = meter()
    assert [channel.name for channel in nvml.open()] == ["power"]
    assert [reading[0] for reading in nvml.read()] == [0]


def test_every_gpu_is_found(world: World) -> None:
    world.gpus.append(Gpu(uuid="GPU-2"))
    assert Nvml.find() == [{"kind": "nvml", "index": 0}, {"kind": "nvml", "index": 1}]
    assert world.initialised == 0


# which GPU


def test_a_gpu_is_chosen_by_index_or_by_the_beginning_of_its_uuid(world: World) -> None:
    world.gpus.append(Gpu(uuid="GPU-22223333", power_w=lambda second: 55.0))
    for options in ({"index": 1}, {"uuid": "GPU-2222"}):
        nvml = meter(**options)
        nvml.open()
        assert nvml.read()[1][2] == 55.0


@pytest.mark.parametrize("visible", ["1", "1,0", "GPU-2222"])
def test_without_a_choice_it_is_the_gpu_that_cuda_sees_first(
    world: World, visible: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.gpus.append(Gpu(uuid="GPU-22223333", power_w=lambda second: 55.0))
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    nvml = meter()
    nvml.open()
    assert nvml.read()[1][2] == 55.0


def test_among_unlike_gpus_cudas_numbers_are_not_taken_for_nvmls(
    world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.gpus.append(Gpu(uuid="GPU-2", name="NVIDIA T4"))
    error = refusal()
    assert error.code == "bad-option"
    assert "uuid" in error.fix
    monkeypatch.setenv("CUDA_DEVICE_ORDER", "PCI_BUS_ID")
    meter().open()


@pytest.mark.parametrize("visible", ["", "-1"])
def test_a_hidden_gpu_is_not_measured(
    world: World, visible: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert refusal().code == "no-device"


@pytest.mark.parametrize("options", [{"index": 1}, {"index": -1}, {"uuid": "GPU-9"}])
def test_a_gpu_that_is_not_there_is_named(world: World, options: dict[str, object]) -> None:
    assert refusal(**options).code == "no-device"


@pytest.mark.parametrize(
    "options",
    [{"index": 0, "uuid": "GPU-1"}, {"index": "0"}, {"index": True}, {"scope": "board"}, {"x": 1}],
)
def test_options_that_can_not_be_are_refused(world: World, options: dict[str, object]) -> None:
    assert refusal(**options).code == "bad-option"


# faults


def test_fault_nvml_starts_and_supports_nothing(world: World) -> None:
    replace(world, counter=False, instant=False, usage=False, mig=None, capability=(8, 7))
    nvml = meter()
    with pytest.raises(MeterError) as caught:
        nvml.open()
    assert caught.value.code == "not-supported"
    assert "ina3221" in caught.value.fix
    nvml.close()
    assert world.initialised == 0


@pytest.mark.parametrize(
    ("name", "code", "fix"),
    [
        ("NVML_ERROR_LIBRARY_NOT_FOUND", "driver-missing", "--gpus all"),
        ("NVML_ERROR_DRIVER_NOT_LOADED", "driver-missing", "modprobe"),
        ("NVML_ERROR_LIB_RM_VERSION_MISMATCH", "driver-missing", "reboot"),
        ("NVML_ERROR_NO_PERMISSION", "permission", "/dev/nvidia"),
        ("NVML_ERROR_UNKNOWN", "io", ""),
    ],
)
def test_fault_nvml_does_not_start(world: World, name: str, code: str, fix: str) -> None:
    world.init_error = fake_nvml.ERRORS[name][0]
    for failing in (meter().open, Nvml.find):
        with pytest.raises(MeterError) as caught:
            failing()
        assert caught.value.code == code
        assert fix in caught.value.fix


def test_fault_the_gpu_is_lost_during_the_run(world: World) -> None:
    nvml = meter()
    nvml.open()
    nvml.read()
    world.gpus[0].faults["nvmlDeviceGetTotalEnergyConsumption"] = 15
    with pytest.raises(MeterError) as caught:
        nvml.read()
    assert caught.value.code == "vanished"
    assert "GPU 0" in caught.value.message


def test_fault_a_field_of_the_answer_fails_though_the_call_does_not(world: World) -> None:
    nvml = meter()
    nvml.open()
    world.gpus[0].faults[186] = 4
    with pytest.raises(MeterError) as caught:
        nvml.read()
    assert caught.value.code == "permission"


def test_fault_a_gpu_under_mig_is_refused(world: World) -> None:
    world.gpus[0].mig = 1
    error = refusal()
    assert error.code == "not-supported"
    assert "-mig 0" in error.fix


def test_fault_a_mig_slice_has_no_power(world: World, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "MIG-1f2e")
    assert refusal().code == "not-supported"


def test_fault_a_query_that_fails_otherwise_is_not_taken_for_unsupported(world: World) -> None:
    world.gpus[0].faults["nvmlDeviceGetTotalEnergyConsumption"] = 999
    assert refusal().code == "io"


def test_fault_a_counter_that_goes_backwards_is_passed_as_it_is(world: World) -> None:
    nvml = meter()
    nvml.open()
    before = nvml.read()[0][2]
    world.gpus[0].back_at, world.gpus[0].back_j = world.now(), 500.0
    assert nvml.read()[0][2] == pytest.approx(before - 500.0, abs=0.01)


def test_fault_a_frozen_counter_is_passed_as_it_is(world: World) -> None:
    nvml = meter()
    nvml.open()
    world.gpus[0].frozen_at = world.now()
    values = set()
    for _ in range(5):
        values.add(nvml.read()[0][2])
        world.advance(0.1)
    assert len(values) == 1


def test_fault_there_are_no_gpus(world: World) -> None:
    world.gpus.clear()
    with pytest.raises(MeterError) as caught:
        Nvml.find()
    assert caught.value.code == "no-device"


def test_fault_the_binding_is_not_installed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pynvml", None)
    error = refusal()
    assert error.code == "driver-missing"
    assert "edgebench setup" in error.fix
    assert Nvml.packages == ("nvidia-ml-py",)


# the fake, and the real package


def test_the_fake_has_the_real_bindings_names_and_numbers() -> None:
    real = pytest.importorskip("pynvml")
    fake = fake_nvml.module(World())
    for name, value in vars(fake).items():
        if name.startswith("__"):
            continue
        theirs = getattr(real, name)
        if isinstance(value, int):
            assert theirs == value, name
    for name, code in fake_nvml.ERROR_CLASSES.items():
        assert type(real.NVMLError(code)).__name__ == name
    assert real.NVML_FI_DEV_POWER_INSTANT == module.FIELD_POWER_INSTANT


@pytest.mark.skipif(
    ctypes.util.find_library("nvidia-ml") is not None, reason="NVIDIA's driver is here"
)
def test_the_real_binding_without_a_driver_says_that_the_driver_is_missing() -> None:
    pytest.importorskip("pynvml")
    importlib.invalidate_caches()
    with pytest.raises(MeterError) as caught:
        Nvml.find()
    assert caught.value.code == "driver-missing"


def busy_world() -> World:
    """For the sampler's own process, where time is real."""
    return World([Gpu(power_w=lambda second: 150.0, period_s=0.02, window_s=0.02)], real_time=True)


def test_the_sampler_opens_it_in_a_process_of_its_own(tmp_path: Path) -> None:
    fakes = fake_nvml.as_package(tmp_path / "fakes", "tests.meters.test_nvml:busy_world")
    root = Path(__file__).parents[2]
    done = subprocess.run(
        [sys.executable, "-m", "edgebench.meters.sampler", "probe", "nvml"],
        env={**os.environ, "PYTHONPATH": f"{fakes}:{root}"},
        capture_output=True,
        text=True,
        check=True,
    )
    [found] = json.loads(done.stdout)
    assert found["spec"] == {"kind": "nvml", "index": 0}
    assert found["readings"][1][2] == 150.0
    assert [channel["quantity"] for channel in found["channels"]] == ["energy", "power"]
