"""The worker groups, on a real Ray cluster: jobs run once, after what they need, and cheaply."""

import time

import pytest
import ray
from toy import ARCHITECTURE, Moments
from toy_jobs import Die, Fail, Sleep, Together

from sibcl_ray.cluster.generate import generate
from sibcl_ray.cluster.workers import Group, Resources, Workers
from sibcl_ray.data.dataset import SURROGATE, UNLABELLED, Dataset
from sibcl_ray.learning.jobs import PretrainJob
from sibcl_ray.learning.training import Pretraining
from sibcl_ray.storage.leases import Session
from sibcl_ray.storage.store import Store

ROOM_FOR_WIDE = Resources(single_worker=(Group(),), data_parallel=(Group(size=2, cpus=0.5),))


@pytest.fixture(scope="module")
def dataset(cluster, tmp_path_factory):
    return Dataset(Moments(), 0, Store(str(tmp_path_factory.mktemp("workers"))))


@pytest.fixture(scope="module")
def session(dataset):
    with Session(dataset.store) as session:
        yield session


@pytest.fixture(scope="module")
def workers(dataset, session):
    with Workers(ROOM_FOR_WIDE, "scratch", session.claims) as group:
        yield group


def test_a_job_costs_less_than_half_a_second_beyond_its_own_time(workers, dataset):
    ray.get(workers.submit(Sleep(dataset=dataset, number=-1)))  # the group is up
    jobs = [Sleep(dataset=dataset, number=i, seconds=0.05) for i in range(15)]
    start = time.monotonic()
    records = ray.get([workers.submit(job) for job in jobs])
    overhead = (time.monotonic() - start) / len(jobs) - 0.05
    assert len({record["process"] for record in records}) == 1
    assert overhead < 0.5


def test_equal_jobs_run_once(workers, dataset):
    job = Sleep(dataset=dataset, number=100, seconds=0.2)
    records = ray.get([workers.submit(Sleep(dataset=dataset, number=100, seconds=0.2)) for _ in range(5)])
    assert len({record["began"] for record in records}) == 1
    stored = dataset.store.read_record(job.record_name)
    assert stored["state"] == "done" and stored["job"] == job.about()


def test_a_job_waits_for_what_it_requires(workers, dataset):
    first = Sleep(dataset=dataset, number=200, seconds=0.3)
    second = Sleep(dataset=dataset, number=201, after=(first,))
    record = ray.get(workers.submit(second))
    assert record["started"] >= dataset.store.read_record(first.record_name)["finished"]


def test_a_failure_is_recorded_and_fails_what_needs_it(workers, dataset):
    bad = Fail(dataset=dataset, number=300)
    record = ray.get(workers.submit(bad))
    assert record["state"] == "failed" and "no room for the whole lattice" in record["reason"]
    dependent = ray.get(workers.submit(Sleep(dataset=dataset, number=301, after=(bad,))))
    assert dependent["state"] == "failed" and "no room for the whole lattice" in dependent["reason"]
    assert ray.get(workers.submit(Sleep(dataset=dataset, number=302)))["state"] == "done"


@pytest.mark.thorough
def test_a_wide_job_has_a_process_group_of_its_own_beside_the_warm_one(workers, dataset):
    wide = workers.submit(Together(dataset=dataset, number=400))
    narrow = workers.submit(Sleep(dataset=dataset, number=401))
    assert ray.get(narrow)["state"] == "done"
    record = ray.get(wide)
    assert (record["state"], record["sum"], record["size"]) == ("done", 1, 2)
    again = ray.get(workers.submit(Together(dataset=dataset, number=402)))
    assert again["began"] - record["finished"] < 5, "the group takes one job after another"


@pytest.mark.thorough
def test_a_pretraining_spans_two_workers(workers, dataset, session):
    list(generate(dataset, dataset.missing({UNLABELLED: 50, SURROGATE: 50}), session.claims))
    job = PretrainJob(
        dataset=dataset,
        unlabelled=50,
        surrogate=50,
        configuration=Pretraining(
            architecture=ARCHITECTURE,
            contrastive=True,
            surrogate_labels=True,
            views=(("translation", 0.5),),
            contrastive_batch=50,
            epochs=2,
        ),
    )
    record = ray.get(workers.submit(job))
    assert record["state"] == "done", record["reason"]
    assert job.weights()


def test_jobs_of_a_dead_worker_are_taken_up_again(workers, dataset):
    record = ray.get(workers.submit(Die(dataset=dataset, number=500, deaths=1)), timeout=120)
    assert record["state"] == "done"
    assert len(dataset.store.names("deaths")) == 1
