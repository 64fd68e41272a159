"""What it costs to look at a study that is finished: the whole command, and the ledger's part per cell.

python benchmarks/resume.py [--cells 2000]

Nothing is trained: trials and cells get records with synthetic errors, through the same code that writes real ones.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
from rows import Row, markdown

sys.path.insert(0, str(Path(__file__).parents[1]))
sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))

from sibcl_ray.cluster.tune import BudgetSearcher
from sibcl_ray.learning.jobs import Job
from sibcl_ray.problems import PROBLEMS
from sibcl_ray.recipes import smoke
from sibcl_ray.storage.records import DONE, timed, write_record
from sibcl_ray.storage.store import Store
from sibcl_ray.study.ledger import Ledger

SCRIPT = str(Path(__file__).parents[1] / "studies" / "label_sweep.py")
SEEDS = 20


def planted(job: Job, rng: np.random.Generator) -> dict:
    """A record as a worker writes it, of an error that falls with the budget."""
    errors = 0.5 * job.budget**-0.3 * rng.lognormal(0, 0.1, 500)
    record = {"error": float(errors.mean()), "sample_errors": [float(f"{e:.6g}") for e in errors]}
    return timed({"state": DONE, "reason": "", "remade": [], **record}, seconds=1.0)


def finish(ledger: Ledger) -> tuple[int, float]:
    """Give every trial and cell a result; the number of cells, and the seconds that their records took."""
    rng, spent, count = np.random.default_rng(0), 0.0, 0

    def evaluate(search):
        nonlocal spent, count
        for cell in ledger.cells_chosen_by(search):
            record, start = planted(cell.job, rng), time.perf_counter()
            write_record(cell.job, record)
            spent, count = spent + time.perf_counter() - start, count + 1

    searcher = BudgetSearcher(ledger.searches(), ledger.storage, evaluate)
    number = 0
    while searcher.trials_left:
        running = {}
        while isinstance(config := searcher.suggest(str(number)), dict):
            running[str(number)] = config["job"].open()
            number += 1
        for trial_id, job in running.items():
            record = planted(job, rng)
            write_record(job, record)
            searcher.on_trial_complete(trial_id, record)
    return count, spent


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser()
    parser.add_argument("--cells", type=int, default=2000)
    largest = parser.parse_args(arguments).cells
    rows = []
    for cells in (largest // 8, largest // 4, largest // 2, largest):
        budgets = tuple(range(10, 10 + cells // (5 * SEEDS)))
        study = replace(smoke(PROBLEMS["photonic-dos"]), budgets=budgets, seeds=SEEDS)
        with tempfile.TemporaryDirectory() as folder:
            store = Store(folder)
            store.open()
            count, writing = finish(Ledger(study, store))
            start = time.perf_counter()
            assert (Ledger(study, store).matrix().state == "done").all()
            reading = time.perf_counter() - start
            command = [sys.executable, SCRIPT, "--scale", "smoke", "--storage", folder]
            command += ["--budgets", ",".join(map(str, budgets)), "--seeds", str(SEEDS)]
            start = time.perf_counter()
            subprocess.run(command, check=True, capture_output=True)
            whole = time.perf_counter() - start
        rows.append(
            {
                "cells": f"{count}",
                "written, ms a cell": f"{1e3 * writing / count:.2f}",
                "read, ms a cell": f"{1e3 * reading / count:.2f}",
                "whole command, s": f"{whole:.1f}",
            }
        )
    return rows


if __name__ == "__main__":
    print(markdown(main()))
