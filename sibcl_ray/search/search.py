"""The search of one method at one budget: an Optuna study that can be resumed, and extended by its space.

Budgets of a method are searched from the smallest: the labels of a budget are among those of the next,
so the best configurations of a smaller budget may start a larger one, never the other way round.
"""

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import optuna
from optuna.distributions import BaseDistribution, CategoricalDistribution, distribution_to_json
from optuna.storages import BaseStorage
from optuna.trial import FrozenTrial, TrialState, create_trial

from sibcl_ray.learning.jobs import TrialJob
from sibcl_ray.search.history import load, names
from sibcl_ray.search.methods import Choice, Tuning
from sibcl_ray.storage.fingerprint import fingerprint
from sibcl_ray.storage.records import FAILED

REASON, STATE = "reason", "state"  # attributes of a trial that ended without a value
FIXED = "fixed_params"  # Optuna's attribute of a trial whose parameters were asked for
OPTUNA = "optuna"  # attribute of a history: the versions that have proposed its trials, in their order
WANTED, RETRIED = "wanted", "retried"  # attributes of a history: trials it needs at least; failed ones, given up


@dataclass(frozen=True, kw_only=True)
class Search:
    """The search of one method at one budget.

    ``family`` fixes everything that the value of a trial depends on besides its parameters; ``name`` the space as well.
    """

    family: str
    method: str
    budget: int
    trials: int
    at_once: int  # trials of a round
    seed: int
    tuning: Tuning
    job: Callable[[Choice], TrialJob]  # the work of a configuration

    @cached_property
    def name(self) -> str:
        """Of the search's history."""
        space = {name: distribution_to_json(d) for name, d in self.tuning.dimensions.items()}
        return f"{self.family}, space {fingerprint(space)[:8]}"

    @property
    def start(self) -> dict[str, Any]:
        """Parameters of the first trial, if no smaller budget offers better ones."""
        return self.tuning.start

    @staticmethod
    def ended(history: optuna.Study | None) -> list[FrozenTrial]:
        """Trials with a value or a reason. One whose process died has neither, and does not count."""
        if history is None:
            return []
        states = (TrialState.COMPLETE, TrialState.PRUNED, TrialState.FAIL)
        trials = history.get_trials(deepcopy=False, states=states)
        retried = history.user_attrs.get(RETRIED, ()) if any(STATE in t.user_attrs for t in trials) else ()
        return [
            t for t in trials if t.state == TrialState.COMPLETE or (REASON in t.user_attrs and t.number not in retried)
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

    def propose(self, trial: optuna.Trial) -> Choice:
        """The configuration of a trial under way, which chooses what it has not chosen yet."""
        for name, d in self.tuning.dimensions.items():
            if isinstance(d, CategoricalDistribution):
                trial.suggest_categorical(name, d.choices)
            else:
                trial.suggest_float(name, d.low, d.high, log=True)
        return self.tuning.choice(trial.params)

    def winner(self, history: optuna.Study | None) -> Choice | None:
        """The configuration that the search chose; None while it goes on, or if every trial failed."""
        best = self.best(history)
        return self.tuning.choice(best[0].params) if best and not self.missing(history) else None

    def failure(self, history: optuna.Study | None) -> str:
        """Why a search that has ended has no winner: the reason of its first trial."""
        return f"{self.ended(history)[0].user_attrs[REASON]} (in the first trial of its search; all failed)"

    def retry_failures(self, storage: BaseStorage) -> list[FrozenTrial]:
        """Have the trials that failed, but did not diverge, tried again; which those are."""
        if (history := load(storage, self.name)) is None:
            return []
        failed = [t for t in self.ended(history) if t.user_attrs.get(STATE) == FAILED]
        waiting = history.get_trials(deepcopy=False, states=(TrialState.WAITING,))
        for trial in failed:
            if not any(trial.params == w.system_attrs.get(FIXED) for w in waiting):  # of a driver that died here
                history.enqueue_trial(trial.params)
        if failed:
            history.set_user_attr(RETRIED, [*history.user_attrs.get(RETRIED, ()), *(t.number for t in failed)])
        return failed

    def begin(self, storage: BaseStorage, starts: Iterable[Mapping[str, Any]]) -> optuna.Study:
        """The history, resumed or new.

        Trials that a driver left running stay so, for the next. A new history of a space that has changed takes over
        the trials which lie in it, and tries every new value at least once, with the best of the others.
        """
        if (history := load(storage, self.name)) is None:
            history = optuna.create_study(storage=storage, study_name=self.name)
            history.set_user_attr(OPTUNA, [optuna.__version__])
        for trial in history.get_trials(deepcopy=False, states=(TrialState.RUNNING,)):
            # One that was cut off while it was asked for is proposed anew, and the same, from the same seed.
            if trial.params.keys() != self.tuning.dimensions.keys() and FIXED not in trial.system_attrs:
                history.tell(trial.number, state=TrialState.FAIL)
        if WANTED not in history.user_attrs:
            relatives = [n for n in names(storage) if n.startswith(f"{self.family}, space ") and n != self.name]
            trials = [trial for name in relatives for trial in self.ended(load(storage, name))]
            self._take_over(history, trials)
            new = self._new_values([trial.distributions for trial in trials]) if trials else []
            best = [trial.params for trial in self.best(history)] or [self.start]
            for name, value in new:
                history.enqueue_trial({**best[0], name: value}, skip_if_exists=True)
            history.set_user_attr(WANTED, len(self.ended(history)) + len(new))
        for start in starts:
            history.enqueue_trial(dict(start), skip_if_exists=True)
        return history

    def note_version(self, history: optuna.Study) -> str | None:
        """Record the version of Optuna that proposes from now on, if trials are missing; the one before, if another."""
        used = history.user_attrs.get(OPTUNA, ["of an unknown version"])
        if not self.missing(history) or used[-1] == optuna.__version__:
            return None
        history.set_user_attr(OPTUNA, [*used, optuna.__version__])
        return used[-1]

    def _take_over(self, history: optuna.Study, trials: Iterable[FrozenTrial]) -> None:
        """Copy those that lie in this space."""
        dimensions: dict[str, BaseDistribution] = {**self.tuning.dimensions}
        there = [t.params for t in history.get_trials(deepcopy=False)]
        for t in trials:
            if self.tuning.offers(t.params) and t.params not in there:
                there.append(t.params)
                history.add_trial(
                    create_trial(
                        state=t.state, value=t.value, params=t.params, distributions=dimensions, user_attrs=t.user_attrs
                    )
                )

    def _new_values(self, known: Sequence[Mapping[str, BaseDistribution]]) -> list[tuple[str, Any]]:
        """Choices and parts of ranges that no earlier space has offered, as (parameter, value)."""
        new: list[tuple[str, Any]] = []
        for name, d in self.tuning.dimensions.items():
            before: list[Any] = [dimensions[name] for dimensions in known if name in dimensions]
            if isinstance(d, CategoricalDistribution):
                offered = {choice for b in before for choice in getattr(b, "choices", ())}
                new += [(name, choice) for choice in d.choices if choice not in offered]
            elif before:
                parts = (d.low, min(d.high, *(b.low for b in before))), (max(d.low, *(b.high for b in before)), d.high)
                new += [(name, math.sqrt(low * high)) for low, high in parts if low < high]
        return new
