"""A problem in a few lines: how inputs are drawn, and what solves them. All the rest has a default."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sibcl_ray.problems.problem import FRACTION, Problem, Sample, has_estimate
from sibcl_ray.symmetry import Group


@dataclass(frozen=True)
class Simulation(Problem):
    """A subclass has to have `name`, `input_shape`, `label_shape`, `sample` and `solve`, and may have all else.

    What are properties here may be plain attributes there: ``input_shape = (32, 32)``. If the label can be
    estimated cheaply, give `estimate`: the surrogate then has labels by it. Or give `sample_surrogate` for cheap
    inputs, `solve_surrogate` for cheap labels, or both. Inputs and labels should be of order one, or be brought
    there by `features`, and by `offset` and `label_scale`. If images or volumes have a boundary, give
    ``periodic = False``, or a tuple with one answer for each axis; vectors and lines have one if nothing is said.
    """

    version = 1
    labels_per_task = 1
    input_units = label_units = "not given"

    @property
    def symmetries(self) -> Mapping[str, Group]:
        """None."""
        return {}

    def missing_requirement(self, *, contrastive: bool, surrogate: bool, invariant: bool, delta: bool) -> str:
        name, cheap = type(self).__name__, (self.behind("sample_surrogate"), self.behind("solve_surrogate"))
        if surrogate and cheap == ("sample", "solve"):
            return f"surrogate labels; give {name} an estimate, or a solve_surrogate"
        if contrastive and not self.symmetries:
            return f"a symmetry; give {name} its symmetries"
        if invariant and not (self.symmetries or self.equivariances):
            return f"a symmetry; give {name} its symmetries or equivariances"
        return f"a cheap estimate of the label; give {name} one" if delta and not has_estimate(self) else ""

    def behind(self, method: str) -> str:
        if getattr(type(self), method) is not getattr(Simulation, method):
            return method
        passed_on = {"sample_surrogate": "sample", "solve_surrogate": "estimate" if has_estimate(self) else "solve"}
        return passed_on.get(method) or super().behind(method)

    def sample_surrogate(self, count: int, rng: np.random.Generator) -> Sample:
        """Inputs of the target family."""
        return self.sample(count, rng)

    def solve_surrogate(self, sample: Sample) -> np.ndarray:
        """Estimates, if there are any; else by the same solver."""
        return (self.estimate if has_estimate(self) else self.solve)(sample.inputs)

    @property
    def error_units(self) -> str:  # type: ignore[override]  # a class's elsewhere
        """A fraction, as is the error here; of an error of one's own not said."""
        return FRACTION if type(self).error is Simulation.error else ""

    def error(self, prediction: Tensor, label: Tensor) -> Tensor:
        """Σ|Δ| / Σ|true|."""
        return (prediction - label).abs().flatten(1).sum(1) / label.abs().flatten(1).sum(1)
