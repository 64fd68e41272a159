"""A cluster whose nodes come and go, on one machine: Ray's autoscaler, with processes for machines.

The head has no CPUs, as the head of a cluster in a cloud should. A machine is a raylet that the autoscaler's
process starts and ends. Everything is in one session, where it is found and ended; `ray stop` would end
the clusters of others.
"""

from __future__ import annotations

import asyncio
import json
import re
import shutil
import subprocess
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from processes import ROOT, Process, environment, interpreter, of_session, ray_program
from ray._raylet import RpcError
from ray.autoscaler.v2.sdk import get_cluster_status
from ray.job_submission import JobSubmissionClient
from servers import PASSWORD, free_port, wait_until

HEAD_ID = "f" * 51 + "00000"  # Ray's fake machines are numbered from it
STORE = 100_000_000  # bytes of every node's object store
DATABASE = f"postgresql+psycopg://study:{PASSWORD}@127.0.0.1:1/histories"
PLANTED = {"PLANTED_DATABASE": DATABASE}  # in the environment of the head
IDLE = 8.0  # seconds after which a machine is given back
JOB = 600.0  # seconds after which a job hangs, whatever else the machine does; machines take time to start
STEPS = (
    *("setup_commands", "head_setup_commands", "worker_setup_commands", "initialization_commands"),
    *("head_start_ray_commands", "worker_start_ray_commands"),
    *("cluster_synced_files", "rsync_exclude", "rsync_filter"),
)


def configuration(gcs: str, machines: dict[str, tuple[dict[str, float], int]]) -> dict[str, Any]:
    """What the autoscaler is told: kinds of machines, each with its resources and the largest number of it."""
    provider = {
        "type": "external",
        "module": "machines.Machines",
        "launch_multiple": True,
        "disable_node_updaters": True,
        "gcs_address": gcs,
    }
    kinds = {
        name: {
            "resources": {**has, "object_store_memory": STORE},
            "min_workers": 0,
            "max_workers": most,
            "node_config": {},
        }
        for name, (has, most) in machines.items()
    }
    return {
        "cluster_name": "machines",
        "max_workers": sum(most for _, most in machines.values()),
        "idle_timeout_minutes": IDLE / 60,
        "provider": provider,
        "available_node_types": {
            "ray.head.default": {"resources": {"CPU": 0}, "max_workers": 0, "node_config": {}},
            **kinds,
        },
        "head_node_type": "ray.head.default",
        "auth": {},
        "file_mounts": {},
        **{step: [] for step in STEPS},
    }


class Cluster:
    """A head node, and the machines that its autoscaler starts."""

    def __init__(self, process: subprocess.Popen, folder: Path, gcs: str, dashboard: str) -> None:
        self.process, self.folder, self.gcs, self.dashboard = process, folder, gcs, dashboard
        self.jobs: Any = None

    def alive(self) -> list[str]:
        """The machines that are there now, as the control store tells whoever asks."""
        status = get_cluster_status(self.gcs)
        return [n.node_id for n in (*status.active_nodes, *status.idle_nodes) if n.node_id != HEAD_ID]

    @contextmanager
    def counted(self) -> Iterator[list[int]]:
        """The numbers of machines that were there, one after the other."""
        ended, found = threading.Event(), [len(self.alive())]

        def repeat() -> None:
            while not ended.wait(0.25):
                with suppress(RpcError, TimeoutError):  # a busy head is late with an answer now and then
                    if (number := len(self.alive())) != found[-1]:
                        found.append(number)

        thread = threading.Thread(target=repeat, daemon=True)
        thread.start()
        try:
            yield found
        finally:
            ended.set()
            thread.join()

    def submit(self, *command: str, **variables: str) -> str:
        """The number of a job that runs a command in a copy of this repository."""
        runtime = {"working_dir": str(ROOT), "env_vars": {"COLUMNS": "200", **variables}}
        return self.jobs.submit_job(entrypoint=" ".join(command), runtime_env=runtime)

    def study(self, storage: Path, *options: str, **variables: str) -> str:
        """The number of a job that runs the smoke study on a storage."""
        script = (interpreter(), "studies/label_sweep.py", "--scale", "smoke", "--storage", str(storage))
        return self.submit(*script, *options, **variables)

    def logs(self, job: str) -> str:
        return self.jobs.get_job_logs(job)

    def exit_code(self, job: str) -> int | None:
        """Of the job's driver, when it has ended."""
        wait_until(lambda: self.jobs.get_job_status(job).is_terminal(), JOB, lambda: self.logs(job))
        return self.jobs.get_job_info(job).driver_exit_code

    def empty(self) -> None:
        """Wait until all machines have been given back."""
        wait_until(lambda: not self.alive(), IDLE + 60, lambda: f"still there: {self.alive()}")

    def demands(self) -> list[int]:
        """How many machines the autoscaler found to be lacking, each time that some were."""
        log = (self.folder / "session_latest" / "logs" / "monitor.log").read_text()
        return [int(number) for number in re.findall(r"Adding (\d+) node\(s\)", log)]

    def processes_of(self, machine: str) -> list[Process]:
        """The raylet of a machine and all that it started."""
        found = []
        for process in of_session(self.process.pid):
            with suppress(OSError):
                if machine.encode() in Path(f"/proc/{process.number}/environ").read_bytes():
                    found.append(process)
        return found

    def lose(self, machine: str) -> None:
        """End a machine without a word, as a cloud does with cheap ones."""
        for process in self.processes_of(machine):
            process.kill()


