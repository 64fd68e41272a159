"""The signs of a frustrated magnet's ground state (Westerhout et al., Nat. Commun. 11, 1593 (2020); Schurov et al.,
arXiv 2406.08318).

Spins ½ on a periodic lattice, H = Σ_near σ·σ + J2 Σ_far σ·σ in Pauli units, total Sz = 0. The input is a spin
configuration, the label the sign of its amplitude, and configurations are drawn with probability |ψ|².

A configuration's images under the symmetries of H have the same label, or the same but for a known sign. So the
roles share out orbits, not configurations: a permutation of the orbits, drawn from the study's seed, is cut into
`SHARES`, and a role draws an orbit of its own by its part of |ψ|², and then one of its configurations. No image of a
test configuration is ever seen in training, and a shard depends on the seed, its role and its number alone.

The error is 1 for a wrong sign and 0 for a right one. As the test is drawn by |ψ|², its mean over the test
estimates Σ|ψ|² over the wrong ones, and the overlap Σ s ŝ |ψ|² / Σ |ψ|² is 1 − 2 · error.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from sibcl_ray.problems import losses
from sibcl_ray.problems.problem import FRACTION, Problem, Sample
from sibcl_ray.randomness import named_seed
from sibcl_ray.solvers.spins import FLIP, GroundState, Lattice, ground_state, read_ground_state
from sibcl_ray.symmetry import Group
from sibcl_ray.symmetry.groups import NumberedGroup

ALTERNATIONS = (1, 0), (0, 1), (1, 1)  # of two sublattices: with the row, with the column, as on a chessboard
SHARES = {"test": 0.2, "target": 0.4, "surrogate": 0.2, "unlabelled": 0.2}  # of the orbits


@dataclass(frozen=True)
class SpinFlip(NumberedGroup):
    """The flip of all spins."""

    order = 2

    def products(self, device: torch.device) -> Tensor:
        return torch.tensor([[0, 1], [1, 0]], device=device)

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        return x * (1 - 2 * g).to(x.dtype).view(-1, *[1] * (x.ndim - 1))


@dataclass(frozen=True)
class SitePermutations(NumberedGroup):
    """The translations and point group of a lattice, as far as these ``characters`` of its generators make them +1."""

    lattice: Lattice
    characters: tuple[tuple[str, int], ...]

    @property
    def order(self) -> int:
        return len(self._sources(torch.device("cpu")))

    @lru_cache  # noqa: B019  # there are few
    def _sources(self, device: torch.device) -> Tensor:
        """Where the spin of each site comes from, (order, sites), the unit first."""
        group = self.lattice.group
        chosen = group.signs(dict(self.characters))[group.parities] > 0
        return torch.tensor(group.permutations[chosen], device=device)

    def products(self, device: torch.device) -> Tensor:
        sources = self._sources(device)
        return torch.stack([(sources[:, None, g] == sources).all(2).long().argmax(1) for g in sources])

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        return x.flatten(1).gather(1, self._sources(x.device)[g]).view(x.shape)


@dataclass(frozen=True)
class MagnetSign(Problem):
    """Spins ±1 on rows × columns sites to the sign of the ground state's amplitude.

    The surrogate is the same lattice without some of its bonds, so that two sublattices are left between which all
    bonds lie. The signs are then known without any computation (Marshall, Proc. R. Soc. A 232, 48 (1955)):
    (−1)^(up spins on one sublattice). At J2 = 1.3 on the triangular lattice that of alternate rows, which leaves
    out the near bonds along the rows, has the largest overlap with the ground state of 6 × 4 sites, 0.65;
    the chessboard of J2 = 0 has 0.01. On the square lattice at J2 = 0.5 the chessboard has 0.96.
    """

    rows: int = 6
    columns: int = 4
    j2: float = 1.3  # coupling of far neighbours over that of near ones
    diagonals: int = 1  # along which far neighbours lie: 1, anisotropic triangular, or 2, square
    alternate: tuple[int, int] = (1, 0)  # does the surrogate's sublattice change with the row, with the column?
    file: str = ""  # HDF5 with the ground state, as `read_ground_state` takes it; diagonalised here if empty

    name = "magnet-sign"
    version = 1
    label_shape = (1,)
    input_units = "sign of a spin"
    label_units = "sign of an amplitude; the amplitude of the likeliest orbit's representative is positive"
    error_units = FRACTION  # of the configurations that have the wrong sign
    label_seconds, surrogate_seconds = 2e-5, 4e-6  # once there is the ground state, which takes five

    def __post_init__(self) -> None:
        if self.alternate not in ALTERNATIONS:
            raise ValueError(f"alternate is {self.alternate}; give (1, 0), (0, 1) or (1, 1)")
        _ = self.lattice  # checks itself

    @property
    def lattice(self) -> Lattice:
        """Where the spins are."""
        return Lattice(self.rows, self.columns, self.diagonals)

    @property
    def ground_state(self) -> GroundState:
        """Diagonalised or read at the first call, and kept by the process: about ten seconds for 6 × 4 sites."""
        if self.file:
            return read_ground_state(Path(self.file), self.lattice, self.j2)
        return ground_state(self.lattice, self.j2)

    @property
    def characters(self) -> Mapping[str, int]:
        """What the ground state is multiplied by, ±1, under each generator of the symmetries of H."""
        return self.ground_state.characters

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.rows, self.columns)

    @property
    def symmetries(self) -> Mapping[str, Group]:
        """All elements whose character is +1; the others change the sign, and are not used."""
        groups: dict[str, Group] = {"space_group": SitePermutations(self.lattice, tuple(self.characters.items()))}
        return groups | ({FLIP: SpinFlip()} if self.characters[FLIP] > 0 else {})

    @property
    def available(self) -> Mapping[str, int]:
        """As many as are asked for: they are drawn with replacement, but each role's by itself; see `shards`."""
        return {}

    def shards(
        self, role: str, seed: int, indices: Sequence[int], size: int
    ) -> Iterator[tuple[int, Sample, np.ndarray | None]]:
        """Parts of a role's samples, from the orbits that are its own."""
        orbits = self._share(role, seed)
        for index in indices:
            sample = self._draw(size, np.random.default_rng(named_seed(seed, role, index)), orbits)
            if role == "unlabelled":
                yield index, sample, None
            else:
                yield index, sample, self.solve_surrogate(sample) if role == "surrogate" else self.solve(sample.inputs)

    def _share(self, role: str, seed: int) -> np.ndarray:
        """The numbers of a role's orbits."""
        count = len(self.ground_state.representatives)
        order = np.random.default_rng(named_seed(seed, "orbits")).permutation(count)
        ends = np.round(np.cumsum(list(SHARES.values())) * count).astype(int)
        return np.split(order, ends[:-1])[list(SHARES).index(role)]

    def _draw(self, count: int, rng: np.random.Generator, orbits: np.ndarray | slice = slice(None)) -> Sample:
        state, group = self.ground_state, self.lattice.group
        weights = np.cumsum(state.coefficients[orbits] ** 2)
        chosen = np.searchsorted(weights, rng.random(count) * weights[-1], side="right")
        representatives = state.representatives[orbits][chosen]
        states = group.image(rng.integers(group.order, size=count), representatives)
        size = group.order / group.stabilisers(representatives)[0]
        return Sample(self._spins(states), {"probability": state.coefficients[orbits][chosen] ** 2 / size})

    def _spins(self, states: np.ndarray) -> np.ndarray:
        bits = states[:, None] >> np.arange(self.lattice.sites, dtype=np.uint64) & np.uint64(1)
        return (2 * bits.astype(np.float32) - 1).reshape(-1, *self.input_shape)

    def _states(self, inputs: np.ndarray) -> np.ndarray:
        up = inputs.reshape(len(inputs), -1) > 0
        return (up.astype(np.uint64) << np.arange(self.lattice.sites, dtype=np.uint64)).sum(1, dtype=np.uint64)

    def sample(self, count: int, rng: np.random.Generator) -> Sample:
        """Configurations of any role, with their probabilities |ψ|²."""
        return self._draw(count, rng)

    sample_surrogate = sample

    def solve(self, inputs: np.ndarray) -> np.ndarray:
        """Signs, (count, 1); NaN of a configuration whose amplitude vanishes, which is never drawn."""
        return self.ground_state.signs(self._states(inputs)).astype(np.float32)[:, None]

    def solve_surrogate(self, sample: Sample) -> np.ndarray:
        """Marshall's signs, (count, 1), positive where no up spin is on the sublattice."""
        return self._marshall(torch.from_numpy(sample.inputs), self.alternate).numpy()[:, None]

    def _marshall(self, inputs: Tensor, alternate: tuple[int, int]) -> Tensor:
        row, column = (torch.arange(n, device=inputs.device) for n in self.input_shape)
        odd = (alternate[0] * row[:, None] + alternate[1] * column) % 2 > 0
        return 1.0 - 2 * ((inputs[:, odd] > 0).sum(1) % 2)

    def features(self, inputs: Tensor) -> Tensor:
        """The spins, and as constant planes Marshall's signs for all three pairs of sublattices: known beforehand,
        and products of a dozen spins, which networks do not find among a few hundred."""
        signs = torch.stack([self._marshall(inputs, pair) for pair in ALTERNATIONS], 1)
        return torch.cat([inputs.unsqueeze(1), signs[..., None, None].expand(-1, -1, *self.input_shape)], 1)

    def label_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return losses.logistic(prediction, label)

    def error(self, prediction: Tensor, label: Tensor) -> Tensor:
        """1 where the sign is wrong or there is none, 0 where it is right."""
        return (prediction * label <= 0).flatten(1).any(1).float()
