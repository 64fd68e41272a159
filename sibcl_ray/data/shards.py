"""Makes a shard: its inputs, apart from those of the test, and its labels. Knows nothing of Ray."""

import copy
import time
from dataclasses import dataclass, field

import numpy as np
from torch import Tensor

from sibcl_ray.data.dataset import TEST, Dataset, Role, Shard
from sibcl_ray.data.sandbox import CallFailed, call
from sibcl_ray.problems import check
from sibcl_ray.problems.problem import BadProblem, Problem, Sample, SolverFailed
from sibcl_ray.symmetry import Group, orbits

FAILURES = 5  # times that the solver may fail on inputs of a small shard, and half the times the size of a large one
MISTAKES = ("NameError", "TypeError", "AttributeError", "NotImplementedError")  # of the program, not of an input
REDRAWS = 20  # times that an input may be drawn again because the test has it


@dataclass
class Draft:
    """A shard that is being made: its inputs, and labels as far as there are any, NaN where the solver failed."""

    sample: Sample
    rng: np.random.Generator
    labels: np.ndarray | None = None
    reasons: list[str] = field(default_factory=list)  # of failures
    told: str = ""  # of the first failure, with what it left
    seconds: float = 0.0  # that the solver took

    def note(self, reasons: list[str], left: str = "") -> None:
        self.told = self.told or reasons[0] + left
        self.reasons += reasons


@dataclass(frozen=True)
class Made:
    """A shard that is stored."""

    forms: np.ndarray
    labels: np.ndarray | None = None
    failures: int = 0
    told: str = ""


