"""A cluster that has no machines until there is work: they come with a study, may be lost in it, and go after it."""

from pathlib import Path

import pandas as pd
import pytest
from autoscaling import JOB, Cluster
from faults import fail, outcome
from processes import NAME
from recipes import SCALES
from servers import wait_until

from sibcl_ray.ledger import Ledger
from sibcl_ray.problems import PROBLEMS
from sibcl_ray.store import Store

pytestmark = pytest.mark.slow


def results(storage: Path) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Matrix and trials of the study, all but times."""
    return outcome(Ledger(SCALES["smoke"](PROBLEMS["photonic-dos"], 0), Store(str(storage)), warn=fail))


def records(storage: Path) -> int:
    return len(list(storage.glob("ledger/*/*.json")))


def test_machines_come_with_a_study_and_go_after_it(submitted):
    assert submitted.code == 0, submitted.lines
    assert submitted.numbers[0] == 0 and max(submitted.numbers) == 2 and submitted.numbers[-1] == 0
    matrix = pd.read_parquet(submitted.storage / "studies" / NAME / "matrix.parquet")
    assert len(matrix) == 5 * 2 * 2 and set(matrix.state) == {"done"}


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
