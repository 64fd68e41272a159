"""What a store holds of a study: all that is missing and no more, each cell with its state, nothing ever deleted."""

from collections import Counter
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pandas as pd
import pyarrow.parquet as pq
import pytest
from stores import names_in
from toy import ARCHITECTURE, Moments

from sibcl_ray.cluster.tune import BudgetSearcher
from sibcl_ray.data.dataset import SHARD, TARGET, TEST, UNLABELLED
from sibcl_ray.learning.jobs import CellJob, PretrainJob, TrialJob
from sibcl_ray.search.methods import METHODS, Space
from sibcl_ray.storage.folders import Folder
from sibcl_ray.storage.records import ATTEMPTS, DIVERGED, DONE, FAILED, failure, timed, write_record
from sibcl_ray.storage.store import VERSION, VERSION_NAME, NewerStore, Store
from sibcl_ray.study.ledger import Ledger
from sibcl_ray.study.matrix import MATRIX_SCHEMA, MISSING
from sibcl_ray.study.study import Study

SPACE = Space(architectures=(ARCHITECTURE,), epochs=(1, 2), learning_rates=(1e-4, 1e-1), steps=(5, 10))
STUDY = Study(
    name="toy",
    problem=Moments(),
    methods=(METHODS["SL"], METHODS["SSL"]),
    budgets=(10, 20),
    searched=(10, 20),
    space=SPACE,
    trials=4,
    folds=2,
    seeds=2,
    unlabelled=60,
    surrogate=0,
    test=50,
    pool=200,
)
TRIALS, CELLS = 2 * 2 * 4, 2 * 2 * 2  # of STUDY


class Place:
    """A store and histories that outlive any ledger."""

    def __init__(self, store, url):
        self.store, self.url, self.said = store, url, []

    def open(self, study=STUDY):
        """As a new process does; what it warns of is noted."""
        return Ledger(study, self.store, self.url, self.said.append)

    def files(self):
        """The content of everything that is stored, by name."""
        return {name: self.store.read(name) for name in names_in(self.store)}


@contextmanager
def quick_folder():
    """A folder where writing is quick."""
    memory = Path("/dev/shm")
    with TemporaryDirectory(dir=memory if memory.is_dir() else None) as folder:
        yield Path(folder)


@pytest.fixture
def place():
    with quick_folder() as folder:
        yield Place(Store(str(folder / "store")), None)


journal_first = pytest.mark.parametrize(  # where both histories were already seen to hold the same
    "any_place", ["journal", pytest.param("database", marks=pytest.mark.thorough)], indirect=True
)


@pytest.fixture(params=["journal", pytest.param("database", marks=pytest.mark.thorough)])
def any_place(request):
    with quick_folder() as folder:
        if request.param == "journal":
            yield Place(Store(str(folder / "store")), None)
        else:
            yield Place(Store(f"memory://{folder.name}"), f"sqlite:///{folder}/optuna.db")


def good(job):
    """The stand-in for training."""
    if isinstance(job, PretrainJob):
        return {"state": DONE, "reason": "", "weights": "0" * 64}
    error = abs(job.configuration.learning_rate - 1e-2) + 1 / job.budget
    more = {"sample_errors": [error, error]} if isinstance(job, CellJob) else {}
    return {"state": DONE, "reason": "", "error": error, **more}


def enter(job, outcome):
    record = timed({**outcome, "remade": []}, 2.0)
    write_record(job, record)
    return record


def fill(ledger, end=good, cells=True):
    """What a run does, without the work: whatever is missing, and the jobs that were new."""
    made = []

    def result(job):
        for needed in (*job.requires, job):
            if not ledger.records([needed.record_name]):
                made.append(needed)
                enter(needed, end(needed))
        return ledger.records([job.record_name])[job.record_name]

    searcher, number = BudgetSearcher(ledger.searches(), ledger.storage, lambda search: None), 0
    while searcher.trials_left:
        job = searcher.suggest(str(number))["job"].open()
        searcher.on_trial_complete(str(number), result(job))
        number += 1
    for cell in ledger.cells() if cells else ():
        if cell.job:
            result(cell.job)
    return made


