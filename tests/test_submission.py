"""Studies as jobs on machines that come and go: what the cluster says of their end, how they are stopped and followed,
what stays secret, and what becomes of a machine that is lost."""

import signal
from itertools import pairwise
from pathlib import Path

import autoscaling
import pandas as pd
import pytest
from autoscaling import DATABASE, JOB, PLANTED, Cluster
from faults import fail, outcome
from processes import NAME, ROOT, interpreter, told
from ray.job_submission import JobStatus
from servers import PASSWORD, wait_until

from sibcl_ray.problems import PROBLEMS
from sibcl_ray.recipes import SCALES
from sibcl_ray.storage.store import Store
from sibcl_ray.study.ledger import Ledger

GRACE = 60  # seconds that a driver may take to stop, on any machine

REFUSED = "--search-storage postgresql+psycopg://study:***@127.0.0.1:1/histories cannot be opened"
SECRETS = {
    "SIBCL_RAY_SEARCH_STORAGE": DATABASE,
    "MLFLOW_TRACKING_URI": f"http://study:{PASSWORD}@127.0.0.1:1",
}


@pytest.fixture(scope="module")
def machines():
    """A cluster whose autoscaler starts up to two machines of one core, and nothing but its head at first."""
    with autoscaling.cluster(worker=({"CPU": 1}, 2)) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def submitted(machines, tmp_path_factory):
    """A smoke study that was submitted to it and left alone, from no machines to no machines again."""
    return autoscaling.watched(machines, tmp_path_factory.mktemp("submitted") / "runs")


