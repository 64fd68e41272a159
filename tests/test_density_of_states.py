"""The density of states against its sum rule, the empty lattice, a histogram, its symmetries, and MPB."""

import mpb_reference
import numpy as np
import pytest
import torch

from sibcl_ray.problems.photonic import disc_cells, level_set_cells
from sibcl_ray.solvers import density_of_states
from sibcl_ray.solvers.density_of_states import (
    EMPTY_LATTICE,
    N_BINS,
    N_POINTS,
    SMOOTHING,
    gilat_raubenheimer,
    k_grid,
    normalised_dos,
    photonic_dos,
)
from sibcl_ray.solvers.planewave import bands

CELLS = level_set_cells(3, np.random.default_rng(12))[0]
DISCS = disc_cells(2, np.random.default_rng(13))[0]


def deviation(found, expected):
    """Σ|Δ| / Σ|true| over the points 100 … 399."""
    return np.abs(found - expected)[..., 100:].sum(-1) / np.abs(expected)[..., 100:].sum(-1)


def random_bands(rng, n_k=49):
    """Two linear bands and above them a flat one, which keeps all of them inside the histogram."""
    frequencies, velocities = rng.uniform(0.4, 0.8, (n_k, 3)), rng.normal(0, 0.5, (n_k, 3, 2))
    frequencies[:, 2], velocities[:, 2] = 1.2, 0
    return torch.tensor(frequencies), torch.tensor(velocities)


def test_k_grid_is_cell_centred_with_kx_slowest():
    k = k_grid(5)
    np.testing.assert_allclose(k[:2], [[-0.4, -0.4], [-0.4, -0.2]], atol=1e-15)
    np.testing.assert_allclose(k, -k.flip(0), atol=1e-15)


@pytest.mark.parametrize("index", [1.0, 3.0])
def test_uniform_cell_has_the_empty_lattice_dos(index):
    dos = photonic_dos(np.full((32, 32), index**2))
    assert dos.shape == (N_POINTS,)
    assert deviation(dos, EMPTY_LATTICE) < 2e-4


def test_the_dos_integrates_to_the_number_of_bands():
    density, width = gilat_raubenheimer(*random_bands(np.random.default_rng(0)), 1 / 7)
    assert float(density.sum() * width) == pytest.approx(3, abs=1e-5)


def test_gilat_raubenheimer_is_the_histogram_of_linear_bands():
    rng = np.random.default_rng(1)
    frequencies, velocities = random_bands(rng)
    density, width = gilat_raubenheimer(frequencies, velocities, 1 / 7)
    offsets = (np.stack(np.meshgrid(np.arange(400), np.arange(400)), -1).reshape(-1, 2) + 0.5) / 400 - 0.5
    samples = frequencies.numpy()[..., None] + velocities.numpy() @ offsets.T / 7
    samples += rng.normal(0, SMOOTHING * width.item(), samples.shape)
    edges = np.linspace(0, N_BINS * width.item(), 81)
    brute = np.histogram(samples, edges)[0] / samples.size * 3
    ours = density.reshape(80, -1).sum(-1) * width
    np.testing.assert_allclose(ours, brute, atol=2e-3)


def test_flat_bands_become_gaussians():
    density, width = gilat_raubenheimer(torch.full((4, 1), 0.5), torch.zeros(4, 1, 2), 0.5)
    place = (torch.arange(N_BINS) * width - 0.5) / (SMOOTHING * width)
    gaussian = torch.exp(-(place**2) / 2) / (SMOOTHING * width * np.sqrt(2 * np.pi))
    np.testing.assert_allclose(density, gaussian, atol=2e-4 * float(gaussian.max()))


def test_a_batch_is_its_cells_one_by_one():
    together = photonic_dos(torch.tensor(np.concatenate([CELLS[:1], DISCS[:1], CELLS[1:]])))
    for dos, cell in zip(together, (CELLS[0], DISCS[0], CELLS[1], CELLS[2]), strict=True):
        np.testing.assert_allclose(dos, photonic_dos(cell), atol=1e-9)


IMAGES = {
    "shift": lambda x: np.roll(x, (3, 9), (1, 2)),
    "transpose": lambda x: x.swapaxes(1, 2).copy(),
    "mirror": lambda x: x[:, ::-1].copy(),
    "turn": lambda x: np.rot90(x, axes=(1, 2)).copy(),
    "scale": lambda x: 0.5 * x,
}


@pytest.mark.parametrize("image", IMAGES.values(), ids=IMAGES)
def test_symmetries_leave_the_dos_unchanged(image):
    assert deviation(photonic_dos(image(CELLS)), photonic_dos(CELLS)).max() < 1e-4


def test_cells_with_square_symmetry_need_only_the_irreducible_k_points():
    assert density_of_states.has_square_symmetry(torch.tensor(np.concatenate([CELLS, DISCS]))).tolist() == [
        False, False, False, True, True,
    ]  # fmt: skip
    k, weights = density_of_states._irreducible_grid()
    assert len(k) == 13 * 14 // 2 and float(weights.sum()) == pytest.approx(1)
    cells = torch.tensor(DISCS)
    full = normalised_dos(cells, *bands(cells, k_grid(), 10)).numpy()
    assert deviation(photonic_dos(DISCS), full).max() < 1e-3


def test_what_is_no_cell_is_rejected():
    for bad in (np.ones(5), np.ones((3, 4)), np.zeros((4, 4)), np.ones((0, 8, 8))):
        with pytest.raises(ValueError, match="epsilon"):
            photonic_dos(bad)


@pytest.mark.thorough
@pytest.mark.skipif("not mpb_reference.available()", reason=mpb_reference.INSTALL)
def test_dos_agrees_with_mpb():
    *theirs, _ = mpb_reference.reference(CELLS[:1], k_grid().numpy(), 10)
    reference = (torch.tensor(x.copy()) for x in mpb_reference.lower_of_opposites(*theirs))
    expected = normalised_dos(torch.tensor(CELLS[:1]), *reference).numpy()
    assert deviation(photonic_dos(CELLS[:1]), expected).max() < 3e-3
