"""Every shipped profile loads, has a page, and says whether it was ever run on the real thing."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import BaseModel

from edgebench.device import available, load
from edgebench.device_spec import (
    AdbSpec,
    AgentSpec,
    Expects,
    Limits,
    LocalSpec,
    MeterSpec,
    NoSpec,
    Profile,
    RuntimeSpec,
    SshSpec,
)
from edgebench.errors import ProfileError
from edgebench.workspace import Workspace

ROOT = Path(__file__).resolve().parents[2]
PAGES = ROOT / "docs" / "devices"
SHIPPED = sorted(path.stem for path in (ROOT / "devices").glob("*.toml"))
PROMISED = {
    "local",
    "local-torch",
    "local-torch-compiled",
    "local-cuda",
    "local-cuda-torch",
    "local-cuda-torch-compiled",
    "pi4",
    "pi5",
    "jetson-orin-nx",
    "mac-m2",
    "pixel8",
    "pixel8-adb",
    "iphone15",
    "linux-ssh",
    "rtx-a6000",
    "rtx-4090",
    "a100",
    "h200",
    "rtx-a6000-torch",
    "rtx-4090-torch",
    "a100-torch",
    "h200-torch",
}


@pytest.fixture
def bare(tmp_path: Path) -> Workspace:
    return Workspace.find(tmp_path)


def test_all_promised_profiles_are_shipped(bare: Workspace) -> None:
    assert set(SHIPPED) == PROMISED
    assert {line.id for line in available(bare) if line.builtin} == PROMISED
    assert [line.error for line in available(bare) if line.error] == []


@pytest.mark.parametrize("name", SHIPPED)
def test_a_shipped_profile_loads_and_has_a_page(bare: Workspace, name: str) -> None:
    device = load(name, bare)
    assert device.docs == f"docs/devices/{name}.md"
    page = PAGES / f"{name}.md"
    assert page.is_file()
    assert f"]({name}.md)" in (PAGES / "README.md").read_text()


@pytest.mark.parametrize("name", SHIPPED)
def test_what_was_never_run_says_so_at_the_top_of_its_page(bare: Workspace, name: str) -> None:
    device = load(name, bare)
    top = (PAGES / f"{name}.md").read_text().splitlines()[2]
    assert ("never run on the real thing" in top.lower()) == device.tested.startswith("never")
    (line,) = re.findall(
        rf"^\| \[{name}\].*\| (.*) \|$", (PAGES / "README.md").read_text(), re.MULTILINE
    )
    assert line == device.tested


@pytest.mark.parametrize("name", SHIPPED)
def test_a_device_that_is_not_this_machine_says_what_it_must_be(bare: Workspace, name: str) -> None:
    device = load(name, bare)
    if not name.startswith("local") and name != "linux-ssh":
        assert any(device.expects.model_dump().values())


@pytest.mark.parametrize("name", ["iphone15", "pixel8-adb"])
def test_what_cannot_be_measured_yet_refuses_with_its_reason(bare: Workspace, name: str) -> None:
    device = load(name, bare)
    with pytest.raises(ProfileError) as caught:
        device.require_usable()
    assert "yet" in str(caught.value)
    assert f"docs/devices/{name}.md" in str(caught.value)
    assert "can't be run yet" in (PAGES / f"{name}.md").read_text()


def test_a_pi_4_claims_no_power_sensor(bare: Workspace) -> None:
    assert load("pi4", bare).meters == ()


def test_named_gpus_are_the_local_gpu_with_an_identity(bare: Workspace) -> None:
    for name in ("rtx-a6000", "rtx-4090", "a100", "h200"):
        device = load(name, bare)
        assert device.expects.gpu is not None
        assert device.runtime == load("local-cuda", bare).runtime
        through_torch = load(f"{name}-torch", bare)
        assert through_torch.expects == device.expects
        assert through_torch.runtime == load("local-cuda-torch", bare).runtime
        assert through_torch.meters == device.meters
    a100 = load("a100", bare).expects
    assert a100.mismatches(gpu="NVIDIA A100-SXM4-80GB") == ()
    assert a100.mismatches(gpu="NVIDIA A100 80GB PCIe") == ()
    assert a100.mismatches(gpu="NVIDIA A100-SXM4-40GB") != ()


#: Heading of the page -> the model whose keys its table must list.
TABLES: dict[str, tuple[type[BaseModel], set[str]]] = {
    "Top level": (Profile, {"extends"}),
    "`expects`": (Expects, set()),
    '`transport` with `kind = "local"`': (LocalSpec, set()),
    '`transport` with `kind = "ssh"`': (SshSpec, set()),
    '`transport` with `kind = "adb"`': (AdbSpec, set()),
    '`transport` with `kind = "none"`': (NoSpec, set()),
    "`runtime`": (RuntimeSpec, set()),
    "`limits`": (Limits, set()),
    "`meters`": (MeterSpec, set()),
    "`agent`": (AgentSpec, set()),
}


def test_the_page_documents_every_key_and_no_other() -> None:
    sections = re.split(r"^### ", (PAGES / "README.md").read_text(), flags=re.MULTILINE)[1:]
    documented = {
        section.splitlines()[0]: set(re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE))
        for section in sections
    }
    assert documented == {
        heading: set(model.model_fields) | extra for heading, (model, extra) in TABLES.items()
    }


@pytest.mark.parametrize("heading", TABLES)
def test_the_documented_defaults_are_the_real_ones(heading: str) -> None:
    model, _ = TABLES[heading]
    text = (PAGES / "README.md").read_text().split(f"### {heading}\n")[1].split("\n### ")[0]
    for key, default in re.findall(r"^\| `(\w+)` \| [^|]+ \| ([^|]+) \|", text, re.MULTILINE):
        if key == "extends":
            continue
        field = model.model_fields[key]
        assert (default == "required") == field.is_required(), key
        if isinstance(field.default, str):
            assert default == f"`{field.default}`", key
        elif isinstance(field.default, bool):
            assert default == f"`{str(field.default).lower()}`", key
        elif isinstance(field.default, int | float):
            assert default == f"{field.default:g}", key


def test_the_example_of_the_page_is_a_profile(tmp_path: Path) -> None:
    text = (PAGES / "README.md").read_text()
    (example,) = re.findall(r"```toml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my-board.toml").write_text(example)
    device = load(str(tmp_path / "my-board.toml"), Workspace.find(tmp_path))
    assert device.runtime.threads == 4
    assert device.limits.memory_mb == 3200
