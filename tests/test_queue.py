"""The queue, on an event loop of its own: each job once, in order, after what it requires, whoever dies."""

import asyncio
from contextlib import ExitStack
from dataclasses import dataclass, replace
from functools import wraps

import pytest
import torch
from toy import Moments
from toy_jobs import Fail, Sleep, Together

from sibcl_ray.cluster import scheduler as queue_module
from sibcl_ray.cluster.scheduler import DATA_PARALLEL, SINGLE_WORKER, JobQueue, Unfinished
from sibcl_ray.data.dataset import Dataset
from sibcl_ray.learning.jobs import execute
from sibcl_ray.learning.training import Diverged
from sibcl_ray.storage.leases import Session
from sibcl_ray.storage.records import ATTEMPTS, DIVERGED, DONE, FAILED, failure, timed, write_record
from sibcl_ray.storage.store import Store

PATIENCE = 30.0  # seconds after which a test here hangs
CPU = torch.device("cpu")


def in_a_loop(test):
    """Runs an asynchronous test, which may take no longer than ``PATIENCE``."""

    @wraps(test)
    def run(*arguments, **named):
        asyncio.run(asyncio.wait_for(test(*arguments, **named), PATIENCE))

    return run


@pytest.fixture
def dataset(tmp_path):
    return Dataset(Moments(), 0, Store(str(tmp_path)))


@pytest.fixture
def sessions(dataset, monkeypatch):
    """A maker of the claims of drivers, each another one."""
    monkeypatch.setattr(queue_module, "POLL", 0.02)
    with ExitStack() as stack:
        yield lambda: stack.enter_context(Session(dataset.store)).claims


@pytest.fixture
def queue(sessions):
    return JobQueue(sessions())


@dataclass(frozen=True, kw_only=True)
class Noted(Sleep):
    """Notes that it was computed."""

    kind = "noted"

    def compute(self, device, report):
        self.store.create(f"computed/{self.number}.{len(self.store.names('computed'))}", b"")
        return {"number": self.number}


@dataclass(frozen=True, kw_only=True)
class Diverge(Sleep):
    """Diverges."""

    kind = "diverge"

    def compute(self, device, report):
        raise Diverged("the loss became nan")


@dataclass(frozen=True, kw_only=True)
class FailAfter(Fail):
    """Raises, in several at once."""

    kind = "fail after"


@dataclass(frozen=True, kw_only=True)
class Shared(Sleep):
    """Several workers may run it together, or one alone."""

    kind = "shared"
    data_parallel = True


def submit(queue, job, priority=0):
    """As Ray does: the answer comes some day."""
    return asyncio.ensure_future(queue.submit(job, priority))


async def settle():
    """Let everything happen that can happen now."""
    for _ in range(20):
        await asyncio.sleep(0)


async def submitted(queue, *jobs, **options):
    answers = [submit(queue, job, **options) for job in jobs]
    await settle()
    return answers


def run(job):
    return execute(job, CPU, lambda fraction, loss: None)


async def serve(queue, group="group", rank=0, lane=SINGLE_WORKER):
    """A worker; the jobs that it was given."""
    given = []
    while (job := await queue.next(group, rank, lane)) is not None:
        given.append(job)
        await queue.finish(group, rank, await asyncio.to_thread(run, job))
    return given


async def answers(queue, waiting, ranks=1):
    """What all wait for, from workers of both lanes, and the jobs of the narrow one."""
    workers = [asyncio.ensure_future(serve(queue, rank=rank)) for rank in range(ranks)]
    wide = asyncio.ensure_future(serve(queue, "wide", lane=DATA_PARALLEL))
    records = await asyncio.gather(*waiting)
    await queue.stop("the test is over")
    await wide
    return records, [job for worker in workers for job in await worker]


def numbers(jobs):
    return [job.number for job in jobs]


def computed(dataset):
    return sorted(int(name.split("/")[1].split(".")[0]) for name in dataset.store.names("computed"))


# Each job once, in order


