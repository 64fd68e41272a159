"""Names are whole or absent and stay inside the store; fingerprints tell apart what differs."""

import os
import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import combinations

import pytest
from disks import read_only, small_disk
from hypothesis import given, settings
from hypothesis import strategies as st

from sibcl_ray.storage.fingerprint import describe, fingerprint
from sibcl_ray.storage.folders import DRAFTS, DRAFTS_KEPT
from sibcl_ray.storage.store import (
    VERSION,
    VERSION_NAME,
    Damaged,
    NewerStore,
    Store,
    StoreError,
)

FEW = settings(max_examples=60, derandomize=True, deadline=None, database=None)


KINDS = ["local", "memory", "s3", "gcs", "azure"]
# Of what is decided before anything is asked for, or after all is read: the others are thorough.
ON_DISK = ["local", *(pytest.param(kind, marks=pytest.mark.thorough) for kind in KINDS[1:])]


@pytest.fixture(params=KINDS)
def store(request, tmp_path):
    """A store on a disk, one in memory, and three as on other machines."""
    if request.param in ("s3", "gcs", "azure"):
        return Store(request.getfixturevalue(request.param).url(tmp_path.name))
    return Store(f"memory://{tmp_path.name}/store" if request.param == "memory" else str(tmp_path / "deep" / "store"))


def test_what_is_written_is_read(store):
    assert not store.exists("a/b")
    store.write("a/b", b"first")
    assert store.exists("a/b") and store.read("a/b") == b"first"
    store.write("a/b", b"second, longer")
    assert store.read("a/b") == b"second, longer"
    store.remove("a/b")
    assert not store.exists("a/b")


def test_what_was_never_written_is_absent(store):
    with pytest.raises(FileNotFoundError):
        store.read("a/b")
    assert store.read_record("a/b") is None and store.names("a") == []


def test_names_are_those_of_one_folder_in_order(store):
    for name in ("a/2", "a/1", "a/deeper/3", "b/4"):
        store.write(name, b"")
    assert store.names("a") == ["a/1", "a/2", "a/deeper"]
    assert [store.read(name) for name in store.names("a")[:2]] == [b"", b""]


def test_a_file_or_a_folder_moves_with_all_that_is_in_it(store):
    store.write("a/1", b"1")
    store.write("a/deeper/2", b"2")
    store.move("a", "new/place")
    assert store.read("new/place/1") == b"1" and store.read("new/place/deeper/2") == b"2"
    assert not store.exists("a/1") and not store.exists("a/deeper/2")
    store.move("new/place/1", "c/1")
    assert store.read("c/1") == b"1" and not store.exists("new/place/1")
    store.move("never/written", "anywhere")
    assert not store.exists("anywhere")


def test_stores_of_one_uri_are_one_store(store):
    store.write("a", b"1")
    other = Store(store.uri)
    assert other == store and hash(other) == hash(store) and other.read("a") == b"1"


@pytest.mark.parametrize("store", ON_DISK, indirect=True)
@pytest.mark.parametrize("name", ["../a", "a/../../b", "a/..", "/etc/a", "//a", "", ".", ".."])
def test_no_name_leaves_the_store(name, store):
    for call in (store.read, store.exists, store.remove, store.names, lambda n: store.write(n, b"")):
        with pytest.raises(ValueError, match="leaves the store; use a relative path"):
            call(name)
    store.write("inside", b"1")
    for source, target in ((name, "inside"), ("inside", name)):
        with pytest.raises(ValueError, match="leaves the store"):
            store.move(source, target)


@pytest.mark.parametrize("before", [None, b"whole"])
def test_a_write_that_fails_changes_nothing(before, tmp_path):
    store = Store(str(tmp_path))
    if before is not None:
        store.write("folder/name", before)
    with pytest.raises(TypeError):
        store.write("folder/name", "text is not bytes")
    assert (store.read("folder/name") if store.exists("folder/name") else None) == before
    assert len(os.listdir(tmp_path / "folder")) == (before is not None)


def test_a_record_that_json_does_not_know_is_not_written(store):
    for value in (float("nan"), float("inf"), object()):
        with pytest.raises((ValueError, TypeError)):
            store.write_record("record", {"value": value})
    assert not store.exists("record")


