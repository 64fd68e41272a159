"""A store in a bucket: through its real client, from many processes, with a network between."""

import asyncio
import multiprocessing
import os
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from subprocess import PIPE

import pytest
import ray
from bucket_servers import BUCKET, FORGETFUL_BUCKET, SECRET
from processes import PATIENCE, Driver, told
from servers import free_port, proxy, wait_until

from sibcl_ray.storage.leases import Session
from sibcl_ray.storage.node_cache import copy_of
from sibcl_ray.storage.store import Store, StoreError, _place


@pytest.fixture
def store(bucket):
    return Store(bucket)


def test_a_bucket_is_no_folder_of_this_machine(store):
    assert store.is_distant and not store.is_local


def test_what_another_process_writes_is_seen_at_once(store):
    program = "import sys; from sibcl_ray.storage.store import Store; Store(sys.argv[1]).{}"

    def elsewhere(call):
        subprocess.run([sys.executable, "-c", program.format(call), store.uri], check=True)

    assert not store.exists("a/b") and store.names("a") == [] and store.read_records(["a/b"]) == {}
    elsewhere("write_record('a/b', {'number': 1})")
    assert store.exists("a/b") and store.names("a") == ["a/b"] and store.read_record("a/b") == {"number": 1}
    elsewhere("write_record('a/b', {'number': 2})")
    assert store.read_record("a/b") == store.read_records(["a/b"])["a/b"] == {"number": 2}
    elsewhere("move('a', 'c')")
    assert not store.exists("a/b") and store.names("a") == [] and store.names("c") == ["c/b"]


@pytest.mark.thorough
def test_processes_that_end_right_after_a_request_end_well(store):
    """Nothing of obstore's is left then that wants Python back; of eight, one would be aborted."""
    program = "import sys; from sibcl_ray.storage.store import Store; Store(sys.argv[1]).read_records(['a', 'b'])"
    several = [subprocess.Popen([sys.executable, "-c", program, store.uri]) for _ in range(8)]
    assert [process.wait(60) for process in several] == [0] * 8


@pytest.fixture
def network(store, s3, monkeypatch):
    """Between the store and its server, which the store has reached by it."""
    with proxy(s3.port) as network:
        monkeypatch.setenv("AWS_ENDPOINT_URL", network.address)
        monkeypatch.setattr("sibcl_ray.storage.buckets.SILENCE", "1s")
        store.write("first", b"")
        network.requests = 0
        yield network


def test_many_records_are_asked_for_side_by_side(store, network):
    """All have been asked for before any is answered."""
    for i in range(8):
        store.write_record(f"ledger/{i}", {"i": i})
    network.requests, network.silent = 0, True
    with ThreadPoolExecutor(1) as reader:
        records = reader.submit(store.read_records, [f"ledger/{i}" for i in range(8)])
        wait_until(lambda: network.requests >= 8, 10)
        network.silent = False
        assert len(records.result(PATIENCE)) == 8


@pytest.mark.parametrize(("before", "wins"), [(None, True), (b"another", False)])
def test_who_creates_a_name_and_loses_the_answer_still_knows_that_it_has_won(before, wins, store, network):
    """Its client asks again, and is told that the name is there."""
    if before:
        store.write("claim", before)
    network.requests, network.lost = 0, 1
    assert store.create("claim", b"mine") == wins and store.read("claim") == (before or b"mine")
    assert network.requests >= 2 and network.lost == 0, "nothing was lost"


@pytest.mark.parametrize("url", ["s3://{}/{}", "s3a://{}/{}", "s3://{}/{}/"])
def test_keys_are_those_that_other_tools_see(url, s3, tmp_path):
    """What s3fs has stored is found."""
    boto3, url = pytest.importorskip("boto3"), url.format(BUCKET, tmp_path.name)
    client, key = boto3.client("s3"), f"{tmp_path.name}/ledger/cells/a b.json"
    client.put_object(Bucket=BUCKET, Key=key, Body=b"1")
    store = Store(url)
    assert store.read("ledger/cells/a b.json") == b"1" and store.names("ledger") == ["ledger/cells"]
    store.write("ledger/cells/a b.json", b"2")
    assert client.get_object(Bucket=BUCKET, Key=key)["Body"].read() == b"2"


