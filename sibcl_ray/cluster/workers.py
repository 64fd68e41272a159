"""Groups of Ray Train workers that stay up and run job after job from a queue.

A Train run costs seconds to start, a fine-tune may cost less; so a group is a Train run that takes jobs until it
has been idle for long. Workers of most groups take jobs each for itself; those of some run one pretraining together.
Groups are small, so that the loss of a node costs little; and every group that has work asks the cluster for its
place at once, so that an autoscaler sees the whole demand.
"""

import itertools
import os
import threading
import time
import uuid
from contextlib import nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any, Self

import ray
import ray.train.torch
import torch
from ray.train import FailureConfig, RunConfig, ScalingConfig, WorkerGroupError
from ray.train.backend import Backend
from ray.train.torch import TorchConfig
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sibcl_ray.cluster.internals import Trainer, free_what_the_dead_reserved, scales
from sibcl_ray.cluster.scheduler import DATA_PARALLEL, SINGLE_WORKER, JobQueue, Unfinished
from sibcl_ray.learning import distributed
from sibcl_ray.learning.jobs import Job, execute
from sibcl_ray.messages import one_line
from sibcl_ray.storage.leases import Claims
from sibcl_ray.storage.records import ATTEMPTS
from sibcl_ray.storage.store import StoreError

LARGEST = 8  # workers of a group: they are lost together, and each group has a process that looks after it
PATIENCE = 3600.0  # seconds that a cluster which scales may take to find a group's nodes
NOTICED = 30.0  # seconds in which Ray notices that a node is gone; those that worked with it may know at once


