"""How far a study scales: its schedule simulated on 1 to 512 GPUs, with stage times measured here.

python benchmarks/scaling.py [--problem photonic-dos] [--device cuda] [--speedups 30] [--times FILE]

The searches are the real ones (Optuna proposes every trial) and so are the jobs, with what they require; the values
are made up, and time is virtual. The rules are those of the queue: jobs whose requirements are done run by priority
and arrival, a pretraining runs once for all that want it, cells come when their search has ended. What a job takes is
its number of steps times the seconds of a step, which are measured with the study's own networks and batches.

Without a GPU they are measured on one core of this machine, and a GPU is assumed to be --speedups times as fast.
"""

from __future__ import annotations

import argparse
import heapq
import itertools
import math
import pickle
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import torch

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))

from planted import error
from rows import Row, markdown

from sibcl_ray.cluster.tune import BudgetSearcher
from sibcl_ray.data.dataset import Split
from sibcl_ray.learning.jobs import CellJob, Job, PretrainJob, TrialJob
from sibcl_ray.learning.networks import Architecture
from sibcl_ray.learning.training import Finetuning, Pretraining, finetune, pretrain
from sibcl_ray.problems import PROBLEMS
from sibcl_ray.randomness import named_seed
from sibcl_ray.recipes import SCALES
from sibcl_ray.search.search import Search
from sibcl_ray.storage.store import Store
from sibcl_ray.study.ledger import Ledger
from sibcl_ray.study.study import Study

HOUR = 3600.0
FORWARD = 1 / 3  # of a training step's work is the forward pass, which is all that a prediction takes


@dataclass(frozen=True, kw_only=True)
class Variant:
    """What of the product is changed; the defaults are the product as it is."""

    at_once: int | None = None  # trials of a search's round; None: as the recipe says
    budgets_apart: bool = False  # all budgets of a method at the same time, none starting from a smaller one's best
    folds_apart: bool = False  # each fold of a trial is a job
    pretraining_workers: int = 1  # GPUs that a pretraining spans
    lanes: int = 1  # pretrainings of several GPUs that run at the same time


VARIANTS = {
    "as it is": Variant(),
    "rounds of 8": Variant(at_once=8),
    "rounds of 15": Variant(at_once=15),
    "rounds of 30": Variant(at_once=30),
    "budgets side by side": Variant(budgets_apart=True),
    "folds as jobs": Variant(folds_apart=True),
    "pretraining on 4 GPUs - one at a time": Variant(pretraining_workers=4),
    "pretraining on 4 GPUs - many at a time": Variant(pretraining_workers=4, lanes=10**6),
    "rounds of 8 + pretraining on 4 GPUs": Variant(at_once=8, pretraining_workers=4, lanes=10**6),
    "rounds of 8 + budgets side by side": Variant(at_once=8, budgets_apart=True),
    "all three": Variant(at_once=8, budgets_apart=True, pretraining_workers=4, lanes=10**6),
    "all three + folds as jobs": Variant(
        at_once=8, budgets_apart=True, pretraining_workers=4, lanes=10**6, folds_apart=True
    ),
}


@dataclass(frozen=True, kw_only=True)
class Times:
    """Seconds of the device that was measured on, and of this machine's cores."""

    fit: dict[tuple[Architecture, int], float]  # a step on labels, by batch
    contrast: dict[tuple[Architecture, int], float]  # a contrastive step, by batch
    target: float  # of a core, a label
    surrogate: float
    start: float  # until a group of Train workers takes its first job
    driver: float  # of the driver, a trial
    wide: float  # efficiency of a pretraining on several GPUs
    speedup: float = 1.0  # of a GPU over the device

    def of(self, job: Job, study: Study) -> float:
        """What a job takes on one GPU."""
        c: Any = job.configuration  # type: ignore[attr-defined]
        a = c.architecture
        if isinstance(job, PretrainJob):
            pairs = math.ceil((study.unlabelled + study.surrogate) / c.contrastive_batch)
            labels = math.ceil(study.surrogate / c.supervised_batch)
            epoch = c.contrastive * pairs * self.contrast[a, c.contrastive_batch] if c.contrastive else 0.0
            epoch += labels * self.fit[a, c.supervised_batch] if c.surrogate_labels else 0.0
            return c.epochs * epoch / self.speedup
        repeats, seen = (study.folds, job.budget) if isinstance(job, TrialJob) else (1, study.test)  # type: ignore[attr-defined]
        predicted = seen * max(1, c.views) / c.batch * FORWARD
        return (repeats * c.steps + predicted) * self.fit[a, c.batch] / self.speedup


