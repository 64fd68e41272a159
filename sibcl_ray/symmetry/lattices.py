"""Point groups of any lattice: hexagonal, rectangular, oblique, or in three dimensions."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from torch import Tensor

from sibcl_ray.symmetry.groups import NumberedGroup

Matrix = tuple[tuple[int, ...], ...]
LARGEST = 48  # order of a lattice's point group in up to three dimensions, at most


@dataclass(frozen=True)
class LatticePointGroup(NumberedGroup):
    """Rotations and reflections of a lattice, for periodic images sampled along its lattice vectors a_1, …, a_d.

    Pixel p of an image of n pixels along each axis is at Σ_j p_j a_j / n. A rotation or reflection R of the lattice
    maps lattice vectors onto lattice vectors, R a_j = Σ_i M_ij a_i, where M has whole numbers. So it maps pixel p onto
    pixel M p modulo n, and pixel 0 onto itself. ``generators`` are such matrices, by rows, and the group consists of
    all their products: ``(((0, -1), (1, 1)), ((0, 1), (1, 0)))`` makes the twelve elements of C6v if the angle between
    a_1 and a_2 is 60°, ``(((0, -1), (1, 0)),)`` the four rotations of a square. Channels, axes between the batch and
    the image, move together.
    """

    generators: tuple[Matrix, ...]

    def __post_init__(self) -> None:
        given = np.array(self.generators, dtype=object)
        whole = all(isinstance(number, int) for number in given.flat)
        if not whole or given.shape[1:] not in ((1, 1), (2, 2), (3, 3)):
            raise ValueError(
                f"generators are {self.generators}; give square matrices of whole numbers, such as ((0, -1), (1, 1))"
            )
        _elements(self.generators)  # checks the rest

    @property
    def order(self) -> int:
        return len(_elements(self.generators))

    def products(self, device: torch.device) -> Tensor:
        return _products(self.generators, device)

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        d = len(self.generators[0])
        if x.ndim <= d:
            raise ValueError(f"inputs have {x.ndim - 1} axes, and the generators are {d} × {d} matrices; give as many")
        source = _sources(self.generators, tuple(x.shape[-d:]), x.device)[g]
        pixels = x.reshape(len(x), -1, source.shape[1])
        return pixels.gather(2, source[:, None].expand_as(pixels)).view(x.shape)


@lru_cache
def _elements(generators: tuple[Matrix, ...]) -> np.ndarray:
    """All products of the matrices, (order, d, d), the unit first."""
    found = [np.eye(len(generators[0]), dtype=int).tolist()]
    for element in found:  # grows meanwhile
        for generator in generators:
            product = (np.array(generator) @ element).tolist()
            if product not in found:
                found.append(product)
        if len(found) > LARGEST or abs(round(np.linalg.det(element))) != 1:
            raise ValueError(
                f"generators are {generators}, which are no rotations and reflections of one lattice; column j of each "
                "matrix is what becomes of lattice vector j, in lattice vectors"
            )
    return np.array(found)


@lru_cache
def _products(generators: tuple[Matrix, ...], device: torch.device) -> Tensor:
    matrices = _elements(generators)
    equal = ((matrices[:, None] @ matrices)[:, :, None] == matrices).all((-2, -1))
    return torch.from_numpy(equal.argmax(-1)).to(device)


@lru_cache
def _sources(generators: tuple[Matrix, ...], grid: tuple[int, ...], device: torch.device) -> Tensor:
    """The pixel, in row-major order, that each pixel's value comes from, (order, pixels)."""
    size = np.array(grid)
    matrices = _elements(generators) * size[:, None]  # of pixels: n_i M_ij / n_j
    if (matrices % size).any():
        raise ValueError(
            f"inputs have {' × '.join(map(str, grid))} pixels, which the point group does not map onto each other; "
            "sample as many along lattice vectors that it exchanges"
        )
    pixels = np.indices(grid).reshape(len(grid), -1)
    places = (matrices // size @ pixels) % size[:, None]
    return torch.from_numpy(np.ravel_multi_index(tuple(places.swapaxes(0, 1)), grid).argsort(1)).to(device)
