"""One Optuna study per (method, budget), all behind one Tune searcher.

Budgets of a method are searched from the smallest: the labels of a budget are among those of the next,
so the best configurations of a smaller budget may start a larger one, never the other way round. Trials
of one search are asked for in rounds, each seeded by its number, so that the proposals do not depend on
which worker was faster. Searches of different methods advance side by side.
"""

from __future__ import annotations

import math
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
from optuna.distributions import (
    BaseDistribution,
    CategoricalDistribution,
    FloatDistribution,
    distribution_to_json,
)
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage
from optuna.trial import FixedTrial, FrozenTrial, TrialState, create_trial
from ray import tune
from ray.tune.search import Searcher

from sibcl_ray.history import load, names
from sibcl_ray.jobs import FAILED, Record, TrialJob
from sibcl_ray.methods import Choice
from sibcl_ray.randomness import named_seed
from sibcl_ray.store import fingerprint

REASON, STATE = "reason", "state"  # attributes of a trial that ended without a value
WANTED, RETRIED = "wanted", "retried"  # attributes of a history: trials it needs at least; failed ones, given up
STARTS = 3  # how many of a smaller budget's best configurations start the next
LOSSES = 20  # trials in a row whose processes end without a result, before the cluster is given up


@dataclass(frozen=True, kw_only=True)
class Search:
    """The search of one method at one budget.

    ``propose`` turns an Optuna trial into a configuration, ``job`` a configuration into work. ``family``
    fixes everything that the value of a trial depends on besides its parameters; ``name`` the space as well.
    """

    family: str
    method: str
    budget: int
    trials: int
    at_once: int  # trials of a round
    seed: int
    start: Mapping[str, Any]  # parameters of the first trial, if no smaller budget offers better ones
    dimensions: Mapping[str, BaseDistribution]  # what may be chosen, by parameter
    propose: Callable[[optuna.trial.BaseTrial], Choice]
    job: Callable[[Choice], TrialJob]

    @cached_property
    def name(self) -> str:
        """Of the search's history."""
        space = {name: distribution_to_json(d) for name, d in self.dimensions.items()}
        return f"{self.family}, space {fingerprint(space)[:8]}"

    def ended(self, history: optuna.Study | None) -> list[FrozenTrial]:
        """Trials with a value or a reason. One whose process died has neither, and does not count."""
        if history is None:
            return []
        trials = history.get_trials(deepcopy=False, states=(TrialState.COMPLETE, TrialState.FAIL))
        retried = history.user_attrs.get(RETRIED, ()) if any(STATE in t.user_attrs for t in trials) else ()
        return [
            t
            for t in trials
            if t.state == TrialState.COMPLETE or (REASON in t.user_attrs and t.number not in retried)
        ]

    def missing(self, history: optuna.Study | None) -> int:
        """How many trials are still to come to an end."""
        if history is None:
            return self.trials
        return max(0, max(self.trials, history.user_attrs.get(WANTED, 0)) - len(self.ended(history)))

    def best(self, history: optuna.Study | None, count: int = 1) -> list[FrozenTrial]:
        """The best trials so far, best first."""
        complete = [t for t in self.ended(history) if t.value is not None]
        return sorted(complete, key=lambda t: (t.value, t.number))[:count]

    def choice(self, trial: FrozenTrial) -> Choice:
        """The configuration of a finished trial."""
        return self.propose(FixedTrial(trial.params))

    def winner(self, history: optuna.Study | None) -> Choice | None:
        """The configuration that the search chose; None while it goes on, or if every trial failed."""
        best = self.best(history)
        return self.choice(best[0]) if best and not self.missing(history) else None

    def retry_failures(self, storage: BaseStorage) -> list[FrozenTrial]:
        """Have the trials that failed, but did not diverge, tried again; which those are."""
        if (history := load(storage, self.name)) is None:
            return []
        failed = [t for t in self.ended(history) if t.user_attrs.get(STATE) == FAILED]
        for trial in failed:
            history.enqueue_trial(trial.params)
        history.set_user_attr(RETRIED, [*history.user_attrs.get(RETRIED, ()), *(t.number for t in failed)])
        return failed

    def begin(self, storage: BaseStorage, starts: Iterable[Mapping[str, Any]]) -> optuna.Study:
        """The history, resumed or new.

        What was running when a driver died is asked for again. A new history of a space that has changed takes
        over the trials which lie in it, and tries every new value at least once, with the best of the others.
        """
        history = load(storage, self.name) or optuna.create_study(storage=storage, study_name=self.name)
        for trial in history.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            self.ask_again(history, trial)
        if WANTED not in history.user_attrs:
            relatives = [n for n in names(storage) if n.startswith(f"{self.family}, space ") and n != self.name]
            known = self._take_over(history, [optuna.load_study(study_name=n, storage=storage) for n in relatives])
            new = self._new_values(known) if known else []
            best = self.best(history)
            for name, value in new:
                history.enqueue_trial({**(best[0].params if best else self.start), name: value}, skip_if_exists=True)
            history.set_user_attr(WANTED, len(self.ended(history)) + len(new))
        for start in starts:
            history.enqueue_trial(dict(start), skip_if_exists=True)
        return history

    def ask_again(self, history: optuna.Study, trial: FrozenTrial) -> None:
        """End a trial that nobody runs any more, and have its parameters asked for once more."""
        history.tell(trial.number, state=TrialState.FAIL)
        whole = trial.params.keys() == self.dimensions.keys()
        # One that was cut off while it was asked for is proposed anew, and the same, from the same seed.
        parameters = trial.params if whole else trial.system_attrs.get("fixed_params")
        if parameters:
            history.enqueue_trial(dict(parameters))

    def _take_over(
        self, history: optuna.Study, relatives: Sequence[optuna.Study]
    ) -> list[Mapping[str, BaseDistribution]]:
        """Copy the relatives' trials that lie in this space; the dimensions that they were chosen from."""
        there = [t.params for t in history.get_trials(deepcopy=False)]
        trials = [trial for relative in relatives for trial in self.ended(relative)]
        for trial in trials:
            fits = trial.params.keys() == self.dimensions.keys() and all(
                d._contains(d.to_internal_repr(trial.params[name])) for name, d in self.dimensions.items()
            )
            if fits and trial.params not in there:
                there.append(trial.params)
                history.add_trial(
                    create_trial(
                        state=trial.state,
                        value=trial.value,
                        params=trial.params,
                        distributions=dict(self.dimensions),
                        user_attrs=trial.user_attrs,
                    )
                )
        return [trial.distributions for trial in trials]

    def _new_values(self, known: Sequence[Mapping[str, BaseDistribution]]) -> list[tuple[str, Any]]:
        """Choices and parts of ranges that no earlier space has offered, as (parameter, value)."""
        new: list[tuple[str, Any]] = []
        for name, dimension in self.dimensions.items():
            before = [d[name] for d in known if name in d]
            if isinstance(dimension, CategoricalDistribution):
                offered = {c for d in before for c in getattr(d, "choices", ())}
                new += [(name, choice) for choice in dimension.choices if choice not in offered]
            elif before and isinstance(dimension, FloatDistribution):
                low, high = min(d.low for d in before), max(d.high for d in before)  # type: ignore[attr-defined]
                parts = ((dimension.low, min(low, dimension.high)), (max(high, dimension.low), dimension.high))
                new += [(name, math.sqrt(a * b)) for a, b in parts if a < b]
        return new


