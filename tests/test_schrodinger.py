"""Particles in a box: the solver against closed forms and ARPACK, and the generators, labels and surrogates."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from box_reference import energies_by_arpack, hamiltonian
from hypothesis import given, settings
from hypothesis import strategies as st

from sibcl_ray.problems.schrodinger import (
    BLUR,
    FINE,
    CoarseGrid,
    Density,
    Energies,
    HarmonicWells,
    Schrodinger2D,
    Schrodinger3D,
    harmonic_wells,
    level_set_potentials,
)
from sibcl_ray.solvers import schrodinger
from sibcl_ray.solvers.schrodinger import NotConverged, empty_box_energies, lowest_eigenpairs, lowest_eigenvalues
from sibcl_ray.storage.fingerprint import fingerprint
from sibcl_ray.symmetry import PointGroup

PROMISED = 1e-6  # relative
PROBLEMS = {2: Schrodinger2D(), 3: Schrodinger3D()}


def level_sets(d, count=3, seed=0, n=32):
    return level_set_potentials(count, np.random.default_rng(seed), d, resolution=n)[0].astype(np.float64)


def noise(d, height=1.0, n=32, count=1, seed=1):
    return np.random.default_rng(seed).uniform(0, height, (count, *[n] * d))


def coordinates(d, n=32, half_width=5.0):
    line = np.linspace(-half_width, half_width, n + 2)[1:-1]
    return np.stack(np.meshgrid(*[line] * d, indexing="ij"))


def pockets(d, depths=(20, 20, 20), n=32):
    """Separate hollows in a plateau: levels lie close together, and some have no symmetry in common."""
    v = np.full((n,) * d, 20.0)
    low, high = slice(2, 9), slice(22, 29)
    for place, depth in zip(((low,) * d, (high,) * d, (*(low,) * (d - 1), high)), depths, strict=True):
        v[place] -= depth
    return v


DEGENERATE = {
    "empty": lambda d: np.zeros((32,) * d),
    "isotropic": lambda d: np.minimum(0.1 * (coordinates(d) ** 2).sum(0), 1),
    "twins": lambda d: np.where(np.abs(coordinates(d)[0]) < 1, 30.0, 0.0),
    "nearly twins": lambda d: np.where(np.abs(coordinates(d)[0] - 1e-9) < 1, 30.0, 1e-5 * coordinates(d)[0]),
    "pockets": pockets,
    "unlike pockets": lambda d: pockets(d, (20, 20.001, 19.99)),
}


SOLVED = [pytest.param(d, k, marks=[pytest.mark.thorough] * (d == 3 and k != 4)) for d in (2, 3) for k in (1, 2, 3, 4)]


@pytest.mark.parametrize(("d", "k"), SOLVED)
@pytest.mark.parametrize("family", [level_sets, noise], ids=["level sets", "noise"])
def test_energies_are_those_of_arpack(d, family, k):
    potentials = family(d, count=5 if d == 2 else 1, seed=k)
    expected = [energies_by_arpack(v, k + 3)[:k] for v in potentials]  # it is slow where the last level is degenerate
    np.testing.assert_allclose(lowest_eigenvalues(potentials, k=k), expected, rtol=PROMISED)


@pytest.mark.parametrize("name", DEGENERATE)
@pytest.mark.parametrize("d", [2, 3])
def test_degenerate_levels_are_all_found(d, name):
    """Whichever of them is the last that is asked for. On a coarser grid, where all levels can be had."""
    potential = DEGENERATE[name](d)[(slice(None, None, {2: 1, 3: 4}[d]),) * d]
    expected = np.linalg.eigvalsh(hamiltonian(potential).toarray())
    for k in range(1, 8):
        np.testing.assert_allclose(lowest_eigenvalues(potential, k=k), expected[:k], rtol=PROMISED)


@pytest.mark.parametrize("height", [10, 100, 1000])
def test_strong_potentials_take_longer_and_are_as_exact(height):
    """Beyond the order of one the guess is poor, and the basis starts again more than once."""
    for potential in (noise(2, height)[0], height * level_sets(2, 1)[0], -height * level_sets(2, 1, 5)[0]):
        expected = np.linalg.eigvalsh(hamiltonian(potential).toarray())[:4]
        np.testing.assert_allclose(lowest_eigenvalues(potential, k=4), expected, rtol=PROMISED)


GRIDS = [(1, 1), (1, 40), (1, 300), (2, 1), (2, 7), (2, 17), (3, 2), (3, 5), (3, 7), (3, 9)]


@pytest.mark.parametrize(("d", "n"), GRIDS)
def test_any_grid_and_any_number_of_levels(d, n):
    potential = noise(d, n=n)[0]
    expected = np.linalg.eigvalsh(hamiltonian(potential, half_width=2.0).toarray())
    for k in {1, min(n**d, 2), min(n**d, 30), n**d if n**d < 400 else 1}:
        found = lowest_eigenvalues(potential, 2.0, k, dimensions=d)
        np.testing.assert_allclose(found, expected[:k], rtol=PROMISED)


def test_an_empty_box_has_the_levels_of_standing_waves():
    """(1 − cos(πi/(n + 1)))/h² along each axis, which are π²i²/8L² to second order in h."""
    for d in (1, 2, 3):
        n, half_width = 32, 3.0
        h = 2 * half_width / (n + 1)
        line = (1 - np.cos(np.pi * np.arange(1, n + 1) / (n + 1))) / h**2
        levels = np.sort(sum(np.meshgrid(*[line] * d)), axis=None)[:6]
        np.testing.assert_allclose(empty_box_energies(n, d, half_width, 6), levels, rtol=1e-12)
        np.testing.assert_allclose(lowest_eigenvalues(np.zeros((n,) * d), half_width, 6), levels, rtol=1e-10)
    exact = np.pi**2 / 8 / 3.0**2 * 3
    errors = [empty_box_energies(n, 3, 3.0)[0] / exact - 1 for n in (15, 31, 63)]
    np.testing.assert_allclose(np.divide(errors[:-1], errors[1:]), 4, rtol=0.01)


@pytest.mark.parametrize(("d", "grids"), [(2, (15, 31, 63)), (3, (15, 31))])
def test_energies_tend_to_the_oscillators_at_second_order(d, grids):
    stiffness, centre = np.array([0.8, 1.5, 1.1])[:d], np.array([0.3, -0.2, 0.1])[:d]

    def error(n):
        away = coordinates(d, n) - centre.reshape(-1, *[1] * d)
        potential = (stiffness.reshape(-1, *[1] * d) / 2 * away**2).sum(0)
        return lowest_eigenvalues(potential)[0] - np.sqrt(stiffness).sum() / 2

    errors = [error(n) for n in grids]
    orders = np.log2(np.abs(np.divide(errors[:-1], errors[1:])))
    assert np.abs(orders - 2).max() < 0.1, orders


def test_a_separable_potential_has_sums_of_levels():
    lines = 3 * noise(1, n=24, count=3)
    levels = [np.linalg.eigvalsh(hamiltonian(v).toarray()) for v in lines]
    potential = lines[0][:, None, None] + lines[1][:, None] + lines[2]
    sums = np.sort(levels[0][:, None, None] + levels[1][:, None] + levels[2], axis=None)
    np.testing.assert_allclose(lowest_eigenvalues(potential, k=8), sums[:8], rtol=PROMISED)


@pytest.mark.parametrize("d", [2, 3])
def test_a_batch_is_its_potentials(d):
    """Hard and easy ones together, in any arrangement, as arrays or tensors of any precision."""
    empty = np.zeros((1, *[32] * d))
    potentials = np.concatenate([level_sets(d, 2), noise(d, 50), empty, noise(d), level_sets(d, 1, 7)])
    alone = np.stack([lowest_eigenvalues(v, k=2) for v in potentials])
    together = lowest_eigenvalues(potentials.reshape(2, 3, *[32] * d), k=2, dimensions=d)
    assert together.shape == (2, 3, 2) and together.dtype == np.float64
    np.testing.assert_allclose(together.reshape(6, 2), alone, rtol=PROMISED)
    few = torch.from_numpy(potentials[:2].astype(np.float32))
    found = lowest_eigenvalues(few, k=2)
    assert isinstance(found, torch.Tensor) and found.dtype == torch.float64
    np.testing.assert_allclose(found.numpy(), alone[:2], rtol=PROMISED)


@pytest.mark.parametrize("d", [2, 3])
def test_one_large_chunk_gives_what_many_small_ones_do(d, monkeypatch):
    """Other devices than a CPU take many potentials at once, which stop one by one."""
    potentials = np.concatenate([level_sets(d, 3, n=16), noise(d, 100, 16), pockets(d)[None][(..., *[slice(16)] * d)]])
    expected = lowest_eigenvalues(potentials, k=3, dimensions=d)
    monkeypatch.setattr(schrodinger, "POINTS_AT_ONCE", {})
    np.testing.assert_allclose(lowest_eigenvalues(potentials, k=3, dimensions=d), expected, rtol=PROMISED)


@pytest.mark.parametrize("d", [2, 3])
def test_rotations_and_reflections_leave_energies_alone(d):
    group = PointGroup(d)
    v = torch.from_numpy(level_sets(d, 1)).expand(group.order, *[32] * d)[:: 1 if d == 2 else 4]
    elements = torch.arange(group.order)[:: 1 if d == 2 else 4]
    energies = lowest_eigenvalues(group.act(elements, v), k=2, dimensions=d)
    assert ((energies.amax(0) - energies.amin(0)) / energies.amin(0)).max() < PROMISED


@settings(deadline=None, max_examples=40)
@given(st.integers(3, 20), st.integers(1, 3), st.integers(0, 99), st.sampled_from([0.5, 5.0]))
def test_bounds_shifts_and_units(n, d, seed, height):
    """Energies lie between those of the box at V's extremes, rise with V, shift with it, and scale as 1/length²."""
    n = min(n, 9) if d == 3 else n
    v = noise(d, height, n, seed=seed)[0]
    k = min(3, n**d)
    energies, empty = lowest_eigenvalues(v, k=k, dimensions=d), empty_box_energies(n, d, k=k)
    slack = PROMISED * (empty + height)
    assert (empty + v.min() - slack <= energies).all() and (energies <= empty + v.max() + slack).all()
    wave = v  # the mean of V where the empty box's ground state is
    for _ in range(d):
        wave = np.tensordot(wave, 2 / (n + 1) * np.sin(np.pi * np.arange(1, n + 1) / (n + 1)) ** 2, 1)
    assert energies[0] <= empty[0] + wave + slack[0]
    higher = lowest_eigenvalues(v + noise(d, 1, n, seed=seed + 1)[0], k=k, dimensions=d)
    assert (higher >= energies - slack).all()
    np.testing.assert_allclose(lowest_eigenvalues(v + 2, k=k, dimensions=d), energies + 2, rtol=2 * PROMISED)
    np.testing.assert_allclose(lowest_eigenvalues(9 * v, 5 / 3, k, dimensions=d), 9 * energies, rtol=2 * PROMISED)