@in_a_loop
async def test_jobs_of_one_name_run_once(queue, dataset):
    waiting = await submitted(queue, *(Noted(dataset=dataset, number=i % 2) for i in range(10)))
    records, given = await answers(queue, waiting, ranks=3)
    assert sorted(numbers(given)) == computed(dataset) == [0, 1]
    assert [record["number"] for record in records] == [0, 1] * 5


@in_a_loop
async def test_a_job_that_is_submitted_when_it_is_done_is_answered_at_once(queue, dataset):
    worker = asyncio.ensure_future(serve(queue))
    first = await queue.submit(Noted(dataset=dataset, number=1))
    assert await queue.submit(Noted(dataset=dataset, number=1)) == first
    await queue.stop("the test is over")
    assert len(await worker) == 1


@in_a_loop
async def test_what_the_ledger_holds_is_not_computed(queue, dataset):
    job = Noted(dataset=dataset, number=1)
    record = run(job)
    (found,), _ = await answers(queue, await submitted(queue, job))
    assert found["finished"] == record["finished"] and computed(dataset) == [1]
    assert (await queue.state()).seconds["noted"] == 0.0


@in_a_loop
async def test_lower_priorities_run_first_and_equal_ones_in_the_order_of_arrival(queue, dataset):
    jobs = [Sleep(dataset=dataset, number=i) for i in range(6)]
    waiting = [*await submitted(queue, *jobs[:3], priority=1), *await submitted(queue, *jobs[3:], priority=0)]
    _, given = await answers(queue, waiting)
    assert numbers(given) == [3, 4, 5, 0, 1, 2]


@in_a_loop
async def test_what_a_job_requires_is_as_urgent_as_itself(queue, dataset):
    first = Sleep(dataset=dataset, number=1)
    last = Sleep(dataset=dataset, number=2, after=(first,))
    others = [Sleep(dataset=dataset, number=i) for i in (3, 4)]
    waiting = [*await submitted(queue, *others, priority=1), *await submitted(queue, last, priority=0)]
    _, given = await answers(queue, waiting)
    assert numbers(given)[0] == 1 and numbers(given).index(2) < numbers(given).index(4)


@in_a_loop
async def test_a_lane_is_given_its_own_jobs_only(queue, dataset):
    wide, narrow = Together(dataset=dataset, number=1), Sleep(dataset=dataset, number=2)
    await submitted(queue, wide, narrow)
    assert await queue.next("warm", 0, SINGLE_WORKER) == narrow and await queue.next("own", 0, DATA_PARALLEL) == wide
    more = [asyncio.ensure_future(queue.next("warm", 1, lane)) for lane in (SINGLE_WORKER, DATA_PARALLEL)]
    await settle()
    assert not any(request.done() for request in more)
    await queue.stop("the test is over")
    assert await asyncio.gather(*more) == [None, None]


@in_a_loop
async def test_a_job_waits_for_all_that_it_requires_and_for_what_these_require(queue, dataset):
    root = Sleep(dataset=dataset, number=0)
    middle = [Sleep(dataset=dataset, number=i, after=(root,)) for i in (1, 2)]
    last = Sleep(dataset=dataset, number=3, after=tuple(middle))
    (record,), given = await answers(queue, await submitted(queue, last), ranks=3)
    assert record["state"] == DONE and len(given) == 4
    ends = [job.last_record() for job in (root, *middle, last)]
    assert all(ends[0]["finished"] <= end["started"] for end in ends[1:3])
    assert all(end["finished"] <= ends[3]["started"] for end in ends[1:3])


@in_a_loop
async def test_a_job_that_waits_keeps_no_worker_from_others(queue, dataset):
    first = Together(dataset=dataset, number=1)  # nobody serves the wide lane
    await submitted(queue, Sleep(dataset=dataset, number=2, after=(first,)))
    worker = asyncio.ensure_future(serve(queue))
    assert (await queue.submit(Sleep(dataset=dataset, number=3), 5))["state"] == DONE
    await queue.stop("the test is over")
    assert numbers(await worker) == [3]


