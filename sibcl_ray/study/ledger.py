"""The ledger: what a store holds of a study, what is missing, and the learning-curve matrix.

A record is an entry: a pretraining, a trial or a cell that has come to an end. Searches' histories refer to them.
"""

import re
import time
import uuid
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import partial
from itertools import product
from typing import Any, TypeVar

import pandas as pd

from sibcl_ray.data.dataset import SURROGATE, TARGET, UNLABELLED, Dataset, Shard
from sibcl_ray.data.definitions import LEARNED, deciding, version_of
from sibcl_ray.learning.jobs import CellJob, PretrainJob, TrialJob
from sibcl_ray.learning.model import boundaries
from sibcl_ray.search.history import load, names, open_history
from sibcl_ray.search.history import set_aside as set_histories_aside
from sibcl_ray.search.methods import METHODS, Choice, Method
from sibcl_ray.search.search import Search
from sibcl_ray.storage.fingerprint import fingerprint
from sibcl_ray.storage.records import FAILED, Record, is_final
from sibcl_ray.storage.store import Store
from sibcl_ray.study.matrix import MATRIX_SCHEMA, MISSING, Cell, outcome, plain_row, worth
from sibcl_ray.study.study import Study

CHOSEN = "chosen"  # the folder of records of cells that searches have chosen
Fit = TypeVar("Fit", TrialJob, CellJob)


@dataclass(frozen=True)
class Missing:
    """What a study still lacks."""

    shards: list[Shard]
    trials: int
    cells: int
    estimates: list[Shard] = field(default_factory=list)  # of which there are none

    def __bool__(self) -> bool:
        return bool(self.shards or self.trials or self.cells)


