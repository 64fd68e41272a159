"""cluster/slurm.sh as a batch system would run it: stand-ins for Slurm's two programs, everything else real."""

import os
import signal
import subprocess
import time

import pytest
from processes import ROOT, environment, of_session
from servers import wait_until

SRUN = """#!/bin/bash
while [[ $1 == --* ]]; do shift; done
exec "$@"
"""
SCONTROL = """#!/bin/bash
echo "$@" >>"$REQUEUED"
"""
PATIENCE = 420  # seconds for a study of seconds: Ray starts twice, on a machine that may be busy


class Batch:
    """The script in a session of its own, on an allocation of this machine."""

    def __init__(self, folder, *options):
        self.log, self.requeued = folder / "log", folder / "requeued"
        for name, text in (("srun", SRUN), ("scontrol", SCONTROL)):
            program = folder / "bin" / name
            program.parent.mkdir(exist_ok=True)
            program.write_text(text)
            program.chmod(0o755)
        job = {"SLURM_JOB_ID": str(os.getpid()), "SLURM_JOB_NUM_NODES": "1", "SLURM_CPUS_PER_TASK": "2"}
        variables = {"PATH": f"{folder / 'bin'}:{os.environ['PATH']}", "REQUEUED": str(self.requeued), **job}
        command = ["bash", "cluster/slurm.sh", "--storage", str(folder / "runs"), *options]
        with open(self.log, "w") as output:
            self.process = subprocess.Popen(
                command, stdout=output, stderr=output, env=environment(**variables), start_new_session=True, cwd=ROOT
            )

    def prints(self, text):
        def ready():
            assert self.process.poll() is None, self.log.read_text()
            return text in self.log.read_text()

        wait_until(ready, PATIENCE, self.log.read_text)

    def end(self):
        """The exit code, and what of it still runs."""
        try:
            code = self.process.wait(PATIENCE)
            deadline = time.monotonic() + 15
            while (left := of_session(self.process.pid)) and time.monotonic() < deadline:
                time.sleep(0.1)
            return code, [process.title for process in left]
        finally:
            for process in of_session(self.process.pid):
                process.kill()


@pytest.mark.thorough
def test_a_job_that_runs_out_of_time_is_queued_again_and_continues(tmp_path):
    first = Batch(tmp_path, "--scale", "smoke")
    try:
        first.prints("search trials")
        first.process.send_signal(signal.SIGUSR1)
    finally:
        code, left = first.end()
    assert (code, left) == (128 + signal.SIGTERM, []), first.log.read_text()
    assert first.requeued.read_text() == f"requeue {os.getpid()}\n"
    assert "stopped by SIGTERM; the same command continues" in first.log.read_text()
    again = Batch(tmp_path, "--scale", "smoke")
    assert again.end() == (0, []), again.log.read_text()
    assert first.requeued.read_text().count("requeue") == 1
    assert (tmp_path / "runs" / "studies" / "photonic-dos-smoke-0" / "matrix.parquet").exists()


@pytest.mark.thorough
def test_a_job_ends_with_the_exit_code_of_its_study(tmp_path):
    refused = Batch(tmp_path, "--scale", "huge")
    assert refused.end() == (2, []), refused.log.read_text()
    assert "there is no scale 'huge'" in refused.log.read_text()
    assert not refused.requeued.exists()
