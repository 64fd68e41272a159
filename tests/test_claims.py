"""A name has one holder at a time, whoever dies, pauses or lives on a machine that cannot be seen from here."""

import os
import pickle
import random
import signal
import subprocess
import sys
import threading
import time
from contextlib import ExitStack, contextmanager, suppress
from itertools import combinations
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest
from stores import names_in

from sibcl_ray.storage import leases
from sibcl_ray.storage.leases import DEAD_AFTER, Claims, Session
from sibcl_ray.storage.store import Store

NAME = "studies/one"
PATIENCE = 60.0  # seconds after which a process here hangs


@pytest.fixture(params=["local", "memory", "s3"])
def store(request, tmp_path):
    """A store on a disk, one in memory, and one on another machine."""
    if request.param == "s3":
        return Store(request.getfixturevalue("bucket"))
    return Store(str(tmp_path / "store") if request.param == "local" else f"memory://{tmp_path.name}/claims")


@pytest.fixture
def local(tmp_path):
    return Store(str(tmp_path / "store"))


@pytest.fixture
def quick():
    """A folder where writing is quick."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


class Clock:
    """What `leases` takes for the time: it goes on when it is told to."""

    def __init__(self):
        self.now = 1000.0
        self.sleep = time.sleep

    def monotonic(self):
        return self.now


@pytest.fixture
def clock(monkeypatch):
    clock = Clock()
    monkeypatch.setattr(leases, "time", clock)
    return clock


def far_sign(store, session, beat):
    """The sign of life of a session whose processes nobody sees from here."""
    about = {"beat": beat, "host": "far", "place": "far away", "process": 1, "started": "1"}
    store.write_record(f"sessions/{session}", about)


def far_session(store, session, *names):
    """A session on another host, and what it has claimed."""
    far_sign(store, session, 0)
    far = Claims(store, session)
    assert all(far.take(name) for name in names)
    return far


def of_the_dead(store, name, generation, session="dead"):
    store.write_record(f"claims/{name}.{generation}", {"session": session})


def wait_for(condition, seconds=PATIENCE):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it never happens"
        time.sleep(0.005)


# Who holds a name


def test_a_name_has_one_holder_and_can_be_taken_again_when_it_is_released(store):
    with Session(store) as one, Session(store) as other:
        for _ in range(3):
            for holder, waiter in ((one.claims, other.claims), (other.claims, one.claims)):
                assert holder.take(NAME) and holder.take(NAME), "who has it has it"
                assert not waiter.take(NAME) and not waiter.take(NAME)
                holder.release(NAME)


def test_names_are_held_one_by_one(store):
    with Session(store) as one, Session(store) as other:
        assert one.claims.take("jobs/a") and other.claims.take("jobs/b") and other.claims.take("jobs/a.b")
        assert not other.claims.take("jobs/a") and not one.claims.take("jobs/b")
        one.claims.release("jobs/a")
        assert other.claims.take("jobs/a") and not one.claims.take("jobs/a.b")


def test_releasing_what_is_not_held_changes_nothing(store):
    with Session(store) as one, Session(store) as other:
        other.claims.release(NAME)
        assert one.claims.take(NAME)
        other.claims.release(NAME)
        assert not other.claims.take(NAME)


def test_the_processes_of_one_session_do_not_hold_a_name_twice(store):
    with Session(store) as session:
        handed_on = pickle.loads(pickle.dumps(session.claims))
        assert handed_on.take(NAME) and not session.claims.take(NAME)
        handed_on.release(NAME)
        assert session.claims.take(NAME) and not handed_on.take(NAME)
        assert pickle.loads(pickle.dumps(session.claims)).take(NAME), "what is held when it is handed on stays held"


def test_the_claims_of_a_session_end_with_it_and_leave_nothing_behind(store):
    with Session(store) as other:
        for _ in range(3):
            with Session(store) as session:
                assert session.claims.take(NAME) and session.claims.take("jobs/a")
                assert not other.claims.take(NAME)
        assert names_in(store, "claims") == []
        assert other.claims.take(NAME) and other.claims.take("jobs/a")
    assert names_in(store, "claims") == names_in(store, "sessions") == []


def test_the_claims_of_a_session_end_with_it_whatever_ended_it(store):
    with pytest.raises(KeyboardInterrupt), Session(store) as session:
        session.claims.take(NAME)
        raise KeyboardInterrupt
    with Session(store) as other:
        assert other.claims.take(NAME)


def test_what_a_session_releases_after_its_end_is_not_that_of_others(store):
    """Its other processes may be slower than itself."""
    with Session(store) as one, Session(store) as other:
        with Session(store) as ended:
            slow = pickle.loads(pickle.dumps(ended.claims))
            assert slow.take(NAME)
        assert one.claims.take(NAME)
        slow.release(NAME)
        assert not other.claims.take(NAME)


def test_a_waiter_is_told_once_who_holds_the_name_and_gets_it(store):
    told = []
    with Session(store) as one, Session(store) as other:
        assert one.claims.take(NAME)
        waiting = threading.Thread(target=other.claims.wait, args=(NAME, told.append, 0.01))
        waiting.start()
        wait_for(lambda: told)
        time.sleep(0.1)
        assert waiting.is_alive()
        one.claims.release(NAME)
        waiting.join(PATIENCE)
        assert not one.claims.take(NAME)
    assert told == [f"process {os.getpid()} on {os.uname().nodename}"]


def test_nobody_is_told_of_a_name_that_is_free(store):
    with Session(store) as session:
        session.claims.wait(NAME, lambda who: pytest.fail(who))


def test_the_holder_is_the_last_of_those_who_took_over(store):
    with Session(store) as session:
        assert session.claims.holder(NAME) == "another process"
        of_the_dead(store, NAME, 0)
        assert session.claims.holder(NAME) == "another process"
        far_session(store, "far", NAME)
        assert session.claims.holder(NAME) == "process 1 on far"


# Races


RACER = """
import os, sys
from pathlib import Path
from sibcl_ray.storage.leases import Session
from sibcl_ray.storage.store import Store
folder, me, rounds = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
store, inside = Store(str(folder / "store")), folder / "inside"
(folder / f"ready{me}").touch()
while not (folder / "go").exists():
    pass
