"""Photonic bands of 2D square-lattice crystals by plane waves and reduced Bloch modes.

Both polarisations are one generalised eigenproblem, Σ_j (k+G)_j W (k+G)_j c = ω² M c, with k and G in
2π/a and ω in 2πc/a: TM has W = 1 and M = [ε], TE has W = [1/ε] and M = 1, where [f] is the Toeplitz
matrix of f's Fourier coefficients (Ho, Chan, Soukoulis, PRL 65, 3152 (1990)). W and M do not depend on
k, so in any fixed basis the problem is quadratic in k, and it is made small in two steps:

1. Bloch modes of a few anchor points are a basis for the whole zone (reduced Bloch mode expansion:
   Hussein, Proc. R. Soc. A 465, 2825 (2009)).
2. In a patch of the zone the lowest modes of the patch's centre are a basis; the other modes are folded
   into their matrix to second order (Löwdin, J. Chem. Phys. 19, 1396 (1951)).

Conventions: array axis 0 of ε is x and axis 1 is y; the cell is periodic with side a = 1.
"""

from collections.abc import Callable
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

Array = TypeVar("Array", np.ndarray, Tensor)

CUTOFF = 11  # plane waves G ∈ {−11…11}²
ANCHORS = ((0.25, 0.35), (0.25, 0.0), (0.25, -0.35))  # of the half zone kx ≥ 0, the rest is ω(−k) = ω(k)
ANCHOR_MODES = 6  # modes of an anchor beyond the bands asked for
COARSE_CUTOFF = 4  # plane waves that give the first guess of the anchors' modes
REFINEMENTS = 2  # inverse iterations of the guess with all plane waves
PATCH = 0.12  # side of a patch: 3 × 3 points of the 25 × 25 grid
PATCH_MODES = 6  # modes of a patch beyond the bands asked for
CELLS_AT_ONCE = {"cpu": 2}  # what fits in a CPU's cache; other devices take OTHER_CELLS_AT_ONCE
OTHER_CELLS_AT_ONCE = 128
ELEMENTS_AT_ONCE = 2**26  # matrix elements diagonalised at once, at most: 1 GiB


class Medium(NamedTuple):
    """W and M of the eigenproblem, each (B, N, N), or None for the identity."""

    weight: Tensor | None
    mass: Tensor | None

    @property
    def matrix(self) -> Tensor:
        """The one that is not the identity."""
        return next(matrix for matrix in self if matrix is not None)


def bands(
    epsilon: Array, k_points: np.ndarray | Tensor, n_bands: int, polarization: str = "tm", cutoff: int = CUTOFF
) -> tuple[Array, Array]:
    """Lowest photonic bands and their group velocities.

    Args:
        epsilon: permittivity on the pixels of the cell, (n, n) or (B, n, n), real and positive; axis 0 is x.
        k_points: Bloch vectors (K, 2) in 2π/a, any order, in or outside the first zone.
        n_bands: number of bands, counted from the lowest.
        polarization: a name in `POLARIZATIONS`: "tm" (E out of the plane) or "te" (H out of the plane).
        cutoff: of the plane waves G ∈ {−cutoff…cutoff}²; no more are taken than the pixels have.

    Returns:
        Frequencies (..., K, n_bands), ωa/2πc, ascending, and group velocities (..., K, n_bands, 2) in c by the
        Hellmann–Feynman theorem, both float64. Tensors on epsilon's device, or NumPy arrays if epsilon is
        one. Where bands touch, the velocity is that of one of the modes that mix; at ω = 0 it is set to 0.

    Raises:
        ValueError: a shape, value, number of bands or polarisation that cannot be used.

    The plane waves are a subset of the pixels' own Fourier modes, MPB's basis (Johnson and Joannopoulos,
    Opt. Express 8, 173 (2001)). TE takes W as the mean of [1/ε] and [ε]⁻¹, whose errors at an
    interface have opposite signs.
    """
    cells, k, waves = checked(epsilon, k_points, n_bands, polarization, cutoff)
    half, source, sign = half_zone(k)
    make = POLARIZATIONS[polarization]
    with torch.no_grad():
        chunks = cells.split(CELLS_AT_ONCE.get(cells.device.type, OTHER_CELLS_AT_ONCE))
        solved = [_bands_of_half_zone(make(chunk, waves), waves, half, n_bands) for chunk in chunks]
    frequencies, velocities = (torch.cat(part)[:, source] for part in zip(*solved, strict=True))
    velocities = velocities * sign[:, None, None]
    return as_given(frequencies, epsilon), as_given(velocities, epsilon)


