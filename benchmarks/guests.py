"""What it costs that a user's solver is alone: a solver of 1 ms, called directly and as a study does.

    python benchmarks/guests.py --labels 500

Prints, for shards of 1 and of 50 labels, with and without a timeout, the milliseconds a label that the solver's
process, folder and copies add to the solver's own time and that of storing shards.
"""

import argparse
import sys
import tempfile
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rows import Row, markdown

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from sibcl_ray.data import sandbox, shards
from sibcl_ray.data.dataset import TARGET, Dataset
from sibcl_ray.problems.problem import Sample
from sibcl_ray.problems.simulation import Simulation
from sibcl_ray.storage.store import Store


@dataclass(frozen=True)
class Millisecond(Simulation):
    """Means of images, each of which takes a millisecond of the processor."""

    name = "millisecond"
    input_shape, label_shape = (32, 32), (1,)

    def sample(self, count: int, rng: np.random.Generator) -> Sample:
        return Sample(rng.uniform(0, 1, (count, 32, 32)).astype(np.float32))

    def solve(self, inputs: np.ndarray) -> np.ndarray:
        labels = []
        for x in inputs:
            end = time.perf_counter() + 1e-3
            while time.perf_counter() < end:
                pass
            labels.append([x.mean()])
        return np.array(labels, np.float32)


class Together(Millisecond):
    labels_per_task = 50


class Limited(Millisecond):
    timeout = 10.0


class LimitedTogether(Together):
    timeout = 10.0


def seconds(problem: Simulation, labels: int) -> float:
    """Seconds a label, the first shard, which starts processes, left out."""
    with tempfile.TemporaryDirectory() as folder:
        dataset = Dataset(problem, 0, Store(folder))
        first, *others = dataset.missing({TARGET: labels + problem.labels_per_task})
        shards.make_shard(dataset, first)
        began = time.perf_counter()
        for shard in others:
            shards.make_shard(dataset, shard)
        return (time.perf_counter() - began) / labels


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("--labels", type=int, default=500)
    labels = parser.parse_args(arguments).labels
    apart, rows = shards.call, []
    for problem in (Together(), LimitedTogether(), Millisecond(), Limited()):
        shards.call = lambda problem, method, *arguments, seconds=None: sandbox.result_of(problem, method, arguments)
        direct = seconds(problem, labels)
        shards.call = apart
        alone = seconds(problem, labels)
        rows.append(
            {
                "labels a task": str(problem.labels_per_task),
                "timeout": "" if problem.timeout is None else f"{problem.timeout:g} s",
                "directly, ms a label": f"{1e3 * direct:.2f}",
                "alone, ms a label": f"{1e3 * alone:.2f}",
                "difference": f"{1e3 * (alone - direct):.2f}",
            }
        )
    sandbox.end()
    return rows


if __name__ == "__main__":
    print(markdown(main()))
