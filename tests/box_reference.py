"""H = −½∇² + V in a box as a sparse matrix, and its levels by ARPACK: the reference of tests and benchmarks."""

import functools

import numpy as np
from scipy import sparse
from scipy.sparse.linalg import eigsh


def hamiltonian(potential, half_width=5.0):
    """Second-order finite differences on the interior points of [−half_width, half_width]^d, as a CSC matrix."""
    n, d = len(potential), potential.ndim
    hop = 0.5 / (2 * half_width / (n + 1)) ** 2
    line = sparse.diags([-hop, 2 * hop, -hop], [-1, 0, 1], shape=(n, n))
    one = sparse.identity(n)
    axes = [functools.reduce(sparse.kron, [line if b == a else one for b in range(d)]) for a in range(d)]
    return (sum(axes) + sparse.diags(potential.ravel().astype(float))).tocsc()


def energies_by_arpack(potential, k, half_width=5.0, **options):
    """The k lowest energies, ascending, to machine precision if ``options`` of eigsh do not say otherwise."""
    options = {"which": "SA", **options}
    return np.sort(eigsh(hamiltonian(potential, half_width), k=k, return_eigenvectors=False, **options))
