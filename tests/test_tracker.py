"""A tracker never troubles a study, on a store in a file; test_outages.py has what servers do to it."""

import socket
import time

import pytest
from servers import wait_until
from test_outages import NOTHING, assert_shows, ledgers, refused

from sibcl_ray.results.mlflow.background import Tracker


@pytest.fixture(scope="module")
def uri(tmp_path_factory):
    return f"sqlite:///{tmp_path_factory.mktemp('tracker')}/mlflow.db"


@pytest.fixture
def nobody():
    """An address at which nothing answers."""
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        yield f"http://127.0.0.1:{closed.getsockname()[1]}"


def test_finishing_without_a_thread(uri):
    ledger = ledgers()[1]
    assert uri in Tracker(uri, "alone", lambda: ledger, warn=print).finish()
    assert_shows(uri, "alone", *ledger)


def test_it_follows_a_study(uri):
    early, late = ledgers()
    states = iter([early, late])
    with Tracker(uri, "followed", lambda: next(states, late), warn=print, interval=0.0) as tracker:
        wait_until(lambda: next(states, None) is None, 60)
        tracker.finish()
    assert_shows(uri, "followed", *late)


def test_errors_of_the_ledger_and_of_warn_are_not_fatal(uri):
    ledger, said = ledgers()[1], []
    answers = iter([ValueError("no\nledger"), ValueError("again"), ledger])

    def look():
        answer = next(answers, ledger)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def warn(text):
        said.append(text)
        raise RuntimeError("the console is gone")

    with Tracker(uri, "odd", look, warn=warn, interval=0.1):
        wait_until(lambda: len(said) == 2, 60)
    assert "ValueError: no. The study goes on" in said[0]
    assert_shows(uri, "odd", *ledger)


def test_finishing_raises_nothing_else(uri, nobody):
    assert "ZeroDivisionError" in refused(Tracker(uri, "odd", lambda: 1 / 0, warn=print).finish, 2)
    assert "refused" in refused(Tracker(nobody, "odd", lambda: ledgers()[1], warn=print).finish, 2)


def test_it_takes_a_tenth_of_the_time_at_most(nobody):
    looked = []

    def look():
        looked.append(time.monotonic())
        time.sleep(0.1)
        return NOTHING, NOTHING

    with Tracker(nobody, "slow", look, warn=print, interval=0.0):
        wait_until(lambda: len(looked) == 2, 60)
    assert looked[1] - looked[0] > 1


def test_leaving_takes_no_time(nobody):
    begun = time.monotonic()
    with pytest.raises(KeyError), Tracker(nobody, "left", ledgers, warn=print):
        raise KeyError
    assert time.monotonic() - begun < 2
