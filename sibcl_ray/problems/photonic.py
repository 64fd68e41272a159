"""2D photonic unit cells: level sets of random Fourier series, and discs; what problems of them share."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sibcl_ray import losses
from sibcl_ray.problems.problem import Problem, Sample
from sibcl_ray.solvers.density_of_states import has_square_symmetry
from sibcl_ray.symmetry import Group, PointGroup, Scaling, Translations

SAMPLES = 8  # sub-pixel samples along an axis: a pixel holds the mean of 8 × 8
PERMITTIVITY = (1.0, 20.0)


@dataclass(frozen=True)
class Photonic(Problem):
    """ε(r) on n × n pixels: level sets of random Fourier series, and one centred disc as their surrogate."""

    resolution: int = 32  # pixels along an axis
    complexity: int = 1  # largest wave number F of the level sets

    input_units = "relative permittivity"

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.resolution, self.resolution)

    @property
    def symmetries(self) -> Mapping[str, Group]:
        """Those of a number that depends neither on where the cell is, nor how it lies, nor on the unit of ε."""
        return {
            "translation": Translations(self.resolution),
            "point_group": PointGroup(2),
            "scaling": Scaling(*PERMITTIVITY),
        }

    def sample(self, count: int, rng: np.random.Generator) -> Sample:
        return Sample(*level_set_cells(count, rng, self.complexity, self.resolution))

    def sample_surrogate(self, count: int, rng: np.random.Generator) -> Sample:
        return Sample(*disc_cells(count, rng, self.resolution))

    def features(self, inputs: Tensor) -> Tensor:
        low, high = PERMITTIVITY
        return ((inputs - low) / (high - low)).unsqueeze(1)

    def surrogate_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return losses.squared(prediction, label)


def level_set_cells(
    count: int, rng: np.random.Generator, complexity: int = 1, resolution: int = 32
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Two-tone cells bounded by a level set of f(r) = Re Σ_G c_G exp(2πi G·r), G ∈ {−F…F}².

    |c| ~ U(0, 1), arg c ~ U(0, 2π), the inside fills U(0.01, 0.99) of the cell and both permittivities
    are U(1, 20).

    Args:
        count: number of cells.
        rng: source of every random number.
        complexity: F, the largest component of G.
        resolution: pixels along an axis.

    Returns:
        ε, float32 (count, resolution, resolution), averaged inside each pixel, and the parameters
        `coefficients` complex128 (count, 2F+1, 2F+1), `filling` (count,), `epsilon_inside` and
        `epsilon_outside` (count,).
    """
    side = 2 * complexity + 1
    shape = (count, side, side)
    coefficients = rng.uniform(0, 1, shape) * np.exp(1j * rng.uniform(0, 2 * np.pi, shape))
    filling = rng.uniform(0.01, 0.99, count)
    inside, outside = rng.uniform(*PERMITTIVITY, (2, count))
    coverage = np.empty((count, resolution, resolution))
    points = (np.arange(resolution * SAMPLES) + 0.5) / (resolution * SAMPLES)
    waves = np.exp(2j * np.pi * np.outer(points, np.arange(-complexity, complexity + 1)))
    for cell in range(count):  # one at a time: the fine samples of many cells would not fit in a cache
        field = (waves @ coefficients[cell] @ waves.T).real
        rank = min(round(filling[cell] * field.size), field.size - 1)
        threshold = np.partition(field, rank, axis=None)[rank]
        coverage[cell] = _pixel_means(field < threshold)
    parameters = {
        "coefficients": coefficients,
        "filling": filling,
        "epsilon_inside": inside,
        "epsilon_outside": outside,
    }
    return _mix(coverage, inside, outside), parameters


def disc_cells(count: int, rng: np.random.Generator, resolution: int = 32) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Cells with one centred disc of radius U(0, 0.5] and two permittivities U(1, 20).

    Args:
        count: number of cells.
        rng: source of every random number.
        resolution: pixels along an axis.

    Returns:
        ε, float32 (count, resolution, resolution), averaged inside each pixel, and the parameters
        `radius` (in a), `epsilon_inside` and `epsilon_outside`, each (count,).
    """
    radius = 0.5 - rng.uniform(0, 0.5, count)
    inside, outside = rng.uniform(*PERMITTIVITY, (2, count))
    points = (np.arange(resolution * SAMPLES) + 0.5) / (resolution * SAMPLES) - 0.5
    distance = np.hypot(points[:, None], points)
    coverage = (
        np.stack([_pixel_means(distance < r) for r in radius]) if count else np.empty((0, resolution, resolution))
    )
    return _mix(coverage, inside, outside), {
        "radius": radius,
        "epsilon_inside": inside,
        "epsilon_outside": outside,
    }


def grid_bands(
    cells: np.ndarray, k_points: np.ndarray, frequencies: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Frequencies (count, K, bands) on a k-grid that C4v maps onto itself, solved on an eighth where the cell allows.

    Args:
        cells: ε, (count, n, n).
        k_points: the grid, (K, 2), in 2π/a.
        frequencies: the solver: cells (some, n, n) and k-points (H, 2) to (some, H, bands).
    """
    wedge, image = np.unique(np.sort(np.abs(k_points).round(12), axis=1), axis=0, return_inverse=True)
    square = has_square_symmetry(torch.from_numpy(cells)).numpy()
    parts = {}
    if square.any():
        parts[True] = frequencies(cells[square], wedge)[:, image.reshape(-1)]
    if not square.all():
        parts[False] = frequencies(cells[~square], k_points)
    found = np.empty((len(cells), *next(iter(parts.values())).shape[1:]))
    for symmetric, part in parts.items():
        found[square == symmetric] = part
    return found


def _pixel_means(fine: np.ndarray) -> np.ndarray:
    n = fine.shape[0] // SAMPLES
    return fine.reshape(n, SAMPLES, n, SAMPLES).mean((1, 3))


def _mix(coverage: np.ndarray, inside: np.ndarray, outside: np.ndarray) -> np.ndarray:
    inside, outside = inside[:, None, None], outside[:, None, None]
    return (outside + (inside - outside) * coverage).astype(np.float32)
