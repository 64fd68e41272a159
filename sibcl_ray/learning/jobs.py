"""The jobs a worker runs: a pretraining, a trial, a cell. Each is named by all that decides its result.

The record of a finished job is its entry in the ledger; a job whose record is there is never run again. One
that failed is tried again a few times. Nothing here knows of Ray.
"""

from __future__ import annotations

import hashlib
import math
import time
from abc import ABC, abstractmethod
from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cached_property, lru_cache, partial
from typing import ClassVar

import safetensors.torch
import torch

from sibcl_ray.data.dataset import SURROGATE, TARGET, UNLABELLED, Dataset, Role, Split, folds
from sibcl_ray.data.definitions import LEARNED, deciding, version_of
from sibcl_ray.learning import distributed
from sibcl_ray.learning.checkpoint import Checkpoint
from sibcl_ray.learning.evaluate import test_errors
from sibcl_ray.learning.model import Model, boundaries
from sibcl_ray.learning.training import Diverged, Finetuning, Pretraining, Report, Weights, finetune, pretrain
from sibcl_ray.randomness import named_seed
from sibcl_ray.storage.fingerprint import describe, fingerprint
from sibcl_ray.storage.node_cache import read_once
from sibcl_ray.storage.records import DIVERGED, DONE, Record, failure, is_final, timed, write_record
from sibcl_ray.storage.store import Damaged, Store, StoreError, Warn


@dataclass(frozen=True, kw_only=True)
class Job(ABC):
    """Work with a name. Equal names mean equal results."""

    kind: ClassVar[str]
    version: ClassVar[int] = 1  # raise it when results change: tests/test_versions.py says when they do
    data_parallel: ClassVar[bool] = False  # whether several workers may run it together
    dataset: Dataset

    def __post_init__(self) -> None:
        self.key  # noqa: B018  named where it is made: a worker's code may be a later one

    @cached_property
    def key(self) -> str:
        """Names the result: what is computed, from which data, by which code."""
        return fingerprint(self.kind, self.version, self.about())

    @abstractmethod
    def about(self) -> Record:
        """All that decides the job's result, as plain values."""

    @property
    def store(self) -> Store:
        return self.dataset.store

    @property
    def requires(self) -> tuple[Job, ...]:
        """Jobs that must be done before this one."""
        return ()

    @property
    @abstractmethod
    def title(self) -> str:
        """For display."""

    @abstractmethod
    def compute(self, device: torch.device, report: Report) -> Record:
        """Do the work; the outcome as plain values."""

    def clear(self) -> None:  # noqa: B027  most need nothing
        """Forget what only an unfinished job needs; its record is there."""

    @property
    def record_name(self) -> str:
        return f"ledger/{self.kind}/{self.key}.json"

    def last_record(self, warn: Warn = lambda text: None) -> Record | None:
        """The job's entry in the ledger, in any state; one that is damaged is set aside."""
        return self.store.usable_record(self.record_name, warn)

    def record(self, warn: Warn = lambda text: None) -> Record | None:
        """The job's entry in the ledger if it has come to an end that stands."""
        record = self.last_record(warn)
        return record if is_final(record) else None


def _about(job: Job, configuration: Pretraining | Finetuning, roles: Iterable[Role], methods: Iterable[str]) -> Record:
    """What decides a job that reads data of these roles and calls these methods of its problem, besides those of all
    training, as plain values: its fields, but its pretraining, its data and the code by name."""
    about = {f.name: getattr(job, f.name) for f in fields(job)}
    about = {name: value.key if isinstance(value, Job) else value for name, value in about.items()}
    about["dataset"] = job.dataset.named(*roles)
    about["problem"] = version_of(deciding(job.dataset.problem, *LEARNED, *methods))
    about["encoder"] = configuration.architecture.encoder.version
    if axes := boundaries(job.dataset.problem, configuration.architecture):
        about["periodic"] = axes
    return describe(about)


@dataclass(frozen=True, kw_only=True)
class PretrainJob(Job):
    """One pretraining, shared by every trial and cell that wants it."""

    kind = "pretraining"
    data_parallel = True
    unlabelled: int  # inputs used
    surrogate: int  # surrogate samples used
    configuration: Pretraining

    def about(self) -> Record:
        roles = (SURROGATE, *(UNLABELLED,) * self.configuration.contrastive)
        return _about(self, self.configuration, roles, ["surrogate_loss"])

    @property
    def title(self) -> str:
        c = self.configuration
        parts = ["pairs"] * c.contrastive + ["surrogate"] * c.surrogate_labels
        return f"pretrain on {' and '.join(parts)}, seed {c.seed}"

    @property
    def _checkpoint(self) -> Checkpoint:
        return Checkpoint(self.store, f"checkpoints/{self.key}")

    def compute(self, device: torch.device, report: Report) -> Record:
        data = self.dataset
        unlabelled, surrogate = data.read(UNLABELLED, self.unlabelled).inputs, data.read(SURROGATE, self.surrogate)
        weights = pretrain(data.problem, unlabelled, surrogate, self.configuration, device, report, self._checkpoint)
        content = safetensors.torch.save(weights)
        digest = hashlib.sha256(content).hexdigest()
        if distributed.rank() == 0:
            self.store.write(_artefact(digest), content)
        return {"weights": digest}

    def clear(self) -> None:
        self.store.remove(self._checkpoint.name)

    def record(self, warn: Warn = lambda text: None) -> Record | None:
        record = super().record(warn)
        if record and record["state"] == DONE:
            artefact = _artefact(record["weights"])
            try:
                _checked(record["weights"], self.store.read(artefact))
            except (Damaged, FileNotFoundError) as damage:
                self.store.set_aside(artefact)
                self.store.set_aside(self.record_name)
                warn(f"{damage}; it is set aside and its pretraining is repeated")
                return None
        return record

    def weights(self) -> Weights:
        """The pretrained weights; Damaged or FileNotFoundError where they are not what was stored."""
        record = self.last_record()
        if record is None:
            raise FileNotFoundError(self.record_name)
        return _weights(self.store, record["weights"])


