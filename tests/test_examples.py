"""The examples in studies/: short, right, with the symmetries they declare; the drum's tests are in test_own."""

import runpy
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from processes import ROOT, SCRIPT, environment
from test_problems import cpu_seconds

from sibcl_ray.problems.tabulated import load
from sibcl_ray.user_module import loading

EXAMPLES = sorted((ROOT / "studies").glob("my_*.py"))


def test_the_examples_are_short():
    assert len(EXAMPLES) == 4
    assert {path.name: lines for path in EXAMPLES if (lines := path.read_text().count("\n")) >= 60} == {}


# Light on a hexagonal lattice


@pytest.fixture(scope="module")
def rods():
    return loading.load(f"{ROOT}/studies/my_symmetry.py:HexagonalRods")


def on_a_fine_grid(epsilon, n, k=(2 / 3, 1 / 3)):
    """The three lowest frequencies, by differences between the six neighbours of each of n × n points."""
    from scipy.sparse import coo_matrix, diags
    from scipy.sparse.linalg import eigsh

    i, j = np.indices((n, n))
    row, ones = (i * n + j).ravel(), np.ones(n * n, complex)
    laplacian = coo_matrix((6 * ones, (row, row)), (n * n, n * n))
    for a, b in ((1, 0), (0, 1), (1, -1), (-1, 0), (0, -1), (-1, 1)):
        phase = np.exp(2j * np.pi * (k[0] * a + k[1] * b) / n)
        laplacian = laplacian - coo_matrix((phase * ones, (row, ((i + a) % n * n + (j + b) % n).ravel())))
    values = eigsh(
        (laplacian * n**2 / 6 / np.pi**2).tocsc(), 3, diags(epsilon.ravel()).tocsc(), sigma=0, return_eigenvectors=False
    )
    return np.sqrt(np.sort(values))


def test_frequencies_on_the_hexagonal_lattice_are_right(rods):
    """In a uniform medium ω = |K|/√ε three times; a crystal of one round rod has a Dirac point at K; and labels are
    those of finite differences."""
    uniform = rods.solve(np.full((1, 32, 32), 4, np.float32))
    np.testing.assert_allclose(uniform, np.full((1, 3), 2 / 3 / 2), rtol=1e-6)
    x, y = ((np.indices((32, 32)) / 32 + 0.5) % 1) - 0.5
    symmetric = rods.solve((1 + 9 * (x**2 + x * y + y**2 < 0.04))[None].astype(np.float32))[0]
    assert np.diff(symmetric).min() < 1e-6 < 0.01 < np.diff(symmetric).max()
    inputs = rods.sample(2, np.random.default_rng(0)).inputs
    for epsilon, label in zip(inputs, rods.solve(inputs), strict=True):
        # Pixel p of the input is a sample at p, so its values reach half a pixel to both sides.
        fine = np.roll(np.kron(epsilon, np.ones((3, 3))), (-1, -1), (0, 1))
        np.testing.assert_allclose(label, on_a_fine_grid(fine, 96), rtol=2e-2)


def test_the_hexagonal_label_is_invariant(rods):
    """Under every element of C6v; a square's rotation is no symmetry of it."""
    x = torch.from_numpy(rods.sample(1, np.random.default_rng(1)).inputs)
    label, group = rods.solve(x.numpy()), rods.symmetries["point_group"]
    images = group.act(torch.arange(12), x.expand(12, 32, 32))
    assert group.order == 12 and len(images.unique(dim=0)) == 12
    np.testing.assert_allclose(rods.solve(images.numpy()), np.repeat(label, 12, 0), rtol=1e-5)
    shifted = rods.symmetries["translation"].act(torch.tensor([[5, 11]]), x)
    np.testing.assert_allclose(rods.solve(shifted.numpy()), label, rtol=1e-5)
    assert np.abs(rods.solve(np.rot90(x.numpy(), axes=(1, 2))) / label - 1).max() > 1e-3


def test_the_estimate_of_the_rods_is_cheap_and_near(rods):
    inputs = rods.sample(60, np.random.default_rng(0)).inputs
    labels, estimates = (torch.from_numpy(solve(inputs)) for solve in (rods.solve, rods.estimate))
    guess = labels.mean(0).expand_as(labels)
    assert rods.error(estimates, labels).mean() < rods.error(guess, labels).mean() / 2
    assert cpu_seconds(rods.estimate, inputs) < cpu_seconds(rods.solve, inputs) / 3


# Electrons in a crystal, from HDF5


@pytest.fixture(scope="module")
def arrays():
    return runpy.run_path(str(ROOT / "studies" / "my_arrays.py"))


def test_the_folder_of_arrays_is_a_problem(arrays, tmp_path):
    arrays["write"](tmp_path, target=110, surrogate=30)
    problem = load(tmp_path)
    assert (problem.input_shape, problem.label_shape) == ((32, 32), (65,))
    assert problem.available == {"surrogate": 30, "unlabelled": 0, "test": 100, "target": 10}
    assert list(problem.symmetries) == ["translation", "point_group"]


def test_the_spectra_are_right_and_have_the_symmetries_of_the_square(arrays):
    """Free electrons have π states per energy; a constant potential moves them; plane waves suffice."""
    spectra, energies = arrays["density_of_states"], arrays["ENERGIES"]
    free, lifted = spectra(np.stack([np.zeros((32, 32)), np.ones((32, 32))]), 3, 24)
    assert np.abs(free[energies > 0.8] - np.pi).max() < 0.05 and free[energies < -1].max() < 1e-3
    np.testing.assert_allclose(lifted[16:], free[:-16], atol=1e-9)
    potentials = arrays["crystals"](10, np.random.default_rng(0))
    labels, accurate, cheap = (spectra(potentials, *of) for of in ((3, 6), (4, 8), (2, 4)))
    total, guess = labels.sum(), np.abs(labels.mean(0) - labels).sum()
    assert np.abs(accurate - labels).sum() < 0.02 * total < np.abs(cheap - labels).sum() < 0.7 * guess
    for image in (np.roll(potentials, (3, 7), (1, 2)), np.rot90(potentials, axes=(1, 2)), potentials[:, ::-1]):
        np.testing.assert_allclose(spectra(image, 3, 6), labels, atol=1e-9)


@pytest.mark.thorough
@pytest.mark.parametrize("name", ["electrons", "hexagonal-rods"])
def test_a_study_of_the_example_runs(name, tmp_path):
    """As its first lines say, at the smallest scale."""
    options = ["--problem", "studies/my_symmetry.py:HexagonalRods"]
    if name == "electrons":
        subprocess.run([sys.executable, "studies/my_arrays.py", str(tmp_path / "data")], check=True, cwd=ROOT)
        options = ["--problem", "tabulated", "--data", str(tmp_path / "data")]
    command = [sys.executable, SCRIPT, *options, "--scale", "smoke", "--storage", str(tmp_path / "runs")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment(), timeout=300)
    assert done.returncode == 0, done.stdout + done.stderr
    matrix = pd.read_parquet(tmp_path / "runs" / "studies" / f"{name}-smoke-0" / "matrix.parquet")
    assert set(matrix.state) == {"done"} and {"SL", "SIB-CL"} <= set(matrix.method)
