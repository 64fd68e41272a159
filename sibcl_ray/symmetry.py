"""Groups that act on grids: a whole batch at once, on the batch's own device.

A group draws elements, composes and inverts them, and acts on a batch ``x`` of shape (batch, n, …, n)
with one element per sample. Pixel permutations (translations, point groups) act in one gather.
Actions are left actions: ``act(compose(g, h), x) == act(g, act(h, x))``.
"""

from __future__ import annotations

import itertools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor


class Group(ABC):
    """A group acting sample by sample. Elements of a batch are one tensor, (batch, …)."""

    @abstractmethod
    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        """One random element for each sample of ``x``, uniform over the elements that may act on it."""

    @abstractmethod
    def identity(self, x: Tensor) -> Tensor:
        """The neutral element for each sample of ``x``."""

    @abstractmethod
    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        """The product gh: first h acts, then g."""

    @abstractmethod
    def inverse(self, g: Tensor) -> Tensor:
        """The element that undoes ``g``."""

    @abstractmethod
    def act(self, g: Tensor, x: Tensor) -> Tensor:
        """``g·x``, of the shape of ``x``."""


def _permute(x: Tensor, source: Tensor) -> Tensor:
    """Pixel p of the result is pixel ``source[:, p]`` of ``x``, in row-major order."""
    return x.flatten(1).gather(1, source).view(x.shape)


@dataclass(frozen=True)
class Translations(Group):
    """Periodic translations by whole pixels; an element is an integer shift per axis, (batch, d).

    ``size`` is the period in pixels, equal along all axes.
    """

    size: int
    dimension: int = 2

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        shape = (len(x), self.dimension)
        return torch.randint(self.size, shape, generator=generator, device=x.device)

    def identity(self, x: Tensor) -> Tensor:
        return torch.zeros((len(x), self.dimension), dtype=torch.long, device=x.device)

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        return (g + h) % self.size

    def inverse(self, g: Tensor) -> Tensor:
        return -g % self.size

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        coordinates = (torch.arange(self.size, device=x.device) - g[..., None]) % self.size
        source = coordinates[:, 0]
        for axis in range(1, self.dimension):
            source = (source[:, :, None] * self.size + coordinates[:, axis, None, :]).flatten(1)
        return _permute(x, source)


@lru_cache
def _signed_permutations(dimension: int) -> Tensor:
    """All matrices that map the coordinate axes onto themselves, (order, d, d); the first is the unit."""
    matrices = []
    for axes in itertools.permutations(range(dimension)):
        for signs in itertools.product((1, -1), repeat=dimension):
            matrix = torch.zeros(dimension, dimension, dtype=torch.long)
            matrix[torch.arange(dimension), torch.tensor(axes)] = torch.tensor(signs)
            matrices.append(matrix)
    return torch.stack(matrices)


@lru_cache
def _products(dimension: int) -> Tensor:
    """The multiplication table, (order, order), of the elements' indices."""
    m = _signed_permutations(dimension)
    equal = (torch.einsum("aij,bjk->abik", m, m)[:, :, None] == m).flatten(3).all(-1)
    return equal.long().argmax(-1)


@lru_cache
def _point_group_sources(dimension: int, size: int, device: torch.device) -> Tensor:
    """For each element and pixel the pixel it comes from, (order, size^d).

    Coordinates are doubled and taken from the middle of the grid, so that they stay integers.
    """
    axis = 2 * torch.arange(size) - (size - 1)
    target = torch.stack(torch.meshgrid(*[axis] * dimension, indexing="ij")).flatten(1)
    # R is orthogonal: the pixel R·q comes from q = Rᵀ·p.
    origin = (torch.einsum("gji,jp->gip", _signed_permutations(dimension), target) + size - 1) // 2
    strides = size ** torch.arange(dimension - 1, -1, -1)
    return (origin * strides[:, None]).sum(1).to(device)


@dataclass(frozen=True)
class PointGroup(Group):
    """All rotations and reflections of the square (C4v, 8 elements) or of the cube (Oh, 48).

    An element is its index, (batch,); the fixed point is the middle of the grid.
    """

    dimension: int = 2

    @property
    def order(self) -> int:
        """The number of elements."""
        return len(_signed_permutations(self.dimension))

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randint(self.order, (len(x),), generator=generator, device=x.device)

    def identity(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.long, device=x.device)

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        return _products(self.dimension).to(g.device)[g, h]

    def inverse(self, g: Tensor) -> Tensor:
        return (_products(self.dimension) == 0).long().argmax(1).to(g.device)[g]

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        return _permute(x, _point_group_sources(self.dimension, x.shape[-1], x.device)[g])


@dataclass(frozen=True)
class Scaling(Group):
    """Multiplication by a positive number per sample, (batch,), as far as values stay in [low, high].

    The range makes the action partial: ``draw`` gives, log-uniformly, only factors that keep a
    sample inside it.
    """

    low: float
    high: float

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        values = x.flatten(1)
        smallest = (self.low / values.amin(1)).log()
        largest = (self.high / values.amax(1)).log()
        uniform = torch.rand(len(x), generator=generator, device=x.device, dtype=x.dtype)
        return (smallest + (largest - smallest) * uniform).exp()

    def identity(self, x: Tensor) -> Tensor:
        return x.new_ones(len(x))

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        return g * h

    def inverse(self, g: Tensor) -> Tensor:
        return 1 / g

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        return (x.flatten(1) * g[:, None]).clamp(self.low, self.high).view(x.shape)


def augment(
    x: Tensor, groups: Mapping[str, Group], probabilities: Mapping[str, float], generator: torch.Generator
) -> Tensor:
    """A random view of each sample: each group acts on it with its own probability.

    Args:
        x: batch of inputs, (batch, n, …, n).
        groups: the symmetries by name, applied in this order.
        probabilities: for each name the chance, in [0, 1], that a drawn element acts; 0 if absent.
        generator: source of all randomness, on the device of ``x``.
    """
    for name, group in groups.items():
        probability = probabilities.get(name, 0.0)
        if probability <= 0:
            continue
        chosen = torch.rand(len(x), generator=generator, device=x.device) < probability
        g, e = group.draw(x, generator), group.identity(x)
        x = group.act(torch.where(chosen.view(-1, *[1] * (g.ndim - 1)), g, e), x)
    return x