@in_a_loop
async def test_the_state_says_what_is_done_and_what_runs(queue, dataset):
    jobs = [Sleep(dataset=dataset, number=i) for i in range(3)]
    await submitted(queue, *jobs)
    assert (await queue.state()).first == 0.0
    one, two = [await queue.next("group", rank, SINGLE_WORKER) for rank in (0, 1)]
    await queue.progress(two.key, 0.5, 1.25)
    await queue.progress(jobs[2].key, 0.9, 0.0)  # it does not run
    await queue.finish("group", 0, run(one))
    state = await queue.state()
    assert state.submitted == {"sleep": 3} and state.finished == {"sleep": 1} and state.first > 0
    assert list(state.running.values()) == [("sleep 1", 0.5, 1.25)] and state.notes == []


# Groups that come and go


@in_a_loop
async def test_a_group_is_wanted_when_those_before_it_have_no_time(queue, dataset):
    first, second = (asyncio.ensure_future(queue.wanted(SINGLE_WORKER, beyond)) for beyond in (0, 2))
    shared = asyncio.ensure_future(queue.wanted(DATA_PARALLEL, 0))
    await settle()
    assert not first.done()
    await submitted(queue, *(Sleep(dataset=dataset, number=i) for i in range(2)))
    assert await first
    await queue.next("group", 0, SINGLE_WORKER)  # what is under way still counts
    await settle()
    assert not second.done()
    await submitted(queue, Sleep(dataset=dataset, number=2))
    assert await second and not shared.done()
    await queue.stop("the test is over")
    assert not await shared and not await queue.wanted(SINGLE_WORKER, 0)


@in_a_loop
async def test_a_group_that_is_idle_is_sent_home_as_a_whole(queue, dataset, monkeypatch):
    monkeypatch.setattr(queue_module, "IDLE", 0.2)
    job, other = (Sleep(dataset=dataset, number=i) for i in range(2))
    waiting = await submitted(queue, job)
    assert await queue.next("tired", 0, SINGLE_WORKER) == job
    idle = asyncio.ensure_future(queue.next("tired", 1, SINGLE_WORKER))
    await asyncio.sleep(0.5)
    assert not idle.done(), "its neighbour is at work"
    await queue.finish("tired", 0, run(job))
    assert await queue.next("tired", 0, SINGLE_WORKER) is None and await idle is None
    waiting += await submitted(queue, other)
    records, given = await answers(queue, waiting)  # by another group
    assert {record["state"] for record in records} == {DONE} and given == [other]


@in_a_loop
async def test_workers_of_a_group_get_the_same_job_for_the_same_turn(queue, dataset):
    jobs = [Shared(dataset=dataset, number=i) for i in range(2)]
    await submitted(queue, *jobs)
    given = await asyncio.gather(*(queue.next_together("group", 0) for _ in range(3)))
    assert given == [jobs[0]] * 3
    late = [asyncio.ensure_future(queue.next_together("group", 1)) for _ in range(3)]
    await settle()
    assert not any(answer.done() for answer in late), "the first of them has not handed in its job yet"
    await queue.finish("group", 0, run(jobs[0]))
    assert await asyncio.gather(*late) == [jobs[1]] * 3
    last = asyncio.ensure_future(queue.next_together("group", 2))
    await queue.stop("the test is over")
    assert await last is None


@in_a_loop
async def test_a_worker_cut_off_from_the_storage_stops_nothing_if_it_is_lost_itself(queue, dataset, monkeypatch):
    monkeypatch.setattr(queue_module, "DOUBT", 0.1)
    await submitted(queue, Sleep(dataset=dataset, number=1))
    await queue.next("lost", 0, SINGLE_WORKER)
    said = asyncio.ensure_future(queue.cut_off("lost", "no route to the storage"))
    await settle()
    await queue.lost("lost", None)
    await said
    assert await queue.stopped() is None
    await queue.next("there", 0, SINGLE_WORKER)
    await queue.cut_off("there", "no space is left")
    assert await queue.stopped() == "no space is left"


@in_a_loop
async def test_without_groups_that_share_every_job_is_for_one_worker(sessions, dataset):
    queue = JobQueue(sessions(), data_parallel=False)
    await submitted(queue, job := Together(dataset=dataset, number=1))
    assert await queue.next("group", 0, SINGLE_WORKER) == job


