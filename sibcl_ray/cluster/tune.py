"""All searches of a study behind one Tune searcher, as one Tune experiment; those of different methods side by side.

Trials of one search are asked for in rounds, each trial seeded by its number, so that the proposals do not
depend on which worker was faster; the first round is all trials that are random.
"""

import logging
import os
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from functools import cache
from itertools import islice
from typing import Any

import optuna
import ray
from optuna.samplers import TPESampler
from optuna.storages import BaseStorage
from optuna.trial import TrialState
from ray import tune
from ray.tune.schedulers import FIFOScheduler
from ray.tune.search import Searcher

from sibcl_ray.cluster.trial_process import Payload
from sibcl_ray.learning.jobs import TrialJob
from sibcl_ray.randomness import named_seed
from sibcl_ray.search.history import load, running
from sibcl_ray.search.search import REASON, STATE, Search
from sibcl_ray.storage.records import DIVERGED, Record

STARTS = 3  # how many of a smaller budget's best configurations start the next
LOSSES = 20  # trials in a row whose processes end without a result, before the cluster is given up


def sampler(search: Search, ordinal: int) -> TPESampler:
    """Optuna's sampler of a search's trial of that ordinal; the first half of the trials are random.

    All arguments that decide proposals are passed, as defaults may change; the others are deprecated.
    """
    return TPESampler(
        n_startup_trials=search.trials // 2,
        n_ei_candidates=24,
        multivariate=True,
        group=False,
        constant_liar=True,
        seed=named_seed(search.seed, search.method, search.budget, ordinal) % 2**32,
    )


