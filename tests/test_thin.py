"""What passes through the process of a Tune trial, and what that process knows."""

import subprocess
import sys
from dataclasses import dataclass
from pickle import dumps, loads

from sibcl_ray.cluster.trial_process import Payload


@dataclass(frozen=True)
class Content:
    """Stands for a job; counts how often it is opened."""

    number: int
    opened = 0

    def __setstate__(self, state):
        self.__dict__.update(state)
        Content.opened += 1


def test_the_process_of_a_trial_loads_nothing_heavy():
    # that of the queue, whose handle it holds, is loaded with it
    code = (
        "import sibcl_ray.cluster.trial_process, sibcl_ray.cluster.scheduler, sys\n"
        "print(*{'torch', 'optuna', 'sibcl_ray.learning.jobs'} & set(sys.modules))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == []


def test_a_job_is_opened_where_it_is_forwarded_to_and_not_on_the_way():
    before = Content.opened
    in_the_trial = loads(dumps(Payload(Content(3))))
    sent = dumps(in_the_trial.forwarded())
    assert Content.opened == before
    assert loads(sent) == Content(3)
    assert in_the_trial.open() == Content(3)