def test_a_killed_writer_leaves_whole_names(tmp_path):
    """A process that writes without end is killed in the midst of it, a few times."""
    program = f"""
from itertools import count
from sibcl_ray.storage.store import Store
store = Store({str(tmp_path)!r})
for i in count():
    store.write("folder/name", bytes([i % 256]) * 8_000_000)
"""
    store = Store(str(tmp_path))
    for attempt in range(3):
        writer = subprocess.Popen([sys.executable, "-c", program])
        deadline = time.monotonic() + 60
        while not store.exists("folder/name") and time.monotonic() < deadline:
            time.sleep(0.01)
        time.sleep(0.03 + 0.01 * attempt)
        writer.send_signal(signal.SIGKILL)
        writer.wait()
        data = store.read("folder/name")
        assert len(data) == 8_000_000 and data == data[:1] * len(data)
        assert store.names("folder") == ["folder/name"]
        store.remove("folder/name")


def test_readers_never_see_half_a_write(tmp_path):
    program = f"""
from sibcl_ray.storage.store import Store
store = Store({str(tmp_path)!r})
for i in range(150):
    store.write("name", bytes([i]) * 4_000_000)
"""
    store = Store(str(tmp_path))
    store.write("name", b"0" * 4_000_000)
    writer = subprocess.Popen([sys.executable, "-c", program])
    seen = set()
    while writer.poll() is None:
        data = store.read("name")
        assert len(data) == 4_000_000 and data == data[:1] * len(data)
        seen.add(data[0])
    assert writer.returncode == 0 and len(seen) > 2


PLAIN = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=10,
)


RECORDS = st.dictionaries(st.text().filter(lambda key: key != "sha256"), PLAIN, max_size=5)


@FEW
@given(RECORDS)
def test_any_record_comes_back(record):
    store = Store("memory://records")
    store.write_record("record", record)
    assert store.read_record("record") == record


def test_a_record_may_not_bring_a_checksum():
    """It would be taken for that of the record."""
    with pytest.raises(ValueError, match="sha256"):
        Store("memory://records").write_record("record", {"sha256": None})


@FEW
@given(RECORDS, st.data())
def test_a_damaged_record_is_found_or_says_the_same(record, data):
    """Any byte changed, or the rest cut off: never another record, and never another exception."""
    store = Store("memory://damaged-records")
    store.write_record("record", record)
    whole = store.read("record")
    position = data.draw(st.integers(0, len(whole) - 1))
    cut = whole[:position]
    changed = bytearray(whole)
    changed[position] ^= data.draw(st.integers(1, 255))
    for damaged in (cut, bytes(changed), cut + whole[position + 1 :], whole[:position] + b"\0" * len(whole[position:])):
        store.write("record", damaged)
        given = store.read_records(["record"])
        try:
            read = store.read_record("record")
        except Damaged as damage:
            assert given == {} and "record" in str(damage) and "\n" not in str(damage)
        else:
            assert read == record == given["record"]


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"{",
        b"[]",
        b"null",
        b"1",
        b'"text"',
        b"{}",
        b'{"sha256": 1}',
        b'{"sha256": null, "a": 1}',
        b"\xff\xfe",
        b"\0",
        b"[" * 100_000,
        b'{"a": NaN, "sha256": ""}',
        b'{"a": 1e999, "sha256": ""}',
        b"1" * 5000,
        '{"ü": 1}'.encode("utf-16"),
    ],
    ids=lambda data: repr(data[:20]),
)
@pytest.mark.parametrize("store", ON_DISK, indirect=True)
def test_what_is_no_record_is_damaged(data, store):
    store.write("record", data)
    with pytest.raises(Damaged, match=r"^record "):
        store.read_record("record")


def test_many_records_are_read_at_once_without_what_is_damaged_or_absent(store):
    for i in range(5):
        store.write_record(f"ledger/{i}", {"i": i})
    store.write("ledger/3", store.read("ledger/4")[:-9])
    said = []
    for warn in (None, said.append):
        found = store.read_records([f"ledger/{i}" for i in (0, 3, 4, 7)], warn)
        assert found == {"ledger/0": {"i": 0}, "ledger/4": {"i": 4}}
        assert store.exists("ledger/3") == (warn is None)
    assert len(said) == 1 and said[0].startswith("ledger/3 ") and "it is kept as aside/damaged/" in said[0]
    assert store.read_records([]) == {} and store.read_records(["absent"]) == {}


