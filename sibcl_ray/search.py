"""One Optuna study per (method, budget), all behind one Tune searcher.

Budgets of a method are searched from the smallest: the labels of a budget are among those of the next,
so the best configurations of a smaller budget may start a larger one, never the other way round. Trials
of one search are asked for in rounds, each seeded by its number, so that the proposals do not depend on
which worker was faster. Searches of different methods advance side by side.
"""

from __future__ import annotations

import os
import time
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FixedTrial, FrozenTrial, TrialState
from ray import tune
from ray.tune.search import Searcher

from sibcl_ray.jobs import Record, TrialJob
from sibcl_ray.methods import Choice
from sibcl_ray.randomness import named_seed

REASON = "reason"  # the attribute of a trial that ended without a value
STARTS = 3  # how many of a smaller budget's best configurations start the next


@dataclass(frozen=True, kw_only=True)
class Search:
    """The search of one method at one budget.

    ``propose`` turns an Optuna trial into a configuration, ``job`` a configuration into work. ``name``
    fixes everything that the value of a trial depends on.
    """

    name: str
    method: str
    budget: int
    trials: int
    at_once: int  # trials of a round
    seed: int
    start: Mapping[str, Any]  # parameters of the first trial, if no smaller budget offers better ones
    propose: Callable[[optuna.trial.BaseTrial], Choice]
    job: Callable[[Choice], TrialJob]

    def open(self, storage: BaseStorage) -> optuna.Study:
        """The search's history, resumed or new."""
        return optuna.create_study(storage=storage, study_name=self.name, load_if_exists=True)

    def ended(self, history: optuna.Study) -> list[FrozenTrial]:
        """Trials with a value or a reason. One whose process died has neither, and does not count."""
        trials = history.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
        return [t for t in trials if t.state == TrialState.COMPLETE or REASON in t.user_attrs]

    def missing(self, history: optuna.Study) -> int:
        """How many trials are still to come to an end."""
        return max(0, self.trials - len(self.ended(history)))

    def best(self, history: optuna.Study, count: int = 1) -> list[FrozenTrial]:
        """The best trials so far, best first."""
        complete = history.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
        return sorted(complete, key=lambda t: (t.value, t.number))[:count]

    def choice(self, trial: FrozenTrial) -> Choice:
        """The configuration of a finished trial."""
        return self.propose(FixedTrial(trial.params))

    def winner(self, history: optuna.Study) -> Choice | None:
        """The configuration that the search chose; None while it goes on, or if every trial failed."""
        best = self.best(history)
        return self.choice(best[0]) if best and not self.missing(history) else None


class _Rounds:
    """A search under way: asks for rounds of trials and takes their values."""

    def __init__(self, search: Search, storage: BaseStorage, starts: list[Mapping[str, Any]]) -> None:
        self.search = search
        self.history = search.open(storage)
        self._running: dict[str, optuna.Trial] = {}
        self._left = 0
        for trial in self.history.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.history.tell(trial.number, state=TrialState.FAIL)
            self.history.enqueue_trial(trial.params)
        for start in starts:
            self.history.enqueue_trial(dict(start), skip_if_exists=True)

    @property
    def finished(self) -> bool:
        return not self._running and not self.search.missing(self.history)

    def ask(self, trial_id: str) -> TrialJob | None:
        """Another trial's work; None while a round is under way, or when there is no more to ask."""
        if not self._running:
            self._left = min(self.search.at_once, self.search.missing(self.history))
        if not self._left:
            return None
        self._left -= 1
        ordinal = len(self.search.ended(self.history)) + len(self._running)
        self.history.sampler = TPESampler(
            seed=named_seed(self.search.seed, self.search.name, ordinal) % 2**32,
            n_startup_trials=self.search.trials // 2,
        )
        trial = self.history.ask()
        self._running[trial_id] = trial
        return self.search.job(self.search.propose(trial))

    def tell(self, trial_id: str, record: Record | None) -> None:
        """Ends a trial with its job's record; None where its process ended without one."""
        trial = self._running.pop(trial_id)
        if record and "error" in record:
            self.history.tell(trial, record["error"])
            return
        if record:
            trial.set_user_attr(REASON, record["reason"])
        self.history.tell(trial, state=TrialState.FAIL)


