"""What a person reads who follows a log."""

import io

import pytest
from rich.console import Console

from sibcl_ray.results.progress import Count, Display, Snapshot

RUNNING = (("cell SL at 10 labels", 0.5, 1.0),)


@pytest.fixture
def log():
    """A display that writes lines, and those that it wrote since they were last asked for."""
    file = io.StringIO()

    def lines() -> list[str]:
        text = file.getvalue()
        file.seek(0)
        file.truncate()
        return [line.partition("] ")[2] for line in text.splitlines()]

    return Display(Console(file=file, width=40), interval=3600), lines


def test_a_log_tells_of_the_beginning_and_the_end_of_each_kind_of_work_once(log, monkeypatch):
    monkeypatch.setattr("sibcl_ray.results.progress.LEAST", 0.0)
    display, lines = log
    with display:
        display(Snapshot())
        assert lines() == []
        for done in (0, 1, 2, 3):
            display(Snapshot(shards=Count(done, 3)))
        assert lines() == ["label shards 0/3", "label shards 3/3"]
        for done in range(9):
            display(Snapshot(shards=Count(3, 3), pretrainings=Count(done, done + 1), trials=Count(done, 9)))
            display(Snapshot(shards=Count(3, 3), pretrainings=Count(done + 1, done + 1), trials=Count(done, 9)))
        assert len(lines()) == 2  # each pretraining is the last one for a while
        display(Snapshot(shards=Count(3, 3), pretrainings=Count(9, 9), trials=Count(9, 9), running=RUNNING))
        (line,) = lines()
        assert line.startswith("label shards 3/3, pretrainings 9/9, search trials 9/9")


def test_a_log_says_when_there_are_no_workers_yet(log, monkeypatch):
    monkeypatch.setattr("sibcl_ray.results.progress.LEAST", 0.0)
    display, lines = log
    display(Snapshot(trials=Count(0, 9), cells=Count(0, 9)))
    display(Snapshot(trials=Count(9, 9), cells=Count(0, 9), running=RUNNING))
    first, second = lines()
    assert first.endswith("waiting for workers") and "waiting" not in second


def test_a_log_goes_on_while_nothing_begins_or_ends():
    file = io.StringIO()
    display = Display(Console(file=file), interval=0.0)
    for _ in range(3):
        display(Snapshot(shards=Count(1, 3)))
    assert file.getvalue().count("label shards 1/3\n") == 3
