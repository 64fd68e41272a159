"""The photonic problems of bands and gaps: known cases, what moves the label and how, and options that go wrong."""

import numpy as np
import pytest
import torch

from sibcl_ray.problems.photonic import PhotonicBands, PhotonicGap, gap_grid, grid_bands
from sibcl_ray.solvers.density_of_states import GRID, k_grid
from sibcl_ray.solvers.fine_bands import fine_bands
from sibcl_ray.solvers.planewave import bands


def drawn(problem, count=4, seed=3):
    return problem.sample(count, np.random.default_rng(seed)).inputs


def rods(n, radius=0.2, epsilon=8.9):
    """Dielectric rods in air."""
    points = (np.arange(8 * n) + 0.5) / (8 * n) - 0.5
    inside = np.hypot(points[:, None], points) < radius
    return (1 + (epsilon - 1) * inside.reshape(n, 8, n, 8).mean((1, 3)))[None].astype(np.float32)


@pytest.fixture(scope="module")
def cells():
    return drawn(PhotonicBands())


@pytest.fixture(scope="module")
def labels(cells):
    return PhotonicBands().solve(cells)


# Bands.


def test_labels_are_the_bands_on_the_grid(cells, labels):
    frequencies, _ = bands(cells, k_grid(), 6)
    k = k_grid().reshape(GRID, GRID, 2)
    assert labels.shape == (4, 6, GRID, GRID)
    assert np.array_equal(labels[2, 3, 7, 20], np.float32(frequencies[2, 7 * GRID + 20, 3]))
    assert k[7, 20].tolist() == pytest.approx([7.5 / 25 - 0.5, 20.5 / 25 - 0.5])
    assert (np.diff(labels, axis=1) >= 0).all()


@pytest.mark.parametrize("chosen", [(1,), (6,), (2, 4)])
def test_some_bands_are_those_of_all(chosen, cells, labels):
    problem = PhotonicBands(bands=chosen)
    found = problem.solve(cells)
    assert found.shape[1:] == problem.label_shape == problem.offset.shape == (len(chosen), GRID, GRID)
    # Of fewer bands the basis is smaller, and the answer differs as far as bases do.
    assert problem.error(*map(torch.from_numpy, (found, labels[:, np.array(chosen) - 1]))).max() < 1e-3


@pytest.mark.parametrize("polarization", ["tm", "te"])
def test_uniform_cells_have_the_bands_of_the_empty_lattice(polarization):
    """Offset and estimate are right where there is nothing to learn."""
    problem = PhotonicBands(polarization=polarization)
    uniform = np.stack([np.full((32, 32), epsilon, np.float32) for epsilon in (1.0, 10.5, 19.0)])
    found = problem.solve(uniform)
    np.testing.assert_allclose(found, problem.estimate(uniform), atol=1e-5)
    np.testing.assert_allclose(found[1], problem.offset, atol=1e-5)


def test_the_estimate_is_much_nearer_than_the_offset(cells, labels):
    problem = PhotonicBands()
    offset, estimate = torch.from_numpy(problem.offset), torch.from_numpy(problem.estimate(cells))
    truth = torch.from_numpy(labels)
    assert problem.error(estimate, truth).mean() < 0.2 * problem.error(offset.expand_as(truth), truth).mean()


def test_the_k_grid_turns_with_the_cell(cells, labels):
    """A quarter turn of the pixels is one of the k-grid, and no other of the eight elements fits."""
    problem = PhotonicBands()
    equivariance = problem.equivariances["point_group"]
    x, y = torch.from_numpy(cells[:1]), torch.from_numpy(labels[:1])
    turned = torch.from_numpy(problem.solve(np.rot90(cells[:1], axes=(1, 2)).copy()))
    assert problem.error(turned, torch.rot90(y, 1, (2, 3))).item() < 2e-4
    fits = []
    for element in torch.arange(8)[:, None]:
        image = equivariance.group.act(element, x)
        if torch.equal(image, torch.rot90(x, 1, (1, 2))):
            fits.append(problem.error(turned, equivariance.on_labels(element, y)).item() < 2e-4)
        else:  # ω(−k) = ω(k): half a turn more is no difference in the label
            opposite = torch.equal(image, torch.rot90(x, 3, (1, 2)))
            assert opposite or problem.error(turned, equivariance.on_labels(element, y)).item() > 1e-3
    assert fits == [True]


def test_denser_cells_are_slower_by_the_root(cells, labels):
    scaling = PhotonicBands().equivariances["scaling"]
    moved = scaling.on_labels(torch.full((4,), 4.0), torch.from_numpy(labels))
    np.testing.assert_allclose(moved.numpy(), labels / 2, rtol=1e-6)
    np.testing.assert_allclose(PhotonicBands().solve(4 * cells), labels / 2, rtol=1e-4, atol=1e-6)


