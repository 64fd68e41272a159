"""Searches under Tune, on a real Ray cluster: one Optuna study each, in order, resumed, never repeated."""

from functools import partial

import optuna
import pytest
from optuna.storages import JournalStorage
from optuna.storages.journal import JournalFileBackend
from optuna.trial import FixedTrial, TrialState
from toy import ARCHITECTURE

from sibcl_ray.methods import METHODS, Choice, Space, first_parameters, propose
from sibcl_ray.search import BudgetSearcher, Search, run_searches

SPACE = Space(
    architectures=(ARCHITECTURE,),
    epochs=(1, 2),
    temperatures=(0.1, 0.3, 0.9),
    learning_rates=(1e-4, 1e-1),
    steps=(5, 10),
)
SYMMETRIES = ("translation", "point_group")
METHOD = METHODS["SIB-CL"]


class Job(dict):
    """What a trial would do."""


def value_of(job: Job) -> dict:
    """The stand-in for training: best at learning rate 1e-2 and temperature 0.3."""
    choice: Choice = job["choice"]
    error = abs(choice.finetuning.learning_rate - 1e-2) + abs(choice.pretraining.temperature - 0.3)
    return {"state": "done", "error": error, "reason": ""}


def a_search(budget=25, trials=6, method=METHOD) -> Search:
    return Search(
        name=f"{method.name} at {budget}",
        method=method.name,
        budget=budget,
        trials=trials,
        at_once=2,
        seed=0,
        start=first_parameters(method, SPACE, SYMMETRIES),
        propose=partial(propose, method=method, space=SPACE, symmetries=SYMMETRIES),
        job=lambda choice: Job(choice=choice, budget=budget),
    )


@pytest.fixture
def storage(tmp_path):
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    return JournalStorage(JournalFileBackend(str(tmp_path / "journal")))


def drive(searcher: BudgetSearcher, evaluate=value_of, order=lambda ids: ids, stop_after=10**6) -> list[dict]:
    """What Tune does, without Tune: ask while there is something, then end the trials in some order."""
    jobs, number = [], 0
    while searcher.trials_left and len(jobs) < stop_after:
        running = {}
        while (config := searcher.suggest(str(number))) is not None:
            running[str(number)] = config["job"]
            jobs.append(config["job"])
            number += 1
        for trial_id in order(list(running)):
            searcher.on_trial_complete(trial_id, evaluate(running[trial_id]))
    return jobs


def history_of(search: Search, storage) -> list[dict]:
    return [t.params for t in search.ended(search.open(storage))]


def test_the_first_trial_takes_the_first_values(storage):
    drive(BudgetSearcher([a_search()], storage, lambda s: None))
    first = a_search().choice(a_search().ended(a_search().open(storage))[0])
    assert first.pretraining.temperature == 0.1
    assert first.finetuning.steps == 5
    assert first.finetuning.learning_rate == pytest.approx((1e-4 * 1e-1) ** 0.5)


def test_proposals_do_not_depend_on_which_trial_ends_first(tmp_path):
    histories = []
    for name, order in (("a", lambda ids: ids), ("b", lambda ids: ids[::-1])):
        storage = JournalStorage(JournalFileBackend(str(tmp_path / name)))
        searches = [a_search(25, 8), a_search(25, 8, METHODS["SL-I"])]
        drive(BudgetSearcher(searches[:1], storage, lambda s: None), order=order)
        histories.append(history_of(searches[0], storage))
    assert histories[0] == histories[1]


def test_a_larger_budget_starts_from_the_best_of_the_smaller(storage):
    small, large = a_search(25), a_search(100)
    finished = []
    drive(BudgetSearcher([small, large], storage, lambda s: finished.append(s.budget)))
    best = [t.params for t in small.best(small.open(storage), 3)]
    assert history_of(large, storage)[:3] == best
    assert finished == [25, 100]
    assert large.best(large.open(storage))[0].value <= small.best(small.open(storage))[0].value


def test_more_trials_add_only_the_new(storage):
    drive(BudgetSearcher([a_search(trials=4)], storage, lambda s: None))
    before = history_of(a_search(), storage)
    jobs = drive(BudgetSearcher([a_search(trials=6)], storage, lambda s: None))
    assert len(jobs) == 2
    assert history_of(a_search(), storage)[:4] == before
    assert drive(BudgetSearcher([a_search(trials=6)], storage, lambda s: None)) == []


def test_a_trial_whose_process_died_is_tried_again(storage):
    searcher = BudgetSearcher([a_search()], storage, lambda s: None)
    lost = [searcher.suggest(str(i))["job"]["choice"] for i in range(2)]  # asked, and never told
    jobs = drive(BudgetSearcher([a_search()], storage, lambda s: None))
    assert len(jobs) == 6
    assert set(map(repr, lost)) <= {repr(job["choice"]) for job in jobs}
    assert not a_search().open(storage).get_trials(states=(TrialState.RUNNING,))


def test_a_failed_trial_counts_and_a_search_of_failures_has_no_winner(storage):
    failed = {"state": "diverged", "reason": "the loss became nan"}
    jobs = drive(BudgetSearcher([a_search()], storage, lambda s: None), evaluate=lambda job: failed)
    history = a_search().open(storage)
    assert len(jobs) == 6 and a_search().missing(history) == 0
    assert a_search().winner(history) is None


def test_the_winner_is_the_best_and_only_when_all_is_done(storage):
    drive(BudgetSearcher([a_search()], storage, lambda s: None), stop_after=3)
    assert a_search().winner(a_search().open(storage)) is None
    drive(BudgetSearcher([a_search()], storage, lambda s: None))
    history = a_search().open(storage)
    assert a_search().winner(history) == a_search().choice(min(history.get_trials(), key=lambda t: t.value))


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_method_is_offered_only_what_it_uses(method):
    params = first_parameters(method, SPACE, SYMMETRIES)
    choice = propose(FixedTrial(params), method, SPACE, SYMMETRIES)
    assert ("temperature" in params) == method.contrastive
    assert ("epochs" in params) == method.pretrains == (choice.pretraining is not None)
    assert bool(choice.finetuning.augmentation) == bool(choice.finetuning.views) == method.invariant


def test_tune_runs_all_searches_in_one_experiment(cluster, storage, tmp_path):
    searches = [a_search(b, 3, METHODS[m]) for m in ("SIB-CL", "SIB-CL-plain") for b in (25, 100)]
    finished = []
    searcher = BudgetSearcher(searches, storage, lambda s: finished.append(s.name))
    run_searches(searcher, value_of, at_once=4, scratch=str(tmp_path))
    assert searcher.trials_left == 0
    assert sorted(finished) == sorted(s.name for s in searches)
    assert all(len(s.ended(s.open(storage))) == 3 for s in searches)
