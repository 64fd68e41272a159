"""Makes the shards of a dataset on Ray tasks: only those that are missing or damaged."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import ray

from sibcl_ray.dataset import SHARD, DamagedShard, Dataset, Role, shards_for


@dataclass(frozen=True)
class Shard:
    """One shard to be made."""

    role: Role
    index: int


def missing_shards(dataset: Dataset, sizes: Mapping[Role, int], warn: Callable[[str], None] = print) -> list[Shard]:
    """The shards that ``sizes``, samples per role, needs and the store does not hold intact."""
    missing = []
    for role, count in sizes.items():
        for index in range(shards_for(count)):
            try:
                dataset.read_shard(role, index)
            except FileNotFoundError:
                missing.append(Shard(role, index))
            except DamagedShard as damage:
                warn(f"{damage}; it is made again")
                missing.append(Shard(role, index))
    return missing


def make_shard(dataset: Dataset, shard: Shard) -> Shard:
    """Draw, solve and store one shard."""
    problem, rng = dataset.problem, dataset.rng(shard.role, shard.index)
    sample = (problem.sample_surrogate if shard.role.surrogate else problem.sample)(SHARD, rng)
    labels = None
    if shard.role.labelled:
        labels = problem.solve_surrogate(sample) if shard.role.surrogate else problem.solve(sample.inputs)
    dataset.write(shard.role, shard.index, sample, labels)
    return shard


@ray.remote(num_cpus=1)
def _make_on_ray(dataset: Dataset, shard: Shard) -> Shard:
    import torch

    torch.set_num_threads(1)  # one task a core; and the number of threads would change rounding
    return make_shard(dataset, shard)


def generate(dataset: Dataset, shards: list[Shard]) -> Iterator[Shard]:
    """Make the shards on the Ray cluster, labelled ones first; yields each when it is stored."""
    longest_first = sorted(shards, key=lambda s: not s.role.labelled)
    pending = [_make_on_ray.remote(dataset, shard) for shard in longest_first]
    while pending:
        done, pending = ray.wait(pending)
        yield from ray.get(done)