def counts(jobs):
    return Counter(type(job) for job in jobs)


def lacks(ledger):
    missing = ledger.missing()
    return missing.trials, missing.cells


def make_shards(ledger):
    for shard in ledger.missing().shards:
        dataset = ledger.dataset
        sample = dataset.problem.sample(SHARD, dataset.rng(shard.role, shard.index))
        dataset.write(
            shard.role, shard.index, sample, dataset.problem.solve(sample.inputs) if shard.role.labelled else None
        )


@contextmanager
def counted_reads():
    """Counts what is read from any folder."""
    seen, read = Counter(), Folder.read

    def counting(self, name):
        seen[name] += 1
        return read(self, name)

    Folder.read = counting
    try:
        yield seen
    finally:
        Folder.read = read


class CutOff(BaseException):
    """The driver is killed."""


@contextmanager
def killed_at_move(number):
    """A driver that is killed before it moves so many files and folders."""
    moves, move = Counter(), Store.move

    def counting(self, source, target):
        if moves.total() == number:
            raise CutOff
        moves[source] += 1
        move(self, source, target)

    Store.move = counting
    try:
        yield
    except CutOff:
        pass
    finally:
        Store.move = move


# What is missing


@journal_first
def test_of_a_new_study_everything_is_missing(any_place):
    ledger = any_place.open()
    assert lacks(ledger) == (TRIALS, CELLS) and ledger.missing()
    assert Counter(shard.role for shard in ledger.missing().shards) == {TARGET: 1, TEST: 1, UNLABELLED: 2}
    matrix = ledger.matrix()
    assert len(matrix) == CELLS and set(matrix.state) == {MISSING} and matrix.error.isna().all()
    assert set(matrix.reason) == {"its search is not finished"} and set(matrix.encoder) == {""}
    assert ledger.trials().empty and any_place.said == []


def test_of_a_finished_study_nothing_is_missing_not_even_data_that_are_gone(place):
    made = fill(place.open())
    assert counts(made)[TrialJob] == TRIALS and counts(made)[CellJob] == CELLS and counts(made)[PretrainJob] > 0
    ledger = place.open()
    assert not ledger.missing() and ledger.missing().shards == []
    assert set(ledger.matrix().state) == {DONE} and fill(ledger) == []
    assert len(ledger.trials()) == TRIALS and set(ledger.trials().state) == {"complete"}


def test_what_is_there_in_part_is_missing_in_part(place):
    ledger = place.open()
    searcher = BudgetSearcher(ledger.searches(), ledger.storage, lambda search: None)
    for ended in range(5):
        assert lacks(place.open()) == (TRIALS - ended, CELLS)
        job = searcher.suggest(str(ended))["job"].open()
        searcher.on_trial_complete(str(ended), enter(job, good(job)))
    fill(ledger, cells=False)
    assert lacks(place.open()) == (0, CELLS)
    for number, cell in enumerate(ledger.cells()):
        enter(cell.job, good(cell.job))
        assert lacks(place.open()) == lacks(ledger) == (0, CELLS - number - 1)


def test_only_shards_that_are_not_there_are_missing(place):
    make_shards(place.open())
    assert place.open().missing().shards == []
    larger = place.open(replace(STUDY, budgets=(10, 20, SHARD + 1), unlabelled=110))
    found = {(shard.role, shard.index) for shard in larger.missing().shards}
    assert found == {(TARGET, 1), (UNLABELLED, 2)}


# Extensions


EXTENSIONS = {
    "a budget": ({"budgets": (10, 20, 40), "searched": (10, 20, 40)}, 2 * 4, 2 * 2),
    "a smaller budget": ({"budgets": (5, 10, 20), "searched": (5, 10, 20)}, 2 * 4, 2 * 2),
    "a budget that is not searched": ({"budgets": (10, 20, 40)}, 0, 2 * 2),
    "a method": ({"methods": (METHODS["SL"], METHODS["SL-I"], METHODS["SSL"])}, 2 * 4, 2 * 2),
    "seeds": ({"seeds": 5}, 0, 3 * 2 * 2),
    "a budget, a method and a seed": (
        {
            "budgets": (10, 20, 40),
            "searched": (10, 20, 40),
            "methods": (METHODS["SL"], METHODS["SSL"], METHODS["SSL-I"]),
            "seeds": 3,
        },
        2 * 4 + 3 * 4,
        3 * 3 * 3 - CELLS,
    ),
}