@pytest.mark.parametrize("d", [1, 2, 3])
def test_states_solve_the_equation_and_are_orthonormal(d):
    potentials, h = level_sets(d, 2), 10 / 33
    energies, states = lowest_eigenpairs(potentials, k=3, dimensions=d)
    assert states.shape == (2, 3, *[32] * d)
    np.testing.assert_allclose(energies, lowest_eigenvalues(potentials, k=3, dimensions=d), rtol=PROMISED)
    for v, levels, modes in zip(potentials, energies, states.reshape(2, 3, -1), strict=True):
        np.testing.assert_allclose(modes @ modes.T * h**d, np.eye(3), atol=1e-12)
        np.testing.assert_allclose(hamiltonian(v) @ modes.T, levels * modes.T, atol=1e-5)
    assert (states[:, 0] > -1e-9).all(), "a ground state has no nodes"


def test_signs_of_states_do_not_depend_on_chance():
    """A mirrored potential has the mirrored states, but for the sign that is fixed anew."""
    v = 0.3 * (coordinates(2) ** 2 * np.array([1, 1.7])[:, None, None]).sum(0)
    _, states = lowest_eigenpairs(v, k=4)
    _, again = lowest_eigenpairs(v + 1e-9 * noise(2)[0], k=4)
    np.testing.assert_allclose(states, again, atol=1e-4)
    x, y = coordinates(2) / 20
    assert ((states * np.exp(x + 2 * y)).sum((1, 2)) > 0).all()


