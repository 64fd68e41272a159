"""Forms are equal for inputs that the groups make equal, and for no others."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch

from sibcl_ray.problems.magnet import SitePermutations, SpinFlip
from sibcl_ray.problems.photonic import PhotonicBands, PhotonicDOS, disc_cells
from sibcl_ray.problems.schrodinger import Schrodinger3D
from sibcl_ray.solvers.spins import Lattice
from sibcl_ray.symmetry import EachChannel, Group, PointGroup, Scaling, Translations, orbits


@dataclass(frozen=True)
class Cyclic(Group):
    """A user's group: the powers of one transformation, (batch, …) -> (batch, …)."""

    order: int = 2

    def draw(self, x, generator):
        return torch.randint(self.order, (len(x),), generator=generator)

    def identity(self, x):
        return torch.zeros(len(x), dtype=torch.long)

    def compose(self, g, h):
        return (g + h) % self.order

    def inverse(self, g):
        return -g % self.order

    def once(self, x):
        raise NotImplementedError

    def act(self, g, x):
        images = [x]
        for _ in range(self.order - 1):
            images.append(self.once(images[-1]))
        return torch.stack(images, 1)[torch.arange(len(x)), g]


class Mirror(Cyclic):
    def once(self, x):
        return x.flip(-1)


class Transposition(Cyclic):
    def once(self, x):
        return x.transpose(-1, -2)


class Complement(Cyclic):
    """Neither linear nor orthogonal: of two-tone images, the other tone."""

    def once(self, x):
        return 1 - x


class Skewed(Cyclic):
    """Linear, but not orthogonal: the halves change places and scale."""

    def once(self, x):
        half = x.shape[-1] // 2
        return torch.cat([2 * x[..., half:], x[..., :half] / 2], -1)


class ThirdOfATurn(Cyclic):
    """Vectors on a hexagonal lattice: mixes channels."""

    def once(self, x):
        c, s = -0.5, math.sqrt(0.75)
        return torch.stack([c * x[:, 0] - s * x[:, 1], s * x[:, 0] + c * x[:, 1]], 1)


class Swapped(Cyclic):
    """Two channels that may change places."""

    def once(self, x):
        return x.flip(1)


class Coarse(Mirror):
    """Computes in float32."""

    def act(self, g, x):
        return super().act(g, x.float())


class InPlace(Mirror):
    """Writes into what it is given."""

    def act(self, g, x):
        x.copy_(super().act(g, x))
        return x


@dataclass(frozen=True)
class Phase(Cyclic):
    """Has no end of elements."""

    def draw(self, x, generator):
        return torch.rand(len(x), generator=generator, dtype=torch.float64)

    def act(self, g, x):
        c, s = (f(2 * math.pi * g).view(-1, *[1] * (x.ndim - 2)).to(x) for f in (torch.cos, torch.sin))
        return torch.stack([c * x[:, 0] - s * x[:, 1], s * x[:, 0] + c * x[:, 1]], 1)


@dataclass(frozen=True)
class Many(Cyclic):
    """Periodic shifts that do not say so, and are too many to be tried."""

    order: int = 1100

    def act(self, g, x):
        index = (torch.arange(x.shape[1]) - g[:, None]) % x.shape[1]
        return x.gather(1, index)


class Unhashable(Mirror):
    """Like any class that says when it is equal to another and not how to hash it."""

    __hash__ = None


class InRange(Mirror):
    """Has a range of its own, as permittivities have."""

    def act(self, g, x):
        if x.min() < 1:
            raise ValueError("no permittivity")
        return super().act(g, x)


class OfSpins(Mirror):
    """Will act on nothing else."""

    def act(self, g, x):
        if not (x.abs() == 1).all():
            raise ValueError("no spins")
        return super().act(g, x)


def sites(lattice):
    """All symmetries of a lattice."""
    return SitePermutations(lattice, (*((name, 1) for name in lattice.generators), ("flip", 1)))


SITES = sites(Lattice(4, 6, 2))
SHIFT, TURN = Translations(8), PointGroup(2)
SHIFTS, TURNS = EachChannel(SHIFT), EachChannel(TURN)
SCALE = Scaling(1.0, 20.0)

