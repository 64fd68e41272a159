"""How many workers there is room for on a cluster, in which groups."""

import math

import ray

from sibcl_ray.cluster.internals import scales
from sibcl_ray.cluster.workers import LARGEST, Group, Resources


def fit_resources(workers: int | None, gpus_per_worker: float | None, sharing: int) -> Resources:
    """The workers that the connected cluster has room for.

    Args:
        workers: that run jobs each for itself; None for as many as there is room for.
        gpus_per_worker: None for one if the cluster has GPUs, else none.
        sharing: workers that a pretraining is shared by, with a whole GPU each, or 1.

    Raises:
        ValueError: the cluster does not have enough, or has to be told; in one line.
    """
    free = ray.available_resources()
    if gpus_per_worker is None:
        gpus_per_worker = 1.0 if ray.cluster_resources().get("GPU", 0.0) else 0.0
    if not scales():
        return allocate(free.get("CPU", 0.0), free.get("GPU", 0.0), workers, gpus_per_worker, sharing)
    if workers is None:
        raise ValueError(
            "the cluster scales and does not tell how far; say with --workers how many workers it may start, "
            "and with --gpus-per-worker what GPUs each has"
        )
    return allocate(math.inf, math.inf, workers, gpus_per_worker, sharing)


def allocate(cpus: float, gpus: float, workers: int | None, gpus_per_worker: float, sharing: int) -> Resources:
    """Groups on so many CPUs and GPUs, which are infinite where the workers are as many as the cluster will start.

    Fine-tunes never take all of it where pretrainings have groups of their own; those may, and wait until groups
    that are idle have left.
    """
    # A pretraining fills the GPU that several fine-tunes share, if there is more than one.
    apart = sharing > 1 or (0 < gpus_per_worker < 1 and gpus >= 2)
    beside = sharing if apart else 0
    if gpus_per_worker:
        room = min((gpus - beside) / gpus_per_worker, cpus - beside) + 1e-6
    else:
        # A shared pretraining on a small machine shares one core as well.
        room = cpus - (beside if cpus > beside else min(beside, 1))
    wanted = workers or int(room)
    if room < 1 or wanted > room:
        raise ValueError(
            f"{wanted if workers else 'no'} worker{'s' * (wanted != 1)} fit{'s' * (wanted == 1)} on the cluster, "
            f"which has {cpus:g} CPUs and {gpus:g} GPUs free"
            + (f", beside a pretraining of {beside} workers" if beside else "")
            + (f"; ask for at most {int(room)}" if room >= 1 else "; free some, or add nodes")
        )
    groups = -(-wanted // LARGEST)
    alone = tuple(Group(size=wanted // groups + (i < wanted % groups), gpus=gpus_per_worker) for i in range(groups))
    if not apart:
        return Resources(single_worker=alone)
    if gpus_per_worker:
        shared = (Group(size=sharing, gpus=1.0),) * max(1, int(min(gpus, wanted * gpus_per_worker) // sharing))
    else:
        shared = (Group(size=sharing, cpus=min(1.0, max((cpus - wanted) / sharing, 0.01))),)
    return Resources(single_worker=alone, data_parallel=shared)
