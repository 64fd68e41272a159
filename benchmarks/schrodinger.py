"""How far the solver of Schrödinger's equation is from ARPACK, and how much faster, on the same matrix.

python benchmarks/schrodinger.py [--potentials 8] [--points 32] [--dimensions 3] [--levels 1]

ARPACK is `scipy.sparse.linalg.eigsh`: from below (`which="SA"`), at full precision and at a tolerance that gives about
our error, and, where it can be factorised, by inverse iteration (`sigma=0`). Both run on one thread; times are
processor seconds a potential, the matrix of ARPACK not counted; the two alternate, so that both see the same load.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["OPENBLAS_NUM_THREADS"] = "1"  # before NumPy is loaded

import numpy as np
import torch
from rows import Row, markdown
from scipy.sparse.linalg import eigsh

from sibcl_ray.problems.schrodinger import level_set_potentials
from sibcl_ray.solvers.schrodinger import lowest_eigenvalues

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the tests use the same reference
from box_reference import hamiltonian

LARGEST = 3000  # points of a grid whose matrix is factorised: beyond, the factors fill up


def timed(work: Callable[[], np.ndarray]) -> tuple[float, np.ndarray]:
    """Processor seconds, and the result."""
    start = time.process_time()
    result = work()
    return time.process_time() - start, result


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--potentials", type=int, default=8)
    parser.add_argument("--points", type=int, default=32, help="along an axis")
    parser.add_argument("--dimensions", type=int, default=3, choices=(2, 3))
    parser.add_argument("--levels", type=int, default=1, help="energies asked for")
    parser.add_argument("--seed", type=int, default=0)
    o = parser.parse_args(arguments)
    torch.set_num_threads(1)
    potentials, _ = level_set_potentials(o.potentials, np.random.default_rng(o.seed), o.dimensions, resolution=o.points)
    theirs: dict[str, dict] = {"ARPACK": {"which": "SA"}, "ARPACK, tol=1e-6": {"which": "SA", "tol": 1e-6}}
    if o.points**o.dimensions <= LARGEST:
        theirs["ARPACK, inverse"] = {"sigma": 0.0}
    seconds: dict[str, list[float]] = {name: [] for name in ("one a call", *theirs)}
    found: dict[str, list[np.ndarray]] = {name: [] for name in seconds}
    lowest_eigenvalues(potentials[:1], k=o.levels, dimensions=o.dimensions)  # the first call loads libraries
    for potential in potentials:
        spent, energies = timed(lambda v=potential: lowest_eigenvalues(v, k=o.levels))
        seconds["one a call"].append(spent)
        found["one a call"].append(energies)
        matrix = hamiltonian(potential)
        for name, options in theirs.items():
            spent, energies = timed(
                lambda m=matrix, how=options: eigsh(m, k=o.levels, return_eigenvectors=False, **how)
            )
            seconds[name].append(spent)
            found[name].append(np.sort(energies))
    together = f"{o.potentials} a call"
    spent, energies = timed(lambda: lowest_eigenvalues(potentials, k=o.levels, dimensions=o.dimensions))
    seconds[together], found[together] = [spent / o.potentials], list(energies)
    truth = np.array(found["ARPACK"])
    ours = np.mean(seconds[together])
    asked = "energy" if o.levels == 1 else f"{o.levels} energies"
    heading = f"{asked} of each of {o.potentials} potentials on {o.points}^{o.dimensions} points"
    return [
        {
            heading: f"ours, {name}" if name in ("one a call", together) else name,
            "seconds": f"{np.mean(times):.4f}",
            f"over ours, {together}": f"{np.mean(times) / ours:.1f}",
            "largest relative deviation": f"{np.abs(np.array(found[name]) / truth - 1).max():.0e}",
        }
        for name, times in seconds.items()
    ]


if __name__ == "__main__":
    print(markdown(main()))
