"""What the tests share: an environment of their own, one Ray cluster, servers of buckets."""

import os
import shutil
import sys
import tempfile
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))

import pytest

if "PYTEST_XDIST_WORKER" not in os.environ:  # else inherited
    for variable in list(os.environ):
        if variable.startswith(("RAY_", "MLFLOW_", "SIBCL_RAY_", "AWS_", "GOOGLE_", "AZURE_", "STORAGE_EMULATOR")):
            del os.environ[variable]
        elif variable.lower() in ("http_proxy", "https_proxy", "all_proxy"):  # servers of tests are on this machine
            del os.environ[variable]
    PLACE = tempfile.mkdtemp(prefix="tests-")  # short, for Ray's sockets
    os.chmod(PLACE, 0o711)  # PostgreSQL's programs run as another user
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # pytest's own folders stay for a while
    os.environ |= {"TMPDIR": PLACE, "RAY_TMPDIR": PLACE, "RAY_AUTH_MODE": "disabled"}
    os.environ |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5"}
    tempfile.tempdir = None

import ray
import torch
from bucket_servers import azurite, gcs_server, s3_server

torch.set_num_threads(1)


def pytest_unconfigure():
    if "PYTEST_XDIST_WORKER" not in os.environ:
        shutil.rmtree(PLACE, ignore_errors=True)


def pytest_collection_modifyitems(items):
    """What shares a cluster runs in one process, and so does a module; those with slow tests begin."""

    def group(item):
        shared = {"machines", "submitted"} & set(item.fixturenames) and "machines"
        return shared or ("cluster" if "cluster" in item.fixturenames else item.module.__name__)

    slow = {group(item) for item in items if item.get_closest_marker("slow")}
    items.sort(key=lambda item: (group(item) not in slow, group(item)))
    for item in items:
        item.add_marker(pytest.mark.xdist_group(group(item)))


@pytest.fixture(scope="session")
def cluster():
    """A Ray cluster of two cores on this machine."""
    from sibcl_ray.run import NOBODY

    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths, "RAY_API_SERVER_ADDRESS": NOBODY}},
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
