"""Makes the shards of a dataset on Ray tasks: only those that are missing or damaged, and each only once.

No input of the test is among those of the other roles, up to the symmetries that the problem declares. The test's
inputs come first: what is drawn for another role and equals one of them is drawn again, in the worker, from the
shard's own generator. What is stored never changes, so when more of the test is made later, or one of its inputs is
replaced because the solver fails on it, the new one yields to all that are stored. So the number of workers changes
nothing.
"""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from functools import wraps
from typing import Any

import numpy as np
import ray
import torch

from sibcl_ray.cluster.internals import scales
from sibcl_ray.data.dataset import SURROGATE, TARGET, TEST, Dataset, Role, Shard
from sibcl_ray.data.sandbox import CallFailed, call
from sibcl_ray.data.shards import Draft, Made, drawn, forms, groups, make_shard, stored
from sibcl_ray.messages import one_line
from sibcl_ray.problems import check
from sibcl_ray.problems.problem import BadProblem, Problem, SolverFailed
from sibcl_ray.storage.leases import Claims
from sibcl_ray.storage.store import Damaged, StoreError
from sibcl_ray.symmetry import orbits

POLL = 1.0  # seconds between looks at shards that another driver makes
LOOKED_AT = 20  # shards of which a task gives forms
ON_NODES = {"num_cpus": "CPU", "num_gpus": "GPU", "memory": "memory"}  # as Ray calls them in options, and on nodes


def _task(work: Callable[..., Any]) -> ray.remote_function.RemoteFunction:
    """A Ray task. Its errors are returned: Ray prints those of tasks whose result is no longer awaited."""

    @wraps(work)
    def run(*arguments: Any) -> Any:
        try:
            return work(*arguments)
        except (BadProblem, SolverFailed, StoreError) as error:
            return error

    return ray.remote(num_cpus=1, max_retries=5)(run)


@_task
def _make_on_ray(
    dataset: Dataset, shard: Shard, claim: str, draft: Draft | None, last: bool, *apart: Any
) -> Made | Draft | None:
    """Make a shard; ``apart`` are forms, or the errors of tasks that should have given them."""
    if not dataset.store.exists(claim):
        return None  # the driver has stopped
    for part in apart:
        if isinstance(part, Exception):
            raise part
    # As many as the task has cores; and another number of threads would change rounding.
    torch.set_num_threads(max(1, int(_options(dataset, shard)["num_cpus"])))
    return make_shard(dataset, shard, np.concatenate(apart), draft, last)


@_task
def _drawn_on_ray(dataset: Dataset, shards: list[Shard], apart: np.ndarray) -> np.ndarray:
    """The forms of the inputs that shards will have, if the solver does not fail."""
    problem = dataset.problem
    samples = [drawn(problem, shard, dataset.size(shard.role), dataset.rng(*shard), apart)[0] for shard in shards]
    return np.concatenate([forms(problem, sample.inputs) for sample in samples])


@_task
def _read_on_ray(dataset: Dataset, shards: list[Shard]) -> dict[Shard, Made]:
    """What is stored of some shards, and whole."""
    found = {}
    for shard in shards:
        with suppress(FileNotFoundError, Damaged):
            found[shard] = stored(dataset, shard)
    return found


def estimate(dataset: Dataset, shards: Sequence[Shard]) -> None:
    """Store estimates of the labels of shards that are there, each only once for an input.

    Raises:
        SolverFailed, BadProblem: they cannot be made, or used.
    """
    for reference in [_estimate_on_ray.options(**_options(dataset, s)).remote(dataset, s) for s in shards]:
        _result(reference)


@_task
def _estimate_on_ray(dataset: Dataset, shard: Shard) -> None:
    problem, what = dataset.problem, f"{dataset.problem.name}.estimate"
    inputs = dataset.read_shard(*shard).inputs.numpy()
    try:
        estimates = check.labels(problem, call(problem, "estimate", inputs), len(inputs), what)
    except CallFailed as failed:
        raise SolverFailed(f"{what} raises {failed}{failed.left}; mend it") from None
    if not np.isfinite(estimates).all():
        raise BadProblem(f"{what} gives a number that is not finite; give one for every input")
    dataset.write_estimates(*shard, estimates)


