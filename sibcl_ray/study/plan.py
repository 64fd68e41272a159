"""What a study would cost: its training from a few steps on this machine, its labels from those that there are.

A label may be a day of work, so nothing here computes one.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from statistics import fmean

import torch

from sibcl_ray.data.dataset import Dataset, Split
from sibcl_ray.learning.networks import Architecture
from sibcl_ray.learning.training import Finetuning, Pretraining, finetune, pretrain
from sibcl_ray.problems.problem import Problem
from sibcl_ray.study.ledger import Missing
from sibcl_ray.study.study import Study


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Work that is missing, and estimates of it in seconds of one core."""

    pretrainings: int  # at most: trials that agree share one
    target_labels: int
    surrogate_labels: int
    target_seconds: float | None  # None: not known before the first label
    surrogate_seconds: float | None
    pretraining_seconds: float
    trial_seconds: float
    cell_seconds: float

    @property
    def seconds(self) -> float:
        """Estimated core seconds in all, but for labels of which it is not known."""
        labels = (self.target_seconds or 0.0) + (self.surrogate_seconds or 0.0)
        return labels + self.pretraining_seconds + self.trial_seconds + self.cell_seconds


def plan(study: Study, dataset: Dataset, lacking: Missing) -> Plan:
    """Count what is lacking, time steps of training on made-up data, and multiply."""
    problem, space = study.problem, study.space
    labels = Counter[bool]()  # by whether they are the surrogate's
    for shard in lacking.shards:
        labels[shard.role.surrogate] += shard.role.labelled * dataset.size(shard.role)
    fit = fmean(_step(problem, a, space.batch) for a in space.architectures)
    steps = fmean(space.steps)
    searches = len({study.search_budget(b) for b in study.budgets})
    contrast = fmean(_contrast(problem, a, min(space.contrastive_batches)) for a in space.architectures)
    pretrainings, pretraining_seconds = 0, 0.0
    for m in study.methods:
        # At most the configurations that a search can tell apart, then each winner's other seeds.
        kinds = study.tuning(m).pretrainings
        count = min(kinds, study.trials * searches) + min(kinds, searches) * (study.seeds - 1)
        epoch = m.contrastive * contrast * (study.unlabelled + study.surrogate)
        epoch += m.surrogate * fit / space.batch * study.surrogate
        pretrainings += count
        pretraining_seconds += count * fmean(space.epochs) * epoch
    # A search or cell already done needs no pretraining either; what is left bounds it.
    all_of_it = len(study.methods) * (searches * study.trials + len(study.budgets) * study.seeds)
    pending = min(1.0, (lacking.trials + lacking.cells) / max(1, all_of_it))
    return Plan(
        pretrainings=math.ceil(pending * pretrainings),
        target_labels=labels[False],
        surrogate_labels=labels[True],
        target_seconds=_label_seconds(dataset, labels[False], surrogate=False),
        surrogate_seconds=_label_seconds(dataset, labels[True], surrogate=True),
        pretraining_seconds=pending * pretraining_seconds,
        trial_seconds=lacking.trials * study.folds * steps * fit,
        cell_seconds=lacking.cells * steps * fit * fmean(math.sqrt(b / study.search_budget(b)) for b in study.budgets),
    )


def _label_seconds(dataset: Dataset, count: int, surrogate: bool) -> float | None:
    """Core seconds of so many labels: as long as those took that there are, else as declared; None if neither."""
    problem = dataset.problem
    if not count or problem.available is not None:
        return 0.0
    if (recorded := dataset.label_seconds(surrogate)) is not None:
        return count * recorded
    declared = problem.surrogate_seconds if surrogate else problem.label_seconds
    return None if declared is None else count * declared


def _step(problem: Problem, architecture: Architecture, batch: int) -> float:
    """Seconds of a fine-tuning step."""
    split = Split(torch.ones(batch, *problem.input_shape), torch.zeros(batch, *problem.label_shape))
    c = Finetuning(architecture=architecture, batch=batch, steps=3)
    return _seconds(lambda: finetune(problem, split, c)) / c.steps


def _contrast(problem: Problem, architecture: Architecture, batch: int) -> float:
    """Seconds a contrastive step takes per input."""
    count = min(batch, 128)
    inputs = torch.rand(count, *problem.input_shape) + 1
    nothing = Split(inputs[:0], torch.zeros(0, *problem.label_shape))
    c = Pretraining(
        architecture=architecture, contrastive=True, surrogate_labels=False, contrastive_batch=count, epochs=2
    )
    return _seconds(lambda: pretrain(problem, inputs, nothing, c)) / c.epochs / count


def _seconds(work: Callable[[], object]) -> float:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # as a worker has
    try:
        work()  # the first time loads libraries
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    finally:
        torch.set_num_threads(threads)
