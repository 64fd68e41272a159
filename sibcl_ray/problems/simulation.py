"""A problem in a few lines: how inputs are drawn, and what solves them. All the rest has a default."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sibcl_ray.problems.problem import FRACTION, Problem, Sample
from sibcl_ray.symmetry import Group


@dataclass(frozen=True)
class Simulation(Problem):
    """A subclass has to have `name`, `input_shape`, `label_shape`, `sample` and `solve`, and may have all else.

    What are properties here may be plain attributes there: ``input_shape = (32, 32)``. If the label can be
    estimated cheaply, give `estimate`: the surrogate then has labels by it. Or give `sample_surrogate` for cheap
    inputs, `solve_surrogate` for cheap labels, or both. Inputs and labels should be of order one, or be brought
    there by `features`, and by `offset` and `label_scale`.
    """

    version = 1
    labels_per_task = 1
    input_units = label_units = "not given"

    @property
    def symmetries(self) -> Mapping[str, Group]:
        """None."""
        return {}

    def missing_requirement(self, *, contrastive: bool, surrogate: bool, invariant: bool, delta: bool) -> str:
        own = type(self)
        cheap = (
            own.estimate is not Problem.estimate
            or own.sample_surrogate is not Simulation.sample_surrogate
            or own.solve_surrogate is not Simulation.solve_surrogate
        )
        needs = (
            (surrogate and not cheap, f"surrogate labels; give {own.__name__} an estimate, or a solve_surrogate"),
            (contrastive and not self.symmetries, f"a symmetry; give {own.__name__} its symmetries"),
            (
                invariant and not (self.symmetries or self.equivariances),
                f"a symmetry; give {own.__name__} its symmetries or equivariances",
            ),
            (delta and own.estimate is Problem.estimate, f"a cheap estimate of the label; give {own.__name__} one"),
        )
        return next((what for lacking, what in needs if lacking), "")

    def behind(self, method: str) -> str:
        if getattr(type(self), method) is not getattr(Simulation, method):
            return method
        estimated = type(self).estimate is not Problem.estimate
        passed_on = {"sample_surrogate": "sample", "solve_surrogate": "estimate" if estimated else "solve"}
        return passed_on.get(method) or super().behind(method)

    def sample_surrogate(self, count: int, rng: np.random.Generator) -> Sample:
        """Inputs of the target family."""
        return self.sample(count, rng)

    def solve_surrogate(self, sample: Sample) -> np.ndarray:
        """Estimates, if there are any; else by the same solver."""
        estimated = type(self).estimate is not Problem.estimate
        return self.estimate(sample.inputs) if estimated else self.solve(sample.inputs)

    @property
    def error_units(self) -> str:  # type: ignore[override]  # a class's elsewhere
        """A fraction, as is the error here; of an error of one's own not said."""
        return FRACTION if type(self).error is Simulation.error else ""

    def error(self, prediction: Tensor, label: Tensor) -> Tensor:
        """Σ|Δ| / Σ|true|."""
        return (prediction - label).abs().flatten(1).sum(1) / label.abs().flatten(1).sum(1)
