"""Lowest energies and states of H = −½∇² + V in a box, on second-order finite differences.

Davidson's method (J. Comput. Phys. 17, 87 (1975)) in the eigenbasis of the empty box, the sines. There the kinetic
energy is diagonal, and low states of a potential of order one consist mostly of the longest waves:

1. H among the longest waves is diagonalised whole: its lowest states are the first guess.
2. The residuals of the guess, divided by the diagonal of H less the energy, and by H itself among the longest
   waves, join the basis, in which H is diagonalised again. In a batch each potential stops when it is done.

That is LOBPCG (Knyazev, SIAM J. Sci. Comput. 23, 517 (2001)) which forgets no direction until its basis is full; it
then starts again from the best of the basis and of the step before (Stathopoulos, SIAM J. Sci. Comput. 29, 481 (2007)).

Conventions: ħ = m = 1; the box is [−L, L]^d; V is given at the interior points −L + h, …, L − h with
h = 2L/(n + 1), along all axes alike; ψ = 0 from the walls on.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from sibcl_ray.solvers.planewave import Array

TOLERANCE = 5e-7  # bound of an energy's relative error: half of what is promised
TOLERANCE_OF_STATES = 1e-12  # likewise, where states are wanted: their error goes with the root
WAVES = {1: 16, 2: 6, 3: 5}  # longest waves along an axis among which H is diagonalised whole
WHOLE = 256  # points of a grid up to which H is diagonalised whole
CLOSE = 1e-9  # of the energy: nearer than that, levels are one level
GUARDS = 3  # states beyond those asked for, a level of the cube or two: they tell where the next level is
BASIS = 24  # vectors, besides 8 for each state, at which the basis starts again
STEPS = 500
POINTS_AT_ONCE = {"cpu": 2**14}  # what fits in a CPU's cache; other devices take OTHER_POINTS_AT_ONCE
OTHER_POINTS_AT_ONCE = 2**23


class NotConverged(ArithmeticError):
    """The lowest states were not found to the promised accuracy."""


def lowest_eigenvalues(potential: Array, half_width: float = 5.0, k: int = 1, dimensions: int | None = None) -> Array:
    """The k lowest energies of a particle in each potential.

    Args:
        potential: V at the interior points, (…, n), (…, n, n) or (…, n, n, n), real and finite; leading axes are a
            batch.
        half_width: L, half the side of the box.
        k: number of energies, degenerate ones counted as often as they occur.
        dimensions: of the space, 1 to 3. None takes all trailing axes of equal length, at most three, and at least
            two of a batch: (n, n, n) is one potential in 3D, (8, 32, 32) are eight in 2D. Say it where a
            batch can be as long as the grid is wide.

    Returns:
        Float64 (…, k), ascending, a tensor on the potential's device or, for a NumPy array, a NumPy array. They are
        those of the finite differences to 1e-6, relative, or of the empty box's lowest energy where that is larger.

    Raises:
        ValueError: a shape, a value or a number of energies that cannot be used.
        NotConverged: the accuracy was not reached, with advice.

    The error is bounded by the residuals r: by |r|² over the distance to the next level that is not among those
    summed (Parlett, The Symmetric Eigenvalue Problem, ch. 11), which the guards' energies and residuals tell.
    """
    fields, box, lead = _checked(potential, half_width, k, dimensions)
    energies = torch.cat([found for found, _ in _solved(fields, box, k, TOLERANCE)]).reshape(*lead, k)
    return energies if isinstance(potential, Tensor) else energies.numpy()


def lowest_eigenpairs(
    potential: Array, half_width: float = 5.0, k: int = 1, dimensions: int | None = None
) -> tuple[Array, Array]:
    """The k lowest energies (…, k) and their states (…, k, n, …, n); arguments as `lowest_eigenvalues`.

    States are real, float64, Σ|ψ|²h^d = 1, and their sum weighted by exp((1x + 2y + 3z)/4L) is positive: the ground
    state is positive everywhere. Degenerate ones are some orthonormal basis. Where levels are 1 % apart, errors of
    states are 1e-5 at most.
    """
    fields, box, lead = _checked(potential, half_width, k, dimensions)
    solved = zip(*_solved(fields, box, k, TOLERANCE_OF_STATES), strict=True)
    energies, vectors = (torch.cat(part) for part in solved)
    states = vectors * torch.where(vectors @ box.weights < 0, -1.0, 1.0)[..., None] / box.spacing ** (box.d / 2)
    energies, states = energies.reshape(*lead, k), states.reshape(*lead, k, *[box.n] * box.d)
    return (energies, states) if isinstance(potential, Tensor) else (energies.numpy(), states.numpy())


def empty_box_energies(n: int, dimensions: int, half_width: float = 5.0, k: int = 1) -> np.ndarray:
    """The k lowest energies (k,) of V = 0 on n interior points along an axis, in closed form."""
    return np.sort(Box(n, dimensions, half_width, torch.device("cpu")).kinetic.numpy(), axis=None)[:k]


def _checked(
    potential: np.ndarray | Tensor, half_width: float, k: int, dimensions: int | None
) -> tuple[Tensor, Box, tuple[int, ...]]:
    """The potentials (B, n, …, n) in float64, their box, and the shape of the batch."""
    fields = torch.as_tensor(potential)
    shape = tuple(fields.shape)
    d = _dimensions(shape) if dimensions is None else dimensions
    if d not in WAVES or len(shape) < d or len(set(shape[-d:])) > 1 or not fields.numel() or fields.is_complex():
        raise ValueError(
            f"potential is {fields.dtype} of shape {shape}{'' if dimensions is None else f' in {d} dimensions'}; "
            "expected real (…, n, n) or (…, n, n, n): give the same number of points along every axis of space, and "
            "dimensions=1, 2 or 3 where leading axes could be taken for space"
        )
    if not bool(torch.isfinite(fields).all()):
        raise ValueError("potential has values that are not finite; expected finite ones: make a wall high instead")
    if not (math.isfinite(half_width) and half_width > 0):
        raise ValueError(f"half_width is {half_width}; expected a positive length, half the side of the box")
    if not 1 <= k <= shape[-1] ** d:
        raise ValueError(f"k is {k}; expected 1 to {shape[-1] ** d}, the points of the grid: ask for fewer energies")
    box = Box(shape[-1], d, float(half_width), fields.device)
    return fields.reshape(-1, *shape[-d:]).to(torch.float64), box, shape[:-d]


def _dimensions(shape: tuple[int, ...]) -> int:
    """How many trailing axes are of equal length: three at most, one only of a potential without a batch."""
    equal = next((axes for axes, n in enumerate(reversed(shape)) if n != shape[-1]), len(shape))
    return min(equal, 3) if equal > 1 or len(shape) == 1 else 0


def _solved(fields: Tensor, box: Box, k: int, tolerance: float) -> Iterator[tuple[Tensor, Tensor]]:
    """Energies and states of as many potentials at a time as the device's memory likes."""
    points = POINTS_AT_ONCE.get(fields.device.type, OTHER_POINTS_AT_ONCE)
    chunks = fields.split(max(1, points // fields[0].numel()))
    # What is not touched costs nothing; what is, costs less the second time.
    room = fields.new_empty(2, len(chunks[0]), BASIS + 8 * k, fields[0].numel())
    for chunk in chunks:
        yield _davidson(chunk, box, k, tolerance, room[:, : len(chunk)])


@dataclass(frozen=True)
class Box:
    """The grid and the eigenbasis of its kinetic energy. Functions on it are flat, (…, n^d), row by row."""

    n: int  # interior points along an axis
    d: int  # dimensions of the space
    half_width: float
    device: torch.device

    @property
    def spacing(self) -> float:
        return 2 * self.half_width / (self.n + 1)

    @cached_property
    def sines(self) -> Tensor:
        """The eigenvectors (n, n) along an axis: symmetric and its own inverse."""
        i = torch.arange(1, self.n + 1, dtype=torch.float64, device=self.device)
        return torch.sin(torch.pi / (self.n + 1) * torch.outer(i, i)) * math.sqrt(2 / (self.n + 1))

    @cached_property
    def kinetic(self) -> Tensor:
        """The kinetic energies (n, …, n) of the products of sines."""
        i = torch.arange(1, self.n + 1, dtype=torch.float64, device=self.device)
        line = (1 - torch.cos(torch.pi / (self.n + 1) * i)) / self.spacing**2
        return sum((line.view(-1, *[1] * axis) for axis in range(self.d)), torch.zeros((), device=self.device))

    @cached_property
    def scale(self) -> float:
        """The energy of the lowest wave along an axis: what is small beside it is small."""
        return float(self.kinetic.flatten()[0]) / self.d

    @property
    def weights(self) -> Tensor:
        """exp((1x + 2y + 3z)/4L) at the points, (n^d,): positive, and even or odd under no symmetry."""
        line = torch.linspace(-1, 1, self.n + 2, dtype=torch.float64, device=self.device)[1:-1] / 4
        powers = [(axis + 1) * line.view(-1, *[1] * (self.d - 1 - axis)) for axis in range(self.d)]
        return torch.exp(sum(powers, torch.zeros_like(self.kinetic))).flatten()

    def hamiltonian(self, fields: Tensor, x: Tensor) -> Tensor:
        """H x of functions x (B, p, n^d) in potentials (B, n, …, n)."""
        x = x.unflatten(-1, (self.n,) * self.d)
        hop = 0.5 / self.spacing**2
        y = x * (fields + 2 * self.d * hop)[:, None]
        for axis in range(2, x.ndim):
            y.narrow(axis, 1, self.n - 1).sub_(x.narrow(axis, 0, self.n - 1), alpha=hop)
            y.narrow(axis, 0, self.n - 1).sub_(x.narrow(axis, 1, self.n - 1), alpha=hop)
        return y.flatten(2)


def _along_axes(matrix: Tensor, x: Tensor, d: int) -> Tensor:
    """The matrix (m, n) applied along each of the last d axes of x (…, n, …, n)."""
    for axis in range(x.ndim - d, x.ndim):
        rest = math.prod(x.shape[axis + 1 :])
        shape = (*x.shape[:axis], len(matrix), *x.shape[axis + 1 :])
        x = x @ matrix.mT if rest == 1 else (matrix @ x.reshape(-1, x.shape[axis], rest)).view(shape)
    return x


class _LongWaves:
    """H diagonalised among the longest waves of each potential: a first guess, and a preconditioner."""

    def __init__(self, fields: Tensor, box: Box, count: int) -> None:
        n, d = box.n, box.d
        # Where the basis would soon fill the space, all of it is taken at once.
        whole = n**d <= max(WHOLE, 10 * count)
        self.box, self.m = box, n if whole else max(WAVES[d], math.ceil((2 * count) ** (1 / d)))
        sines, corner = box.sines[:, : self.m], (slice(self.m),) * d
        products = (sines[:, :, None] * sines[:, None]).flatten(1)
        block = fields
        for _ in range(d):  # each axis of space becomes, behind the others, one of pairs of waves
            block = torch.tensordot(block, products, ([1], [0]))
        block = block.view(-1, *[self.m] * (2 * d)).permute(0, *range(1, 2 * d, 2), *range(2, 2 * d + 1, 2))
        block = block.reshape(-1, self.m**d, self.m**d)
        block.diagonal(dim1=1, dim2=2).add_(box.kinetic[corner].flatten())
        self.energies, self.modes = torch.linalg.eigh(block)
        self.mean = fields.flatten(1).mean(1)

    def guess(self, count: int) -> Tensor:
        """The lowest ``count`` states (B, count, n^d), orthonormal."""
        waves = self.modes[..., :count].mT.reshape(-1, count, *[self.m] * self.box.d)
        return _along_axes(self.box.sines[:, : self.m], waves, self.box.d).flatten(2)

    def precondition(self, residuals: Tensor, energies: Tensor) -> Tensor:
        """Nearly |H − E|⁻¹ r of residuals (B, p, n^d) at their energies (B, p)."""
        box, least = self.box, self.box.scale / 2
        # Single precision halves the time; a direction of search need not be exact.
        sines, modes = box.sines.float(), self.modes.float()
        norms = residuals.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(torch.float64).tiny)
        waves = (residuals / norms).float().unflatten(-1, (box.n,) * box.d)
        waves = _along_axes(sines, waves, box.d)
        low = (slice(None), slice(None), *[slice(self.m)] * box.d)
        gaps = (self.energies[:, None] - energies[..., None]).abs().clamp(min=least).float()
        long = ((waves[low].flatten(2) @ modes) / gaps) @ modes.mT
        above = (self.mean[:, None] - energies).float().view(*energies.shape, *[1] * box.d)
        waves = waves / (box.kinetic.float() + above).clamp(min=least)
        waves[low] = long.view_as(waves[low])
        return _along_axes(sines, waves, box.d).flatten(2).double()

    def keep(self, chosen: Tensor) -> None:
        """Forget the potentials that are not among the chosen (B,)."""
        self.energies, self.modes, self.mean = self.energies[chosen], self.modes[chosen], self.mean[chosen]


class _Basis:
    """Orthonormal vectors (B, s, n^d), their images under H, and H among them (B, s, s)."""

    def __init__(self, fields: Tensor, box: Box, vectors: Tensor, room: Tensor) -> None:
        self.fields, self.box, self.size = fields, box, 0
        self._vectors, self._images = room  # a basis that grew by itself would be copied each time
        self.h = fields.new_empty(len(fields), 0, 0)
        self._append(vectors)

    @property
    def vectors(self) -> Tensor:
        return self._vectors[:, : self.size]

    @property
    def images(self) -> Tensor:
        return self._images[:, : self.size]

    def extend(self, directions: Tensor) -> None:
        """Add what is new in the directions (B, p, n^d)."""
        for _ in range(2):  # twice is enough (Parlett, ch. 6)
            directions = _orthonormal(directions - (directions @ self.vectors.mT) @ self.vectors)
        self._append(directions)

    def _append(self, vectors: Tensor) -> None:
        first, self.size = self.size, self.size + vectors.shape[1]
        self._vectors[:, first : self.size] = vectors
        self._images[:, first : self.size] = self.box.hamiltonian(self.fields, vectors)
        columns = self.vectors @ self._images[:, first : self.size].mT
        self.h = torch.cat([torch.cat([self.h, columns[:, :first].mT], 1), columns], 2)

    def shrink(self, coefficients: Tensor) -> None:
        """Keep only what the combinations (B, q, s) of the vectors span."""
        mix = torch.linalg.qr(coefficients.mT)[0]
        vectors, images = mix.mT @ self.vectors, mix.mT @ self.images
        self.h, self.size = mix.mT @ self.h @ mix, mix.shape[-1]
        self._vectors[:, : self.size], self._images[:, : self.size] = vectors, images

    def keep(self, chosen: Tensor) -> None:
        """Forget the potentials that are not among the chosen (B,)."""
        self.fields, self.h = self.fields[chosen], self.h[chosen]
        for part in (self._vectors, self._images):
            part[: len(self.fields), : self.size] = part[chosen, : self.size]
        self._vectors, self._images = self._vectors[: len(self.fields)], self._images[: len(self.fields)]


def _orthonormal(rows: Tensor) -> Tensor:
    if rows.shape[1] == 1:
        return rows / rows.norm(dim=-1, keepdim=True).clamp(min=torch.finfo(rows.dtype).tiny)
    return torch.linalg.qr(rows.mT)[0].mT


@torch.no_grad()
def _davidson(fields: Tensor, box: Box, k: int, tolerance: float, room: Tensor) -> tuple[Tensor, Tensor]:
    """The k lowest energies (B, k) and states (B, k, n^d), Σψ² = 1, of (B, n, …, n); the basis is in ``room``."""
    block = min(k + GUARDS, box.n**box.d)
    long_waves = _LongWaves(fields, box, block)
    basis = _Basis(fields, box, long_waves.guess(block), room)
    energies, states = fields.new_empty(len(fields), k), fields.new_empty(len(fields), k, box.n**box.d)
    left = torch.arange(len(fields), device=fields.device)
    before = fields.new_empty(len(fields), 0, 0)
    for _ in range(STEPS):
        levels, modes = torch.linalg.eigh(basis.h)
        levels, now = levels[:, :block], modes[..., :block].mT
        residuals = now @ basis.images - levels[..., None] * (now @ basis.vectors)
        error, wanted = _errors(levels, residuals.norm(dim=-1), k, tolerance, box)
        done = error <= 1
        if bool(done.any()):
            energies[left[done]], states[left[done]] = levels[done, :k], (now[:, :k] @ basis.vectors)[done]
            going = ~done
            if not bool(going.any()):
                return energies, states
            left, levels, residuals, wanted = (x[going] for x in (left, levels, residuals, wanted))
            now, before = now[going], before[going]
            basis.keep(going)
            long_waves.keep(going)
        columns = wanted.any(0).nonzero()[:, 0]
        directions = long_waves.precondition(residuals[:, columns], levels[:, columns])
        if basis.size + len(columns) > room.shape[2]:
            basis.shrink(torch.cat([now, F.pad(before, (0, basis.size - before.shape[-1]))], 1))
            now = now[:, :0, :0]  # these were combinations of vectors that are gone
        before = now
        basis.extend(directions)
    raise NotConverged(
        f"the {k} lowest energies of {len(left)} potentials were not found within {STEPS} steps: ask for fewer, give "
        "potentials that vary less from point to point, or a finer grid"
    )


def _errors(levels: Tensor, norms: Tensor, k: int, tolerance: float, box: Box) -> tuple[Tensor, Tensor]:
    """The bound (B,) of the error of the lowest k of the levels (B, b), over what is tolerated; which residuals to use.

    For any s ≥ k the first s levels err by |r_1…r_s|² / δ at most, where δ is the distance from level k to
    the spectrum beyond s. That begins at level s + 1 less its own residual.
    """
    energy = levels[:, :k].abs().amin(1, keepdim=True).clamp(min=box.d * box.scale)
    allowed, close = energy * tolerance, energy * max(tolerance, CLOSE)
    gaps = levels[:, k:] - levels[:, k - 1 : k]
    clear = gaps - norms[:, k:]
    if levels.shape[1] == box.n**box.d:  # there is nothing beyond the last
        gaps, clear = (F.pad(x, (0, 1), value=torch.inf) for x in (gaps, clear))
    sums = norms.square().cumsum(1)[:, k - 1 :][:, : clear.shape[1]]
    apart = (sums / clear / allowed).where(clear > 0, torch.inf)
    # Where the next level is the same one, |r| itself is a bound (Weyl).
    together = (sums.sqrt() / close).where(2 * clear > -close, torch.inf)
    error = torch.minimum(apart, together).amin(1)
    # Levels up to the first clear gap, less those that are good enough already.
    clouded = (clear < gaps / 2).long().cumprod(1).sum(1, keepdim=True)
    upto = k + clouded
    distance = clear.gather(1, clouded.clamp(max=clear.shape[1] - 1)).clamp(min=0)
    poor = norms.square() > allowed * distance / (2 * upto)
    return error, poor & (torch.arange(levels.shape[1], device=levels.device) < upto)