def measure(study: Study, device: str, **others: float) -> Times:
    """Time the steps of every network and batch of the study's space, and its labels."""
    problem, space = study.problem, study.space
    torch.set_num_threads(1)  # as a worker has
    on_gpu = torch.device(device).type == "cuda"

    def random(count: int) -> Split:
        rng = np.random.default_rng(0)
        inputs = torch.from_numpy(problem.sample(count, rng).inputs)
        return Split(inputs, torch.rand(count, *problem.label_shape))

    def step(work: Callable[[int], object]) -> float:
        """Of one step, without what comes before the first: from the time that few and more of them take."""
        few, more = (3, 53) if on_gpu else (1, 3)
        work(few)
        return (_elapsed(lambda: work(more)) - _elapsed(lambda: work(few))) / (more - few)

    def fit(architecture: Architecture, batch: int) -> float:
        data = random(batch)
        c = Finetuning(architecture=architecture, batch=batch)
        return step(lambda steps: finetune(problem, data, replace(c, steps=steps), device=device))

    def contrast(architecture: Architecture, batch: int) -> float:
        size = batch if on_gpu else min(batch, 64)  # a core takes as long for each input, whatever the batch
        inputs, nothing = random(size).inputs, Split(random(2).inputs[:0], torch.zeros(0, *problem.label_shape))
        views = tuple((name, 0.5) for name in problem.symmetries)
        c = Pretraining(
            architecture=architecture, contrastive=True, surrogate_labels=False, contrastive_batch=size, views=views
        )
        return batch / size * step(lambda n: pretrain(problem, inputs, nothing, replace(c, epochs=n), device))

    rng = np.random.default_rng(0)
    target, surrogate = problem.sample(8, rng), problem.sample_surrogate(8, rng)
    problem.solve(target.inputs)
    batches = {*space.supervised_batches, space.batch}
    return Times(
        fit={(a, b): fit(a, b) for a in space.architectures for b in batches},
        contrast={(a, b): contrast(a, b) for a in space.architectures for b in space.contrastive_batches},
        target=_elapsed(lambda: problem.solve(target.inputs)) / 8,
        surrogate=_elapsed(lambda: problem.solve_surrogate(surrogate)) / 8,
        **others,
    )


def _elapsed(work: Callable[[], object]) -> float:
    """Processor time on a CPU, so that others on the machine do not count; a GPU's wall time is not theirs either."""
    clock = time.perf_counter if torch.cuda.is_available() else time.process_time
    start = clock()
    work()
    return clock() - start


@dataclass
class Outcome:
    """What a simulated study took, in GPU seconds if nothing else is said.

    ``idle`` tells what was waited for: "rounds" of searches that are under way, since few trials are asked for at
    once; the "pretraining" of a trial, which another GPU runs; the "driver"; "room" for a pretraining on several
    GPUs; those "reserved" for one; the "last cells".
    """

    makespan: float = 0.0  # seconds
    busy: float = 0.0
    idle: Counter[str] = field(default_factory=Counter)
    jobs: Counter[str] = field(default_factory=Counter)  # by kind
    seconds: Counter[str] = field(default_factory=Counter)  # of them all on one GPU each


