"""Makes the shards of a dataset on Ray tasks: only those that are missing or damaged, and each only once."""

import time
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any

import numpy as np
import ray
from ray.autoscaler.v2.utils import is_autoscaler_v2

from sibcl_ray.claims import Claims
from sibcl_ray.dataset import Dataset, Role, Shard, shard_size
from sibcl_ray.problems.problem import Problem, Sample, SolverFailed
from sibcl_ray.solving import CallFailed, Solver

POLL = 1.0  # seconds between looks at shards that another driver makes
FAILURES = 5  # times that the solver may fail on inputs of a small shard, and half the times the size of a large one


def make_shard(dataset: Dataset, shard: Shard) -> list[str]:
    """Draw, solve and store one shard, unless it is there.

    An input that the solver fails on, or does not solve in time, is replaced by another draw; the shard's metadata
    say so.

    Returns:
        The reasons of such failures.

    Raises:
        SolverFailed: they are too many for an accident.
    """
    if dataset.holds(shard, lambda text: None):
        return []
    problem, rng = dataset.problem, dataset.rng(shard.role, shard.index)
    draw = problem.sample_surrogate if shard.role.surrogate else problem.sample
    solve = _solver(problem, shard.role)
    size = shard_size(problem, shard.role)
    sample, allowed = draw(size, rng), max(FAILURES, size // 2)  # more are no accident
    labels, reasons = _solve(problem, solve, sample, allowed) if shard.role.labelled else (None, [])
    while labels is not None and len(rows := np.flatnonzero(_failed(labels))):
        if len(reasons) > allowed:
            raise SolverFailed(
                f"the solver of {problem.name} failed {len(reasons)} times on {size} input{'s' * (size > 1)} of "
                f"{shard.role.name} shard {shard.index}, first with {reasons[0]}; mend it, or what it is asked to solve"
            )
        again = draw(len(rows), rng)
        sample.inputs[rows] = again.inputs
        for name, values in again.parameters.items():
            sample.parameters[name][rows] = values
        labels[rows], more = _solve(problem, solve, again, allowed)
        reasons += more
    dataset.write(shard.role, shard.index, sample, labels, reasons)
    return reasons


Solve = Callable[[Sample], np.ndarray]


def _solver(problem: Problem, role: Role) -> Solve:
    """What solves a sample of the role: here, or apart if it may be ended."""
    if problem.timeout is not None:
        return lambda sample: _apart(problem, float(problem.timeout or 0))(sample, role.surrogate)
    return problem.solve_surrogate if role.surrogate else lambda sample: problem.solve(sample.inputs)


_apart = lru_cache(maxsize=1)(Solver)  # a process of a worker, for all the shards that it makes


def _solve(problem: Problem, solve: Solve, sample: Sample, allowed: int) -> tuple[np.ndarray, list[str]]:
    """Labels, NaN where the solver failed, and why it did.

    All at once; or, where that fails or one of them may be ended, one by one.
    """
    count = len(sample.inputs)
    if count == 1 or problem.timeout is None:
        for _ in range(1 + problem.retries if count == 1 else 1):
            try:
                labels = np.array(solve(sample), np.float32)
            except SolverFailed:
                raise
            except Exception as error:
                reason = str(error) if isinstance(error, CallFailed) else f"{type(error).__name__}: {error}"
                continue
            if labels.shape != (expected := (count, *problem.label_shape)):
                raise SolverFailed(f"the solver of {problem.name} gave labels of shape {labels.shape}, not {expected}")
            failed = _failed(labels)
            labels[failed] = np.nan
            return labels, ["a label that is not finite"] * int(failed.sum())
    if count == 1:
        return np.full((1, *problem.label_shape), np.nan, np.float32), [reason]
    labels = np.full((count, *problem.label_shape), np.nan, np.float32)
    reasons: list[str] = []
    for row in range(count):
        if len(reasons) <= allowed:  # more are not to be waited for
            labels[row : row + 1], more = _solve(problem, solve, _row(sample, row), allowed)
            reasons += more
    return labels, reasons


def _failed(labels: np.ndarray) -> np.ndarray:
    return ~np.isfinite(labels).reshape(len(labels), -1).all(1)


def _row(sample: Sample, row: int) -> Sample:
    part = slice(row, row + 1)
    return Sample(sample.inputs[part], {name: values[part] for name, values in sample.parameters.items()})


@ray.remote(num_cpus=1, max_retries=5)
def _make_on_ray(dataset: Dataset, shard: Shard) -> list[str]:
    import torch

    # As many as the task has cores; and another number of threads would change rounding.
    torch.set_num_threads(max(1, int(_options(dataset, shard)["num_cpus"])))
    return make_shard(dataset, shard)


def _options(dataset: Dataset, shard: Shard) -> dict[str, Any]:
    """What Ray is asked for to make a shard: what the solver needs, if it is needed."""
    return {"num_cpus": 1, **(dataset.problem.resources if shard.role.labelled else {})}


def scales() -> bool:
    """Whether the connected cluster has an autoscaler (the second version of Ray's). How far it goes, nothing tells."""
    return is_autoscaler_v2(fetch_from_server=True)


def _refuse_unavailable(problem: Problem) -> None:
    """ValueError where no node has what a solver asks for: its tasks would wait for ever."""
    if scales():
        return  # another kind of node than those that are there may be on its way
    needs = dict(problem.resources)
    wanted = {**needs.pop("resources", {}), **{_ON_NODES[name]: amount for name, amount in needs.items()}}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not any(all(node.get(name, 0.0) >= amount for name, amount in wanted.items()) for node in nodes):
        has = {name: max(node.get(name, 0.0) for node in nodes) for name in wanted}
        raise ValueError(
            f"the solver of {problem.name} needs {_listed(wanted)}, and the cluster's nodes have at most "
            f"{_listed(has)}; ask for less in its resources, or add a larger node"
        )


_ON_NODES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}  # as Ray calls them in options, and on nodes


def _listed(amounts: dict[str, float]) -> str:
    return " and ".join(f"{amount:g} {name}" for name, amount in amounts.items())


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
    if any(shard.role.labelled for shard in shards):
        _refuse_unavailable(dataset.problem)
    elsewhere = sorted(shards, key=lambda s: not s.role.labelled)
    pending: dict[ray.ObjectRef, Shard] = {}
    while elsewhere or pending:
        mine = dict.fromkeys(s for s in elsewhere if claims.take(_claim(dataset, s)))
        elsewhere = [s for s in elsewhere if s not in mine]
        pending |= {_make_on_ray.options(**_options(dataset, s)).remote(dataset, s): s for s in mine}
        done, _ = ray.wait(list(pending), timeout=POLL if elsewhere else None) if pending else ([], None)
        if not pending:
            time.sleep(POLL)
        for reference in done:
            shard = pending.pop(reference)
            if reasons := _result(reference):
                warn(
                    f"{shard.role.name} shard {shard.index}: the solver failed on {len(reasons)} of "
                    f"{shard_size(dataset.problem, shard.role)} inputs, which were drawn anew; first with {reasons[0]}"
                )
            claims.release(_claim(dataset, shard))
            yield shard


def _import(dataset: Dataset, shards: list[Shard]) -> Iterator[Shard]:
    for role in dict.fromkeys(shard.role for shard in shards):
        indices = [shard.index for shard in shards if shard.role == role]
        for index, sample, labels in dataset.problem.shards(
            role.name, dataset.seed, indices, shard_size(dataset.problem, role)
        ):
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
