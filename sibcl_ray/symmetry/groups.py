"""Groups that act on grids: a whole batch at once, on the batch's own device.

A group draws elements, composes and inverts them, and acts on a batch ``x`` of shape (batch, *grid)
with one element per sample. Actions are left actions: ``act(compose(g, h), x) == act(g, act(h, x))``.

Translations and point groups move pixels axis by axis: the pixel that comes to p is read from
Σ_a source[a][p_a], in row-major order. So any product of them is known from d short tables per sample, and
a whole batch moves in one gather.
"""

from __future__ import annotations

import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from sibcl_ray.isolation import guard


class Group(ABC):
    """A group acting sample by sample. Elements of a batch are one tensor, (batch, …)."""

    def __init_subclass__(cls, **arguments: Any) -> None:
        super().__init_subclass__(**arguments)
        guard(cls, ("draw", "identity", "compose", "inverse", "act"))

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

    @property
    def shifted_axes(self) -> tuple[int, ...]:
        """The axes of an input, -1 the last, along which its elements are all the periodic shifts; none of others."""
        return ()


class NumberedGroup(Group):
    """A finite group; an element is its number, (batch,), and 0 is neutral."""

    @property
    @abstractmethod
    def order(self) -> int:
        """The number of elements."""

    @abstractmethod
    def products(self, device: torch.device) -> Tensor:
        """The multiplication table, (order, order)."""

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return torch.randint(self.order, (len(x),), generator=generator, device=x.device)

    def identity(self, x: Tensor) -> Tensor:
        return torch.zeros(len(x), dtype=torch.long, device=x.device)

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        return self.products(g.device)[g, h]

    def inverse(self, g: Tensor) -> Tensor:
        return (self.products(g.device) == 0).long().argmax(1)[g]


Pixels = tuple[Tensor, ...]  # where pixels come from: for each axis a table (batch, n)


class GridGroup(Group):
    """A group that permutes pixels axis by axis."""

    @abstractmethod
    def pull(self, g: Tensor, source: Pixels) -> Pixels:
        """Where pixels come from after g has moved an image whose pixels come from ``source``."""

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        return _read(x, self.pull(g, _own_pixels(x)))


def _own_pixels(x: Tensor) -> Pixels:
    """The source of an image that has not been moved."""
    tables = (math.prod(x.shape[a + 1 :]) * torch.arange(n, device=x.device) for a, n in enumerate(x.shape[1:], 1))
    return tuple(table.expand(len(x), -1) for table in tables)


def _read(x: Tensor, source: Pixels) -> Tensor:
    """The image, like ``x``, whose pixels come from ``source``."""
    pixels = x[0].numel()
    narrow = torch.int32 if x.numel() < 2**31 else torch.int64  # the sums below are bound by memory
    first = torch.arange(0, x.numel(), pixels, device=x.device)[:, None]
    index = (source[0] + first).to(narrow)
    for axis in source[1:]:
        index = (index[:, :, None] + axis.to(narrow)[:, None]).flatten(1)
    return x.reshape(-1).index_select(0, index.flatten()).view(x.shape)


@dataclass(frozen=True)
class Translations(GridGroup):
    """Periodic translations by whole pixels; an element is an integer shift per axis, (batch, d).

    ``size`` is the period in pixels: one number for all of ``dimension`` axes, or a tuple with one for each axis,
    None where nothing is moved, as in ``Translations((None, 64))``.
    """

    size: int | tuple[int | None, ...]
    dimension: int = 2

    def __post_init__(self) -> None:
        if isinstance(self.size, tuple):
            object.__setattr__(self, "dimension", len(self.size))

    @property
    def _periods(self) -> tuple[int | None, ...]:
        return self.size if isinstance(self.size, tuple) else (self.size,) * self.dimension

    @property
    def shifted_axes(self) -> tuple[int, ...]:
        return tuple(axis - self.dimension for axis, period in enumerate(self._periods) if period)

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        if isinstance(self.size, int):
            return torch.randint(self.size, (len(x), self.dimension), generator=generator, device=x.device)
        shifts = [torch.randint(n or 1, (len(x),), generator=generator, device=x.device) for n in self.size]
        return torch.stack(shifts, 1)

    def identity(self, x: Tensor) -> Tensor:
        return torch.zeros((len(x), self.dimension), dtype=torch.long, device=x.device)

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        return (g + h) % g.new_tensor([period or 1 for period in self._periods])

    def inverse(self, g: Tensor) -> Tensor:
        return -g % g.new_tensor([period or 1 for period in self._periods])

    def pull(self, g: Tensor, source: Pixels) -> Pixels:
        def shifted(table: Tensor, period: int | None, shift: Tensor) -> Tensor:
            return table.gather(1, (torch.arange(period, device=g.device) - shift) % period) if period else table

        return tuple(map(shifted, source, self._periods, g.split(1, 1)))


@lru_cache
def _signed_permutations(kinds: tuple[int, ...], device: torch.device) -> tuple[Tensor, Tensor]:
    """All matrices that map the coordinate axes onto themselves, the unit first, each axis onto one of its kind.

    For each row the column, and the sign, of its one entry; both (order, d).
    """
    columns = [c for c in itertools.permutations(range(len(kinds))) if tuple(kinds[a] for a in c) == kinds]
    signs = list(itertools.product((1, -1), repeat=len(kinds)))
    pairs = torch.tensor(list(itertools.product(columns, signs)), device=device)
    return pairs[:, 0], pairs[:, 1]


@lru_cache
def _products(kinds: tuple[int, ...], device: torch.device) -> Tensor:
    columns, signs = _signed_permutations(kinds, torch.device("cpu"))
    m = torch.eye(len(kinds), dtype=torch.long)[columns] * signs[..., None]
    equal = ((m[:, None] @ m)[:, :, None] == m).flatten(3).all(-1)
    return equal.long().argmax(-1).to(device)


