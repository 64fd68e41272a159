"""Makes the shards of a dataset on Ray tasks: only those that are missing or damaged, and each only once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
import ray

from sibcl_ray.claims import Claims
from sibcl_ray.dataset import SHARD, Dataset, Role, Shard
from sibcl_ray.problems.problem import Problem, Sample, SolverFailed

POLL = 1.0  # seconds between looks at shards that another driver makes
FAILURES = SHARD // 2  # inputs of a shard that its solver may fail on; more are no accident


def make_shard(dataset: Dataset, shard: Shard) -> list[str]:
    """Draw, solve and store one shard, unless it is there.

    An input that the solver fails on is replaced by another draw; the shard's metadata say so.

    Returns:
        The reasons of such failures.

    Raises:
        SolverFailed: they are too many for an accident.
    """
    if dataset.holds(shard, lambda text: None):
        return []
    problem, rng = dataset.problem, dataset.rng(shard.role, shard.index)
    draw = problem.sample_surrogate if shard.role.surrogate else problem.sample
    sample = draw(SHARD, rng)
    labels, reasons = _solve(problem, shard.role, sample) if shard.role.labelled else (None, [])
    while labels is not None and len(rows := np.flatnonzero(_failed(labels))):
        if len(reasons) > FAILURES:
            raise SolverFailed(
                f"the solver of {problem.name} failed {len(reasons)} times on {SHARD} inputs of {shard.role.name} "
                f"shard {shard.index}, first with {reasons[0]}; mend it, or what it is asked to solve"
            )
        again = draw(len(rows), rng)
        sample.inputs[rows] = again.inputs
        for name, values in again.parameters.items():
            sample.parameters[name][rows] = values
        labels[rows], more = _solve(problem, shard.role, again)
        reasons += more
    dataset.write(shard.role, shard.index, sample, labels, reasons)
    return reasons


def _solve(problem: Problem, role: Role, sample: Sample) -> tuple[np.ndarray, list[str]]:
    """Labels, NaN where the solver failed, and why it did."""
    solve = problem.solve_surrogate if role.surrogate else lambda s: problem.solve(s.inputs)
    try:
        labels = np.array(solve(sample), np.float32)
    except Exception as error:
        if len(sample.inputs) == 1:
            return np.full((1, *problem.label_shape), np.nan, np.float32), [f"{type(error).__name__}: {error}"]
        parts = [_solve(problem, role, _row(sample, row)) for row in range(len(sample.inputs))]
        return np.concatenate([part for part, _ in parts]), [reason for _, reasons in parts for reason in reasons]
    if labels.shape != (expected := (len(sample.inputs), *problem.label_shape)):
        raise SolverFailed(f"the solver of {problem.name} gave labels of shape {labels.shape}, not {expected}")
    failed = _failed(labels)
    labels[failed] = np.nan
    return labels, ["a label that is not finite"] * int(failed.sum())


def _failed(labels: np.ndarray) -> np.ndarray:
    return ~np.isfinite(labels).reshape(len(labels), -1).all(1)


def _row(sample: Sample, row: int) -> Sample:
    part = slice(row, row + 1)
    return Sample(sample.inputs[part], {name: values[part] for name, values in sample.parameters.items()})


@ray.remote(num_cpus=1, max_retries=5)
def _make_on_ray(dataset: Dataset, shard: Shard) -> list[str]:
    import torch

    torch.set_num_threads(1)  # one task a core; and the number of threads would change rounding
    return make_shard(dataset, shard)


def generate(
    dataset: Dataset, shards: list[Shard], claims: Claims, warn: Callable[[str], None] = print
) -> Iterator[Shard]:
    """Make the shards on the Ray cluster, labelled ones first; yields each when it is stored.

    One that another driver is making is waited for, and made here if that driver dies. Samples that are given
    are read here, where their files are.
    """
    if dataset.problem.available is not None:
        yield from _import(dataset, shards)
        return
    elsewhere = sorted(shards, key=lambda s: not s.role.labelled)
    pending: dict[ray.ObjectRef, Shard] = {}
    while elsewhere or pending:
        mine = [s for s in elsewhere if claims.take(_claim(dataset, s))]
        elsewhere = [s for s in elsewhere if s not in mine]
        pending |= {_make_on_ray.remote(dataset, shard): shard for shard in mine}
        done, _ = ray.wait(list(pending), timeout=POLL if elsewhere else None) if pending else ([], None)
        if not pending:
            time.sleep(POLL)
        for reference in done:
            shard = pending.pop(reference)
            if reasons := _result(reference):
                warn(
                    f"{shard.role.name} shard {shard.index}: the solver failed on {len(reasons)} of {SHARD} inputs, "
                    f"which were drawn anew; first with {reasons[0]}"
                )
            claims.release(_claim(dataset, shard))
            yield shard


def _import(dataset: Dataset, shards: list[Shard]) -> Iterator[Shard]:
    for role in dict.fromkeys(shard.role for shard in shards):
        indices = [shard.index for shard in shards if shard.role == role]
        for index, sample, labels in dataset.problem.shards(role.name, dataset.seed, indices, SHARD):
            dataset.write(role, index, sample, labels)
            yield Shard(role, index)


def _result(reference: ray.ObjectRef) -> list[str]:
    try:
        return ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise SolverFailed(f"the solver takes its process down: {' '.join(str(error).split())[:300]}") from None


def _claim(dataset: Dataset, shard: Shard) -> str:
    return dataset.shard_name(shard.role, shard.index)
