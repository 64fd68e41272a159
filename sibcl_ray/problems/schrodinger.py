"""The ground state of a quantum particle in a box, in 2D and 3D (Loh et al., Nat. Commun. 13, 4223 (2022)).

H = −½∇² + V on [−L, L]^d, ħ = m = 1, ψ = 0 at the walls. The target family are blurred level sets. What is learned of
a potential, and what stands in for it cheaply, are fields of the problem: `Energies` or `Density`,
`CoarseGrid` or `HarmonicWells`.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from torch import Tensor

from sibcl_ray import losses
from sibcl_ray.problems.potentials import along_axes, grid_points, harmonic_wells, level_set_potentials, outer
from sibcl_ray.problems.problem import Problem, Sample
from sibcl_ray.solvers.schrodinger import empty_box_energies, lowest_eigenpairs, lowest_eigenvalues
from sibcl_ray.symmetry import Group, PointGroup

COARSE = 5  # points along an axis of the coarse grid


class Label(ABC):
    """What is learned of a potential. The problem tells the grid."""

    invariant: ClassVar[bool]  # under rotations and reflections

    @abstractmethod
    def shape(self, problem: Schrodinger) -> tuple[int, ...]:
        """Shape of one label."""

    @abstractmethod
    def solve(self, problem: Schrodinger, potentials: np.ndarray) -> np.ndarray:
        """Labels (count, *shape) of potentials (count, m, …) on any grid."""

    @abstractmethod
    def empty(self, problem: Schrodinger) -> np.ndarray:
        """The label (*shape) of V = 0."""

    @abstractmethod
    def harmonic(self, problem: Schrodinger, stiffness: np.ndarray, centre: np.ndarray) -> np.ndarray:
        """Labels (count, *shape) of ½Σk_i(x_i − c_i)² in unlimited space; both arguments (count, d)."""

    @abstractmethod
    def error(self, prediction: Tensor, label: Tensor) -> Tensor:
        """The relative error of each sample, (batch,)."""


@dataclass(frozen=True)
class Energies(Label):
    """The lowest energies, the ground state's first. Error: the mean of |Δ|/|true|."""

    levels: int = 1

    invariant = True

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise ValueError(f"levels is {self.levels}; it must be 1 or larger")

    def shape(self, problem: Schrodinger) -> tuple[int, ...]:
        return (self.levels,)

    def solve(self, problem: Schrodinger, potentials: np.ndarray) -> np.ndarray:
        return lowest_eigenvalues(potentials, problem.half_width, self.levels, problem.dimensions)

    def empty(self, problem: Schrodinger) -> np.ndarray:
        return empty_box_energies(problem.resolution, problem.dimensions, problem.half_width, self.levels)

    def harmonic(self, problem: Schrodinger, stiffness: np.ndarray, centre: np.ndarray) -> np.ndarray:
        quanta = np.array(list(itertools.product(range(self.levels), repeat=problem.dimensions)))
        return np.sort(np.sqrt(stiffness) @ (quanta + 0.5).T, axis=1)[:, : self.levels]

    def error(self, prediction: Tensor, label: Tensor) -> Tensor:
        return ((prediction - label) / label).abs().mean(1)


@dataclass(frozen=True)
class Density(Label):
    """|ψ₀|² at the grid's points, over its mean in the box. Error: Σ|Δ| / Σ|true|.

    It turns with the potential, so it is invariant under none of the symmetries.
    """

    invariant = False

    def shape(self, problem: Schrodinger) -> tuple[int, ...]:
        return problem.input_shape

    def solve(self, problem: Schrodinger, potentials: np.ndarray) -> np.ndarray:
        _, states = lowest_eigenpairs(potentials, problem.half_width, 1, problem.dimensions)
        interpolation = _sine_interpolation(potentials.shape[-1], problem.resolution)
        states = np.stack([along_axes(interpolation, state[0]) for state in states])
        return states**2 * (2 * problem.half_width) ** problem.dimensions

    def empty(self, problem: Schrodinger) -> np.ndarray:
        wave = 2 * np.cos(np.pi / 2 * grid_points(problem.resolution)) ** 2
        return outer(np.multiply, np.broadcast_to(wave, (1, problem.dimensions, len(wave))))[0]

    def harmonic(self, problem: Schrodinger, stiffness: np.ndarray, centre: np.ndarray) -> np.ndarray:
        width, frequency = problem.half_width, np.sqrt(stiffness)[..., None]
        away = width * grid_points(problem.resolution) - centre[..., None]
        return outer(np.multiply, 2 * width * np.sqrt(frequency / np.pi) * np.exp(-frequency * away**2))

    def error(self, prediction: Tensor, label: Tensor) -> Tensor:
        return (prediction - label).abs().flatten(1).sum(1) / label.abs().flatten(1).sum(1)


class Surrogate(ABC):
    """Cheap inputs with cheap labels."""

    @abstractmethod
    def sample(self, problem: Schrodinger, count: int, rng: np.random.Generator) -> Sample:
        """Draw ``count`` inputs."""

    @abstractmethod
    def solve(self, problem: Schrodinger, sample: Sample) -> np.ndarray:
        """Their labels."""


