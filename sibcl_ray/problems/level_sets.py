"""Level sets of random Fourier series: the shapes of photonic cells and of potentials."""

from collections.abc import Iterator

import numpy as np


def level_sets(
    count: int, rng: np.random.Generator, dimensions: int, complexity: int, points: int
) -> tuple[Iterator[np.ndarray], dict[str, np.ndarray]]:
    """Where f(r) = Re Σ_G c_G exp(2πi G·r), G ∈ {−F…F}^d, is below a level, in a periodic cell.

    |c| ~ U(0, 1), arg c ~ U(0, 2π), and the region fills U(0.01, 0.99) of the cell. ``complexity`` is F.

    Returns:
        Masks (points, …) of the centres of ``points`` intervals along each axis, one at a time: many cells would not
        fit in a cache. And the parameters `coefficients` complex128 (count, 2F+1, …) and `filling` (count,).
    """
    shape = (count, *[2 * complexity + 1] * dimensions)
    coefficients = rng.uniform(0, 1, shape) * np.exp(1j * rng.uniform(0, 2 * np.pi, shape))
    filling = rng.uniform(0.01, 0.99, count)
    waves = np.exp(2j * np.pi * np.outer(centres(points), np.arange(-complexity, complexity + 1)))
    masks = (_lowest(along_axes(waves, c).real, share) for c, share in zip(coefficients, filling, strict=True))
    return masks, {"coefficients": coefficients, "filling": filling}


def _lowest(field: np.ndarray, share: float) -> np.ndarray:
    """A mask of a share of the points, those with the lowest values."""
    rank = min(round(share * field.size), field.size - 1)
    return field < np.partition(field, rank, axis=None)[rank]


def centres(n: int) -> np.ndarray:
    """The middles of n equal parts of [0, 1]."""
    return (np.arange(n) + 0.5) / n


def along_axes(matrix: np.ndarray, field: np.ndarray) -> np.ndarray:
    """A matrix (m, n) applied along every axis of a field (n, …)."""
    for _ in range(field.ndim):
        field = np.tensordot(field, matrix, (0, 1))
    return field
