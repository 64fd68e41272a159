"""Potentials in a box: blurred level sets of random Fourier series, and harmonic wells.

They are given at the interior points of the box [−L, L]^d, as `solvers.schrodinger` takes them.
"""

from __future__ import annotations

import numpy as np

FINE = 64  # points along an axis of the cell on which a level set is drawn
CENTRE = 0.6  # side of the box, in sides of the cell
BLUR = 0.05  # standard deviation of the Gaussian, in sides of the cell
STIFFNESS = (0.01, 0.5)  # range of a well's force constants
DISPLACEMENT = 0.25  # of a well from the middle along an axis, at most, in sides of the box
CEILING = 1.0  # of a well


def level_set_potentials(
    count: int, rng: np.random.Generator, dimensions: int, complexity: int = 2, resolution: int = 32
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Blurred plateaus bounded by a level set of f(r) = Re Σ_G c_G exp(2πi G·r), G ∈ {−F…F}^d, in a periodic cell.

    |c| ~ U(0, 1), arg c ~ U(0, 2π); the plateau fills U(0.01, 0.99) of the cell and is as high as the larger of two
    U(0, 1), the rest is 0. The step is smoothed by a Gaussian, and the box is the central 60 % of the cell.

    Args:
        count: number of potentials.
        rng: source of every random number.
        dimensions: d.
        complexity: F, the largest component of G.
        resolution: interior points along an axis of the box. The potential itself does not depend on it.

    Returns:
        V, float32 (count, resolution, …), and the parameters `coefficients` complex128 (count, 2F+1, …), `filling`
        and `height`, each (count,).
    """
    shape = (count, *[2 * complexity + 1] * dimensions)
    coefficients = rng.uniform(0, 1, shape) * np.exp(1j * rng.uniform(0, 2 * np.pi, shape))
    filling = rng.uniform(0.01, 0.99, count)
    height = rng.uniform(0, 1, (2, count)).max(0)
    fine = (np.arange(FINE) + 0.5) / FINE
    waves = np.exp(2j * np.pi * np.outer(fine, np.arange(-complexity, complexity + 1)))
    blur = _blur(0.5 + CENTRE / 2 * grid_points(resolution), fine)
    potentials = np.empty((count, *[resolution] * dimensions), np.float32)
    for i in range(count):  # one at a time: the fine points of many cells would not fit in a cache
        field = along_axes(waves, coefficients[i]).real
        rank = min(round(filling[i] * field.size), field.size - 1)
        threshold = np.partition(field, rank, axis=None)[rank]
        potentials[i] = height[i] * along_axes(blur, (field < threshold).astype(float))
    return potentials, {"coefficients": coefficients, "filling": filling, "height": height}


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


def along_axes(matrix: np.ndarray, field: np.ndarray) -> np.ndarray:
    """A matrix (m, n) applied along every axis of a field (n, …)."""
    for _ in range(field.ndim):
        field = np.tensordot(field, matrix, (0, 1))
    return field


def outer(combine: np.ufunc, lines: np.ndarray) -> np.ndarray:
    """Σ or Π over the axes i of lines[:, i], (count, d, n), at all points of the grid: (count, n, …)."""
    d = lines.shape[1]
    grid = lines[:, 0].reshape(len(lines), -1, *[1] * (d - 1))
    for axis in range(1, d):
        grid = combine(grid, lines[:, axis].reshape(len(lines), *[1] * axis, -1, *[1] * (d - 1 - axis)))
    return grid