RECORD = {"number": 1}
CALLS = {  # each on what those before have left
    "create": (lambda store: store.create("a/new", b"1"), True),
    "create again": (lambda store: store.create("a/new", b"2"), False),
    "write": (lambda store: store.write("a/old", b"3"), None),
    "write a large one": (lambda store: store.write("large", bytes(12_000_000)), None),
    "exists": (lambda store: store.exists("a/old"), True),
    "read": (lambda store: store.read("a/old"), b"3"),
    "names": (lambda store: store.names("a"), ["a/new", "a/old"]),
    "move": (lambda store: store.move("a", "b/c"), None),
    "moved": (lambda store: (store.names("a"), store.names("b/c")), ([], ["b/c/new", "b/c/old"])),
    "write a record": (lambda store: store.write_record("record", RECORD), None),
    "read records": (lambda store: store.read_records(["record", "none"]), {"record": RECORD}),
    "remove": (lambda store: store.remove("b/c/new"), None),
    "clear": (lambda store: store.clear("b"), None),
    "cleared": (lambda store: (store.names("b/c"), store.exists("b/c/old")), ([], False)),
}


@pytest.mark.parametrize("how", ["refused", "lost", "silent"])
def test_a_bucket_that_fails_for_a_moment_is_asked_again(how, store, network):
    """At the first requests of each call."""
    for name, (call, expected) in CALLS.items():
        if how == "silent":
            network.silent = True
            threading.Timer(1.3, setattr, (network, "silent", False)).start()
        else:
            setattr(network, how, 2)
        assert call(store) == expected, name
        assert not getattr(network, how), f"nothing failed in {name}"


def test_a_large_object_is_read_to_its_end_though_its_connection_is_cut(store, network):
    data = os.urandom(20_000_000)
    store.write("large", data)
    network.requests, network.cut_after = 0, 5_000_000
    assert store.read("large") == data and network.requests >= 2 and network.cut_after is None


def test_a_bucket_that_is_down_for_long_is_an_error_that_says_so(store, network):
    network.down = True
    with pytest.raises(StoreError, match=r"first cannot be read in s3://.* error sending request"):
        replace(store, patience=1.0).read("first")


WAITING = """
import sys
from sibcl_ray.storage.store import Store
store = Store(sys.argv[1])
store.exists("first")
print("reached", flush=True)
input()
print("asking", flush=True)
store.{}
"""


@pytest.mark.parametrize("call", ["read('first')", "read_records(['first', 'second'])", "write('first', b'')"])
def test_whoever_waits_for_a_bucket_can_be_interrupted(call, store, network):
    with subprocess.Popen(
        [sys.executable, "-c", WAITING.format(call), store.uri], stdin=PIPE, stdout=PIPE, stderr=PIPE, text=True
    ) as reader:
        assert reader.stdout.readline() == "reached\n"
        network.silent = True
        reader.stdin.write("\n")
        reader.stdin.flush()
        assert reader.stdout.readline() == "asking\n"
        begun = time.monotonic()
        reader.send_signal(signal.SIGINT)
        assert reader.wait(PATIENCE) == -signal.SIGINT and time.monotonic() - begun < 5


def test_a_storage_that_writes_over_what_is_only_to_be_created_is_refused(gcs):
    with pytest.raises(StoreError, match="writes over what should only be created"):
        Store(f"gs://{FORGETFUL_BUCKET}/a").open()


def _child(store, answers):
    try:
        store.write("b", b"2")
        answers.put(store.read("a"))
    except StoreError as error:
        answers.put(str(error))


@pytest.mark.parametrize(("method", "expected"), [("spawn", b"1"), ("fork", r"forked .* 'spawn' instead")])
def test_a_store_works_in_other_processes_or_says_how(method, expected, store):
    store.write("a", b"1")
    context = multiprocessing.get_context(method)
    answers = context.Queue()
    child = context.Process(target=_child, args=(store, answers))
    child.start()
    answer = answers.get(timeout=60)
    child.join(60)
    assert answer == expected if isinstance(expected, bytes) else re.search(expected, answer)


def test_a_store_works_after_a_journey_which_its_secret_does_not_make(store):
    store.write("a", b"1")
    again = pickle.loads(pickle.dumps(store))
    assert again == store and again.read("a") == b"1" and SECRET.encode() not in pickle.dumps(store)


class Holder:
    """As the queue of jobs: an asynchronous actor that asks the store in threads."""

    def __init__(self, store, me):
        self.store, self.me = store, me

    async def create_all(self, names):
        return await asyncio.gather(*(asyncio.to_thread(self.store.create, name, self.me) for name in names))


def test_asynchronous_actors_use_a_store_from_threads(cluster, store, s3):
    names = [f"prizes/{i}" for i in range(24)]
    actor = ray.remote(Holder).options(num_cpus=0, runtime_env={"env_vars": s3.environment}).remote(store, b"one")
    ray.get(actor.create_all.remote([]))  # it is there
    asked = actor.create_all.remote(names)
    other = asyncio.run(Holder(store, b"other").create_all(names))
    one = ray.get(asked)
    assert [not mine for mine in one] == other
    assert [store.read(name) for name in names] == [b"one" if mine else b"other" for mine in one]


