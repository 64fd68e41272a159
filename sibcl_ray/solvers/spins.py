"""Ground states of frustrated spin-½ magnets by exact diagonalisation in the basis of symmetry orbits.

H = Σ_near σ·σ + J2 Σ_far σ·σ in Pauli units (S = σ/2) on a periodic lattice of rows × columns sites, total Sz = 0.
A configuration is an integer whose bit i is set where the spin of site i = row · columns + column is up.

Translations, the lattice's point group and the flip of all spins commute with H. A state that each of them maps
onto itself or its negative, by its *character* ±1, is known from one amplitude an orbit, that of its
*representative*, the smallest integer in it: ψ(g·r) = χ(g) ψ(r). As σ·σ = 2P − 1, where P swaps two spins, H needs
only where swaps of representatives lead: for 24 sites some 15,000 rows of 2.7 million.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache, reduce
from operator import itemgetter
from pathlib import Path
from typing import Any

import numpy as np

from sibcl_ray.messages import one_line

SITES = 24  # that can be diagonalised here; larger ground states are read
FLIP = "flip"
SMALL = 400  # rows of a matrix that is diagonalised as it is
SCAN = 1e-4  # relative tolerance of energies where the lowest is sought
CHECKED = 200  # representatives of a file, the likeliest, on which Hψ = Eψ is tried
NEGLIGIBLE = 1e-10  # of an orbit's amplitude: its sign is rounding
DATASETS = ("basis/representatives", "hamiltonian/eigenvectors", "hamiltonian/eigenvalues")


@dataclass(frozen=True)
class Lattice:
    """Periodic rows × columns sites; near neighbours along the axes, far ones along one diagonal or both."""

    rows: int
    columns: int
    diagonals: int  # 1: the anisotropic triangular lattice, 2: the square lattice with next-nearest neighbours

    def __post_init__(self) -> None:
        # Two rows would join the same two sites by two bonds.
        if self.rows < 3 or self.columns < 3 or self.rows * self.columns % 2 or self.rows * self.columns > 62:
            raise ValueError(f"the lattice has {self}; give 3 or more of each, an even number in all, and at most 62")
        if self.diagonals not in (1, 2):
            raise ValueError(f"diagonals is {self.diagonals}; give 1 (triangular) or 2 (square)")

    def __str__(self) -> str:
        return f"{self.rows} × {self.columns} sites"

    @property
    def sites(self) -> int:
        return self.rows * self.columns

    def moved(self, row: np.ndarray, column: np.ndarray) -> np.ndarray:
        """The number of the site at any row and column, periodically."""
        return row % self.rows * self.columns + column % self.columns

    def bonds(self, j2: float) -> tuple[np.ndarray, np.ndarray]:
        """Pairs of sites, (bonds, 2), and their couplings, (bonds,)."""
        row, column = np.divmod(np.arange(self.sites), self.columns)
        steps = [(0, 1, 1.0), (1, 0, 1.0), (1, 1, j2), (1, -1, j2)][: 2 + self.diagonals]
        pairs = [np.stack([self.moved(row, column), self.moved(row + a, column + b)], 1) for a, b, _ in steps]
        return np.concatenate(pairs), np.repeat([j for *_, j in steps], self.sites)

    @property
    def generators(self) -> dict[str, np.ndarray]:
        """By name, where the spin of each site comes from, (sites,), of what generates the lattice's symmetries."""
        row, column = np.divmod(np.arange(self.sites), self.columns)
        found = {"row translation": self.moved(row - 1, column), "column translation": self.moved(row, column - 1)}
        if self.diagonals == 2:
            found |= {"row reflection": self.moved(-row, column), "column reflection": self.moved(row, -column)}
        else:
            found["half turn"] = self.moved(-row, -column)
        if self.rows == self.columns:
            found["transposition"] = self.moved(column, row)
        return found

    @property
    @lru_cache  # noqa: B019  # equal lattices share it
    def group(self) -> SpaceGroup:
        """All symmetries, with the flip of all spins."""
        unit, generators = tuple(range(self.sites)), self.generators
        found, relations, elements = {unit: 0}, {0}, [unit]
        for element in elements:  # to which those that are new are added
            for a, generator in enumerate(generators.values()):
                product, parity = tuple(np.array(element)[generator]), found[element] ^ (1 << a)
                if product not in found:
                    found[product] = parity
                    elements.append(product)
                relations.add(parity ^ found[product])
        names, parities = (*generators, FLIP), np.array(list(found.values()))
        return SpaceGroup(names, np.array(elements), parities, np.array(sorted(relations)))


