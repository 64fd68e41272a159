"""A store in a bucket: through its real client, from many processes, with a network between."""

import asyncio
import multiprocessing
import os
import pickle
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pytest
import ray
from fsspec import register_implementation
from fsspec.implementations.memory import MemoryFileSystem
from processes import PATIENCE, Driver, environment
from servers import BUCKET, SECRET, free_port, proxy, wait_until

from sibcl_ray.claims import Session
from sibcl_ray.copies import copy_of
from sibcl_ray.store import Store, StoreError


@pytest.fixture
def store(bucket):
    return Store(bucket)


def test_a_bucket_is_no_folder_of_this_machine(store):
    assert store.is_distant and not store.is_local


def test_what_another_process_writes_is_seen_at_once(store):
    program = "import sys; from sibcl_ray.store import Store; Store(sys.argv[1]).{}"

    def elsewhere(call):
        subprocess.run([sys.executable, "-c", program.format(call), store.uri], check=True)

    assert not store.exists("a/b") and store.names("a") == [] and store.read_records(["a/b"]) == {}
    elsewhere("write_record('a/b', {'number': 1})")
    assert store.exists("a/b") and store.names("a") == ["a/b"] and store.read_record("a/b") == {"number": 1}
    elsewhere("write_record('a/b', {'number': 2})")
    assert store.read_record("a/b") == store.read_records(["a/b"])["a/b"] == {"number": 2}
    elsewhere("move('a', 'c')")
    assert not store.exists("a/b") and store.names("a") == [] and store.names("c") == ["c/b"]


READ_ALL = """
import sys
from sibcl_ray.store import Store
print(len(Store(sys.argv[1]).read_records([f"ledger/{i}" for i in range(8)])))
"""


def test_many_records_are_asked_for_side_by_side(store, s3):
    """All have been asked for before any is answered."""
    for i in range(8):
        store.write_record(f"ledger/{i}", {"i": i})
    with proxy(s3.port) as network:
        network.silent = True
        command, there = [sys.executable, "-c", READ_ALL, store.uri], environment(**s3.variables(network.port))
        reader = subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=there)
        wait_until(lambda: network.requests or reader.poll() is not None, PATIENCE)
        wait_until(lambda: network.requests >= 8, 10)
        network.silent = False
        assert reader.communicate(timeout=PATIENCE)[0] == "8\n"


CREATE_ONCE = """
import sys
from sibcl_ray.store import Store
print(Store(sys.argv[1]).create("claim", sys.argv[2].encode()))
"""


@pytest.mark.parametrize(("before", "wins"), [(None, True), (b"another", False)])
def test_who_creates_a_name_and_loses_the_answer_still_knows_that_it_has_won(before, wins, store, s3):
    """Its client asks again, and is told that the name is there."""
    if before:
        store.write("claim", before)
    with proxy(s3.port) as network:
        network.lost = 1
        there = environment(**s3.variables(network.port))
        command = [sys.executable, "-c", CREATE_ONCE, store.uri, "mine"]
        printed = subprocess.run(command, capture_output=True, text=True, check=True, env=there).stdout
        assert network.requests >= 2 and network.lost == 0, "nothing was lost"
    assert printed.split() == [str(wins)] and store.read("claim") == (before or b"mine")


class Forgetful(MemoryFileSystem):
    """Takes no notice of a condition, as old servers do."""

    protocol = "forgetful"

    def pipe_file(self, path, value, mode="overwrite", **options):
        super().pipe_file(path, value, mode="overwrite", **options)


def test_a_storage_that_writes_over_what_is_only_to_be_created_is_refused():
    register_implementation("forgetful", Forgetful, clobber=True)
    with pytest.raises(StoreError, match="writes over what should only be created"):
        Store("forgetful://here").open()


def _forked(store, answers):
    store.write("b", b"2")
    answers.put(store.read("a"))


def test_a_store_works_in_forked_processes_and_after_a_journey(store):
    store.write("a", b"1")
    context = multiprocessing.get_context("fork")
    answers = context.Queue()
    child = context.Process(target=_forked, args=(store, answers))
    child.start()
    assert answers.get(timeout=60) == b"1"
    child.join(60)
    again = pickle.loads(pickle.dumps(store))
    assert again == store and again.read("b") == b"2" and SECRET.encode() not in pickle.dumps(store)


class Holder:
    """As the queue of jobs: an asynchronous actor that asks the store in threads."""

    def __init__(self, store, me):
        self.store, self.me = store, me

    async def create_all(self, names):
        return await asyncio.gather(*(asyncio.to_thread(self.store.create, name, self.me) for name in names))


def test_asynchronous_actors_use_a_store_from_threads(cluster, store, s3):
    names = [f"prizes/{i}" for i in range(24)]
    variables = {"env_vars": s3.environment}
    actor = ray.remote(Holder).options(num_cpus=0, runtime_env=variables)
    actors = [actor.remote(store, b"one"), actor.remote(store, b"other")]
    one, other = ray.get([actor.create_all.remote(names) for actor in actors])
    assert [not mine for mine in one] == other
    assert [store.read(name) for name in names] == [b"one" if mine else b"other" for mine in one]