def test_the_tolerance_is_kept(monkeypatch):
    """The error's bound is one, whatever accuracy is asked for."""
    potentials = np.concatenate([level_sets(2, 20, n=17), noise(2, 20, 17, count=5)])
    expected = np.stack([np.linalg.eigvalsh(hamiltonian(v).toarray())[:2] for v in potentials])
    for tolerance in (1e-2, 1e-4, 1e-10):
        monkeypatch.setattr(schrodinger, "TOLERANCE", tolerance)
        error = np.abs(lowest_eigenvalues(potentials, k=2) / expected - 1).max()
        assert error < tolerance, (error, tolerance)


def test_what_is_not_reached_is_not_returned(monkeypatch):
    monkeypatch.setattr(schrodinger, "STEPS", 6)
    lowest_eigenvalues(level_sets(2, 1), k=1)
    with pytest.raises(NotConverged, match="the 1 lowest energies of 1 potentials were not found within 6 steps: ask"):
        lowest_eigenvalues(noise(2, 1000), k=1)


@pytest.mark.parametrize(
    ("shape", "dimensions", "expected"),
    [
        ((9,), None, ()),
        ((9, 9), None, ()),
        ((9, 9, 9), None, ()),
        ((4, 9, 9), None, (4,)),
        ((9, 9, 9), 2, (9,)),
        ((4, 9, 9, 9), None, (4,)),
        ((4, 9, 9, 9), 2, (4, 9)),
        ((2, 4, 9, 9), None, (2, 4)),
        ((4, 9), 1, (4,)),
    ],
)
def test_leading_axes_are_a_batch(shape, dimensions, expected):
    assert lowest_eigenvalues(np.zeros(shape), k=2, dimensions=dimensions).shape == (*expected, 2)


