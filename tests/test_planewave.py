"""The band solver against closed forms, itself with more plane waves, its symmetries, and MPB."""

from functools import partial

import mpb_reference
import numpy as np
import pytest
import torch

from sibcl_ray.problems.photonic import disc_cells, level_set_cells
from sibcl_ray.solvers import planewave
from sibcl_ray.solvers.density_of_states import k_grid
from sibcl_ray.solvers.planewave import bands

POLARIZATIONS = list(planewave.POLARIZATIONS)
CELLS = level_set_cells(3, np.random.default_rng(11))[0]
GENERIC = np.array([[0.13, 0.29], [0.41, -0.07], [-0.22, 0.35]])


def relative(found, expected):
    """Deviation of frequencies; those below 0.02 count absolutely."""
    return np.abs(found - expected) / np.maximum(expected, 0.02)


@pytest.fixture
def full_basis(monkeypatch):
    """Solve a problem with all plane waves whatever the number of k-points."""

    def solve(*arguments):
        with monkeypatch.context() as patch:
            patch.setattr(planewave, "ANCHORS", planewave.ANCHORS * 100)
            return bands(*arguments)

    return solve


few_waves = partial(bands, cutoff=6)  # for claims that hold for any number of them


@pytest.mark.parametrize("polarization", POLARIZATIONS)
@pytest.mark.parametrize("k", [GENERIC, k_grid(11).numpy() + 0.003 * np.array([1, 2])], ids=["full", "reduced"])
def test_uniform_cell_has_the_empty_lattice_bands(polarization, k):
    index = 2.5
    frequencies, velocities = bands(np.full((32, 32), index**2), k, 6, polarization)
    waves = np.stack(np.meshgrid(range(-3, 4), range(-3, 4)), -1).reshape(-1, 2)
    q = k[:, None] + waves
    order = np.argsort(np.linalg.norm(q, axis=-1), axis=-1)[:, :6]
    q = np.take_along_axis(q, order[..., None], 1)
    length = np.linalg.norm(q, axis=-1)
    np.testing.assert_allclose(frequencies, length / index, rtol=1e-5)
    if len(k) == len(GENERIC):  # on the grid some bands nearly touch, and their modes mix
        np.testing.assert_allclose(velocities, q / length[..., None] / index, atol=1e-9)


@pytest.mark.parametrize("polarization", POLARIZATIONS)
def test_velocities_are_the_slopes_of_the_bands(polarization):
    step = 1e-4
    _, velocities = few_waves(CELLS, GENERIC, 6, polarization)
    for axis in range(2):
        shift = step * np.eye(2)[axis]
        ahead, behind = (few_waves(CELLS, GENERIC + s * shift, 6, polarization)[0] for s in (1, -1))
        np.testing.assert_allclose(velocities[..., axis], (ahead - behind) / (2 * step), atol=2e-5)


@pytest.mark.parametrize("polarization, largest", [pytest.param("tm", 1e-3, marks=pytest.mark.thorough), ("te", 3e-3)])
def test_reduced_modes_agree_with_all_plane_waves(polarization, largest, full_basis):
    some = np.arange(0, 625, 48)
    frequencies, velocities = bands(CELLS[:2], k_grid(), 10, polarization)
    exact, slopes = full_basis(CELLS[:2], k_grid()[some], 10, polarization)
    error = relative(frequencies[:, some], exact)
    assert error.max() < largest and error.mean() < largest / 15
    assert np.median(np.linalg.norm(velocities[:, some] - slopes, axis=-1)) < largest / 3


@pytest.mark.thorough
def test_more_plane_waves_change_little():
    few, _ = bands(CELLS[:1], GENERIC, 10)
    more, _ = bands(CELLS[:1], GENERIC, 10, cutoff=14)
    assert (more < few + 1e-9).all(), "frequencies fall as the basis grows"
    assert relative(few, more).max() < 1e-3


@pytest.mark.parametrize("polarization", POLARIZATIONS)
def test_symmetries_of_the_bands(polarization):
    frequencies, velocities = few_waves(CELLS, GENERIC, 8, polarization)
    images = {
        "opposite k": (CELLS, -GENERIC, 1, -velocities),
        "next zone": (CELLS, GENERIC + np.array([1, -2]), 1, velocities),
        "shift": (np.roll(CELLS, (3, 7), (1, 2)), GENERIC, 1, velocities),
        "transpose": (CELLS.swapaxes(1, 2), GENERIC[:, ::-1], 1, velocities[..., ::-1]),
        "mirror": (CELLS[:, ::-1], GENERIC * [-1, 1], 1, velocities * [-1, 1]),
        "scale": (4 * CELLS, GENERIC, 2, velocities),
    }
    for name, (cells, k, index, expected) in images.items():
        f, v = few_waves(np.ascontiguousarray(cells), np.ascontiguousarray(k), 8, polarization)
        np.testing.assert_allclose(f * index, frequencies, atol=1e-9, err_msg=name)
        np.testing.assert_allclose(v * index, expected, atol=1e-6, err_msg=name)


