"""What a study would cost: its training from a few steps on this machine, its labels from those that there are.

A label may be a day of work, so nothing here computes one.
"""

import math
import time
from collections import Counter
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from statistics import fmean

import torch

from sibcl_ray.data.dataset import Dataset, Split
from sibcl_ray.learning.model import new_network
from sibcl_ray.learning.networks import Architecture, InvariantEncoder
from sibcl_ray.learning.training import Finetuning, Pretraining, finetune, pretrain
from sibcl_ray.problems.problem import Problem
from sibcl_ray.study.ledger import Missing
from sibcl_ray.study.study import Study

TINY = Architecture(encoder=InvariantEncoder(channels=2, dilations=(1,), latent=2), predictor=(2,), projector=(2,))
ENOUGH = 0.3  # seconds that tell how long a step takes


@dataclass(frozen=True, kw_only=True)
class Plan:
    """Work that is missing, and estimates of it in seconds of one core."""

    lacking: Missing
    pretrainings: int  # at most: trials that agree share one
    target_labels: int
    surrogate_labels: int
    target_seconds: float | None  # None: not known before the first label
    surrogate_seconds: float | None
    pretraining_seconds: float
    trial_seconds: float
    cell_seconds: float
    disk: int  # bytes of labels and weights, at most

    @property
    def seconds(self) -> float:
        """Estimated core seconds in all, but for labels of which it is not known."""
        return sum(seconds or 0.0 for _, seconds in self.work.values())

    @property
    def work(self) -> dict[str, tuple[int, float | None]]:
        """How many there are of each kind, as progress counts them, and the core seconds of all."""
        labels = (self.target_seconds, self.surrogate_seconds)
        return {
            "shards": (len(self.lacking.shards), None if None in labels else sum(filter(None, labels))),
            "pretrainings": (self.pretrainings, self.pretraining_seconds),
            "trials": (self.lacking.trials, self.trial_seconds),
            "cells": (self.lacking.cells, self.cell_seconds),
        }


def plan(study: Study, dataset: Dataset, lacking: Missing) -> Plan:
    """Count what is lacking, time steps of training on made-up data, and multiply."""
    problem, space = study.problem, study.space
    labels = Counter[bool]()  # by whether they are the surrogate's
    for shard in lacking.shards:
        labels[shard.role.surrogate] += shard.role.labelled * dataset.size(shard.role)
    _step(problem, TINY, 2), _contrast(problem, TINY, 8)  # the first time loads libraries
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
    pretrainings = math.ceil(pending * pretrainings)
    return Plan(
        lacking=lacking,
        pretrainings=pretrainings,
        target_labels=labels[False],
        surrogate_labels=labels[True],
        target_seconds=_label_seconds(dataset, labels[False], surrogate=False),
        surrogate_seconds=_label_seconds(dataset, labels[True], surrogate=True),
        pretraining_seconds=pending * pretraining_seconds,
        trial_seconds=lacking.trials * study.folds * steps * fit,
        cell_seconds=lacking.cells * steps * fit * fmean(math.sqrt(b / study.search_budget(b)) for b in study.budgets),
        disk=_bytes(study, dataset, lacking, pretrainings),
    )


def _bytes(study: Study, dataset: Dataset, lacking: Missing, pretrainings: int) -> int:
    """What labels and the weights of pretrainings take on disk, uncompressed."""
    problem = study.problem
    inputs, label = math.prod(problem.input_shape), math.prod(problem.label_shape)
    numbers = sum(dataset.size(s.role) * (inputs + label * s.role.labelled) for s in lacking.shards)
    networks = (new_network(problem, a, seed=0) for a in study.space.architectures) if pretrainings else ()
    weights = max((sum(t.numel() for t in network.state_dict().values()) for network in networks), default=0)
    return 4 * (numbers + pretrainings * weights)


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
    labels = torch.full((batch, *problem.label_shape), problem.label_scale) + torch.as_tensor(problem.offset)
    split = Split(torch.ones(batch, *problem.input_shape), labels.float())
    c = Finetuning(architecture=architecture, batch=batch)
    return _seconds_each(lambda steps: finetune(problem, split, replace(c, steps=steps)), least=1, most=8)


def _contrast(problem: Problem, architecture: Architecture, batch: int) -> float:
    """Seconds a contrastive step takes per input."""
    inputs = torch.rand(min(batch, 128), *problem.input_shape) + 1
    nothing = Split(inputs[:0], torch.zeros(0, *problem.label_shape))
    c = Pretraining(architecture=architecture, contrastive=True, surrogate_labels=False, epochs=1)

    def work(count: int) -> None:
        pretrain(problem, inputs[:count], nothing, replace(c, contrastive_batch=count))

    return _seconds_each(work, least=min(8, len(inputs)), most=len(inputs))


def _seconds_each(work: Callable[[int], object], least: int, most: int) -> float:
    """Seconds for one of as many as take `ENOUGH` seconds, on one thread as a worker has."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        count = least
        while True:
            start = time.process_time()
            with suppress(ArithmeticError):  # what diverges on made-up data has taken its time too
                work(count)
            seconds = time.process_time() - start
            if count == most or seconds > ENOUGH:
                return seconds / count
            count = min(most, 4 * count)
    finally:
        torch.set_num_threads(threads)