class Simulation:
    """A study on so many GPUs, in virtual time; ``run`` it once."""

    def __init__(self, study: Study, times: Times, gpus: int, variant: Variant, cores: float) -> None:
        self.study = replace(study, at_once=variant.at_once or study.at_once)
        self._times, self._gpus, self._variant, self._cores = times, gpus, variant, cores
        self._span = variant.pretraining_workers if gpus > variant.pretraining_workers else 1
        # Those of a wide pretraining stay reserved where there is one lane; with more, workers make room for them.
        self._reserved = self._span if self._span > 1 and variant.lanes == 1 else 0
        self._free = gpus - self._reserved
        self._wide_running = 0
        self._now = self._driver_free = 0.0
        self._order = itertools.count()
        self._events: list[tuple[float, int, Callable[[], None]]] = []
        self._ready: list[tuple[int, int, float, Callable[[], None]]] = []  # by priority and arrival
        self._wide: list[tuple[int, int, float, Callable[[], None]]] = []
        self._pretrained: set[str] = set()
        self._waiting: dict[str, list[Callable[[], None]]] = {}  # for a pretraining
        self._at_driver = self._asked = 0
        self._outcome = Outcome()

    def run(self) -> Outcome:
        """What it takes until the last cell is done."""
        with tempfile.TemporaryDirectory() as folder:
            store = Store(folder)
            store.open()
            self._ledger = Ledger(self.study, store)
            self._ledger.storage = optuna.storages.InMemoryStorage()
            self._searches = {search.name: search for search in self._ledger.searches()}
            apart = self._variant.budgets_apart
            chains = [replace(s, method=f"{s.method} at {s.budget}") if apart else s for s in self._searches.values()]
            self._searcher = BudgetSearcher(chains, self._ledger.storage, self._evaluate)
            self._before_training()
            self._ask()
            self._hand_out()
            while self._events:
                when, _, then = heapq.heappop(self._events)
                self._account(when)
                then()
                self._hand_out()
        self._outcome.makespan = self._now
        return self._outcome

    def _before_training(self) -> None:
        labels = (max(self.study.budgets) + self.study.test) * self._times.target
        labels += self.study.surrogate * self._times.surrogate
        for what, seconds in ("labels", labels / (self._cores * self._gpus)), ("start-up", self._times.start):
            self._outcome.idle[what] += self._gpus * seconds
            self._now += seconds

    def _account(self, when: float) -> None:
        """Let time pass, and book idle GPUs on what they wait for."""
        span, idle = when - self._now, self._free
        self._now = when
        reserved = self._reserved - self._span * self._wide_running if self._reserved else 0
        self._outcome.idle["reserved"] += reserved * span
        for cause, number in (
            ("driver", self._at_driver),
            ("room", self._gpus * bool(self._wide and not self._reserved)),
            ("pretraining", sum(map(len, self._waiting.values()))),
            ("rounds" if self._asked else "last cells", idle),
        ):
            taken = min(idle, number)
            self._outcome.idle[cause] += taken * span
            idle -= taken

    def _after(self, seconds: float, then: Callable[[], None]) -> None:
        heapq.heappush(self._events, (self._now + seconds, next(self._order), then))

    def _ask(self) -> None:
        """The driver's part: trials, as many as there may be, one after another."""
        while self._asked < min(2 * self._gpus, self._searcher.at_once):
            trial_id = str(next(self._order))
            if not isinstance(config := self._searcher.suggest(trial_id), dict):
                return
            self._asked += 1
            self._at_driver += 1
            self._driver_free = max(self._now, self._driver_free) + self._times.driver
            job = config["job"].open()
            self._after(self._driver_free - self._now, lambda i=trial_id, j=job: self._submit_trial(i, j))  # type: ignore[misc]

    def _submit_trial(self, trial_id: str, job: TrialJob) -> None:
        self._at_driver -= 1
        self._submit(job, 0, lambda: self._tell(trial_id, job))

    def _tell(self, trial_id: str, job: TrialJob) -> None:
        noise = np.random.default_rng(named_seed(job.key)).lognormal(0, 0.05)
        self._asked -= 1
        self._searcher.on_trial_complete(trial_id, {"error": noise * error(job)})
        self._ask()

    def _evaluate(self, search: Search) -> None:
        for cell in self._ledger.cells_chosen_by(self._searches[search.name]):
            if isinstance(cell.job, CellJob):
                self._submit(cell.job, 1, lambda: None)

    def _submit(self, job: Job, priority: int, then: Callable[[], None]) -> None:
        """What the queue does: first what a job requires, once for all that want it."""
        needed = next(iter(job.requires), None)
        if needed is None or needed.key in self._pretrained:
            self._enqueue(job, priority, then)
        elif needed.key in self._waiting:
            self._waiting[needed.key].append(lambda: self._enqueue(job, priority, then))
        else:
            self._waiting[needed.key] = [lambda: self._enqueue(job, priority, then)]
            self._enqueue(needed, priority, lambda: self._pretraining_done(needed.key))

    def _pretraining_done(self, key: str) -> None:
        self._pretrained.add(key)
        for then in self._waiting.pop(key):
            then()

    def _enqueue(self, job: Job, priority: int, then: Callable[[], None]) -> None:
        seconds = self._times.of(job, self.study)
        self._outcome.jobs[job.kind] += 1
        self._outcome.seconds[job.kind] += seconds
        if isinstance(job, PretrainJob) and self._span > 1:
            seconds = self._times.start + seconds / self._span / self._times.wide
            heapq.heappush(self._wide, (priority, next(self._order), seconds, then))
            return
        parts = self.study.folds if isinstance(job, TrialJob) and self._variant.folds_apart else 1
        left = itertools.count(parts - 1, -1)
        for _ in range(parts):
            done = lambda: then() if next(left) == 0 else None  # noqa: E731
            heapq.heappush(self._ready, (priority, next(self._order), seconds / parts, done))

    def _hand_out(self) -> None:
        while self._wide and self._wide_running < self._variant.lanes and (self._reserved or self._free >= self._span):
            *_, seconds, then = heapq.heappop(self._wide)
            self._wide_running += 1
            self._begin(0 if self._reserved else self._span, self._span, seconds, then)
        while self._ready and self._free and not (self._wide and not self._reserved):
            *_, seconds, then = heapq.heappop(self._ready)
            self._begin(1, 1, seconds, then)

    def _begin(self, taken: int, gpus: int, seconds: float, then: Callable[[], None]) -> None:
        def end() -> None:
            self._free += taken
            self._wide_running -= gpus > 1
            self._outcome.busy += gpus * seconds
            then()

        self._free -= taken
        self._after(seconds, end)