# Failures


@in_a_loop
async def test_a_failure_is_tried_a_few_times_and_then_stands(queue, dataset):
    job = Fail(dataset=dataset, number=1)
    (record,), given = await answers(queue, await submitted(queue, job))
    assert len(given) == ATTEMPTS
    assert (record["state"], record["attempts"]) == (FAILED, ATTEMPTS) and "no room" in record["reason"]
    assert job.record()["reason"] == record["reason"]
    notes = (await queue.state()).notes
    assert len(notes) == ATTEMPTS - 1 and all("no room" in note and "\n" not in note for note in notes)


@in_a_loop
async def test_a_failure_is_tried_again_after_what_is_as_urgent(queue, dataset):
    jobs = [Fail(dataset=dataset, number=1), *(Sleep(dataset=dataset, number=i) for i in (2, 3))]
    _, given = await answers(queue, await submitted(queue, *jobs))
    assert numbers(given) == [1, 2, 3, 1, 1]


@in_a_loop
async def test_a_failure_that_passes_is_none(queue, dataset):
    job = Sleep(dataset=dataset, number=1)
    (answer,) = await submitted(queue, job)
    assert await queue.next("group", 0, SINGLE_WORKER) == job
    bad = {**timed(failure("OSError: a hiccup")), "attempts": 1}
    write_record(job, bad)
    await queue.finish("group", 0, bad)
    assert not answer.done()
    (record,), given = await answers(queue, [answer])
    assert record["state"] == DONE and numbers(given) == [1]


@pytest.mark.parametrize(("bad", "state"), [(Fail, FAILED), (Diverge, DIVERGED)])
@in_a_loop
async def test_what_needs_what_failed_has_failed_with_its_reason(queue, dataset, bad, state):
    cause = bad(dataset=dataset, number=1)
    needs = [Noted(dataset=dataset, number=i, after=(cause,)) for i in (2, 3)]
    last = Noted(dataset=dataset, number=4, after=(needs[0],))
    good = Noted(dataset=dataset, number=5)
    (*ends, fine), given = await answers(queue, await submitted(queue, *needs, last, good))
    reason = cause.last_record()["reason"]
    assert fine["state"] == DONE and computed(dataset) == [5] and {type(job) for job in given} == {bad, Noted}
    for job, record in zip((*needs, last), ends, strict=True):
        assert record["state"] == state and record["reason"].endswith(f"its pretraining ended {state}: {reason}")
        assert job.record()["state"] == state and job.record()["reason"] == record["reason"]


@in_a_loop
async def test_jobs_that_fail_at_the_same_moment_have_what_they_stand_on_looked_at_once(queue, dataset):
    """It may be the cause: so it is given out again before them, whoever asks first."""
    cause = Noted(dataset=dataset, number=0)
    needs = [FailAfter(dataset=dataset, number=i, after=(cause,)) for i in (1, 2, 3)]
    waiting = await submitted(queue, *needs)
    assert await queue.next("group", 0, SINGLE_WORKER) == cause
    await queue.finish("group", 0, run(cause))
    given = [await queue.next("group", rank, SINGLE_WORKER) for rank in range(3)]
    await asyncio.gather(*(queue.finish("group", rank, run(job)) for rank, job in enumerate(given)))
    records, given = await answers(queue, waiting)
    assert {record["state"] for record in records} == {FAILED} and computed(dataset) == [0]
    assert numbers(given)[0] == 0 and sorted(set(numbers(given))) == [0, 1, 2, 3]


@in_a_loop
async def test_what_was_damaged_on_the_way_is_told(queue, dataset):
    job = Noted(dataset=dataset, number=1)
    run(job)
    dataset.store.write(job.record_name, b"{")
    (record,), _ = await answers(queue, await submitted(queue, job))
    (note,) = (await queue.state()).notes
    assert record["state"] == DONE and job.record_name in note and "made again" in note


# Groups that die