CASES = {
    "none": ((), (8, 8)),
    "translations": ((SHIFT,), (8, 8)),
    "point group": ((TURN,), (8, 8)),
    "odd side": ((Translations(7), TURN), (7, 7)),
    "both": ((SHIFT, TURN), (8, 8)),
    "both the other way round": ((TURN, SHIFT), (8, 8)),
    "scaling": ((SCALE,), (8, 8)),
    "all of photonic crystals": ((SHIFT, TURN, SCALE), (8, 8)),
    "scaling first": ((SCALE, TURN, SHIFT), (8, 8)),
    "spins flipped": ((SpinFlip(),), (5, 9)),
    "spins flipped and turned": ((SpinFlip(), SHIFT, TURN), (8, 8)),
    "sites": ((SITES,), (4, 6)),
    "magnet": ((SITES, SpinFlip()), (4, 6)),
    "sites of which shifts are known": (
        (Translations(4), sites(Lattice(4, 4, 2))),
        (4, 4),
    ),
    "cube": ((PointGroup(3),), (4, 4, 4)),
    "periodic cube": ((Translations(4, 3), PointGroup(3)), (4, 4, 4)),
    "rectangle": ((Translations((6, 10)), PointGroup((6, 10))), (6, 10)),
    "shifted along the first axis": ((Translations((9, None)), PointGroup((9, 6))), (9, 6)),
    "shifted along two of three axes": ((Translations((4, None, 6)),), (4, 5, 6)),
    "line": ((Translations(30, 1), PointGroup(1)), (30,)),
    "channels": ((SHIFTS, TURNS), (3, 8, 8)),
    "channels scaled": ((SHIFTS, TURNS, SCALE), (3, 8, 8)),
    "channels that change places": ((SHIFTS, TURNS, Swapped()), (2, 8, 8)),
    "mirror": ((Mirror(),), (5, 7)),
    "vectors of numbers": ((Mirror(),), (9,)),
    "two that generate more": ((Mirror(), Transposition()), (6, 6)),
    "two that generate more, shifted": ((Transposition(), SHIFT, Mirror()), (8, 8)),
    "complement": ((Complement(), SHIFT, TURN), (8, 8)),
    "skewed": ((Skewed(),), (5, 8)),
    "skewed and scaled": ((Skewed(), SCALE), (5, 8)),
    "third of a turn": ((ThirdOfATurn(3),), (2, 5, 7)),
    "third of a turn, shifted": ((ThirdOfATurn(3), SHIFTS), (2, 8, 8)),
    "in float32": ((Coarse(), SHIFT), (8, 8)),
    "in a range": ((InRange(),), (3, 5, 7)),
    "in place": ((InPlace(), Transposition()), (6, 6)),
}


@pytest.fixture(params=CASES.values(), ids=CASES)
def case(request):
    """Groups by name, and inputs that they may act on, float32."""
    groups, shape = request.param
    x = np.random.default_rng(1).uniform(4, 5, (60, *shape)) - 3 * any(isinstance(g, Complement) for g in groups)
    return {str(number): group for number, group in enumerate(groups)}, x.astype(np.float32)


def moved(groups, x, seed=0):
    """Inputs moved by a random word of the groups, in any order and twice, in float32."""
    generator, y = torch.Generator().manual_seed(seed), torch.from_numpy(x.astype(np.float64))
    names = np.random.default_rng(seed).permutation(2 * list(groups))
    for name in names:
        y = groups[name].act(groups[name].draw(y, generator), y)
    return y.numpy().astype(np.float32)


def pairs(*expected):
    return [list(pair) for pair in expected]


@pytest.mark.parametrize("seed", range(3))
def test_moved_inputs_have_the_same_forms_and_others_have_not(seed, case):
    groups, x = case
    assert orbits.unchecked(groups, x.shape[1:]) == []
    found, image = orbits.forms(x, groups), orbits.forms(moved(groups, x, seed), groups)
    assert found.shape == (60, orbits.NUMBERS) and found.dtype == np.float64
    assert np.abs(found - image).max() < orbits.TOLERANCE / 2
    assert np.array_equal(orbits.twins(image, found), np.arange(60))
    assert len(orbits.repeated(found)) == 0 and len(orbits.shared(found[:30], image[30:])) == 0


def test_what_no_group_moves_is_another(case):
    """Inputs of the same values in another order, and of the same image but for one part in 10⁴."""
    groups, x = case
    rng = np.random.default_rng(2)
    shuffled = rng.permuted(x.reshape(60, -1), axis=1).reshape(x.shape)
    nearly = (x * rng.uniform(1 - 1e-4, 1 + 1e-4, x.shape)).astype(np.float32)
    found = orbits.forms(x, groups)
    for other in (shuffled, nearly):
        assert len(orbits.shared(orbits.forms(moved(groups, other), groups), found)) == 0


