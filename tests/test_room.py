"""Groups of workers fit on the cluster, leave room for each other, and are small."""

import math

import pytest

from sibcl_ray.cluster.resources import allocate
from sibcl_ray.cluster.workers import LARGEST, Group


def sizes(groups):
    return [group.size for group in groups]


@pytest.mark.parametrize(
    ("cpus", "gpus", "asked", "alone", "together"),
    [
        (2, 0, {}, [2], []),
        (16, 0, {"workers": 3}, [3], []),
        (18, 0, {}, [6, 6, 6], []),
        (4, 0, {"sharing": 2}, [2], [2]),
        (64, 8, {"gpus_per_worker": 1}, [8], []),
        (512 * 8, 512, {"gpus_per_worker": 1}, [8] * 64, []),
        (64, 8, {"gpus_per_worker": 1, "sharing": 2}, [6], [2] * 3),
        (64, 4, {"gpus_per_worker": 0.25}, [6, 6], [1] * 3),
        (8, 1, {"gpus_per_worker": 0.25}, [4], []),
        (10, 8, {"gpus_per_worker": 0.25}, [5, 4], [1] * 2),  # CPUs run out first
        (math.inf, math.inf, {"workers": 24, "gpus_per_worker": 1}, [8] * 3, []),  # as many as it will start
        (math.inf, math.inf, {"workers": 16, "gpus_per_worker": 1, "sharing": 4}, [8] * 2, [4] * 4),
        (math.inf, math.inf, {"workers": 4, "sharing": 2}, [4], [2]),
    ],
)
def test_workers_of_a_cluster(cpus, gpus, asked, alone, together):
    found = allocate(cpus, gpus, **{"workers": None, "gpus_per_worker": 0.0, "sharing": 1, **asked})
    assert sizes(found.single_worker) == alone and sizes(found.data_parallel) == together
    assert all(group.size <= LARGEST for group in found.single_worker)
    every = found.single_worker + found.data_parallel[:1]  # what must have its place at the same time
    assert sum(g.size * g.cpus for g in every) <= cpus and sum(g.size * g.gpus for g in every) <= gpus


def test_a_shared_pretraining_on_two_cores_takes_one_of_them():
    found = allocate(2, 0, None, 0.0, 2)
    assert found.single_worker == (Group(),) and found.data_parallel == (Group(size=2, cpus=0.5),)


@pytest.mark.parametrize(
    ("cpus", "gpus", "workers", "gpus_per_worker", "sharing", "told"),
    [
        (0, 0, None, 0.0, 1, "no workers fit on the cluster, which has 0 CPUs .*; free some, or add nodes"),
        (4, 0, 9, 0.0, 1, "9 workers fit on the cluster.*; ask for at most 4"),
        (64, 2, None, 1.0, 2, "no workers fit .* 2 GPUs free, beside a pretraining of 2 workers; free some"),
    ],
)
def test_what_does_not_fit_is_refused(cpus, gpus, workers, gpus_per_worker, sharing, told):
    with pytest.raises(ValueError, match=told):
        allocate(cpus, gpus, workers, gpus_per_worker, sharing)