def checked_cells(epsilon: np.ndarray | Tensor) -> Tensor:
    """`epsilon` as cells (B, n, n) of float64.

    Raises:
        ValueError: a shape or a value that no solver here can use.
    """
    cells = torch.as_tensor(epsilon)
    if cells.ndim not in (2, 3) or cells.shape[-1] != cells.shape[-2] or not cells.numel() or cells.is_complex():
        raise ValueError(
            f"epsilon is {cells.dtype} of shape {tuple(cells.shape)}; expected real (n, n) or (batch, n, n): "
            "give square cells"
        )
    if not bool((torch.isfinite(cells) & (cells > 0)).all()):
        raise ValueError(
            f"epsilon has values from {cells.min():g} to {cells.max():g}; expected finite and positive ones: "
            "metals and gain are out of reach of this solver"
        )
    return cells.reshape(-1, *cells.shape[-2:]).to(torch.float64)


def checked(
    epsilon: np.ndarray | Tensor, k_points: np.ndarray | Tensor, n_bands: int, polarization: str, cutoff: float = np.inf
) -> tuple[Tensor, Tensor, Tensor]:
    """Cells (B, n, n) and k-points (K, 2) of float64, and the plane waves G ∈ {−cutoff…cutoff}² (N, 2) that fit."""
    cells, k = checked_cells(epsilon), torch.as_tensor(k_points)
    if k.ndim != 2 or k.shape[1] != 2 or not len(k) or not bool(torch.isfinite(k).all()):
        raise ValueError(f"k_points has shape {tuple(k.shape)}; expected finite (K, 2): give kx, ky in 2π/a in rows")
    waves = square(int(min(cutoff, (cells.shape[-1] - 1) // 2)), cells.device)
    if polarization not in POLARIZATIONS:
        raise ValueError(f"polarization is {polarization!r}; expected one of {', '.join(POLARIZATIONS)}")
    if not 1 <= n_bands <= len(waves):
        raise ValueError(
            f"n_bands is {n_bands}; expected 1 to {len(waves)}, the plane waves of {tuple(cells.shape[-2:])} pixels: "
            "ask for fewer bands or give more pixels"
        )
    return cells, k.to(cells.device, torch.float64), waves


def as_given(found: Tensor, epsilon: Array) -> Array:
    """What was found of cells (B, …), without the batch and as an array where epsilon was so."""
    found = found if epsilon.ndim == 3 else found[0]
    return found if isinstance(epsilon, Tensor) else found.numpy()


def half_zone(k: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Distinct k-points (H, 2) with kx ≥ 0 in the first zone; for each given one its place there and its sign."""
    k = ((k - k.round()) * 1e12).round() / 1e12
    flip = (k[:, 0] < 0) | ((k[:, 0] == 0) & (k[:, 1] < 0))
    sign = torch.where(flip, -1.0, 1.0).to(k)
    half, source = torch.unique(k * sign[:, None], dim=0, return_inverse=True)
    return half, source, sign


def square(cutoff: int, device: torch.device) -> Tensor:
    """The plane waves G ∈ {−cutoff…cutoff}², (N, 2)."""
    line = torch.arange(-cutoff, cutoff + 1, device=device)
    return torch.cartesian_prod(line, line).reshape(-1, 2)


def _toeplitz(cells: Tensor, waves: Tensor) -> Tensor:
    """[f] (B, N, N), with the origin in the middle of the cell; real if every cell is symmetric under inversion.

    Steps beyond the pixels' Nyquist wave are aliased: [f] is a block of f's circulant matrix on all pixels.
    """
    n, reach = cells.shape[-1], 2 * int(waves.max())
    step = torch.arange(-reach, reach + 1, device=cells.device)
    shift = torch.exp(1j * torch.pi * (1 - 1 / n) * step.to(cells.dtype))
    coefficients = torch.fft.fft2(cells)[:, step[:, None] % n, step % n] * (shift[:, None] * shift) / n**2
    if bool(coefficients.imag.abs().amax() < 1e-13 * cells.amin()):
        coefficients = coefficients.real
    index = waves[:, None] - waves + reach
    return coefficients[:, index[..., 0], index[..., 1]]


def _te(cells: Tensor, waves: Tensor) -> Medium:
    return Medium(weight=(_toeplitz(1 / cells, waves) + torch.linalg.inv(_toeplitz(cells, waves))) / 2, mass=None)


POLARIZATIONS: dict[str, Callable[[Tensor, Tensor], Medium]] = {
    "tm": lambda cells, waves: Medium(weight=None, mass=_toeplitz(cells, waves)),
    "te": _te,
}


def _bands_of_half_zone(medium: Medium, waves: Tensor, k: Tensor, n_bands: int) -> tuple[Tensor, Tensor]:
    """The cheapest of: all plane waves, Bloch modes of the anchors, and these folded patch by patch."""
    centres, patch = torch.unique((k / PATCH).round(), dim=0, return_inverse=True)
    per_anchor = n_bands + ANCHOR_MODES
    if len(k) <= len(ANCHORS) or 2 * len(ANCHORS) * per_anchor > len(waves):
        return _solve(_quadratic(medium, waves, None), k, torch.zeros_like(patch), n_bands)
    quadratic = _quadratic(medium, waves, _reduced_basis(medium, waves, per_anchor))
    if 2 * len(centres) > len(k):
        return _solve(quadratic, k, torch.zeros_like(patch), n_bands)
    centres = centres * PATCH
    return _solve(_fold(quadratic, centres, n_bands), k - centres[patch], patch, n_bands)


def _reduced_basis(medium: Medium, waves: Tensor, count: int) -> Tensor:
    """Orthonormal (B, N, m) that spans `count` modes of each anchor, and the constant, the mode of k = ω = 0."""
    coarse = (waves.abs().amax(-1) <= COARSE_CUTOFF).nonzero()[:, 0]
    block = Medium(*(None if matrix is None else matrix[:, coarse[:, None], coarse] for matrix in medium))
    size = (len(medium.matrix), len(waves))
    columns = [(waves == 0).all(-1).to(medium.matrix).expand(size)[..., None]]
    for anchor in torch.tensor(ANCHORS, dtype=torch.float64, device=waves.device):
        modes = medium.matrix.new_zeros(*size, count)
        modes[:, coarse] = eigenmodes(block, waves[coarse] + anchor, count)
        columns.append(_inverse_iteration(medium, waves + anchor, modes))
    return torch.linalg.qr(torch.cat(columns, -1))[0]


def eigenmodes(medium: Medium, q: Tensor, count: int) -> Tensor:
    """The lowest modes (B, N, count) at k + G = q ≠ 0."""
    if medium.weight is not None:
        return torch.linalg.eigh(medium.weight * (q @ q.mT))[1][..., :count]
    scale = 1 / q.norm(dim=-1)
    return scale[:, None] * torch.linalg.eigh(-medium.matrix * (scale[:, None] * scale))[1][..., :count]


def _inverse_iteration(medium: Medium, q: Tensor, modes: Tensor) -> Tensor:
    """`modes` with what belongs to higher frequencies damped, normalised."""
    root = None if medium.weight is None else torch.linalg.cholesky(medium.weight * (q @ q.mT))
    for _ in range(REFINEMENTS):
        if root is None:
            modes = medium.matrix @ modes / (q**2).sum(-1, keepdim=True)
        else:
            modes = torch.cholesky_solve(modes, root)
    return modes / modes.norm(dim=-2, keepdim=True)


def _quadratic(medium: Medium, waves: Tensor, basis: Tensor | None) -> Tensor:
    """H(k) in an M-orthonormal basis as the coefficients (B, 1, 6, m, m) of 1, kx, ky, kx², ky², kx·ky."""
    if basis is None:
        basis = torch.eye(len(waves)).to(medium.matrix).expand_as(medium.matrix)
    bras = [basis, *(basis * g[:, None] for g in waves.mT)]  # the basis, and its Gx and Gy
    kets = bras if medium.weight is None else [medium.weight @ bra for bra in bras]
    (s, hx, hy), (_, xx, _), (_, _, yy) = [[bra.mH @ ket for ket in kets] for bra in bras]
    h = torch.stack([xx + yy, hx + hx.mH, hy + hy.mH, s, s, torch.zeros_like(s)], 1)
    if medium.mass is not None:
        root = torch.linalg.cholesky(basis.mH @ medium.mass @ basis)[:, None]
        h = torch.linalg.solve_triangular(root, h, upper=False)
        h = torch.linalg.solve_triangular(root.mH, h, upper=True, left=False)
    return ((h + h.mH) / 2)[:, None]


def _monomials(k: Tensor) -> Tensor:
    """1, kx, ky, kx², ky², kx·ky and their derivatives by kx and by ky, (K, 3, 6)."""
    x, y = k.unbind(-1)
    zero, one = torch.zeros_like(x), torch.ones_like(x)
    rows = (one, x, y, x * x, y * y, x * y), (zero, one, zero, 2 * x, zero, y), (zero, zero, one, zero, 2 * y, x)
    return torch.stack([torch.stack(row, -1) for row in rows], 1)


def _evaluate(coefficients: Tensor, monomials: Tensor) -> Tensor:
    """Σ_t monomials[k, d, t] coefficients[b, k or 1, t] as (B, K, D, m, m)."""
    return (monomials.to(coefficients) @ coefficients.flatten(-2)).unflatten(-1, coefficients.shape[-2:])


def _fold(quadratic: Tensor, centres: Tensor, n_bands: int) -> Tensor:
    """H(centre + δ) on the lowest modes of each patch centre: coefficients (B, C, 6, p, p) of 1, δx, … δx·δy."""
    kept = n_bands + PATCH_MODES
    h, *slopes = _evaluate(quadratic, _monomials(centres)).unbind(2)
    squares, modes = torch.linalg.eigh(h)
    bras = modes[..., :kept].mH
    px, py = (bras @ slope @ modes for slope in slopes)
    s = bras @ quadratic[:, :, 3] @ modes[..., :kept]
    # The kept modes above the bands only mediate: at their own energies the denominators could vanish.
    energies = squares[..., :kept].clamp(max=squares[..., n_bands - 1, None])
    gaps = squares[..., None, kept:] - energies[..., None]
    fx, fy = px[..., kept:], py[..., kept:]
    xx, xy, yx, yy = ((left / gaps) @ right.mH for left in (fx, fy) for right in (fx, fy))
    flat = torch.diag_embed(squares[..., :kept]).to(s)
    folded = torch.stack([flat, px[..., :kept], py[..., :kept], s - xx, s - yy, -xy - yx], 2)
    return (folded + folded.mH) / 2


def _solve(quadratic: Tensor, k: Tensor, patch: Tensor, n_bands: int) -> tuple[Tensor, Tensor]:
    """Frequencies (B, K, n_bands) and velocities (B, K, n_bands, 2) at k, relative to the centres of the patches."""
    at_once = max(1, ELEMENTS_AT_ONCE // (3 * len(quadratic) * quadratic.shape[-1] ** 2))
    solved = []
    for few_k, few_patch in zip(k.split(at_once), patch.split(at_once), strict=True):
        h = _evaluate(quadratic[:, few_patch], _monomials(few_k))
        squares, modes = torch.linalg.eigh(h[:, :, 0])
        modes = modes[:, :, None, :, :n_bands]
        slopes = (modes.conj() * (h[:, :, 1:] @ modes)).sum(-2).real.mT
        frequencies = squares[..., :n_bands].clamp(min=0).sqrt()
        still = frequencies < 1e-6
        velocities = slopes / (2 * frequencies.masked_fill(still, 1))[..., None]
        solved.append((frequencies, velocities.masked_fill(still[..., None], 0)))
    frequencies, velocities = (torch.cat(part, 1) for part in zip(*solved, strict=True))
    return frequencies, velocities