for i in range(rounds):
    with Session(store) as session:
        while not session.claims.take("prize"):
            pass
        os.close(os.open(inside, os.O_CREAT | os.O_EXCL))  # raises where somebody else is inside
        os.unlink(inside)
        if (i + int(me)) % 3:
            session.claims.release("prize")
        else:
            session.claims._held.clear()  # it ends as if it had been killed: the next has to take over
print("done")
"""


def test_processes_that_race_for_a_name_hold_it_one_after_the_other(quick):
    racers = [
        subprocess.Popen([sys.executable, "-c", RACER, quick, str(me), "40"], stdout=subprocess.PIPE, text=True)
        for me in range(4)
    ]
    wait_for(lambda: len(list(quick.glob("ready*"))) == len(racers) or any(r.poll() is not None for r in racers))
    (quick / "go").touch()
    assert [racer.communicate(timeout=PATIENCE)[0] for racer in racers] == ["done\n"] * len(racers)
    assert names_in(Store(str(quick / "store")), "sessions") == []


def test_threads_that_race_for_many_names_get_each_once(quick):
    store, won = Store(str(quick)), []
    with ExitStack() as stack:
        everybody = [stack.enter_context(Session(store)).claims for _ in range(6)]
        for name in range(40):
            of_the_dead(store, name, 0)  # so that half of the work is taking over
        start = threading.Barrier(len(everybody))

        def race(mine):
            start.wait()
            won.extend(name for name in range(80) if mine.take(str(name)))

        threads = [threading.Thread(target=race, args=(mine,)) for mine in everybody]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(PATIENCE)
        assert sorted(won) == list(range(80))


class Killed(BaseException):
    pass


class Steps:
    """Runs threads one step at a time, in an order that a seed decides; kills some of them."""

    def __init__(self, seed, deaths):
        self.random, self.deaths = random.Random(seed), deaths
        self.turns, self.done = {}, threading.Semaphore(0)

    def pause(self):
        """Ends a step, in its thread."""
        if (turn := self.turns.get(threading.get_ident())) is None:
            return
        self.done.release()
        assert turn.acquire(timeout=PATIENCE)
        if self.deaths and self.random.random() < 0.04:
            self.deaths -= 1
            raise Killed

    def run(self, works):
        def begin(work):
            turn = self.turns[threading.get_ident()] = threading.Semaphore(0)
            self.done.release()
            assert turn.acquire(timeout=PATIENCE)
            work()
            del self.turns[threading.get_ident()]
            self.done.release()

        for work in works:
            threading.Thread(target=begin, args=(work,), daemon=True).start()
            assert self.done.acquire(timeout=PATIENCE)
        while self.turns:
            self.random.choice(list(self.turns.values())).release()
            assert self.done.acquire(timeout=PATIENCE), "a step never ends"


class SteppedStore(Store):
    """Other threads may do anything between two of its operations."""

    def stepped(self, steps):
        object.__setattr__(self, "_steps", steps)
        return self

    def create(self, name, data):
        self._steps.pause()
        return super().create(name, data)

    def read(self, name):
        self._steps.pause()
        return super().read(name)

    def exists(self, name):
        self._steps.pause()
        return super().exists(name)

    def remove(self, name):
        self._steps.pause()
        super().remove(name)


@pytest.mark.parametrize("seeds", [range(15), pytest.param(range(15, 60), marks=pytest.mark.thorough)])
@pytest.mark.parametrize("deaths", [0, 3, 10])
def test_in_no_order_of_steps_do_two_hold_a_name(deaths, seeds, quick):
    """Four drivers, each a few times, of whom some die at any step; the next goes on in their place."""
    for seed in seeds:
        uri = str(quick / f"{seed}")
        plain, steps = Store(uri), Steps(seed, deaths)
        inside, turns = [], []

        def drive(uri=uri, plain=plain, steps=steps, inside=inside, turns=turns, seed=seed):
            while len(turns) < 12:
                with Session(plain) as session:
                    mine = Claims(SteppedStore(uri).stepped(steps), session.claims.session)
                    with suppress(Killed):  # then there is nothing but the end of its sign of life
                        while not mine.take(NAME):
                            pass
                        try:
                            assert not inside, f"two are inside with seed {seed}"
                            inside.append(session)
                            turns.append(session)
                            steps.pause()
                        finally:
                            inside.clear()
                        mine.release(NAME)

        failures = []

        def guarded(drive=drive, failures=failures):
            try:
                drive()
            except AssertionError as failure:
                failures.append(failure)

        steps.run([guarded] * 4)
        assert not failures, failures[0]
        with Session(plain) as last, Session(plain) as other:
            assert last.claims.take(NAME) and not other.claims.take(NAME)


# Holders that die where others see it


HOLDER = """
import sys, time
from sibcl_ray.storage import leases as claims
from sibcl_ray.storage.store import Store
claims.BEAT = 0.05
if len(sys.argv) > 3:
    claims._place = lambda: "far away"
