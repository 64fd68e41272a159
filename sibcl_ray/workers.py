"""Ray Train workers that run jobs: one warm group that stays up, and a group of its own for each wide job.

A Train run costs seconds to start, a fine-tune may cost less. So the workers of the warm group take job
after job from a queue; a job waits there, never in a worker, until the jobs it requires are done.
A pretraining of several workers gets a Train run to itself, beside the warm group.
"""

from __future__ import annotations

import os
import threading
import time
import uuid
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from types import TracebackType
from typing import Any

import ray
from ray._private.state import state as ray_state  # the public API does not tell who made a placement group
from ray.core.generated.gcs_pb2 import PlacementGroupTableData  # type: ignore[attr-defined]
from ray.util.placement_group import PlacementGroup, remove_placement_group
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from sibcl_ray.claims import Claims
from sibcl_ray.jobs import Job, execute
from sibcl_ray.queue import NARROW, WIDE, JobQueue, Unfinished
from sibcl_ray.records import ATTEMPTS, Record
from sibcl_ray.store import StoreError


@dataclass(frozen=True, kw_only=True)
class Resources:
    """What the study may use of the cluster."""

    workers: int = 2  # processes of the warm group
    gpus_per_worker: float = 0.0  # of every Train worker
    cpus_per_worker: float = 1.0  # of every worker of the warm group
    wide_cpus_per_worker: float = 1.0  # of every worker of a pretraining that spans several


def _nodes() -> set[str]:
    return {node["NodeID"] for node in ray.nodes() if node["Alive"]}


def _free_what_the_dead_reserved() -> None:
    """Remove the placement groups of Train controllers that were killed; Ray does so when the driver ends.

    Train's own cleaner needs a dashboard, which a cluster that was started by a driver does not have.
    """
    job, nobody = ray.get_runtime_context().get_job_id(), ray.ActorID.nil().binary()
    table = ray_state._connect_and_get_accessor().get_placement_group_table()
    for entry in map(PlacementGroupTableData.FromString, table):
        by_actor = entry.creator_job_id.hex() == job and entry.creator_actor_id not in (b"", nobody)
        if by_actor and entry.creator_actor_dead and entry.state != PlacementGroupTableData.REMOVED:
            remove_placement_group(PlacementGroup(ray.PlacementGroupID(entry.placement_group_id)))


def _gone(error: ray.exceptions.RayError) -> str:
    return f"a part of Ray that the study needs has died: {' '.join(str(error).split())[:300]}"


def _throttled(queue: Any, key: str, interval: float = 0.5) -> Callable[[float, float], None]:
    last = 0.0

    def report(fraction: float, loss: float) -> None:
        nonlocal last
        if time.monotonic() - last > interval:
            last = time.monotonic()
            queue.progress.remote(key, fraction, loss)

    return report


def _serve(configuration: dict[str, Any]) -> None:
    """The train function of the warm group: take jobs until there are none."""
    import ray.train.torch

    queue = configuration["queue"]
    me = configuration["group"], ray.train.get_context().get_world_rank()
    device = ray.train.torch.get_device()
    _one_thread(device)
    while (job := ray.get(queue.next.remote(*me, NARROW))) is not None:
        try:
            record = execute(job, device, _throttled(queue, job.key))
        except StoreError as error:
            ray.get(queue.stop.remote(str(error)))
            return
        ray.get(queue.finish.remote(*me, record))


def _together(configuration: dict[str, Any]) -> Record | str:
    """The train function of one wide job: all workers of the process group run it together.

    Returns the record, or how the storage failed.
    """
    import ray.train.torch

    job, queue = configuration["job"], configuration["queue"]
    first = ray.train.get_context().get_world_rank() == 0
    device = ray.train.torch.get_device()
    _one_thread(device)
    report = _throttled(queue, job.key) if first else lambda fraction, loss: None
    try:
        return execute(job, device, report, announce=first)
    except StoreError as error:
        return str(error)


def _one_thread(device: Any) -> None:
    if device.type == "cpu":
        import torch

        torch.set_num_threads(1)  # a worker is one core; and the number of threads changes rounding


