"""How far the band solver is from MIT Photonic-Bands (MPB), and how much faster.

`python benchmarks/mpb.py --cells 24 --seed 0 --polarization tm`; MPB comes from Debian:
`apt-get install python3-meep python3-matplotlib python3-h5py`. Both run on one thread, on the same pixels,
for the 25 × 25 k-points and 10 bands of a label, with group velocities; our time includes the density of states.
Groups of cells alternate between the two, so that both see the same load of the machine.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch

from sibcl_ray.problems.photonic import disc_cells, level_set_cells
from sibcl_ray.solvers.density_of_states import N_BANDS, k_grid, normalised_dos, photonic_dos
from sibcl_ray.solvers.planewave import POLARIZATIONS, bands

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the tests use the same reference
import mpb_reference

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


def measure(cells: np.ndarray, discs: np.ndarray, polarization: str) -> tuple[tuple, tuple, dict[str, float]]:
    """Our bands, MPB's bands, and the seconds a cell takes with each."""
    k = k_grid().numpy()

    def label(some: np.ndarray) -> None:
        epsilon = torch.as_tensor(some)
        normalised_dos(epsilon, *bands(epsilon, k, N_BANDS, polarization))

    label(cells[:1])
    names = "MPB", "one cell a call", f"{GROUP} cells a call", "disc"
    found, seconds = [], []
    for first in range(0, len(cells), GROUP):
        group, some_discs = cells[first : first + GROUP], discs[first : first + GROUP]
        *theirs, mpb_seconds = mpb_reference.reference(group, k, N_BANDS, polarization)
        ours = [seconds_per_cell(label, group, batch) for batch in (1, GROUP)]
        found.append(theirs)
        seconds += [[each, *ours, seconds_per_cell(photonic_dos, some_discs, GROUP)] for each in mpb_seconds]
        print(
            f"  {first + len(group)} of {len(cells)} cells: MPB {mpb_seconds.mean():.1f} s, ours {1e3 * ours[1]:.0f} ms"
        )
    times = dict(zip(names, np.mean(seconds, 0).tolist(), strict=True))
    times[f"{len(cells)} cells a call"] = seconds_per_cell(label, cells, len(cells))
    frequencies, velocities = (np.concatenate(part) for part in zip(*found, strict=True))
    return bands(cells, k, N_BANDS, polarization), (frequencies, velocities), times


def report(cells: np.ndarray, polarization: str, ours: tuple, theirs: tuple, times: dict[str, float]) -> None:
    """Print the deviations beside their targets, then the times and their ratios."""
    n_k = theirs[0].shape[1]
    print(f"\n{len(cells)} cells 32 × 32, {polarization.upper()}, {n_k} k-points, {N_BANDS} bands")
    for name, value in deviations(cells, ours, theirs).items():
        target = TARGETS[name][polarization == "te"]
        print(f"  {name:52} {value:9.1e}" + (f"   target {target:.0e}" if target else ""))
    opposite = np.abs(theirs[0] - theirs[0][:, ::-1]) / np.maximum(theirs[0], 0.02)
    print(f"  {'MPB against itself, k and −k, largest':52} {opposite.max():9.1e}")
    mpb, disc = times.pop("MPB"), times.pop("disc")
    half = (n_k // 2 + 1) / n_k
    print(f"\n  {'one thread, seconds per cell':52} {'seconds':>9} {'MPB/this':>9} {'half MPB/this':>14}")
    print(f"  {'MPB, all k-points':52} {mpb:9.3f}\n  {'MPB, half the zone':52} {half * mpb:9.3f}")
    for name, value in times.items():
        print(f"  {'bands, velocities and DOS, ' + name:52} {value:9.4f} {mpb / value:9.0f} {half * mpb / value:14.0f}")
    print(f"  {'TM density of states of a disc':52} {disc:9.4f} {mpb / disc:9.0f} {half * mpb / disc:14.0f}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cells", type=int, default=24, help="level-set cells to compare (MPB: about 7 s each)")
    parser.add_argument("--seed", type=int, default=0, help="of the cells")
    parser.add_argument("--polarization", choices=tuple(POLARIZATIONS), default="tm")
    options = parser.parse_args()
    if options.cells < 1:
        parser.error(f"--cells is {options.cells}; expected at least 1")
    if not mpb_reference.available():
        parser.error(mpb_reference.INSTALL)
    torch.set_num_threads(1)
    cells = cells_to_compare(options.cells, options.seed)
    discs, _ = disc_cells(options.cells, np.random.default_rng(options.seed))
    report(cells, options.polarization, *measure(cells, discs, options.polarization))


if __name__ == "__main__":
    main()