@dataclass(frozen=True)
class PointGroup(NumberedGroup, GridGroup):
    """All rotations and reflections of a grid about its middle.

    Of a line (2 elements), the square (C4v, 8) or the cube (Oh, 48) if ``dimension`` is a number; if it is a tuple, of
    a rectangle or box with sides of these lengths: all are reflected, and equal ones exchanged.
    """

    dimension: int | tuple[int, ...] = 2

    @property
    def _kinds(self) -> tuple[int, ...]:
        """For each axis a number; axes of the same number are exchanged."""
        return self.dimension if isinstance(self.dimension, tuple) else (0,) * self.dimension

    @property
    def order(self) -> int:
        return len(_signed_permutations(self._kinds, torch.device("cpu"))[0])

    def products(self, device: torch.device) -> Tensor:
        return _products(self._kinds, device)

    def pull(self, g: Tensor, source: Pixels) -> Pixels:
        # Pixel p comes from q = Rᵀp: row b of R, with its entry ±1 in column a, says q_a = ±p_b.
        columns, signs = (table[g] for table in _signed_permutations(self._kinds, g.device))
        moved = []
        for b, table in enumerate(source):
            for a, kind in enumerate(self._kinds):
                if a != b and kind == self._kinds[b]:
                    table = torch.where(columns[:, b, None] == a, source[a], table)
            moved.append(torch.where(signs[:, b, None] < 0, table.flip(1), table))
        return tuple(moved)


@dataclass(frozen=True)
class EachChannel(Group):
    """A group of grids that acts alike on every channel of ``x``, (batch, channels, *grid)."""

    group: Group

    @property
    def shifted_axes(self) -> tuple[int, ...]:
        return self.group.shifted_axes

    def draw(self, x: Tensor, generator: torch.Generator) -> Tensor:
        return self.group.draw(x[:, 0], generator)

    def identity(self, x: Tensor) -> Tensor:
        return self.group.identity(x[:, 0])

    def compose(self, g: Tensor, h: Tensor) -> Tensor:
        return self.group.compose(g, h)

    def inverse(self, g: Tensor) -> Tensor:
        return self.group.inverse(g)

    def act(self, g: Tensor, x: Tensor) -> Tensor:
        return self.group.act(g.repeat_interleave(x.shape[1], 0), x.flatten(0, 1)).view(x.shape)


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


@dataclass(frozen=True)
class Equivariance:
    """A group under which the label is not invariant but moves along: solve(g·x) = g·solve(x).

    ``on_labels`` is its action on labels: it takes elements (batch, …) and labels (batch, *label_shape), and is
    linear in the labels.
    """

    group: Group
    on_labels: Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Moves:
    """Elements that have acted on a batch of inputs, one after the other, for its labels to follow."""

    steps: tuple[tuple[Equivariance, Tensor], ...] = ()

    def forth(self, labels: Tensor) -> Tensor:
        """The labels of the moved inputs from those, (batch, *label_shape), of the inputs as they were."""
        for equivariance, g in self.steps:
            labels = equivariance.on_labels(g, labels)
        return labels

    def back(self, labels: Tensor) -> Tensor:
        """The labels of the inputs as they were from those of the moved ones."""
        for equivariance, g in reversed(self.steps):
            labels = equivariance.on_labels(equivariance.group.inverse(g), labels)
        return labels


def augment(
    x: Tensor, groups: Mapping[str, Group], probabilities: Mapping[str, float], generator: torch.Generator
) -> Tensor:
    """A random view of each sample, as `augment_labelled` without equivariances."""
    return augment_labelled(x, groups, {}, probabilities, generator)[0]


def augment_labelled(
    x: Tensor,
    groups: Mapping[str, Group],
    equivariances: Mapping[str, Equivariance],
    probabilities: Mapping[str, float],
    generator: torch.Generator,
) -> tuple[Tensor, Moves]:
    """A random view of each sample, and what becomes of its label: each group acts with its own probability.

    Args:
        x: batch of inputs, (batch, *input_shape).
        groups: the symmetries by name, applied in this order.
        equivariances: those by name, applied after the symmetries.
        probabilities: for each name the chance, in [0, 1], that a drawn element acts; 0 if absent.
        generator: source of all randomness, on the device of ``x``.

    Raises:
        ValueError: a probability is given for a symmetry that is not there.
    """
    if unknown := sorted(set(probabilities) - {*groups, *equivariances}):
        raise ValueError(f"there is no symmetry {unknown[0]!r}; known are {', '.join([*groups, *equivariances])}")
    source: Pixels | None = None  # where pixels that have been moved, but not yet read, come from
    steps: list[tuple[Equivariance, Tensor]] = []
    every: list[tuple[str, Group | Equivariance]] = [*groups.items(), *equivariances.items()]
    for name, moving in every:
        probability = probabilities.get(name, 0.0)
        if probability <= 0:
            continue
        group = moving.group if isinstance(moving, Equivariance) else moving
        if source is not None and not isinstance(moving, GridGroup):
            x, source = _read(x, source), None
        chosen = torch.rand(len(x), generator=generator, device=x.device) < probability
        drawn, identity = group.draw(x, generator), group.identity(x)
        g = torch.where(chosen.view(-1, *[1] * (drawn.ndim - 1)), drawn, identity)
        if isinstance(moving, GridGroup):
            source = moving.pull(g, _own_pixels(x) if source is None else source)
        else:
            x = group.act(g, x)
        if isinstance(moving, Equivariance):
            steps.append((moving, g))
    return x if source is None else _read(x, source), Moves(tuple(steps))
