"""The main job as people run it: a study from nothing, again, extended, submitted to a cluster, and misused."""

import re
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from faults import RECORDS, digest
from processes import NAME, PATIENCE, ROOT, SCRIPT, Driver, environment, interpreter, of_session, ray_program, told
from servers import free_port, wait_until


def sweep(folder: Path, *options: str, **variables: str) -> tuple[subprocess.CompletedProcess, float]:
    """Run the script on storage in ``folder``; what it printed, and its seconds."""
    command = [sys.executable, SCRIPT, "--scale", "smoke", "--storage", str(folder), *options]
    start = time.monotonic()
    env = environment(**variables)
    done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=env, cwd=folder.parent)
    return done, time.monotonic() - start


def ledger(folder: Path) -> dict[str, float]:
    """Everything that was ever computed, with its time."""
    return {str(p.relative_to(folder)): p.stat().st_mtime for p in folder.glob("ledger/*/*.json")}


def matrix_of(folder: Path) -> pd.DataFrame:
    return pd.read_parquet(folder / "studies" / NAME / "matrix.parquet")


@dataclass(frozen=True)
class Studied:
    """A smoke study from nothing, run by two drivers at once."""

    folder: Path  # of its storage
    codes: tuple[int, int]
    printed: tuple[str, str]
    changed: tuple[str, ...]  # records that were seen with different contents


@pytest.fixture(scope="module")
def studied(tmp_path_factory):
    place = tmp_path_factory.mktemp("sweep")
    folder, seen, changed = place / "runs", dict[str, str](), list[str]()
    drivers = [Driver(folder, place / f"log-{i}") for i in range(2)]
    try:
        while any(driver.process.poll() is None for driver in drivers):
            changed += [p.name for p in folder.glob(RECORDS) if seen.setdefault(p.name, digest(p)) != digest(p)]
            time.sleep(0.1)
        first, second = drivers
        return Studied(folder, (first.wait(), second.wait()), (first.printed(), second.printed()), tuple(changed))
    finally:
        for driver in drivers:
            driver.end()


@pytest.mark.slow
def test_a_study_from_nothing(studied):
    folder, printed = studied.folder, studied.printed[0]
    assert studied.codes[0] == 0, printed
    matrix = matrix_of(folder)
    assert len(matrix) == 5 * 2 * 2
    assert set(matrix.state) == {"done"} and matrix.error.between(0, 1).all() and (matrix.seconds > 0).all()
    for row in matrix.itertuples():
        assert row.error == pytest.approx(np.mean(row.sample_errors), rel=1e-4)
    assert {"problem", "method", "encoder", "budget", "seed", "error", "state", "seconds", "configuration"} <= {*matrix}
    assert "Labels for a test error" in printed and "tracking" in printed
    for file in ("learning_curves.png", "learning_curves.svg"):
        assert (folder / "studies" / NAME / file).stat().st_size > 10_000
    assert not list(folder.rglob("*.tmp"))


@pytest.mark.slow
def test_two_drivers_of_one_study_do_nothing_twice(studied):
    assert studied.codes == (0, 0) and not studied.changed
    assert sum("this study is being run by process" in printed for printed in studied.printed) == 1
    assert all("Test error" in printed for printed in studied.printed)


@pytest.mark.slow
def test_the_second_run_trains_nothing_and_is_quick(studied):
    folder = studied.folder
    before, matrix = ledger(folder), matrix_of(folder)
    done, seconds = sweep(folder)
    assert done.returncode == 0 and seconds < 30
    assert ledger(folder) == before
    pd.testing.assert_frame_equal(matrix_of(folder), matrix)


@pytest.mark.thorough
def test_another_budget_runs_only_that_budget_and_is_tracked_when_there_is_a_server_again(studied, tmp_path):
    folder = Path(shutil.copytree(studied.folder, tmp_path / "runs"))
    before = ledger(folder)
    matrix = matrix_of(folder)
    done, _ = sweep(folder, "--budgets", "10,15,20", "--tracking-uri", "http://127.0.0.1:1")
    assert done.returncode == 0, done.stderr
    assert re.search(r"MLflow at http://127.0.0.1:1 cannot be written", " ".join(done.stdout.split()))
    synchronised, _ = sweep(folder, "--budgets", "10,15,20", "--sync-tracking")
    assert synchronised.returncode == 0 and "mlflow server" in synchronised.stdout
    assert before.items() <= ledger(folder).items()
    added = [name for name in ledger(folder) if name not in before]
    assert len(added) == 5 * 2 and all(name.startswith("ledger/cell/") for name in added)
    kept = matrix_of(folder).query("budget != 15").reset_index(drop=True)
    pd.testing.assert_frame_equal(kept, matrix)


