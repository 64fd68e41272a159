"""The ground state of a quantum particle in a box, in 2D and 3D (Loh et al., Nat. Commun. 13, 4223 (2022)).

H = −½∇² + V on [−L, L]^d, ħ = m = 1, ψ = 0 at the walls. The target family are blurred level sets. What is learned of
a potential, and what stands in for it cheaply, are fields of the problem: `Energies` or `Density`,
`CoarseGrid` or `HarmonicWells`.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping
from dataclasses import dataclass
from functools import reduce
from typing import ClassVar

import numpy as np
from torch import Tensor

from sibcl_ray.problems.level_sets import along_axes, centres, level_sets
from sibcl_ray.problems.problem import FRACTION, Problem, Sample
from sibcl_ray.solvers.schrodinger import empty_box_energies, lowest_eigenpairs, lowest_eigenvalues
from sibcl_ray.symmetry import Group, PointGroup

COARSE = 5  # points along an axis of the coarse grid
FINE = 64  # points along an axis of the cell on which a level set is drawn
CENTRE = 0.6  # side of the box, in sides of the cell
BLUR = 0.05  # standard deviation of the Gaussian, in sides of the cell
STIFFNESS = (0.01, 0.5)  # range of a well's force constants
DISPLACEMENT = 0.25  # of a well from the middle along an axis, at most, in sides of the box
CEILING = 1.0  # of a well


@dataclass(frozen=True)
class Energies:
    """The lowest energies, the ground state's first. Error: the mean of |Δ|/|true|."""

    levels: int = 1

    invariant = True  # under rotations and reflections

    def __post_init__(self) -> None:
        if self.levels < 1:
            raise ValueError(f"levels is {self.levels}; it must be 1 or larger")

    def shape(self, problem: Schrodinger) -> tuple[int, ...]:
        """Of one label."""
        return (self.levels,)

    def solve(self, problem: Schrodinger, potentials: np.ndarray) -> np.ndarray:
        """Labels (count, *shape) of potentials (count, m, …) on any grid."""
        return lowest_eigenvalues(potentials, problem.half_width, self.levels, problem.dimensions)

    def empty(self, problem: Schrodinger) -> np.ndarray:
        """The label (*shape) of V = 0."""
        return empty_box_energies(problem.resolution, problem.dimensions, problem.half_width, self.levels)

    def harmonic(self, problem: Schrodinger, stiffness: np.ndarray, centre: np.ndarray) -> np.ndarray:
        """Labels (count, *shape) of ½Σk_i(x_i − c_i)² in unlimited space; both arguments (count, d)."""
        quanta = np.array(list(itertools.product(range(self.levels), repeat=problem.dimensions)))
        return np.sort(np.sqrt(stiffness) @ (quanta + 0.5).T, axis=1)[:, : self.levels]

    def error(self, prediction: Tensor, label: Tensor) -> Tensor:
        return ((prediction - label) / label).abs().mean(1)


@dataclass(frozen=True)
class Density:
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


@dataclass(frozen=True)
class CoarseGrid:
    """Potentials of the target family, solved on few points: `Schrodinger.coarse`."""

    points: int = COARSE  # along an axis

    def sample(self, problem: Schrodinger, count: int, rng: np.random.Generator) -> Sample:
        return problem.sample(count, rng)

    def solve(self, problem: Schrodinger, sample: Sample) -> np.ndarray:
        return problem.coarse(sample.inputs, self.points)


@dataclass(frozen=True)
class HarmonicWells:
    """V = ½Σk_i(x_i − c_i)² clipped at 1, with the labels, in closed form, of the well that is not clipped."""

    def sample(self, problem: Schrodinger, count: int, rng: np.random.Generator) -> Sample:
        return Sample(*harmonic_wells(count, rng, problem.dimensions, problem.resolution, problem.half_width))

    def solve(self, problem: Schrodinger, sample: Sample) -> np.ndarray:
        return problem.label.harmonic(problem, sample.parameters["stiffness"], sample.parameters["centre"])