@dataclass(frozen=True)
class CoarseGrid(Surrogate):
    """Potentials of the target family, solved on few points: `Schrodinger.coarse`."""

    points: int = COARSE  # along an axis

    def sample(self, problem: Schrodinger, count: int, rng: np.random.Generator) -> Sample:
        return problem.sample(count, rng)

    def solve(self, problem: Schrodinger, sample: Sample) -> np.ndarray:
        return problem.coarse(sample.inputs, self.points)


@dataclass(frozen=True)
class HarmonicWells(Surrogate):
    """V = ½Σk_i(x_i − c_i)² clipped at 1, with the labels, in closed form, of the well that is not clipped."""

    def sample(self, problem: Schrodinger, count: int, rng: np.random.Generator) -> Sample:
        return Sample(*harmonic_wells(count, rng, problem.dimensions, problem.resolution, problem.half_width))

    def solve(self, problem: Schrodinger, sample: Sample) -> np.ndarray:
        return problem.label.harmonic(problem, sample.parameters["stiffness"], sample.parameters["centre"])


@dataclass(frozen=True)
class Schrodinger(Problem):
    """V(r) at n^d interior points of a box to the ground state's energy."""

    resolution: int = 32  # interior points along an axis
    complexity: int = 2  # largest wave number F of the level sets
    half_width: float = 5.0  # of the box
    label: Label = Energies()
    surrogate: Surrogate = CoarseGrid()

    dimensions: ClassVar[int]
    version = 1
    input_units = "energy, ħ = m = 1 and the half side of the box as given"
    label_units = "energies, ħ = m = 1, or |ψ|² over its mean in the box"

    def __post_init__(self) -> None:
        if self.resolution < 2 or self.complexity < 1:
            raise ValueError(
                f"resolution is {self.resolution} and complexity {self.complexity}; give at least 2 points and 1"
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.resolution,) * self.dimensions

    @property
    def label_shape(self) -> tuple[int, ...]:
        return self.label.shape(self)

    @property
    def symmetries(self) -> Mapping[str, Group]:
        return {"point_group": PointGroup(self.dimensions)} if self.label.invariant else {}

    def sample(self, count: int, rng: np.random.Generator) -> Sample:
        return Sample(*level_set_potentials(count, rng, self.dimensions, self.complexity, self.resolution))

    def solve(self, inputs: np.ndarray) -> np.ndarray:
        return self.label.solve(self, inputs).astype(np.float32)

    def coarse(self, inputs: np.ndarray, points: int = COARSE) -> np.ndarray:
        """What a coarse grid makes of inputs (count, *input_shape): labels (count, *label_shape), float32.

        Finite differences on points^d interior points with a spacing of their own, of V at these points, read
        linearly between the input's. A density is interpolated by the sines of the coarse grid.
        """
        if not 1 <= points <= self.resolution:
            raise ValueError(f"the coarse grid has {points} points; expected 1 to {self.resolution}, those of an input")
        read = _linear_interpolation(self.resolution, points)
        potentials = np.stack([along_axes(read, potential) for potential in inputs.astype(np.float64)])
        return self.label.solve(self, potentials).astype(np.float32)

    def estimate(self, inputs: np.ndarray) -> np.ndarray:
        return self.coarse(inputs)

    def sample_surrogate(self, count: int, rng: np.random.Generator) -> Sample:
        return self.surrogate.sample(self, count, rng)

    def solve_surrogate(self, sample: Sample) -> np.ndarray:
        return self.surrogate.solve(self, sample).astype(np.float32)

    def features(self, inputs: Tensor) -> Tensor:
        return inputs.unsqueeze(1)

    @property
    def offset(self) -> np.ndarray:
        """The label of an empty box: energies of V ≥ 0 are not below it."""
        return self.label.empty(self).astype(np.float32)

    def surrogate_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return losses.squared(prediction, label)

    def label_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return losses.squared(prediction, label)

    def error(self, prediction: Tensor, label: Tensor) -> Tensor:
        return self.label.error(prediction, label)


@dataclass(frozen=True)
class Schrodinger2D(Schrodinger):
    """In a square."""

    name = "schrodinger-2d"
    dimensions = 2


@dataclass(frozen=True)
class Schrodinger3D(Schrodinger):
    """In a cube."""

    name = "schrodinger-3d"
    dimensions = 3


def _linear_interpolation(n: int, m: int) -> np.ndarray:
    """Values at m interior points from those at n ≥ m, (m, n)."""
    distance = np.abs(grid_points(m)[:, None] - grid_points(n)) * (n + 1) / 2
    return np.maximum(0, 1 - distance)


def _sine_interpolation(n: int, m: int) -> np.ndarray:
    """Values at m interior points from those at n ≤ m of a sum of sines that vanish at the walls, (m, n)."""
    waves = np.arange(1, n + 1)
    there, here = (np.sin(np.pi * np.outer(np.arange(1, k + 1), waves) / (k + 1)) for k in (m, n))
    return there @ here * 2 / (n + 1)