@dataclass(frozen=True)
class Watched:
    """A study as somebody saw it who submitted it."""

    storage: Path
    code: int | None
    numbers: list[int]  # of machines, one after the other
    demands: list[int]  # of the autoscaler
    lines: list[tuple[float, str]]  # of the log as it was followed, with their times
    ended: float  # when the driver had


def watched(cluster: Cluster, storage: Path) -> Watched:
    """Submit the smoke study, follow its log, and wait until the last machine is given back."""
    cluster.empty()
    asked = len(cluster.demands())
    lines: list[tuple[float, str]] = []
    with cluster.counted() as numbers:
        job = cluster.study(storage, "--workers", "2")

        async def follow() -> None:
            async for text in cluster.jobs.tail_job_logs(job):
                lines.extend((time.monotonic(), line) for line in text.splitlines())

        asyncio.run(follow())
        code, ended = cluster.exit_code(job), time.monotonic()
        cluster.empty()
    return Watched(storage, code, [*numbers, len(cluster.alive())], cluster.demands()[asked:], lines, ended)


@contextmanager
def cluster(**machines: tuple[dict[str, float], int]) -> Iterator[Cluster]:
    """A Cluster that has at most so many machines of each kind, and none at first."""
    folder = Path(tempfile.mkdtemp(prefix="as-"))  # Ray's sockets lie below it, and their paths must be short
    port, dashboard = free_port(), free_port()
    gcs = f"127.0.0.1:{port}"
    (folder / "machines.json").write_text(json.dumps(configuration(gcs, machines)))
    command = [*ray_program(), "start", "--head", "--block", "--num-cpus=0"]
    command += [f"--autoscaling-config={folder}/machines.json"]
    command += [f"--port={port}", f"--dashboard-port={dashboard}", f"--dashboard-agent-listen-port={free_port()}"]
    command += [f"--ray-client-server-port={free_port()}", f"--temp-dir={folder}", f"--object-store-memory={STORE}"]
    variables = {
        "PYTHONPATH": str(Path(__file__).parent),
        "MACHINES": str(folder),
        **PLANTED,
        "RAY_FAKE_CLUSTER": "1",
        "RAY_enable_autoscaler_v2": "1",  # as the cluster launcher and KubeRay set it
        "RAY_CLOUD_INSTANCE_ID": HEAD_ID,
        "RAY_OVERRIDE_NODE_ID_FOR_TESTING": HEAD_ID,
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # its address is 127.0.0.1
        "AUTOSCALER_UPDATE_INTERVAL_S": "1",
        "RAY_memory_monitor_refresh_ms": "0",  # every machine would count the memory of all
    }
    log = folder / "head.log"
    with open(log, "w") as output:
        env = environment(**variables)
        process = subprocess.Popen(command, stdout=output, stderr=output, env=env, start_new_session=True)
    try:
        made = Cluster(process, folder, gcs, f"http://127.0.0.1:{dashboard}")
        wait_until(lambda: _takes_jobs(made), 180, lambda: log.read_text()[-3000:])
        yield made
    finally:
        while left := of_session(process.pid):  # the autoscaler may be starting one more
            for part in left:
                part.kill()
        process.wait()
        shutil.rmtree(folder, ignore_errors=True)


def _takes_jobs(made: Cluster) -> bool:
    """The port answers some time before there is an agent that takes jobs."""
    assert made.process.poll() is None, (made.folder / "head.log").read_text()[-3000:]
    try:
        made.jobs = made.jobs or JobSubmissionClient(made.dashboard)
        made.exit_code(made.jobs.submit_job(entrypoint="true"))
    except (OSError, RuntimeError):  # also those of requests
        return False
    return True
