"""Density of states of 2D photonic crystals by the generalised Gilat-Raubenheimer method."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from sibcl_ray.solvers.planewave import bands

N_K = 25
N_BANDS = 10
N_BINS = 20_000
SMOOTHING = 100
N_POINTS = 400
FREQUENCIES = torch.linspace(0, 1.2, 500, dtype=torch.float64)[:N_POINTS]
EMPTY_LATTICE = 2 * math.pi * FREQUENCIES


def empty_lattice_dos() -> Tensor:
    """The normalised DOS 2πω (400,) of a uniform cell."""
    return EMPTY_LATTICE.clone()


def k_grid(n: int = N_K) -> Tensor:
    """Cell-centred k-points (n², 2), k = (i+½)/n − ½ in 2π/a, kx slowest."""
    line = (torch.arange(n, dtype=torch.float64) + 0.5) / n - 0.5
    return torch.cartesian_prod(line, line)


def gilat_raubenheimer(
    frequencies: Tensor, velocities: Tensor, n_bins: int = N_BINS, smoothing: float = SMOOTHING
):
    """Smoothed DOS (..., n_bins) and the bin width (...,)."""
    *lead, n_k, _ = frequencies.shape
    omega = frequencies.reshape(-1, n_k * frequencies.shape[-1]).to(torch.float64)
    width = 1.05 * omega.amax(-1) / (n_bins - 1)
    half = (
        velocities.reshape(*omega.shape, 2).to(torch.float64).abs()
        / (2 * math.sqrt(n_k))
        / width[:, None, None]
    )
    half = half.clamp(min=1.0)
    a, b = half.unbind(-1)
    centre = omega / width[:, None]
    height = 1 / (4 * a * b)
    pad = n_bins // 4
    curvature = torch.zeros(len(omega), n_bins + 2 * pad, dtype=torch.float64, device=omega.device)
    for x, sign in ((-a - b, 1), (a + b, 1), (a - b, -1), (b - a, -1)):
        p = (centre + x + pad).clamp(0, n_bins + 2 * pad - 2)
        i = p.floor()
        curvature.scatter_add_(1, i.long(), sign * height * (i + 1 - p))
        curvature.scatter_add_(1, i.long() + 1, sign * height * (p - i))
    # The second antiderivative, whose value at bin i+1 is the double running sum up to bin i.
    density = curvature.cumsum(-1).cumsum(-1).roll(1, -1)
    length = n_bins + 2 * pad
    f = torch.fft.rfftfreq(length, dtype=torch.float64, device=omega.device)
    density = torch.fft.irfft(
        torch.fft.rfft(density) * torch.exp(-2 * (math.pi * smoothing * f) ** 2), n=length
    )
    density = density[:, pad : pad + n_bins] / width[:, None] / n_k
    return density.reshape(*lead, n_bins), width.reshape(lead)


def photonic_dos(epsilon):
    """Normalised DOS (..., 400)."""
    as_numpy = not isinstance(epsilon, Tensor)
    epsilon = torch.as_tensor(epsilon)
    frequencies, velocities = bands(epsilon, k_grid().to(epsilon.device), N_BANDS)
    dos = normalised_dos(epsilon, frequencies, velocities)
    return dos.numpy() if as_numpy else dos


def normalised_dos(epsilon: Tensor, frequencies: Tensor, velocities: Tensor) -> Tensor:
    density, width = gilat_raubenheimer(frequencies, velocities)
    index = epsilon.to(torch.float64).mean((-2, -1)).sqrt()[..., None]
    position = FREQUENCIES.to(density.device) / index / width[..., None]
    left = position.floor().long().clamp(max=N_BINS - 2)
    part = position - left
    value = density.gather(-1, left) * (1 - part) + density.gather(-1, left + 1) * part
    return value / index