def test_what_is_set_aside_keeps_its_bytes(store):
    for data in (b"first", b"second"):
        store.write("folder/name", data)
        aside = store.set_aside("folder/name")
        assert store.read(aside) == data and aside.endswith("/folder/name")
        assert not store.exists("folder/name")
    assert len(store.names("aside/damaged")) == 2
    store.set_aside("never/there")


def test_what_one_process_sets_aside_another_may_have(tmp_path):
    """Many find the same damage at the same moment: it is moved once, and nobody stumbles."""
    store = Store(str(tmp_path))
    with ThreadPoolExecutor(8) as pool:
        for i in range(40):
            store.write(f"name{i}", b"damaged")
            list(pool.map(store.set_aside, [f"name{i}"] * 8))
    kept = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(path.name for path in kept) == sorted(f"name{i}" for i in range(40))


def test_a_store_says_its_version_and_one_of_a_later_version_is_refused(store):
    store.open()
    store.open()
    assert store.read_record(VERSION_NAME) == {"version": VERSION}
    store.write_record(VERSION_NAME, {"version": VERSION + 1})
    with pytest.raises(NewerStore) as refusal:
        store.open()
    line = str(refusal.value)
    assert "\n" not in line and f"version {VERSION + 1}" in line and store.uri in line and "install a newer" in line


def test_a_damaged_version_is_kept_aside_and_written_again(store):
    store.open()
    store.write(VERSION_NAME, b'{"version": 99}')
    store.open()
    assert store.read_record(VERSION_NAME) == {"version": VERSION}
    (folder,) = store.names("aside/damaged")
    assert store.read(f"{folder}/{VERSION_NAME}") == b'{"version": 99}'


def test_drivers_that_open_a_store_at_the_same_moment_do_not_disturb_each_other(tmp_path):
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda i: Store(str(tmp_path)).open(), range(200)))
    assert sorted(os.listdir(tmp_path)) == [DRAFTS, VERSION_NAME] and not os.listdir(tmp_path / DRAFTS)


def test_drafts_of_writers_that_died_are_cleared_when_they_are_old(tmp_path):
    store = Store(str(tmp_path))
    store.write("name", b"")
    for name, age in (("dead", DRAFTS_KEPT + 60), ("alive", DRAFTS_KEPT - 60)):
        draft = tmp_path / DRAFTS / name
        draft.write_bytes(b"half")
        os.utime(draft, (time.time() - age,) * 2)
    store.open()
    assert os.listdir(tmp_path / DRAFTS) == ["alive"]


CREATOR = """
import sys, time
from pathlib import Path
from sibcl_ray.storage.store import Store
folder, store, me, prizes = Path(sys.argv[1]), Store(sys.argv[2]), sys.argv[3], int(sys.argv[4])
store.exists("prizes")  # connected
(folder / f"ready{me}").touch()
while not (folder / "go").exists():
    pass
for i in range(prizes):
    if store.create(f"prizes/{i}", me.encode() * 1000):
        print(i)
"""


@pytest.mark.parametrize(
    ("place", "prizes"), [("tmp_path", 100), pytest.param("bucket", 15, marks=pytest.mark.thorough)]
)
def test_a_name_is_created_by_one_of_many_processes(place, prizes, request, tmp_path):
    store = Store(str(request.getfixturevalue(place)))
    start = [sys.executable, "-c", CREATOR, str(tmp_path), store.uri]
    everybody = [subprocess.Popen([*start, str(me), str(prizes)], stdout=subprocess.PIPE, text=True) for me in range(4)]
    while len(list(tmp_path.glob("ready*"))) < len(everybody) and all(p.poll() is None for p in everybody):
        time.sleep(0.01)
    (tmp_path / "go").touch()
    won = [process.communicate(timeout=60)[0].split() for process in everybody]
    assert sorted(int(i) for mine in won for i in mine) == list(range(prizes))
    for me, mine in enumerate(won):
        assert all(store.read(f"prizes/{i}") == str(me).encode() * 1000 for i in mine)
    assert store.names(DRAFTS) == []


