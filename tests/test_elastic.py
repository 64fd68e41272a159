"""A pretraining that several nodes share goes on with those that are left, from its last checkpoint."""

import json
import subprocess
import sys
from dataclasses import dataclass, replace
from pathlib import Path

import pytest
from faults import two_nodes
from processes import PATIENCE, environment
from servers import wait_until
from test_jobs import BUDGET, PRETRAINING, write
from toy import Moments

from sibcl_ray.cluster.workers import Group, Resources, Workers
from sibcl_ray.data.dataset import SURROGATE, UNLABELLED, Dataset
from sibcl_ray.learning import checkpoint, distributed
from sibcl_ray.learning.jobs import PretrainJob
from sibcl_ray.storage.store import Store

EPOCHS = 300


@dataclass(frozen=True, kw_only=True)
class Restless(PretrainJob):
    """Keeps a checkpoint of every epoch, and says with which it began and how many workers there were."""

    def compute(self, device, report):
        checkpoint.EVERY, checkpoint.SHARE = 0.0, 1e9
        fractions = []

        def note(fraction, loss):
            fractions.append(fraction)
            report(fraction, loss)

        return {**super().compute(device, note), "first": fractions[0], "workers": distributed.size()}


def lose_a_node(folder):
    """On a cluster of its own: a pretraining of two nodes, one of which is lost; the record."""
    import ray

    from sibcl_ray.storage.leases import Session

    dataset = Dataset(Moments(), 0, Store(folder))
    for role in (UNLABELLED, SURROGATE):
        write(dataset, role)
    job = Restless(dataset=dataset, unlabelled=70, surrogate=BUDGET, configuration=replace(PRETRAINING, epochs=EPOCHS))
    paths = f"{Path(__file__).parent}:{Path(__file__).parents[1]}"
    with two_nodes() as nodes:
        ray.init(address=nodes.address, log_to_driver=False, runtime_env={"env_vars": {"PYTHONPATH": paths}})
        shared = Resources(single_worker=(Group(cpus=0.1),), data_parallel=(Group(size=2, cpus=0.6),))
        with Session(dataset.store) as session, Workers(shared, "scratch", session.claims) as workers:
            answer = workers.submit(job)
            wait_until(lambda: dataset.store.exists(f"checkpoints/{job.key}"), PATIENCE)
            nodes.remove_node(list(nodes.worker_nodes)[1], allow_graceful=False)
            record = ray.get(answer)
        ray.shutdown()
    return {name: record[name] for name in ("state", "first", "workers")}


@pytest.mark.thorough
def test_a_shared_pretraining_goes_on_with_fewer_workers(tmp_path):
    script = f"import json, test_elastic; print(json.dumps(test_elastic.lose_a_node({str(tmp_path)!r})))"
    run = subprocess.run(
        [sys.executable, "-c", script],
        cwd=Path(__file__).parent,
        env=environment(PYTHONPATH=f"{Path(__file__).parent}:{Path(__file__).parents[1]}"),
        capture_output=True,
        text=True,
        timeout=3 * PATIENCE,  # with Ray clusters of two other tests beside it
    )
    assert not run.returncode, run.stderr
    record = json.loads(run.stdout.splitlines()[-1])
    assert (record["state"], record["workers"]) == ("done", 1) and 1 / EPOCHS < record["first"] < 1