@pytest.mark.slow
def test_fresh_sets_results_aside_and_a_stop_is_quick_and_says_how_to_go_on(studied, tmp_path):
    folder = Path(shutil.copytree(studied.folder, tmp_path / "runs"))
    before = ledger(folder)
    driver = Driver(folder, tmp_path / "log", "--fresh", "--workers", "1")
    try:
        moved = (folder / "aside").glob
        wait_until(lambda: len(list(moved("*/ledger/*/*.json"))) == len(before), PATIENCE, driver.printed)
        wait_until(lambda: ledger(folder), PATIENCE, driver.printed)
        driver.send(signal.SIGTERM)
        begun = time.monotonic()
        assert driver.wait() == 128 + signal.SIGTERM
        assert time.monotonic() - begun < 10 and not driver.leftovers()  # one or two, on a machine at rest
    finally:
        driver.end()
    assert "stopped by SIGTERM; the same command continues" in driver.printed().splitlines()[-1]
    (aside,) = (folder / "aside").iterdir()
    assert ledger(aside).keys() == before.keys()


@pytest.fixture
def head(tmp_path):
    """A head node, as `ray start --head` makes it, on loopback; the address of its jobs."""
    port, dashboard = free_port(), free_port()
    command = [*ray_program(), "start", "--head", "--block", "--num-cpus=2", "--node-ip-address=127.0.0.1"]
    command += [f"--port={port}", f"--dashboard-port={dashboard}", "--dashboard-host=127.0.0.1"]
    command += [f"--dashboard-agent-listen-port={free_port()}"]  # another cluster here may have the usual one
    with open(tmp_path / "head.log", "w") as log:
        process = subprocess.Popen(command, stdout=log, stderr=log, env=environment(), start_new_session=True)
    address = f"http://127.0.0.1:{dashboard}"
    trial = [*ray_program(), "job", "submit", "--address", address, "--", "true"]
    for _ in range(20):  # the port answers some time before there is an agent that takes jobs
        if subprocess.run(trial, capture_output=True, env=environment()).returncode == 0:
            break
        time.sleep(2)
    else:
        pytest.fail(f"the head node takes no jobs: {(tmp_path / 'head.log').read_text()[-2000:]}")
    yield address
    for part in of_session(process.pid):
        part.kill()
    process.wait()


@pytest.mark.thorough
def test_a_submitted_job_is_stopped_and_submitted_again(head, tmp_path):
    storage = tmp_path / "runs"

    def job(action: str, *rest: str, code: int = 0) -> str:
        command = [*ray_program(), "job", action, "--address", head, *rest]
        done = subprocess.run(command, capture_output=True, text=True, timeout=400, env=environment(), cwd=ROOT)
        assert done.returncode == code, done.stdout[-3000:] + done.stderr[-3000:]
        return done.stdout

    study = [interpreter(), "studies/label_sweep.py", "--scale", "smoke", "--storage", str(storage)]
    job("submit", "--working-dir", ".", "--submission-id", "first", "--no-wait", "--", *study)
    wait_until(lambda: len(ledger(storage)) > 10, PATIENCE, lambda: job("logs", "first"))
    job("stop", "first")
    before = ledger(storage)
    assert "stopped by SIGTERM; the same command continues" in job("logs", "first")
    assert "succeeded" in job("submit", "--working-dir", ".", "--", *study)
    assert before.items() <= ledger(storage).items()
    assert (matrix_of(storage).state == "done").all()


def test_a_dry_run_says_what_would_be_done(tmp_path, capfd):
    code, printed = told(capfd, "--scale", "smoke", "--storage", str(tmp_path / "runs"), "--dry-run")
    assert code == 0, printed.err
    assert re.search(r"target labels\s+│\s+100 ", printed.out) and re.search(r"cells\s+│\s+20 ", printed.out)
    assert "Estimated on this machine" in printed.out
    assert not list((tmp_path / "runs").rglob("*.parquet"))


def test_help_teaches(capfd):
    code, printed = told(capfd, "--help")
    assert code == 0
    for word in ("fewest labels", "ray job submit", "--dry-run", "SIB-CL", "paper"):
        assert word in printed.out