def test_a_name_is_created_by_one_of_many_threads(store):
    with ThreadPoolExecutor(8) as pool:
        for i in range(5):
            won = list(pool.map(lambda me, i=i: store.create(f"prize{i}", b"%d" % me), range(8)))
            assert sum(won) == 1 and store.read(f"prize{i}") == b"%d" % won.index(True)


def test_creating_what_is_there_leaves_it(store):
    assert store.create("a/b", b"1") and not store.create("a/b", b"2")
    assert store.read("a/b") == b"1"
    store.remove("a/b")
    assert store.create("a/b", b"3") and store.read("a/b") == b"3"


def test_a_full_disk_is_told_with_what_and_where_and_nothing_is_half_written(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        store = Store(str(disk))
        store.open()
        store.write("folder/name", b"whole")
        for call in (store.write, store.create):
            name = "folder/name" if call == store.write else "folder/new"
            with pytest.raises(StoreError, match=f"{name} cannot be written in {disk}: No space left on device"):
                call(name, bytes(2_000_000))
        assert store.read("folder/name") == b"whole" and store.names("folder") == ["folder/name"]
        assert not os.listdir(disk / DRAFTS)
        store.write("folder/name", b"there is room for this")


def test_a_read_only_disk_is_told_and_can_be_read(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        store = Store(str(disk))
        store.open()
        store.write_record("folder/name", {"a": 1})
        calls = (
            ("written", lambda: store.write("folder/name", b"")),
            ("written", lambda: store.create("folder/new", b"")),
            ("moved", lambda: store.move("folder/name", "elsewhere")),
            ("removed", lambda: store.remove("folder/name")),
            ("written", store.open),
        )
        with read_only(disk):
            for what, call in calls:
                with pytest.raises(StoreError, match=f"cannot be {what} in {disk}: Read-only file system") as error:
                    call()
                assert "\n" not in str(error.value)
            assert store.read_record("folder/name") == {"a": 1}
        store.open()


@pytest.mark.parametrize("name", ["ä/ö ü", "a b", "a/b.c.d", "-", "%2e%2e/a", "~", "a\\b", "x" * 200, "{a}", "日本"])
def test_odd_names_are_names(name, store):
    store.write(name, b"1")
    assert store.exists(name) and store.read(name) == b"1"
    assert not store.create(name, b"2")
    store.move(name, f"moved/{name}")
    assert store.read(f"moved/{name}") == b"1" and not store.exists(name)
    store.remove(f"moved/{name}")
    assert not store.exists(f"moved/{name}")


def test_names_that_no_disk_takes_are_refused(tmp_path):
    store = Store(str(tmp_path))
    for call in (store.read, lambda name: store.write(name, b""), lambda name: store.create(name, b"")):
        with pytest.raises(ValueError, match="null"):
            call("a\0b")
        with pytest.raises(StoreError, match="File name too long"):
            call("x" * 300)
    assert not store.exists("a\0b") and not store.exists("x" * 300)
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


def test_a_file_where_a_folder_should_be_is_an_error_of_the_storage(tmp_path):
    store = Store(str(tmp_path))
    store.write("folder", b"a file")
    for call in (store.read, lambda name: store.write(name, b"")):
        with pytest.raises(StoreError, match="folder/name cannot be"):
            call("folder/name")
    with pytest.raises(StoreError, match="cannot be read"):
        Store(str(tmp_path.parent)).read(tmp_path.name)


def test_a_link_is_replaced_by_what_is_written_not_followed(tmp_path):
    """So that no name leads out of the store."""
    (tmp_path / "outside").write_bytes(b"mine")
    store = Store(str(tmp_path / "store"))
    store.write("name", b"")
    for link in ("file", "dangling"):
        (tmp_path / "store" / link).symlink_to(tmp_path / ("outside" if link == "file" else "nowhere"))
        store.write(link, b"new")
        assert store.read(link) == b"new"
    assert (tmp_path / "outside").read_bytes() == b"mine" and not (tmp_path / "nowhere").exists()


@FEW
@given(PLAIN, PLAIN)
def test_fingerprints_are_equal_where_values_are(a, b):
    """Equal as JSON: 1, 1.0 and True are three values, a tuple is a list."""
    assert (fingerprint(a) == fingerprint(b)) == (repr(_ordered(a)) == repr(_ordered(b)))


def _ordered(value):
    if isinstance(value, dict):
        return sorted((k, _ordered(v)) for k, v in value.items()), "mapping"
    return [_ordered(v) for v in value] if isinstance(value, list) else value


@FEW
@given(st.dictionaries(st.text(), PLAIN, min_size=2, max_size=5))
def test_fingerprints_do_not_ask_for_the_order_of_keys(value):
    assert fingerprint(dict(reversed(value.items()))) == fingerprint(value)


@FEW
@given(st.lists(PLAIN, min_size=1, max_size=4))
def test_fingerprints_see_how_values_are_grouped(values):
    assert fingerprint(*values) != fingerprint(values)
    assert fingerprint(tuple(values)) == fingerprint(values)
    assert fingerprint(*values) != fingerprint(*values, None)


def test_fingerprints_are_the_same_in_every_process():
    """Whatever the seed of Python's own hashes."""
    program = (
        "from sibcl_ray.storage.fingerprint import fingerprint; print(fingerprint({'b': 1.5, 'a': [None, 'ä']}, True))"
    )
    found = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": seed},
            check=True,
            capture_output=True,
            text=True,
        ).stdout.strip()
        for seed in ("1", "2")
    }
    assert found == {fingerprint({"a": (None, "ä"), "b": 1.5}, True)}
    assert all(len(name) == 16 and int(name, 16) >= 0 for name in found)


