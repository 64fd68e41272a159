"""A study: every method at every label budget, each searched, then evaluated over seeds.

``Study`` says what is wanted; ``Ledger`` finds what of it is there; ``run`` makes the rest on Ray.
"""

from __future__ import annotations

import io
import json
import time
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from optuna.storages import BaseStorage, JournalStorage, RDBStorage
from optuna.storages.journal import JournalFileBackend

from sibcl_ray.dataset import SURROGATE, TARGET, TEST, UNLABELLED, Dataset, Role
from sibcl_ray.jobs import COMPUTES, CellJob, PretrainJob, TrialJob
from sibcl_ray.methods import Choice, Method, Space, first_parameters, propose
from sibcl_ray.problems.problem import Problem
from sibcl_ray.search import Search
from sibcl_ray.store import Store, code_version, describe, fingerprint


@dataclass(frozen=True, kw_only=True)
class Study:
    """What is to be found out, and how thoroughly. Counts are samples."""

    name: str
    problem: Problem
    methods: tuple[Method, ...]
    budgets: tuple[int, ...]  # target labels in all, validation included; ascending
    searched: tuple[int, ...]  # budgets at which hyperparameters are searched
    space: Space
    trials: int  # of a search
    at_once: int = 2  # trials of a search that run side by side
    folds: int = 3  # of the cross-validation inside a budget
    seeds: int = 3  # repetitions of a cell: weights, order, augmentation and pretraining
    unlabelled: int  # inputs without labels
    surrogate: int  # surrogate samples
    test: int  # target labels set apart, read once per cell
    pool: int  # target labels that may be computed at most, besides the test's
    seed: int = 0  # of the data, the folds and the searches

    def __post_init__(self) -> None:
        counts = ("trials", "at_once", "seeds", "unlabelled", "surrogate", "test", "pool")
        for name in counts:
            if getattr(self, name) < 1:
                raise ValueError(f"{name} is {getattr(self, name)}; it must be at least 1")
        if not self.methods or not self.budgets:
            raise ValueError("there is nothing to study; give at least one method and one budget")
        if self.folds < 2:
            raise ValueError(f"folds is {self.folds}; cross-validation needs at least 2")
        if list(self.budgets) != sorted(set(self.budgets)) or min(self.budgets) < 2 * self.folds:
            raise ValueError(
                f"budgets are {list(self.budgets)}; they must ascend from {2 * self.folds} or more "
                f"(two labels for each of {self.folds} folds)"
            )
        if max(self.budgets) > self.pool:
            raise ValueError(
                f"budget {max(self.budgets)} is larger than the pool of {self.pool} target labels; "
                f"ask for at most {self.pool}, or for a larger scale"
            )

    @property
    def sizes(self) -> dict[Role, int]:
        """Samples needed of each role."""
        return {
            TARGET: max(self.budgets),
            TEST: self.test,
            SURROGATE: self.surrogate,
            UNLABELLED: self.unlabelled,
        }

    def search_budget(self, budget: int) -> int:
        """The budget whose search chooses for ``budget``: the largest whose labels are all among its own."""
        return max((s for s in self.searched if s <= budget), default=budget)

    def budgets_chosen_at(self, search_budget: int) -> list[int]:
        """The budgets that use the winner of a search."""
        return [b for b in self.budgets if self.search_budget(b) == search_budget]


@dataclass(frozen=True)
class Cell:
    """One entry of the learning-curve matrix; ``job`` is None while, or if, no configuration is chosen."""

    method: Method
    budget: int
    seed: int
    job: CellJob | None
    reason: str = ""


