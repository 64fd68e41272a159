"""Point groups of lattices: the axioms of groups and actions, what they do in space, and what is refused."""

import numpy as np
import pytest
import torch

from sibcl_ray.symmetry import LatticePointGroup, PointGroup, Translations
from sibcl_ray.symmetry.orbits import forms, shared

C4V = LatticePointGroup((((0, -1), (1, 0)), ((0, 1), (1, 0))))
C6V = LatticePointGroup((((0, -1), (1, 1)), ((0, 1), (1, 0))))
C3 = LatticePointGroup((((0, -1), (1, -1)),))
MIRROR = LatticePointGroup((((-1, 0), (0, 1)),))
INVERSION = LatticePointGroup((((-1,),),))
OCTAHEDRAL = (
    ((0, 0, 1), (1, 0, 0), (0, 1, 0)),
    ((-1, -1, -1), (0, 0, 1), (0, 1, 0)),
    ((0, 1, 0), (1, 0, 0), (0, 0, 1)),
)
FCC = LatticePointGroup((*OCTAHEDRAL, ((-1, 0, 0), (0, -1, 0), (0, 0, -1))))
ORDERS = [
    (C4V, 8, (8, 8)),
    (C6V, 12, (9, 9)),
    (C3, 3, (8, 8)),
    (MIRROR, 2, (6, 9)),
    (INVERSION, 2, (7,)),
    (FCC, 48, (6,) * 3),
]


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize(("group", "order", "grid"), ORDERS)
def test_it_is_a_group_that_acts(group, order, grid):
    assert group.order == order and group == LatticePointGroup(group.generators)
    x = torch.rand(60, 2, *grid, generator=generator())
    g, h, k = (group.draw(x, generator(seed)) for seed in (1, 2, 3))
    e = group.identity(x)
    assert torch.equal(group.compose(group.compose(g, h), k), group.compose(g, group.compose(h, k)))
    assert torch.equal(group.compose(g, group.inverse(g)), e) and torch.equal(group.compose(e, g), g)
    assert torch.equal(group.act(e, x), x)
    assert torch.equal(group.act(group.compose(g, h), x), group.act(g, group.act(h, x)))
    images = group.act(torch.arange(order), x[:1].expand(order, *x.shape[1:]))
    assert len({tuple(image.flatten().tolist()) for image in images}) == order
    assert torch.equal(group.act(g, x[:, 1]), group.act(g, x)[:, 1]), "channels move together"


@pytest.mark.parametrize("angle", range(0, 360, 60))
def test_elements_of_c6v_are_rotations_and_reflections_of_the_plane(angle):
    """A field of the hexagonal lattice's plane waves, sampled at the pixels, turned by an angle as a function of r."""
    n, lattice = 12, np.array([[1, 0.5], [0, np.sqrt(3) / 2]])  # lattice vectors in columns
    reciprocal = np.linalg.inv(lattice).T
    waves, phases = np.array([[1, 0], [2, -1], [1, 3]]), np.array([0.3, 1.2, 2.5])
    pixels = np.stack(np.meshgrid(*[np.arange(n) / n] * 2, indexing="ij"), -1)

    def field(positions):
        return np.cos(2 * np.pi * positions @ (waves @ reciprocal.T).T + phases).sum(-1)

    positions, t = pixels @ lattice.T, np.radians(angle)
    rotation = np.array([[np.cos(t), -np.sin(t)], [np.sin(t), np.cos(t)]])
    images = C6V.act(torch.arange(12), torch.from_numpy(field(positions)).expand(12, n, n)).numpy()
    for turned in (rotation, rotation * [1, -1]):  # (g·x)(r) = x(g⁻¹ r)
        expected = field(positions @ np.linalg.inv(turned).T)
        assert (np.abs(images - expected).max((1, 2)) < 1e-12).sum() == 1


def test_with_translations_a_square_has_the_images_that_point_groups_make():
    """They turn about the middle of the grid, a lattice's about pixel 0."""
    x = torch.rand(1, 6, 6, generator=generator()).expand(8, 6, 6)
    groups = {"translation": Translations(6)}
    theirs = forms(PointGroup(2).act(torch.arange(8), x), groups)
    assert len(shared(forms(C4V.act(torch.arange(8), x), groups), theirs)) == 8


def test_images_are_kept_apart_from_the_test():
    x = torch.rand(40, 9, 9, generator=generator())
    groups = {"translation": Translations(9), "point_group": C6V}
    moved = x
    for group in groups.values():
        moved = group.act(group.draw(moved, generator(1)), moved)
    assert len(shared(forms(moved, groups), forms(x, groups))) == 40
    assert not len(shared(forms(x.flip(1), groups), forms(x, groups)))


@pytest.mark.parametrize(
    ("generators", "says"),
    [
        ((((1, 1), (0, 1)),), "no rotations and reflections of one lattice"),
        ((((1, 0), (0, 0)),), "no rotations and reflections of one lattice"),
        ((((0.5, -0.87), (0.87, 0.5)),), "square matrices of whole numbers"),
        ((((0, -1), (1, 1)), ((-1,),)), "square matrices of whole numbers"),
        ((), "square matrices of whole numbers"),
    ],
)
def test_other_matrices_are_refused(generators, says):
    with pytest.raises(ValueError, match=says) as refused:
        LatticePointGroup(generators)
    assert "\n" not in str(refused.value)


def test_images_that_do_not_fit_are_refused():
    g = torch.zeros(2, dtype=torch.long)
    with pytest.raises(ValueError, match="6 × 9 pixels, which the point group does not map onto each other"):
        C6V.act(g, torch.zeros(2, 6, 9))
    with pytest.raises(ValueError, match="inputs have 2 axes, and the generators are 3 × 3"):
        FCC.act(g, torch.zeros(2, 6, 6))