def test_a_cell_with_inversion_is_solved_in_real_numbers_with_the_same_bands():
    disc, _ = disc_cells(1, np.random.default_rng(2))
    waves = planewave.square(3, torch.device("cpu"))
    shifted = np.roll(disc, 5, 1)
    real, complex_ = (
        planewave.POLARIZATIONS["tm"](torch.tensor(x, dtype=torch.float64), waves).matrix for x in (disc, shifted)
    )
    assert not real.is_complex() and complex_.is_complex()
    np.testing.assert_allclose(bands(disc, k_grid(), 10)[0], bands(shifted, k_grid(), 10)[0], atol=1e-9)


def test_shapes_and_kinds():
    single = few_waves(CELLS[0], GENERIC, 4)
    batch = few_waves(torch.tensor(CELLS), torch.tensor(GENERIC), 4)
    assert [x.shape for x in single] == [(3, 4), (3, 4, 2)] and all(isinstance(x, np.ndarray) for x in single)
    assert [x.shape for x in batch] == [(3, 3, 4), (3, 3, 4, 2)] and all(isinstance(x, torch.Tensor) for x in batch)
    np.testing.assert_allclose(batch[0][0], single[0], atol=1e-12)


@pytest.mark.parametrize("k", [GENERIC, k_grid(9)], ids=["few", "grid"])
@pytest.mark.parametrize("n, n_bands", [(1, 1), (2, 1), (5, 16), (16, 3), (33, 30)])
def test_any_resolution_and_number_of_bands(n, n_bands, k):
    cells = np.random.default_rng(0).uniform(1, 9, (2, n, n))
    frequencies, velocities = bands(cells, k, n_bands)
    assert np.isfinite(velocities).all() and (np.diff(frequencies) >= 0).all()


BAD = {
    "not square": (np.ones((4, 5)), GENERIC, 1, "tm", "epsilon is .* shape \\(4, 5\\)"),
    "a vector": (np.ones(4), GENERIC, 1, "tm", "epsilon is .* shape \\(4,\\)"),
    "no cells": (np.ones((0, 8, 8)), GENERIC, 1, "tm", "epsilon is .* shape \\(0, 8, 8\\)"),
    "complex": (np.ones((8, 8)) * 1j, GENERIC, 1, "tm", "complex"),
    "zero": (np.zeros((8, 8)), GENERIC, 1, "tm", "from 0 to 0"),
    "nan": (np.full((8, 8), np.nan), GENERIC, 1, "tm", "from nan"),
    "three components": (np.ones((8, 8)), np.ones((5, 3)), 1, "tm", "k_points has shape \\(5, 3\\)"),
    "no k": (np.ones((8, 8)), np.ones((0, 2)), 1, "tm", "k_points has shape \\(0, 2\\)"),
    "infinite k": (np.ones((8, 8)), np.full((1, 2), np.inf), 1, "tm", "finite"),
    "no bands": (np.ones((8, 8)), GENERIC, 0, "tm", "n_bands is 0; expected 1 to 49"),
    "too many bands": (np.ones((8, 8)), GENERIC, 50, "tm", "n_bands is 50; expected 1 to 49"),
    "polarisation": (np.ones((8, 8)), GENERIC, 1, "tem", "'tem'; expected one of tm, te"),
}


@pytest.mark.parametrize("epsilon, k, n_bands, polarization, message", BAD.values(), ids=BAD)
def test_bad_input_ends_in_one_clear_line(epsilon, k, n_bands, polarization, message):
    with pytest.raises(ValueError, match=message) as caught:
        bands(epsilon, k, n_bands, polarization)
    assert "\n" not in str(caught.value)


@pytest.mark.skipif("not mpb_reference.available()", reason=mpb_reference.INSTALL)
@pytest.mark.parametrize(
    "polarization, largest, mean, slope",
    [("tm", 2e-3, 2e-4, 1e-3), pytest.param("te", 2e-2, 1e-2, 3e-3, marks=pytest.mark.thorough)],
)
def test_bands_agree_with_mpb(polarization, largest, mean, slope):
    k = k_grid(5).numpy()
    found = bands(CELLS, k, 10, polarization)
    *theirs, _ = mpb_reference.reference(CELLS, k, 10, polarization)
    frequencies, velocities = mpb_reference.lower_of_opposites(*theirs)
    error = relative(found[0], frequencies)
    assert error.max() < largest and error.mean((1, 2)).max() < mean and error.mean() < 3e-3
    assert np.median(np.linalg.norm(found[1] - velocities, axis=-1)) < slope
