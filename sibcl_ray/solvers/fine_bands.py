"""Photonic bands of cells with fine features, on all Fourier waves of the pixels, by fast Fourier transforms.

The eigenproblem is that of `planewave`, Σ_j (k+G)_j W (k+G)_j c = ω² M c with W = 1, M = ε (TM) or W = 1/ε, M = 1
(TE), but no matrix of all plane waves is ever formed: ε multiplies pixel by pixel (as in MPB: Johnson and
Joannopoulos, Opt. Express 8, 173 (2001), to whose bands on the same pixels these converge).

1. The modes of a few anchor points begin as those of few plane waves and are improved by block preconditioned
   conjugate gradients (LOBPCG: Knyazev, SIAM J. Sci. Comput. 23, 517 (2001)).
2. They are a basis for the whole zone (reduced Bloch mode expansion: Hussein, Proc. R. Soc. A 465, 2825 (2009)),
   in which the problem is a small matrix, quadratic in k.
"""

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from sibcl_ray.solvers.planewave import POLARIZATIONS, Array, as_given, checked, eigenmodes, half_zone

ANCHORS = ((0.2, 0.0), (0.2, 0.4), (0.2, -0.4), (0.45, 0.22), (0.45, -0.22))  # spread over the half zone kx ≥ 0
ANCHOR_MODES = 6  # modes of an anchor beyond the bands asked for
COARSE_CUTOFF = 6  # plane waves G ∈ {−6…6}² that give the first guess of the anchors' modes
IMPROVEMENTS = {"tm": 2, "te": 6}  # steps of LOBPCG; for TM its preconditioner is the exact inverse
CELLS_AT_ONCE = {"cpu": 1}  # what fits in a CPU's cache; other devices take OTHER_CELLS_AT_ONCE
OTHER_CELLS_AT_ONCE = 16
ELEMENTS_AT_ONCE = 2**24  # matrix elements diagonalised at once, at most: 256 MiB


class _Medium(NamedTuple):
    """Pixels (B, 1, n, n) of W, 1/W and M, or None for 1, and the waves' places (N,) among the n² of a transform."""

    weight: Tensor | None
    inverse_weight: Tensor | None
    mass: Tensor | None
    places: Tensor


def fine_bands(epsilon: Array, k_points: np.ndarray | Tensor, n_bands: int, polarization: str = "tm") -> Array:
    """Lowest photonic bands of cells whose features may be as fine as a few pixels.

    Arguments, errors and the frequencies (..., K, n_bands) are as of `planewave.bands`; there are no velocities.
    """
    cells, k, waves = checked(epsilon, k_points, n_bands, polarization)
    half, source, _ = half_zone(k)
    with torch.no_grad():
        chunks = cells.split(CELLS_AT_ONCE.get(cells.device.type, OTHER_CELLS_AT_ONCE))
        solved = [_solve(_quadratic(chunk, waves, n_bands, polarization), half, n_bands) for chunk in chunks]
    return as_given(torch.cat(solved)[:, source], epsilon)


def _quadratic(cells: Tensor, waves: Tensor, n_bands: int, polarization: str) -> Tensor:
    """H(k) in a reduced, M-orthonormal basis as the coefficients (B, 4, m, m) of 1, kx, ky and k²."""
    n, pixels = cells.shape[-1], cells[:, None]
    places = waves[:, 0] % n * n + waves[:, 1] % n
    weights = {"tm": (None, None, pixels), "te": (1 / pixels, pixels, None)}
    medium = _Medium(*weights[polarization], places)
    basis = _basis(cells, medium, waves, n_bands + ANCHOR_MODES, polarization)
    count = basis.shape[-1]
    bras = torch.cat([basis, *(basis * g[:, None] for g in waves.mT)], -1)  # the basis, and its Gx and Gy
    kets = _multiply(medium.weight, bras, medium.places)
    blocks = (bras.mH @ kets).unflatten(-2, (3, count)).unflatten(-1, (3, count))
    s, xx, yy = (blocks[:, j, :, j] for j in range(3))
    hx, hy = (blocks[:, j, :, 0] for j in (1, 2))
    h = torch.stack([xx + yy, hx + hx.mH, hy + hy.mH, s], 1)
    root = torch.linalg.cholesky(_hermitian(basis.mH @ _multiply(medium.mass, basis, medium.places)))[:, None]
    return _hermitian(_congruent(h, root))