class Workers:
    """A running worker group as a context: ``submit`` jobs, read ``state``; leaving it ends the group.

    Args:
        resources: size and needs of the groups.
        scratch: an absolute folder for Ray Train's own files.
        claims: of the driver's session.
    """

    def __init__(self, resources: Resources, scratch: str, claims: Claims) -> None:
        # Ray Train asks its workers for their health every two seconds, and only then sees them end.
        os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
        self.resources = resources
        self.scratch = scratch
        # Without it the driver is worth nothing, so it lives on the same node; Ray takes a soft wish lightly.
        here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
        actor = ray.remote(JobQueue).options(num_cpus=0, max_concurrency=10_000, scheduling_strategy=here)
        self.queue: Any = actor.remote(claims)
        self._threads = [
            threading.Thread(target=self._keep, args=(serve,), daemon=True) for serve in (self._warm, self._wide)
        ]
        self.failure: str | None = None
        self._closing = False

    def __enter__(self) -> Workers:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._closing = True
        self.stop("the study has ended")
        if kind is None:  # else nobody should wait: the driver's end takes all its processes along
            for thread in self._threads:
                thread.join(timeout=30)

    def submit(self, job: Job, priority: int = 0) -> ray.ObjectRef:
        """A reference to the job's record."""
        return self.queue.submit.remote(job, priority)

    def state(self) -> dict[str, Any]:
        """See `JobQueue.state`."""
        return ray.get(self.queue.state.remote())

    def stop(self, reason: str) -> None:
        """No job is begun any more; whoever waits for one gets an Unfinished."""
        with suppress(ray.exceptions.RayError):
            ray.get(self.queue.stop.remote(reason))

    def stopped(self) -> str | None:
        """Why no job is begun any more, if so."""
        try:
            return self.failure or ray.get(self.queue.stopped.remote())
        except ray.exceptions.RayError as error:
            return _gone(error)

    def check(self) -> None:
        """Raises Unfinished with what made the work stop, if it did."""
        if reason := self.stopped():
            raise Unfinished(reason)

    def _keep(self, serve: Callable[[str], None]) -> None:
        """Serve a lane until the queue is closed; start again with what is left whenever workers are lost."""
        fruitless = 0
        while True:
            nodes, group = _nodes(), uuid.uuid4().hex
            try:
                serve(group)
                return
            except Exception as error:
                reason = " ".join(str(error).split())[:1000]
                blamed = list(getattr(error, "worker_failures", ()))
            if self._closing:
                return
            try:
                _free_what_the_dead_reserved()
                whole = nodes <= _nodes()  # if not, the node's loss is reason enough
                began = ray.get(self.queue.lost.remote(group, blamed if whole else None))
                fruitless = 0 if began else fruitless + 1
                if fruitless == ATTEMPTS:
                    self.stop(f"the worker group failed {ATTEMPTS} times before it asked for a job: {reason}")
                    return
            except ray.exceptions.RayError as error:
                self.failure = _gone(error)
                return

    def _warm(self, group: str) -> None:
        self._train(_serve, {}, self._size(), self.resources.cpus_per_worker, group)

    def _size(self) -> int:
        """How many workers of the warm group the cluster has room for at most; fewer after the loss of a node."""
        total = ray.cluster_resources()
        needs = {"CPU": self.resources.cpus_per_worker, "GPU": self.resources.gpus_per_worker}
        room = min(int(total.get(name, 0.0) / amount) for name, amount in needs.items() if amount)
        return max(1, min(self.resources.workers, room))

    def _wide(self, group: str) -> None:
        while (job := ray.get(self.queue.next.remote(group, 0, WIDE))) is not None:
            cpus = self.resources.wide_cpus_per_worker
            record = self._train(_together, {"job": job}, job.workers, cpus, f"{group}-{job.key}")
            if isinstance(record, str):
                self.stop(record)
            else:
                ray.get(self.queue.finish.remote(group, 0, record))

    def _train(self, function: Callable, configuration: dict[str, Any], workers: int, cpus: float, group: str) -> Any:
        from ray.train import FailureConfig, RunConfig, ScalingConfig
        from ray.train.torch import TorchTrainer

        needs: dict[str, float] = {"CPU": cpus}
        if self.resources.gpus_per_worker:
            needs["GPU"] = self.resources.gpus_per_worker
        trainer: Any = TorchTrainer(
            function,
            train_loop_config={"queue": self.queue, "group": group, **configuration},
            scaling_config=ScalingConfig(
                num_workers=workers, use_gpu=bool(self.resources.gpus_per_worker), resources_per_worker=needs
            ),
            run_config=RunConfig(
                name=group,  # a new one each time: there is nothing to resume, the jobs are in the queue
                storage_path=self.scratch,
                # A group that dies is started again here, not by Train, which would not let go of a lost node.
                failure_config=FailureConfig(max_failures=0, controller_failure_limit=ATTEMPTS),  # type: ignore[call-arg]
            ),
        )
        return trainer.fit().return_value