@in_a_loop
async def test_jobs_of_a_group_that_died_are_given_out_again(queue, dataset):
    jobs = [Sleep(dataset=dataset, number=i) for i in range(2)]
    waiting = await submitted(queue, *jobs)
    for rank in (0, 1):
        await queue.next("old", rank, SINGLE_WORKER)
    assert await queue.lost("old", [0]) and not (await queue.state()).running
    records, given = await answers(queue, waiting)
    assert {record["state"] for record in records} == {DONE} and sorted(numbers(given)) == [0, 1]


@in_a_loop
async def test_only_the_job_of_the_rank_to_blame_is_blamed(queue, dataset):
    """The other is lost as often, and ends well."""
    deadly, other = (Sleep(dataset=dataset, number=i) for i in range(2))
    waiting = await submitted(queue, deadly, other)
    for death in range(ATTEMPTS):
        ranks = {(await queue.next(f"group {death}", rank, SINGLE_WORKER)).number: rank for rank in (0, 1)}
        assert not waiting[0].done()
        await queue.lost(f"group {death}", [ranks[deadly.number]])
    record = await waiting[0]
    assert record["state"] == FAILED and record["reason"] == f"{ATTEMPTS} workers died running it"
    assert deadly.record()["reason"] == record["reason"]
    (end,), given = await answers(queue, waiting[1:])
    assert end["state"] == DONE and numbers(given) == [1]


@pytest.mark.parametrize("blamed", [None, []], ids=["a node", "nobody"])
@in_a_loop
async def test_no_job_is_to_blame_for_the_loss_of_a_node(queue, dataset, blamed):
    jobs = [Sleep(dataset=dataset, number=0), Together(dataset=dataset, number=1)]
    (narrow, wide) = await submitted(queue, *jobs)
    for death in range(ATTEMPTS + 2):
        await queue.next(f"group {death}", 0, SINGLE_WORKER)
        await queue.lost(f"group {death}", blamed)
        if blamed is None:
            await queue.next(f"wide {death}", 0, DATA_PARALLEL)
            await queue.lost(f"wide {death}", blamed)
    assert not narrow.done() and not wide.done()
    (record,), _ = await answers(queue, [narrow])
    assert record["state"] == DONE


@in_a_loop
async def test_a_wide_job_is_blamed_whichever_of_its_workers_died(queue, dataset):
    (answer,) = await submitted(queue, Together(dataset=dataset, number=1))
    for death in range(ATTEMPTS):
        await queue.next(f"group {death}", 0, DATA_PARALLEL)
        await queue.lost(f"group {death}", [death], "no room")
    assert (await answer)["reason"] == f"{ATTEMPTS} workers died running it; the last with no room"


@in_a_loop
async def test_deaths_and_failures_are_counted_apart(queue, dataset):
    job = Fail(dataset=dataset, number=1)
    (answer,) = await submitted(queue, job)
    for death in range(ATTEMPTS - 1):
        await queue.next(f"group {death}", 0, SINGLE_WORKER)
        await queue.lost(f"group {death}", [0])
    (record,), given = await answers(queue, [answer])
    assert "no room" in record["reason"] and len(given) == ATTEMPTS


@in_a_loop
async def test_a_result_stands_even_if_its_worker_died_before_it_could_say_so(queue, dataset):
    job = Noted(dataset=dataset, number=1)
    (answer,) = await submitted(queue, job)
    for death in range(ATTEMPTS):
        await queue.next(f"group {death}", 0, SINGLE_WORKER)
        if death == ATTEMPTS - 1:
            run(job)
        await queue.lost(f"group {death}", [0])
    assert (await answer)["state"] == DONE == job.record()["state"] and computed(dataset) == [1]


@in_a_loop
async def test_a_group_says_whether_it_had_come_as_far_as_asking(queue, dataset):
    assert not await queue.lost("never", None)
    request = asyncio.ensure_future(queue.next("asked", 0, SINGLE_WORKER))
    await settle()
    assert await queue.lost("asked", None) and await request is None
    assert not await queue.lost("another", None), "what the one before asked does not count"


