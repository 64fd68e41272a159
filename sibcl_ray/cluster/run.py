"""Runs what a study still lacks on a Ray cluster: labels on tasks, searches on Tune, training on Train."""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import PurePosixPath

import ray

from sibcl_ray.cluster.generate import estimate, generate
from sibcl_ray.cluster.scheduler import Unfinished
from sibcl_ray.cluster.trial_process import submit_and_wait
from sibcl_ray.cluster.tune import BudgetSearcher, run_searches
from sibcl_ray.cluster.workers import Resources, Workers
from sibcl_ray.messages import duration
from sibcl_ray.results.progress import Count, Snapshot, Watch
from sibcl_ray.search.search import Search
from sibcl_ray.storage.leases import Claims, Session
from sibcl_ray.storage.records import is_final
from sibcl_ray.storage.store import Store, StoreError
from sibcl_ray.study.ledger import Ledger, Missing

TRIAL_PRIORITY, CELL_PRIORITY = 0, 1  # a search that waits for a trial holds up everything after it


@dataclass
class Timings:
    """Where the time went, seconds of wall time by stage, and worker seconds by kind of job."""

    wall: dict[str, float] = field(default_factory=dict)
    busy: dict[str, float] = field(default_factory=dict)
    workers: int = 0
    begun: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        """Where the time went until now."""
        wall, training = time.monotonic() - self.begun, sum(self.busy.values()) / max(1, self.workers)
        starting, labels = self.wall.get("ray", 0.0) + self.wall.get("workers", 0.0), self.wall.get("labels", 0.0)
        rest = wall - starting - labels - training
        return (
            f"{duration(wall)}: {labels:.0f} s labels, {training:.0f} s training on {self.workers} workers, "
            f"{starting:.0f} s starting Ray and its workers, {rest:.0f} s ({rest / wall:.0%}) everything else"
        )

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Adds the time inside to a stage."""
        start = time.monotonic()
        try:
            yield
        finally:
            self.wall[name] = self.wall.get(name, 0.0) + time.monotonic() - start


@contextmanager
def _scratch(store: Store, claims: Claims) -> Iterator[tuple[str, str]]:
    """Temporary folders for Ray's files: one in the store, and the path of one on this node's disk."""
    for old in store.names("scratch"):
        if not claims.alive(PurePosixPath(old).name):
            store.clear(old)
    name = f"scratch/{claims.session}"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as here:
        try:
            yield name, store.path(name) if store.is_local else here
        finally:
            with suppress(StoreError):  # the next driver does it
                store.clear(name)


def run(
    ledger: Ledger, lacking: Missing, session: Session, resources: Resources, watch: Watch, timings: Timings
) -> None:
    """Make everything that the study lacks.

    Args:
        ledger, lacking: the study and what of it is missing.
        session: the driver's, which has claimed the study.
        resources: see `fit_resources`.
        watch: called twice a second.
        timings: filled while the study runs.

    Raises:
        Unfinished: the storage failed, or workers could not be kept up.
        SolverFailed: a label cannot be computed.
    """
    snapshot = Snapshot(shards=Count(0, len(lacking.shards)))
    with timings.stage("labels"), _repeatedly(lambda: watch(snapshot)):
        for done, _ in enumerate(generate(ledger.dataset, lacking.shards, session.claims, ledger.warn), start=1):
            snapshot = replace(snapshot, shards=Count(done, len(lacking.shards)))
        estimate(ledger.dataset, lacking.estimates)
    if not (lacking.trials or lacking.cells):
        return
    timings.workers = resources.workers
    snapshot = replace(snapshot, trials=Count(0, lacking.trials), cells=Count(0, lacking.cells))
    with (
        _scratch(ledger.store, session.claims) as (shared, here),
        Workers(resources, shared, session.claims) as workers,
        _watching(workers, session, ledger.warn, snapshot, watch, timings),
    ):
        _train(ledger, workers, here)


def _train(ledger: Ledger, workers: Workers, scratch: str) -> None:
    cells: list[ray.ObjectRef] = []

    def evaluate(search: Search) -> None:
        ledger.note(search)
        jobs = [cell.job for cell in ledger.cells_chosen_by(search) if cell.job]
        records = ledger.records(job.record_name for job in jobs)
        cells.extend(workers.submit(j, CELL_PRIORITY) for j in jobs if not is_final(records.get(j.record_name)))

    searcher = BudgetSearcher(ledger.searches(), ledger.storage, evaluate, workers.stopped, ledger.warn)
    # Twice the workers, so that one finds work while the searches think about a trial that has ended.
    run_searches(
        searcher, partial(submit_and_wait, workers.queue, TRIAL_PRIORITY), 2 * workers.resources.workers, scratch
    )
    workers.check()
    if searcher.trials_left:
        raise Unfinished(f"{searcher.trials_left} trials were not finished")
    while cells:
        _, cells = ray.wait(cells, timeout=1.0)
        workers.check()


@contextmanager
def _watching(
    workers: Workers, session: Session, warn: Callable[[str], None], start: Snapshot, watch: Watch, timings: Timings
) -> Iterator[None]:
    """Calls ``watch`` until the body ends, and tells what went wrong."""
    begun = time.time()
    told = 0

    def look() -> None:
        nonlocal told
        state = workers.state()
        for note in state["notes"][told:]:
            warn(note)
        told = len(state["notes"])
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

    ended = threading.Event()

    def guard() -> None:
        while not (lost := session.lost.wait(1.0)) and not ended.is_set():
            pass
        if lost:
            workers.stop("another driver took this one for dead, and may go on in its place")

    threading.Thread(target=guard, daemon=True).start()  # independent of the display
    try:
        with _repeatedly(look):
            yield
    finally:
        ended.set()


@contextmanager
def _repeatedly(look: Callable[[], None]) -> Iterator[None]:
    """Calls ``look`` twice a second from a thread until the body ends, and once more then."""
    ended = threading.Event()

    def repeat() -> None:
        while not ended.wait(0.5):
            with suppress(ray.exceptions.RayError):  # the work itself finds out whether it lasts
                look()

    thread = threading.Thread(target=repeat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        thread.join(timeout=5)
        with suppress(ray.exceptions.RayError):
            look()
