"""Whatever happens to a study, in the end it is the same: a short campaign, two drivers at once, and a full disk."""

import pytest
from disks import small_disk
from faults import RECORDS, campaign, digest, fail
from processes import AGENTS, Driver
from recipes import SCALES

from sibcl_ray.ledger import Ledger
from sibcl_ray.problems import PROBLEMS
from sibcl_ray.store import Store

pytestmark = pytest.mark.slow


@pytest.mark.thorough
def test_a_short_campaign(tmp_path):
    """Three kinds of fault, in the order of this seed; all of them, many times, with `python tests/faults.py`."""
    told: list[str] = []
    campaign(tmp_path, rounds=3, seed=97, tell=told.append)
    assert len(told) == 4


def test_two_drivers_of_one_study_do_nothing_twice(tmp_path):
    storage = tmp_path / "runs"
    least = ("--methods", "SL-I", "--budgets", "10", "--seeds", "1")
    drivers = [Driver(storage, tmp_path / f"log-{i}", *least) for i in range(2)]
    seen: dict[str, str] = {}
    try:
        while any(driver.process.poll() is None for driver in drivers):
            for path in storage.glob(RECORDS):
                assert seen.setdefault(path.name, digest(path)) == digest(path)
        assert [driver.wait() for driver in drivers] == [0, 0]
    finally:
        for driver in drivers:
            driver.end()
    waited = [driver for driver in drivers if "this study is being run by process" in driver.printed()]
    assert len(waited) == 1
    assert all("Test error" in driver.printed() for driver in drivers)


def test_a_full_disk_stops_the_study_in_one_line_and_what_is_there_is_whole(tmp_path):
    with small_disk(tmp_path / "disk") as disk:
        storage = disk / "runs"
        driver = Driver(storage, tmp_path / "log", "--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db")
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