def _options(dataset: Dataset, shard: Shard) -> dict[str, Any]:
    """What Ray is asked for to make a shard: what the solver needs, if it is needed."""
    return {"num_cpus": 1, **(dataset.problem.resources if shard.role.labelled else {})}


def _refuse_unavailable(problem: Problem) -> None:
    """ValueError where no node has what a solver asks for: its tasks would wait for ever."""
    if scales():
        return  # another kind of node than those that are there may be on its way
    needs = dict(problem.resources)
    wanted = {**needs.pop("resources", {}), **{ON_NODES[name]: amount for name, amount in needs.items()}}
    nodes = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if any(all(node.get(name, 0.0) >= amount for name, amount in wanted.items()) for node in nodes):
        return
    most = {name: max(node.get(name, 0.0) for node in nodes) for name in wanted}
    asked, has = (" and ".join(f"{amount:g} {name}" for name, amount in each.items()) for each in (wanted, most))
    raise ValueError(
        f"the solver of {problem.name} needs {asked}, and the cluster's nodes have at most {has}; ask for less in its "
        "resources, or add a larger node"
    )


def generate(
    dataset: Dataset, shards: list[Shard], claims: Claims, warn: Callable[[str], None] = print
) -> Iterator[Shard]:
    """Make the shards on the Ray cluster, labelled ones first; yields each when it is stored.

    One that another driver is making is waited for, and made here if that driver dies. Samples that are given
    are read here, where their files are.

    Raises:
        LabelsChanged: there are labels that other code has made, and it was not said what is to become of them.
        SolverFailed: a label cannot be computed.
        BadProblem: labels cannot be learned from, or the test is not apart from the rest. Nothing more is started then;
            what is under way ends with this process, as Ray may abort a driver that cancels a task just when it ends.
    """
    dataset.settle({shard.role for shard in shards})
    if dataset.problem.available is not None:
        yield from _import(dataset, shards)
        return
    if not shards and dataset.is_checked():
        return
    if any(shard.role.labelled for shard in shards):
        _refuse_unavailable(dataset.problem)
    yield from _Generation(dataset, claims, warn).run(shards)