def _first_round(search: Search) -> int:
    """As many trials as are random, and so the same whether any of them has a value or not, in whole rounds."""
    return -(-(search.trials // 2) // search.at_once) * search.at_once


class _Rounds:
    """A search under way: asks for rounds of trials and takes their values."""

    def __init__(self, search: Search, storage: BaseStorage, starts: Iterable[Mapping[str, Any]]) -> None:
        self.search = search
        self.history = search.begin(storage, starts)
        self._asked: deque[optuna.Trial] = deque()  # of this round, for the next callers
        self.running: dict[str, optuna.Trial] = {}  # by Tune's name of the trial

    @property
    def finished(self) -> bool:
        return not self.search.missing(self.history)

    def ask(self, trial_id: str) -> TrialJob | None:
        """Another trial's work; None while a round is under way, or when there is no more to ask."""
        if not (self.running or self._asked):
            self._asked.extend(self._round())
        if not self._asked:
            return None
        trial = self.running[trial_id] = self._asked.popleft()
        return self.search.job(self.search.propose(trial))

    def _round(self) -> list[optuna.Trial]:
        """The trials of the next round, all proposed before any of them has a value.

        Rounds begin at fixed numbers, and what a driver that died was running comes first: so one that was
        interrupted is completed before the next, and no trial knows more than it would have known without.
        """
        search, history = self.search, self.history
        ended = len(search.ended(history))
        end = max(_first_round(search), ended - ended % search.at_once + search.at_once)
        size = min(end - ended, search.missing(history))
        trials = running(history, size)
        for ordinal in range(ended + len(trials), ended + size):
            history.sampler = sampler(search, ordinal)
            trials.append(history.ask())
            search.propose(trials[-1])
        return trials

    def tell(self, trial_id: str, record: Record | None) -> None:
        """Ends a trial with its job's record; None where its process ended without one."""
        trial = self.running.pop(trial_id)
        if record is None:
            self._asked.append(trial)
        elif "error" in record:
            self.history.tell(trial, record["error"])
        else:
            trial.set_user_attr(REASON, record["reason"])
            trial.set_user_attr(STATE, record["state"])
            # Of one that diverged the sampler learns that it is worse than all others; of a failed one, nothing.
            worst = record["state"] == DIVERGED
            self.history.tell(trial, state=TrialState.PRUNED if worst else TrialState.FAIL)


class BudgetSearcher(Searcher):
    """Tune's searcher: offers trials of all searches that may run now.

    Args:
        searches: those of one method must come with budgets ascending.
        storage: Optuna's; it holds everything that has to outlive the process.
        on_finish: called with each search when its last trial has ended.
        stopped: whether no more trials shall begin.
        warn: told that searches go on with another version of Optuna, once of each.
    """

    def __init__(
        self,
        searches: Sequence[Search],
        storage: BaseStorage,
        on_finish: Callable[[Search], None],
        stopped: Callable[[], object] = lambda: None,
        warn: Callable[[str], None] = lambda line: None,
    ) -> None:
        super().__init__()
        self._searches, self._storage, self._on_finish, self._stopped = searches, storage, on_finish, stopped
        self._warn = cache(warn)  # once of each line
        self._losses = 0
        methods: dict[str, list[Search]] = {}
        for search in searches:
            methods.setdefault(search.method, []).append(search)
        # of all trials: a round of each method, of whichever of its searches
        self.at_once = sum(max(max(s.at_once, _first_round(s)) for s in chain) for chain in methods.values())
        self._begun = {method: self._begin(chain) for method, chain in methods.items()}
        # What is under way: a search of each method, the one that has waited longest first.
        self._active = [rounds for begun in self._begun.values() for rounds in islice(begun, 1)]

    @property
    def trials_left(self) -> int:
        """How many trials Tune will have to run."""
        return sum(search.missing(load(self._storage, search.name)) for search in self._searches)

    def _begin(self, searches: Iterable[Search]) -> Iterator[_Rounds]:
        """A method's searches with trials missing, each begun from what the one before has found when that is over."""
        rounds: _Rounds | None = None
        for search in searches:
            best = rounds.search.best(rounds.history, STARTS) if rounds else []
            rounds = _Rounds(search, self._storage, [t.params for t in best] or [search.start])
            if before := search.note_version(rounds.history):  # others propose differently from the same seed
                self._warn(
                    f"searches that were begun with Optuna {before} go on with {optuna.__version__}, which may propose "
                    "others; install the former for the same trials"
                )
            if not rounds.finished:
                yield rounds
            self._on_finish(search)

    def suggest(self, trial_id: str) -> dict[str, Any] | str | None:  # type: ignore[override]
        if not self._active or self._losses >= LOSSES or self._stopped():
            return Searcher.FINISHED
        for rounds in self._active:  # side by side
            if (job := rounds.ask(trial_id)) is not None:
                self._active.remove(rounds)
                self._active.append(rounds)
                return {"job": Payload(job)}
        return None

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        rounds = next(rounds for rounds in self._active if trial_id in rounds.running)
        record = None if error else result
        self._losses = self._losses + 1 if record is None else 0
        rounds.tell(trial_id, record)
        if rounds.finished:
            self._active.remove(rounds)
            self._active.extend(islice(self._begun[rounds.search.method], 1))

    def __getstate__(self) -> dict[str, Any]:
        """Nothing for Tune's own checkpoint to hold: the state is in Optuna's storage."""
        return {}

    def save(self, checkpoint_path: str) -> None:
        """Nothing, likewise."""

    restore = save


class _FirstCome(FIFOScheduler):
    """Leaves it to Tune which trial starts; Tune's own scheduler asks all that ever were, several times a trial."""

    def choose_trial_to_run(self, tune_controller: Any) -> None:
        return None


def run_searches(searcher: BudgetSearcher, trainable: Callable[..., None], at_once: int, scratch: str) -> None:
    """Run all missing trials as one Tune experiment.

    Args:
        searcher: what to try.
        trainable: reports the record of the job in ``config["job"]``, a `Payload`.
        at_once: how many trials may wait for workers at the same time; each takes a process.
        scratch: an absolute folder of the driver's node for Tune's own files; trials have none.
    """
    if not searcher.trials_left:
        return
    # Ctrl-C ends the driver, which loses nothing; Tune would first wait for its trials to save themselves.
    os.environ["TUNE_DISABLE_SIGINT_HANDLER"] = "1"
    os.environ["TUNE_DISABLE_AUTO_CALLBACK_LOGGERS"] = "1"
    os.environ["TUNE_GLOBAL_CHECKPOINT_S"] = "1e9"  # all trials every time, and nothing is ever restored from it
    os.environ["RAY_AIR_NEW_OUTPUT"] = "0"  # the new output prints a banner even if it is asked for none
    logging.getLogger("ray.tune").setLevel(logging.CRITICAL)  # pages of trace for a trial that is asked for again
    # Trials only wait: beside the driver, as elsewhere they would keep machines that could be given back. A CPU for
    # each would starve the workers that they wait for.
    here = ray.get_runtime_context().get_node_id()
    address = next(node["NodeManagerAddress"] for node in ray.nodes() if node["NodeID"] == here)
    tune.Tuner(
        tune.with_resources(trainable, tune.PlacementGroupFactory([{f"node:{address}": 1e-3}])),
        tune_config=tune.TuneConfig(
            search_alg=searcher,
            scheduler=_FirstCome(),
            num_samples=-1,
            max_concurrent_trials=min(at_once, searcher.at_once),
            reuse_actors=True,
        ),
        run_config=tune.RunConfig(name=f"search-{time.time_ns()}", storage_path=scratch, verbose=0),
    ).fit()