Label = Energies | Density
Surrogate = CoarseGrid | HarmonicWells


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
    error_units = FRACTION

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

    @property
    def offset(self) -> np.ndarray:
        """The label of an empty box: energies of V ≥ 0 are not below it."""
        return self.label.empty(self).astype(np.float32)

    def error(self, prediction: Tensor, label: Tensor) -> Tensor:
        return self.label.error(prediction, label)


@dataclass(frozen=True)
class Schrodinger2D(Schrodinger):
    """In a square."""

    name = "schrodinger-2d"
    dimensions = 2
    label_seconds, surrogate_seconds = 6e-4, 1e-4


@dataclass(frozen=True)
class Schrodinger3D(Schrodinger):
    """In a cube."""

    name = "schrodinger-3d"
    dimensions = 3
    label_seconds, surrogate_seconds = 0.01, 0.0012


def _linear_interpolation(n: int, m: int) -> np.ndarray:
    """Values at m interior points from those at n ≥ m, (m, n)."""
    distance = np.abs(grid_points(m)[:, None] - grid_points(n)) * (n + 1) / 2
    return np.maximum(0, 1 - distance)


def _sine_interpolation(n: int, m: int) -> np.ndarray:
    """Values at m interior points from those at n ≤ m of a sum of sines that vanish at the walls, (m, n)."""
    waves = np.arange(1, n + 1)
    there, here = (np.sin(np.pi * np.outer(np.arange(1, k + 1), waves) / (k + 1)) for k in (m, n))
    return there @ here * 2 / (n + 1)


def level_set_potentials(
    count: int, rng: np.random.Generator, dimensions: int, complexity: int = 2, resolution: int = 32
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Blurred plateaus on `level_sets`: as high as the larger of two U(0, 1), the rest is 0.

    The step is smoothed by a Gaussian, and the box is the central 60 % of the cell. The potential itself does not
    depend on ``resolution``, the interior points along an axis of the box.

    Returns:
        V, float32 (count, resolution, …), and the parameters `coefficients` complex128 (count, 2F+1, …), `filling`
        and `height`, each (count,).
    """
    masks, parameters = level_sets(count, rng, dimensions, complexity, FINE)
    height = rng.uniform(0, 1, (2, count)).max(0)
    blur = _blur(0.5 + CENTRE / 2 * grid_points(resolution), centres(FINE))
    potentials = np.empty((count, *[resolution] * dimensions), np.float32)
    for i, mask in enumerate(masks):
        potentials[i] = height[i] * along_axes(blur, mask.astype(float))
    return potentials, parameters | {"height": height}


def harmonic_wells(
    count: int, rng: np.random.Generator, dimensions: int, resolution: int = 32, half_width: float = 5.0
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """V = ½Σ_i k_i(x_i − c_i)² clipped at 1, k ~ U(0.01, 0.5), c ~ U(−L/2, L/2).

    Returns:
        V, float32 (count, resolution, …), and the parameters `stiffness` k and `centre` c, each (count, d).
    """
    stiffness = rng.uniform(*STIFFNESS, (count, dimensions))
    centre = rng.uniform(-DISPLACEMENT, DISPLACEMENT, (count, dimensions)) * 2 * half_width
    away = half_width * grid_points(resolution) - centre[..., None]
    potential = outer(np.add, stiffness[..., None] / 2 * away**2)
    return np.minimum(potential, CEILING).astype(np.float32), {"stiffness": stiffness, "centre": centre}


def grid_points(n: int) -> np.ndarray:
    """The n interior points of [−1, 1]."""
    return np.linspace(-1, 1, n + 2)[1:-1]


def _blur(points: np.ndarray, fine: np.ndarray) -> np.ndarray:
    """The periodic Gaussian average around each of the points of a function on fine points, (points, fine)."""
    distance = points[:, None] - fine
    weights = np.exp(-(((distance - distance.round()) / BLUR) ** 2) / 2)
    return weights / weights.sum(1, keepdims=True)


def outer(combine: np.ufunc, lines: np.ndarray) -> np.ndarray:
    """Σ or Π over the axes i of lines[:, i], (count, d, n), at all points of the grid: (count, n, …)."""
    return np.stack([reduce(combine.outer, axes) for axes in lines])
