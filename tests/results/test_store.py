"""Recordings last: whole or not at all, verified when read, never overwritten."""

from __future__ import annotations

import errno
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest

from edgebench.errors import RecordingError, StorageError
from edgebench.recording import SAMPLE_COLUMNS
from edgebench.results.store import Store
from edgebench.results.ulid import new_ulid
from tests.results.make import make_recording, make_samples, make_state

SAMPLES = make_samples(rounds=4)
STATE = make_state()


@pytest.fixture
def store(tmp_path):
    return Store(tmp_path / "results" / "runs")


def write(store: Store, **changes) -> str:
    recording = make_recording(**changes)
    store.write(recording, SAMPLES, STATE)
    return recording.id


def entries(store: Store) -> set[str]:
    return {path.name for path in store.root.iterdir()}


# --- the round trip -----------------------------------------------------------------------------


def test_what_is_written_is_read_back_unchanged(store):
    recording = make_recording()
    path = store.write(recording, SAMPLES, STATE)
    assert path == store.root / recording.id
    loaded = store.load(recording.id)
    assert loaded.recording.model_copy(update={"files": {}, "digest": ""}) == recording
    assert list(loaded.samples) == list(SAMPLE_COLUMNS)
    for name, column in loaded.samples.items():
        np.testing.assert_array_equal(column, SAMPLES[name])
        assert column.dtype == SAMPLE_COLUMNS[name]
        assert not column.flags.writeable
    assert list(loaded.state) == STATE


def test_samples_may_come_as_an_arrow_table(store):
    import pyarrow as pa

    recording = make_recording()
    store.write(recording, pa.table(SAMPLES), STATE)
    np.testing.assert_array_equal(store.load(recording.id).samples["turn"], SAMPLES["turn"])


def test_a_recording_without_samples_is_one_too(store):
    recording = make_recording()
    store.write(recording, {name: column[:0] for name, column in SAMPLES.items()}, [])
    loaded = store.load(recording.id)
    assert loaded.samples["launch"].size == 0
    assert loaded.state == ()


def test_recordings_are_listed_oldest_first_and_nothing_else_is(store):
    assert store.list() == ()
    ids = [write(store) for _ in range(3)]
    (store.root / "notes.txt").write_text("mine")
    (store.root / "copy-of-a-run").mkdir()
    assert store.list() == tuple(ids)


def test_a_beginning_of_an_id_is_enough_if_only_one_has_it(store):
    one, other = write(store), write(store)
    assert store.load(one.lower()).id == one
    differs = next(i for i in range(26) if one[i] != other[i])
    common = one[:differs]
    assert store.load(one[: differs + 1]).id == one
    with pytest.raises(RecordingError, match="2 recordings begin"):
        store.load(common)
    with pytest.raises(RecordingError, match="no recording begins"):
        store.load("7ZZZ")


# --- refusals -----------------------------------------------------------------------------------


def test_a_recording_is_never_overwritten(store):
    recording = make_recording()
    store.write(recording, SAMPLES, STATE)
    before = (store.root / recording.id / "recording.json").read_bytes()
    with pytest.raises(StorageError, match="new id"):
        store.write(recording.model_copy(update={"created_at": "later"}), SAMPLES, STATE)
    assert (store.root / recording.id / "recording.json").read_bytes() == before
    assert entries(store) == {recording.id}


@pytest.mark.parametrize(
    "samples",
    [
        {"launch": [1]},
        {**SAMPLES, "turn": SAMPLES["turn"][:-1]},
        {**SAMPLES, "launch": SAMPLES["launch"].astype(np.int64) + 100_000},
        {**SAMPLES, "turn": np.array(["a"] * SAMPLES["turn"].size)},
    ],
)
def test_samples_that_do_not_fit_the_format_are_refused_before_the_disk_is_touched(store, samples):
    with pytest.raises(RecordingError, match="samples"):
        store.write(make_recording(), samples, STATE)
    assert not store.root.exists()


def test_a_state_that_is_not_json_is_refused(store):
    with pytest.raises(RecordingError, match="device state"):
        store.write(make_recording(), SAMPLES, [{"load1": float("nan")}])


@pytest.mark.parametrize("name", ["../escape", "", "01J", "latest"])
def test_an_id_that_is_not_a_ulid_is_refused(store, name):
    with pytest.raises(RecordingError, match="ULID"):
        store.write(make_recording(id=name), SAMPLES, STATE)


def test_a_results_directory_that_is_a_file_is_one_clear_sentence(tmp_path):
    (tmp_path / "results").write_text("")
    with pytest.raises(StorageError, match="could not be stored") as caught:
        write(Store(tmp_path / "results" / "runs"))
    assert str(tmp_path / "results") in str(caught.value)


def test_a_directory_that_may_not_be_written_is_one_clear_sentence(store, monkeypatch):
    store.root.mkdir(parents=True)
    if os.geteuid() == 0:  # root may write anywhere: let the system call say no

        def refuse(self, *args, **kwargs):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES))

        monkeypatch.setattr(Path, "mkdir", refuse)
    else:
        store.root.chmod(0o500)
    with pytest.raises(StorageError, match=r"permission denied.*may write to"):
        write(store)