@pytest.fixture
def strangers():
    """No client of other tests is used again, nor are those of this one."""
    _place.cache_clear()
    yield
    _place.cache_clear()


REFUSALS = {
    "a bucket that is not there": ({}, "s3://nowhere/a", "bucket does not exist"),
    "an unknown key": ({"AWS_ACCESS_KEY_ID": "AKIAUNKNOWN"}, None, "Key Id you provided does not exist"),
    "a wrong secret": ({"AWS_SECRET_ACCESS_KEY": "wrong"}, None, "signature we calculated does not match"),
    "nobody there": ({"AWS_ENDPOINT_URL": "http://127.0.0.1:{free}"}, None, "127.0.0.1:.* error sending request"),
    "no such host": ({"AWS_ENDPOINT_URL": "http://nowhere.invalid"}, None, "nowhere.invalid/.* error sending request"),
    "no address": ({"AWS_ENDPOINT_URL": "nonsense"}, None, "Invalid endpoint: nonsense"),
    "silence": ({"AWS_ENDPOINT_URL": "http://127.0.0.1:{silent}"}, None, "does not answer within 2 s; check its"),
    "no bucket that is known": ({}, "hdfs://somewhere/a", "give a folder, s3://.*, gs://.* or az://"),
    "a chain": ({}, "simplecache::s3://studies/a", "give a folder, s3://.*, gs://.* or az://"),
    "not even a bucket": ({}, "s3://", "names no bucket"),
}


@pytest.mark.parametrize(("environment", "uri", "expected"), REFUSALS.values(), ids=REFUSALS)
def test_a_bucket_that_cannot_be_used_is_one_line_within_seconds(
    environment, uri, expected, bucket, s3, strangers, monkeypatch, tmp_path, capfd
):
    from sibcl_ray.cli.main import command_line

    uri, begun = uri or bucket, time.monotonic()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["label_sweep.py", "--scale", "smoke", "--storage", uri])
    monkeypatch.setattr("sibcl_ray.driver.ANSWER", 2.0 if "does not answer" in expected else 60.0)
    monkeypatch.setattr("sibcl_ray.storage.store.OPENING", 2.0)
    with proxy(s3.port) as silent:
        silent.silent = True
        for name, value in environment.items():
            monkeypatch.setenv(name, value.format(free=free_port(), silent=silent.port))
        assert command_line("sweep") == 2
    assert time.monotonic() - begun < 20
    printed = capfd.readouterr().err
    assert re.search(f"^error: --storage {uri} .*{expected}", printed), printed
    assert printed.count("\n") == 1 and SECRET not in printed


def test_a_dry_run_writes_nothing_into_a_bucket_and_sees_that_there_is_none(bucket, tmp_path, capfd):
    def planned(uri):
        return told(capfd, "--scale", "smoke", "--storage", uri, "--search-storage", url, "--dry-run")

    url, place = f"sqlite:///{tmp_path}/search.db", Store(bucket)
    code, printed = planned(bucket)
    assert code == 0 and "No label was computed" in printed.out, printed
    assert place.names("datasets") == place.names("drafts") == [] and not place.exists("sibcl_ray.json")
    code, printed = planned("s3://nowhere-at-all/runs")
    assert code == 2 and re.search("--storage s3://nowhere-at-all/runs .*bucket does not exist", printed.err), printed
    assert not list(tmp_path.iterdir())


def test_a_bucket_that_vanishes_is_an_error_of_the_storage(store):
    gone = Store("s3://nowhere/a")
    for call in (lambda: gone.write("a", b""), lambda: gone.create("a", b""), gone.open):
        with pytest.raises(StoreError, match="cannot be written in s3://nowhere/a: The specified bucket"):
            call()


def test_what_a_dead_session_left_in_a_bucket_is_cleared_away(store):
    from sibcl_ray.cluster.run import _scratch

    for name in ("scratch/dead/a/b", "scratch/dead/c", "scratch/far/a"):
        store.write(name, b"1")
    store.write_record("sessions/far", {"beat": 0, "host": "far", "place": "far", "process": 1, "started": "1"})
    with Session(store) as session, _scratch(store, session.claims) as (shared, here):
        assert shared == f"scratch/{session.claims.session}"
        assert store.names("scratch") == ["scratch/far"] and Path(here).is_dir()
        files, path = store.arrow(shared)
        with pickle.loads(pickle.dumps(files)).open_output_stream(f"{path}/state") as file:
            file.write(b"1")
        assert len(store.names("scratch")) == 2 and store.read(f"{shared}/state") == b"1"
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

    shards = [name for kind in store.names("datasets") for name in store.names(kind)]
    damaged = next(name for name in shards if "target-" in name and name.endswith(".parquet"))
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
