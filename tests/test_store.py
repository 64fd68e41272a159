"""Names are whole or absent and stay inside the store; fingerprints tell apart what differs."""

import os
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from importlib.util import module_from_spec, spec_from_file_location
from itertools import combinations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from sibcl_ray.store import Store, code_version, describe, fingerprint

FEW = settings(max_examples=60, derandomize=True, deadline=None, database=None)


@pytest.fixture(params=["local", "memory"])
def store(request, tmp_path):
    """A store on a disk, and one where there is no disk."""
    if request.param == "local":
        return Store(str(tmp_path / "deep" / "store"))
    return Store(f"memory://{tmp_path.name}/store")


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
from sibcl_ray.store import Store
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
from sibcl_ray.store import Store
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


@FEW
@given(st.dictionaries(st.text(), PLAIN, max_size=5))
def test_any_record_comes_back(record):
    store = Store("memory://records")
    store.write_record("record", record)
    assert store.read_record("record") == record


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
    program = "from sibcl_ray.store import fingerprint; print(fingerprint({'b': 1.5, 'a': [None, 'ä']}, True))"
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


@pytest.mark.parametrize("value", [object(), {1, 2}, b"bytes", 1j, Circle, print], ids=str)
def test_objects_name_nothing(value):
    for thing in (value, [value], {"a": value}, Pair(value)):
        with pytest.raises(TypeError, match="cannot name a result; use plain values"):
            fingerprint(thing)


CODE = '''"""What it is."""

def double(x):
    """Twice x."""
    return 2 * x

class Thing:
    """A thing."""
'''


@pytest.fixture
def version(tmp_path):
    """The code version of a module of the given text."""
    made = []

    def of(text):
        path = tmp_path / f"module_{len(made)}.py"
        path.write_text(text)
        spec = spec_from_file_location(path.stem, path)
        module = module_from_spec(spec)
        spec.loader.exec_module(module)
        made.append(module)
        return code_version((module,))

    return of


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"""Twice x."""', '"""Two times x: see elsewhere."""'),
        ('"""Twice x."""', ""),
        ('"""A thing."""', "pass"),
        ('"""What it is."""', "# A comment, and no docstring"),
        ("return 2 * x", "return (2\n        * x)  # twice"),
    ],
)
def test_words_and_layout_leave_the_code_version(old, new, version):
    assert version(CODE.replace(old, new)) == version(CODE)


@pytest.mark.parametrize(
    ("old", "new"),
    [("2 * x", "3 * x"), ("2 * x", "x * 2"), ("double", "twice"), ("def double(x)", "def double(x, y=0)")],
)
def test_code_changes_the_code_version(old, new, version):
    assert version(CODE.replace(old, new)) != version(CODE)


def test_the_code_version_of_modules_depends_on_each():
    import sibcl_ray.losses as a
    import sibcl_ray.randomness as b

    assert len({code_version(modules) for modules in ((a,), (b,), (a, b))}) == 3
