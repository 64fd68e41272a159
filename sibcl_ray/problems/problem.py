"""The contract of a problem: inputs, labels, symmetries, a cheap surrogate, and how wrong a prediction is.

A problem knows nothing of networks' weights, of budgets or of Ray. It is a frozen dataclass, so that its fields name
it, and must be importable where workers run.
"""

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from operator import attrgetter
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from sibcl_ray.isolation import guard
from sibcl_ray.messages import one_line
from sibcl_ray.problems import losses
from sibcl_ray.symmetry import Equivariance, Group


@dataclass(frozen=True)
class Sample:
    """Inputs drawn together: ``inputs`` (count, *input_shape) float32, and by name the numbers, (count, …),
    that the generator drew them with."""

    inputs: np.ndarray
    parameters: Mapping[str, np.ndarray] = field(default_factory=dict)


FRACTION = "fraction"  # units of errors that are relative, or a share: they are shown in %
MODERATE = (1e-2, 1e2)  # root mean square of what networks learn: they start from outputs of order one
# Deviation of what networks learn, over one or its root mean square if that is larger. At 1e-3 their errors were ten
# times those of guessing the mean (600 steps, 200 labels), at 0.03 a fraction of them.
FAINT = 1e-3
LINE = 32  # numbers in a row from which they are rather a line, of which neighbours are alike, than a vector


def learnable(size: float, deviation: float, faint: float = FAINT) -> bool:
    """Whether networks can learn numbers of this root mean square that deviate by so much from sample to sample."""
    return MODERATE[0] <= size <= MODERATE[1] and deviation >= faint * max(1.0, size)


class SolverFailed(RuntimeError):
    """The solver fails on too many inputs to be an accident."""


class BadProblem(ValueError):
    """A problem that cannot be used: in one line what came, what was expected and what to do."""

    def __init__(self, text: str) -> None:
        super().__init__(one_line(text))


# Attributes by their old names, which are honoured in users' classes.
RENAMED = {"spread": "label_scale", "lacks": "missing_requirement"}


