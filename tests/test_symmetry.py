"""The axioms of groups and actions, and what augmentation promises."""

import pytest
import torch

from sibcl_ray.storage.fingerprint import describe
from sibcl_ray.symmetry import (
    EachChannel,
    Equivariance,
    PointGroup,
    Scaling,
    Translations,
    augment,
    augment_labelled,
)

SQUARE = {"translations": Translations(8), "point group": PointGroup(2), "scaling": Scaling(1.0, 20.0)}
CUBE = {"translations 3D": Translations(4, dimension=3), "point group 3D": PointGroup(3)}
OTHERS = {  # with the shape that they act on
    "translations of a rectangle": (Translations((5, 8)), (5, 8)),
    "translations along some axes": (Translations((None, 6, 3)), (4, 6, 3)),
    "point group of a rectangle": (PointGroup((5, 8)), (5, 8)),
    "point group of a box": (PointGroup((4, 6, 4)), (4, 6, 4)),
    "translations of a line": (Translations(9, 1), (9,)),
    "point group of a line": (PointGroup(1), (9,)),
    "channels": (EachChannel(PointGroup((5, 8))), (3, 5, 8)),
}


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def batch(name, count=96):
    shape = (4, 4, 4) if name in CUBE else OTHERS[name][1] if name in OTHERS else (8, 8)
    return torch.rand((count, *shape), generator=generator(1), dtype=torch.float64) * 3 + 2


@pytest.fixture(params=[*SQUARE, *CUBE, *OTHERS])
def case(request):
    """A group, a batch it acts on, and three elements for each sample that keep it in range together."""
    group = {**SQUARE, **CUBE, **{name: group for name, (group, _) in OTHERS.items()}}[request.param]
    x = batch(request.param)
    if isinstance(group, Scaling):
        g, h, k = (torch.rand(len(x), generator=generator(s), dtype=x.dtype) * 0.4 + 0.9 for s in range(3))
    else:
        g, h, k = (group.draw(x, generator(s)) for s in range(3))
    return group, x, g, h, k


def same(a, b):
    torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def test_composition_is_associative(case):
    group, _, g, h, k = case
    same(group.compose(group.compose(g, h), k), group.compose(g, group.compose(h, k)))


def test_identity_and_inverse(case):
    group, x, g, _, _ = case
    e = group.identity(x)
    same(group.compose(g, e), g)
    same(group.compose(e, g), g)
    same(group.compose(g, group.inverse(g)), e)
    same(group.act(e, x), x)
    same(group.act(group.inverse(g), group.act(g, x)), x)


def test_action_respects_composition(case):
    group, x, g, h, _ = case
    same(group.act(group.compose(g, h), x), group.act(g, group.act(h, x)))


def test_translations_roll():
    x = batch("translations", 3)
    shifts = torch.tensor([[0, 1], [3, 0], [7, 5]])
    expected = torch.stack([torch.roll(x[i], tuple(shifts[i].tolist()), (0, 1)) for i in range(3)])
    assert torch.equal(Translations(8).act(shifts, x), expected)


@pytest.mark.parametrize(("dimension", "order"), [(2, 8), (3, 48)])
def test_point_group_is_the_whole_group_of_the_square_and_the_cube(dimension, order):
    group = PointGroup(dimension)
    x = torch.rand(1, *[3] * dimension, generator=generator()).expand(order, *[3] * dimension)
    images = group.act(torch.arange(order), x)
    assert group.order == order
    assert len({tuple(image.flatten().tolist()) for image in images}) == order
    quarter_turn = torch.rot90(x[0], 1, (0, 1))
    assert any(torch.equal(image, quarter_turn) for image in images)
    assert any(torch.equal(image, x[0].flip(0)) for image in images)


@pytest.mark.parametrize(("kinds", "order"), [((5, 8), 4), ((4, 4), 8), ((3, 5, 3), 16), ((3, 4, 5), 8), ((7,), 2)])
def test_the_point_group_of_a_box_is_all_that_maps_it_onto_itself(kinds, order):
    group, x = PointGroup(kinds), torch.rand(1, *kinds, generator=generator()).expand(order, *kinds)
    images = group.act(torch.arange(order), x)
    assert group.order == order and len({tuple(image.flatten().tolist()) for image in images}) == order
    for axis in range(len(kinds)):
        assert any(torch.equal(image, x[0].flip(axis)) for image in images)
    equal = [(a, b) for a in range(len(kinds)) for b in range(a) if kinds[a] == kinds[b]]
    assert all(any(torch.equal(image, x[0].transpose(*axes)) for image in images) for axes in equal)


def test_translations_of_a_box_roll_the_axes_that_have_a_period():
    x, group = batch("point group of a box", 3), Translations((None, 6, 4))
    shifts = torch.tensor([[0, 1, 3], [0, 5, 0], [0, 0, 2]])
    expected = torch.stack([torch.roll(x[i], shifts[i].tolist(), (0, 1, 2)) for i in range(3)])
    assert torch.equal(group.act(shifts, x), expected)
    assert group.shifted_axes == (-2, -1) and Translations(4, 3).shifted_axes == (-3, -2, -1)
    drawn = group.draw(x.expand(3, 4, 6, 4).repeat(200, 1, 1, 1), generator())
    assert drawn.amax(0).tolist() == [0, 5, 3] and drawn.amin(0).tolist() == [0, 0, 0]