def spoilt(value):
    v = np.zeros((8, 8))
    v[2, 3] = value
    return v


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((np.zeros((4, 9)),), "potential is torch.float64 of shape (4, 9); expected real (…, n, n) or (…, n, n, n)"),
        ((np.zeros((4, 9, 8)),), "of shape (4, 9, 8); expected"),
        ((np.zeros((4, 9, 9)), 5.0, 1, 3), "of shape (4, 9, 9) in 3 dimensions; expected"),
        ((np.zeros((9, 9)), 5.0, 1, 4), "in 4 dimensions; expected"),
        ((np.zeros((0, 9, 9)),), "of shape (0, 9, 9)"),
        ((np.zeros((9, 9), complex),), "potential is torch.complex128"),
        ((spoilt(np.nan),), "potential has values that are not finite"),
        ((spoilt(np.inf),), "make a wall high instead"),
        ((np.zeros((9, 9)), 0.0), "half_width is 0.0; expected a positive length"),
        ((np.zeros((9, 9)), np.inf), "half_width is inf"),
        ((np.zeros((9, 9)), 5.0, 0), "k is 0; expected 1 to 81, the points of the grid"),
        ((np.zeros((9, 9)), 5.0, 82), "k is 82"),
    ],
)
def test_bad_input_is_one_line_with_advice(arguments, message):
    for solve in (lowest_eigenvalues, lowest_eigenpairs):
        with pytest.raises(ValueError) as raised:
            solve(*arguments)
        assert message in str(raised.value) and "\n" not in str(raised.value)


# The generators. Coarse grids are enough for what concerns distributions.


def uniform(values, low, high):
    from scipy.stats import kstest  # takes a while

    return kstest(np.ravel(values), "uniform", (low, high - low)).pvalue


@pytest.mark.parametrize("d", [2, 3])
def test_level_sets_are_drawn_as_they_say(d):
    _, parameters = level_set_potentials(400 if d == 2 else 60, np.random.default_rng(0), d, resolution=2)
    c = parameters["coefficients"]
    assert c.shape[1:] == (5,) * d
    assert uniform(abs(c), 0, 1) > 0.01 and uniform(np.angle(c), -np.pi, np.pi) > 0.01
    assert uniform(parameters["filling"], 0.01, 0.99) > 0.01
    assert uniform(parameters["height"] ** 2, 0, 1) > 0.01, "of two uniform numbers the larger is below x in x²"


@pytest.mark.parametrize(("d", "complexity"), [(2, 1), (2, 2), (3, 2)])
def test_potentials_are_blurred_level_sets_of_their_fourier_series(d, complexity):
    """Term by term on the fine points of the cell, cut at its quantile, blurred wave by wave, read inside the box."""
    n = 6
    potentials, parameters = level_set_potentials(2, np.random.default_rng(3), d, complexity, n)
    fine = np.stack(np.meshgrid(*[(np.arange(FINE) + 0.5) / FINE] * d, indexing="ij"))
    waves = np.arange(-12, 13)  # of which the shortest is damped to 1e-3
    damped = np.exp(-2 * (np.pi * BLUR * waves[:, None]) ** 2)
    here = np.exp(-2j * np.pi * np.outer(waves, np.arange(FINE) + 0.5) / FINE) / FINE
    there = np.exp(2j * np.pi * np.outer(0.5 + 0.06 * coordinates(1, n)[0], waves))
    for i in range(2):
        c = parameters["coefficients"][i]
        field = np.zeros((FINE,) * d)
        for index in np.ndindex(c.shape):
            g = np.array(index) - complexity
            field += (c[index] * np.exp(2j * np.pi * np.tensordot(g, fine, 1))).real
        inside = (field < np.quantile(field, parameters["filling"][i])).astype(complex)
        for axis in range(d):  # f(r) = Σ_g f_g exp(2πi g·r), each wave damped by its Gaussian
            inside = np.moveaxis(np.tensordot(there @ (damped * here), inside, (1, axis)), 0, axis)
        np.testing.assert_allclose(potentials[i], parameters["height"][i] * inside.real, atol=2e-3)