def _basis(cells: Tensor, medium: _Medium, waves: Tensor, count: int, polarization: str) -> Tensor:
    """Orthonormal (B, N, m) that spans `count` modes of each anchor, and the constant, the mode of k = ω = 0."""
    reach = min(COARSE_CUTOFF, int(waves.max()))
    few = (waves.abs().amax(-1) <= reach).nonzero()[:, 0]
    count = min(count, len(few))
    if len(ANCHORS) * count + 1 >= len(waves):
        return torch.eye(len(waves), dtype=torch.complex128, device=cells.device).expand(len(cells), -1, -1)
    block = POLARIZATIONS[polarization](cells, waves[few])
    columns = [(waves == 0).all(-1).to(torch.complex128).expand(len(cells), -1)[..., None]]
    for anchor in torch.tensor(ANCHORS, dtype=torch.float64, device=waves.device):
        modes = torch.zeros(len(cells), len(waves), count, dtype=torch.complex128, device=cells.device)
        modes[:, few] = eigenmodes(block, waves[few] + anchor, count).to(modes)
        columns.append(_improved(modes, waves + anchor, medium, IMPROVEMENTS[polarization]))
    return torch.linalg.qr(torch.cat(columns, -1))[0]


def _improved(modes: Tensor, q: Tensor, medium: _Medium, steps: int) -> Tensor:
    """Modes (B, N, m) at k + G = q after some steps of LOBPCG; q² is not zero anywhere."""
    modes = torch.linalg.qr(modes)[0]
    search = modes[..., :0]
    for _ in range(steps):
        residual = _curl_curl(modes, q, medium.weight, medium.places)
        mass = _multiply(medium.mass, modes, medium.places)
        energy = (modes.conj() * residual).sum(-2, keepdim=True) / (modes.conj() * mass).sum(-2, keepdim=True)
        residual = residual - energy * mass
        residual = _curl_curl(residual, q / (q**2).sum(-1, keepdim=True), medium.inverse_weight, medium.places)
        # Of columns of very different length, the short ones would be lost to rounding.
        residual = residual / residual.norm(dim=-2, keepdim=True).clamp(min=1e-300)
        trial = torch.linalg.qr(torch.cat([modes, residual, search], -1))[0]
        stiffness = trial.mH @ _curl_curl(trial, q, medium.weight, medium.places)
        root = torch.linalg.cholesky(_hermitian(trial.mH @ _multiply(medium.mass, trial, medium.places)))
        lowest = torch.linalg.eigh(_hermitian(_congruent(stiffness, root)))[1][..., : modes.shape[-1]]
        found = trial @ torch.linalg.solve_triangular(root.mH, lowest, upper=True)
        found = torch.linalg.qr(found)[0]
        search = found - modes @ (modes.mH @ found)
        search = search / search.norm(dim=-2, keepdim=True).clamp(min=1e-300)
        modes = found
    return modes


def _curl_curl(modes: Tensor, q: Tensor, weight: Tensor | None, places: Tensor) -> Tensor:
    """Σ_j q_j W q_j on modes (B, N, m)."""
    if weight is None:
        return (q**2).sum(-1, keepdim=True) * modes
    both = torch.cat([axis[:, None] * modes for axis in q.mT], -1)
    x, y = _multiply(weight, both, places).chunk(2, -1)
    return q[:, :1] * x + q[:, 1:] * y


def _multiply(pixels: Tensor | None, modes: Tensor, places: Tensor) -> Tensor:
    """The function of `pixels` (B, 1, n, n) times modes (B, N, m), or the modes if it is 1."""
    if pixels is None:
        return modes
    n = pixels.shape[-1]
    waves = modes.new_zeros(len(modes), modes.shape[-1], n * n)
    waves[..., places] = modes.mT
    waves = torch.fft.fft2(torch.fft.ifft2(waves.unflatten(-1, (n, n))) * pixels).flatten(-2)
    return waves[..., places].mT


def _congruent(h: Tensor, root: Tensor) -> Tensor:
    """L⁻¹ h L⁻ᴴ for a lower triangle L."""
    h = torch.linalg.solve_triangular(root, h, upper=False)
    return torch.linalg.solve_triangular(root.mH, h, upper=True, left=False)


def _hermitian(h: Tensor) -> Tensor:
    return (h + h.mH) / 2


def _solve(quadratic: Tensor, k: Tensor, n_bands: int) -> Tensor:
    """Frequencies (B, K, n_bands)."""
    monomials = torch.cat([torch.ones_like(k[:, :1]), k, (k**2).sum(-1, keepdim=True)], -1).to(quadratic)
    at_once = max(1, ELEMENTS_AT_ONCE // quadratic[:, 0].numel())
    squares = [torch.linalg.eigvalsh(torch.einsum("kt,btij->bkij", few, quadratic)) for few in monomials.split(at_once)]
    return torch.cat(squares, 1)[..., :n_bands].clamp(min=0).sqrt()
