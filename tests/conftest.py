"""What the tests share: an environment of their own, one Ray cluster, servers of buckets."""

import atexit
import os
import re
import shutil
import signal
import sys
import tempfile
from contextlib import suppress
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parents[1] / "studies"))

import pytest

if "PYTEST_XDIST_WORKER" not in os.environ:  # else inherited
    caller = re.compile("ray_|mlflow_|sibcl_ray_|aws_|google_|azure_|storage_emulator|(https?|all)_proxy", re.I)
    for variable in filter(caller.match, list(os.environ)):
        del os.environ[variable]
    PLACE = tempfile.mkdtemp(prefix="tests-")  # short, for Ray's sockets
    OWNER = os.getpid()  # not a fork; at the very end, as multiprocessing has a folder in it
    atexit.register(lambda: os.getpid() == OWNER and shutil.rmtree(PLACE, ignore_errors=True))
    os.chmod(PLACE, 0o711)  # PostgreSQL's programs run as another user
    os.environ.setdefault("PYTEST_DEBUG_TEMPROOT", tempfile.gettempdir())  # pytest's own folders stay for a while
    os.environ.pop("PYTHONDONTWRITEBYTECODE", None)  # a hundred processes would each compile the library
    sys.dont_write_bytecode = False
    os.environ |= {"TMPDIR": PLACE, "RAY_TMPDIR": PLACE, "RAY_AUTH_MODE": "disabled"}
    os.environ["HYPOTHESIS_STORAGE_DIRECTORY"] = PLACE
    os.environ |= {"RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.5", "OPENBLAS_NUM_THREADS": "1"}
    tempfile.tempdir = None

import psutil
import ray
import torch
from bucket_servers import azurite, gcs_server, s3_server
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

if signal.getsignal(signal.SIGINT) == signal.SIG_IGN:  # by a shell that runs the tests in the background
    signal.signal(signal.SIGINT, signal.default_int_handler)
torch.set_num_threads(1)
settings.register_profile("the same every time", derandomize=True)
settings.load_profile("the same every time")


def pytest_unconfigure():
    """Leave nothing behind, also after Ctrl-C: whatever tests have started has inherited their environment."""
    if "sibcl_ray.data.sandbox" in sys.modules:
        sys.modules["sibcl_ray.data.sandbox"].end()
    if "PYTEST_XDIST_WORKER" in os.environ:
        return
    ours = [p for p in psutil.process_iter(["environ"]) if (p.info["environ"] or {}).get("TMPDIR") == PLACE]
    for process in psutil.wait_procs(ours, timeout=3)[1]:
        with suppress(psutil.NoSuchProcess):
            print(f"left behind: {process.pid} {' '.join(process.cmdline())[:150]}")
            process.kill()


SHARING = (  # groups of modules whose tests share what is long in the making; each group runs in one process
    (
        "test_workers",
        "test_bad_input",
        "test_generate",
        "test_own",
        "test_api",
        "test_sandbox",
    ),  # a cluster
    ("test_magnet", "test_problems", "test_versions"),  # ground states
)
ONE_OF = {  # of these modules one test uses the cluster; the others do not wait for it
    "test_s3": "test_asynchronous_actors_use_a_store_from_threads",
    "test_search": "test_tune_runs_all_searches_in_one_experiment",
}


def pytest_collection_modifyitems(items):
    """Those that share a cluster begin, as one process runs them all, and then modules with slow tests."""
    slow = {item.module.__name__ for item in items if item.get_closest_marker("slow")}
    first = {name: place for place, name in enumerate(SHARING[0])}
    items.sort(key=lambda item: first.get(item.module.__name__, len(first) + (item.module.__name__ not in slow)))
    for item in items:
        shares = {"cluster"} & set(item.fixturenames)
        known = item.module.__name__ in sum(SHARING, ()) or item.name == ONE_OF.get(item.module.__name__)
        assert not shares or known, f"{item.nodeid} starts a cluster of its own"


class Modules(LoadScopeScheduling):
    """Gives a process a module at a time, or modules that share."""

    def _split_scope(self, nodeid):
        module, name = Path(nodeid.split("::")[0]).stem, nodeid.split("::")[-1]
        if name == ONE_OF.get(module):
            return SHARING[0][0]
        return next((group[0] for group in SHARING if module in group), module)


def pytest_xdist_make_scheduler(config, log):
    return Modules(config, log)


@pytest.fixture(scope="session")
def cluster():
    """A Ray cluster of two cores on this machine."""
    from sibcl_ray.cluster.connection import INTERPRETER, NOBODY

    paths = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    ray.init(
        address="local",
        num_cpus=2,
        include_dashboard=False,
        logging_level="ERROR",
        log_to_driver=False,
        runtime_env={"env_vars": {"PYTHONPATH": paths, "RAY_API_SERVER_ADDRESS": NOBODY}, **INTERPRETER},
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
