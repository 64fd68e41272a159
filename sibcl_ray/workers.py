"""Ray Train workers that run jobs: one warm group that stays up, and a group of its own for each wide job.

A Train run costs seconds to start, a fine-tune may cost less. So the workers of the warm group take job
after job from a queue; a job waits there, never in a worker, until the jobs it requires are done.
A pretraining of several workers gets a Train run to itself, beside the warm group.
"""

from __future__ import annotations

import asyncio
import heapq
import itertools
import os
import threading
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import ray

from sibcl_ray.jobs import DONE, FAILED, Job, Record, execute

ATTEMPTS = 3  # how often a job may take its worker down before it counts as failed


class Unfinished(RuntimeError):
    """The study stopped before its end; the same command continues it."""


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the study may use of the cluster."""

    workers: int = 2  # processes of the warm group
    gpus_per_worker: float = 0.0  # of every Train worker
    cpus_per_worker: float = 1.0  # of every worker of the warm group
    wide_cpus_per_worker: float = 1.0  # of every worker of a pretraining that spans several


class JobQueue:
    """Jobs and their states; an asynchronous Ray actor between those who want results and the workers."""

    def __init__(self) -> None:
        self._results: dict[str, asyncio.Future[Record]] = {}
        self._jobs: dict[str, Job] = {}
        self._ready: dict[bool, list[tuple[tuple[int, ...], Job]]] = {False: [], True: []}
        self._held: dict[str, Job] = {}  # by worker
        self._attempts: Counter[str] = Counter()
        self._arrival = itertools.count()
        self._changed = asyncio.Condition()
        self._closed = False
        self._running: dict[str, tuple[str, float, float]] = {}  # title, fraction, loss
        self._first = 0.0  # when a worker got its first job
        self._seconds: Counter[str] = Counter()
        self._finished: Counter[str] = Counter()

    async def submit(self, job: Job, priority: int = 0) -> Record:
        """The job's record, when it has one. Jobs of one name run once; lower priorities run first."""
        if job.key not in self._results:
            self._results[job.key] = asyncio.get_running_loop().create_future()
            self._jobs[job.key] = job
            for needed in job.requires:
                record = await self.submit(needed, priority)
                if record["state"] != DONE:
                    reason = f"its pretraining ended {record['state']}: {record['reason']}"
                    self._results[job.key].set_result(_failure(reason))
                    return await self._results[job.key]
            await self._enqueue(job, priority)
        return await asyncio.shield(self._results[job.key])

    async def next(self, worker: str, wide: bool = False) -> Job | None:
        """A job for a worker, as soon as there is one; None when there will be no more.

        Whoever asks again without having finished its last job has lost it with its process.
        """
        if (lost := self._held.pop(worker, None)) is not None:
            await self._retry(lost)
        async with self._changed:
            await self._changed.wait_for(lambda: self._closed or self._ready[wide])
            if self._closed:
                return None
            _, job = heapq.heappop(self._ready[wide])
        self._held[worker] = job
        self._first = self._first or time.time()
        self._running[job.key] = (job.title, 0.0, float("nan"))
        return job

    async def progress(self, key: str, fraction: float, loss: float) -> None:
        """A worker says how far it is."""
        if key in self._running:
            self._running[key] = (self._running[key][0], fraction, loss)

    async def finish(self, worker: str, key: str, record: Record) -> None:
        """A worker hands in a record."""
        self._held.pop(worker, None)
        self._running.pop(key, None)
        self._seconds[self._jobs[key].kind] += record["seconds"]
        self._finished[self._jobs[key].kind] += 1
        if not self._results[key].done():
            self._results[key].set_result(record)

    async def state(self) -> dict[str, Any]:
        """For display: jobs submitted, finished and their worker seconds by kind, and what runs now.

        ``first`` is the time when the first job began, 0 before.
        """
        return {
            "first": self._first,
            "submitted": dict(Counter(job.kind for job in self._jobs.values())),
            "finished": dict(self._finished),
            "seconds": dict(self._seconds),
            "running": list(self._running.values()),
        }

    async def close(self) -> None:
        """Send all workers home."""
        self._closed = True
        async with self._changed:
            self._changed.notify_all()

    async def abandon(self, reason: str) -> None:
        """There are no workers any more: whoever waits for a result gets a RuntimeError."""
        for result in self._results.values():
            if not result.done():
                result.set_exception(RuntimeError(f"the worker group failed: {reason}"))

    async def _enqueue(self, job: Job, priority: int) -> None:
        order = (priority, next(self._arrival))
        heapq.heappush(self._ready[job.workers > 1], (order, job))
        async with self._changed:
            self._changed.notify_all()

    async def _retry(self, job: Job) -> None:
        self._attempts[job.key] += 1
        self._running.pop(job.key, None)
        if self._attempts[job.key] < ATTEMPTS:
            await self._enqueue(job, priority=-1)
        else:
            self._results[job.key].set_result(_failure(f"{ATTEMPTS} workers died running it"))