class Problem(ABC):
    """Physics, symmetry and surrogate of one regression task."""

    name: ClassVar[str]
    version: ClassVar[int]  # raise it when what the methods give changes, of a class that is not in a user's file
    versions: ClassVar[Mapping[str, int]] = {}  # the same for some of the methods alone, by name
    source: ClassVar[Any] = None  # the `UserModule` of a class in a user's file: what it says counts, and no version
    input_units: ClassVar[str]
    label_units: ClassVar[str]
    error_units: ClassVar[str] = ""  # of what `error` gives: FRACTION, or a unit, or the metric's name; empty: not said

    label_scale: ClassVar[float] = 1.0  # typical size of a label less the offset: networks predict it in units of this

    # Whether inputs repeat along the axes of the grid that `features` have: one answer for all, or a tuple with one for
    # each. None: images and volumes do, vectors and lines do not.
    periodic: ClassVar[bool | tuple[bool, ...] | None] = None

    resources: ClassVar[Mapping[str, Any]] = {"num_cpus": 1}  # of a task that solves, as Ray's options name them
    labels_per_task: ClassVar[int] = 50  # target labels that a task solves and stores together; 1 if one takes minutes
    timeout: ClassVar[float | None] = None  # seconds the solver may take for an input; its process is ended then
    retries: ClassVar[int] = 0  # how often an input that the solver failed on is tried again before another is drawn

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        for before, now in RENAMED.items():
            if before in vars(cls) and now not in vars(cls):
                setattr(cls, now, property(attrgetter(before)))
        judges = ("features", "label_loss", "surrogate_loss", "error")
        guard(cls, (*judges, "offset", "symmetries", "equivariances"))  # the rest runs in a process of its own

    # Seconds of one core that a label of either kind takes if no field is changed, for the plan of a study that has
    # none yet; None: not known.
    label_seconds: ClassVar[float | None] = None
    surrogate_seconds: ClassVar[float | None] = None

    @property
    @abstractmethod
    def input_shape(self) -> tuple[int, ...]:
        """Shape of one input."""

    @property
    @abstractmethod
    def label_shape(self) -> tuple[int, ...]:
        """Shape of one label."""

    @property
    @abstractmethod
    def symmetries(self) -> Mapping[str, Group]:
        """The groups under which the label is invariant, in the order in which they are applied."""

    @property
    def equivariances(self) -> Mapping[str, Equivariance]:
        """The groups that move the label along with the input, by names that no symmetry has.

        They augment labelled data, the label with the input, and predictions for moved inputs are moved back.
        Contrastive pairs do without them: their label is not the same.
        """
        return {}

    @property
    def available(self) -> Mapping[str, int] | None:
        """How many samples `shards` gives of a role, by name; {} if as many as asked for; None if drawn and solved."""
        return None

    def missing_requirement(self, *, contrastive: bool, surrogate: bool, invariant: bool, delta: bool) -> str:
        """What a method that uses these needs and the problem does not have, in a few words; empty if nothing.

        Pairs of views are of unlabelled and surrogate inputs; symmetries augment; delta-learning starts from estimates.
        """
        return "a cheap estimate of the label" if delta and not has_estimate(self) else ""

    lacks = missing_requirement  # for classes that override it by its old name

    def behind(self, method: str) -> str:
        """The method that decides what ``method`` gives: another where that is left as it is here."""
        passed_on = {"solve_surrogate": "solve", "surrogate_loss": "label_loss"}
        own = getattr(type(self), method) is not getattr(Problem, method)
        return method if own else passed_on.get(method, method)

    def estimate(self, inputs: np.ndarray) -> np.ndarray:
        """A cheap estimate of the labels of any inputs, (count, *label_shape) float32: what delta-learning starts from.

        It has to share the label's symmetries.
        """
        raise NotImplementedError(f"{self.name} has no cheap estimate of its label")

    def shards(
        self, role: str, seed: int, indices: Sequence[int], size: int
    ) -> Iterator[tuple[int, Sample, np.ndarray | None]]:
        """Parts of the samples that are given, by number, with labels where the role has them."""
        raise NotImplementedError(f"the samples of {self.name} are drawn")

    @abstractmethod
    def sample(self, count: int, rng: np.random.Generator) -> Sample:
        """Draw ``count`` inputs of the target family."""

    @abstractmethod
    def solve(self, inputs: np.ndarray) -> np.ndarray:
        """Compute the expensive labels, (count, *label_shape) float32; deterministic."""

    @abstractmethod
    def sample_surrogate(self, count: int, rng: np.random.Generator) -> Sample:
        """Draw ``count`` inputs of the surrogate family."""

    def solve_surrogate(self, sample: Sample) -> np.ndarray:
        """Labels of surrogate inputs, cheaper than target labels: by the same solver if not said otherwise."""
        return self.solve(sample.inputs)

    def features(self, inputs: Tensor) -> Tensor:
        """What a network sees, (batch, *input_shape) -> (batch, channels, …), of order one: by default one channel."""
        return inputs.unsqueeze(1)

    @property
    def offset(self) -> np.ndarray:
        """What is known of every label beforehand, *label_shape, float32 or float64, by default zero: networks predict
        the difference to it, which is taken in the wider of its type and the labels'."""
        return np.zeros(self.label_shape, np.float32)

    def label_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        """The loss, a scalar, where target labels are fitted; both (batch, …) less the offset."""
        return losses.squared(prediction, label)

    def surrogate_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        """The same where surrogate labels are fitted."""
        return self.label_loss(prediction, label)

    @abstractmethod
    def error(self, prediction: Tensor, label: Tensor) -> Tensor:
        """The figure of merit for each sample, (batch,), of whole labels; 0 if they agree."""


def has_estimate(problem: Problem) -> bool:
    return type(problem).estimate is not Problem.estimate


def feature_shape(problem: Problem) -> tuple[int, ...]:
    """What a network sees of an input: (channels, *grid)."""
    return tuple(problem.features(torch.ones(1, *problem.input_shape)).shape[1:])


def periodic_axes(problem: Problem, dimensions: int) -> tuple[bool, ...]:
    """Of each axis of the grid whether inputs repeat along it."""
    if problem.periodic is None:
        return default_periodic_axes(dimensions)
    return problem.periodic if isinstance(problem.periodic, tuple) else (problem.periodic,) * dimensions


def default_periodic_axes(dimensions: int) -> tuple[bool, ...]:
    return (dimensions > 1,) * dimensions