class Ledger:
    """What a store holds of a study.

    Args:
        study: what is wanted.
        store: where results are.
        search_storage: a database URL for the searches' histories; None for a journal file in the store.
    """

    def __init__(self, study: Study, store: Store, search_storage: str | None = None) -> None:
        self.study, self.store = study, store
        self.dataset = Dataset(study.problem, study.seed, store)
        self.folder = f"studies/{study.name}"
        self.storage = _search_storage(store, self.folder, search_storage)

    def pretraining(self, choice: Choice) -> PretrainJob | None:
        """The pretraining that a configuration starts from."""
        if choice.pretraining is None:
            return None
        return PretrainJob(
            dataset=self.dataset,
            unlabelled=self.study.unlabelled,
            surrogate=self.study.surrogate,
            configuration=choice.pretraining,
        )

    def trial_job(self, method: Method, budget: int, choice: Choice) -> TrialJob:
        """The work of one trial."""
        return TrialJob(
            dataset=self.dataset,
            method=method.name,
            budget=budget,
            pretraining=self.pretraining(choice),
            configuration=choice.finetuning,
            folds=self.study.folds,
        )

    def search(self, method: Method, budget: int) -> Search:
        """The search of a method at a budget; its name changes with whatever changes a trial's value."""
        study, symmetries = self.study, tuple(self.study.problem.symmetries)
        decides = (
            code_version(COMPUTES),
            self.dataset.fingerprint,
            method,
            study.space,
            study.folds,
            study.unlabelled * method.contrastive,
            study.surrogate * method.pretrains,
        )
        return Search(
            name=f"{method.name} at {budget} labels, {fingerprint(*decides)}",
            method=method.name,
            budget=budget,
            trials=study.trials,
            at_once=study.at_once,
            seed=study.seed,
            start=first_parameters(method, study.space, symmetries),
            propose=partial(propose, method=method, space=study.space, symmetries=symmetries),
            job=partial(self.trial_job, method, budget),
        )

    def searches(self) -> list[Search]:
        """All searches of the study, those of a method with budgets ascending."""
        budgets = sorted({self.study.search_budget(b) for b in self.study.budgets})
        return [self.search(method, budget) for method in self.study.methods for budget in budgets]

    def trials_missing(self) -> int:
        """How many trials the searches still lack."""
        return sum(s.missing(s.open(self.storage)) for s in self.searches())

    def cells(self) -> list[Cell]:
        """All cells of the study, by method, budget and seed."""
        return [
            cell
            for method in self.study.methods
            for search_budget in dict.fromkeys(map(self.study.search_budget, self.study.budgets))
            for cell in self.cells_chosen_by(self.search(method, search_budget))
        ]

    def cells_chosen_by(self, search: Search) -> list[Cell]:
        """The cells that wait for the winner of a search."""
        history = search.open(self.storage)
        winner = search.winner(history)
        reason = "its search is not finished" if search.missing(history) else "every trial of its search failed"
        method = next(m for m in self.study.methods if m.name == search.method)
        return [
            Cell(
                method,
                budget,
                seed,
                self.cell_job(method, budget, seed, winner, search.budget) if winner else None,
                "" if winner else reason,
            )
            for budget in self.study.budgets_chosen_at(search.budget)
            for seed in range(self.study.seeds)
        ]

    def cell_job(self, method: Method, budget: int, seed: int, winner: Choice, searched: int) -> CellJob:
        """The work of one cell, with the winner of the search at ``searched`` labels."""
        choice = winner.scaled(budget / searched).seeded(seed)
        return CellJob(
            dataset=self.dataset,
            method=method.name,
            budget=budget,
            pretraining=self.pretraining(choice),
            configuration=choice.finetuning,
            seed=seed,
            test=self.study.test,
        )

    def matrix(self) -> pd.DataFrame:
        """The learning-curve matrix, one row a cell; see the README for its columns."""
        return pd.DataFrame([_row(self.study, cell) for cell in self.cells()])

    def trials(self) -> pd.DataFrame:
        """All trials that came to an end, one row each."""
        columns = ("method", "budget", "number", "value", "state", "parameters", "started", "finished", "key")
        rows = []
        for search in self.searches():
            for number, trial in enumerate(search.ended(search.open(self.storage))):
                state = "complete" if trial.value is not None else "failed"
                value = float("nan") if trial.value is None else trial.value
                times = [t.timestamp() if t else 0.0 for t in (trial.datetime_start, trial.datetime_complete)]
                key = f"{search.name}, trial {number}"
                rows.append((search.method, search.budget, number, value, state, dict(trial.params), *times, key))
        return pd.DataFrame(rows, columns=columns)

    def write_matrix(self, matrix: pd.DataFrame) -> str:
        """Store the matrix as Parquet; the path where it lies."""
        buffer = io.BytesIO()
        table = pa.Table.from_pandas(matrix, schema=MATRIX_SCHEMA, preserve_index=False)
        pq.write_table(table, buffer, write_page_checksum=True)
        name = f"{self.folder}/matrix.parquet"
        self.store.write(name, buffer.getvalue())
        return self.store.path(name)


MATRIX_SCHEMA = pa.schema(
    {
        "problem": pa.string(),
        "method": pa.string(),
        "encoder": pa.string(),
        "budget": pa.int64(),
        "seed": pa.int64(),
        "error": pa.float64(),
        "state": pa.string(),
        "reason": pa.string(),
        "seconds": pa.float64(),
        "finished": pa.float64(),
        "configuration": pa.string(),
        "sample_errors": pa.list_(pa.float64()),
    }
)


def _row(study: Study, cell: Cell) -> dict[str, Any]:
    record = (cell.job.last_record() if cell.job else None) or {}
    chosen = None
    if cell.job:
        pretraining = cell.job.pretraining
        chosen = {
            "pretraining": describe(pretraining.configuration) if pretraining else None,
            "finetuning": describe(cell.job.configuration),
        }
    sample_errors = record.get("sample_errors")
    return {
        "problem": study.problem.name,
        "method": cell.method.name,
        "encoder": cell.job.configuration.architecture.encoder.label if cell.job else "",
        "budget": cell.budget,
        "seed": cell.seed,
        "error": record.get("error", float("nan")),
        "state": record.get("state", "missing"),
        "reason": record.get("reason", cell.reason),
        "seconds": record.get("seconds", float("nan")),
        "finished": record.get("finished", float("nan")),
        "configuration": json.dumps(chosen),
        "sample_errors": None if sample_errors is None else np.asarray(sample_errors),
    }


def _search_storage(store: Store, folder: str, url: str | None) -> BaseStorage:
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    if url:
        return RDBStorage(url)
    if not store.is_local:
        raise ValueError(
            f"the store {store.uri} is not a local folder, where a search's journal could be; "
            "give --search-storage with a database URL"
        )
    path = Path(store.path(f"{folder}/search.journal"))
    path.parent.mkdir(parents=True, exist_ok=True)
    return JournalStorage(JournalFileBackend(str(path)))


def set_aside(store: Store) -> str:
    """Move all results but the datasets into a folder of their own; where that is."""
    folder = f"aside/{time.strftime('%Y%m%d-%H%M%S')}"
    for name in ("artefacts", "ledger", "studies"):
        store.move(name, f"{folder}/{name}")
    return store.path(folder)
