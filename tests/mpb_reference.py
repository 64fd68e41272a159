"""Bands from MIT Photonic-Bands, the independent reference; it lives in Debian's own Python.

`available()` says whether MPB can be used and `reference(...)` runs it in a subprocess. As a script,
`mpb_reference.py request.npz answer.npz`, this file is that subprocess and needs meep instead of torch.

MPB: S. G. Johnson and J. D. Joannopoulos, Opt. Express 8, 173 (2001).
"""

from __future__ import annotations

import functools
import os
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
    """Frequencies (B, K, n_bands), group velocities (B, K, n_bands, 2) and processor seconds (B,) of cells (B, n, n).

    MPB runs on one thread with its default tolerance, 1e-7, and (mesh_size = 1) on exactly these pixels.
    """
    with tempfile.TemporaryDirectory() as folder:
        request, answer = Path(folder, "request.npz"), Path(folder, "answer.npz")
        np.savez(request, epsilon=epsilon, k_points=k_points, n_bands=n_bands, polarization=polarization)
        environment = {k: v for k, v in os.environ.items() if not k.startswith(("PYTHON", "VIRTUAL_ENV"))}
        environment |= {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        command = [PYTHON, __file__, str(request), str(answer)]
        done = subprocess.run(command, capture_output=True, text=True, env=environment)
        if done.returncode:
            raise RuntimeError(f"MPB failed: {done.stderr.strip()[-500:]}")
        with np.load(answer) as found:
            return found["frequencies"], found["velocities"], found["seconds"]


def lower_of_opposites(frequencies: np.ndarray, velocities: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """The better of MPB's two answers for k and −k, on a k-grid that is its own reverse.

    MPB's iteration now and then misses a band and returns the next one (its answers for k and −k then
    differ by percents). Its frequencies are upper bounds, so the lower one is the better one.
    """
    swap = frequencies[:, ::-1] < frequencies
    lower = np.where(swap, frequencies[:, ::-1], frequencies)
    return lower, np.where(swap[..., None], -velocities[:, ::-1], velocities)


def _solve(epsilon: np.ndarray, k_points: np.ndarray, n_bands: int, polarization: str):
    import meep as mp
    from meep import mpb

    n = len(epsilon)

    def material(r):
        i, j = (round((x + 0.5) * n) % n for x in (r.x, r.y))
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

    start = time.process_time()  # one thread: wall time, were the machine idle
    {"tm": solver.run_tm, "te": solver.run_te}[polarization](collect)
    return np.array(solver.all_freqs), np.array(velocities), time.process_time() - start


if __name__ == "__main__":
    with np.load(sys.argv[1]) as request:
        cells = request["epsilon"].astype(float)
        arguments = request["k_points"], int(request["n_bands"]), str(request["polarization"])
    frequencies, velocities, seconds = zip(*(_solve(cell, *arguments) for cell in cells), strict=True)
    np.savez(sys.argv[2], frequencies=frequencies, velocities=velocities, seconds=seconds)
