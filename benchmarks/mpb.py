"""How far the band solver is from MIT Photonic-Bands (MPB), and how much faster.

`python benchmarks/mpb.py --cells 24 --seed 0 --polarization tm`; MPB comes from Debian:
`apt-get install python3-meep python3-matplotlib python3-h5py`. Both run on one thread, on the same pixels,
for the 25 × 25 k-points and 10 bands of a label, with group velocities; our time includes the density of states.
Groups of cells alternate between the two, so that both see the same load of the machine.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path

os.environ["OMP_NUM_THREADS"] = os.environ["MKL_NUM_THREADS"] = "1"  # before NumPy and torch start theirs

import numpy as np
import torch

sys.path[:0] = [str(Path(__file__).parents[1]), str(Path(__file__).parents[1] / "tests")]

import mpb_reference

from sibcl_ray.problems.photonic import disc_cells, level_set_cells
from sibcl_ray.solvers.density_of_states import N_BANDS, k_grid, normalised_dos, photonic_dos
from sibcl_ray.solvers.planewave import bands

GROUP = 4
TARGETS = {  # figure: (largest allowed in tm, in te)
    "frequency, largest relative deviation, worst cell": (2e-3, None),
    "frequency, mean relative deviation, worst cell": (2e-4, 1e-2),
    "frequency, mean relative deviation, mean over cells": (None, 3e-3),
    "group velocity, median deviation in c, worst cell": (1e-3, None),
    "density of states, relative deviation, worst cell": (3e-3, None),
}


def cells_to_compare(count: int, seed: int) -> np.ndarray:
    """Random level-set cells; in the first two the contrast is stretched to the extreme, 1 : 20."""
    epsilon, _ = level_set_cells(count, np.random.default_rng(seed))
    low, high = epsilon.min((1, 2), keepdims=True), epsilon.max((1, 2), keepdims=True)
    stretched = (1 + 19 * (epsilon - low) / (high - low))[:2]
    stretched[1:] = 21 - stretched[1:]
    epsilon[:2] = stretched
    return epsilon


def seconds_per_cell(work: Callable[[np.ndarray], object], cells: np.ndarray, batch: int) -> float:
    """Wall seconds a cell of `work` on batches of this size."""
    start = time.perf_counter()
    for first in range(0, len(cells), batch):
        work(cells[first : first + batch])
    return (time.perf_counter() - start) / len(cells)


def deviations(cells: np.ndarray, ours: tuple, theirs: tuple) -> dict[str, float]:
    """The figures of `TARGETS`; frequencies below 0.02 count absolutely, in units of 0.02."""
    f, v = mpb_reference.lower_of_opposites(*theirs)
    error = np.abs(ours[0] - f) / np.maximum(f, 0.02)
    speed = np.median(np.linalg.norm(ours[1] - v, axis=-1), (1, 2))
    dos, exact = (
        normalised_dos(*(torch.as_tensor(np.ascontiguousarray(x)) for x in (cells, *pair)))[:, 100:]
        for pair in (ours, (f, v))
    )
    figures = error.max(), error.mean((1, 2)).max(), error.mean(), speed.max()
    density = (dos - exact).abs().sum(-1) / exact.sum(-1)
    return dict(zip(TARGETS, map(float, (*figures, density.max())), strict=True))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=24, help="level-set cells to compare (MPB: about 7 s each)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--polarization", choices=("tm", "te"), default="tm")
    options = parser.parse_args()
    if options.cells < 1:
        parser.error("--cells must be at least 1")
    if not mpb_reference.available():
        parser.error(mpb_reference.INSTALL)
    torch.set_num_threads(1)
    k = k_grid().numpy()
    cells = cells_to_compare(options.cells, options.seed)
    discs, _ = disc_cells(options.cells, np.random.default_rng(options.seed))

    def label(some: np.ndarray) -> object:
        """Bands, velocities and density of states of every k-point."""
        found = bands(torch.as_tensor(some), k, N_BANDS, options.polarization)
        return normalised_dos(torch.as_tensor(some), *found)

    label(cells[:1])
    parts, times = [], []
    for first in range(0, len(cells), GROUP):
        group = slice(first, first + GROUP)
        *found, seconds = mpb_reference.reference(cells[group], k, N_BANDS, options.polarization)
        parts.append(found)
        size = len(seconds)
        cheap = seconds_per_cell(photonic_dos, discs[group], size)
        alone, together = (seconds_per_cell(label, cells[group], batch) for batch in (1, size))
        times += [[second, alone, together, cheap] for second in seconds]
        print(f"  cell {first + size} of {len(cells)}: MPB {seconds.mean():.1f} s, ours {1e3 * together:.0f} ms", flush=True)
    at_once = seconds_per_cell(label, cells, len(cells))
    theirs = tuple(np.concatenate(part) for part in zip(*parts, strict=True))
    ours = bands(cells, k, N_BANDS, options.polarization)
    opposite = np.abs(theirs[0] - theirs[0][:, ::-1]) / np.maximum(theirs[0], 0.02)

    print(f"\n{len(cells)} cells 32 × 32, {options.polarization.upper()}, {len(k)} k-points, {N_BANDS} bands")
    for name, value in deviations(cells, ours, theirs).items():
        target = TARGETS[name][options.polarization == "te"]
        print(f"  {name:52} {value:9.1e}" + (f"   target {target:.0e}" if target else ""))
    print(f"  {'MPB against itself, k and −k, largest':52} {opposite.max():9.1e}")
    mpb, alone, together, cheap = np.mean(times, 0)
    print(f"\n  {'one thread, seconds per cell':52} {'seconds':>9}   MPB / this")
    half = (len(k) // 2 + 1) / len(k)
    print(f"  {'MPB, all k-points':52} {mpb:9.3f}\n  {f'MPB, half the zone ({half:.0%} of it)':52} {half * mpb:9.3f}")
    rows = {"one cell a call": alone, f"{GROUP} cells a call": together, f"{len(cells)} cells a call": at_once}
    for name, value in rows.items():
        print(f"  {'whole label, ' + name:52} {value:9.4f} {mpb / value:8.0f} ({half * mpb / value:.0f} against half the zone)")
    print(f"  {f'TM density of states of a disc, {GROUP} cells a call':52} {cheap:9.4f} {mpb / cheap:8.0f}")
    print(f"  a disc costs {cheap / together:.2f} of a level-set cell")


if __name__ == "__main__":
    main()
