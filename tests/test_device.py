"""A device is one short file, and whatever is wrong with it is said in one sentence."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from edgebench.device import Device, RuntimeSpec, SshSpec, available, load, parse_cpus
from edgebench.device_spec import Expects, Placement
from edgebench.errors import ProfileError
from edgebench.workspace import PARTS, Workspace

SSH = 'name = "x"\ntransport = { kind = "ssh", host = "h" }\n'

Write = Callable[..., Path]


@pytest.fixture
def workspace(tmp_path: Path) -> Workspace:
    for part in PARTS:
        (tmp_path / part).mkdir()
    return Workspace(tmp_path)


@pytest.fixture
def write(workspace: Workspace) -> Write:
    def write(text: str, name: str = "mine") -> Path:
        path = workspace.root / "devices" / f"{name}.toml"
        path.write_text(text)
        return path

    return write


def test_a_profile_is_one_short_file(workspace: Workspace, write: Write) -> None:
    path = write(
        'name = "Raspberry Pi 4 (4 GB)"\n'
        'expects = { model = "Raspberry Pi 4*", arch = "aarch64" }\n'
        'transport = { kind = "ssh", host = "pi4.local", user = "pi" }\n'
        'runtime = { kind = "onnxruntime", provider = "cpu", threads = 4, affinity = "0-3" }\n'
        "limits = { memory_mb = 3200, temperature_c = 75 }\n"
        "[[meters]]\n"
        'kind = "ina226"\nbus = 1\naddress = 0x40\nshunt_mohm = 10\nscope = "board"\n'
    )
    device = load("mine", workspace)
    assert (device.id, device.name, device.path) == ("mine", "Raspberry Pi 4 (4 GB)", path)
    assert isinstance(device.transport, SshSpec)
    assert device.transport.host == "pi4.local"
    assert device.runtime.threads == 4
    assert device.limits.temperature_c == 75
    assert device.meters[0].options == {"bus": 1, "address": 0x40, "shunt_mohm": 10}
    assert device.agent.root == "~/.edgebench"


def test_a_profile_says_by_itself_that_it_was_never_tested(
    workspace: Workspace, write: Write
) -> None:
    write(SSH)
    assert load("mine", workspace).tested == "never on the real thing"


#: What stands in the file, and what the sentence must hold.
WRONG: dict[str, tuple[str, tuple[str, ...]]] = {
    "nothing": ("", ("`name` is missing", 'name = "My board"')),
    "no transport": ('name = "x"', ("`transport` is missing", 'kind = "local"')),
    "key misspelt": (SSH + 'nmae = "y"', ("unknown key `nmae`", "Did you mean `name`?")),
    "nested key misspelt": (
        SSH + "runtime = { treads = 3 }",
        ("unknown key `runtime.treads`", "Did you mean `threads`?"),
    ),
    "transport key misspelt": (
        'name = "x"\ntransport = { kind = "ssh", host = "h", prot = 22 }',
        ("unknown key `transport.prot`", "Did you mean `port`?"),
    ),
    "key in the wrong table": (
        SSH + "threads = 3",
        ("unknown key `threads`", "belongs into the table [runtime]"),
    ),
    "key of another kind": (
        'name = "x"\ntransport = { kind = "local", host = "h" }',
        ("belongs to a transport of kind 'ssh'", 'kind = "ssh"'),
    ),
    "key like no other": (SSH + "limits = { zzz = 1 }", ("unknown key `limits.zzz`", "memory_mb")),
    "kind misspelt": (
        'name = "x"\ntransport = { kind = "shh", host = "h" }',
        ("`transport.kind` is 'shh'", 'Did you mean "ssh"?'),
    ),
    "kind missing": (
        'name = "x"\ntransport = { host = "h" }',
        ("does not say of which kind", 'kind = "ssh"'),
    ),
    "kind of a wrong type": (
        'name = "x"\ntransport = { kind = 3 }',
        ("`transport.kind` is 3", "ssh"),
    ),
    "host missing": (
        'name = "x"\ntransport = { kind = "ssh" }',
        ("`transport.host` is missing", 'host = "pi4.local"'),
    ),
    "host with a command": (
        'name = "x"\ntransport = { kind = "ssh", host = "h; rm -rf /" }',
        ("`transport.host` must be a host name",),
    ),
    "host like an option": (
        'name = "x"\ntransport = { kind = "ssh", host = "-oProxyCommand=x" }',
        ("`transport.host` must be a host name",),
    ),
    "user with a command": (
        'name = "x"\ntransport = { kind = "ssh", host = "h", user = "$(id)" }',
        ("`transport.user` must be a user name",),
    ),
    "jump host with a command": (
        'name = "x"\ntransport = { kind = "ssh", host = "h", proxy_jump = "gate;id" }',
        ("`transport.proxy_jump` must be jump hosts",),
    ),
    "port in quotes": (
        'name = "x"\ntransport = { kind = "ssh", host = "h", port = "22" }',
        ("`transport.port` must be a whole number, not '22'", "without quotes"),
    ),
    "port too large": (
        'name = "x"\ntransport = { kind = "ssh", host = "h", port = 99999 }',
        ("`transport.port` must be 65535 or less",),
    ),
    "password": (
        'name = "x"\ntransport = { kind = "ssh", host = "h", password = "p" }',
        ("profiles hold no passwords", "SSH key"),
    ),
    "password in a meter": (
        SSH + '[[meters]]\nkind = "shelly"\npassword = "p"',
        ("`meters.1.password`", "profiles hold no passwords"),
    ),
    "threads in quotes": (
        SSH + 'runtime = { threads = "4" }',
        ("`runtime.threads` must be a number of threads", '"auto"'),
    ),
    "no threads": (SSH + "runtime = { threads = 0 }", ("`runtime.threads` must be",)),
    "true threads": (SSH + "runtime = { threads = true }", ("`runtime.threads` must be",)),
    "more threads than CPUs": (
        SSH + 'runtime = { threads = 8, affinity = "0-3" }',
        ("8 threads for the 4 CPUs",),
    ),
    "affinity": (
        SSH + 'runtime = { affinity = "3-1" }',
        ("`runtime.affinity` must be a list of CPUs", "runs backwards"),
    ),
    "provider": (
        SSH + 'runtime = { provider = "cdua" }',
        ("`runtime.provider` is 'cdua'", "'cuda'"),
    ),
    "spinning": (
        SSH + "runtime = { allow_spinning = 1 }",
        ("`runtime.allow_spinning` must be true or false",),
    ),
    "option": (
        SSH + "runtime = { options = { a = [1] } }",
        ("`runtime.options.a` must be a text, a number, true or false",),
    ),
    "runtime no table": (SSH + 'runtime = "cpu"', ("`runtime` must be a table",)),
    "transport no table": ('name = "x"\ntransport = "ssh"', ("`transport` must be a table",)),
    "limit": (SSH + "limits = { memory_mb = -1 }", ("`limits.memory_mb` must be more than 0",)),
    "limit not finite": (SSH + "limits = { temperature_c = inf }", ("not a finite number",)),
    "cool-down": (
        SSH + "limits = { temperature_c = 70, cooldown_c = 80 }",
        ("cooldown_c = 80 above temperature_c = 70",),
    ),
    "meters no list": (SSH + "meters = 3", ("`meters` must be a list", "[[meters]]")),
    "meter without a kind": (SSH + '[[meters]]\nscope = "board"', ("`meters.1.kind` is missing",)),
    "scope": (
        SSH + '[[meters]]\nkind = "ina226"\nscope = "bord"',
        ("`meters.1.scope` is 'bord'", "'board'"),
    ),
    "NUL": (SSH + 'agent = { root = "a\\u0000b" }', ("`agent.root` has a NUL character",)),
    "NUL in a key": (SSH + '"a\\u0000b" = 1', ("NUL character",)),
    "lock": (SSH + 'agent = { lock = "A B" }', ("`agent.lock` must be small letters",)),
    "empty name": ('name = ""\ntransport = { kind = "local" }', ("`name` is empty",)),
    "no TOML": ("name = ", ("not readable as TOML", "Correct the file")),
    "bottomless": ("x = " + "[" * 5000, ("nested too deeply",)),
    "extends a number": (SSH + "extends = 3", ("`extends` must be the name of a profile",)),
    "extends nothing": (SSH + 'extends = "locel"', ("no device named 'locel'", "mean local?")),
    "extends itself": (SSH + 'extends = "mine"', ("in a circle: mine -> mine",)),
    "extends a path": (SSH + 'extends = "../secret"', ("can't name a device",)),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_is_wrong_is_one_sentence_with_file_key_and_mend(
    workspace: Workspace, write: Write, case: str
) -> None:
    text, expected = WRONG[case]
    path = write(text)
    with pytest.raises(ProfileError) as caught:
        load("mine", workspace)
    for part in expected:
        assert part in str(caught.value)
    assert str(path) == caught.value.where
    assert "\n" not in str(caught.value)
    assert caught.value.fix


def test_bytes_that_are_no_utf8_are_refused(workspace: Workspace, write: Write) -> None:
    write("").write_bytes(b'name = "\xff"')
    with pytest.raises(ProfileError, match="not readable as TOML"):
        load("mine", workspace)


def test_a_huge_file_is_refused_before_it_is_read(workspace: Workspace, write: Write) -> None:
    write("#" * 1_000_001)
    with pytest.raises(ProfileError, match="too large"):
        load("mine", workspace)


@pytest.mark.parametrize("name", ["Pi4", "pi_4", "-pi", "", "pi 4", "pi4\n", "x" * 65])
def test_a_device_is_named_by_small_letters_digits_and_hyphens(
    workspace: Workspace, name: str
) -> None:
    with pytest.raises(ProfileError, match="can't name a device"):
        load(name, workspace)


def test_an_unknown_device_is_answered_with_a_guess(workspace: Workspace) -> None:
    with pytest.raises(ProfileError) as caught:
        load("locla", workspace)
    assert "Did you mean local? `edgebench devices` lists them." in str(caught.value)


def test_a_profile_can_be_given_by_its_path(workspace: Workspace, tmp_path: Path) -> None:
    path = tmp_path / "bench-2.toml"
    path.write_text(SSH)
    assert load(str(path), workspace).id == "bench-2"
    with pytest.raises(ProfileError, match="no such profile"):
        load(str(tmp_path / "none.toml"), workspace)


def test_free_text_is_a_literal_whatever_it_holds(workspace: Workspace, write: Write) -> None:
    hostile = "x'; rm -rf ~ #\n$(touch /tmp/x) `id` \\ \" 日本"
    quoted = json.dumps(hostile)
    write(
        f'name = {quoted}\ntransport = {{ kind = "local" }}\n'
        f"agent = {{ root = {quoted} }}\nruntime = {{ python = {quoted} }}\n"
        f'[[meters]]\nkind = "csv"\nlabel = {quoted}\n'
    )
    device = load("mine", workspace)
    assert device.name == device.agent.root == device.runtime.python == hostile
    assert device.meters[0].options["label"] == hostile


def test_extends_changes_a_line_and_keeps_the_rest(workspace: Workspace, write: Write) -> None:
    write(
        SSH
        + 'tested = "on one"\nlimits = { memory_mb = 900, temperature_c = 70 }\n'
        + 'runtime = { threads = 2 }\n[[meters]]\nkind = "a"\n[[meters]]\nkind = "b"\n',
        "base",
    )
    write(
        'extends = "base"\ntransport = { port = 2222 }\nlimits = { memory_mb = 100 }\n'
        '[[meters]]\nkind = "c"\n'
    )
    device = load("mine", workspace)
    assert isinstance(device.transport, SshSpec)
    assert (device.transport.host, device.transport.port) == ("h", 2222)
    assert (device.limits.memory_mb, device.limits.temperature_c) == (100, 70)
    assert device.runtime.threads == 2
    assert [meter.kind for meter in device.meters] == ["c"]
    assert device.name == "x"
    assert device.tested == "never on the real thing"


def test_another_kind_of_transport_drops_the_inherited_keys(
    workspace: Workspace, write: Write
) -> None:
    write(SSH, "base")
    write('extends = "base"\ntransport = { kind = "local" }')
    assert load("mine", workspace).transport.kind == "local"


def test_a_mistake_in_an_inherited_file_is_named_there(workspace: Workspace, write: Write) -> None:
    base = write(SSH + "limits = { memry_mb = 3 }", "base")
    write('extends = "base"')
    with pytest.raises(ProfileError) as caught:
        load("mine", workspace)
    assert caught.value.where == str(base)


def test_a_workspace_profile_may_extend_the_built_in_one_of_its_name(
    workspace: Workspace, write: Write
) -> None:
    write('extends = "local"\nruntime = { threads = 1 }', "local")
    device = load("local", workspace)
    assert device.transport.kind == "local"
    assert device.runtime.threads == 1
    assert device.path == workspace.root / "devices" / "local.toml"


def test_profiles_that_extend_each_other_are_refused(workspace: Workspace, write: Write) -> None:
    write('extends = "b"', "a")
    write('extends = "a"', "b")
    with pytest.raises(ProfileError, match="in a circle: a -> b -> a"):
        load("a", workspace)


def test_the_profile_document_is_plain_data_without_the_hosts_paths(
    workspace: Workspace, write: Write
) -> None:
    write(SSH + '[[meters]]\nkind = "ina226"\naddress = 0x40\nsince = 2026-01-01')
    document = load("mine", workspace).profile_document()
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    assert document["id"] == "mine"
    assert document["meters"][0]["address"] == 0x40
    assert str(workspace.root) not in json.dumps(document)
    document.pop("id")
    again = workspace.root / "again.json"
    again.write_text(json.dumps(document))
    assert Device.model_validate_json(
        json.dumps({**document, "id": "mine", "path": str(again)})
    ).profile_document() == {**document, "id": "mine"}


def test_a_device_cannot_be_changed(workspace: Workspace) -> None:
    device = load("local", workspace)
    with pytest.raises(ValidationError, match="frozen"):
        device.name = "y"  # type: ignore[misc]


def test_the_list_names_every_profile_once_and_the_broken_ones_with_their_error(
    workspace: Workspace, write: Write
) -> None:
    write(SSH)
    write("name = 3", "broken")
    write(SSH, "local")
    write(SSH, "Not-An-Id")
    lines = {line.id: line for line in available(workspace)}
    assert lines["mine"].name == "x"
    assert not lines["mine"].builtin
    assert lines["mine"].transport == "ssh"
    assert lines["broken"].error is not None
    assert "`name` must be a text" in lines["broken"].error
    assert not lines["local"].builtin
    assert lines["Not-An-Id"].error is not None
    assert [line.id for line in available(workspace)] == sorted(lines)
    assert dataclasses.is_dataclass(lines["mine"])


def test_a_profile_that_refuses_says_its_own_text(workspace: Workspace, write: Write) -> None:
    write(SSH + 'refuses = "there is no way in"\ndocs = "docs/x.md"')
    device = load("mine", workspace)
    with pytest.raises(ProfileError, match=r"there is no way in .*Read docs/x.md"):
        device.require_usable()
    write(SSH)
    load("mine", workspace).require_usable()


@pytest.mark.parametrize(
    ("text", "cpus"),
    [("0-3,6", (0, 1, 2, 3, 6)), ("5", (5,)), ("2,0,2", (0, 2)), (" 1 , 3 - 4", None)],
)
def test_an_affinity_is_a_list_of_cpus(text: str, cpus: tuple[int, ...] | None) -> None:
    if cpus is None:
        with pytest.raises(ValueError, match="no CPU or range"):
            parse_cpus(text)
    else:
        assert parse_cpus(text) == cpus


@given(st.sets(st.integers(0, 8191), min_size=1, max_size=40))
def test_any_set_of_cpus_survives_being_written(cpus: set[int]) -> None:
    assert parse_cpus(",".join(map(str, cpus))) == tuple(sorted(cpus))


@given(st.text(max_size=20))
def test_any_text_is_cpus_or_a_value_error(text: str) -> None:
    try:
        cpus = parse_cpus(text)
    except ValueError:
        return
    assert list(cpus) == sorted(set(cpus))


@pytest.mark.parametrize(
    ("spec", "available_cpus", "expected"),
    [
        ({}, range(4), (3, (1, 2, 3))),
        ({}, [0], (1, (0,))),
        ({}, [2, 5], (1, (5,))),
        ({"affinity": "none"}, range(4), (3, None)),
        ({"threads": 4}, range(4), (4, (0, 1, 2, 3))),
        ({"threads": 2, "affinity": "0-1"}, range(4), (2, (0, 1))),
        ({"affinity": "0-2"}, range(4), (3, (0, 1, 2))),
        ({"threads": 1, "affinity": "0-2"}, range(4), (1, (0, 1, 2))),
        ({"threads": 8, "affinity": "none"}, range(4), (8, None)),
    ],
)
def test_auto_leaves_a_cpu_to_the_harness(
    spec: dict[str, object], available_cpus: range, expected: tuple[int, tuple[int, ...] | None]
) -> None:
    placed = RuntimeSpec.model_validate(spec).place(available_cpus)
    assert placed == Placement(threads=expected[0], cpus=expected[1])


@pytest.mark.parametrize(
    ("spec", "available_cpus", "sentence"),
    [
        ({"affinity": "2-9"}, range(4), "CPU 4, 5, 6, 7, 8, 9 of its affinity is not there"),
        ({"threads": 5}, range(4), "5 threads are more than the 4 CPUs"),
        ({}, [], "no CPU"),
    ],
)
def test_cpus_that_are_not_there_are_an_error(
    spec: dict[str, object], available_cpus: range, sentence: str
) -> None:
    with pytest.raises(ValueError, match=sentence):
        RuntimeSpec.model_validate(spec).place(available_cpus)


def test_the_wrong_box_is_told_apart() -> None:
    expects = Expects(model="Raspberry Pi 4*", arch="aarch64")
    assert expects.mismatches(model="Raspberry Pi 4 Model B Rev 1.4\0", arch="arm64") == ()
    (sentence,) = expects.mismatches(model="Raspberry Pi 5 Model B Rev 1.0", arch="aarch64")
    assert sentence == (
        'its model is "Raspberry Pi 5 Model B Rev 1.0", its profile expects "Raspberry Pi 4*"'
    )


def test_an_identity_that_cannot_be_read_does_not_match() -> None:
    assert len(Expects(model="Raspberry Pi 4*", gpu="*").mismatches(model=None)) == 2
    assert Expects().mismatches() == ()
    with pytest.raises(TypeError, match="no such identity: colour"):
        Expects().mismatches(colour="red")