class Ledger:
    """What a store holds of a study; histories of searches are in the database at ``search_storage``, if one is given.

    ``warn`` is told of what was damaged and set aside.
    """

    def __init__(
        self, study: Study, store: Store, search_storage: str | None = None, warn: Callable[[str], None] = print
    ) -> None:
        self.study, self.store, self.warn = study, store, warn
        self.dataset = Dataset(study.problem, study.seed, store)
        self.folder = f"studies/{study.name}"
        self._search_storage = search_storage
        self._records: dict[str, Record] = {}  # those that stand, by name: they never change
        self._chosen: dict[str, list[Cell]] = {}  # by searches that have ended
        self.storage = open_history(store, self.folder, search_storage)

    def writable(self) -> None:
        """To be called by the one driver that will write: mends what another left half-written, sees what it did."""
        self._forget()
        self.storage = open_history(self.store, self.folder, self._search_storage, self.warn)

    def records(self, names: Iterable[str]) -> dict[str, Record]:
        """The entries of these names that there are, in any state; a damaged one is set aside and counts as missing."""
        wanted = set(names)
        found = self.store.read_records(sorted(wanted - self._records.keys()), self.warn)
        self._records |= {name: record for name, record in found.items() if is_final(record)}
        return found | {name: self._records[name] for name in wanted & self._records.keys()}

    def _job(self, kind: type[Fit], method: Method, budget: int, choice: Choice, **more: Any) -> Fit:
        """A job that fits a configuration to labels, and the pretraining that it starts from."""
        pretraining = None
        if c := choice.pretraining:
            unlabelled, surrogate = self.study.unlabelled, self.study.surrogate
            pretraining = PretrainJob(dataset=self.dataset, unlabelled=unlabelled, surrogate=surrogate, configuration=c)
        shared: dict[str, Any] = {"dataset": self.dataset, "method": method.name, "budget": budget}
        return kind(**shared, pretraining=pretraining, configuration=choice.finetuning, **more)

    def search(self, method: Method, budget: int) -> Search:
        """The search of a method at a budget; its family changes with all that changes a trial's value."""
        study, tuning = self.study, self.study.tuning(method)
        decides = (
            TrialJob.version,
            self.dataset.named(*(SURROGATE, UNLABELLED) * method.pretrains),
            version_of(deciding(study.problem, *LEARNED, "error", "surrogate_loss", *("estimate",) * method.delta)),
            method,
            tuning.constants,
            study.folds,
            study.unlabelled * method.contrastive,
            study.surrogate * method.pretrains,
            *sorted({axes for each in study.space.architectures if (axes := boundaries(study.problem, each))}),
        )
        return Search(
            family=f"{study.name}, {method.name} at {budget} labels, {self.labels_name}-{fingerprint(*decides)}",
            method=method.name,
            budget=budget,
            trials=study.trials,
            at_once=study.at_once,
            seed=study.seed,
            tuning=tuning,
            job=partial(self._job, TrialJob, method, budget, folds=study.folds),
        )

    def searches(self) -> list[Search]:
        """All searches of the study, those of a method with budgets ascending."""
        budgets = sorted({self.study.search_budget(b) for b in self.study.budgets})
        return [self.search(method, budget) for method in self.study.methods for budget in budgets]

    def missing(self) -> Missing:
        """What is to be done. Shards are looked for only if there is something to learn from them."""
        trials = sum(search.missing(load(self.storage, search.name)) for search in self.searches())
        cells = self.cells()
        records = self.records(cell.job.record_name for cell in cells if cell.job)
        open_ = [c for c in cells if c.state == MISSING and not (c.job and is_final(records.get(c.job.record_name)))]
        if not (trials or open_):
            return Missing([], 0, 0)
        shards = self.dataset.missing(self.study.sizes, self.warn)
        return Missing(shards, trials, len(open_), self.dataset.missing_estimates(self.study.estimated))

    def cells(self) -> list[Cell]:
        """All cells of the study, by method, budget and seed."""
        return [cell for search in self.searches() for cell in self.cells_chosen_by(search)]

    def cells_chosen_by(self, search: Search) -> list[Cell]:
        """The cells that wait for the winner of a search."""
        if search.name in self._chosen:
            return self._chosen[search.name]
        history = load(self.storage, search.name)
        winner = search.winner(history)
        state, reason = MISSING, ""
        if not winner and search.missing(history):
            reason = "its search is not finished"
        elif not winner:
            state, reason = FAILED, search.failure(history)
        cells = []
        budgets = [b for b in self.study.budgets if self.study.search_budget(b) == search.budget]
        for budget, seed in product(budgets, range(self.study.seeds)):
            job = None
            if winner:
                choice = winner.repeated(budget / search.budget, seed)
                job = self._job(CellJob, search.tuning.method, budget, choice, seed=seed, test=self.study.test)
            cells.append(Cell(search.tuning.method, budget, seed, search.trials, job, state, reason))
        if winner:
            self._chosen[search.name] = cells
        return cells

    @property
    def labels_name(self) -> str:
        """Names what the study's errors are of: those of other labels are not compared with them."""
        problem = self.study.problem
        return fingerprint(self.dataset.named(TARGET), self.study.test, version_of(deciding(problem, "error")))[:8]

    def note(self, search: Search) -> None:
        """Keep which cells a search has chosen, so that they are shown even if the study no longer asks for them."""
        rows = [plain_row(self.study, cell) for cell in self.cells_chosen_by(search) if cell.job]
        if rows and not self.store.read_only:
            name = f"{self.folder}/{CHOSEN}/{fingerprint(self.labels_name, rows)}.json"
            if not self.store.exists(name):
                self.store.write_record(name, {"labels": self.labels_name, "rows": rows})

    def matrix(self) -> pd.DataFrame:
        """The learning-curve matrix, one row a cell; see the README for its columns.

        All that was ever done for the study is in it. Where a cell was done twice, that of the longest search is.
        """
        rows = [plain_row(self.study, cell) for cell in self.cells()]
        for record in self.store.read_records(self.store.names(f"{self.folder}/{CHOSEN}")).values():
            if record["labels"] == self.labels_name:
                rows += record["rows"]
        records = self.records(row["record"] for row in rows if row["record"])
        rows = [row | outcome(records.get(row["record"], {})) for row in rows]
        best = {(row["method"], row["budget"], row["seed"]): row for row in sorted(reversed(rows), key=worth)}
        mixed = "; ".join(self.dataset.line(TARGET).earlier)
        order = list(dict.fromkeys((*METHODS, *(row["method"] for row in rows))))
        keys = sorted(best, key=lambda key: (order.index(key[0]), *key[1:]))
        return pd.DataFrame([best[key] | {"labels": mixed} for key in keys], columns=MATRIX_SCHEMA.names)

    def asked(self, matrix: pd.DataFrame) -> pd.DataFrame:
        """The rows that the study asks for now."""
        study = self.study
        its = matrix.method.isin([m.name for m in study.methods]) & matrix.budget.isin(study.budgets)
        return matrix[its & (matrix.seed < study.seeds)]

    def trials(self) -> pd.DataFrame:
        """All trials of the study that came to an end, one row each.

        A trial's number, and so its key, is its place among those of its search that have ended: final when all have.
        """
        columns = ("method", "budget", "number", "value", "state", "parameters", "started", "finished", "key")
        rows = []
        searched = rf"{re.escape(self.study.name)}, (?P<method>.+) at (?P<budget>\d+) labels, {self.labels_name}-.*"
        for search in filter(None, (re.fullmatch(searched, name) for name in names(self.storage))):
            name = search[0]
            for number, trial in enumerate(Search.ended(load(self.storage, name))):
                state = "complete" if trial.value is not None else "failed"
                value = float("nan") if trial.value is None else trial.value
                times = [t.timestamp() if t else 0.0 for t in (trial.datetime_start, trial.datetime_complete)]
                its = search["method"], int(search["budget"]), number
                rows.append((*its, value, state, dict(trial.params), *times, f"{name}, trial {number}"))
        return pd.DataFrame(rows, columns=columns)

    def write_matrix(self, matrix: pd.DataFrame) -> str:
        """Store the matrix as Parquet; the path where it lies."""
        name = f"{self.folder}/matrix.parquet"
        self.store.write(name, matrix.to_parquet(index=False, schema=MATRIX_SCHEMA, write_page_checksum=True))
        return self.store.path(name)

    def set_aside(self) -> str:
        """Move the study's results, but not its data and pretrained weights, into a folder of their own; its path."""
        stamp = f"{time.strftime('%Y%m%d-%H%M%S')}-{uuid.uuid4().hex[:6]}"
        folder = f"aside/{stamp}"
        histories = [name for name in names(self.storage) if name.startswith(f"{self.study.name}, ")]
        for name in self._begun():
            self.store.move(name, f"{folder}/{name}")
        if self._search_storage:
            set_histories_aside(self.storage, histories, stamp)
        self.store.move(self.folder, f"{folder}/{self.folder}")
        self.writable()
        return self.store.path(folder)

    def retry_failures(self) -> int:
        """Forget failures, so that they are tried again, though not divergences; how many they were."""
        # The records first: a search whose failures are tried again has no winner, and so no cells, for a while.
        begun = self._begun()
        records = self.records(begun)
        again = [name for name in begun if records.get(name, {}).get("state") == FAILED]
        for name in again:
            self.store.move(name, f"aside/failed-{uuid.uuid4().hex[:6]}/{name}")
        failed = [t for search in self.searches() for t in search.retry_failures(self.storage)]
        self._forget()
        return max(len(failed), len(again))

    def _forget(self) -> None:
        self._records.clear()
        self._chosen.clear()

    def _begun(self) -> list[str]:
        """Names of the records of all jobs that have been begun, those that others require first."""
        found: list[str] = []
        for search in self.searches():
            history = load(self.storage, search.name)
            trials = history.get_trials(deepcopy=False) if history else ()
            whole = (t for t in trials if t.params.keys() == search.tuning.dimensions.keys())
            cells = (cell.job for cell in self.cells_chosen_by(search) if cell.job)
            for job in (*(search.job(search.tuning.choice(trial.params)) for trial in whole), *cells):
                found += [needed.record_name for needed in (*job.requires, job)]
        return list(dict.fromkeys(found))
