"""How many workers there is room for on a cluster, in which groups."""

from __future__ import annotations

import ray
from ray._private.state import state as ray_state  # the public API does not tell what an autoscaler may add

from sibcl_ray.workers import LARGEST, Group, Resources


def fit_resources(workers: int | None, gpus_per_worker: float | None, sharing: int) -> Resources:
    """The workers that the connected cluster has room for, now or, if it scales, at its largest.

    Args:
        workers: that run jobs each for itself; None for as many as there is room for.
        gpus_per_worker: None for one if the cluster has GPUs, else none.
        sharing: workers that a pretraining is shared by, with a whole GPU each, or 1.

    Raises:
        ValueError: the cluster never has enough; in one line.
    """
    total, largest = ray.cluster_resources(), ray_state.get_max_resources_from_cluster_config()
    free, where = (largest, "at its largest") if largest else (ray.available_resources(), "free")
    cpus, gpus = free.get("CPU", 0.0), free.get("GPU", 0.0)
    if gpus_per_worker is None:
        gpus_per_worker = 1.0 if total.get("GPU", 0.0) or gpus else 0.0
    return divide(cpus, gpus, workers, gpus_per_worker, sharing, where)


def divide(
    cpus: float, gpus: float, workers: int | None, gpus_per_worker: float, sharing: int, where: str = "free"
) -> Resources:
    """Groups on so many CPUs and GPUs; the rest as in `fit_resources`.

    Fine-tunes never take all of it where pretrainings have groups of their own; those may, and wait until groups
    that are idle have left.
    """
    # A pretraining fills the GPU that several fine-tunes share, if there is more than one.
    apart = sharing > 1 or (0 < gpus_per_worker < 1 and gpus >= 2)
    beside = sharing if apart else 0
    if gpus_per_worker:
        room = int(min((gpus - beside) / gpus_per_worker, cpus - beside) + 1e-6)
    else:
        # A shared pretraining on a small machine shares one core as well.
        room = int(cpus) - (beside if cpus > beside else min(beside, 1))
    wanted = workers or room
    if room < 1 or wanted > room:
        raise ValueError(
            f"{wanted if workers else 'no'} worker{'s' * (wanted != 1)} fit{'s' * (wanted == 1)} on the cluster, "
            f"which has {cpus:g} CPUs and {gpus:g} GPUs {where}"
            + (f", beside a pretraining of {beside} workers" if beside else "")
            + (f"; ask for at most {room}" if room > 0 else "; free some, or add nodes")
        )
    groups = -(-wanted // LARGEST)
    alone = (Group(size=wanted // groups + (i < wanted % groups), gpus=gpus_per_worker) for i in range(groups))
    if gpus_per_worker:
        shared = (Group(size=sharing, gpus=1.0),) * int(gpus // sharing)
    else:
        shared = (Group(size=sharing, cpus=min(1.0, max((cpus - wanted) / sharing, 0.01))),)
    return Resources(alone=tuple(alone), together=shared if apart else ())
