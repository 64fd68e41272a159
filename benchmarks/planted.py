"""Studies in which only the training is made up: the jobs' results are smooth functions of what was asked for.

A module of its own, so that workers can import what `driver.py` hands them.
"""

from __future__ import annotations

import hashlib
import math
import time
from collections.abc import Callable
from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from sibcl_ray.learning.jobs import CellJob, Job, PretrainJob, TrialJob
from sibcl_ray.storage.records import Record
from sibcl_ray.storage.store import Store
from sibcl_ray.study.ledger import Ledger
from sibcl_ray.study.study import Study


def error(job: Any) -> float:
    """Falls with the budget, and is least at a learning rate of 1e-3 and few steps."""
    c = job.configuration
    steps, rate = math.log10(c.steps) - 3, math.log10(c.learning_rate) + 3
    return 0.5 * job.budget**-0.3 * (1 + 0.1 * rate**2 + 0.05 * steps**2 + 0.1 * bool(c.weight_decay))


@dataclass(frozen=True, kw_only=True)
class PlantedPretrainJob(PretrainJob):
    """Stores weights of a few bytes."""

    def compute(self, device, report) -> Record:
        content = self.key.encode()
        digest = hashlib.sha256(content).hexdigest()
        self.store.write(f"artefacts/{digest}.safetensors", content)
        return {"weights": digest}


@dataclass(frozen=True, kw_only=True)
class PlantedTrialJob(TrialJob):
    """Has a value at once, or after a while."""

    seconds: float = 0.0

    def compute(self, device, report) -> Record:
        time.sleep(self.seconds)
        report(1.0, 0.0)
        return {"error": error(self)}


@dataclass(frozen=True, kw_only=True)
class PlantedCellJob(CellJob):
    """Has as many errors as there are test samples, at once."""

    def compute(self, device, report) -> Record:
        errors = error(self) * np.random.default_rng(self.seed).lognormal(0, 0.1, self.test)
        return {"error": float(errors.mean()), "sample_errors": [float(f"{e:.6g}") for e in errors]}


def _planted(job: Any, kind: Callable[..., Job], **more: Any) -> Any:
    return kind(**{f.name: getattr(job, f.name) for f in fields(job)} | more)


class PlantedLedger(Ledger):
    """A ledger whose jobs are the planted ones.

    Args:
        study, store: as of any ledger.
        seconds: that a trial at the largest budget takes.
    """

    def __init__(self, study: Study, store: Store, seconds: float = 0.0) -> None:
        super().__init__(study, store)
        self._seconds = seconds

    def _job(self, kind, method, budget, choice, **more):
        job = super()._job(kind, method, budget, choice, **more)
        more = {"pretraining": job.pretraining and _planted(job.pretraining, PlantedPretrainJob)}
        if kind is CellJob:
            return _planted(job, PlantedCellJob, **more)
        return _planted(job, PlantedTrialJob, **more, seconds=self._seconds * (budget == max(self.study.budgets)))