@in_a_loop
async def test_a_cluster_is_not_given_up_while_another_group_is_at_work(queue, dataset):
    await submitted(queue, Sleep(dataset=dataset, number=1))
    await queue.next("at work", 0, SINGLE_WORKER)
    await queue.lost("dead", None)
    assert await queue.lost("never came so far", None)


@in_a_loop
async def test_a_group_that_comes_back_from_the_dead_changes_nothing(queue, dataset):
    job, other = (Sleep(dataset=dataset, number=i) for i in range(2))
    answer, _ = await submitted(queue, job, other)
    assert await queue.next("zombie", 0, SINGLE_WORKER) == job
    await queue.lost("zombie", None)
    assert await queue.next("group", 0, SINGLE_WORKER) == other
    assert await queue.next("group", 1, SINGLE_WORKER) == job
    before = await queue.state()
    bad = {**timed(failure("from beyond")), "remade": ["boo"]}
    await queue.finish("zombie", 0, bad)
    await queue.finish("zombie", 0, bad)
    assert await queue.next("zombie", 0, SINGLE_WORKER) is None
    await queue.lost("zombie", [0])
    assert await queue.state() == before and not answer.done()
    await queue.finish("group", 1, run(job))
    assert (await answer)["state"] == DONE


@in_a_loop
async def test_a_job_that_is_on_its_way_to_a_group_that_dies_is_not_lost(queue, dataset):
    """The claim is being taken just then."""
    job = Sleep(dataset=dataset, number=1)
    (answer,) = await submitted(queue, job)
    request = asyncio.ensure_future(queue.next("dying", 0, SINGLE_WORKER))
    await asyncio.sleep(0)
    await queue.lost("dying", [0])
    assert await request is None
    (record,), given = await answers(queue, [answer])
    assert record["state"] == DONE and given == [job]


# Other drivers


@in_a_loop
async def test_what_another_driver_computes_is_waited_for_and_used(queue, sessions, dataset):
    other, job = sessions(), Noted(dataset=dataset, number=1)
    assert other.take(f"jobs/{job.key}")
    (answer,) = await submitted(queue, job)
    worker = asyncio.ensure_future(serve(queue))
    assert (await queue.submit(Noted(dataset=dataset, number=2), 5))["state"] == DONE, "the worker is free meanwhile"
    await asyncio.sleep(0.1)
    assert not answer.done() and computed(dataset) == [2]
    record = run(job)
    other.release(f"jobs/{job.key}")
    assert (await answer)["finished"] == record["finished"]
    await queue.stop("the test is over")
    assert numbers(await worker) == [2, 1] and computed(dataset) == [1, 2]


@in_a_loop
async def test_what_another_driver_gives_up_is_computed_here(queue, sessions, dataset):
    other, job = sessions(), Noted(dataset=dataset, number=1)
    assert other.take(f"jobs/{job.key}")
    (answer,) = await submitted(queue, job)
    worker = asyncio.ensure_future(serve(queue))
    await asyncio.sleep(0.1)
    assert not answer.done()
    other.release(f"jobs/{job.key}")
    assert (await answer)["state"] == DONE and computed(dataset) == [1]
    await queue.stop("the test is over")
    await worker


@in_a_loop
async def test_two_drivers_with_the_same_jobs_compute_each_once(sessions, dataset):
    queues = [JobQueue(sessions()) for _ in range(2)]
    root = Noted(dataset=dataset, number=0)
    jobs = [Noted(dataset=dataset, number=i, after=(root,)) for i in range(1, 20)]
    both = await asyncio.gather(*[answers(q, await submitted(q, *jobs), ranks=2) for q in queues])
    assert computed(dataset) == list(range(20))
    assert [r["finished"] for r in both[0][0]] == [r["finished"] for r in both[1][0]]
    await asyncio.sleep(0.1)
    assert dataset.store.names("claims/jobs") == []


@in_a_loop
async def test_a_job_is_claimed_while_it_runs_and_not_while_it_waits(queue, sessions, dataset):
    other = sessions()
    first = Sleep(dataset=dataset, number=1)
    last = Sleep(dataset=dataset, number=2, after=(first,))
    await submitted(queue, last)
    assert await queue.next("group", 0, SINGLE_WORKER) == first
    assert not other.take(f"jobs/{first.key}") and other.take(f"jobs/{last.key}")
    await queue.finish("group", 0, run(first))
    assert other.take(f"jobs/{first.key}")