def _artefact(digest: str) -> str:
    return f"artefacts/{digest}.safetensors"


def _checked(digest: str, data: bytes) -> bytes:
    if hashlib.sha256(data).hexdigest() != digest:
        raise Damaged(f"{_artefact(digest)} is not what its name says")
    return data


@lru_cache(maxsize=8)
def _weights(store: Store, digest: str) -> Weights:
    return safetensors.torch.load(read_once(store, _artefact(digest), partial(_checked, digest)))


@dataclass(frozen=True, kw_only=True)
class _FinetuneJob(Job):
    method: str
    budget: int  # target labels that may be seen
    pretraining: PretrainJob | None
    configuration: Finetuning

    def about(self) -> Record:
        return _about(self, self.configuration, [TARGET], ["error", *["estimate"] * self.configuration.delta])

    @property
    def requires(self) -> tuple[Job, ...]:
        return (self.pretraining,) if self.pretraining else ()

    def _labels(self) -> Split:
        return self.dataset.read(TARGET, self.budget, self.configuration.delta)

    def _finetune(self, labelled: Split, device: torch.device, report: Report) -> Model:
        weights = self.pretraining.weights() if self.pretraining else None
        return finetune(self.dataset.problem, labelled, self.configuration, weights, device, report)


@dataclass(frozen=True, kw_only=True)
class TrialJob(_FinetuneJob):
    """A configuration's error by cross-validation inside the budget."""

    kind = "trial"
    folds: int

    @property
    def title(self) -> str:
        return f"trial {self.method} at {self.budget} labels"

    def compute(self, device: torch.device, report: Report) -> Record:
        labels, errors = self._labels(), list[torch.Tensor]()
        for fit, held_out in folds(self.budget, self.folds, named_seed(self.dataset.seed, "folds", self.budget)):
            model = self._finetune(
                labels.rows(fit), device, lambda done, loss: report((len(errors) + done) / self.folds, loss)
            )
            errors.append(model.errors(labels.rows(held_out)))
        return {"error": _finite(torch.cat(errors).mean().item())}


@dataclass(frozen=True, kw_only=True)
class CellJob(_FinetuneJob):
    """The chosen configuration fitted to all labels of the budget, and its error on the test split."""

    kind = "cell"
    seed: int
    test: int  # samples of the test split

    @property
    def title(self) -> str:
        return f"cell {self.method} at {self.budget} labels, seed {self.seed}"

    def compute(self, device: torch.device, report: Report) -> Record:
        model = self._finetune(self._labels(), device, report)
        errors = test_errors(model, self.dataset, self.test)
        return {"error": _finite(float(errors.mean())), "sample_errors": [float(f"{e:.6g}") for e in errors]}


def _finite(error: float) -> float:
    if not math.isfinite(error):
        raise Diverged(f"the error is {error}")
    return error


def execute(job: Job, device: torch.device, report: Report, announce: bool = True) -> Record:
    """Run a job, or find that it has been run; its record is stored before it is returned.

    Only one of several workers of a job has to ``announce`` it. What was found damaged on the way is told in
    the record's ``remade``. A record that is found has cost no time now, and says nothing of old damage.

    Raises:
        StoreError: the storage fails. That says nothing about the job, so there is no record of it.
        Exception: a failure of one of several workers, or one that leaves this process unable to go on.
    """
    remade: list[str] = []
    # Workers that share a job must agree on whether there is anything to do.
    if (record := distributed.same(job.record(remade.append), device)) is not None:
        return {**record, "seconds": 0.0, "remade": []}
    began = time.monotonic()
    try:
        outcome: Record = {"state": DONE, "reason": "", **job.compute(device, report)}
    except Diverged as error:
        outcome = {"state": DIVERGED, "reason": str(error)}
    except StoreError:
        raise
    except Exception as error:  # the ledger must say what happened
        # A CUDA error stays with its process, where all later jobs would fail: another process tries this one again.
        broken = type(error).__name__ == "AcceleratorError" or "CUDA error" in str(error)
        if broken or distributed.size() > 1:  # or it may be no more than the loss of another worker
            raise
        attempts = (job.last_record() or {}).get("attempts", 0) + 1
        outcome = {**failure(f"{type(error).__name__}: {error}"), "attempts": attempts}
    record = timed({**outcome, "remade": remade}, time.monotonic() - began)
    if announce:
        write_record(job, record)
        if is_final(record):
            job.clear()
    return record