class _Rounds:
    """A search under way: asks for rounds of trials and takes their values."""

    def __init__(self, search: Search, storage: BaseStorage, starts: Iterable[Mapping[str, Any]]) -> None:
        self.search = search
        self.history = search.begin(storage, starts)
        self._running: dict[str, optuna.Trial] = {}
        self._left = 0

    @property
    def finished(self) -> bool:
        return not self._running and not self.search.missing(self.history)

    def ask(self, trial_id: str) -> TrialJob | None:
        """Another trial's work; None while a round is under way, or when there is no more to ask."""
        if not self._running:
            # Rounds begin at fixed numbers, so that a round that was interrupted is completed before the next.
            ended = len(self.search.ended(self.history))
            self._left = min(self.search.at_once - ended % self.search.at_once, self.search.missing(self.history))
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
        if record is None:
            self.search.ask_again(self.history, trial._get_latest_trial())
            self._left += bool(self._running)
        elif "error" in record:
            self.history.tell(trial, record["error"])
        else:
            trial.set_user_attr(REASON, record["reason"])
            trial.set_user_attr(STATE, record["state"])
            self.history.tell(trial, state=TrialState.FAIL)


class BudgetSearcher(Searcher):
    """Tune's searcher: offers trials of all searches that may run now.

    Args:
        searches: those of one method must come with budgets ascending.
        storage: Optuna's; it holds everything that has to outlive the process.
        on_finish: called with each search when its last trial has ended.
        stopped: whether no more trials shall begin.
    """

    def __init__(
        self,
        searches: Sequence[Search],
        storage: BaseStorage,
        on_finish: Callable[[Search], None],
        stopped: Callable[[], object] = lambda: None,
    ) -> None:
        super().__init__()
        self._storage = storage
        self._on_finish = on_finish
        self._stopped = stopped
        self._losses = 0
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
        waiting = (search for chain in self._chains.values() for search in chain)
        return sum(search.missing(load(self._storage, search.name)) for search in waiting) + sum(
            rounds.search.missing(rounds.history) for rounds in self._active.values()
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

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        if not self._active or self._losses >= LOSSES or self._stopped():
            return Searcher.FINISHED
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
        record = None if error else result
        self._losses = self._losses + 1 if record is None else 0
        rounds.tell(trial_id, record)
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
    if not searcher.trials_left:
        return
    # Ctrl-C ends the driver, which loses nothing; Tune would first wait for its trials to save themselves.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
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
            search_alg=searcher, num_samples=-1, max_concurrent_trials=at_once, reuse_actors=True
        ),
        run_config=tune.RunConfig(name=f"search-{time.time_ns()}", storage_path=scratch, verbose=0),
    ).fit()