@dataclass(frozen=True, kw_only=True)
class Group:
    """A number of workers that start together, and what each of them needs."""

    size: int = 1
    cpus: float = 1.0
    gpus: float = 0.0

    @property
    def needs(self) -> dict[str, float]:
        """Of every worker, as Ray calls it."""
        return {"CPU": self.cpus} | ({"GPU": self.gpus} if self.gpus else {})


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the study may use of the cluster; a group is started when those before it have no time for its work."""

    single_worker: tuple[Group, ...] = (Group(size=2),)  # whose workers take jobs each for itself
    data_parallel: tuple[Group, ...] = ()  # whose workers share pretrainings; none: these are jobs like all others

    @property
    def workers(self) -> int:
        """How many jobs may run side by side, besides those that are shared."""
        return sum(group.size for group in self.single_worker)


def _nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _are_there(nodes: set[str], seconds: float) -> bool:
    """Whether nodes are there, and stay so for a while."""
    until = time.monotonic() + seconds
    while (there := nodes <= _nodes()) and time.monotonic() < until:
        time.sleep(1.0)
    return there


def _gone(error: ray.exceptions.RayError) -> str:
    return f"a part of Ray that the study needs has died: {one_line(error, 300)}"


def _serve(configuration: dict[str, Any]) -> None:
    """The train function of a group: take jobs until there are none.

    Where workers share each job, one that fails ends the group, and so frees the others, which may wait for its part.
    Whether the job is to blame is found out by those who know which nodes are left.
    """
    queue, group, lane = (configuration[name] for name in ("queue", "group", "lane"))
    together, rank, turns = lane == DATA_PARALLEL, ray.train.get_context().get_world_rank(), itertools.count()
    announces = rank == 0 or not together
    device = ray.train.torch.get_device()
    if device.type == "cpu":
        torch.set_num_threads(1)  # a worker is one core; and the number of threads changes rounding

    shown = 0.0

    def report(key: str, fraction: float, loss: float) -> None:
        nonlocal shown
        if announces and time.monotonic() - shown > 0.5:
            shown = time.monotonic()
            queue.progress.remote(key, fraction, loss)

    def next_job() -> Job | None:
        asked = queue.next_together.remote(group, next(turns)) if together else queue.next.remote(group, rank, lane)
        return ray.get(asked)

    with distributed.process_group() if together else nullcontext():
        while (job := next_job()) is not None:
            try:
                record = execute(job, device, partial(report, job.key), announces)
            except StoreError as error:
                ray.get(queue.cut_off.remote(group, str(error)))
                if together:
                    raise
                return
            if announces:
                ray.get(queue.finish.remote(group, rank, record))


def _without_process_group() -> TorchConfig:
    """For workers that work alone: the store of a process group takes connections from any machine."""

    class Apart(Backend):  # known here alone, so that Ray's own processes get it without the library
        share_cuda_visible_devices = True

    class Config(TorchConfig):
        backend_cls = Apart  # type: ignore[assignment]

    return Config()


@dataclass
class _Slot:
    """A place for a group, which may be started again and again."""

    group: Group
    lane: str
    beyond: int  # it is started for more jobs of its lane than these
    size: int  # number of workers with which it runs, or starts


class Workers:
    """The groups of workers as a context: ``submit`` jobs; leaving it ends the groups.

    ``scratch`` is a folder for Ray Train's own files in the store of the driver's session, whose ``claims`` are used.
    """

    def __init__(self, resources: Resources, scratch: str, claims: Claims) -> None:
        # Ray Train asks its workers for their health every two seconds, and only then sees them end.
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
        self._scales = scales()
        if self._scales:
            os.environ.setdefault("RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S", str(PATIENCE))
        else:  # machines that are not lent are not called back
            os.environ.setdefault("RAY_TRAIN_ENABLE_PREEMPTION_WATCHER", "0")
        self._file_system, self._scratch = claims.store.arrow(scratch)
        # Without it the driver is worth nothing, so it lives on the same node; Ray takes a soft wish lightly.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(JobQueue).options(num_cpus=0, max_concurrency=10_000, scheduling_strategy=here)
        self.queue: Any = actor.remote(claims, bool(resources.data_parallel))
        self._slots, before = list[_Slot](), 0
        for group in resources.single_worker:  # the first is wanted soon in any case
            self._slots.append(_Slot(group, SINGLE_WORKER, before or -1, group.size))
            before += group.size
        for before, group in enumerate(resources.data_parallel):
            self._slots.append(_Slot(group, DATA_PARALLEL, before, group.size))
        self._threads = [threading.Thread(target=self._keep, args=(slot,), daemon=True) for slot in self._slots]
        self._failure: str | None = None
        self._closing = False

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, kind: object, *error: object) -> None:
        self._closing = True
        self.stop("the study has ended")
        if kind is None:  # else do not wait: the driver's end takes all its processes along
            deadline = time.monotonic() + 30
            for thread in self._threads:  # some may still wait for their nodes
                thread.join(timeout=max(0.1, deadline - time.monotonic()))

    def submit(self, job: Job, priority: int = 0) -> ray.ObjectRef:
        """A reference to the job's record."""
        return self.queue.submit.remote(job, priority)

    def stop(self, reason: str) -> None:
        """Begin no more jobs; callers that wait for one get an Unfinished."""
        with suppress(ray.exceptions.RayError):
            ray.get(self.queue.stop.remote(reason))

    def stopped(self) -> str | None:
        """Why no job is begun any more, if so."""
        try:
            return self._failure or ray.get(self.queue.stopped.remote())
        except ray.exceptions.RayError as error:
            return _gone(error)

    def check(self) -> None:
        """Raises Unfinished with what made the work stop, if it did."""
        if reason := self.stopped():
            raise Unfinished(reason)

    def _keep(self, slot: _Slot) -> None:
        """Have a group serve its lane whenever there is more work than those before it can do."""
        fruitless, whole = 0, True
        try:
            while ray.get(self.queue.wanted.remote(slot.lane, slot.beyond)):
                nodes, name = _nodes(), uuid.uuid4().hex
                slot.size = self._size(slot, whole)
                try:
                    self._train(slot, name)
                    whole = True  # it was sent home, for want of work
                    continue
                except WorkerGroupError as error:
                    reason, blamed = one_line(error, 1000), list(error.worker_failures)
                except Exception as error:  # of Train itself, or of a machine that was called back
                    reason, blamed = one_line(error, 1000), []
                if self._closing:
                    return
                free_what_the_dead_reserved()
                whole = _are_there(nodes, NOTICED if slot.lane == DATA_PARALLEL else 0.0)  # if not, reason enough
                at_work = ray.get(self.queue.lost.remote(name, blamed if whole else None, reason))
                fruitless = 0 if at_work and (blamed or not whole) else fruitless + 1
                if fruitless == ATTEMPTS:
                    what = "by no job's fault" if at_work else "before it asked for a job"
                    self.stop(f"the worker group failed {ATTEMPTS} times {what}: {reason}")
        except ray.exceptions.RayError as error:
            self._failure = _gone(error)
        except Exception as error:  # an error in this thread would be lost, and all would wait
            self._failure = f"a group of workers cannot be kept: {type(error).__name__}: {error}"
            raise

    def _size(self, slot: _Slot, whole: bool) -> int:
        """How many workers a group starts with.

        A cluster that scales replaces what it lost, and a group waits for that; but one that shares its work goes
        on with what is there now. On a cluster that does not, no group asks for what there is no room for.
        """
        group = slot.group
        if self._scales and (whole or slot.lane == SINGLE_WORKER):
            return group.size
        left = dict(ray.available_resources() if self._scales else ray.cluster_resources())
        for other in self._slots:
            if other is not slot and not self._scales:
                left |= {name: left.get(name, 0.0) - other.size * n for name, n in other.group.needs.items()}
        room = min(int(left.get(name, 0.0) / amount + 1e-6) for name, amount in group.needs.items() if amount)
        return max(1, min(group.size, room))

    def _train(self, slot: _Slot, name: str) -> None:
        """Run a group until there is no more work for it."""
        together, group = slot.lane == DATA_PARALLEL, slot.group
        Trainer(
            _serve,
            train_loop_config={"queue": self.queue, "group": name, "lane": slot.lane},
            torch_config=TorchConfig() if together else _without_process_group(),
            scaling_config=ScalingConfig(
                num_workers=slot.size, use_gpu=bool(group.gpus), resources_per_worker=group.needs
            ),
            run_config=RunConfig(
                name=name,  # a new one each time: there is nothing to resume, the jobs are in the queue
                storage_path=self._scratch,
                storage_filesystem=self._file_system,
                # A group that dies is started again here, not by Train, which would not let go of a lost node.
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=ATTEMPTS),  # type: ignore[call-arg]
            ),
        ).fit()
