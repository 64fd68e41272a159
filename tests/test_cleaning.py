"""What nobody needs goes, what anybody needs stays, also beside a running study."""

import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from processes import told
from stores import names_in

from sibcl_ray.storage import leases
from sibcl_ray.storage.cleaning import free, unneeded
from sibcl_ray.storage.leases import Claims, Session
from sibcl_ray.storage.records import failure, timed
from sibcl_ray.storage.store import Store

NEEDED = {
    "artefacts/aa.safetensors", "checkpoints/k2", "ledger/pretraining/k1.json", "ledger/pretraining/k3.json",
    "ledger/cell/c.json", "datasets/x-1/target-00000.parquet", "studies/x/matrix.parquet", "aside/old/a",
    "sibcl_ray.json",
}  # fmt: skip
HOLDER = """
import os, sys
from sibcl_ray.storage.leases import Session
from sibcl_ray.storage.store import Store
session = Session(Store(sys.argv[1])).__enter__()
assert session.claims.take("studies/x") and session.claims.take("datasets/x-1/target-00000.parquet")
print("held", flush=True)
sys.stdin.readline()
os._exit(9)
"""


@pytest.fixture
def store(tmp_path):
    store = Store(str(tmp_path / "runs"))
    store.open()
    store.write_record("ledger/pretraining/k1.json", timed({"state": "done", "weights": "aa"}))
    store.write_record("ledger/pretraining/k3.json", timed(failure("no")))
    for name in sorted(NEEDED - set(names_in(store))):
        store.write(name, b"needed")
    for name in ("artefacts/bb.safetensors", "checkpoints/k1", "checkpoints/k3"):
        store.write(name, b"left over")
    return store


@pytest.fixture
def driver(store):
    """A driver in a process of its own, that dies when it is told to."""
    command = [sys.executable, "-c", HOLDER, store.uri]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "held\n"
    yield process
    process.kill()
    process.wait()


def cleaned(store):
    session = Session(store)
    found = unneeded(store, session.claims)
    with session:
        free(store, session, found)
    return found


def test_what_is_left_over_goes(store, driver):
    driver.communicate("die\n")
    found = cleaned(store)
    assert found.weights == ("artefacts/bb.safetensors",) and set(found.checkpoints) == {
        "checkpoints/k1",
        "checkpoints/k3",
    }
    assert found.claims == ("datasets/x-1/target-00000.parquet", "studies/x")
    assert set(names_in(store)) == NEEDED
    assert not cleaned(store)


def test_beside_a_driver_what_it_may_need_stays(store, driver):
    found = cleaned(store)
    assert len(found.running) == 1 and not found.weights and not found.claims
    names = set(names_in(store))
    assert names > NEEDED | {"artefacts/bb.safetensors"} and "checkpoints/k1" not in names
    assert not Claims(store, "other").take("studies/x")


@pytest.mark.parametrize("beats", [False, True])
@pytest.mark.parametrize("read_only", [False, True])
def test_a_driver_elsewhere_lives_as_long_as_it_beats(store, monkeypatch, beats, read_only):
    monkeypatch.setattr(leases, "DEAD_AFTER", 0.5)
    over, told = threading.Event(), []

    def live():
        beat = 0
        while beat == 0 or (beats and not over.wait(0.1)):
            beat += 1
            about = {"beat": beat, "host": "far", "place": "another machine", "process": 1, "started": "1"}
            store.write_record("sessions/far", about)

    with ThreadPoolExecutor() as pool:
        pool.submit(live)
        while not store.exists("sessions/far"):
            time.sleep(0.01)
        its = Store(store.uri, read_only=read_only)
        found = unneeded(its, Claims(its, "mine"), told.append)
        over.set()
    assert len(told) == 1 and "1 drivers run elsewhere" in told[0]
    assert found.running == ("far",) * beats and bool(found.weights) != beats
    assert store.exists("sessions/far.dead") == (not beats and not read_only)


def test_a_damaged_record_may_refer_to_any_weights(store):
    store.write("ledger/pretraining/k1.json", b"torn")
    assert not cleaned(store).weights


def test_the_command_says_first_and_with_dry_run_only_says(store, capfd):
    before = set(names_in(store))
    code, printed = told(capfd, "--storage", store.uri, "--clean", "--dry-run")
    assert code == 0 and set(names_in(store)) == before
    assert "1 weights that no pretraining" in printed.out and "Nothing was removed" in printed.out
    code, printed = told(capfd, "--storage", store.uri, "--clean")
    assert code == 0 and "They are removed" in printed.out and set(names_in(store)) == NEEDED
    code, printed = told(capfd, "--storage", store.uri, "--clean")
    assert code == 0 and "Nothing was removed" in printed.out
    code, printed = told(capfd, "--storage", store.uri, "--clean", "--fresh")
    assert code == 2 and "--clean" in printed.err
