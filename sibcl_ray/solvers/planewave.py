"""Photonic bands of 2D square-lattice crystals by plane waves and reduced Bloch modes.

Both polarisations are one generalised eigenproblem, Σ_j (k+G)_j W (k+G)_j c = ω² M c, with k and G in
2π/a and ω in 2πc/a: TM has W = 1 and M = [ε], TE has W = [1/ε] and M = 1, where [f] is the Toeplitz
matrix of f's Fourier coefficients (Ho, Chan, Soukoulis, PRL 65, 3152 (1990)). W and M do not depend on
k, so in any fixed basis the problem is quadratic in k. A basis of Bloch modes from a few anchor points
of the zone therefore serves the whole zone (reduced Bloch mode expansion: Hussein, Proc. R. Soc. A 465,
2825 (2009)), and inside a small patch of the zone the lowest of its modes do, with the others folded in
by second-order (Löwdin) perturbation theory.

Array axis 0 of ε is x, axis 1 is y; the cell has side a = 1 and is periodic.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

CUTOFF = 8  # plane waves G ∈ {−8…8}²
COARSE_CUTOFF = 4  # plane waves of the first guess of the anchor modes, refined on all of them
REFINEMENTS = 2
ANCHORS = ((0.25, 0.35), (0.25, 0.0), (0.25, -0.35))  # of the half zone kx ≥ 0
SPARE_MODES = 4  # an anchor gives this many modes more than the bands asked for
PATCH = 0.12  # side of a patch: 3 × 3 points of the 25 × 25 grid
SPARE_PATCH_MODES = 10
CHUNK_ELEMENTS = 2**22  # matrix elements solved at a time, which bounds the memory


class Medium(NamedTuple):
    """W and M of the eigenproblem (B, N, N); None is the identity."""

    weight: Tensor | None
    mass: Tensor | None


def bands(epsilon, k_points, n_bands: int, polarization: str = "tm"):
    epsilon_, k_points_, as_numpy = _checked(epsilon, k_points)
    cells = epsilon_.reshape(-1, *epsilon_.shape[-2:])
    k_half, copies, sign = _half_zone(k_points_)
    waves = _square(min(CUTOFF, (cells.shape[-1] - 1) // 2), cells.device)
    per_cell = max(len(waves) ** 2, len(k_half) * 60**2)
    parts = [
        _bands(POLARIZATIONS[polarization](c, waves), waves, k_half, n_bands)
        for c in cells.split(max(1, CHUNK_ELEMENTS // per_cell))
    ]
    frequencies = torch.cat([f for f, _ in parts])[:, copies]
    velocities = torch.cat([v for _, v in parts])[:, copies] * sign[:, None, None]
    if epsilon_.ndim == 2:
        frequencies, velocities = frequencies[0], velocities[0]
    return (frequencies.numpy(), velocities.numpy()) if as_numpy else (frequencies, velocities)


def _checked(epsilon, k_points):
    as_numpy = not isinstance(epsilon, Tensor)
    epsilon = torch.as_tensor(epsilon).to(torch.float64)
    k_points = torch.as_tensor(k_points, device=epsilon.device).to(torch.float64)
    return epsilon, k_points, as_numpy


def _half_zone(k_points: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """The distinct k-points (H, 2) with kx ≥ 0 in the first zone; where each k-point is found; its sign."""
    k = k_points - k_points.round()
    k = (k * 1e12).round() / 1e12
    flip = (k[:, 0] < 0) | ((k[:, 0] == 0) & (k[:, 1] < 0))
    sign = torch.where(flip, -1.0, 1.0).to(k)
    half, copies = torch.unique(k * sign[:, None] + 0.0, dim=0, return_inverse=True)
    return half, copies, sign


def _square(cutoff: int, device: torch.device) -> Tensor:
    line = torch.arange(-cutoff, cutoff + 1, device=device)
    return torch.cartesian_prod(line, line)


def _toeplitz(cell: Tensor, waves: Tensor) -> Tensor:
    n = cell.shape[-1]
    g = torch.fft.fftfreq(n, 1 / n, dtype=cell.dtype, device=cell.device)
    centre = torch.exp(-2j * torch.pi * (0.5 / n - 0.5) * g)
    coefficients = torch.fft.fft2(cell) * (centre[:, None] * centre) / n**2
    if bool((coefficients.imag.abs().amax((-2, -1)) < 1e-12 * cell.amax((-2, -1))).all()):
        coefficients = coefficients.real  # inversion symmetry: real matrices, a quarter of the work
    step = (waves[:, None] - waves) % n
    return coefficients[..., step[..., 0], step[..., 1]]


def _tm(epsilon: Tensor, waves: Tensor) -> Medium:
    return Medium(None, _toeplitz(epsilon, waves))


def _te(epsilon: Tensor, waves: Tensor) -> Medium:
    return Medium((_toeplitz(1 / epsilon, waves) + torch.linalg.inv(_toeplitz(epsilon, waves))) / 2, None)


POLARIZATIONS: dict[str, Callable[[Tensor, Tensor], Medium]] = {"tm": _tm, "te": _te}


def _times(matrix: Tensor | None, x: Tensor) -> Tensor:
    return x if matrix is None else matrix @ x


def _bands(medium: Medium, waves: Tensor, k: Tensor, n_bands: int) -> tuple[Tensor, Tensor]:
    n_modes = len(ANCHORS) * (n_bands + SPARE_MODES) + 1
    if len(k) <= len(ANCHORS) or n_modes > len(waves) // 2:
        return _solve(_quadratic(medium, waves, None), k, n_bands)
    return _solve(_quadratic(medium, waves, _reduced_basis(medium, waves, n_bands + SPARE_MODES)), k, n_bands)


def _reduced_basis(medium: Medium, waves: Tensor, count: int) -> Tensor:
    """Orthonormal (B, N, m): `count` modes of each anchor, and the constant, which is exact at k = 0."""
    coarse = (waves.abs().amax(-1) <= COARSE_CUTOFF).nonzero()[:, 0]
    inner = Medium(*(None if x is None else x[:, coarse[:, None], coarse] for x in medium))
    template = next(x for x in medium if x is not None)
    blocks = [(waves == 0).all(-1).to(template)[None, :, None].expand(len(template), -1, 1)]
    for anchor in torch.tensor(ANCHORS, device=waves.device, dtype=torch.float64):
        guess = _eigenmodes(inner, waves[coarse] + anchor, count)
        modes = template.new_zeros(len(template), len(waves), count)
        modes[:, coarse] = guess
        blocks.append(_inverse_iteration(medium, waves + anchor, modes))
    return torch.linalg.qr(torch.cat(blocks, -1))[0]


def _stiffness(weight: Tensor | None, q: Tensor) -> Tensor:
    if weight is None:
        return (q**2).sum(-1).diag_embed()[None]
    return weight * (q @ q.mT)


def _eigenmodes(medium: Medium, q: Tensor, count: int) -> Tensor:
    stiffness = _stiffness(medium.weight, q)
    if medium.mass is None:
        return torch.linalg.eigh(stiffness)[1][..., :count]
    scale = 1 / q.norm(dim=-1)
    modes = torch.linalg.eigh(-medium.mass * (scale[:, None] * scale))[1][..., :count]
    return modes * scale[:, None]


def _inverse_iteration(medium: Medium, q: Tensor, modes: Tensor) -> Tensor:
    if medium.weight is None:
        laplacian = (q**2).sum(-1)[:, None]
        for _ in range(REFINEMENTS):
            modes = medium.mass @ modes / laplacian
        return modes / modes.norm(dim=-2, keepdim=True)
    root = torch.linalg.cholesky(_stiffness(medium.weight, q))
    for _ in range(REFINEMENTS):
        modes = torch.cholesky_solve(_times(medium.mass, modes), root)
    return modes / modes.norm(dim=-2, keepdim=True)


def _quadratic(medium: Medium, waves: Tensor, basis: Tensor | None) -> Tensor:
    """H0, Hx, Hy, S (B, 4, m, m) of H(k) = H0 + kx Hx + ky Hy + |k|² S in an M-orthonormal basis."""
    template = next(x for x in medium if x is not None)
    if basis is None:
        basis = torch.eye(len(waves)).to(template).expand_as(template)
    bras = torch.stack([basis, *(basis * g[:, None] for g in waves.mT)], -3)  # 1, Gx, Gy
    kets = _times(None if medium.weight is None else medium.weight[:, None], bras)
    products = bras.mH[:, :, None] @ kets[:, None] # (B, 3, 3, m, m)
    terms = [products[:, 1, 1] + products[:, 2, 2], products[:, 0, 1] + products[:, 1, 0],
        products[:, 0, 2] + products[:, 2, 0], products[:, 0, 0]]
    h = torch.stack(terms, 1)
    if medium.mass is not None:
        root = torch.linalg.cholesky(basis.mH @ medium.mass @ basis)[:, None]
        h = torch.linalg.solve_triangular(root, h, upper=False)
        h = torch.linalg.solve_triangular(root.mH, h, upper=True, left=False)
    return (h + h.mH) / 2


def _solve(quadratic: Tensor, k: Tensor, n_bands: int) -> tuple[Tensor, Tensor]:
    monomials = torch.stack([torch.ones_like(k[:, 0]), k[:, 0], k[:, 1], (k**2).sum(-1)], -1).to(quadratic)
    size = quadratic.shape[-1]
    h = (monomials @ quadratic.flatten(-2)).unflatten(-1, (size, size))
    squares, modes = torch.linalg.eigh(h)
    modes = modes[..., :n_bands]
    frequencies = squares[..., :n_bands].clamp(min=0).sqrt()
    flat = modes.permute(0, 2, 1, 3).flatten(-2)  # one matrix product for all k
    applied = (quadratic[:, 1:].flatten(1, 2) @ flat).unflatten(1, (3, size)).unflatten(-1, (len(k), n_bands))
    expectation = (flat.unflatten(-1, (len(k), n_bands)).conj()[:, None] * applied).sum(2).real # B,3,K,b
    slopes = expectation[:, :2] + 2 * k.mT[:, :, None] * expectation[:, 2:]
    at_rest = frequencies < 1e-6
    velocities = slopes.permute(0, 2, 3, 1) / (2 * frequencies.masked_fill(at_rest, 1))[..., None]
    return frequencies, velocities.masked_fill(at_rest[..., None], 0)
