"""Several hosts, of which one is cut off for a while: the study comes to the end of one on a single machine."""

import json
import shutil
import subprocess
import sys
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pandas as pd
import pytest
from bucket_servers import BUCKET, SECRET, s3_server
from hosts import network
from processes import NAME, PATIENCE, ROOT, Driver, environment
from servers import PASSWORD, postgres, wait_until

from sibcl_ray.storage.store import Store

RAY = str(Path(sys.executable).parent / "ray")
TOKEN = "planted-token"  # of the cluster
CAREFUL = {  # a node that is not heard of is dead after some seconds, not after a minute
    "RAY_health_check_initial_delay_ms": "5000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "5000",
    "RAY_health_check_failure_threshold": "3",
    "RAY_gcs_rpc_server_reconnect_timeout_s": "20",
}
NODES = """
import sys
from ray._raylet import GcsClient
nodes = GcsClient(address=sys.argv[1]).get_all_node_info(timeout=10).values()
print(sum(node.state == node.ALIVE for node in nodes))
"""
SUPERVISED = 'while true; do "$@"; sleep 1; done'
TIMES = ["seconds", "finished"]
PORT, DASHBOARD = 6379, 8265


class Cluster:
    """A head without CPUs, and workers with one each, that a supervisor starts again; behind a token."""

    def __init__(self, hosts, folder, stack):
        self.hosts, self.folder, self.stack = hosts, folder, stack
        self.variables = environment(
            RAY_AUTH_MODE="token", RAY_AUTH_TOKEN=TOKEN, RAY_TRAIN_HEALTH_CHECK_INTERVAL_S="0.5", **CAREFUL
        )
        for name in ("TMPDIR", "RAY_TMPDIR", *(n for n in self.variables if n.lower().endswith("_proxy"))):
            self.variables.pop(name, None)
        head = hosts["head"].address
        self.dashboard = f"http://{head}:{DASHBOARD}"
        self._start("head", "--head", f"--port={PORT}", "--num-cpus=0", "--dashboard-host=0.0.0.0")
        for name in ("worker-1", "worker-2"):
            self._start(name, f"--address={head}:{PORT}", "--num-cpus=1")

    def _start(self, name, *options):
        start = [RAY, "start", "--block", "--disable-usage-stats", f"--node-ip-address={self.hosts[name].address}"]
        start += ["--object-store-memory=100000000", *options]
        self.run(name, "sh", "-c", SUPERVISED, "supervisor", *start)

    def run(self, name, *command, **changes):
        """Start something on a host; its output goes to a file of that name."""
        with open(self.folder / f"{name}.log", "ab") as log:
            process = subprocess.Popen(
                self.hosts[name].command(*command), stdout=log, stderr=log, env={**self.variables, **changes}
            )
        self.stack.callback(process.wait)  # its host is the first to end
        return process

    def job(self, *command, **changes):
        """`ray job` on a host that is no part of the cluster; its exit code and what it printed."""
        process = self.run("desk", RAY, "job", *command, **changes)
        code = process.wait(3 * PATIENCE)
        return code, self.printed("desk")

    def printed(self, name):
        return (self.folder / f"{name}.log").read_text(errors="replace")

    def takes_jobs(self):
        return self.job("submit", "--address", self.dashboard, "--", "true")[0] == 0

    def nodes(self):
        """How many nodes are alive."""
        command = [sys.executable, "-c", NODES, f"{self.hosts['head'].address}:{PORT}"]
        done = subprocess.run(command, capture_output=True, text=True, env=self.variables, timeout=PATIENCE)
        return int(done.stdout) if done.returncode == 0 else done.stderr


@contextmanager
def cluster(folder):
    """The cluster and the services, which are on this machine."""
    with ExitStack() as stack:
        processes = stack.enter_context(ExitStack())  # what runs on hosts is waited for when these are gone
        hosts = stack.enter_context(network("head", "worker-1", "worker-2", "desk"))
        s3 = stack.enter_context(s3_server(folder, hosts.address))
        database = stack.enter_context(postgres(hosts.address))
        yield Cluster(hosts, folder, processes), s3, database


