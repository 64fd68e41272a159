"""What labels cost, and how their generation scales with workers.

python benchmarks/generation.py [--problem photonic-dos] [--labels 200] [--workers 2] [--rounds 3]

First in this process, on one thread; extrapolated to the 22,000 labels of Loh et al. Then as a study makes them, on Ray
tasks: the same shards by 1 worker and by several, in turns, so that both see the same load. The workers are up
beforehand, and a turn's time ends when its last shard is stored.
"""

from __future__ import annotations

import argparse
import logging
import tempfile
import time

import numpy as np
import ray
import torch
from rows import Row, markdown

from sibcl_ray.cluster.generate import generate
from sibcl_ray.data.dataset import SHARD, TARGET, Dataset, Shard
from sibcl_ray.problems import PROBLEMS
from sibcl_ray.storage.leases import Session
from sibcl_ray.storage.store import Store

PAPER = 22_000


def in_this_process(problem, count: int) -> float:
    """Seconds of one core a label, drawing the input included."""
    torch.set_num_threads(1)
    problem.solve(problem.sample(2, np.random.default_rng(1)).inputs)  # the first call loads libraries
    start, rng = time.process_time(), np.random.default_rng(0)
    for _ in range(0, count, SHARD):
        problem.solve(problem.sample(SHARD, rng).inputs)
    return (time.process_time() - start) / count


def on_ray(problem, shards: int, workers: int) -> float:
    """Seconds of wall time for so many shards on so many workers of one core."""
    quiet = {"include_dashboard": False, "log_to_driver": False, "logging_level": logging.ERROR}
    ray.init(address="local", num_cpus=workers, **quiet)
    try:
        with tempfile.TemporaryDirectory() as folder:
            store = Store(folder)
            store.open()
            with Session(store) as session:
                warm = [Shard(TARGET, index) for index in range(workers)]
                list(generate(Dataset(problem, 1, store), warm, session.claims))
                start = time.perf_counter()
                work = [Shard(TARGET, index) for index in range(shards)]
                list(generate(Dataset(problem, 0, store), work, session.claims))
                return time.perf_counter() - start
    finally:
        ray.shutdown()


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=tuple(PROBLEMS), default="photonic-dos")
    parser.add_argument("--labels", type=int, default=200, help="a multiple of 50")
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--shards", type=int, default=16, help="of 50 labels each, for either number of workers")
    parser.add_argument("--rounds", type=int, default=3)
    options = parser.parse_args(arguments)
    problem = PROBLEMS[options.problem]
    seconds = in_this_process(problem, options.labels)
    efficiencies = []
    for _ in range(options.rounds):
        one, many = (on_ray(problem, options.shards, workers) for workers in (1, options.workers))
        efficiencies.append(one / many / options.workers)
        print(
            f"{options.shards} shards: {one:.1f} s on 1 worker, {many:.1f} s on {options.workers}, "
            f"efficiency {efficiencies[-1]:.0%}",
            flush=True,
        )
    return [
        {"quantity": "a label on one core, ms", "value": f"{1e3 * seconds:.1f}"},
        {"quantity": f"{PAPER:,} labels, core-hours", "value": f"{PAPER * seconds / 3600:.2f}"},
        {
            "quantity": f"as fast on {options.workers} workers as on one, times",
            "value": f"{options.workers * np.median(efficiencies):.1f}",
        },
    ]


if __name__ == "__main__":
    print(markdown(main()))