def test_a_number_rounded_again_is_the_same(case):
    groups, x = case
    found = orbits.forms(x, groups)
    for seed in range(3):
        nearly = x * (1 + np.random.default_rng(seed).uniform(-1, 1, x.shape) * np.finfo(np.float32).eps)
        assert np.array_equal(orbits.twins(orbits.forms(moved(groups, nearly), groups), found), np.arange(60))


def test_nothing_depends_on_the_batch(case, monkeypatch):
    groups, x = case
    whole = orbits.forms(x, groups)
    monkeypatch.setattr(orbits, "AT_ONCE", 1)
    np.testing.assert_allclose(orbits.forms(x, groups), whole, rtol=0, atol=1e-11)
    assert orbits.forms(x[:0], groups).shape == (0, orbits.NUMBERS)


def test_inputs_are_left_as_they_are(case):
    groups, x = case
    before = x.copy()
    assert np.array_equal(orbits.forms(x, groups), orbits.forms(torch.from_numpy(x), groups))
    assert np.array_equal(x, before)


# How many inputs there are


def every(values, *shape):
    """All inputs of two values."""
    bits = np.arange(2 ** math.prod(shape))[:, None] >> np.arange(math.prod(shape)) & 1
    return np.array(values, np.float32)[bits].reshape(-1, *shape)


COUNTS = {
    # Two-tone images: all, up to D4 (OEIS A054247), on the torus (A184271), on the torus up to D4 (A255016).
    "images": ({}, every((0, 1), 3, 3), 512),
    "up to the square": ({"": PointGroup(2)}, every((0, 1), 3, 3), 102),
    "up to the square, larger": ({"": PointGroup(2)}, every((0, 1), 4, 4), 8548),
    "on the torus": ({"": Translations(3)}, every((0, 1), 3, 3), 64),
    "on the torus, larger": ({"": Translations(4)}, every((0, 1), 4, 4), 4156),
    "on the torus up to the square": ({"t": Translations(4), "p": PointGroup(2)}, every((0, 1), 4, 4), 805),
    "spins": ({"": SpinFlip()}, every((-1, 1), 3, 4), 2048),
    "zeros and ones that scale": ({"": Scaling(0.5, 2)}, every((0, 1), 3, 3), 512),
    "complements": ({"": Complement()}, every((0, 1), 3, 3), 256),
    "bracelets": ({"m": Mirror(), "r": Many(8)}, every((0, 1), 8), 30),  # A000029
}


@pytest.mark.parametrize(("groups", "x", "orbits_there_are"), COUNTS.values(), ids=COUNTS)
def test_all_two_tone_images_fall_into_the_right_number_of_orbits(groups, x, orbits_there_are):
    again = orbits.repeated(orbits.forms(x, groups))
    assert len(x) - len(again) == orbits_there_are
    assert (again[:, 0] < again[:, 1]).all() and not set(again[:, 0]) & set(again[:, 1])


# What inputs may be like


def test_a_planted_copy_is_found_among_thousands_of_smooth_inputs():
    """Those of a few parameters are much alike; there is one copy, turned, shifted and in another unit."""
    x = np.concatenate(
        [PhotonicDOS().sample(1000, np.random.default_rng(0)).inputs, bumps(np.linspace(0.1, 0.2, 1001))]
    )
    x[1700] = 1.1 * np.rot90(np.roll(x[333], (5, 17), (0, 1)), 3)
    groups = PhotonicDOS().symmetries
    assert orbits.repeated(orbits.forms(x, groups)).tolist() == pairs((333, 1700))


def bumps(widths, resolution=32):
    """Images (count, n, n) that differ in one parameter, and are as symmetric as can be."""
    r = (np.arange(resolution) + 0.5) / resolution - 0.5
    square = r[:, None] ** 2 + r**2
    return (2 + np.exp(-square / (2 * np.asarray(widths)[:, None, None] ** 2))).astype(np.float32)


@pytest.mark.parametrize("names", [(), ("point_group",), ("translation", "point_group", "scaling")])
def test_a_family_of_one_parameter_has_no_copies(names):
    """Neighbours differ by 1e-4 of their norm, or less."""
    x = bumps(0.15 * (1 + 1e-4) ** np.arange(1000))
    step = np.linalg.norm(np.diff(x, axis=0), axis=(1, 2)) / np.linalg.norm(x[1:], axis=(1, 2))
    assert step.max() < 1e-4
    groups = {name: PhotonicDOS().symmetries[name] for name in names}
    assert len(orbits.repeated(orbits.forms(x, groups))) == 0


