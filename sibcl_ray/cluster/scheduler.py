"""The queue of jobs between those who want results and the workers: each job once, after what it requires.

It is an asynchronous Ray actor. A job waits here, never in a worker: for the jobs it requires, for a free worker,
and for other drivers that share the storage and happen to run the same job.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import time
from collections import Counter
from collections.abc import Callable, Collection, Coroutine
from copy import deepcopy
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from sibcl_ray.storage.leases import Claims
from sibcl_ray.storage.records import ATTEMPTS, DONE, Record, failure, is_final, timed, write_record
from sibcl_ray.storage.store import StoreError

if TYPE_CHECKING:
    from sibcl_ray.learning.jobs import Job

SINGLE_WORKER, DATA_PARALLEL = "single-worker", "data-parallel"  # lanes: jobs for one worker, or for a whole group
POLL = 2.0  # seconds between looks at a job that another driver is running
DOUBT = 5.0  # seconds in which a worker that cannot use the storage may turn out to be lost itself
IDLE = 30.0  # seconds without work after which a group of workers is sent home, so that others can have its place


class Unfinished(RuntimeError):
    """The study stopped before its end; the same command continues it."""


@dataclass
class State:
    """What there is to show of a queue; jobs are counted by kind."""

    first: float = 0.0  # unix time when a worker got its first job
    submitted: Counter[str] = field(default_factory=Counter)
    finished: Counter[str] = field(default_factory=Counter)
    seconds: Counter[str] = field(default_factory=Counter)  # of workers, for jobs that are finished
    running: dict[str, tuple[str, float, float]] = field(default_factory=dict)  # title, fraction, loss by key
    notes: list[str] = field(default_factory=list)


class JobQueue:
    """Jobs on their way to a record. What other sessions than that of ``claims`` run is waited for outside the workers.

    Without ``data_parallel`` groups, jobs that could be run together are for one worker like all others.
    """

    def __init__(self, claims: Claims, data_parallel: bool = True) -> None:
        self._claims, self._data_parallel = claims, data_parallel
        self._results: dict[str, asyncio.Future[Record]] = {}
        self._ready: dict[str, list[tuple[tuple[int, int], Job]]] = {SINGLE_WORKER: [], DATA_PARALLEL: []}
        self._held: dict[tuple[str, int], Job] = {}  # by group and rank
        self._turns: dict[tuple[str, int], asyncio.Future[Job | None]] = {}  # of groups that run jobs together
        self._gone: set[str] = set()  # groups that died or were sent home; their last requests may still wait here
        self._worked: dict[str, float] = {}  # when a group last finished a job
        self._deaths: Counter[str] = Counter()
        self._priorities: dict[str, int] = {}
        self._arrival = itertools.count()
        self._changed = asyncio.Condition()
        self._asked = 0  # requests for jobs since the last loss of a group
        self._over: str | None = None  # why no more jobs are given out
        self._state = State()
        self._tasks: set[asyncio.Task] = set()

    async def submit(self, job: Job, priority: int = 0) -> Record:
        """The job's record, when it has one. Jobs of one name run once; lower priorities run first."""
        if self._over is not None:
            raise Unfinished(self._over)
        if job.key not in self._results:
            self._results[job.key] = asyncio.Future()
            self._priorities[job.key] = priority
            self._state.submitted[job.kind] += 1
            self._spawn(self._arrange(job))
        return await asyncio.shield(self._results[job.key])

    async def next(self, group: str, rank: int, lane: str) -> Job | None:
        """A job for a worker, as soon as there is one; None when there will be no more."""

        def home() -> bool:
            return self._over is not None or group in self._gone

        def free() -> bool:  # of those who share a job, another may ask before the first has handed it in
            return bool(self._ready[lane]) and (group, rank) not in self._held

        self._asked += 1
        self._worked.setdefault(group, time.monotonic())
        while True:
            async with self._changed:
                try:
                    await asyncio.wait_for(self._changed.wait_for(lambda: home() or free()), IDLE)
                except TimeoutError:
                    at_work = any(holder == group for holder, _ in self._held)
                    if at_work or time.monotonic() - self._worked[group] < IDLE:
                        continue
                    self._gone.add(group)
                    self._changed.notify_all()
                if home():
                    return None
                _, job = heapq.heappop(self._ready[lane])
            if not await self._storing(self._claims.take, f"jobs/{job.key}"):
                self._spawn(self._enqueue(job, delay=POLL))
            elif home():
                await self._enqueue(job)
            else:
                break
        self._held[group, rank] = job
        self._state.first = self._state.first or time.time()
        self._state.running[job.key] = (job.title, 0.0, float("nan"))
        return job

    async def next_together(self, group: str, turn: int) -> Job | None:
        """As ``next``, for all workers of a group: those that ask for the same turn get the same job."""
        if (group, turn) not in self._turns:
            self._turns[group, turn] = asyncio.ensure_future(self.next(group, 0, DATA_PARALLEL))
        return await asyncio.shield(self._turns[group, turn])

    async def wanted(self, lane: str, beyond: int) -> bool:
        """Waits until a lane has more than so many jobs ready or under way; False when there will be no more."""

        def enough() -> bool:
            return len(self._ready[lane]) + sum(self._lane(job) == lane for job in self._held.values()) > beyond

        async with self._changed:
            await self._changed.wait_for(lambda: self._over is not None or enough())
        return self._over is None

    async def progress(self, key: str, fraction: float, loss: float) -> None:
        """A worker says how far it is."""
        if key in self._state.running:
            self._state.running[key] = (self._state.running[key][0], fraction, loss)

    async def finish(self, group: str, rank: int, record: Record) -> None:
        """A worker hands in the record of its job."""
        if group in self._gone:
            return  # the job is queued again, and the worker that takes it finds the record
        job = self._held.pop((group, rank))
        self._worked[group] = time.monotonic()
        async with self._changed:
            self._changed.notify_all()
        self._state.running.pop(job.key, None)
        self._state.seconds[job.kind] += record["seconds"]
        self._state.notes += record.get("remade", ())
        if is_final(record):
            await self._end(job, record)
        else:
            self._state.notes.append(f"{job.title} failed, and is tried again: {record['reason']}")
            for needed in job.requires:  # what it stands on may be the cause
                if (result := self._results.get(needed.key)) and result.done():
                    del self._results[needed.key]
            self._spawn(self._arrange(job, later=1))

    async def lost(self, group: str, blamed: Collection[int] | None, reason: str = "") -> bool:
        """A group has died, and its jobs are queued again; whether others are at work, or any came as far as asking.

        ``blamed`` are the ranks that died by what they ran, None if a node was lost; a job that is to blame `ATTEMPTS`
        times has failed.
        """
        self._gone.add(group)
        for worker in [w for w in self._held if w[0] == group]:
            job = self._held.pop(worker)
            self._state.running.pop(job.key, None)
            together = self._lane(job) == DATA_PARALLEL
            self._deaths[job.key] += blamed is not None and (together or worker[1] in blamed)
            if self._deaths[job.key] == ATTEMPTS:
                said = f"; the last with {reason}" if together and reason else ""
                await self._fail(job, failure(f"{ATTEMPTS} workers died running it{said}"))
            else:
                await self._enqueue(job)
        async with self._changed:
            self._changed.notify_all()
        asked, self._asked = self._asked, 0
        return asked > 0 or bool(self._held)

    async def state(self) -> State:
        """The queue's state now."""
        return deepcopy(self._state)

    async def stop(self, reason: str) -> None:
        """Send all workers home; callers that wait for a result get an Unfinished with the reason."""
        self._over = self._over or reason
        async with self._changed:
            self._changed.notify_all()
        for result in self._results.values():
            if not result.done():
                result.set_exception(Unfinished(reason))
                result.exception()  # seen; not everybody waits any more

    async def cut_off(self, group: str, reason: str) -> None:
        """A worker cannot use the storage, and all work stops; unless it is the worker whose host was cut off."""
        await asyncio.sleep(DOUBT)
        if group not in self._gone:
            await self.stop(reason)

    async def stopped(self) -> str | None:
        """Why no more jobs are given out; None while they are."""
        return self._over

    async def _arrange(self, job: Job, later: int = 0) -> None:
        """Queue a job as soon as those that it requires are done."""
        for needed in job.requires:
            try:
                record = await self.submit(needed, self._priorities[job.key])
            except Unfinished:
                return
            if record["state"] != DONE:
                reason = f"its pretraining ended {record['state']}: {record['reason']}"
                await self._fail(job, {**failure(reason), "state": record["state"]})
                return
        await self._enqueue(job, later)

    async def _enqueue(self, job: Job, later: int = 0, delay: float = 0.0) -> None:
        await asyncio.sleep(delay)
        order = (self._priorities[job.key] + later, next(self._arrival))
        async with self._changed:
            heapq.heappush(self._ready[self._lane(job)], (order, job))
            self._changed.notify_all()

    async def _fail(self, job: Job, outcome: Record) -> None:
        """End a job that no worker can end, unless one had ended it and died before it could say so."""
        record = await self._storing(job.record, self._state.notes.append)
        if record is None:
            record = timed(outcome)
            await self._storing(write_record, job, record)
        await self._end(job, record)

    async def _end(self, job: Job, record: Record) -> None:
        self._state.finished[job.kind] += 1
        if not self._results[job.key].done():
            self._results[job.key].set_result(record)
        await self._storing(self._claims.release, f"jobs/{job.key}")

    async def _storing(self, action: Callable[..., Any], *arguments: Any) -> Any:
        """Do something with the store, beside the other requests; if that fails, all work stops."""
        try:
            return await asyncio.to_thread(action, *arguments)
        except StoreError as error:
            await self.stop(str(error))

    def _lane(self, job: Job) -> str:
        return DATA_PARALLEL if job.data_parallel and self._data_parallel else SINGLE_WORKER

    def _spawn(self, work: Coroutine[Any, Any, None]) -> None:
        task = asyncio.create_task(work)
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)