def _failure(reason: str) -> Record:
    now = time.time()
    return {"state": FAILED, "reason": reason, "seconds": 0.0, "started": now, "finished": now}


def _throttled(queue: Any, key: str, interval: float = 0.5) -> Callable[[float, float], None]:
    last = 0.0

    def report(fraction: float, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last > interval:
            last = time.monotonic()
            queue.progress.remote(key, fraction, loss)

    return report


def _serve(configuration: dict[str, Any]) -> None:
    """The train function of the warm group: take jobs until there are none."""
    import ray.train.torch

    queue = configuration["queue"]
    worker = f"worker-{ray.train.get_context().get_world_rank()}"
    device = ray.train.torch.get_device()
    _one_thread(device)
    while (job := ray.get(queue.next.remote(worker))) is not None:
        record = execute(job, device, _throttled(queue, job.key))
        ray.get(queue.finish.remote(worker, job.key, record))


def _together(configuration: dict[str, Any]) -> Record:
    """The train function of one wide job: all workers of the process group run it together."""
    import ray.train.torch

    job, queue = configuration["job"], configuration["queue"]
    first = ray.train.get_context().get_world_rank() == 0
    device = ray.train.torch.get_device()
    _one_thread(device)
    report = _throttled(queue, job.key) if first else lambda fraction, loss: None
    return execute(job, device, report, announce=first)


def _one_thread(device: Any) -> None:
    if device.type == "cpu":
        import torch

        torch.set_num_threads(1)  # a worker is one core; and the number of threads changes rounding


class Workers:
    """A running worker group as a context: ``submit`` jobs, read ``state``; leaving it ends the group.

    Args:
        resources: size and needs of the groups.
        scratch: an absolute folder for Ray Train's own files.
    """

    def __init__(self, resources: Resources, scratch: str) -> None:
        # Ray Train asks its workers for their health every two seconds, and only then sees them end.
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
        self.resources = resources
        self.scratch = scratch
        self.queue: Any = ray.remote(JobQueue).options(num_cpus=0, max_concurrency=10_000).remote()
        self._threads = [threading.Thread(target=target, daemon=True) for target in (self._warm, self._wide)]
        self.failure: BaseException | None = None

    def __enter__(self) -> Workers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        with suppress(ray.exceptions.RayError):
            ray.get(self.queue.close.remote())
        for thread in self._threads:
            thread.join(timeout=30)

    def submit(self, job: Job, priority: int = 0) -> ray.ObjectRef:
        """A reference to the job's record."""
        return self.queue.submit.remote(job, priority)

    def state(self) -> dict[str, Any]:
        """See `JobQueue.state`."""
        return ray.get(self.queue.state.remote())

    def check(self) -> None:
        """Raises Unfinished with what made the warm group fail, if it did."""
        if self.failure:
            raise Unfinished(f"the worker group failed: {self.failure}") from self.failure

    def _warm(self) -> None:
        try:
            self._train(_serve, {}, self.resources.workers, self.resources.cpus_per_worker, "warm")
        except BaseException as error:
            self.failure = error
            ray.get(self.queue.abandon.remote(str(error)))

    def _wide(self) -> None:
        with suppress(ray.exceptions.RayError):
            while (job := ray.get(self.queue.next.remote("wide", True))) is not None:
                cpus = self.resources.wide_cpus_per_worker
                try:
                    record = self._train(_together, {"job": job}, job.workers, cpus, job.key)
                except Exception as error:
                    record = _failure(f"its worker group failed: {error}")
                ray.get(self.queue.finish.remote("wide", job.key, record))

    def _train(self, function: Callable, configuration: dict[str, Any], workers: int, cpus: float, name: str) -> Any:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        needs: dict[str, float] = {"CPU": cpus}
        if self.resources.gpus_per_worker:
            needs["GPU"] = self.resources.gpus_per_worker
        trainer: Any = TorchTrainer(
            function,
            train_loop_config={"queue": self.queue, **configuration},
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=bool(self.resources.gpus_per_worker), resources_per_worker=needs
            ),
            run_config=RunConfig(
                name=f"{name}-{time.time_ns()}",  # the warm group has nothing to resume
                storage_path=self.scratch,
                failure_config=FailureConfig(max_failures=ATTEMPTS, controller_failure_limit=ATTEMPTS),  # type: ignore[call-arg]
            ),
        )
        return trainer.fit().return_value