def results(storage: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Matrix and trials of the study, all but times."""
    return outcome(Ledger(SCALES["smoke"](PROBLEMS["photonic-dos"], 0), Store(str(storage)), warn=fail))


def records(storage: Path) -> int:
    return len(list(storage.glob("ledger/*/*.json")))


def ledger(storage: Path) -> dict[str, bytes]:
    """The records that there are, byte for byte."""
    return {str(path.relative_to(storage)): path.read_bytes() for path in storage.glob("ledger/*/*.json")}


@pytest.mark.slow
def test_bad_input_ends_a_job_with_code_2_and_one_line(machines: Cluster, tmp_path):
    job = machines.study(tmp_path / "runs")
    assert machines.exit_code(job) == 2 and machines.jobs.get_job_status(job) == JobStatus.FAILED
    (line,) = [line for line in machines.logs(job).splitlines() if line.startswith("error: ")]
    assert "say with --workers how many" in line
    assert not machines.alive()  # nothing was started for it


def telling(machines: Cluster) -> set[str]:
    """Ray's own files in which the planted password is."""
    logs = [path for path in (machines.folder / "session_latest" / "logs").rglob("*") if path.is_file()]
    return {path.name for path in logs if PASSWORD.encode() in path.read_bytes()}


@pytest.mark.thorough
def test_secrets_reach_the_driver_and_no_log(machines: Cluster, tmp_path):
    script = (interpreter(), "studies/label_sweep.py", "--scale=smoke", f"--storage={tmp_path}", "--workers=2")
    # In the environment of the head, where an option's variable or the shell of the job finds it, it stays there.
    job = machines.submit(f"SIBCL_RAY_SEARCH_STORAGE=${next(iter(PLANTED))}", *script)
    assert machines.exit_code(job) == 2 and REFUSED in machines.logs(job)
    assert not telling(machines) and PASSWORD not in str(machines.jobs.get_job_info(job))
    # A job's own environment Ray tells to whoever may ask for it, and writes down once; nothing of ours does.
    job = machines.submit(*script, **SECRETS)
    assert machines.exit_code(job) == 2 and REFUSED in machines.logs(job)
    assert telling(machines) <= {"runtime_env_agent.log"}


def stop_midway(machines: Cluster, storage: Path, how: signal.Signals) -> None:
    """Submit a study, and stop it by a signal when it has more results than there were."""
    enough = records(storage) + 5
    variables = {"RAY_JOB_STOP_SIGNAL": how.name, "RAY_JOB_STOP_WAIT_TIME_S": str(GRACE)}
    job = machines.study(storage, "--workers", "2", **variables)
    wait_until(lambda: records(storage) >= enough, JOB, lambda: machines.logs(job))
    machines.jobs.stop_job(job)
    assert machines.exit_code(job) is None and machines.jobs.get_job_status(job) == JobStatus.STOPPED
    assert f"stopped by {how.name}; the same command continues" in machines.logs(job).splitlines()[-1]


@pytest.mark.thorough
def test_a_job_that_is_stopped_and_submitted_again_comes_to_the_same_end(machines: Cluster, submitted, tmp_path):
    storage, before = tmp_path / "runs", dict[str, bytes]()
    for how in (signal.SIGTERM, signal.SIGINT):
        stop_midway(machines, storage, how)
        assert before.items() < ledger(storage).items()
        before = ledger(storage)
    machines.empty()
    asked = len(machines.demands())
    job = machines.study(storage, "--workers", "2")
    assert machines.exit_code(job) == 0, machines.logs(job)
    assert len(before) < records(storage) and before.items() <= ledger(storage).items()
    assert machines.demands()[asked] == 2  # all the workers, although there was no machine
    for mine, undisturbed in zip(results(storage), results(submitted.storage), strict=True):
        pd.testing.assert_frame_equal(mine, undisturbed, check_exact=True)


@pytest.mark.thorough
def test_a_log_that_is_followed_tells_of_each_stage_when_it_comes(submitted):
    told = [(time, line) for time, line in submitted.lines if line.startswith("[")]
    for stage in ("label shards 0/4", "label shards 4/4", "search trials 10/10", "matrix cells 20/20"):
        assert any(stage in line for _, line in told), told
    times = [time for time, _ in told]
    assert submitted.ended - times[0] > 5  # not all of it at the end
    assert len(told) < 10 + (times[-1] - times[0]) / 15
    assert max(b - a for a, b in pairwise(times)) < 60  # every 30 s, on a machine at rest


def test_what_a_job_takes_along_is_small(tmp_path):
    from ray._private.runtime_env.packaging import create_package

    create_package(str(ROOT), tmp_path / "package.zip", include_gitignore=True)
    assert (tmp_path / "package.zip").stat().st_size < 10 * 2**20  # Ray's limit is 512 MiB


def test_options_may_come_from_the_environment(tmp_path, capfd):
    file = tmp_path / "file"
    file.touch()
    code, printed = told(capfd, "--scale", "smoke", "--dry-run", SIBCL_RAY_STORAGE=str(file))
    assert code == 2 and str(file) in printed.err
    code, printed = told(capfd, "--scale", "smoke", "--dry-run", SIBCL_RAY_STORAGE=str(tmp_path / "runs"), **SECRETS)
    assert code == 2 and REFUSED in printed.err and PASSWORD not in printed.out + printed.err


@pytest.mark.thorough
def test_machines_come_with_a_study_and_go_after_it(submitted):
    assert submitted.code == 0, submitted.lines
    assert submitted.numbers[0] == 0 and max(submitted.numbers) == 2 and submitted.numbers[-1] == 0
    matrix = pd.read_parquet(submitted.storage / "studies" / NAME / "matrix.parquet")
    assert len(matrix) == 5 * 2 * 2 and set(matrix.state) == {"done"}


@pytest.mark.thorough
def test_the_autoscaler_hears_of_all_the_work_at_once(submitted):
    assert submitted.demands[0] == 2  # and not of one more machine each time that the last one is busy


@pytest.mark.thorough
def test_a_machine_that_is_lost_changes_no_result(machines: Cluster, submitted, tmp_path):
    storage, lost = tmp_path / "runs", []

    def lose() -> bool:
        if records(storage) < 6 or not (there := machines.alive()):
            return False
        lost.extend(there[:1])
        return True

    job = machines.study(storage, "--workers", "2")
    wait_until(lose, JOB, lambda: machines.logs(job))
    machines.lose(lost[0])
    before = records(storage)
    assert machines.exit_code(job) == 0, machines.logs(job)
    assert 6 <= before < records(storage)
    for mine, undisturbed in zip(results(storage), results(submitted.storage), strict=True):
        pd.testing.assert_frame_equal(mine, undisturbed, check_exact=True)