@pytest.mark.parametrize("d", [2, 3])
def test_potentials_lie_between_zero_and_their_height_and_are_smooth(d):
    potentials, parameters = level_set_potentials(40, np.random.default_rng(1), d, resolution=16)
    height = parameters["height"].reshape(-1, *[1] * d)
    assert (potentials >= 0).all() and (potentials <= height * (1 + 1e-6)).all()
    # A straight step of a Gaussian's integral has slope 1/√(2π)σ at most; here σ is 1/12 of the box.
    steepest = 12 / np.sqrt(2 * np.pi) / 17
    for axis in range(1, d + 1):
        assert (np.abs(np.diff(potentials, axis=axis)) <= steepest * height * 1.01).all()
    plateau = (potentials < 0.02 * height) | (potentials > 0.98 * height)
    assert 0.2 < plateau.mean() < 0.8


@pytest.mark.parametrize("d", [2, 3])
def test_a_potential_does_not_depend_on_the_grid_it_is_read_on(d):
    coarse, fine = (level_sets(d, 3, n=n) for n in (7, 15))
    np.testing.assert_allclose(fine[(slice(None), *[slice(1, None, 2)] * d)], coarse, atol=1e-6)


def test_wells_are_parabolas_with_a_ceiling():
    potentials, parameters = harmonic_wells(600, np.random.default_rng(0), 3, resolution=12)
    k, c = parameters["stiffness"], parameters["centre"]
    assert k.shape == c.shape == (600, 3)
    assert uniform(k, 0.01, 0.5) > 0.01 and uniform(c, -2.5, 2.5) > 0.01
    for i in range(0, 600, 50):
        expected = sum(k[i, a] / 2 * (coordinates(3, 12)[a] - c[i, a]) ** 2 for a in range(3))
        np.testing.assert_allclose(potentials[i], np.minimum(expected, 1), rtol=1e-5)
    assert potentials.dtype == np.float32 and potentials.max() == 1


# The problems' labels and surrogates; what every problem promises is in test_problems.py.


def test_oscillators_have_their_levels_and_densities():
    """Stiff wells in the middle neither reach the walls nor feel the grid much."""
    stiffness, centre = np.array([[1.0, 1.0], [1.2, 0.9]]), np.array([[0.0, 0.0], [0.4, -0.3]])
    away = coordinates(2, 47) - centre[..., None, None]
    potentials = (stiffness[..., None, None] / 2 * away**2).sum(1)
    for label, within in ((Energies(4), 5e-3), (Density(), 2e-2)):
        problem = Schrodinger2D(resolution=47, label=label)
        closed, solved = label.harmonic(problem, stiffness, centre), label.solve(problem, potentials)
        assert problem.error(torch.from_numpy(closed), torch.from_numpy(solved)).max() < within
    levels = Energies(4).harmonic(Schrodinger2D(), stiffness, centre)
    np.testing.assert_allclose(levels[0], [1, 2, 2, 3])
    np.testing.assert_allclose(levels[:, 0], np.sqrt(stiffness).sum(1) / 2)


@pytest.mark.parametrize("label", [Energies(), Energies(3), Density()], ids=["E0", "E0 to E2", "density"])
@pytest.mark.parametrize("surrogate", [CoarseGrid(), CoarseGrid(7), HarmonicWells()], ids=["5", "7", "wells"])
@pytest.mark.parametrize("d", [2, 3])
def test_every_label_goes_with_every_surrogate(d, surrogate, label):
    problem = replace(PROBLEMS[d], resolution=12, label=label, surrogate=surrogate)
    sample = problem.sample_surrogate(4, np.random.default_rng(0))
    expensive, cheap = problem.solve(sample.inputs), problem.solve_surrogate(sample)
    for labels in (expensive, cheap, problem.coarse(sample.inputs)):
        assert labels.shape == (4, *problem.label_shape) and labels.dtype == np.float32
    errors = problem.error(torch.from_numpy(cheap), torch.from_numpy(expensive))
    assert (errors > 1e-4).all() and errors.mean() < 0.6, "another label, but about the same thing"
    names = [fingerprint(p) for p in (problem, PROBLEMS[d], replace(problem, label=Energies(2)))]
    assert len(set(names)) == 3, "whatever changes a label names the data"