def test_groups_of_squares_and_cubes_are_named_as_ever():
    """Results are named by them."""
    assert describe(Translations(8)) == {"type": "Translations", "size": 8, "dimension": 2}
    assert describe(PointGroup(3)) == {"type": "PointGroup", "dimension": 3}


def test_draws_are_uniform():
    x = torch.zeros(80_000, 8, 8)
    counts = torch.bincount(PointGroup(2).draw(x, generator()), minlength=8)
    assert (counts - 10_000).abs().max() < 5 * 10_000**0.5
    shifts = Translations(8).draw(x, generator())
    counts = torch.bincount(shifts[:, 0] * 8 + shifts[:, 1], minlength=64)
    assert (counts - 1250).abs().max() < 5 * 1250**0.5


def test_scaling_keeps_its_range_and_uses_all_of_it():
    x = torch.rand(20_000, 4, 4, generator=generator()) * 18 + 1.5
    group = Scaling(1.0, 20.0)
    y = group.act(group.draw(x, generator()), x)
    assert y.min() >= 1 and y.max() <= 20
    ratio = y / x
    torch.testing.assert_close(ratio, ratio[:, :1, :1].expand_as(ratio))
    log_s = ratio[:, 0, 0].log()
    position = (log_s - (1 / x.amin((1, 2))).log()) / ((20 / x.amax((1, 2))) * x.amin((1, 2))).log()
    assert abs(position.mean().item() - 0.5) < 0.01 and position.min() < 0.01 and position.max() > 0.99


@pytest.mark.parametrize("probability", [0.0, 0.3, 1.0])
def test_augmentation_moves_samples_as_often_as_it_should(probability):
    x = torch.rand(20_000, 8, 8, generator=generator())
    y = augment(x, {"translation": Translations(8)}, {"translation": probability}, generator())
    moved = (x != y).flatten(1).any(1).double().mean().item()
    assert moved == pytest.approx(probability * 63 / 64, abs=0.012)


def test_augmentation_is_a_function_of_its_generator():
    x = torch.rand(50, 8, 8) + 1
    probabilities = dict.fromkeys(SQUARE, 0.5)
    first, again, other = (augment(x, SQUARE, probabilities, generator(s)) for s in (1, 1, 2))
    assert torch.equal(first, again) and not torch.equal(first, other)


def test_one_gather_moves_as_two_do():
    """Augmentation by two groups of pixels is the product of their actions, in the order given."""
    x = torch.rand(50, 8, 8)
    names = ("translations", "point group")
    groups = {name: SQUARE[name] for name in names}
    g, source = generator(3), generator(3)
    expected = x
    for group in groups.values():
        torch.rand(len(x), generator=g)  # who is chosen: everyone
        expected = group.act(group.draw(x, g), expected)
    assert torch.equal(augment(x, groups, dict.fromkeys(names, 1.0), source), expected)


TURNS = Equivariance(PointGroup(2), PointGroup(2).act)
GROWS = Equivariance(Scaling(1.0, 20.0), lambda g, labels: labels * g[:, None, None] ** 2)
MOVING = {"turns": TURNS, "grows": GROWS}


def with_symmetric_label(x):
    """One that C4v, as it acts on x, carries along."""
    return x * x.mean((1, 2), keepdim=True)


@pytest.mark.parametrize("probability", [0.5, 1.0])
def test_labels_follow_their_inputs_and_come_back(probability):
    x = batch("point group")
    labels = with_symmetric_label(x)
    always = dict.fromkeys(MOVING, probability)
    moved, moves = augment_labelled(x, {}, MOVING, always, generator())
    assert len(moves.steps) == 2
    same(moves.forth(labels), with_symmetric_label(moved))
    same(moves.back(with_symmetric_label(moved)), labels)
    assert (moved != x).flatten(1).any(1).double().mean() > 0.8 * probability


def test_without_equivariances_views_and_randomness_are_those_of_augment():
    """Bit for bit, and the generator is left in the same state."""
    x = torch.rand(50, 8, 8) + 1
    probabilities = {"translations": 0.5, "scaling": 0.3}
    for moving in ({}, MOVING):  # equivariances that are not asked for draw nothing either
        plain, labelled = generator(4), generator(4)
        expected = augment(x, SQUARE, probabilities, plain)
        found, moves = augment_labelled(x, SQUARE, moving, probabilities, labelled)
        assert torch.equal(found, expected) and not moves.steps
        assert torch.equal(plain.get_state(), labelled.get_state())


def test_equivariances_come_after_symmetries_and_draw_after_them():
    x = torch.rand(50, 8, 8) + 1
    both = {"translations": 1.0, "turns": 1.0}
    first, second = generator(5), generator(5)
    moved, moves = augment_labelled(x, SQUARE, MOVING, both, first)
    ((_, g),) = moves.steps
    assert torch.equal(moved, TURNS.group.act(g, augment(x, SQUARE, {"translations": 1.0}, second)))


def test_a_name_that_neither_has_is_refused():
    with pytest.raises(ValueError, match=r"there is no symmetry 'tilt'; known are translations, .*turns, grows"):
        augment_labelled(torch.rand(2, 8, 8), SQUARE, MOVING, {"tilt": 1.0}, generator())
