"""One Optuna study per (method, budget), all behind one Tune searcher.

Budgets of a method are searched from the smallest: the labels of a budget are among those of the next,
so the best configurations of a smaller budget may start a larger one, never the other way round. Trials
of one search are asked for in rounds, each seeded by its number, so that the proposals do not depend on
which worker was faster. Searches of different methods advance side by side.
"""

from __future__ import annotations

import itertools
from collections import deque
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FixedTrial, FrozenTrial, TrialState
from ray import tune
from ray.tune.search import Searcher

from sibcl_ray.jobs import DONE, TrialJob
from sibcl_ray.methods import Choice
from sibcl_ray.randomness import named_seed

ENDED = (TrialState.COMPLETE, TrialState.FAIL)
STARTS = 3  # how many of a smaller budget's best configurations start the next


@dataclass(frozen=True, kw_only=True)
class Search:
    """The search of one method at one budget.

    ``propose`` turns an Optuna trial into a configuration, ``job`` a configuration into work. ``name``
    fixes everything the value of a trial depends on.
    """

    name: str
    method: str
    budget: int
    trials: int
    at_once: int  # trials of a round
    seed: int
    propose: Callable[[optuna.trial.BaseTrial], Choice]
    job: Callable[[Choice], TrialJob]

    def open(self, storage: BaseStorage) -> optuna.Study:
        """The search's history, resumed or new."""
        return optuna.create_study(storage=storage, study_name=self.name, load_if_exists=True)

    def best(self, history: optuna.Study, count: int = 1) -> list[FrozenTrial]:
        """The best trials so far, best first."""
        complete = history.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return sorted(complete, key=lambda t: (t.value, t.number))[:count]

    def winner(self, history: optuna.Study) -> Choice | None:
        """The configuration that the search chose; None while it goes on, or if every trial failed."""
        best = self.best(history)
        return self.choice(best[0]) if best and self.missing(history) == 0 else None

    def choice(self, trial: FrozenTrial) -> Choice:
        """The configuration of a finished trial."""
        return self.propose(FixedTrial(trial.params))

    def missing(self, history: optuna.Study) -> int:
        """How many trials are still to be finished."""
        return max(0, self.trials - len(history.get_trials(deepcopy=False, states=ENDED)))


class _Progress:
    """A search that runs: asks for rounds of trials and takes their values."""

    def __init__(self, search: Search, storage: BaseStorage) -> None:
        self.search = search
        self.history = search.open(storage)
        self._running: dict[str, optuna.Trial] = {}
        self._round_left = 0
        for trial in self.history.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            # Its process is gone. Its value is in the ledger if it had one, so asking again costs nothing.
            self.history.enqueue_trial(trial.params)
            self.history._storage.set_trial_state_values(trial._trial_id, TrialState.FAIL)
        self._stale = len(self.history.get_trials(deepcopy=False, states=(TrialState.FAIL,)))

    def start_from(self, params: list[Mapping[str, Any]]) -> None:
        for start in params:
            self.history.enqueue_trial(dict(start), skip_if_exists=True)

    @property
    def finished(self) -> bool:
        return not self._running and self.search.missing(self.history) == 0

    def ask(self, trial_id: str) -> TrialJob | None:
        """Work for another trial, None while a round is under way or when there is no more to ask."""
        if not self._running:
            self._round_left = min(self.search.at_once, self.search.missing(self.history))
        if self._round_left == 0:
            return None
        self._round_left -= 1
        number = len(self.history.get_trials(deepcopy=False))
        self.history.sampler = TPESampler(
            seed=named_seed(self.search.seed, self.search.name, number) % 2**32,
            n_startup_trials=self.search.trials // 2,
            constant_liar=True,
        )
        trial = self.history.ask()
        self._running[trial_id] = trial
        return self.search.job(self.search.propose(trial))

    def tell(self, trial_id: str, value: float | None) -> None:
        trial = self._running.pop(trial_id)
        self.history.tell(trial, value, state=TrialState.FAIL if value is None else TrialState.COMPLETE)