def cells(gpus: int, outcome: Outcome) -> tuple[str, str]:
    """Hours, with the part of all GPU hours that one GPU would need as well; and what the rest waits for."""
    whole = gpus * outcome.makespan
    causes = [(cause, spent / whole) for cause, spent in outcome.idle.most_common(3) if spent > 0.005 * whole]
    hours = f"{outcome.makespan / HOUR:.3g} h ({sum(outcome.seconds.values()) / whole:.0%})"
    return hours, ", ".join(f"{cause} {part:.0%}" for cause, part in causes)


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=tuple(PROBLEMS), default="photonic-dos")
    parser.add_argument("--scale", choices=tuple(SCALES), default="paper")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--speedups", default="30", help="of a GPU over one core; not used where there is a GPU")
    parser.add_argument("--gpus", default="1,8,64,512")
    parser.add_argument("--variants", default=",".join(VARIANTS), help="; ".join(VARIANTS))
    parser.add_argument("--times", type=Path, help="file with what was measured before; else it is written")
    parser.add_argument("--start", type=float, default=12.0, help="seconds until a group of workers takes a job")
    parser.add_argument("--driver", type=float, default=0.05, help="seconds of the driver a trial: see driver.py")
    parser.add_argument("--wide", type=float, default=0.7, help="efficiency of a pretraining on several GPUs")
    parser.add_argument("--cores", type=float, default=8.0, help="that compute labels, for each GPU")
    options = parser.parse_args(arguments)
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    study = SCALES[options.scale](PROBLEMS[options.problem])
    given = {"start": options.start, "driver": options.driver, "wide": options.wide}
    if options.times and options.times.exists():
        times = replace(pickle.loads(options.times.read_bytes()), **given)
    else:
        times = measure(study, options.device, **given)
    if options.times:
        options.times.write_bytes(pickle.dumps(times))
    print(f"{study.name}: {len(study.methods)} methods, {len(study.budgets)} budgets, {study.trials} trials a search")
    for architecture in study.space.architectures:
        fit = times.fit[architecture, study.space.batch]
        batch = study.space.contrastive_batches[0]
        contrast = times.contrast[architecture, batch]
        print(f"  {architecture.encoder.label}: {fit:.3f} s a step of {study.space.batch} labels, ", end="")
        print(f"{contrast:.3f} s one of {batch} pairs, on {options.device}")
    print(f"  {1e3 * times.target:.1f} ms of a core a label, {1e3 * times.surrogate:.1f} ms a surrogate label")
    cuda = torch.device(options.device).type == "cuda"
    rows: list[Row] = []
    for speedup in (1.0,) if cuda else map(float, options.speedups.split(",")):
        device = "a GPU, measured" if cuda else f"a GPU as fast as {speedup:g} such cores (assumed)"
        for name in map(str.strip, options.variants.split(",")):
            hours, idle = {device: name}, {device: f"{name}: idle GPUs wait for"}
            for gpus in options.gpus.split(","):
                simulation = Simulation(
                    study, replace(times, speedup=speedup), int(gpus), VARIANTS[name], options.cores
                )
                outcome = simulation.run()
                hours[gpus], idle[gpus] = cells(int(gpus), outcome)
                print(f"{device}, {name}, {gpus}: {hours[gpus]}; {idle[gpus]}", flush=True)
            rows += [hours, idle] if VARIANTS[name] == Variant() else [hours]
            jobs = ", ".join(f"{n} {k}s of {outcome.seconds[k] / n / 60:.1f} min" for k, n in outcome.jobs.items())
            print(f"       {jobs}")
    return rows


if __name__ == "__main__":
    print(markdown(main()))
