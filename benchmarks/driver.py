"""What a study costs its driver: a real one, with real Ray, Tune, Optuna and MLflow, in which only training is made up.

python benchmarks/driver.py [--trials 5000] [--every 500] [--workers 2] [--seconds 0.5] [--profile FILE]

5 methods of the paper's recipe, searches of 100 trials, cells of 2 seeds. Processor time is that of the driver
process alone, its threads included; what the processes weigh that it starts is shown at the end. Trials at the
largest budget take some seconds, all others none: so the last lines show what waiting costs a driver that has
seen all the others.
"""

from __future__ import annotations

import argparse
import cProfile
import logging
import os
import resource
import sys
import tempfile
import threading
import time
from collections import Counter
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))

import ray  # noqa: I001  brings psutil
import psutil
from planted import PlantedLedger
from rows import Row, markdown
from sibcl_ray.recipes import paper

from sibcl_ray.storage.leases import Session
from sibcl_ray.study.ledger import Missing
from sibcl_ray.problems import PROBLEMS
from sibcl_ray.results.progress import Snapshot
from sibcl_ray.cluster.run import Timings, run
from sibcl_ray.storage.store import Store
from sibcl_ray.results.mlflow.background import Tracker
from sibcl_ray.results.mlflow.tracking import TrackingUnavailable
from sibcl_ray.cluster.workers import Group, Resources

METHODS, TRIALS = 5, 100  # of a search


def study(trials: int):
    """So many trials in all, in searches of 100."""
    recipe = paper(PROBLEMS["photonic-dos"])
    budgets = tuple(50 + 50 * i for i in range(max(1, trials // (METHODS * TRIALS))))
    size = min(TRIALS, trials // METHODS)
    fields = {"budgets": budgets, "searched": budgets, "trials": size, "seeds": 2}
    return replace(recipe, methods=recipe.methods[:METHODS], **fields)


def threads_of(process: psutil.Process) -> Counter[str]:
    """Processor seconds by thread: Python's by their names, all others together."""
    names = {t.native_id: t.name.split(" ")[0].rstrip("-0123456789") for t in threading.enumerate()}
    spent: Counter[str] = Counter()
    for thread in process.threads():
        spent[names.get(thread.id, "Ray's own")] += thread.user_time + thread.system_time
    return spent


class Meter:
    """Called with the study's snapshots: prints a line whenever so many more trials have ended."""

    def __init__(self, every: int) -> None:
        self._every, self._next = every, every
        self._process = psutil.Process()
        self._last = self._now()
        self._costs: list[float] = []  # processor seconds a trial, by line
        print("trials  CPU s a trial  CPU by wall  wall s a trial   RSS, MiB   CPU s by thread", flush=True)

    def _now(self) -> tuple[int, float, float, Counter[str]]:
        usage = resource.getrusage(resource.RUSAGE_SELF)
        return 0, usage.ru_utime + usage.ru_stime, time.monotonic(), threads_of(self._process)

    def __call__(self, snapshot: Snapshot) -> None:
        if snapshot.trials.done >= self._next:
            self._next += self._every
            self.show(snapshot.trials.done)

    def show(self, done: int) -> None:
        """A line of what the trials cost since the last one."""
        before, cpu, wall, threads = self._last
        _, *now = self._now()
        number = max(1, done - before)
        parts = ", ".join(f"{k} {v:.1f}" for k, v in (now[2] - threads).most_common(5))
        rss = self._process.memory_info().rss / 2**20
        spent, passed = now[0] - cpu, now[1] - wall
        costs = f"{spent / number:13.4f}  {spent / passed:12.0%}  {passed / number:14.4f}"
        print(f"{done:6d}  {costs}  {rss:9.0f}   {parts}", flush=True)
        self._last = (done, *now)
        if number > 1:
            self._costs.append(spent / number)
        self._memory = rss

    def rows(self) -> list[Row]:
        """What was shown, in short."""
        costs = f"{min(self._costs):.2f} to {max(self._costs):.2f}"
        return [
            {"quantity": "processor time of the driver, s a trial", "value": costs},
            {"quantity": "memory of the driver at the end, MiB", "value": f"{self._memory:.0f}"},
        ]


def children() -> Counter[str]:
    """Memory of the processes that the driver has started, MiB, by what they are; shared pages count in each."""
    memory: Counter[str] = Counter()
    number: Counter[str] = Counter()
    for process in psutil.Process().children(recursive=True):
        try:
            name = process.cmdline()[0].split(".")[0] if process.cmdline() else process.name()
            memory[name] += process.memory_info().rss / 2**20
            number[name] += 1
        except psutil.Error:
            continue
    return Counter({f"{number[name]} × {Path(name).name}": round(total) for name, total in memory.items()})


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--trials", type=int, default=5000)
    parser.add_argument("--every", type=int, default=500)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--seconds", type=float, default=0.5, help="that a trial at the largest budget takes")
    parser.add_argument("--profile", help="write a profile of the main thread to this file")
    options = parser.parse_args(arguments)
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(address="local", num_cpus=options.workers, **quiet)
    ended: list[Counter[str]] = []
    profile = cProfile.Profile() if options.profile else nullcontext()
    with tempfile.TemporaryDirectory() as folder:
        store = Store(f"{folder}/store")
        store.open()
        ledger = PlantedLedger(study(options.trials), store, options.seconds)
        meter = Meter(options.every)

        def watch(snapshot: Snapshot) -> None:
            if snapshot.trials.total and snapshot.trials.done > 0.9 * snapshot.trials.total and not ended:
                ended.append(children())
            meter(snapshot)

        tracker = Tracker(
            f"sqlite:///{folder}/mlflow.db",
            ledger.study.name,
            lambda: (ledger.matrix(), ledger.trials()),
            warn=print,
        )
        lacking = Missing(shards=[], trials=ledger.missing().trials, cells=len(ledger.cells()))  # no labels are read
        print(f"{lacking.trials} trials, {lacking.cells} cells, {os.cpu_count()} cores", flush=True)
        with Session(store) as session, tracker, profile:
            run(ledger, lacking, session, Resources(single_worker=(Group(size=options.workers),)), watch, Timings())
        meter.show(lacking.trials)
        states = ledger.matrix().state.value_counts().to_dict()
        print(f"cells: {states}; MLflow once more, as at the end:")
        with suppress(TrackingUnavailable):  # where the machine is busy with other things
            tracker.finish(seconds=300)
        meter.show(lacking.trials)
    if options.profile:
        profile.dump_stats(options.profile)
    ray.shutdown()
    return meter.rows() + [
        {"quantity": f"memory of {name}, MiB", "value": f"{mib}"}
        for name, mib in (ended[0].most_common() if ended else ())
    ]


if __name__ == "__main__":
    print(markdown(main()))
