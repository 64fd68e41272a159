"""Runs what a study still lacks on a Ray cluster: labels on tasks, searches on Tune, training on Train."""

import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace

import ray
from ray import tune

from sibcl_ray.cluster.generate import estimate, generate
from sibcl_ray.cluster.scheduler import State, Unfinished
from sibcl_ray.cluster.trial_process import forward_job
from sibcl_ray.cluster.tune import BudgetSearcher, run_searches
from sibcl_ray.cluster.workers import Resources, Workers
from sibcl_ray.messages import duration
from sibcl_ray.results.progress import Count, Snapshot, Watch
from sibcl_ray.search.search import Search
from sibcl_ray.storage.leases import Claims, Session
from sibcl_ray.storage.records import is_final
from sibcl_ray.storage.store import Store, StoreError
from sibcl_ray.study.ledger import Ledger, Missing

CELL_PRIORITY = 1  # after trials: a search that waits for one holds up everything after it


@dataclass
class Timings:
    """Where the time went, in seconds: wall time by stage, and of all workers in jobs."""

    wall: dict[str, float] = field(default_factory=lambda: {"ray": 0.0, "labels": 0.0, "workers": 0.0})
    busy: float = 0.0
    workers: int = 0
    begun: float = field(default_factory=time.monotonic)

    def __str__(self) -> str:
        """Where the time went until now."""
        wall, training = time.monotonic() - self.begun, self.busy / max(1, self.workers)
        starting, labels = self.wall["ray"] + self.wall["workers"], self.wall["labels"]
        rest = wall - starting - labels - training
        return (
            f"{duration(wall)}: {labels:.0f} s labels, {training:.0f} s training on {self.workers} workers, "
            f"{starting:.0f} s starting Ray and its workers, {rest:.0f} s ({rest / wall:.0%}) everything else"
        )

    def ends(self, stage: str) -> None:
        """What is left of the time until now was a stage's."""
        self.wall[stage] = time.monotonic() - self.begun - sum(self.wall.values())


@contextmanager
def _scratch(store: Store, claims: Claims) -> Iterator[tuple[str, str]]:
    """Temporary folders for Ray's files: one in the store, and the path of one on this node's disk."""
    for old in store.names("scratch"):
        if not claims.alive(old.rpartition("/")[2]):
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
    """Make everything that the study lacks, and fill the timings meanwhile.

    Raises:
        Unfinished: the storage failed, or workers could not be kept up.
        SolverFailed: a label cannot be computed.
    """
    snapshot = Snapshot(shards=Count(0, len(lacking.shards)))
    with _repeatedly(lambda: watch(snapshot)):
        for done, _ in enumerate(generate(ledger.dataset, lacking.shards, session.claims, ledger.warn), start=1):
            snapshot = replace(snapshot, shards=Count(done, len(lacking.shards)))
        estimate(ledger.dataset, lacking.estimates)
    timings.ends("labels")
    if not (lacking.trials or lacking.cells):
        return
    timings.workers = resources.workers
    snapshot = replace(snapshot, trials=Count(0, lacking.trials), cells=Count(0, lacking.cells))
    begun, told = time.time(), 0

    def show() -> None:
        nonlocal told
        state: State = ray.get(workers.queue.state.remote())
        for note in state.notes[told:]:
            ledger.warn(note)
        told = len(state.notes)
        timings.wall["workers"] = max(0.0, (state.first or time.time()) - begun)
        timings.busy = sum(state.seconds.values())
        watch(
            replace(
                snapshot,
                pretrainings=Count(state.finished["pretraining"], state.submitted["pretraining"]),
                trials=Count(state.finished["trial"], lacking.trials),
                cells=Count(state.finished["cell"], lacking.cells),
                running=tuple(state.running.values()),
            )
        )

    def guard() -> None:
        if session.lost.is_set():
            workers.stop("another driver took this one for dead, and may go on in its place")

    with (
        _scratch(ledger.store, session.claims) as (shared, here),
        Workers(resources, shared, session.claims) as workers,
        _repeatedly(guard),  # independent of the display
        _repeatedly(show),
    ):
        _train(ledger, workers, 2 * resources.workers, here)


def _train(ledger: Ledger, workers: Workers, at_once: int, scratch: str) -> None:
    """Search with that many trials at a time: twice the workers, so that one finds work while searches think."""
    cells: list[ray.ObjectRef] = []

    def evaluate(search: Search) -> None:
        ledger.note(search)
        jobs = [cell.job for cell in ledger.cells_chosen_by(search) if cell.job]
        records = ledger.records(job.record_name for job in jobs)
        cells.extend(workers.submit(j, CELL_PRIORITY) for j in jobs if not is_final(records.get(j.record_name)))

    searcher = BudgetSearcher(ledger.searches(), ledger.storage, evaluate, workers.stopped, ledger.warn)
    run_searches(searcher, tune.with_parameters(forward_job, queue=workers.queue), at_once, scratch)
    workers.check()
    if searcher.trials_left:
        raise Unfinished(f"{searcher.trials_left} trials were not finished")
    while cells:
        _, cells = ray.wait(cells, timeout=1.0)
        workers.check()


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
