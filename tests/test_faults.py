"""Whatever happens to a study, in the end it is the same: a short campaign, and a full disk."""

import pytest
from disks import small_disk
from faults import campaign, fail
from processes import AGENTS, Driver

from sibcl_ray.problems import PROBLEMS
from sibcl_ray.recipes import SCALES
from sibcl_ray.storage.store import Store
from sibcl_ray.study.ledger import Ledger

pytestmark = pytest.mark.slow


@pytest.mark.thorough
def test_a_short_campaign(tmp_path):
    """Three kinds of fault, in the order of this seed; all of them, many times, with `python tests/faults.py`."""
    told: list[str] = []
    campaign(tmp_path, rounds=3, seed=97, tell=told.append)
    assert len(told) == 4


@pytest.mark.thorough
@pytest.mark.parametrize("size", ["400k", "1m"])
def test_a_full_disk_stops_the_study_in_one_line_and_what_is_there_is_whole(size, tmp_path):
    """While labels are made, and while networks are trained."""
    with small_disk(tmp_path / "disk", size) as disk:
        storage = disk / "runs"
        driver = Driver(storage, tmp_path / "log", "--workers=1", "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db")
        try:
            # Ray kills its node if that does not end at once, as on a busy machine.
            assert driver.wait() == 1 and not driver.leftovers(spared=AGENTS)
        finally:
            driver.end()
        line = driver.printed().splitlines()[-1]
        assert line.startswith("error: ") and "No space left" in line and "the same command continues" in line
        ledger = Ledger(SCALES["smoke"](PROBLEMS["photonic-dos"], 0), Store(str(storage)), warn=fail)
        there = sum(1 for path in storage.glob("datasets/*/*.parquet"))
        shards = sum(ledger.dataset.shards_for(*size) for size in ledger.study.sizes.items())
        assert len(ledger.dataset.missing(ledger.study.sizes, fail)) == shards - there < shards
