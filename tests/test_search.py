"""Searches: one Optuna study each, in order, resumed wherever they were cut off, extended, never repeated."""

import inspect
import math
import re
from contextlib import contextmanager
from dataclasses import fields, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import optuna
import pytest
from optuna.samplers import TPESampler
from optuna.storages import JournalStorage
from optuna.trial import TrialState
from ray import tune
from toy import ARCHITECTURE

from sibcl_ray.cluster.tune import BudgetSearcher, run_searches, sampler
from sibcl_ray.search.history import Journal, load, open_history
from sibcl_ray.search.methods import METHODS, Choice, Space, Tuning
from sibcl_ray.search.search import FIXED, Search
from sibcl_ray.storage.store import Store

SPACE = Space(
    architectures=(ARCHITECTURE,),
    epochs=(1, 2),
    temperatures=(0.1, 0.3, 0.9),
    learning_rates=(1e-4, 1e-1),
    steps=(5, 10),
)
SYMMETRIES = ("translation", "point_group")
METHOD = METHODS["SIB-CL"]
SMALL = METHODS["SL-I"]  # of few dimensions


class Job(dict):
    """What a trial would do."""


def value_of(job: Job) -> dict:
    """The stand-in for training: best at learning rate 1e-2 and temperature 0.3."""
    choice: Choice = job["choice"]
    error = abs(choice.finetuning.learning_rate - 1e-2)
    error += abs(choice.pretraining.temperature - 0.3) if choice.pretraining else 0
    return {"state": "done", "error": error, "reason": ""}


def mixed(job: Job) -> dict:
    """Some trials diverge, and some fail."""
    end = int(job["choice"].finetuning.learning_rate * 1e8) % 4
    states = {0: "diverged", 1: "failed"}
    return {"state": states[end], "reason": f"the end was {end}"} if end in states else value_of(job)


def a_search(budget=25, trials=6, method=METHOD, space=SPACE) -> Search:
    return Search(
        family=f"{method.name} at {budget}",
        method=method.name,
        budget=budget,
        trials=trials,
        at_once=2,
        seed=0,
        tuning=Tuning(method, space, SYMMETRIES),
        job=lambda choice: Job(choice=choice, budget=budget),
    )


@pytest.mark.parametrize("method", [METHODS["SL-I"], METHODS["SIB-CL"], METHODS["SL"]], ids=lambda m: m.name)
def test_equivariances_augment_labels_and_no_contrastive_view(method):
    tuning = Tuning(method, SPACE, SYMMETRIES, ("scaling",))
    assert ("augment_scaling" in tuning.dimensions) == method.invariant
    assert "view_scaling" not in tuning.dimensions
    assert ("view_translation" in tuning.dimensions) == method.contrastive
    choice = tuning.choice(tuning.start)
    assert [name for name, _ in choice.finetuning.augmentation] == [*SYMMETRIES, "scaling"] * method.invariant


@pytest.mark.parametrize("name", [field.name for field in fields(Space)])
def test_every_field_of_a_space_is_chosen_from_or_named(name):
    another = {"architectures": (replace(ARCHITECTURE, projection=5),), "batch": 16, "views": 4}.get(name, (0.25, 0.75))
    first, second = (Tuning(METHOD, space, SYMMETRIES) for space in (SPACE, replace(SPACE, **{name: another})))
    assert (first.dimensions, first.constants) != (second.dimensions, second.constants)


@pytest.fixture
def storage(tmp_path):
    return open_history(Store(str(tmp_path)), "study", None)


