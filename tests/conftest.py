"""What the tests share: one Ray cluster, a small problem, a small architecture."""

import os
import sys
from pathlib import Path

os.environ.setdefault("RAY_AUTH_MODE", "disabled")
os.environ.setdefault("RAY_TRAIN_HEALTH_CHECK_INTERVAL_S", "0.5")
sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))

import pytest
import ray
import torch
from bucket_servers import azurite, gcs_server, s3_server

torch.set_num_threads(1)


@pytest.fixture(scope="session")
def cluster():
    """A Ray cluster of two cores on this machine."""
    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths}},
    )
    yield
    ray.shutdown()


def _found(kind, paths):
    """A server of buckets, which this process's environment leads to."""
    with kind(paths.mktemp("buckets")) as server, pytest.MonkeyPatch.context() as patch:
        for name, value in server.environment.items():
            patch.setenv(name, value)
        yield server


@pytest.fixture(scope="session")
def s3(tmp_path_factory):
    """An S3-compatible server, which this process's environment leads to."""
    yield from _found(s3_server, tmp_path_factory)


@pytest.fixture(scope="session")
def gcs(tmp_path_factory):
    """A server that speaks as Google's, likewise."""
    yield from _found(gcs_server, tmp_path_factory)


@pytest.fixture(scope="session")
def azure(tmp_path_factory):
    """Azurite, likewise."""
    yield from _found(azurite, tmp_path_factory)


@pytest.fixture
def bucket(s3, tmp_path):
    """The URL of a place in it that nobody has used."""
    return s3.url(tmp_path.name)


@pytest.fixture(scope="session")
def machines():
    """A cluster whose autoscaler starts up to two machines of one core, and nothing but its head at first."""
    import autoscaling

    with autoscaling.cluster(worker=({"CPU": 1}, 2)) as cluster:
        yield cluster


@pytest.fixture(scope="session")
def submitted(machines, tmp_path_factory):
    """A smoke study that was submitted to it and left alone, from no machines to no machines again."""
    import autoscaling

    return autoscaling.watched(machines, tmp_path_factory.mktemp("submitted") / "runs")