# --- damage -------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["recording.json", "samples.parquet", "state.jsonl"])
@pytest.mark.parametrize("damage", ["truncated", "emptied", "flipped", "missing"])
def test_a_damaged_file_is_named_and_the_other_recordings_stay_readable(store, name, damage):
    good, bad = write(store), write(store)
    path = store.root / bad / name
    data = path.read_bytes()
    if damage == "missing":
        path.unlink()
    elif damage == "flipped":
        middle = len(data) // 2
        path.write_bytes(data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :])
    else:
        path.write_bytes(data[: len(data) // 2] if damage == "truncated" else b"")
    with pytest.raises(RecordingError) as caught:
        store.load(bad)
    assert name in str(caught.value)
    assert store.load(good).id == good
    loaded, broken = store.load_all()
    assert [each.id for each in loaded] == [good]
    assert len(broken) == 1


def test_a_figure_edited_by_hand_is_found_out(store):
    name = write(store)
    path = store.root / name / "recording.json"
    document = json.loads(path.read_text())
    document["solo"][0]["accuracy"]["correct"] = 445
    path.write_text(json.dumps(document))
    with pytest.raises(RecordingError, match="changed after it was recorded"):
        store.load(name)


def test_another_schema_version_is_said_to_be_one(store):
    name = write(store)
    path = store.root / name / "recording.json"
    path.write_text(path.read_text().replace("edgebench.recording/1", "edgebench.recording/9"))
    with pytest.raises(RecordingError, match="recording/9"):
        store.load(name)


# --- kills, full disks, other writers -----------------------------------------------------------


def test_two_hundred_kills_lose_no_earlier_recording_and_show_no_partial_one(store):
    """Each writer is a process of its own that writes one recording after another until killed."""
    write(store)  # also warms up: the children fork with everything imported
    chance = random.Random(0)
    whole, kills, interrupted = set(store.list()), 0, 0
    while kills < 200:
        child = os.fork()
        if child == 0:
            try:
                while True:
                    write(store)
            finally:
                os._exit(1)
        time.sleep(chance.uniform(0.0, 0.05))
        os.kill(child, signal.SIGKILL)
        _, status = os.waitpid(child, 0)
        assert os.WIFSIGNALED(status), "the writer ended by itself"
        kills += 1
        interrupted += any(name.startswith(".tmp-") for name in entries(store))
        now = set(store.list())
        assert whole <= now
        for name in now - whole:  # complete and verified, or not visible at all
            store.load(name)
        whole = now
        if kills % 20 == 0:
            _prune(store, whole, keep=20)
    loaded, broken = store.load_all()
    assert broken == ()
    assert {each.id for each in loaded} == whole
    assert interrupted > 20, "the kills did not hit the writing"
    write(store)
    assert not any(name.startswith(".tmp-") for name in entries(store))


def _prune(store: Store, whole: set[str], keep: int) -> None:
    """Keep the loop quick: thousands of recordings are not what it is about."""
    for name in sorted(whole)[:-keep]:
        shutil.rmtree(store.root / name)
        whole.discard(name)


def test_what_a_dead_writer_left_is_cleaned_and_what_a_live_one_holds_is_not(store):
    import fcntl

    write(store)
    dead, live = store.root / ".tmp-dead", store.root / ".tmp-live"
    dead.mkdir()
    (dead / "samples.parquet").write_bytes(b"partial")
    live.mkdir()
    holder = os.open(live, os.O_RDONLY)
    fcntl.flock(holder, fcntl.LOCK_EX)
    try:
        assert store.clean() == 1
        assert not dead.exists()
        assert live.exists()
    finally:
        os.close(holder)
    assert store.clean() == 1
    assert not live.exists()


def test_many_writers_at_once_all_succeed(store):
    with ThreadPoolExecutor(4) as pool:
        ids = list(pool.map(lambda _: write(store), range(24)))
    children = []
    for _ in range(4):
        child = os.fork()
        if child == 0:
            status = 1
            try:
                for _ in range(6):
                    write(store)
                status = 0
            finally:
                os._exit(status)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4
    loaded, broken = store.load_all()
    assert (len(loaded), broken) == (48, ())
    assert set(ids) <= entries(store)
    assert len(entries(store)) == 48


@pytest.fixture
def tiny_disk(tmp_path):
    """A file system of 64 KiB."""
    mount = tmp_path / "disk"
    mount.mkdir()
    done = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", "size=64k", "tmpfs", str(mount)], capture_output=True
    )
    if done.returncode:
        pytest.skip("mounting a tmpfs needs root")
    yield mount
    subprocess.run(["umount", str(mount)], check=True)


def test_a_full_disk_is_one_clear_sentence_and_leaves_nothing_behind(tiny_disk):
    store = Store(tiny_disk)
    ids = []
    with pytest.raises(StorageError, match=r"no space left.*Free some space"):
        for _ in range(100):
            ids.append(write(store))
    assert ids, "at least one should have fitted"
    assert entries(store) == set(ids)
    loaded, broken = store.load_all()
    assert ([each.id for each in loaded], broken) == (ids, ())


def test_ids_grow_even_within_a_millisecond_and_after_a_fork(store):
    ids = [new_ulid() for _ in range(2000)]
    assert ids == sorted(set(ids))
    program = (
        "import os, sys\n"
        "from edgebench.results.ulid import new_ulid\n"
        "new_ulid()\n"
        "child = os.fork()\n"
        "sys.stdout.write(''.join(new_ulid() + '\\n' for _ in range(500)))\n"
        "sys.stdout.flush()\n"
        "os._exit(0) if child == 0 else os.waitpid(child, 0)\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True, check=True
    )
    assert len(set(done.stdout.split())) == 1000