session = claims.Session(Store(sys.argv[1])).__enter__()
assert session.claims.take(sys.argv[2])
print("held", flush=True)
sys.stdin.readline()
print("lost" if session.lost.wait(20) else "not lost", flush=True)
session.claims.release(sys.argv[2])
session.__exit__(None, None, None)
"""


@contextmanager
def holder(store, *how):
    """A process that holds the name, until it is told to release it."""
    command = [sys.executable, "-c", HOLDER, store.uri, NAME, *how]
    process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
    try:
        assert process.stdout.readline() == "held\n"
        yield process
    finally:
        process.kill()
        process.communicate()


def test_a_holder_that_is_killed_on_this_host_is_replaced_at_once(local, clock):
    """Also before anybody has waited for its process. The clock stands still."""
    with Session(local) as one, Session(local) as other, holder(local) as process:
        assert not one.claims.take(NAME)
        process.kill()
        os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT)
        assert one.claims.take(NAME)
        process.wait()
        assert not other.claims.take(NAME)
        one.claims.release(NAME)
        assert other.claims.take(NAME)


def test_a_holder_that_pauses_on_this_host_is_never_taken_for_dead(local, clock):
    with Session(local) as session, holder(local) as process:
        process.send_signal(signal.SIGSTOP)
        for _ in range(3):
            assert not session.claims.take(NAME)
            clock.now += 2 * DEAD_AFTER


def test_a_process_that_got_the_number_of_one_that_died_is_another(store):
    """The number is that of this process, which lives."""
    with Session(store) as session:
        life = store.read_record(f"sessions/{session.claims.session}")
        store.write_record("sessions/older", {**life, "started": "1"})
        of_the_dead(store, NAME, 0, session="older")
        assert not session.claims.alive("older") and session.claims.take(NAME)


# Holders that cannot be seen


def test_a_holder_on_another_host_is_dead_when_it_has_given_no_sign_for_long(store, clock):
    far_session(store, "far", NAME)
    with Session(store) as one, Session(store) as other:
        for passed in (0.0, DEAD_AFTER / 2, DEAD_AFTER / 2 - 0.1):
            clock.now += passed
            assert not one.claims.take(NAME)
        clock.now += 0.2
        assert one.claims.take(NAME)
        assert not other.claims.take(NAME), "what one has found the other need not wait for, nor may it take it"


def test_any_new_sign_is_a_sign_of_life(store, clock):
    """Beats are told apart, not ordered: whoever looks may have been away for any time."""
    far_session(store, "far", NAME)
    with Session(store) as session:
        for beat in (1, 2, 900, 3, 0, -1):
            assert not session.claims.take(NAME)
            clock.now += DEAD_AFTER - 1
            far_sign(store, "far", beat)
        for _ in range(2):
            assert not session.claims.take(NAME)
            clock.now += DEAD_AFTER - 1
        clock.now += 2
        assert session.claims.take(NAME)


def test_whoever_looks_first_waits_from_then_on(store, clock):
    far_session(store, "far", NAME)
    clock.now += 100 * DEAD_AFTER
    with Session(store) as one:
        assert not one.claims.take(NAME)
        clock.now += DEAD_AFTER - 1
        with Session(store) as late:
            assert not late.claims.take(NAME)
            clock.now += 2
            assert not late.claims.take(NAME), "what others have seen so far does not count"
            assert one.claims.take(NAME) and not late.claims.alive("far")


@pytest.mark.parametrize("skew", [-1e9, -3600.0, 3600.0, 1e9])
def test_the_clocks_of_other_hosts_do_not_matter(skew, local, clock):
    """Nor does that of the storage, which dates what is written."""
    far_session(local, "far", NAME)
    with Session(local) as session:
        for beat in (1, 2):
            assert not session.claims.take(NAME)
            clock.now += DEAD_AFTER - 1
            far_sign(local, "far", beat)
            os.utime(local.path("sessions/far"), (time.time() + skew,) * 2)
        assert not session.claims.take(NAME)
        clock.now += DEAD_AFTER - 1
        assert not session.claims.take(NAME)
        clock.now += 2
        assert session.claims.take(NAME)


def test_a_session_that_has_ended_on_another_host_is_replaced_at_once(store, clock):
    far_session(store, "far", NAME)
    with Session(store) as session:
        assert not session.claims.take(NAME)
        store.remove("sessions/far")
        assert session.claims.take(NAME)


def test_a_session_of_which_there_was_never_a_sign_is_dead(store, clock):
    of_the_dead(store, NAME, 0)
    with Session(store) as session:
        assert session.claims.take(NAME)


# Holders that wake up


def test_a_driver_that_was_paused_and_replaced_learns_it_and_takes_nothing_away(local, monkeypatch):
    with Session(local) as one, Session(local) as other, holder(local, "unseen") as process:
        monkeypatch.setattr(leases, "DEAD_AFTER", 1.0)
        started = time.monotonic()
        while time.monotonic() - started < 1.5:
            assert not one.claims.take(NAME), "it gives signs of life"
            time.sleep(0.02)
        process.send_signal(signal.SIGSTOP)
        wait_for(lambda: one.claims.take(NAME))
        process.send_signal(signal.SIGCONT)
        assert process.communicate("\n", timeout=PATIENCE)[0] == "lost\n" and not process.returncode
        assert not other.claims.take(NAME)
        one.claims.release(NAME)
        assert other.claims.take(NAME)


def test_a_session_that_was_taken_for_dead_gives_no_more_signs(store, monkeypatch):
    monkeypatch.setattr(leases, "BEAT", 0.02)
    with Session(store) as session, Session(store) as other:
        life = f"sessions/{session.claims.session}"
        wait_for(lambda: store.read_record(life)["beat"] > 2)
        assert not session.lost.is_set() and other.claims.alive(session.claims.session)
        store.write_record(f"{life}.dead", {"by": other.claims.session})
        assert session.lost.wait(PATIENCE)
        before = store.read(life)
        time.sleep(0.1)
        assert store.read(life) == before and not other.claims.alive(session.claims.session)
        assert not other.lost.is_set()


def test_the_end_of_a_session_that_was_taken_for_dead_is_not_that_of_its_successor(store, clock):
    with Session(store) as one, Session(store) as other:
        with Session(store) as paused:
            assert paused.claims.take(NAME)
            far_sign(store, paused.claims.session, 0)
            assert not one.claims.take(NAME)
            clock.now += DEAD_AFTER + 1
            assert one.claims.take(NAME)
        assert not other.claims.take(NAME) and one.claims.take(NAME)


def test_a_storage_that_is_away_for_a_while_costs_no_session(local, monkeypatch):
    monkeypatch.setattr(leases, "BEAT", 0.02)
    folder = Path(local.path("sessions"))
    with Session(local) as session, Session(local) as other:
        assert session.claims.take(NAME)
        folder.rename(folder.with_name("away"))
        folder.write_bytes(b"")  # no folder: nothing can be written there
        time.sleep(0.2)
        folder.unlink()
        folder.with_name("away").rename(folder)
        life = f"sessions/{session.claims.session}"
        before = local.read_record(life)["beat"]
        wait_for(lambda: local.read_record(life)["beat"] > before + 2)
        assert not session.lost.is_set() and not other.claims.take(NAME)


# What the dead have left


def test_a_chain_of_the_dead_has_one_successor_who_clears_it(store):
    with Session(store) as one, Session(store) as other:
        for generation in range(6):
            of_the_dead(store, NAME, generation, session=f"dead{generation}")
        assert one.claims.take(NAME) and not other.claims.take(NAME)
        one.claims.release(NAME)
        assert names_in(store, "claims") == []
        assert other.claims.take(NAME) and not one.claims.take(NAME)


@pytest.mark.parametrize(
    "store", ["local", *(pytest.param(kind, marks=pytest.mark.thorough) for kind in ("memory", "s3"))], indirect=True
)
@pytest.mark.parametrize("left", [left for size in range(1, 5) for left in combinations(range(4), size)], ids=str)
def test_whatever_a_killed_release_has_left_has_one_successor(left, store):
    with Session(store) as one, Session(store) as other:
        for generation in left:
            of_the_dead(store, NAME, generation)
        for _ in range(2):
            for holder, waiter in ((one.claims, other.claims), (other.claims, one.claims)):
                assert holder.take(NAME) and not waiter.take(NAME)
                holder.release(NAME)


def test_a_chain_of_hosts_that_vanish_is_waited_for_link_by_link(store, clock):
    with Session(store) as last, Session(store) as other:
        for number in range(3):
            far = far_session(store, f"far{number}")
            while not far.take(NAME):
                clock.now += DEAD_AFTER + 1
            assert not last.claims.take(NAME)
        clock.now += DEAD_AFTER + 1
        assert last.claims.take(NAME) and not other.claims.take(NAME)
        last.claims.release(NAME)
        assert names_in(store, "claims") == []


DAMAGED = [b"", b"{", b"null", b'{"session": "x"}', b"\0" * 100]


@pytest.mark.parametrize("data", DAMAGED, ids=repr)
def test_a_damaged_claim_is_nobodys(data, store):
    store.write(f"claims/{NAME}.0", data)
    with Session(store) as one, Session(store) as other:
        assert one.claims.take(NAME) and not other.claims.take(NAME)
        assert one.claims.holder(NAME) == f"process {os.getpid()} on {os.uname().nodename}"
        one.claims.release(NAME)
        assert other.claims.take(NAME)
        assert names_in(store, "claims") == [f"claims/{NAME}.0"]


@pytest.mark.parametrize("data", DAMAGED, ids=repr)
def test_a_damaged_sign_of_life_is_one_until_the_next_is_due(data, store, clock):
    far = far_session(store, "far", NAME)
    store.write("sessions/far", data)
    with Session(store) as one, Session(store) as other:
        assert not one.claims.take(NAME) and one.claims.holder(NAME) == "another process"
        clock.now += DEAD_AFTER - 1
        assert not one.claims.take(NAME)
        far_sign(store, "far", 1)
        clock.now += DEAD_AFTER - 1
        assert not one.claims.take(NAME), "it lives, and has written another"
        store.write("sessions/far", data)
        assert not one.claims.take(NAME)
        clock.now += DEAD_AFTER + 1
        assert one.claims.take(NAME) and not other.claims.take(NAME)
        far.release(NAME)
        assert not other.claims.take(NAME)


def test_a_damaged_sign_of_ones_own_life_is_written_again(store, monkeypatch):
    monkeypatch.setattr(leases, "BEAT", 0.02)
    with Session(store) as session:
        life = f"sessions/{session.claims.session}"
        store.write(life, b"{")
        wait_for(lambda: b"beat" in store.read(life))
        assert not session.lost.is_set()