# The end


@in_a_loop
async def test_when_it_is_stopped_everybody_learns_why(queue, dataset):
    jobs = [Sleep(dataset=dataset, number=i) for i in range(3)]
    waiting = await submitted(queue, *jobs, Sleep(dataset=dataset, number=9, after=tuple(jobs)))
    running = await queue.next("group", 0, SINGLE_WORKER)
    idle = asyncio.ensure_future(queue.next("wide", 0, DATA_PARALLEL))
    await settle()
    assert await queue.stopped() is None
    await queue.stop("the sky fell")
    await queue.stop("and again")
    for answer in waiting:
        with pytest.raises(Unfinished, match=r"^the sky fell$"):
            await answer
    for job in (jobs[0], Sleep(dataset=dataset, number=10)):
        with pytest.raises(Unfinished, match=r"^the sky fell$"):
            await queue.submit(job)
    assert await idle is None and await queue.next("group", 1, SINGLE_WORKER) is None
    assert await queue.stopped() == "the sky fell"
    await queue.finish("group", 0, run(running))
    assert running.record()["state"] == DONE, "its result is kept, for the next time"


@in_a_loop
async def test_a_result_that_was_there_before_the_end_is_kept(queue, dataset):
    (answer,) = await submitted(queue, Sleep(dataset=dataset, number=1))
    await queue.finish("group", 0, run(await queue.next("group", 0, SINGLE_WORKER)))
    await queue.stop("the test is over")
    assert (await answer)["state"] == DONE


@in_a_loop
async def test_a_storage_that_takes_no_claims_stops_the_queue(queue, dataset):
    """There is a file where the folder should be."""
    dataset.store.write("claims", b"")
    waiting = await submitted(queue, *(Sleep(dataset=dataset, number=i) for i in range(2)))
    workers = [asyncio.ensure_future(serve(queue, rank=rank)) for rank in (0, 1)]
    for answer in waiting:
        with pytest.raises(Unfinished, match=r"claims/jobs/.* cannot be .*Not a directory"):
            await answer
    assert await asyncio.gather(*workers) == [[], []]
    assert "Not a directory" in await queue.stopped()


@in_a_loop
async def test_a_storage_that_takes_no_records_stops_the_queue(queue, dataset):
    dataset.store.write("ledger", b"")
    job, other = (Sleep(dataset=dataset, number=i) for i in range(2))
    (answer,), (more,) = await submitted(queue, job), await submitted(queue, other, priority=1)
    for death in range(ATTEMPTS):
        await queue.next(f"group {death}", 0, SINGLE_WORKER)
        await queue.lost(f"group {death}", [0])
    for waiting in (answer, more):
        with pytest.raises(Unfinished, match=f"{job.record_name} cannot be .*Not a directory"):
            await waiting


@in_a_loop
async def test_a_driver_that_was_taken_for_dead_removes_no_claim_of_its_successor(queue, sessions, dataset):
    successor, job = sessions(), Sleep(dataset=dataset, number=1)
    (answer,) = await submitted(queue, job)
    await queue.next("group", 0, SINGLE_WORKER)
    dataset.store.write_record(f"sessions/{queue._claims.session}.dead", {"by": successor.session})
    assert successor.take(f"jobs/{job.key}")
    await queue.finish("group", 0, run(job))
    assert (await answer)["state"] == DONE
    assert not sessions().take(f"jobs/{job.key}")


@in_a_loop
async def test_hundreds_of_jobs_pass_through_few_workers(queue, dataset):
    jobs = [Sleep(dataset=dataset, number=i) for i in range(200)]
    root = replace(jobs[0], number=-1)
    waiting = await submitted(queue, *(replace(job, after=(root,)) for job in jobs))
    records, given = await answers(queue, waiting, ranks=4)
    assert len(records) == 200 and len(given) == 201
    state = await queue.state()
    assert state.finished == state.submitted == {"sleep": 201} and not state.running
