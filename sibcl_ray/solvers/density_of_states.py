"""Density of states of 2D photonic crystals by the generalised Gilat–Raubenheimer method.

In each cell of the k-grid a band is linear, ω(k) ≈ ω₀ + v·(k − k₀); its share of the density of states is
then a trapezoid in ω, summed exactly (Liu, Joannopoulos, Johnson, Lu, J. Opt. 20, 044005 (2018)).
Frequencies are in 2πc/a, k in 2π/a, and the zone has area 1: a uniform cell has 2πε ω states per frequency.
"""

import math

import numpy as np
import torch
from torch import Tensor

from sibcl_ray.solvers.planewave import Array, as_given, bands, checked_cells

GRID = 25  # k-points along an axis of the zone
N_BANDS = 10
N_BINS = 20_000  # frequency bins up to 1.05 times the highest frequency
SMOOTHING = 100  # standard deviation of the Gaussian, in bins
N_POINTS = 400
CELLS_AT_ONCE = 256  # bounds the memory of the histograms

FREQUENCIES = np.linspace(0, 1.2, 500)[:N_POINTS]  # ω√⟨ε⟩ of the points of a normalised DOS
EMPTY_LATTICE = 2 * np.pi * FREQUENCIES  # the normalised DOS of every uniform cell


def k_grid(n: int = GRID) -> Tensor:
    """Cell-centred k-points (n², 2) in 2π/a, k = (i+½)/n − ½, kx slowest."""
    line = (torch.arange(n, dtype=torch.float64) + 0.5) / n - 0.5
    return torch.cartesian_prod(line, line)


def photonic_dos(epsilon: Array) -> Array:
    """Normalised TM density of states, D(ω√⟨ε⟩)/√⟨ε⟩ at the 400 points of `FREQUENCIES`.

    It does not change when the cell is shifted periodically, when it is turned or mirrored, or when ε is
    multiplied by a number, all within the accuracy of the solver (some 1e-4).

    Args:
        epsilon: permittivity (n, n) or (B, n, n), real and positive; else ValueError.

    Returns:
        Float64 (..., 400), a tensor on epsilon's device or, for a NumPy array, a NumPy array.
    """
    cells = checked_cells(epsilon)
    dos = cells.new_empty(len(cells), N_POINTS)
    symmetric = has_square_symmetry(cells)
    full = k_grid(), torch.full((GRID**2,), 1 / GRID**2, dtype=torch.float64)
    for members, (k, weights) in ((~symmetric, full), (symmetric, _irreducible_grid())):
        for some in members.nonzero()[:, 0].split(CELLS_AT_ONCE) if members.any() else ():
            dos[some] = normalised_dos(cells[some], *bands(cells[some], k, N_BANDS), weights)
    return as_given(dos, epsilon)


def normalised_dos(epsilon: Tensor, frequencies: Tensor, velocities: Tensor, weights: Tensor | None = None) -> Tensor:
    """The label (..., 400) from bands on `k_grid()`, or on other cells of its size with `weights` (K,).

    Args:
        epsilon: (..., n, n), for its mean ⟨ε⟩.
        frequencies: (..., K, bands).
        velocities: (..., K, bands, 2).
        weights: share of each k-point in the zone; equal shares if None.
    """
    density, width = gilat_raubenheimer(frequencies, velocities, 1 / GRID, weights)
    index = epsilon.to(density).mean((-2, -1))[..., None].sqrt()
    place = torch.as_tensor(FREQUENCIES).to(density) / index / width[..., None]
    left = place.floor().clamp(max=N_BINS - 2)
    here, there = (density.gather(-1, left.long() + step) for step in (0, 1))
    return torch.lerp(here, there, (place - left).clamp(max=1)) / index


def gilat_raubenheimer(
    frequencies: Tensor, velocities: Tensor, spacing: float, weights: Tensor | None = None
) -> tuple[Tensor, Tensor]:
    """Smoothed density of states at the frequencies 0, w, 2w, … (N_BINS − 1)w = 1.05 max ω.

    Args:
        frequencies: (..., K, bands) at the centres of square k-cells.
        velocities: (..., K, bands, 2).
        spacing: side of a k-cell in 2π/a.
        weights: share of each k-cell in the zone (K,), sum 1; equal shares if None.

    Returns:
        The density (..., N_BINS), whose integral is the number of bands, and the bin width w (...,).

    A trapezoid's second derivative is four deltas at ω₀ ± (|vx| ± |vy|)·spacing/2. They are shared between
    the two nearest bins, which keeps the sum and the mean, and summed twice for all bands together.
    """
    lead, (n_k, n_bands) = frequencies.shape[:-2], frequencies.shape[-2:]
    width = 1.05 * frequencies.amax((-2, -1)).reshape(-1, 1) / (N_BINS - 1)
    centre = frequencies.reshape(len(width), -1) / width
    # Flat bands become one bin wide: far below the smoothing, and the height stays finite.
    a, b = (velocities.abs() * (spacing / 2)).reshape(*centre.shape, 2).div(width[..., None]).clamp(min=1).unbind(-1)
    share = centre.new_full((n_k,), 1 / n_k) if weights is None else weights.to(centre)
    height = share.repeat_interleave(n_bands) / (4 * a * b)
    margin = math.ceil(float((a + b).amax()) / 500) * 500 + 6 * SMOOTHING
    curvature = centre.new_zeros(len(width), N_BINS + 2 * margin)
    for offset, sign in ((-a - b, 1), (b - a, -1), (a - b, -1), (a + b, 1)):
        place = centre + offset + margin
        left = place.floor()
        curvature.scatter_add_(1, left.long(), sign * height * (left + 1 - place))
        curvature.scatter_add_(1, left.long() + 1, sign * height * (place - left))
    # Summing twice from bin 0 to bin i gives the value at bin i + 1.
    density = _smooth(curvature.cumsum(-1).cumsum(-1))[:, margin - 1 : margin - 1 + N_BINS] / width
    return density.reshape(*lead, N_BINS), width.reshape(lead)


def _smooth(density: Tensor) -> Tensor:
    """Convolution with the Gaussian along the last axis, whose ends are empty."""
    wave = torch.fft.rfftfreq(density.shape[-1], dtype=density.dtype, device=density.device)
    gaussian = torch.exp(-2 * (torch.pi * SMOOTHING * wave) ** 2)
    return torch.fft.irfft(torch.fft.rfft(density) * gaussian, n=density.shape[-1])


def has_square_symmetry(cells: Tensor) -> Tensor:
    """Which cells (B,) keep all eight operations of C4v about their centre: a flip and a transposition make them."""
    images = (cells.flip(-1), cells.mT)
    return torch.stack([torch.isclose(cells, image, rtol=1e-6, atol=0).all((-2, -1)) for image in images]).all(0)


def _irreducible_grid() -> tuple[Tensor, Tensor]:
    """The k-points with kx ≥ ky ≥ 0 of `k_grid()` and the share of the zone of each one's images."""
    folded = (k_grid() * 2 * GRID).round().abs().sort(-1, descending=True)[0]
    k, count = folded.unique(dim=0, return_counts=True)
    return k / (2 * GRID), count / GRID**2