def test_zeros_constants_and_signs_of_zero():
    levels = np.array([0.0, 1, 2, -1, -0.0, 3e38, -3e38, 1e-45])
    x = np.broadcast_to(levels[:, None, None], (8, 8, 8)).astype(np.float32)

    def again(*groups):
        return orbits.repeated(orbits.forms(x, {str(i): group for i, group in enumerate(groups)})).tolist()

    assert again() == again(SHIFT, TURN) == pairs((0, 4))
    assert again(SpinFlip()) == again(SHIFT, SpinFlip()) == pairs((1, 3), (0, 4), (5, 6))
    assert again(SCALE) == again(SHIFT, SCALE) == pairs((1, 2), (0, 4), (1, 5), (3, 6), (1, 7))
    assert len(orbits.shared(orbits.forms(x[[0, 4]], {}), orbits.forms(x[1:4], {}))) == 0


@pytest.mark.parametrize("kind", ["u1", "i8", "f2", "f8", "?"])
def test_numbers_of_any_real_type(kind):
    x = np.random.default_rng(0).integers(0, 2, (40, 6, 6)).astype(kind)
    groups = {"turn": PointGroup(2)}
    found = orbits.forms(x, groups)
    assert np.array_equal(orbits.twins(orbits.forms(np.rot90(x, 1, (1, 2)), groups), found), np.arange(40))
    np.testing.assert_array_equal(found, orbits.forms(x.astype(np.float32), groups))


def test_what_is_not_finite_equals_nothing():
    x = np.ones((4, 3, 3), np.float32)
    x[1, 0, 0], x[2, 0, 0] = np.nan, np.inf
    found = orbits.forms(x, {"turn": PointGroup(2)})
    assert orbits.repeated(found).tolist() == pairs((0, 3))
    assert orbits.twins(found, found[1:3]).tolist() == [-1] * 4 and orbits.shared(found, found).tolist() == [0, 3]


UNITS = np.array([1e9, 1e-3])[:, None, None]


@pytest.mark.parametrize("groups", [(), (SHIFTS, TURNS), (SHIFTS, Scaling(1e-6, 1e10))], ids=str)
def test_a_channel_of_small_numbers_counts_as_much_as_others(groups):
    """Pressures in pascal, the same in all, beside strains."""
    rng = np.random.default_rng(0)
    pressure, strain = np.broadcast_to(rng.random((1, 8, 8)), (40, 8, 8)), rng.random((40, 8, 8))
    x = (np.stack([pressure, strain], 1) * UNITS).astype(np.float32)
    groups = {str(i): group for i, group in enumerate(groups)}
    found = orbits.forms(x, groups)
    assert len(orbits.repeated(found)) == 0
    assert np.array_equal(orbits.twins(orbits.forms(moved(groups, x), groups), found), np.arange(40))


def test_channels_are_moved_together():
    """One channel turned by itself makes another input, and so does one in another unit."""
    x = np.random.default_rng(0).uniform(1, 2, (30, 2, 8, 8)).astype(np.float32)
    groups = {"shift": SHIFTS, "turn": TURNS, "scale": SCALE}
    found, turned, scaled = orbits.forms(x, groups), x.copy(), x.copy()
    turned[:, 1], scaled[:, 1] = np.rot90(x[:, 1], 1, (1, 2)), 2 * x[:, 1]
    for other in (turned, scaled):
        assert len(orbits.shared(orbits.forms(other, groups), found)) == 0
    assert len(orbits.shared(orbits.forms(2 * x, groups), found)) == 30


def test_channels_that_change_places_are_not_told_apart():
    x = np.random.default_rng(0).random((30, 2, 8, 8)).astype(np.float32) * np.float32(UNITS * 1e-3)
    found = orbits.forms(x[:, ::-1], {"swap": Swapped()})
    assert np.array_equal(orbits.twins(found, orbits.forms(x, {"swap": Swapped()})), np.arange(30))


@pytest.mark.parametrize("problem", [PhotonicDOS(), PhotonicBands(), Schrodinger3D(resolution=8)], ids=lambda p: p.name)
def test_groups_of_the_problems_are_all_looked_at(problem):
    moves = {name: equivariance.group for name, equivariance in problem.equivariances.items()}
    groups = {**problem.symmetries, **moves}
    assert orbits.unchecked(groups, problem.input_shape) == []
    x = problem.sample(20, np.random.default_rng(0)).inputs
    found = orbits.forms(moved(groups, x), groups)
    assert np.array_equal(orbits.twins(found, orbits.forms(x, groups)), np.arange(20))