@dataclass(frozen=True, eq=False)
class SpaceGroup:
    """The elements that permute sites; each can also flip all spins.

    An element's parity has bit a set where it is an odd product of generator a; the last bit is the flip's.
    """

    names: tuple[str, ...]  # of the generators, the flip last
    permutations: np.ndarray  # (order, sites): where the spin of each site comes from
    parities: np.ndarray  # (order,)
    relations: np.ndarray  # parities of products that are the unit: their character has to be 1

    @property
    def order(self) -> int:
        """Flips included."""
        return 2 * len(self.permutations)

    @property
    def _all_up(self) -> np.uint64:
        return np.uint64(2 ** self.permutations.shape[1] - 1)

    @cached_property
    def _tables(self) -> np.ndarray:
        """What becomes of every byte of a configuration, (order / 2, bytes, 256)."""
        sites = self.permutations.shape[1]
        target = np.argsort(self.permutations, 1).astype(np.uint64)  # where the spin of each site goes
        spins = np.pad(np.uint64(1) << target, ((0, 0), (0, -sites % 8))).reshape(len(target), -1, 8)
        bits = np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little")
        return spins @ bits.T.astype(np.uint64)

    def _bytes(self, states: np.ndarray) -> np.ndarray:
        """Those of each configuration, (bytes, count)."""
        shifts = 8 * np.arange(self._tables.shape[1], dtype=np.uint64)
        return (states >> shifts[:, None] & np.uint64(255)).astype(np.intp)

    def images(self, states: np.ndarray, numbers: slice = slice(None)) -> Iterator[tuple[int, np.ndarray]]:
        """For each element, of some permutations, its parity and the images of configurations (count,) uint64."""
        octets, flip = self._bytes(states), 1 << len(self.names) - 1
        for parity, tables in zip(self.parities[numbers], self._tables[numbers], strict=True):
            image = reduce(np.bitwise_or, map(np.take, tables, octets))
            yield int(parity), image
            yield int(parity) ^ flip, image ^ self._all_up

    def image(self, elements: np.ndarray, states: np.ndarray) -> np.ndarray:
        """What element ``elements``, (count,) below `order`, makes of each configuration, (count,)."""
        octets = self._bytes(states)
        image = reduce(np.bitwise_or, (self._tables[elements // 2, i, octet] for i, octet in enumerate(octets)))
        return np.where(elements % 2, image ^ self._all_up, image)

    def representatives(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """The smallest image of each configuration, (count,), and the parity of what leads there."""
        smallest, parities = states.copy(), np.zeros(len(states), np.int64)
        for parity, image in self.images(states):
            smaller = image < smallest
            smallest[smaller], parities[smaller] = image[smaller], parity
        return smallest, parities

    def stabilisers(self, states: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """How many elements leave each configuration as it is, and the set of their parities as bits, (count,)."""
        count, kinds = np.zeros(len(states), np.int64), np.zeros(len(states), np.uint64)
        for parity, image in self.images(states):
            same = image == states
            count += same
            kinds[same] |= np.uint64(1 << parity)
        return count, kinds

    def signs(self, characters: Mapping[str, int]) -> np.ndarray:
        """The character, ±1, of every parity, (2^generators,)."""
        odd = sum(1 << a for a, name in enumerate(self.names) if characters[name] < 0)
        return np.array([1 - 2 * ((parity & odd).bit_count() % 2) for parity in range(1 << len(self.names))])

    def all_characters(self) -> list[dict[str, int]]:
        """Every choice of ±1 for the generators that agrees with the relations among them, the trivial one first."""
        choices = (dict(zip(self.names, c, strict=True)) for c in itertools.product((1, -1), repeat=len(self.names)))
        return [c for c in choices if (self.signs(c)[self.relations] > 0).all()]


@dataclass(frozen=True, eq=False)
class GroundState:
    """A state by one number an orbit."""

    lattice: Lattice
    energy: float  # Pauli units, J1 = 1
    characters: Mapping[str, int]  # ±1 by generator
    representatives: np.ndarray  # (orbits,) uint64, ascending
    coefficients: np.ndarray  # (orbits,): amplitude times the root of the orbit's size; their squares sum to 1

    def signs(self, states: np.ndarray) -> np.ndarray:
        """Signs of amplitudes of configurations (count,); NaN where the amplitude vanishes.

        The state's overall sign is arbitrary. Here the amplitude of the likeliest orbit's representative is positive.
        """
        group = self.lattice.group
        smallest, parities = group.representatives(states)
        row = np.searchsorted(self.representatives, smallest).clip(max=len(self.representatives) - 1)
        c = np.where(self.representatives[row] == smallest, self.coefficients[row], 0.0)
        signs = np.sign(c) * group.signs(self.characters)[parities]
        return np.where(np.abs(c) > NEGLIGIBLE, signs, np.nan)


def _normalised(c: np.ndarray) -> np.ndarray:
    """Coefficients of which the largest is positive."""
    return c * np.sign(c[np.abs(c).argmax()]) / np.linalg.norm(c)


class _Swaps:
    """Where swaps of neighbours lead from representatives (rows,): entries of H off its diagonal, character aside."""

    def __init__(self, lattice: Lattice, j2: float, representatives: np.ndarray) -> None:
        pairs, couplings = lattice.bonds(j2)
        one, (i, j) = np.uint64(1), pairs.astype(np.uint64).T[..., None]
        differ = (representatives >> i ^ representatives >> j) & one == one  # (bonds, rows)
        bond, self.row = differ.nonzero()  # (entries,) the row of the representative that is swapped
        swapped = representatives[self.row] ^ (one << i | one << j)[bond, 0]
        self.reached, self.parity = lattice.group.representatives(swapped)  # (entries,)
        self.strength = 2 * couplings[bond]  # (entries,)
        self.representatives = representatives
        self.diagonal = np.where(differ, -couplings[:, None], couplings[:, None]).sum(0)  # (rows,)
        self.stabilisers, self.kinds = lattice.group.stabilisers(representatives)  # (rows,)


@lru_cache(maxsize=4)
def _orbits(lattice: Lattice) -> np.ndarray:
    """The representatives, ascending, of all configurations with Sz = 0."""
    ones = np.array([byte.bit_count() for byte in range(256)], np.uint8)
    states = np.arange(2 ** (lattice.sites - 1), dtype=np.uint32)  # the flip makes the last spin point down
    states = states[sum(ones[states >> 8 * i & 255] for i in range(4)) == lattice.sites // 2].astype(np.uint64)
    group = lattice.group
    for number in range(len(group.permutations)):  # most are gone after a few
        images = [image for _, image in group.images(states, slice(number, number + 1))]
        states = states[np.minimum(*images) >= states]
    return states


def _hamiltonian(swaps: _Swaps, group: SpaceGroup, characters: Mapping[str, int]) -> tuple[np.ndarray, Any]:
    """The representatives of orbits that these characters do not make vanish, and H among them, sparse."""
    from scipy.sparse import csr_matrix, diags

    signs = group.signs(characters)
    there = swaps.kinds & np.uint64(sum(1 << int(parity) for parity in np.flatnonzero(signs < 0))) == 0
    number, column = np.cumsum(there) - 1, np.searchsorted(swaps.representatives, swaps.reached)
    # A normalised state of an orbit has 1/√size at each of its configurations; sizes are as 1/stabilisers.
    ratio = np.sqrt(swaps.stabilisers[column] / swaps.stabilisers[swaps.row])
    entries = swaps.strength * signs[swaps.parity] * ratio
    kept = there[swaps.row] & there[column]
    places = number[swaps.row[kept]], number[column[kept]]
    diagonal = diags(swaps.diagonal[there], format="csr")
    return swaps.representatives[there], csr_matrix((entries[kept], places), diagonal.shape) + diagonal


def _lowest(matrix: Any, count: int, tolerance: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The lowest eigenvalues, ascending, and their vectors, (rows, count)."""
    from scipy.sparse.linalg import eigsh

    if (rows := matrix.shape[0]) <= SMALL:
        energies, vectors = np.linalg.eigh(matrix.toarray())
        return energies[:count], vectors[:, :count]
    start = np.random.default_rng(0).normal(size=rows)
    energies, vectors = eigsh(matrix, count, which="SA", v0=start, tol=tolerance)
    order = energies.argsort()
    return energies[order], vectors[:, order]


@lru_cache(maxsize=4)
def ground_state(lattice: Lattice, j2: float) -> GroundState:
    """The lowest state with Sz = 0 that every symmetry maps onto itself or its negative.

    A ground state of any other kind, as one with a momentum that is not its own negative, is degenerate, and so has
    no sign structure of its own.

    Raises:
        ValueError: the lattice is too large, or two such states have the lowest energy.
    """
    if lattice.sites > SITES:
        raise ValueError(
            f"{lattice} are too many to be diagonalised here; give at most {SITES}, or read a ground state from a file"
        )
    group, swaps = lattice.group, _Swaps(lattice, j2, _orbits(lattice))
    found: list[tuple[float, dict[str, int]]] = []
    for characters in group.all_characters():
        states, matrix = _hamiltonian(swaps, group, characters)
        if len(states):
            found.append((_lowest(matrix, 1, SCAN)[0][0], characters))
    (_, characters), *others = sorted(found, key=itemgetter(0))
    states, matrix = _hamiltonian(swaps, group, characters)
    energies, vectors = _lowest(matrix, min(2, len(states)))
    gap = min([*energies[1:], *(energy for energy, _ in others)], default=np.inf) - energies[0]
    if gap < 1e-6 * abs(energies[0]):
        raise ValueError(
            f"the ground state of {lattice} with J2/J1 = {j2:g} is degenerate, so its signs are not defined; "
            "change J2/J1 or the lattice"
        )
    return GroundState(lattice, float(energies[0]), characters, states, _normalised(vectors[:, 0]))


@lru_cache(maxsize=1)
def read_ground_state(path: Path, lattice: Lattice, j2: float) -> GroundState:
    """A ground state that was computed elsewhere, from HDF5 in the layout of SpinED (Westerhout et al.).

    ``basis/representatives`` (orbits,) uint64 are the smallest integers of the orbits under all symmetries and the
    flip, ``hamiltonian/eigenvectors`` (orbits, states) or (states, orbits) their coefficients in the orthonormal
    basis of orbits, the ground state first, and ``hamiltonian/eigenvalues`` (states,) the energies, Pauli units.
    The characters are found by what fulfils Hψ = Eψ, row by row, for some hundred of the representatives.

    Raises:
        ValueError: something is not there, or it is no eigenstate of this lattice's H.
    """
    states, coefficients, energy = _read(path)
    rows = np.abs(coefficients).argsort()[::-1][:CHECKED]
    smallest, _ = lattice.group.representatives(states[rows])
    if (smallest != states[rows]).any():
        raise ValueError(
            f"{path.name} has representatives that are not the smallest of their orbits under all symmetries of "
            f"{lattice} and the flip; look at the lattice and the numbers of its sites"
        )
    swaps = _Swaps(lattice, j2, states[rows])
    column = np.searchsorted(states, swaps.reached).clip(max=len(states) - 1)
    there = states[column] == swaps.reached  # the others vanish by symmetry
    ratio = np.sqrt(lattice.group.stabilisers(swaps.reached)[0] / swaps.stabilisers[swaps.row])
    terms = swaps.strength * ratio * coefficients[column] * there
    for characters in lattice.group.all_characters():
        entries = terms * lattice.group.signs(characters)[swaps.parity]
        applied = swaps.diagonal * coefficients[rows] + np.bincount(swaps.row, entries, len(rows))
        residual = np.linalg.norm(applied - energy * coefficients[rows])
        if residual < 1e-5 * abs(energy) * np.linalg.norm(coefficients[rows]):
            return GroundState(lattice, energy, characters, states, _normalised(coefficients))
    raise ValueError(
        f"{path.name} has no eigenstate with energy {energy:g} of {lattice} with J2/J1 = {j2:g} along "
        f"{lattice.diagonals} of the diagonals; look at these, and at the units of energy"
    )


def _read(path: Path) -> tuple[np.ndarray, np.ndarray, float]:
    """Representatives (orbits,), ascending, the ground state's coefficients (orbits,), and its energy."""
    try:
        import h5py
    except ImportError:
        raise ValueError(f"{path.name} needs h5py; pip install 'sibcl_ray[hdf5]'") from None
    try:
        with h5py.File(path, "r") as file:
            states, vectors, energies = (np.asarray(file[name]) for name in DATASETS)
    except (OSError, KeyError) as error:
        raise ValueError(
            f"{path.name} cannot be read ({one_line(error)}); expected HDF5 with {', '.join(DATASETS)}"
        ) from None
    vectors = vectors.reshape(-1, 1) if vectors.ndim == 1 else vectors
    coefficients = vectors[:, 0] if len(vectors) == len(states) else vectors[0]
    if coefficients.shape != states.shape or not np.isfinite(coefficients).all() or not len(states):
        raise ValueError(f"{path.name} has {len(states)} representatives and {vectors.shape} numbers; expected as many")
    order = states.argsort()
    return states[order].astype(np.uint64), coefficients[order].astype(np.float64), float(energies.ravel()[0])