def test_where_the_frequency_is_zero_the_error_has_no_say(labels):
    problem = PhotonicBands()
    truth = torch.from_numpy(labels)
    assert (truth[:, 0, GRID // 2, GRID // 2] < 1e-6).all()
    wrong = truth.clone()
    wrong[:, 0, GRID // 2, GRID // 2] = 7
    assert torch.equal(problem.error(wrong, truth), torch.zeros(4))
    np.testing.assert_allclose(problem.error(1.1 * truth, truth), 0.1, rtol=1e-4)


# Gaps.


@pytest.mark.parametrize("polarization", ["tm", "te"])
@pytest.mark.parametrize("complexity", [1, 6])
def test_uniform_cells_have_no_gap(polarization, complexity):
    problem = PhotonicGap(polarization=polarization, complexity=complexity)
    assert problem.solve(np.full((1, 32, 32), 7.0, np.float32)) < 1e-5


@pytest.mark.parametrize("solver", [fine_bands, lambda *how: bands(*how)[0]], ids=["fine", "smooth"])
def test_rods_in_air_have_the_gap_of_the_textbook(solver):
    """TM, r = 0.2 a, ε = 8.9: closed for TE, for TM from 0.32 to 0.44, 31 % (Joannopoulos et al., Molding, ch. 5)."""
    frequencies = solver(rods(32), gap_grid(), 6, "tm")
    low, high = frequencies[..., 0].max(), frequencies[..., 1].min()
    assert low == pytest.approx(0.32, abs=0.005) and high == pytest.approx(0.44, abs=0.005)
    assert PhotonicGap().gaps(frequencies).item() == pytest.approx(0.31, abs=0.01)
    assert PhotonicGap(bands=(1, 2)).gaps(frequencies).item() == pytest.approx(0.31, abs=0.01)


def test_rods_in_air_through_the_problem():
    assert PhotonicGap(bands=(1, 2)).solve(rods(32)).item() == pytest.approx(0.31, abs=0.01)
    assert PhotonicGap(bands=(1, 2), polarization="te").solve(rods(32)).item() == 0


def test_gaps_are_those_between_the_bands_asked_for():
    frequencies = np.array([[[0.1, 0.3, 0.5, 0.9, 1.3, 1.5], [0.2, 0.4, 0.6, 0.9, 1.4, 1.6]]])
    expected = {(1, 2): 0.1 / 0.25, (2, 3): 0.1 / 0.45, (3, 4): 0.3 / 0.75, (4, 5): 0.4 / 1.1, (5, 6): 0.1 / 1.45}
    for pair, ratio in expected.items():
        assert PhotonicGap(bands=pair).gaps(frequencies).item() == pytest.approx(ratio)
    assert PhotonicGap().gaps(frequencies).item() == pytest.approx(max(expected.values()))
    closed = np.array([[[0.1, 0.3], [0.35, 0.4]]]).repeat(3, axis=2)
    assert PhotonicGap(bands=(1, 2)).gaps(np.sort(closed)).item() == 0


def test_the_grid_holds_the_zones_centre_corners_and_edges():
    k = gap_grid().round(12).tolist()
    assert len(k) == 23**2
    assert all(point in k for point in ([0, 0], [0.5, 0], [0, -0.5], [0.5, 0.5], [-0.5, 0.5]))


@pytest.mark.parametrize("polarization, within", [("tm", 2e-3), ("te", 1e-2)])
def test_both_solvers_give_the_same_gaps(polarization, within, cells):
    smooth, fine = (
        grid_bands(cells, gap_grid(), lambda c, k, solver=solver: solver(c, k))
        for solver in (
            lambda c, k: bands(c, k, 6, polarization)[0],
            lambda c, k: fine_bands(c, k, 6, polarization),
        )
    )
    gaps = [PhotonicGap().gaps(frequencies) for frequencies in (smooth, fine)]
    assert np.abs(gaps[0] - gaps[1]).max() < within


def test_symmetric_cells_are_solved_on_an_eighth_of_the_zone():
    """And mixed with others they come back in their places."""
    asked = []

    def solver(cells, k):
        asked.append((len(cells), len(k)))
        return np.stack([np.hypot(*k.T) * cell.mean() for cell in cells])[..., None]

    discs = PhotonicGap().sample_surrogate(2, np.random.default_rng(0)).inputs
    mixed = np.concatenate([discs[:1], drawn(PhotonicGap(), 2), discs[1:]])
    found = grid_bands(mixed, gap_grid(), solver)
    assert sorted(asked) == [(2, 78), (2, 529)]
    expected = np.hypot(*gap_grid().T) * mixed.mean((1, 2))[:, None]
    np.testing.assert_allclose(found[..., 0], expected, rtol=1e-6)


BAD = [
    (PhotonicBands, {"polarization": "tem"}, "polarization is 'tem'; expected one of tm, te"),
    (PhotonicGap, {"polarization": "x"}, "polarization is 'x'; expected one of tm, te"),
    (PhotonicBands, {"bands": ()}, "bands are \\(\\); give one or several"),
    (PhotonicBands, {"bands": (0,)}, "counted from 1"),
    (PhotonicBands, {"bands": (2, 2)}, "each once"),
    (PhotonicGap, {"bands": (1, 3)}, "bands are \\(1, 3\\); expected two neighbours"),
    (PhotonicGap, {"bands": (6, 7)}, "from \\(1, 2\\) to \\(5, 6\\)"),
]


@pytest.mark.parametrize("problem, options, message", BAD)
def test_options_that_cannot_be_end_in_one_clear_line(problem, options, message):
    with pytest.raises(ValueError, match=message) as caught:
        problem(**options)
    assert "\n" not in str(caught.value)
