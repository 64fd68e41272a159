"""Which inputs are equal up to a symmetry.

By max filtering (Cahill, Iverson, Mixon & Packer, "Group-invariant max filtering", 2022): for a template r, the largest
⟨r, g·x⟩ over the elements g of a finite group is the same for all g·x, changes little where x does, and for almost
every r differs between inputs that no element turns into each other. The form of an input is sixteen such numbers, for
templates of independent normal entries. Inputs count as equal where all sixteen agree within `TOLERANCE`.

They are numbers of x over its norm, with the logarithm of the norm; where no symmetry mixes the channels (the first
axis of three or more), of each channel over its own. Inputs nearer than 2e-7 of the norm (of channels the root mean
square), such as one number rounded twice to float32, are found equal; those further apart than 1e-5 are not, but for a
chance below one in a million.

Elements are found by what drawn ones, one after the other, make of an image of random numbers, until nothing new comes
out: of all groups of a problem together. Periodic shifts would be too many; the largest ⟨r, t·x⟩ over all shifts t
comes from a Fourier transform.
"""

from __future__ import annotations

import math
import pickle
from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from sibcl_ray.symmetry import Group, Scaling

TOLERANCE = 1e-6  # of each number of a form
NUMBERS = 16  # of a form

MOST_ELEMENTS = 1024  # besides shifts
MOST_VALUES = 2**27  # of all images of an input
AT_ONCE = 2**17  # values of images that are held together, for a cache, unless those of one input are more


def forms(x: np.ndarray | Tensor, groups: Mapping[str, Group]) -> np.ndarray:
    """What inputs (count, *shape), of any real type, have in common with all that groups make of them, and no others.

    Groups are given in the order in which they are applied: a problem's symmetries and the groups of its equivariances.
    Forms are (count, `NUMBERS`) float64, for `shared` and `repeated`; not finite where an input is not.
    """
    return orbits_of(groups, tuple(x.shape[1:])).forms(x)


def unchecked(groups: Mapping[str, Group], shape: tuple[int, ...]) -> list[str]:
    """The names of groups of which forms of inputs (*shape) take no account: their elements may be too many."""
    return list(orbits_of(groups, shape).unchecked)


def shared(forms: np.ndarray, others: np.ndarray) -> np.ndarray:
    """The rows of ``forms``, ascending, that agree with one of ``others``."""
    return np.flatnonzero(twins(forms, others) >= 0)


def twins(forms: np.ndarray, others: np.ndarray) -> np.ndarray:
    """For each of ``forms`` the row of one of ``others`` that it agrees with, (count,); -1 where there is none."""
    found = np.full(len(forms), -1)
    mine = np.flatnonzero(_neighbours(forms, others))
    theirs = np.flatnonzero(_neighbours(others, forms))
    if len(mine):
        values, _, which = _distinct(forms[mine])
        known, rows, _ = _distinct(others[theirs])
        from scipy.spatial import KDTree  # takes a while

        _, near = KDTree(known).query(values, p=np.inf, distance_upper_bound=TOLERANCE)
        found[mine] = np.append(theirs[rows], -1)[near][which]
    return found


def repeated(forms: np.ndarray) -> np.ndarray:
    """The rows to leave out so that none agree, (count, 2): an earlier one that each agrees with, and it; ascending."""
    rows = np.flatnonzero(_neighbours(forms, forms) > 1)
    if not len(rows):
        return np.zeros((0, 2), int)
    values, first, which = _distinct(forms[rows])
    from scipy.spatial import KDTree

    tree, earliest = KDTree(values), first.copy()
    _, near = tree.query(values, k=2, p=np.inf, distance_upper_bound=TOLERANCE)
    for number in sorted(np.flatnonzero(near[:, 1] < len(values)), key=first.__getitem__):
        if earliest[number] == first[number]:
            others = tree.query_ball_point(values[number], TOLERANCE, p=np.inf)
            earliest[others] = np.minimum(earliest[others], first[number])
    earlier = earliest[which]
    later = np.flatnonzero(earlier != np.arange(len(rows)))
    return np.stack([rows[earlier[later]], rows[later]], 1)


def _neighbours(forms: np.ndarray, others: np.ndarray) -> np.ndarray:
    """How many of ``others`` agree with each of ``forms`` in the first number, (count,): all but a few are settled."""
    ordered = np.sort(others[np.isfinite(others).all(1), 0])
    found = np.searchsorted(ordered, forms[:, 0] + TOLERANCE, "right")
    found -= np.searchsorted(ordered, forms[:, 0] - TOLERANCE, "left")
    return np.where(np.isfinite(forms).all(1), found, 0)