@contextmanager
def quick_folder(folder):
    """A folder of the same name where writing is quick."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(prefix=folder.name, dir=memory if memory.is_dir() else folder) as quick:
        yield Path(quick)


@pytest.fixture(params=["journal", "database"])
def any_storage(request, tmp_path):
    with quick_folder(tmp_path) as folder:
        url = f"sqlite:///{folder}/optuna.db" if request.param == "database" else None
        yield open_history(Store(str(folder)), "study", url)


def begun(searches, storage) -> BudgetSearcher:
    return BudgetSearcher(searches, storage, lambda search: None)


def drive(
    searcher: BudgetSearcher, evaluate=value_of, order=lambda ids: ids, stop_after=10**6, slots=10**6, lose=()
) -> list[dict]:
    """What Tune does, without Tune: ask while there is something and room, then end trials in some order.

    Of the trials that end, those whose ordinal is in ``lose`` lose their process.
    """
    jobs, ended, running = [], 0, {}
    while searcher.trials_left and len(jobs) < stop_after:
        while len(running) < slots and (config := searcher.suggest(str(len(jobs)))) is not None:
            running[str(len(jobs))] = config["job"].open()
            jobs.append(running[str(len(jobs))])
        for trial_id in order(list(running))[:slots]:
            job = running.pop(trial_id)
            lost = ended in lose
            searcher.on_trial_complete(trial_id, None if lost else evaluate(job), error=lost)
            ended += 1
    return jobs


def history_of(search: Search, storage) -> list[dict]:
    return [t.params for t in search.ended(load(storage, search.name))]


def outcomes(searches, storage) -> list:
    """All that a search has found, in order, and what it chose."""
    return [
        (
            [(t.params, t.value, t.user_attrs.get("state")) for t in search.ended(load(storage, search.name))],
            search.winner(load(storage, search.name)),
        )
        for search in searches
    ]


def test_the_first_trial_takes_the_first_values(storage):
    drive(BudgetSearcher([a_search()], storage, lambda s: None))
    first = a_search().tuning.choice(a_search().ended(load(storage, a_search().name))[0].params)
    assert first.pretraining.temperature == 0.1
    assert first.finetuning.steps == 5
    assert first.finetuning.learning_rate == pytest.approx((1e-4 * 1e-1) ** 0.5)


def test_proposals_depend_neither_on_which_trial_ends_first_nor_on_how_many_run_at_once(tmp_path):
    histories = []
    backwards = {"order": lambda ids: ids[::-1]}
    for how in ({}, backwards, {"slots": 1}, {"slots": 3}, {"slots": 3, **backwards}):
        storage = open_history(Store(str(tmp_path)), f"study{len(histories)}", None)
        searches = [a_search(25, 8), a_search(25, 8, SMALL)]
        drive(begun(searches, storage), **how)
        histories.append([[t.params for t in s.best(load(storage, s.name), 8)] for s in searches])
    assert all(history == histories[0] for history in histories[1:])


def test_a_larger_budget_starts_from_the_best_of_the_smaller(storage):
    small, large = a_search(25), a_search(100)
    finished = []
    drive(BudgetSearcher([small, large], storage, lambda s: finished.append(s.budget)))
    best = [t.params for t in small.best(load(storage, small.name), 3)]
    assert history_of(large, storage)[:3] == best
    assert finished == [25, 100]
    assert large.best(load(storage, large.name))[0].value <= small.best(load(storage, small.name))[0].value


def test_more_trials_add_only_the_new(storage):
    drive(BudgetSearcher([a_search(trials=4)], storage, lambda s: None))
    before = history_of(a_search(), storage)
    jobs = drive(BudgetSearcher([a_search(trials=6)], storage, lambda s: None))
    assert len(jobs) == 2
    assert history_of(a_search(), storage)[:4] == before
    assert drive(BudgetSearcher([a_search(trials=6)], storage, lambda s: None)) == []


def test_a_trial_whose_process_died_is_tried_again(storage):
    searcher = BudgetSearcher([a_search()], storage, lambda s: None)
    lost = [searcher.suggest(str(i))["job"].open()["choice"] for i in range(2)]  # asked, and never told
    jobs = drive(BudgetSearcher([a_search()], storage, lambda s: None))
    assert len(jobs) == 6
    assert set(map(repr, lost)) <= {repr(job["choice"]) for job in jobs}
    assert not load(storage, a_search().name).get_trials(states=(TrialState.RUNNING,))


# Disturbances: the same history, in the same order, as if nothing had happened.


CHAIN = [a_search(budget, trials, SMALL) for budget, trials in ((25, 5), (100, 3))]
WIDER = replace(SPACE, steps=(5, 20, 10), learning_rates=(1e-4, 1.0))
EXTENDED = [a_search(budget, trials, SMALL, WIDER) for budget, trials in ((25, 5), (100, 5))]


@contextmanager
def journal(folder, lines):
    """A history of these lines."""
    with quick_folder(folder) as quick:
        path, said = quick / "search.journal", []
        path.write_bytes(b"".join(lines))
        backend = Journal(path)
        backend.mend(said.append)
        yield JournalStorage(backend), path, said


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory):
    """The journals of a study, and of the same extended by its space, with what they say."""
    stages, lines = [], []
    for searches in (CHAIN, EXTENDED):
        with journal(tmp_path_factory.mktemp("undisturbed"), lines) as (storage, path, _):
            drive(begun(searches, storage), mixed)
            before, lines = len(lines), path.read_bytes().splitlines(keepends=True)
            stages.append((searches, lines, before, outcomes(searches, storage)))
    ends = [found[2] for trials, _ in stages[0][3] for found in trials]
    assert {None, "failed", "diverged"} == set(ends), "the test is of no use without all ends"
    return stages


@pytest.mark.parametrize("torn", [False, True], ids=["between lines", "within a line"])
@pytest.mark.parametrize("stage", [pytest.param(0, marks=pytest.mark.thorough), 1], ids=["new", "extended"])
def test_a_driver_killed_at_any_operation_changes_nothing(stage, torn, undisturbed, tmp_path):
    """Every prefix of the journal is what a driver may leave, and the next one ends the same."""
    searches, lines, first, expected = undisturbed[stage]
    for cut in range(first, len(lines) + (not torn)):
        rest = [lines[cut][: len(lines[cut]) // 2]] if torn else []
        with journal(tmp_path, lines[:cut] + rest) as (storage, _, said):
            known = [found[0] for trials, _ in outcomes(searches, storage) for found in trials]
            jobs = drive(begun(searches, storage), mixed)
            assert outcomes(searches, storage) == expected, f"cut off after {cut} operations"
            ends = sum(len(trials) for trials, _ in expected)
            assert len(known) + len(jobs) <= ends, "a trial that had ended was run again"
            assert not said, "a torn last line is nobody's business"


def test_a_driver_killed_again_and_again_changes_nothing(undisturbed, tmp_path):
    """Each gets a few operations further than the one before: one proposal, at times, and a part of the next."""
    searches, _, _, expected = undisturbed[0]
    lines: list[bytes] = []
    for _ in range(200):
        with journal(tmp_path, lines) as (storage, path, _):
            drive(begun(searches, storage), mixed)
            after = path.read_bytes().splitlines(keepends=True)
            if len(after) <= len(lines) + 16:
                assert outcomes(searches, storage) == expected
                return
            lines = after[: len(lines) + 16]
    raise AssertionError("it never ends")


def test_a_damaged_line_loses_only_what_comes_after_it(undisturbed, tmp_path):
    searches, lines, _, expected = undisturbed[0]
    for number in range(0, len(lines), 7):
        changed = bytearray(lines[number])
        changed[len(changed) // 2] ^= 1
        damaged = [*lines[:number], bytes(changed), *lines[number + 1 :]]
        with journal(tmp_path, damaged) as (storage, path, said):
            (kept,) = path.parent.glob("*.damaged-*")
            assert kept.read_bytes() == b"".join(damaged)
            assert len(said) == 1 and f"from line {number + 1} on" in said[0] and kept.name in said[0]
            drive(begun(searches, storage), mixed)
            assert outcomes(searches, storage) == expected


def test_trial_processes_lost_at_any_point_change_nothing(undisturbed, tmp_path):
    searches, _, _, expected = undisturbed[0]
    ends = sum(len(trials) for trials, _ in expected)
    for lose in [*({i} for i in range(ends)), {0, 1, 2, 3}, {3, 4, 5}, set(range(0, 2 * ends, 2))]:
        for how in ({}, {"slots": 1}):
            with journal(tmp_path, []) as (storage, _, _):
                jobs = drive(begun(searches, storage), mixed, lose=lose, **how)
                assert outcomes(searches, storage) == expected
                assert len(jobs) <= ends + len(lose)


def test_a_cluster_that_loses_every_trial_is_given_up(storage):
    searcher = begun([a_search()], storage)
    for number in range(1000):
        if searcher.suggest(str(number)) == "FINISHED":
            break
        searcher.on_trial_complete(str(number), error=True)
    assert number == 20 and searcher.trials_left == 6


# Extensions


def extended(search, storage, evaluate=value_of):
    """The parameters of the trials that this search still asks for."""
    return [job["choice"] for job in drive(begun([search], storage), evaluate)]


def test_a_new_value_is_tried_once_with_the_best_of_the_others(any_storage):
    old = a_search()
    drive(begun([old], any_storage))
    best = old.best(load(any_storage, old.name))[0]
    new = a_search(space=replace(SPACE, temperatures=(0.1, 0.3, 0.9, 0.5)))
    (choice,) = extended(new, any_storage)
    assert choice.pretraining.temperature == 0.5
    history = history_of(new, any_storage)
    assert history == [*history_of(old, any_storage), {**best.params, "temperature": 0.5}]
    assert extended(new, any_storage) == [] and len(history_of(old, any_storage)) == 6


def test_both_ends_of_a_wider_range_are_tried(storage):
    old, new = a_search(), a_search(space=replace(SPACE, learning_rates=(1e-6, 1.0)))
    drive(begun([old], storage))
    tried = [choice.finetuning.learning_rate for choice in extended(new, storage)]
    assert tried == pytest.approx([math.sqrt(1e-6 * 1e-4), math.sqrt(1e-1 * 1.0)])
    assert history_of(new, storage)[:6] == history_of(old, storage)


@pytest.mark.parametrize(
    ("space", "lies_in"),
    [
        (replace(SPACE, temperatures=(0.3,)), lambda t: t["temperature"] == 0.3),
        (replace(SPACE, learning_rates=(1e-3, 1e-2)), lambda t: 1e-3 <= t["learning_rate"] <= 1e-2),
        (replace(SPACE, steps=(10,)), lambda t: t["steps"] == 10),
    ],
    ids=["a choice", "a range", "another choice"],
)
def test_a_smaller_space_keeps_what_lies_in_it_and_completes_the_rest(space, lies_in, storage):
    old, new = a_search(), a_search(space=space)
    drive(begun([old], storage))
    kept = [t for t in history_of(old, storage) if lies_in(t)]
    assert len(extended(new, storage)) == 6 - len(kept) > 0
    history = history_of(new, storage)
    assert history[: len(kept)] == kept and len(history) == 6 and all(map(lies_in, history))


def test_a_space_that_comes_back_finds_all_that_was_ever_tried(storage):
    old, new = a_search(), a_search(space=replace(SPACE, temperatures=(0.3, 0.5)))
    both = a_search(space=replace(SPACE, temperatures=(0.1, 0.3, 0.9, 0.5)))
    drive(begun([old], storage))
    drive(begun([new], storage))
    assert extended(old, storage) == [] == extended(both, storage)
    everything = history_of(old, storage) + history_of(new, storage)
    assert all(t in history_of(both, storage) for t in everything)


def test_failures_are_taken_over_too(storage):
    old, new = a_search(), a_search(space=replace(SPACE, temperatures=(0.1, 0.3, 0.9, 0.5)))
    drive(begun([old], storage), mixed)
    drive(begun([new], storage), mixed)
    assert outcomes([new], storage)[0][0][:6] == outcomes([old], storage)[0][0]


@pytest.mark.parametrize(
    ("change", "affected"),
    [
        ({"temperatures": (0.1, 0.3, 0.9, 0.5)}, {"SSL", "SSL-I", "SSL-I-delta", "SIB-CL", "SIB-CL-plain"}),
        ({"epochs": (1, 2, 3)}, {"TL", "TL-I", "SSL", "SSL-I", "SSL-I-delta", "SIB-CL", "SIB-CL-plain"}),
        ({"label_probabilities": (0.5, 0.9)}, {"SL-I", "TL-I", "SSL-I", "SIB-CL", "SL-I-delta", "SSL-I-delta"}),
        ({"weight_decays": (0.01, 0.1)}, set(METHODS)),
    ],
    ids=lambda value: str(value) if isinstance(value, dict) else "",
)
def test_methods_that_do_not_use_a_dimension_keep_their_histories(change, affected):
    space = replace(SPACE, **change)
    searches = [(a_search(method=m), a_search(method=m, space=space)) for m in METHODS.values()]
    assert {old.method for old, new in searches if old.name != new.name} == affected


# Failures that are tried again


def test_failures_are_tried_again_with_the_same_parameters_and_divergences_are_not(any_storage):
    search = a_search(trials=8)
    drive(begun([search], any_storage), mixed)
    ((before, _),) = outcomes([search], any_storage)
    failed = [params for params, _, state in before if state == "failed"]
    assert failed and any(state == "diverged" for *_, state in before)
    assert [t.params for t in search.retry_failures(any_storage)] == failed
    assert search.missing(load(any_storage, search.name)) == len(failed)
    extended(search, any_storage)
    ((after, _),) = outcomes([search], any_storage)
    assert [t[0] for t in after[-len(failed) :]] == failed and all(t[1] is not None for t in after[-len(failed) :])
    assert after[: -len(failed)] == [t for t in before if t[2] != "failed"]
    assert search.retry_failures(any_storage) == [] and extended(search, any_storage) == []


def test_of_a_divergence_the_sampler_learns_and_of_a_failure_it_does_not(storage):
    drive(begun([a_search(trials=8)], storage), mixed)
    trials = load(storage, a_search(trials=8).name).get_trials()
    states = {t.user_attrs.get("state"): t.state for t in trials}
    assert states == {None: TrialState.COMPLETE, "diverged": TrialState.PRUNED, "failed": TrialState.FAIL}


def test_the_sampler_is_seeded_by_what_the_search_is_of_and_not_by_its_name():
    one, other = a_search(), replace(a_search(), family="another version of the code")
    assert one.name != other.name
    drawn = [
        sampler(s, 3)._rng.rng.random(4).tolist() for s in (one, other, replace(one, budget=100), replace(one, seed=1))
    ]
    assert drawn[0] == drawn[1] and drawn[0] != drawn[2] != drawn[3] != drawn[0]


def test_asking_for_another_try_may_be_cut_off_and_repeated(tmp_path):
    search = a_search(trials=8)
    with journal(tmp_path, []) as (storage, path, _):
        drive(begun([search], storage), mixed)
        before = path.read_bytes().splitlines(keepends=True)
        failed = [t.params for t in search.retry_failures(storage)]
        lines = path.read_bytes().splitlines(keepends=True)
    assert len(lines) > len(before) + 1
    for cut in range(len(before), len(lines)):
        with journal(tmp_path, lines[:cut]) as (storage, _, _):
            assert [t.params for t in search.retry_failures(storage)] == failed
            waiting = load(storage, search.name).get_trials(states=(TrialState.WAITING,))
            assert [t.system_attrs[FIXED] for t in waiting] == failed


def test_a_search_that_goes_on_with_another_optuna_says_so_once(storage, monkeypatch):
    searches, said = [a_search(25), a_search(100)], []

    def searcher():
        return BudgetSearcher(searches, storage, lambda s: None, warn=said.append)

    drive(searcher(), stop_after=3)
    assert said == [] and load(storage, searches[0].name).user_attrs["optuna"] == [optuna.__version__]
    monkeypatch.setattr(optuna, "__version__", "5.7.1")
    drive(searcher(), stop_after=1)
    drive(searcher())
    (line,) = said
    assert re.search(r"begun with Optuna \d+\.\d+\.\d+ go on with 5\.7\.1, which may propose others", line)
    assert [len(load(storage, s.name).user_attrs["optuna"]) for s in searches] == [2, 1]
    drive(searcher())
    assert len(said) == 1


def test_what_was_searched_before_versions_were_recorded_says_so(storage):
    search, said = a_search(), []
    optuna.create_study(storage=storage, study_name=search.name)
    drive(BudgetSearcher([search], storage, lambda s: None, warn=said.append))
    assert len(said) == 1 and "of an unknown version" in said[0]


DEPRECATED = {"consider_prior", "prior_weight", "consider_magic_clip", "consider_endpoints", "gamma", "weights"}
DEPRECATED |= {"warn_independent_sampling", "constraints_func", "categorical_distance_func"}


def test_nothing_that_decides_on_proposals_is_left_to_a_default(monkeypatch):
    known = set(inspect.signature(TPESampler).parameters) - DEPRECATED
    monkeypatch.setattr("sibcl_ray.cluster.tune.TPESampler", lambda **passed: passed)
    assert sampler(a_search(), 0).keys() == known


def test_a_search_of_which_nothing_is_there_has_no_failures(storage):
    assert a_search().retry_failures(storage) == [] and load(storage, a_search().name) is None


def test_a_failed_trial_counts_and_a_search_of_failures_has_no_winner(storage):
    failed = {"state": "diverged", "reason": "the loss became nan"}
    jobs = drive(BudgetSearcher([a_search()], storage, lambda s: None), evaluate=lambda job: failed)
    history = load(storage, a_search().name)
    assert len(jobs) == 6 and a_search().missing(history) == 0
    assert a_search().winner(history) is None


def test_the_winner_is_the_best_and_only_when_all_is_done(storage):
    drive(BudgetSearcher([a_search()], storage, lambda s: None), stop_after=3)
    assert a_search().winner(load(storage, a_search().name)) is None
    drive(BudgetSearcher([a_search()], storage, lambda s: None))
    history = load(storage, a_search().name)
    best = min(history.get_trials(), key=lambda t: t.value)
    assert a_search().winner(history) == a_search().tuning.choice(best.params)


@pytest.mark.parametrize("method", METHODS.values(), ids=METHODS)
def test_a_method_is_offered_only_what_it_uses(method):
    params = (tuning := Tuning(method, SPACE, SYMMETRIES)).start
    choice = tuning.choice(params)
    assert ("temperature" in params) == method.contrastive
    assert ("epochs" in params) == method.pretrains == (choice.pretraining is not None)
    assert bool(choice.finetuning.augmentation) == bool(choice.finetuning.views) == method.invariant


@pytest.mark.parametrize("at_once", [1, 2, 3])
def test_the_first_half_is_asked_for_at_once_and_is_the_same_one_by_one(at_once, tmp_path):
    search = replace(a_search(trials=8), at_once=at_once)
    storage, other = (open_history(Store(str(tmp_path)), name, None) for name in ("rounds", "one by one"))
    searcher = begun([search], storage)
    number = 0
    while searcher.suggest(str(number)) is not None:
        number += 1
    assert number == {1: 4, 2: 4, 3: 6}[at_once] == searcher.at_once
    history = search.begin(other, [search.start])
    for ordinal in range(4):
        history.sampler = sampler(search, ordinal)
        trial = history.ask()
        history.tell(trial, value_of(search.job(search.propose(trial)))["error"])
    asked = [t.params for t in load(storage, search.name).get_trials()]
    assert asked[:4] == [t.params for t in history.get_trials()]


@pytest.mark.thorough  # test_a_study_from_nothing shows it too
def test_tune_runs_all_searches_in_one_experiment(cluster, storage, tmp_path):
    searches = [a_search(25, 2, METHODS["SIB-CL"]), a_search(100, 2, METHODS["SIB-CL-plain"])]
    finished = []
    searcher = BudgetSearcher(searches, storage, lambda s: finished.append(s.name))
    run_searches(searcher, lambda config: tune.report(value_of(config["job"].open())), at_once=2, scratch=str(tmp_path))
    assert searcher.trials_left == 0
    assert sorted(finished) == sorted(s.name for s in searches)
    assert all(len(s.ended(load(storage, s.name))) == 2 for s in searches)