@pytest.mark.thorough
def test_a_host_that_is_cut_off_changes_nothing_in_the_matrix(tmp_path, monkeypatch):
    desk = tmp_path / "desk"  # what would be uploaded
    for name in ("sibcl_ray", "studies"):
        shutil.copytree(ROOT / name, desk / name, ignore=shutil.ignore_patterns("__pycache__", "*.png"))
    with cluster(tmp_path) as (ray, s3, database):
        for name, value in s3.environment.items():
            monkeypatch.setenv(name, value)
        store = Store(f"s3://{BUCKET}/hosts")
        shutil.copytree(desk, ray.hosts["desk"].path("/tmp/desk"))
        wait_until(ray.takes_jobs, PATIENCE, lambda: ray.printed("head") + ray.printed("desk"))
        wait_until(lambda: ray.nodes() == 3, PATIENCE, lambda: ray.printed("worker-1"))

        submit = ["submit", "--address", ray.dashboard, "--working-dir", "/tmp/desk"]
        # Ray prints the command, so that secrets are better in the environment.
        variables = s3.environment | {"PGPASSWORD": PASSWORD, "COLUMNS": "200"}
        submit += ["--runtime-env-json", json.dumps({"env_vars": variables}), "--"]
        study = [sys.executable, "studies/label_sweep.py", "--scale", "smoke", "--storage", store.uri]
        study += ["--search-storage", database.create("searches").replace(f":{PASSWORD}", "")]
        code, printed = ray.job(*submit, *study, RAY_AUTH_MODE="disabled")
        assert code != 0 and not store.names("sessions"), "whoever has no token may start nothing"

        job = ray.run("desk", RAY, "job", *submit, *study)

        def records():
            assert job.poll() is None, ray.printed("desk")
            return len(set(s3.requests("PUT", "/hosts/ledger/")))

        def each_has_one():
            assert job.poll() is None, ray.printed("desk")
            return len(set(s3.requests("PUT", "/hosts/claims/jobs/"))) >= 2

        # While the host is at its first job, of some seconds: it cannot be over before the host is missed.
        wait_until(each_has_one, 2 * PATIENCE, lambda: ray.printed("desk"))
        ray.hosts.cut("worker-2")
        wait_until(lambda: ray.nodes() == 2, PATIENCE, lambda: str(ray.nodes()))
        there = records()
        ray.hosts.mend("worker-2")
        wait_until(lambda: ray.nodes() == 3 or job.poll() is not None, PATIENCE, lambda: str(ray.nodes()))
        assert job.wait(3 * PATIENCE) == 0, ray.printed("desk")
        printed = ray.printed("desk")
        assert there < len(set(s3.requests("PUT", "/hosts/ledger/"))), "it was over before the host was missed"
        for name in ("worker-1", "worker-2"):
            fetched = s3.requests("GET", ".parquet", f"{ray.hosts[name].address} ", "200")
            fetched = [path for path in fetched if path.startswith(f"/{BUCKET}/hosts/datasets/")]
            assert 0 < len(fetched) == len(set(fetched)), "data reach a node once"
        assert not s3.requests("GET", f"{BUCKET}/hosts/datasets/", ray.hosts["head"].address), "nor the driver at all"
        (tmp_path / "matrix.parquet").write_bytes(store.read(f"studies/{NAME}/matrix.parquet"))
        assert store.names("scratch") == store.names("claims") == store.names("sessions") == []
    alone = Driver(tmp_path / "alone", tmp_path / "alone.log")
    try:
        assert alone.wait(2 * PATIENCE) == 0, alone.printed()
    finally:
        alone.end()
    expected = pd.read_parquet(tmp_path / "alone" / "studies" / NAME / "matrix.parquet")
    matrix = pd.read_parquet(tmp_path / "matrix.parquet")
    pd.testing.assert_frame_equal(matrix.drop(columns=TIMES), expected.drop(columns=TIMES), check_exact=True)
    assert set(matrix.state) == {"done"}
    for secret in (SECRET, PASSWORD, TOKEN):
        assert secret not in printed