@pytest.mark.parametrize(("changes", "trials", "cells"), EXTENSIONS.values(), ids=EXTENSIONS)
def test_of_an_extended_study_only_the_new_is_missing(changes, trials, cells, place):
    fill(place.open())
    before = place.open().matrix()
    extended = place.open(replace(STUDY, **changes))
    assert lacks(extended) == (trials, cells)
    made = counts(fill(extended))
    assert (made[TrialJob], made[CellJob]) == (trials, cells)
    assert not place.open(replace(STUDY, **changes)).missing() and not place.open().missing()
    matrix = place.open(replace(STUDY, **changes)).matrix()
    assert len(matrix) == len(before) + cells
    old = matrix[matrix.finished.isin(before.finished)].reset_index(drop=True)
    assert old.drop(columns="sample_errors").equals(before.drop(columns="sample_errors")), "what was there has changed"


def test_more_trials_are_the_only_trials_missing_and_cells_wait_for_the_winner(place):
    """Which is often the same, and then its cells are there."""
    fill(place.open())
    more = place.open(replace(STUDY, trials=6))
    assert lacks(more) == (2 * 2 * 2, CELLS) and set(more.matrix().reason) == {"its search is not finished"}
    made = counts(fill(more, lambda job: {**good(job), **({"error": 9.0} if isinstance(job, TrialJob) else {})}))
    assert made[TrialJob] == 2 * 2 * 2 and made[CellJob] == 0
    assert not place.open(replace(STUDY, trials=6)).missing() and set(more.matrix().state) == {DONE}


def test_a_smaller_study_finds_what_a_larger_one_has_made(place):
    fill(place.open())
    for changes in ({"methods": STUDY.methods[:1]}, {"budgets": (10,)}, {"seeds": 1}, {"trials": 2}):
        assert not place.open(replace(STUDY, **changes)).missing()


@pytest.mark.parametrize("changes", [{"seed": 1}, {"folds": 3}, {"name": "another"}], ids=str)
def test_another_study_begins_anew(changes, place):
    fill(place.open())
    assert lacks(place.open(replace(STUDY, **changes))) == (TRIALS, CELLS)
    assert not place.open().missing()


# States of cells


def ending_badly(job):
    """Of the cells of seed 1, SL fails and SSL diverges."""
    if isinstance(job, CellJob) and job.seed == 1:
        return failure("OSError: the disk is full") if job.method == "SL" else {"state": DIVERGED, "reason": "nan"}
    return good(job)


@journal_first
def test_cells_that_failed_or_diverged_are_in_the_matrix_with_their_reasons(any_place):
    fill(any_place.open(), ending_badly)
    ledger = any_place.open()
    assert not ledger.missing(), "they have come to an end that stands"
    matrix = ledger.matrix()
    bad = matrix[matrix.seed == 1]
    assert dict(zip(bad.method, zip(bad.state, bad.reason, strict=True), strict=True)) == {
        "SL": (FAILED, "OSError: the disk is full"),
        "SSL": (DIVERGED, "nan"),
    }
    assert bad.error.isna().all() and (bad.seconds == 2.0).all() and bad.sample_errors.isna().all()
    assert set(matrix[matrix.seed == 0].state) == {DONE} and (matrix.configuration != "null").all()


def test_a_failure_that_will_be_tried_again_is_shown_and_missing(place):
    ledger = place.open()
    fill(ledger, cells=False)
    job = ledger.cells()[0].job
    enter(job, {**failure("OSError: a hiccup"), "attempts": ATTEMPTS - 1})
    assert lacks(ledger) == (0, CELLS) and ledger.matrix().state[0] == FAILED
    enter(job, good(job))
    assert lacks(ledger) == (0, CELLS - 1) and ledger.matrix().state[0] == DONE