@dataclass(frozen=True)
class Circle:
    size: float = 1.0


@dataclass(frozen=True)
class Square:
    size: float = 1.0


@dataclass(frozen=True)
class Pair:
    first: object
    second: object = None


def test_configurations_of_different_types_with_equal_fields_have_different_names():
    values = [Circle(), Square(), Circle(2.0), Pair(Circle()), Pair(Square()), Pair(None, Circle()), {"size": 1.0}]
    assert all(fingerprint(a) != fingerprint(b) for a, b in combinations(values, 2))
    assert fingerprint(Pair(Circle(), (1, 2))) == fingerprint(Pair(Circle(1.0), [1, 2]))


def test_describe_gives_plain_values():
    assert describe(Pair(Circle(), {"a": (1, True, None)})) == {
        "type": "Pair",
        "first": {"type": "Circle", "size": 1.0},
        "second": {"a": [1, True, None]},
    }


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", 1j, Circle, print], ids=lambda v: type(v).__name__)
def test_objects_name_nothing(value):
    for thing in (value, [value], {"a": value}, Pair(value)):
        with pytest.raises(TypeError, match="cannot name a result; use plain values"):
            fingerprint(thing)


def test_a_store_that_is_read_only_changes_nothing(tmp_path):
    Store(str(tmp_path / "runs")).write_record("a/b", {"number": 1})
    store = Store(str(tmp_path / "runs"), read_only=True)
    store.open()
    assert store.read_record("a/b") == {"number": 1} and store.set_aside("a/b") == "a/b" and store.exists("a/b")
    for change in (
        lambda: store.write("a/c", b""),
        lambda: store.create("a/c", b""),
        lambda: store.write_record("a/c", {}),
        lambda: store.move("a/b", "a/c"),
        lambda: store.remove("a/b"),
        lambda: store.clear("a"),
    ):
        with pytest.raises(StoreError, match="read only"):
            change()
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["a", "b", "drafts", "runs"]
    absent = Store(str(tmp_path / "new" / "runs"), read_only=True)
    absent.open()
    assert absent.names("a") == [] and not (tmp_path / "new").exists()


def test_what_could_not_be_written_is_refused_before_anything_is_tried(tmp_path):
    (tmp_path / "file").write_text("not a folder")
    for below in ("file", "file/below"):
        with pytest.raises(NotADirectoryError):
            Store(str(tmp_path / below), read_only=True).open()
    Store(str(tmp_path / "newer")).write_record(VERSION_NAME, {"version": VERSION + 1})
    with pytest.raises(NewerStore):
        Store(str(tmp_path / "newer"), read_only=True).open()