@pytest.mark.parametrize("d", [2, 3])
def test_the_coarse_grid_sees_roughly_the_same(d):
    problem = PROBLEMS[d]
    inputs = problem.sample(60 if d == 2 else 12, np.random.default_rng(0)).inputs
    fine, coarse = problem.solve(inputs)[:, 0], problem.coarse(inputs)[:, 0]
    assert 0.005 < np.abs(coarse / fine - 1).mean() < 0.08
    assert np.corrcoef(coarse, fine)[0, 1] > 0.99
    np.testing.assert_allclose(problem.coarse(inputs[:3], 32), problem.solve(inputs[:3]), rtol=PROMISED)


def test_the_coarse_grid_reads_a_slope_exactly():
    ramp = Schrodinger3D().coarse((0.1 * coordinates(3)[0])[None].astype(np.float32))[0, 0]
    exact = lowest_eigenvalues(0.1 * coordinates(3, 5)[0])[0]
    assert ramp == pytest.approx(exact, rel=1e-5)
    level = Schrodinger2D().coarse(np.full((1, 32, 32), 0.3, np.float32))[0, 0]
    assert level == pytest.approx(0.3 + empty_box_energies(5, 2)[0], rel=1e-6)


@pytest.mark.parametrize("d", [2, 3])
def test_coarse_labels_have_the_symmetries_of_the_fine_ones(d):
    problem = PROBLEMS[d]
    inputs = torch.from_numpy(problem.sample(8, np.random.default_rng(2)).inputs)
    moved = PointGroup(d).act(torch.arange(8) * (1 if d == 2 else 6), inputs)
    np.testing.assert_allclose(problem.coarse(moved.numpy()), problem.coarse(inputs.numpy()), rtol=2e-6)


@pytest.mark.parametrize("d", [2, 3])
def test_densities_are_normalised_and_turn_with_the_potential(d):
    problem = replace(PROBLEMS[d], resolution=16, label=Density())
    inputs = torch.from_numpy(problem.sample(4, np.random.default_rng(0)).inputs)
    for densities in (problem.solve(inputs.numpy()), problem.coarse(inputs.numpy()), problem.offset[None]):
        np.testing.assert_allclose(densities.reshape(len(densities), -1).sum(1) / 17**d, 1, rtol=1e-5)
    np.testing.assert_allclose(problem.offset, problem.solve(np.zeros((1, *[16] * d)))[0], atol=1e-5)
    group, elements = PointGroup(d), torch.tensor([1, 3, 5, 7])
    moved = torch.from_numpy(problem.solve(group.act(elements, inputs).numpy()))
    expected = group.act(elements, torch.from_numpy(problem.solve(inputs.numpy())))
    torch.testing.assert_close(moved, expected, atol=1e-4, rtol=0)
    assert not problem.symmetries and PROBLEMS[d].symmetries


def test_energies_are_not_below_the_offset():
    for problem in PROBLEMS.values():
        problem = replace(problem, resolution=16, label=Energies(3))
        labels = problem.solve(problem.sample(10, np.random.default_rng(0)).inputs)
        assert (labels >= problem.offset - 1e-6).all()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Energies(0), "levels is 0; it must be 1 or larger"),
        (lambda: Schrodinger2D(resolution=1), "resolution is 1 and complexity 2; give at least 2 points and 1"),
        (lambda: Schrodinger2D().coarse(np.zeros((1, 32, 32)), 33), "the coarse grid has 33 points; expected 1 to 32"),
        (lambda: Schrodinger2D().solve(np.full((1, 32, 32), np.nan)), "potential has values that are not finite"),
        (lambda: Schrodinger3D().solve(np.zeros((1, 32, 32))), "of shape (1, 32, 32) in 3 dimensions"),
    ],
)
def test_bad_problems_say_so_in_a_line(make, message):
    with pytest.raises(ValueError) as raised:
        make()
    assert message in str(raised.value) and "\n" not in str(raised.value)
