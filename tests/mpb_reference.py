"""Bands from MIT Photonic-Bands, the independent reference; it lives in Debian's own Python.

`available()` says whether MPB can be used, `reference(...)` runs it in a subprocess. Run as a script
(`python mpb_reference.py request.npz answer.npz`) this file is that subprocess and needs meep, not torch.

MPB: S. G. Johnson and J. D. Joannopoulos, Opt. Express 8, 173 (2001).
"""

from __future__ import annotations

import functools
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PYTHON = "/usr/bin/python3"
INSTALL = "MPB is absent: apt-get install python3-meep python3-matplotlib python3-h5py"


@functools.cache
def available() -> bool:
    """Whether Debian's Python can import meep.mpb."""
    try:
        return subprocess.run([PYTHON, "-c", "import meep.mpb"], capture_output=True).returncode == 0
    except OSError:
        return False


def reference(
    epsilon: np.ndarray, k_points: np.ndarray, n_bands: int, polarization: str = "tm"
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Frequencies (B, K, n_bands), group velocities (B, K, n_bands, 2) and seconds (B,) of cells (B, n, n).

    MPB uses one thread, its default tolerance of 1e-7 and, with mesh_size = 1, exactly the given pixels.
    """
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder, "request.npz"), Path(folder, "answer.npz")
        np.savez(request, epsilon=epsilon, k_points=k_points, n_bands=n_bands, polarization=polarization)
        command = [PYTHON, __file__, str(request), str(answer)]
        environment = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "PATH": "/usr/bin:/bin"}
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(f"MPB failed: {done.stderr.strip().splitlines()[-1]}")
        with np.load(answer) as found:
            return found["frequencies"], found["velocities"], found["seconds"]


def _solve(epsilon: np.ndarray, k_points: np.ndarray, n_bands: int, polarization: str):
    import meep as mp
    from meep import mpb

    n = len(epsilon)

    def material(r):
        i, j = (int(round((x + 0.5) * n)) % n for x in (r.x, r.y))
        return mp.Medium(epsilon=epsilon[i, j])

    solver = mpb.ModeSolver(
        num_bands=n_bands,
        k_points=[mp.Vector3(*k) for k in k_points],
        geometry_lattice=mp.Lattice(size=mp.Vector3(1, 1)),
        default_material=material,
        resolution=n,
        mesh_size=1,
    )
    velocities = []

    def collect(solver):
        velocities.append([[v.x, v.y] for v in solver.compute_group_velocities()])

    start = time.perf_counter()
    {"tm": solver.run_tm, "te": solver.run_te}[polarization](collect)
    seconds = time.perf_counter() - start
    return np.array(solver.all_freqs), np.array(velocities), seconds


if __name__ == "__main__":
    with np.load(sys.argv[1]) as request:
        cells = request["epsilon"].astype(float)
        arguments = request["k_points"], int(request["n_bands"]), str(request["polarization"])
    frequencies, velocities, seconds = zip(*(_solve(cell, *arguments) for cell in cells))
    np.savez(sys.argv[2], frequencies=frequencies, velocities=velocities, seconds=seconds)