class BudgetSearcher(Searcher):
    """Tune's searcher: offers trials of all searches that may run now.

    Args:
        searches: those of one method must come with budgets ascending.
        storage: Optuna's; it holds everything that has to outlive the process.
        on_finish: called with each search when its last trial has ended.
    """

    def __init__(self, searches: Sequence[Search], storage: BaseStorage, on_finish: Callable[[Search], None]) -> None:
        super().__init__()
        self._storage = storage
        self._on_finish = on_finish
        self._chains: dict[str, deque[Search]] = {}
        for search in searches:
            self._chains.setdefault(search.method, deque()).append(search)
        self._active: dict[str, _Rounds] = {}
        self._asked: dict[str, str] = {}  # Tune's trial to its method
        for method in list(self._chains):
            self._advance(method, None)

    @property
    def trials_left(self) -> int:
        """How many trials Tune will have to run."""
        return sum(s.missing(s.open(self._storage)) for chain in self._chains.values() for s in chain) + sum(
            r.search.missing(r.history) for r in self._active.values()
        )

    def _advance(self, method: str, done: _Rounds | None) -> None:
        """Start the method's next search that has trials missing, from what the one before has found."""
        while self._chains[method]:
            search = self._chains[method].popleft()
            best = done.search.best(done.history, STARTS) if done else []
            done = _Rounds(search, self._storage, [t.params for t in best] or [search.start])
            if not done.finished:
                self._active[method] = done
                return
            self._on_finish(search)

    def suggest(self, trial_id: str) -> dict[str, Any] | None:
        # Whoever has waited longest is asked first, so that the searches advance side by side.
        for method, rounds in list(self._active.items()):
            if (job := rounds.ask(trial_id)) is not None:
                self._active[method] = self._active.pop(method)
                self._asked[trial_id] = method
                return {"job": job}
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        method = self._asked.pop(trial_id)
        rounds = self._active[method]
        rounds.tell(trial_id, None if error else result)
        if rounds.finished:
            del self._active[method]
            self._on_finish(rounds.search)
            self._advance(method, rounds)

    def __getstate__(self) -> dict[str, Any]:
        """Nothing for Tune's own checkpoint to hold: the state is in Optuna's storage."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing: the state is in Optuna's storage."""

    def restore(self, checkpoint_path: str) -> None:
        """Nothing: the state is in Optuna's storage."""


def _trial(config: dict[str, Any], submit: Callable[[TrialJob], Any]) -> None:
    """A thin Tune trial: a worker does the work."""
    tune.report(submit(config["job"]))


def run_searches(searcher: BudgetSearcher, submit: Callable[[TrialJob], Any], at_once: int, scratch: str) -> None:
    """Run all missing trials as one Tune experiment.

    Args:
        searcher: what to try.
        submit: does a trial's job and returns its record; called in a trial's process.
        at_once: how many trials may wait for workers at the same time.
        scratch: an absolute folder for Tune's own files.
    """
    if not (count := searcher.trials_left):
        return
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new output prints a banner even if it is asked for none
    trainable = tune.with_resources(
        tune.with_parameters(_trial, submit=submit),
        # Trials only wait. A CPU for each would starve the workers that they wait for.
        tune.PlacementGroupFactory([{"memory": 1e6}]),
    )
    tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher, num_samples=count, max_concurrent_trials=at_once, reuse_actors=True
        ),
        run_config=tune.RunConfig(name=f"search-{time.time_ns()}", storage_path=scratch, verbose=0),
    ).fit()