@pytest.fixture
def strangers():
    """No client of other tests is used again, nor are those of this one."""
    s3fs = pytest.importorskip("s3fs")
    s3fs.S3FileSystem.clear_instance_cache()
    yield
    s3fs.S3FileSystem.clear_instance_cache()


UNREACHABLE = "Could not connect|does not answer"  # by how long the client happens to go on trying
REFUSALS = {
    "a bucket that is not there": ({}, "s3://nowhere/a", "bucket does not exist"),
    "an unknown key": ({"AWS_ACCESS_KEY_ID": "AKIAUNKNOWN"}, None, "Key Id you provided does not exist"),
    "a wrong secret": ({"AWS_SECRET_ACCESS_KEY": "wrong"}, None, "signature we calculated does not match"),
    "nobody there": (
        {"AWS_ENDPOINT_URL": "http://127.0.0.1:{free}"},
        None,
        "Could not connect .*127.0.0.1|does not answer",
    ),
    "no such host": ({"AWS_ENDPOINT_URL": "http://nowhere.invalid"}, None, "Could not connect|does not answer"),
    "no address": ({"AWS_ENDPOINT_URL": "nonsense"}, None, "Invalid endpoint: nonsense"),
    "silence": ({"AWS_ENDPOINT_URL": "http://127.0.0.1:{silent}"}, None, "does not answer within 8 s; check its"),
}


@pytest.mark.parametrize(("environment", "uri", "expected"), REFUSALS.values(), ids=REFUSALS)
def test_a_bucket_that_cannot_be_used_is_one_line_within_seconds(
    environment, uri, expected, bucket, s3, strangers, monkeypatch, tmp_path, capfd
):
    import label_sweep

    uri, begun = uri or bucket, time.monotonic()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["label_sweep.py", "--scale", "smoke", "--storage", uri])
    monkeypatch.setattr(label_sweep, "ANSWER", 8.0 if "does not answer" in expected else 60.0)
    with proxy(s3.port) as silent:
        silent.silent = True
        for name, value in environment.items():
            monkeypatch.setenv(name, value.format(free=free_port(), silent=silent.port))
        assert label_sweep.command_line() == 2
    assert "does not answer" not in expected or time.monotonic() - begun < 20
    printed = capfd.readouterr().err
    assert re.search(f"^error: --storage {uri} .*{expected}", printed), printed
    assert printed.count("\n") == 1 and SECRET not in printed


def test_a_bucket_that_vanishes_is_an_error_of_the_storage(store):
    gone = Store("s3://nowhere/a")
    for call in (lambda: gone.write("a", b""), lambda: gone.create("a", b""), gone.open):
        with pytest.raises(StoreError, match="cannot be written in s3://nowhere/a: The specified bucket"):
            call()


def test_what_a_dead_session_left_in_a_bucket_is_cleared_away(store):
    from sibcl_ray.run import _scratch

    for name in ("scratch/dead/a/b", "scratch/dead/c", "scratch/far/a"):
        store.write(name, b"1")
    store.write_record("sessions/far", {"beat": 0, "host": "far", "place": "far", "process": 1, "started": "1"})
    with Session(store) as session, _scratch(store, session.claims) as (shared, here):
        assert shared == f"{BUCKET}/{store.uri.split('/')[-1]}/scratch/{session.claims.session}"
        assert store.names("scratch") == ["scratch/far"] and Path(here).is_dir()
        with store.arrow().open_output_stream(f"{shared}/state") as file:
            file.write(b"1")
        assert len(store.names("scratch")) == 2
    assert store.names("scratch") == ["scratch/far"] and not Path(here).exists()


@pytest.mark.thorough
def test_a_study_on_a_bucket_that_finds_damage_ends_with_one_line_and_the_same_command_completes_it(store, tmp_path):
    options = ["--methods", "SL,TL-I", "--budgets", "10", "--seeds", "1"]
    options += ["--search-storage", f"sqlite:///{tmp_path}/search.db", "--tracking-uri", f"sqlite:///{tmp_path}/mlflow"]

    def run(name, *more):
        driver = Driver(store.uri, tmp_path / name, *options, *more)
        try:
            return driver.wait(2 * PATIENCE), driver.printed()
        finally:
            driver.end()

    code, printed = run("first")
    assert code == 0, printed
    before = store.read_records(ledger := [name for kind in store.names("ledger") for name in store.names(kind)])
    assert len(before) >= 6 and store.names("scratch") == store.names("claims") == store.names("sessions") == []

    (data,) = store.names("datasets")
    damaged = next(name for name in store.names(data) if "target-" in name)
    whole = store.read(damaged)
    store.write(damaged, whole[:-100])
    (Path(tempfile.gettempdir()) / f"sibcl_ray-{os.getuid()}" / copy_of(store, damaged)).unlink()
    code, printed = run("second", "--trials", "3")
    (complaint,) = [line for line in printed.splitlines() if line.startswith("error: ")]
    assert code == 1 and complaint.startswith(f"error: {damaged} cannot be read"), printed
    assert "to be made again; the same command continues where it stopped" in complaint, complaint
    assert not store.exists(damaged) and "Traceback" not in printed

    code, printed = run("third", "--trials", "3")
    assert code == 0 and store.read(damaged) == whole, printed
    assert store.read_records(ledger) == before, "nothing was done twice"
    assert store.names("scratch") == store.names("claims") == store.names("sessions") == []