def test_cells_whose_search_has_no_winner_have_failed(place):
    """And nothing can be done about them."""

    def end(job):
        return {"state": DIVERGED, "reason": "nan"} if isinstance(job, TrialJob) and job.method == "SSL" else good(job)

    made = fill(place.open(), end)
    assert counts(made)[CellJob] == CELLS / 2
    ledger = place.open()
    matrix = ledger.matrix().query("method == 'SSL'")
    assert not ledger.missing() and set(matrix.state) == {FAILED}
    assert set(matrix.reason) == {"nan (in the first trial of its search; all failed)"}
    assert Counter(ledger.trials().state) == {"complete": TRIALS // 2, "failed": TRIALS // 2}


def test_looking_changes_nothing(any_place):
    """Where there is nothing, where there is a study, and where all kinds of its files are damaged."""

    def everything():
        database = Path(any_place.url.removeprefix("sqlite:///")) if any_place.url else None
        root = Path(any_place.store.uri)
        folders = {path: path.stat().st_mtime_ns for path in (root, *root.rglob("*")) if path.exists()}
        return any_place.files(), folders, database and database.is_file() and database.read_bytes()

    def looked():
        before = everything()
        store = replace(any_place.store, read_only=True)
        store.open()
        ledger = Ledger(STUDY, store, any_place.url, any_place.said.append)
        missing = ledger.missing()
        assert len(ledger.matrix()) == CELLS and len(ledger.trials()) == TRIALS - missing.trials
        assert everything() == before
        return missing

    assert looked().cells == CELLS
    any_place.store.open()
    make_shards(any_place.open())
    fill(any_place.open())
    assert not looked()
    for name in any_place.files():
        if name.startswith(("datasets/", "ledger/cell/")) or name.endswith("sibcl_ray.json"):
            any_place.store.write(name, any_place.store.read(name)[:-7])
    assert looked().cells == CELLS and any("ledger/cell/" in line for line in any_place.said)


def test_the_reason_of_the_first_trial_is_that_of_its_cells(place):
    reasons = iter(["its pretraining ended failed: OSError: no data", *["ValueError: another"] * TRIALS])
    fill(place.open(), lambda job: failure(next(reasons)) if isinstance(job, TrialJob) else good(job))
    first = place.open().matrix().query("method == 'SL' and budget == 10")
    assert set(first.state) == {FAILED}
    assert set(first.reason) == {
        "its pretraining ended failed: OSError: no data (in the first trial of its search; all failed)"
    }


def test_the_matrix_says_what_its_errors_are_in(place):
    matrix = place.open().matrix()
    assert set(matrix.error_units) == {""}, "the toy has an error of its own, and does not say"

    class InVolts(Moments):
        error_units = " milli\nvolt "

    said = place.open(replace(STUDY, problem=InVolts())).matrix()
    assert set(said.error_units) == {"milli volt"}


def test_the_matrix_comes_back_from_its_file(place):
    fill(place.open(), ending_badly)
    matrix = place.open().matrix()
    table = pq.read_table(place.open().write_matrix(matrix))
    assert table.schema.equals(MATRIX_SCHEMA) and table.num_rows == CELLS
    assert table["state"].to_pylist() == list(matrix.state) and table["error"].null_count == CELLS / 2
    assert table["sample_errors"][0].as_py() == list(matrix.sample_errors[0])


# Tried again


def test_exactly_the_failures_are_tried_again(any_place):
    fill(any_place.open(), ending_badly)
    before = any_place.files()
    failed = {job.record_name for job in bad_cells(any_place) if job.method == "SL"}
    assert any_place.open().retry_failures() == len(failed) == 2
    after = any_place.files()
    gone = before.keys() - after.keys()
    assert gone == failed
    assert Counter(before[name] for name in gone) == Counter(
        data for name, data in after.items() if name.startswith("aside/failed-")
    )
    assert lacks(any_place.open()) == (0, 2) and Counter(any_place.open().matrix().state)[DIVERGED] == 2
    assert counts(fill(any_place.open())) == {CellJob: 2} and any_place.open().retry_failures() == 0


def bad_cells(place, study=STUDY):
    return [cell.job for cell in place.open(study).cells() if cell.job and cell.seed == 1]


def trial_records(place):
    return [place.store.read_record(name) for name in place.files() if name.startswith("ledger/trial/")]


def mostly_failing(job):
    """Some trials fail, and some diverge; so do all cells of seed 1 fail."""
    end = int(job.configuration.learning_rate * 1e7) % 3
    if isinstance(job, TrialJob) and end:
        return failure("OSError: the disk is full") if end == 1 else {"state": DIVERGED, "reason": "nan"}
    return failure("MemoryError") if isinstance(job, CellJob) and job.seed == 1 else good(job)


def test_failed_trials_and_failed_cells_of_the_same_search_are_tried_again_at_once(place):
    study = replace(STUDY, trials=6)
    fill(place.open(study), mostly_failing)
    cells = {job.record_name for job in bad_cells(place, study)}
    states = Counter(record["state"] for record in trial_records(place))
    failed, diverged = states[FAILED], states[DIVERGED]
    assert cells and failed and diverged, "the test is of no use without all ends"
    assert Counter(place.open(study).trials().state)["failed"] == failed + diverged
    assert place.open(study).retry_failures() == failed + len(cells)
    again = place.open(study)
    assert again.missing().trials == failed and not cells & place.files().keys()
    worse = fill(again, lambda job: {**good(job), **({"error": 9.0} if isinstance(job, TrialJob) else {})})
    assert counts(worse)[TrialJob] == failed and cells <= {job.record_name for job in worse}, "the winners are the same"
    assert set(again.matrix().state) == {DONE} and not place.open(study).missing()
    assert Counter(again.trials().state)["failed"] == diverged


def test_a_failed_pretraining_is_tried_again_with_what_failed_for_it(place):
    study = replace(STUDY, methods=STUDY.methods[1:])

    def end(job):
        if isinstance(job, PretrainJob):
            return failure("OSError: the disk is full")
        return failure("its pretraining ended failed")

    made = counts(fill(place.open(study), end))
    assert made[CellJob] == 0 and set(place.open(study).matrix().state) == {FAILED}
    assert place.open(study).retry_failures() == made[TrialJob] + made[PretrainJob]
    assert lacks(place.open(study)) == (8, 4)
    assert counts(fill(place.open(study)))[PretrainJob] >= made[PretrainJob]
    assert set(place.open(study).matrix().state) == {DONE}


@journal_first
def test_of_a_study_without_failures_nothing_is_tried_again(any_place):
    assert any_place.open().retry_failures() == 0
    fill(any_place.open())
    before = any_place.files()
    assert any_place.open().retry_failures() == 0 and any_place.files() == before


@pytest.mark.parametrize("moves", [0, 1, 5])
def test_asking_for_another_try_may_be_cut_off_and_repeated(moves, place):
    fill(place.open(), mostly_failing)
    cells = {job.record_name for job in bad_cells(place)}
    failed = Counter(record["state"] for record in trial_records(place))[FAILED]
    assert cells and failed > 1
    with killed_at_move(moves):
        place.open().retry_failures()
        pytest.fail("it was not cut off")
    place.open().retry_failures()
    assert place.open().missing().trials == failed and not cells & place.files().keys()
    assert Counter(record["state"] for record in trial_records(place))[FAILED] == 0


# Set aside


def test_what_is_set_aside_is_kept_byte_for_byte_under_another_name(any_place):
    ledger = any_place.open()
    make_shards(ledger)
    fill(ledger, ending_badly)
    ledger.write_matrix(ledger.matrix())
    ledger.store.write("artefacts/one.safetensors", b"weights")
    before = any_place.files()
    folder = any_place.open().set_aside()
    after = any_place.files()
    aside = folder.split(ledger.store.path("aside"), 1)[1].strip("/")
    stays = {name for name in before if name.startswith(("datasets/", "artefacts/"))}
    assert stays and {f"aside/{aside}/{name}" for name in before.keys() - stays} == {
        name for name in after if name.startswith("aside/")
    }
    assert all(after[name if name in stays else f"aside/{aside}/{name}"] == data for name, data in before.items())
    if any_place.url is None:
        journal = f"{ledger.folder}/search.journal"
        assert after[f"aside/{aside}/{journal}"] == before[journal] and not after[journal]


def test_after_setting_aside_the_study_begins_anew_with_its_data(place):
    ledger = place.open()
    make_shards(ledger)
    first = fill(ledger)
    before = ledger.matrix().error
    ledger.set_aside()
    for again in (ledger, place.open()):
        assert lacks(again) == (TRIALS, CELLS) and again.missing().shards == [] and again.trials().empty
        assert set(again.matrix().state) == {MISSING}
    assert [job.key for job in fill(ledger)] == [job.key for job in first]
    assert ledger.matrix().error.equals(before)
    ledger.set_aside()
    assert len(ledger.store.names("aside")) == 2


@pytest.mark.parametrize("moves", [0, 1, 9, 20])
def test_setting_aside_may_be_cut_off_and_repeated_and_loses_nothing(moves, place):
    fill(place.open(), ending_badly)
    before = place.files()
    with killed_at_move(moves):
        place.open().set_aside()
        pytest.fail("it was not cut off")
    assert Counter(before.values()) == Counter(place.files().values())
    place.open().set_aside()
    assert not Counter(before.values()) - Counter(place.files().values())
    assert lacks(place.open()) == (TRIALS, CELLS) and not any(name.startswith("ledger/") for name in place.files())


def test_setting_aside_leaves_other_studies_alone(place):
    fill(place.open())
    other = replace(STUDY, name="toy-2", seed=1)
    fill(place.open(other))
    place.open().set_aside()
    assert lacks(place.open()) == (TRIALS, CELLS) and not place.open(other).missing()


def test_setting_aside_what_is_not_there_is_no_error(place):
    place.open().set_aside()
    assert lacks(place.open()) == (TRIALS, CELLS)


# Damage


@pytest.mark.parametrize("damage", [lambda d: b"", lambda d: d[:-9], lambda d: d.replace(b"done", b"gone")])
def test_a_damaged_record_is_kept_aside_told_in_one_line_and_missing_again(damage, place):
    fill(place.open())
    job = place.open().cells()[3].job
    data = damage(place.store.read(job.record_name))
    place.store.write(job.record_name, data)
    ledger = place.open()
    assert lacks(ledger) == (0, 1) and ledger.matrix().state[3] == MISSING and ledger.matrix().reason[3] == ""
    (line,) = place.said
    assert job.record_name in line and "kept as aside/damaged/" in line and "made again" in line and "\n" not in line
    kept = line.split("kept as ")[1].split()[0]
    assert place.store.read(kept) == data
    assert fill(ledger) == [job] and not place.open().missing() and len(place.said) == 1


def test_a_damaged_record_of_a_trial_costs_the_search_nothing(place):
    """Its value is in the history."""
    fill(place.open())
    for name in place.files():
        if name.startswith("ledger/trial/"):
            place.store.write(name, b"{")
    assert not place.open().missing() and len(place.open().trials()) == TRIALS


def test_a_lost_history_is_found_again_from_the_records(place):
    """The same trials are proposed, and their results are there."""
    first = fill(place.open())
    matrix = place.open().matrix()
    place.store.remove(f"{place.open().folder}/search.journal")
    assert lacks(place.open()) == (TRIALS, CELLS) and first
    assert fill(place.open()) == []
    again = place.open().matrix()
    assert again.drop(columns="sample_errors").equals(matrix.drop(columns="sample_errors"))


def test_a_ledger_of_a_later_version_is_refused_in_one_line_and_left_alone(place):
    place.store.open()
    fill(place.open())
    place.store.write_record(VERSION_NAME, {"version": VERSION + 1})
    before = place.files()
    with pytest.raises(NewerStore, match="install a newer sibcl_ray") as refusal:
        place.store.open()
    assert "\n" not in str(refusal.value) and f"version {VERSION + 1}" in str(refusal.value)
    assert place.files() == before


# Other drivers, and cost


@journal_first
def test_who_has_waited_for_another_driver_sees_what_that_has_done(any_place):
    """Which may be to begin anew, or to choose another winner."""
    fill(any_place.open())
    waiting = any_place.open()
    assert not waiting.missing()
    any_place.open().set_aside()
    waiting.writable()
    assert lacks(waiting) == (TRIALS, CELLS) and set(waiting.matrix().state) == {MISSING}


def test_who_has_waited_for_another_driver_takes_the_winner_that_it_has_found(place):
    fill(place.open())
    waiting = place.open()
    before = [cell.job.key for cell in waiting.cells()]
    better = replace(STUDY, trials=6)
    fill(place.open(better), lambda job: {**good(job), "error": 0.0} if isinstance(job, TrialJob) else good(job))
    waiting.writable()
    now = [cell.job.key for cell in waiting.cells()]
    assert now == [cell.job.key for cell in place.open().cells()] and set(now).isdisjoint(before)


@pytest.mark.parametrize("seeds", [1, 4, 16])
def test_every_cell_is_read_once_however_many_there_are(seeds, place):
    study = replace(STUDY, seeds=seeds)
    fill(place.open(study))
    ledger = place.open(study)
    with counted_reads() as reads:
        ledger.matrix()
        cells = {name: count for name, count in reads.items() if name.startswith("ledger/cell/")}
        assert len(cells) == 4 * seeds and set(cells.values()) == {1}
        once = reads.total()
        ledger.matrix(), ledger.missing(), ledger.cells()
        assert reads.total() == once, "what stands is not read again"


def noted(ledger):
    """The ledger of a study that has been run, and of which a driver has kept what it chose."""
    fill(ledger)
    for search in ledger.searches():
        ledger.note(search)
    return ledger


def test_the_matrix_and_the_trials_are_all_that_was_done_whatever_is_asked_for(any_place):
    matrix, trials = (whole := noted(any_place.open())).matrix(), whole.trials()
    assert len(matrix) == CELLS and len(trials) == TRIALS
    for changes in ({"methods": (METHODS["SL"],)}, {"budgets": (10,), "seeds": 1}, {"trials": 2}):
        ledger = any_place.open(replace(STUDY, **changes))
        pd.testing.assert_frame_equal(ledger.matrix(), matrix)
        pd.testing.assert_frame_equal(ledger.trials(), trials)
        assert len(ledger.asked(matrix)) == len(ledger.cells())
    ledger = any_place.open(replace(STUDY, methods=(METHODS["TL"],), surrogate=60))
    assert Counter(ledger.matrix().state) == {DONE: CELLS, MISSING: 4} and set(
        ledger.asked(ledger.matrix()).method
    ) == {"TL"}


def test_of_a_cell_that_was_done_twice_that_of_the_longest_search_is_shown(place):
    noted(place.open(replace(STUDY, space=replace(SPACE, batch=8))))
    longer = noted(place.open(replace(STUDY, trials=6, space=replace(SPACE, batch=16)))).matrix()
    assert set(longer.trials) == {6} and len(longer) == CELLS
    pd.testing.assert_frame_equal(place.open(replace(STUDY, space=replace(SPACE, batch=8))).matrix(), longer)


def test_errors_on_other_labels_are_not_in_the_same_matrix(place):
    noted(place.open())
    other = place.open(replace(STUDY, test=60, methods=(METHODS["SL"],)))
    assert set(other.matrix().state) == {MISSING} and len(other.matrix()) == 4 and not len(other.trials())


def test_of_an_unfinished_study_only_what_may_still_come_is_read_again(place):
    study = replace(STUDY, seeds=8)
    ledger = place.open(study)
    fill(ledger, cells=False)
    jobs = [cell.job for cell in ledger.cells()]
    for done in (0, 10, 31):
        for job in jobs[:done]:
            enter(job, good(job))
        ledger.missing()
        with counted_reads() as reads:
            assert lacks(ledger) == (0, len(jobs) - done)
        assert sum(name.startswith("ledger/") for name in reads.elements()) == len(jobs) - done


def test_what_is_asked_for_twice_is_read_once(place):
    ledger = place.open()
    fill(ledger)
    name = ledger.cells()[0].job.record_name
    fresh = place.open()
    with counted_reads() as reads:
        records = fresh.records([name, name])
        assert list(records) == [name] and records == fresh.records([name])
        assert reads == {name: 1} and fresh.records([]) == {}
