"""Ground states of frustrated spin-½ magnets by exact diagonalisation in the basis of symmetry orbits.

H = Σ_near σ·σ + J2 Σ_far σ·σ in Pauli units (S = σ/2) on a periodic lattice of rows × columns sites, total Sz = 0.
A configuration is an integer whose bit i is set where the spin of site i = row · columns + column is up.

Translations, the lattice's point group and the flip of all spins commute with H. A state that each of them maps
onto itself or its negative, by its *character* ±1, is known from one amplitude an orbit, that of its
*representative*, the smallest integer in it: ψ(g·r) = χ(g) ψ(r). As σ·σ = 2P − 1, where P swaps two spins,
H needs for each representative only where its swaps lead. That table is made once; every set of characters then
costs one sparse matrix of some 15,000 rows for 24 sites, where all states with Sz = 0 are 2.7 million.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property, lru_cache
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
    """Periodic rows × columns sites; near neighbours along the axes, far ones along one diagonal or both.

    One diagonal is the anisotropic triangular lattice, two are the square lattice with next-nearest neighbours.
    """

    rows: int
    columns: int
    diagonals: int

    def __post_init__(self) -> None:
        # Two rows would join the same two sites by two bonds.
        if self.rows < 3 or self.columns < 3 or self.rows * self.columns % 2 or self.rows * self.columns > 62:
            raise ValueError(
                f"the lattice has {self.rows} × {self.columns} sites; give 3 or more of each, an even number in all, "
                "and at most 62"
            )
        if self.diagonals not in (1, 2):
            raise ValueError(f"diagonals is {self.diagonals}; give 1 (triangular) or 2 (square)")

    @property
    def sites(self) -> int:
        """Their number."""
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

    @cached_property
    def group(self) -> SpaceGroup:
        """All symmetries, with the flip of all spins."""
        return _space_group(self)


@dataclass(frozen=True, eq=False)
class SpaceGroup:
    """The elements that permute sites; each can also flip all spins.

    An element's ``parity`` has bit a set where it is an odd product of generator a; the last bit is the flip's.
    So any characters of the generators give its own.
    """

    names: tuple[str, ...]  # of the generators, the flip last
    permutations: np.ndarray  # (order, sites): where the spin of each site comes from
    parities: np.ndarray  # (order,)
    relations: np.ndarray  # parities of products that are the unit: their character has to be 1

    @property
    def order(self) -> int:
        """The number of elements, flips included."""
        return 2 * len(self.permutations)

    @cached_property
    def tables(self) -> np.ndarray:
        """The images of every byte of a configuration, (order / 2, bytes, 256)."""
        sites = self.permutations.shape[1]
        target = np.argsort(self.permutations, 1)  # where the spin of each site goes
        tables = np.zeros((len(target), -(-sites // 8), 256), np.uint64)
        values = np.arange(256)
        for site in range(sites):
            bit = (values >> site % 8 & 1).astype(np.uint64)
            tables[:, site // 8] |= bit << target[:, site, None].astype(np.uint64)
        return tables

    def images(self, states: np.ndarray) -> Iterator[tuple[int, np.ndarray]]:
        """Of configurations (count,) uint64, the parity of each element and what it makes of them."""
        sites = self.permutations.shape[1]
        octets = [_octet(states, i) for i in range(-(-sites // 8))]
        everything, flip = np.uint64(2**sites - 1), 1 << len(self.names) - 1
        for parity, tables in zip(self.parities, self.tables, strict=True):
            image = tables[0][octets[0]]
            for table, octet in zip(tables[1:], octets[1:], strict=True):
                image |= table[octet]
            yield int(parity), image
            yield int(parity) ^ flip, image ^ everything

    def image(self, elements: np.ndarray, states: np.ndarray) -> np.ndarray:
        """What element ``elements``, (count,) below `order`, makes of each configuration, (count,)."""
        image = np.zeros_like(states)
        for i in range(self.tables.shape[1]):
            image |= self.tables[elements // 2, i, _octet(states, i)]
        return np.where(elements % 2, image ^ np.uint64(2 ** self.permutations.shape[1] - 1), image)

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


def _octet(states: np.ndarray, number: int) -> np.ndarray:
    """A byte of each configuration."""
    return (states >> np.uint64(8 * number) & np.uint64(255)).astype(np.intp)


@lru_cache
def _space_group(lattice: Lattice) -> SpaceGroup:
    generators = lattice.generators
    unit = tuple(range(lattice.sites))
    found, relations, new = {unit: 0}, {0}, [unit]
    while new:
        reached, new = new, []
        for element in reached:
            for a, generator in enumerate(generators.values()):
                product = tuple(np.array(element)[generator])
                parity = found[element] ^ (1 << a)
                if product in found:
                    relations.add(parity ^ found[product])
                else:
                    found[product] = parity
                    new.append(product)
    names = (*generators, FLIP)
    return SpaceGroup(names, np.array(list(found)), np.array(list(found.values())), np.array(sorted(relations)))


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


def _with_sign(
    lattice: Lattice, energy: float, characters: Mapping[str, int], representatives: np.ndarray, c: np.ndarray
) -> GroundState:
    c = c * np.sign(c[np.abs(c).argmax()]) / np.linalg.norm(c)
    return GroundState(lattice, float(energy), characters, representatives, c)


@dataclass(frozen=True, eq=False)
class _Swaps:
    """Where swaps of neighbours lead from representatives: entries of H that are not diagonal, character aside."""

    representatives: np.ndarray  # (rows,)
    diagonal: np.ndarray  # (rows,)
    row: np.ndarray  # (entries,) of the representative that is swapped
    reached: np.ndarray  # (entries,) the representative of what comes out
    parity: np.ndarray  # (entries,) of what leads there
    strength: np.ndarray  # (entries,)
    stabilisers: tuple[np.ndarray, np.ndarray]  # of the representatives, as `SpaceGroup.stabilisers` gives them


def _swaps(lattice: Lattice, j2: float, representatives: np.ndarray) -> _Swaps:
    pairs, couplings = lattice.bonds(j2)
    one = np.uint64(1)
    diagonal = np.zeros(len(representatives))
    rows, states, strengths = [], [], []
    for (i, j), coupling in zip(pairs.astype(np.uint64), couplings, strict=True):
        differ = (representatives >> i ^ representatives >> j) & one == one
        diagonal += np.where(differ, -coupling, coupling)
        rows.append(np.flatnonzero(differ))
        states.append(representatives[differ] ^ (one << i | one << j))
        strengths.append(np.full(len(rows[-1]), 2 * coupling))
    reached, parity = lattice.group.representatives(np.concatenate(states))
    fixed = lattice.group.stabilisers(representatives)
    return _Swaps(representatives, diagonal, np.concatenate(rows), reached, parity, np.concatenate(strengths), fixed)


@lru_cache(maxsize=4)
def _orbits(lattice: Lattice) -> np.ndarray:
    """The representatives, ascending, of all configurations with Sz = 0."""
    ones = np.array([byte.bit_count() for byte in range(256)], np.uint8)
    states = np.arange(2 ** (lattice.sites - 1), dtype=np.uint32)  # the flip makes the last spin point down
    states = states[sum(ones[states >> 8 * i & 255] for i in range(4)) == lattice.sites // 2].astype(np.uint64)
    group = lattice.group
    for element in range(len(group.permutations)):  # most are gone after a few
        one = SpaceGroup(group.names, group.permutations[[element]], group.parities[[element]], group.relations)
        images = [image for _, image in one.images(states)]
        states = states[np.minimum(*images) >= states]
    return states


def _hamiltonian(swaps: _Swaps, group: SpaceGroup, characters: Mapping[str, int]) -> tuple[np.ndarray, Any]:
    """The representatives of orbits that these characters do not make vanish, and H among them, sparse."""
    from scipy.sparse import csr_matrix

    signs = group.signs(characters)
    stabilisers, kinds = swaps.stabilisers
    there = kinds & np.uint64(sum(1 << int(parity) for parity in np.flatnonzero(signs < 0))) == 0
    number = np.where(there, np.cumsum(there) - 1, -1)
    column = np.searchsorted(swaps.representatives, swaps.reached)
    # A normalised state of an orbit has 1/√size at each of its configurations; sizes are as 1/stabilisers.
    ratio = np.sqrt(stabilisers[column] / stabilisers[swaps.row])
    entries = swaps.strength * signs[swaps.parity] * ratio
    kept = there[swaps.row] & there[column]
    shape = (int(there.sum()),) * 2
    off = csr_matrix((entries[kept], (number[swaps.row[kept]], number[column[kept]])), shape)
    diagonal = csr_matrix((swaps.diagonal[there], (np.arange(shape[0]),) * 2), shape)
    return swaps.representatives[there], off + diagonal


def _lowest(matrix: Any, count: int, tolerance: float = 0.0) -> tuple[np.ndarray, np.ndarray]:
    """The lowest eigenvalues, ascending, and their vectors, (rows, count)."""
    from scipy.sparse.linalg import eigsh

    rows = matrix.shape[0]
    if rows <= SMALL:
        energies, vectors = np.linalg.eigh(matrix.toarray())
        return energies[:count], vectors[:, :count]
    start = np.random.default_rng(0).normal(size=rows)
    energies, vectors = eigsh(matrix, count, which="SA", v0=start, tol=tolerance)
    order = energies.argsort()
    return energies[order], vectors[:, order]


@lru_cache(maxsize=4)
def ground_state(lattice: Lattice, j2: float) -> GroundState:
    """The lowest state with Sz = 0 that every symmetry maps onto itself or its negative; kept for the next call.

    All choices of characters are tried. A ground state of any other kind, as one with a momentum that is not
    its own negative, is degenerate, and so has no sign structure of its own.

    Raises:
        ValueError: the lattice is too large, or two such states have the lowest energy.
    """
    if lattice.sites > SITES:
        raise ValueError(
            f"{lattice.rows} × {lattice.columns} sites are too many to be diagonalised here; give at most {SITES}, "
            "or read a ground state from a file"
        )
    group, swaps = lattice.group, _swaps(lattice, j2, _orbits(lattice))
    found: list[tuple[float, int, dict[str, int]]] = []
    for characters in group.all_characters():
        states, matrix = _hamiltonian(swaps, group, characters)
        if len(states):
            found.append((_lowest(matrix, 1, SCAN)[0][0], len(found), characters))
    (_, _, characters), *others = sorted(found)
    states, matrix = _hamiltonian(swaps, group, characters)
    energies, vectors = _lowest(matrix, min(2, len(states)))
    gap = min([*energies[1:], *(energy for energy, *_ in others)], default=np.inf) - energies[0]
    if gap < 1e-6 * abs(energies[0]):
        raise ValueError(
            f"the ground state of {lattice.rows} × {lattice.columns} sites with J2/J1 = {j2:g} is degenerate, so its "
            "signs are not defined; change J2/J1 or the lattice"
        )
    return _with_sign(lattice, energies[0], characters, states, vectors[:, 0])


@lru_cache(maxsize=1)
def read_ground_state(path: Path, lattice: Lattice, j2: float) -> GroundState:
    """A ground state that was computed elsewhere, from HDF5 in the layout of SpinED (Westerhout et al.).

    ``basis/representatives`` (orbits,) uint64 are the smallest integers of the orbits under all symmetries and the
    flip, ``hamiltonian/eigenvectors`` (orbits, states) or (states, orbits) their coefficients in the orthonormal
    basis of orbits, the ground state first, and ``hamiltonian/eigenvalues`` (states,) the energies, Pauli units.
    The characters are found by what fulfils Hψ = Eψ, row by row, for some hundred of the representatives.

    Raises:
        ValueError: something is not there, or it is no eigenstate of this lattice's H; says what to look at.
    """
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
    states, coefficients = states[order].astype(np.uint64), coefficients[order].astype(np.float64)
    rows = np.abs(coefficients).argsort()[::-1][:CHECKED]
    smallest, _ = lattice.group.representatives(states[rows])
    if (smallest != states[rows]).any():
        raise ValueError(
            f"{path.name} has representatives that are not the smallest of their orbits under all symmetries of "
            f"{lattice.rows} × {lattice.columns} sites and the flip; look at the lattice and the numbers of its sites"
        )
    energy, characters = float(energies.ravel()[0]), None
    swaps = _swaps(lattice, j2, states[rows])
    column = np.searchsorted(states, swaps.reached).clip(max=len(states) - 1)
    there = states[column] == swaps.reached  # the others vanish by symmetry
    here = swaps.stabilisers[0][swaps.row]
    ratio = np.sqrt(lattice.group.stabilisers(swaps.reached)[0] / here)
    terms = swaps.strength * ratio * coefficients[column] * there
    for candidate in lattice.group.all_characters():
        entries = terms * lattice.group.signs(candidate)[swaps.parity]
        applied = swaps.diagonal * coefficients[rows] + np.bincount(swaps.row, entries, len(rows))
        residual = np.linalg.norm(applied - energy * coefficients[rows])
        if residual < 1e-5 * abs(energy) * np.linalg.norm(coefficients[rows]):
            characters = candidate
            break
    if characters is None:
        raise ValueError(
            f"{path.name} has no eigenstate with energy {energy:g} of {lattice.rows} × {lattice.columns} sites with "
            f"J2/J1 = {j2:g} along {lattice.diagonals} of the diagonals; look at these, and at the units of energy"
        )
    return _with_sign(lattice, energy, characters, states, coefficients)