def _distinct(forms: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Forms that differ by more than rounding: themselves, the first row of each, and for each row which it is.

    With many equal ones a tree would be slow.
    """
    coarse = np.round(forms / (TOLERANCE / 1000))
    _, rows, which = np.unique(coarse, axis=0, return_index=True, return_inverse=True)
    return forms[rows], rows, which.reshape(-1)


def orbits_of(groups: Mapping[str, Group], shape: tuple[int, ...]) -> Orbits:
    """The orbits of inputs of a shape; kept for the next call, by what the groups are, if that can be told."""
    named = tuple(groups.items())
    try:
        key = pickle.dumps(named), shape
    except Exception:  # a class that is not importable, or any error of pickling a user's object
        return Orbits(named, shape)
    if key not in _KEPT:
        _KEPT.clear()
        _KEPT[key] = Orbits(named, shape)
    return _KEPT[key]


_KEPT: dict[tuple[bytes, tuple[int, ...]], Orbits] = {}


def _act(group: Group, elements: Tensor, images: Tensor) -> Tensor:
    """Images (count, *shape) moved by one element each, (count, …), or all by one; they stay as they are."""
    elements = elements if len(elements) == len(images) else elements.repeat_interleave(len(images), 0)
    return group.act(elements, images.clone()).to(images).view_as(images)


@dataclass(frozen=True)
class _Step:
    """An element of a group, (1, …), that acts on the image of number ``parent``."""

    parent: int
    group: Group
    element: Tensor


@dataclass(frozen=True)
class _Elements:
    """Different products of drawn elements, by what they make of a probe."""

    images: Tensor  # (order, *shape), first the probe itself
    keys: np.ndarray  # (order, NUMBERS), the same for images that are shifted against each other
    steps: tuple[_Step, ...] = ()  # to the second image, the third, …
    generators: tuple[_Step, ...] = ()


class Orbits:
    """What groups, by name, make of inputs (*shape): see `forms`.

    Attributes:
        unchecked: names of the groups of which forms take no account.
        likeness: how inputs are alike whose forms agree, if they are not equal as they are.
    """

    def __init__(self, groups: tuple[tuple[str, Group], ...], shape: tuple[int, ...]) -> None:
        rng = np.random.default_rng(0)
        self.unchecked: tuple[str, ...] = ()
        self.likeness = "under the declared symmetry" if groups else "but for rounding"
        self._shape, self._scaled = shape, any(isinstance(group, Scaling) for _, group in groups)
        self._shifted = tuple(sorted({axis for _, group in groups for axis in group.shifted_axes}))
        # The smallest product over all shifts says as much as the largest, and costs nothing.
        count = NUMBERS // 2 if self._shifted else NUMBERS
        self._templates = torch.from_numpy(rng.normal(size=(count, *shape)))
        if self._shifted:
            self._templates = torch.fft.rfftn(self._templates, dim=self._shifted).conj()
        self._probe = torch.from_numpy(rng.uniform(1, 2, shape))
        with torch.no_grad():
            self._elements = _Elements(self._probe[None], self._keys(self._probe[None]))
            for name, group in groups:
                try:
                    elements = self._with(group)
                except Exception:  # a group of a user may have no use for the probe
                    elements = None
                self._elements = elements or self._elements
                self.unchecked += () if elements else (name,)
            self._apart = self._keeps_channels(torch.from_numpy(10 ** rng.uniform(-4, 4, shape[:1])))
        channels = shape[0] if self._apart else 1
        self._weights = torch.from_numpy(rng.normal(size=(channels, NUMBERS)) / math.sqrt(channels))

    def forms(self, x: np.ndarray | Tensor) -> np.ndarray:
        found = np.empty((len(x), NUMBERS))
        at_once = max(1, AT_ONCE // max(1, self._elements.images.numel()))
        with torch.no_grad():
            for first in range(0, len(x), at_once):
                batch = np.array(x[first : first + at_once], np.float64)
                found[first : first + at_once] = self._forms(torch.from_numpy(batch)).numpy()
        return found

    def _forms(self, x: Tensor) -> Tensor:
        sizes = _norms(x) if self._apart else x.new_ones(len(x), 1)
        images = self._images(x / _positive(sizes).view(*sizes.shape, *[1] * (x.ndim - 2)))
        norm = _norms(images).amax(0)  # not every group leaves that of an input as it is
        sizes = sizes if self._apart else norm[:, None]
        logs = _positive(sizes).log()
        if self._scaled:
            logs = (logs - logs.sum(1, keepdim=True) / (sizes > 0).sum(1, keepdim=True).clamp(min=1)) * (sizes > 0)
        return self._peaks(images).amax(0) / _positive(norm)[:, None] + logs @ self._weights

    def _images(self, x: Tensor) -> Tensor:
        """All images, but for shifts, of inputs (batch, *shape): (order, batch, *shape)."""
        images = x.new_empty((len(self._elements.images), *x.shape))
        images[0] = x
        for number, step in enumerate(self._elements.steps, 1):
            images[number] = _act(step.group, step.element, images[step.parent])
        return images

    def _peaks(self, images: Tensor) -> Tensor:
        """Products with the templates of images (…, *shape), the extreme ones over all shifts: (…, `NUMBERS`)."""
        before = images.shape[: images.ndim - len(self._shape)]
        flat = images.reshape(-1, *self._shape)
        if not self._shifted:
            return (flat.flatten(1) @ self._templates.flatten(1).T).view(*before, NUMBERS)
        fixed = sorted(set(range(-len(self._shape), 0)) - set(self._shifted))
        lengths = [self._shape[axis] for axis in self._shifted]
        waves, peaks = torch.fft.rfftn(flat, dim=self._shifted), []
        for template in self._templates:
            product = waves * template
            product = product.sum(fixed) if fixed else product  # over channels
            products = torch.fft.irfftn(product, lengths).flatten(1)
            peaks += [products.amax(1), products.amin(1)]
        return torch.stack(peaks, 1).view(*before, NUMBERS)

    def _keys(self, images: Tensor) -> np.ndarray:
        return (self._peaks(images) / self._probe.norm()).numpy()

    def _with(self, group: Group) -> _Elements | None:
        """The products of the elements that there are and those of one more group; None if there is no end to them."""
        if group.shifted_axes or isinstance(group, Scaling):
            return self._elements
        most = min(MOST_ELEMENTS, MOST_VALUES // self._probe.numel())
        count = 32 + 8 * math.isqrt(most)  # of so many draws from so few elements some are equal (but for exp(-32))
        probes = self._probe.expand(count, *self._shape)
        drawn = group.draw(probes, torch.Generator().manual_seed(0))
        parts = drawn.split(max(1, AT_ONCE // self._probe.numel()))
        keys = np.concatenate([self._keys(_act(group, some, probes[: len(some)])) for some in parts])
        if not len(repeated(keys)):
            return None
        elements: _Elements | None = self._elements
        while elements and len(new := np.flatnonzero(twins(keys, elements.keys) < 0)):
            step = _Step(0, group, drawn[new[:1]])
            elements = self._closed(elements, step, most) if self._fits(step) else None
        return elements

    def _closed(self, elements: _Elements, generator: _Step, most: int) -> _Elements | None:
        """All products of elements, which are closed, and one more; None where there are too many."""
        images, keys, steps = elements.images, elements.keys, elements.steps
        generators = (*elements.generators, generator)
        todo: list[tuple[int, int, tuple[_Step, ...]]] = [(0, len(images), (generator,))]
        while todo:
            first, last, by = todo.pop()
            for step in by:
                moved = _act(step.group, step.element, images[first:last])
                moved_keys = self._keys(moved)
                new = np.flatnonzero(twins(moved_keys, keys) < 0)
                if len(images) + len(new) > most:
                    return None
                if len(new):
                    todo.append((len(images), len(images) + len(new), generators))
                    images, keys = torch.cat([images, moved[new]]), np.concatenate([keys, moved_keys[new]])
                    steps += tuple(replace(step, parent=first + int(number)) for number in new)
        return _Elements(images, keys, steps, generators)

    def _fits(self, step: _Step) -> bool:
        """Whether it makes no difference if shifts and scaling, which are not among the elements, come before it."""
        before = [self._probe, *(self._probe.roll(1, axis) for axis in self._shifted)]
        keys = self._keys(_act(step.group, step.element, torch.stack(before)))
        if self._scaled:
            keys = np.concatenate([keys, self._keys(_act(step.group, step.element, 2 * self._probe[None])) / 2])
        return bool((np.abs(keys - keys[0]) < TOLERANCE).all())

    def _keeps_channels(self, factors: Tensor) -> bool:
        """Whether channels may be multiplied by factors of their own before elements act instead of after."""
        if len(self._shape) < 3 or -len(self._shape) in self._shifted:
            return False
        factors = factors.view(-1, *[1] * (len(self._shape) - 1))
        before = torch.stack([self._probe, factors * self._probe, self._probe / factors])
        try:
            images = [_act(step.group, step.element, before) for step in self._elements.generators]
        except Exception:  # as above
            return False
        return all(
            torch.allclose(_norms(plain[None]), _norms(self._probe[None]), rtol=TOLERANCE)
            and torch.allclose(times, factors * plain, rtol=TOLERANCE, atol=0)
            and torch.allclose(over, plain / factors, rtol=TOLERANCE, atol=0)
            for plain, times, over in images
        )


def _norms(x: Tensor) -> Tensor:
    """Of all but the first two axes."""
    return x.flatten(2).norm(dim=2)


def _positive(sizes: Tensor) -> Tensor:
    """Ones for zeros."""
    return torch.where(sizes > 0, sizes, 1)