class _Generation:
    """One driver's making of shards."""

    def __init__(self, dataset: Dataset, claims: Claims, warn: Callable[[str], None]) -> None:
        self.dataset, self.problem, self.claims, self.warn = dataset, dataset.problem, claims, warn
        self.pending: dict[ray.ObjectRef, Shard] = {}
        self.stored: dict[Shard, Made] = {}
        self.drafts: dict[Shard, Draft] = {}
        self.judged = False

    def run(self, shards: list[Shard]) -> Iterator[Shard]:
        if unchecked := orbits.unchecked(groups(self.problem), self.problem.input_shape):
            self.warn(
                f"whether inputs of the test are images of others under {' and '.join(unchecked)} is not checked: "
                "the elements of such a group are not known"
            )
        self._look()
        self.judged = self._judge(TARGET, TEST, fewest=check.ENOUGH)
        try:
            yield from self._make(shards)
        finally:
            for shard in self.pending.values():  # after an error: tasks that have not begun do nothing then
                self.claims.release(self.dataset.shard_name(*shard))
        self._look()
        for role in (TARGET, TEST, SURROGATE):
            self._judge(role, fewest=1)
        self.dataset.note_checked()

    def _look(self) -> None:
        """Read what is stored and not known yet, and refuse test inputs that are also learned from."""
        unknown = _parts([shard for shard in self.dataset.stored() if shard not in self.stored])
        for reference in [_read_on_ray.remote(self.dataset, part) for part in unknown]:
            self.stored |= _result(reference)
        test, others = self._of(test=True), self._of(test=False)
        if len(rows := orbits.shared(test, others)):
            raise BadProblem(
                f"{len(rows)} of the {len(test)} stored test inputs of {self.problem.name} are also learned from, up "
                "to the declared symmetries; an earlier version did not look: give another --data-seed"
            )

    def _of(self, test: bool) -> np.ndarray:
        """The forms of what is stored of the test, or of all other roles."""
        found = [made.forms for shard, made in self.stored.items() if (shard.role == TEST) == test]
        return np.concatenate([np.zeros((0, orbits.NUMBERS)), *found])

    def _make(self, shards: list[Shard]) -> Iterator[Shard]:
        others = ray.put(self._of(test=False))
        tests = _parts([shard for shard in shards if shard.role == TEST])
        apart = (self._of(test=True), *(_drawn_on_ray.remote(self.dataset, part, others) for part in tests))
        yield from self._make_each(
            {
                shard: (None, False, others) if shard.role == TEST else (None, True, *apart)
                for shard in sorted(shards, key=lambda s: not s.role.labelled)
            }
        )
        others = ray.put(self._of(test=False))
        yield from self._make_each({shard: (draft, True, others) for shard, draft in self.drafts.items()})

    def _make_each(self, waiting: dict[Shard, tuple]) -> Iterator[Shard]:
        """Make shards, by what tasks are given besides them; those that have to wait for others become drafts."""
        dataset, claims = self.dataset, self.claims
        elsewhere = list(waiting)
        while elsewhere or self.pending:
            mine = {s: name for s in elsewhere if claims.take(name := dataset.shard_name(*s))}
            elsewhere = [s for s in elsewhere if s not in mine]
            for shard, name in mine.items():
                task = _make_on_ray.options(**_options(dataset, shard))
                self.pending[task.remote(dataset, shard, claims.record_name(name), *waiting[shard])] = shard
            done: list[ray.ObjectRef] = []
            if self.pending:
                done, _ = ray.wait(list(self.pending), timeout=POLL if elsewhere else None)
            else:
                time.sleep(POLL)
            for reference in done:
                made, shard = _result(reference), self.pending.pop(reference)
                claims.release(dataset.shard_name(*shard))
                if made is None:  # the claim was not this driver's any more
                    elsewhere.append(shard)
                elif isinstance(made, Draft):
                    self.drafts[shard] = made
                else:
                    if made.failures:
                        self.warn(
                            f"{shard.role.name} shard {shard.index}: the solver failed on {made.failures} of "
                            f"{dataset.size(shard.role)} inputs, which were drawn anew; first with {made.told}"
                        )
                    self.stored[shard] = made
                    yield shard
                    self.judged = self.judged or self._judge(TARGET, TEST, fewest=check.ENOUGH)

    def _judge(self, *roles: Role, fewest: int) -> bool:
        """Whether there are as many labels of these roles; BadProblem if networks cannot learn them."""
        shards = sorted((s for s in self.stored if s.role in roles), key=lambda s: (s.role.name, s.index))
        labels = [labels for shard in shards if (labels := self.stored[shard].labels) is not None]
        if enough := sum(map(len, labels)) >= fewest:
            what = f"{self.problem.name}.{'solve_surrogate' if roles[0].surrogate else 'solve'}"
            check.several(self.problem, np.concatenate(labels), what, roles[0].name)
        return enough


def _parts(shards: list[Shard]) -> list[list[Shard]]:
    return [shards[i : i + LOOKED_AT] for i in range(0, len(shards), LOOKED_AT)]


def _import(dataset: Dataset, shards: list[Shard]) -> Iterator[Shard]:
    for role in dict.fromkeys(shard.role for shard in shards):
        indices = [shard.index for shard in shards if shard.role == role]
        for index, sample, labels in dataset.problem.shards(role.name, dataset.seed, indices, dataset.size(role)):
            dataset.write(role, index, sample, labels)
            yield Shard(role, index)


def _result(reference: ray.ObjectRef) -> Any:
    try:
        result = ray.get(reference)
    except ray.exceptions.RayTaskError as error:
        raise error.cause from None
    except ray.exceptions.RayError as error:
        raise SolverFailed(f"the solver takes its process down: {one_line(error, 300)}") from None
    if isinstance(result, Exception):
        raise result
    return result
