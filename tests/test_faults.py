"""Whatever happens to a study, in the end it is the same: a short campaign, two drivers at once, and a full disk."""

import subprocess

import pytest
from disks import small_disk
from faults import RECORDS, campaign, digest
from processes import Driver

pytestmark = pytest.mark.slow


def test_a_short_campaign(tmp_path):
    told: list[str] = []
    campaign(tmp_path, rounds=6, seed=1, tell=told.append)
    assert len(told) == 7


def test_two_drivers_of_one_study_do_nothing_twice(tmp_path):
    storage = tmp_path / "runs"
    drivers = [Driver(storage, tmp_path / f"log-{i}") for i in range(2)]
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
    assert all("Labels for a test error" in driver.printed() for driver in drivers)


def test_a_full_disk_stops_the_study_and_more_room_lets_it_go_on(tmp_path):
    tracking = ("--tracking-uri", f"sqlite:///{tmp_path}/mlflow.db")
    with small_disk(tmp_path / "disk") as disk:
        driver = Driver(disk / "runs", tmp_path / "log", *tracking)
        try:
            assert driver.wait() == 1 and not driver.leftovers()
            line = driver.printed().splitlines()[-1]
            assert line.startswith("error: ") and "No space left" in line and "the same command continues" in line
            subprocess.run(["mount", "-o", "remount,size=64m", disk], check=True)
            driver = Driver(disk / "runs", tmp_path / "log", *tracking)
            assert driver.wait() == 0, driver.printed()
        finally:
            driver.end()