def make_shard(
    dataset: Dataset, shard: Shard, apart: np.ndarray | None = None, draft: Draft | None = None, last: bool = True
) -> Made | Draft:
    """Draw, solve and store one shard, unless it is there.

    An input that the solver fails on, or does not solve in time, is replaced by another draw; the shard's metadata
    say so.

    Args:
        apart: the forms (see `orbits`) of inputs that must not be drawn.
        draft: what an earlier call has given back.
        last: whether replacements may be drawn now; if not, and some are needed, the draft is given back.

    Raises:
        SolverFailed: failures are too many for an accident.
        BadProblem: the labels are of a wrong type or shape, or nothing else than what is in ``apart`` is drawn.
    """
    if dataset.holds(shard, lambda text: None):
        return stored(dataset, shard)
    problem, role, size = dataset.problem, shard.role, dataset.size(shard.role)
    allowed = max(FAILURES, size // 2)  # more are no accident
    if draft is None:
        draft = Draft(*drawn(problem, shard, size, dataset.rng(role, shard.index), apart))
        if role.labelled:
            draft.labels = _solve(problem, role, draft.sample, allowed, draft)
    else:
        draft = copy.deepcopy(draft)  # what Ray hands over cannot be written
    while draft.labels is not None and len(rows := np.flatnonzero(_failed(draft.labels))):
        mistaken = draft.reasons[0].startswith(MISTAKES) and len(rows) == size and len(draft.reasons) > 1
        if len(draft.reasons) > allowed or mistaken:
            raise SolverFailed(
                f"the solver of {problem.name} failed {len(draft.reasons)} times on {size} input{'s' * (size > 1)} of "
                f"{role.name} shard {shard.index}, first with {draft.told}; mend it, or what it is asked to solve"
            )
        if not last:
            return draft
        again, draft.rng = drawn(problem, shard, len(rows), draft.rng, apart)
        _replace(draft.sample, rows, again, f"{problem.name}.sample")
        labels = _solve(problem, role, again, allowed, draft)
        draft.labels = draft.labels.astype(np.result_type(draft.labels, labels))
        draft.labels[rows] = labels
    dataset.write(role, shard.index, draft.sample, draft.labels, draft.reasons)
    if role.labelled:
        dataset.record_seconds(role, shard.index, draft.seconds * (problem.resources.get("num_cpus", 1) or 1))
    return Made(forms(problem, draft.sample.inputs), draft.labels, len(draft.reasons), draft.told)


def stored(dataset: Dataset, shard: Shard) -> Made:
    split = dataset.read_shard(*shard)
    labels = None if split.labels is None else split.labels.numpy()
    return Made(forms(dataset.problem, split.inputs), labels)


def forms(problem: Problem, inputs: np.ndarray | Tensor) -> np.ndarray:
    """By which inputs are known that the problem's symmetries make equal; see `orbits.forms`."""
    return orbits.forms(inputs, groups(problem))


def groups(problem: Problem) -> dict[str, Group]:
    """All that moves inputs and leaves their labels, or moves them along."""
    moving = {f"equivariance {name}": moves.group for name, moves in problem.equivariances.items()}
    return {**problem.symmetries, **moving}


def drawn(
    problem: Problem, shard: Shard, count: int, rng: np.random.Generator, apart: np.ndarray | None
) -> tuple[Sample, np.random.Generator]:
    """Inputs none of which is in ``apart``, and the generator afterwards."""
    method = "sample_surrogate" if shard.role.surrogate else "sample"
    what = f"{problem.name}.{method}"
    sample: Sample | None = None
    rows = np.arange(count)
    for _ in range(1 + REDRAWS):
        try:
            new, rng = call(problem, method, len(rows), rng)
        except CallFailed as failed:
            raise SolverFailed(f"{what} raises {failed}{failed.left}; mend it") from None
        new = check.sample(problem, new, len(rows), what)
        if sample is None:
            sample = new
        else:
            _replace(sample, rows, new, what)
        if apart is None or not len(apart):
            return sample, rng
        rows = rows[orbits.shared(forms(problem, new.inputs), apart)]
        if not len(rows):
            return sample, rng
    others = "inputs of other roles" if shard.role == TEST else "test inputs"
    raise BadProblem(
        f"{what} draws {others} again and again: {len(rows)} of {count} in {shard.role.name} shard {shard.index} "
        f"are among them, up to the declared symmetries, also after {REDRAWS} new draws; it has too few inputs that "
        "differ: draw from a wider family, or ask for fewer samples"
    )


def _replace(sample: Sample, rows: np.ndarray, by: Sample, what: str) -> None:
    kinds = [{n: (v.dtype, v.shape[1:]) for n, v in drawn.parameters.items()} for drawn in (sample, by)]
    if kinds[0] != kinds[1]:
        raise BadProblem(f"{what} draws parameters {kinds[1]}, and {kinds[0]} before; give all samples the same ones")
    sample.inputs[rows] = by.inputs
    for name, values in by.parameters.items():
        sample.parameters[name][rows] = values


def _solve(problem: Problem, role: Role, sample: Sample, allowed: int, draft: Draft) -> np.ndarray:
    """Labels, NaN where the solver failed; the reasons go into the draft.

    All at once; or, where that fails or takes longer than one of them may, one by one.
    """
    count = len(sample.inputs)
    method, argument = ("solve_surrogate", sample) if role.surrogate else ("solve", sample.inputs)
    if problem in _refused:
        raise BadProblem(_refused[problem])
    for _ in range(1 + problem.retries if count == 1 else 1):
        began = time.perf_counter()
        try:
            given = call(problem, method, argument, seconds=problem.timeout)
        except CallFailed as error:
            failed = error
            continue
        finally:
            draft.seconds += time.perf_counter() - began
        try:
            labels = check.labels(problem, np.asanyarray(given), count, f"{problem.name}.{method}")
        except BadProblem as error:
            _refused[problem] = str(error)
            raise
        if bad := int(_failed(labels).sum()):
            draft.note(["a label that is not finite"] * bad)
        return labels
    if count == 1:
        draft.note([str(failed)], failed.left)
        return np.full((1, *problem.label_shape), np.nan, np.float32)
    parts: list[np.ndarray] = []
    begun = len(draft.reasons)
    while len(parts) < count and len(draft.reasons) - begun <= allowed:  # more are not to be waited for
        part = slice(len(parts), len(parts) + 1)
        row = Sample(sample.inputs[part], {name: values[part] for name, values in sample.parameters.items()})
        parts.append(_solve(problem, role, row, allowed, draft))
    return np.concatenate([*parts, np.full((count - len(parts), *problem.label_shape), np.nan, np.float32)])


# Why this process, which may have more shards to make, asks a solver no more.
_refused: dict[Problem, str] = {}


def _failed(labels: np.ndarray) -> np.ndarray:
    return ~np.isfinite(labels).reshape(len(labels), -1).all(1)