def test_discs_that_are_the_same_are_found():
    """Those too small for a pixel leave a cell of one permittivity, which is any other's in another unit."""
    x, _ = disc_cells(800, np.random.default_rng(0), 16)
    again = orbits.repeated(orbits.forms(x, {"scaling": SCALE}))
    empty = np.flatnonzero(np.ptp(x.reshape(800, -1), axis=1) == 0)
    assert len(empty) > 2 and set(again[:, 1]) >= set(empty[1:])
    for first, second in again:
        np.testing.assert_allclose(x[first] / x[first].max(), x[second] / x[second].max(), rtol=1e-5)


# Which groups cannot be looked at

UNKNOWN = {
    "endless": (Phase(), (2, 8, 8)),
    "too many": (Many(), (1100,)),
    "for other inputs": (OfSpins(), (8, 8)),
}


@pytest.mark.parametrize(("group", "shape"), UNKNOWN.values(), ids=UNKNOWN)
def test_groups_whose_elements_are_not_known_are_named_and_the_others_count(group, shape):
    known = {"mirror": Mirror(), "unknown": group, "flip": SpinFlip()}
    assert orbits.unchecked(known, shape) == ["unknown"]
    x = np.random.default_rng(0).normal(size=(20, *shape)).astype(np.float32)
    others = {"mirror": Mirror(), "flip": SpinFlip()}
    assert np.array_equal(orbits.forms(x, known), orbits.forms(x, others))
    assert np.array_equal(orbits.twins(orbits.forms(-x[..., ::-1], known), orbits.forms(x, known)), np.arange(20))


def test_what_does_not_go_with_shifts_or_scaling_is_not_looked_at():
    """Their products are more than one after the other."""
    assert orbits.unchecked({"complement": Complement(), "scaling": SCALE}, (8, 8)) == ["complement"]
    assert orbits.unchecked({"skewed": Skewed(), "shift": SHIFT}, (8, 8)) == ["skewed"]
    assert orbits.unchecked({"shift": SHIFT, "scaling": SCALE, "turn": TURN}, (8, 8)) == []


def test_elements_are_looked_for_once_for_equal_groups(monkeypatch):
    """Whether or not they say that they are equal; a class that cannot be pickled is looked at each time."""
    made, make = [], orbits.Orbits
    orbits._KEPT.clear()
    monkeypatch.setattr(orbits, "Orbits", lambda *arguments: made.append(arguments) or make(*arguments))

    class Local(Mirror):
        __hash__ = None

    x = np.random.default_rng(0).random((5, 4, 4))
    for kind, times in ((Mirror, 1), (PointGroup, 1), (Unhashable, 1), (Local, 4)):
        made.clear()
        for _ in range(2):
            found, image = (orbits.forms(y, {"mirror": kind()}) for y in (x, x[:, :, ::-1]))
            assert orbits.twins(image, found).tolist() == list(range(5))
        assert len(made) == times


# Which forms agree


@pytest.mark.parametrize("seed", range(5))
def test_forms_agree_where_all_numbers_do(seed):
    """As a slow loop finds them, in clouds of which many are close in some numbers, all or none."""
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, 3, (2, 60, 4)) + rng.uniform(-1, 1, (2, 60, 4)) * rng.choice(
        [0, 1e-12, 0.6e-6, 1e-3], (2, 60, 1)
    )
    a[::17] = np.nan
    close = [np.flatnonzero((np.abs(b - row) <= 1e-6).all(1)) for row in a]
    found = orbits.twins(a, b)
    assert [row in rows if len(rows) else row == -1 for row, rows in zip(found, close, strict=True)] == [True] * 60
    assert np.array_equal(orbits.shared(a, b), [i for i, rows in enumerate(close) if len(rows)])
    again = orbits.repeated(b)
    assert all((np.abs(b[i] - b[j]) <= 1e-6).all() and i < j for i, j in again)
    kept = np.delete(b, again[:, 1], 0)
    apart = np.abs(kept[:, None] - kept).max(-1) + np.eye(len(kept))
    assert again[:, 1].tolist() == sorted(set(again[:, 1])) and apart.min() > 1e-6


def test_none_agree_with_none():
    none, one = np.zeros((0, 16)), np.zeros((1, 16))
    assert len(orbits.repeated(none)) == len(orbits.repeated(one)) == 0
    assert len(orbits.twins(none, one)) == 0 and orbits.twins(one, none).tolist() == [-1]


def test_thousands_of_equal_forms_take_no_time():
    many = np.random.default_rng(0).normal(size=(3, 16))[np.arange(30_000) % 3]
    assert len(orbits.repeated(many)) == 29_997 and len(orbits.shared(many, many)) == 30_000
