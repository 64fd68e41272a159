"""Runs what a study still lacks on a Ray cluster: labels on tasks, searches on Tune, training on Train."""

from __future__ import annotations

import logging
import os
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import ray

from sibcl_ray.generate import Shard, generate, missing_shards
from sibcl_ray.jobs import Job, Record
from sibcl_ray.search import BudgetSearcher, Search, run_searches
from sibcl_ray.study import Ledger
from sibcl_ray.workers import Resources, Unfinished, Workers

TRIAL_PRIORITY, CELL_PRIORITY = 0, 1  # a search that waits for a trial holds up everything after it


@dataclass(frozen=True)
class Count:
    """How much of something is done."""

    done: int = 0
    total: int = 0


@dataclass(frozen=True, kw_only=True)
class Snapshot:
    """What a person who watches wants to know."""

    shards: Count = Count()
    pretrainings: Count = Count()
    trials: Count = Count()
    cells: Count = Count()
    running: tuple[tuple[str, float, float], ...] = ()  # title, finished fraction, loss


Watch = Callable[[Snapshot], None]


@dataclass
class Timings:
    """Where the time went, seconds of wall time by stage, and worker seconds by kind of job."""

    wall: dict[str, float] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)
    workers: int = 0

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time inside to a stage."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.wall[name] = self.wall.get(name, 0.0) + time.monotonic() - start


@dataclass(frozen=True)
class Missing:
    """What a study still lacks."""

    shards: list[Shard]
    trials: int
    cells: int

    def __bool__(self) -> bool:
        return bool(self.shards or self.trials or self.cells)


def missing(ledger: Ledger, warn: Callable[[str], None] = print) -> Missing:
    """What is to be done. Shards are looked for only if there is something to learn from them."""
    cells = sum(cell.job is None or cell.job.record() is None for cell in ledger.cells())
    trials = ledger.trials_missing()
    shards = missing_shards(ledger.dataset, ledger.study.sizes, warn) if cells or trials else []
    return Missing(shards, trials, cells)


def connect() -> None:
    """Connect to the cluster that RAY_ADDRESS names, as in a submitted job, or start one here."""
    ray.init(
        address=os.environ.get("RAY_ADDRESS") or "local",
        include_dashboard=False if not os.environ.get("RAY_ADDRESS") else None,
        log_to_driver=False,
        logging_level=logging.ERROR,
    )


def fit_resources(workers: int | None, gpus_per_worker: float | None, wide: int) -> Resources:
    """The workers that the connected cluster has room for.

    Args:
        workers: of the warm group; None for as many as there is room for.
        gpus_per_worker: None for one if the cluster has GPUs, else none.
        wide: processes of a pretraining that spans several, or 1.

    Raises:
        ValueError: the cluster has not enough free; in one line.
    """
    free, total = ray.available_resources(), ray.cluster_resources()
    cpus, gpus = free.get("CPU", 0.0), free.get("GPU", 0.0)
    if gpus_per_worker is None:
        gpus_per_worker = 1.0 if total.get("GPU", 0.0) else 0.0
    beside = wide if wide > 1 else 0
    if gpus_per_worker:
        room = int(gpus / gpus_per_worker) - beside
    else:
        # A wide pretraining on a small machine shares one core among its processes.
        room = int(cpus) - (beside if cpus > beside else min(beside, 1))
    wanted = workers or room
    if room < 1 or wanted > room:
        raise ValueError(
            f"{wanted if workers else 'no'} worker{'s' * (workers != 1)} fit{'s' * (workers == 1)} on the "
            f"{cpus:g} of {total.get('CPU', 0.0):g} CPUs and {gpus:g} of {total.get('GPU', 0.0):g} GPUs that are free"
            + (f" beside a pretraining of {beside} workers" if beside else "")
            + (f"; ask for at most {room}" if room > 0 else "; free some, or add nodes")
        )
    spare = (cpus - wanted) / wide if not gpus_per_worker else 1.0
    return Resources(workers=wanted, gpus_per_worker=gpus_per_worker, wide_cpus_per_worker=min(1.0, max(spare, 0.01)))


def run(ledger: Ledger, lacking: Missing, resources: Resources, scratch: str, watch: Watch, timings: Timings) -> None:
    """Make everything that the study lacks.

    Args:
        ledger, lacking: the study and what `missing` found.
        resources: see `fit_resources`.
        scratch: an absolute folder for files that nobody needs afterwards.
        watch: called twice a second.
        timings: filled while the study runs.

    Raises:
        Unfinished: interrupted, or workers could not be kept up.
    """
    snapshot = Snapshot(shards=Count(0, len(lacking.shards)))
    with timings.stage("labels"):
        watch(snapshot)
        for done, _ in enumerate(generate(ledger.dataset, lacking.shards), start=1):
            snapshot = replace(snapshot, shards=Count(done, len(lacking.shards)))
            watch(snapshot)
    if not (lacking.trials or lacking.cells):
        return
    timings.workers = resources.workers
    snapshot = replace(snapshot, trials=Count(0, lacking.trials), cells=Count(0, lacking.cells))
    with Workers(resources, scratch) as workers, _watching(workers, snapshot, watch, timings):
        _train(ledger, workers, scratch)


def _train(ledger: Ledger, workers: Workers, scratch: str) -> None:
    cells: list[ray.ObjectRef] = []

    def evaluate(search: Search) -> None:
        for cell in ledger.cells_chosen_by(search):
            if cell.job is not None and cell.job.record() is None:
                cells.append(workers.submit(cell.job, CELL_PRIORITY))

    searcher = BudgetSearcher(ledger.searches(), ledger.storage, on_finish=evaluate)
    # Twice the workers, so that one finds work while the searches think about a trial that has ended.
    run_searches(
        searcher,
        partial(_submit_and_wait, workers.queue, TRIAL_PRIORITY),
        2 * workers.resources.workers,
        scratch,
    )
    workers.check()
    if searcher.trials_left:
        raise Unfinished(f"{searcher.trials_left} trials were not finished")
    while cells:
        _, cells = ray.wait(cells, timeout=1.0)
        workers.check()


def _submit_and_wait(queue: Any, priority: int, job: Job) -> Record:
    """In a trial's process: the record of a job that a worker does."""
    return ray.get(queue.submit.remote(job, priority))


@contextmanager
def _watching(workers: Workers, start: Snapshot, watch: Watch, timings: Timings) -> Iterator[None]:
    """Calls ``watch`` from a thread until the body ends."""
    ended = threading.Event()
    begun = time.time()

    def look() -> None:
        state = workers.state()
        timings.wall["workers"] = max(0.0, (state["first"] or time.time()) - begun)
        timings.busy = state["seconds"]
        done, submitted = state["finished"], state["submitted"]
        watch(
            replace(
                start,
                pretrainings=Count(done.get("pretraining", 0), submitted.get("pretraining", 0)),
                trials=Count(done.get("trial", 0), start.trials.total),
                cells=Count(done.get("cell", 0), start.cells.total),
                running=tuple(state["running"]),
            )
        )

    def repeat() -> None:
        while not ended.wait(0.5):
            look()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join()
        look()
