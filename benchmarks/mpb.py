"""How far the band solver is from MIT Photonic-Bands (MPB), and how much faster.

`python benchmarks/mpb.py --cells 24 --seed 0 --polarization tm`; MPB comes from Debian:
`apt-get install python3-meep python3-matplotlib python3-h5py`. Both run on one thread, on the same pixels,
for the k-points and bands of a label: `--label dos` (25 × 25, 10 bands, with group velocities; our time includes the
density of states) or `--label gap` (23 × 23, 6 bands, by the solver for fine features; our time includes the gap).
Fine features: `--label gap --complexity 6 --resolution 96`. Times are processor seconds; groups of cells alternate
between the two, so that both see the same load of the machine. With `--every N` MPB solves each Nth k-point alone, and
its time is N-fold: it costs MPB up to half more a k-point, for its first guess is the field at the one before.
"""

from __future__ import annotations

import argparse
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from rows import Row, markdown

from sibcl_ray.problems.photonic import GAP_BANDS, PhotonicGap, disc_cells, gap_grid, level_set_cells
from sibcl_ray.solvers.density_of_states import N_BANDS, k_grid, normalised_dos, photonic_dos
from sibcl_ray.solvers.fine_bands import fine_bands
from sibcl_ray.solvers.planewave import POLARIZATIONS, bands

sys.path.append(str(Path(__file__).parents[1] / "tests"))  # the tests use the same reference
import mpb_reference

GROUP = 4
Figures = dict[str, tuple[float, float | None]]  # of each deviation its value and its target


@dataclass(frozen=True)
class Density:
    """The density of states by `planewave.bands`."""

    polarization: str
    k, n_bands = k_grid().numpy(), N_BANDS

    def label(self, cells: np.ndarray) -> None:
        epsilon = torch.as_tensor(cells)
        normalised_dos(epsilon, *bands(epsilon, self.k, N_BANDS, self.polarization))

    def disc(self, cells: np.ndarray) -> None:
        photonic_dos(cells)

    def deviations(self, cells: np.ndarray, theirs: tuple, every: int) -> Figures:
        """Frequencies below 0.02 count absolutely, in units of 0.02."""
        te = self.polarization == "te"
        ours = bands(cells, self.k, N_BANDS, self.polarization)
        error, (f, v) = _relative(ours[0][:, ::every], theirs[0]), theirs
        speed = np.median(np.linalg.norm(ours[1][:, ::every] - v, axis=-1), (1, 2))
        figures: Figures = {
            "frequency, largest relative deviation, worst cell": (error.max(), None if te else 2e-3),
            "frequency, mean relative deviation, worst cell": (error.mean((1, 2)).max(), 1e-2 if te else 2e-4),
            "frequency, mean relative deviation, mean over cells": (error.mean(), 3e-3 if te else None),
            "group velocity, median deviation in c, worst cell": (speed.max(), None if te else 1e-3),
        }
        if every == 1:
            dos, exact = (
                normalised_dos(*(torch.as_tensor(np.ascontiguousarray(x)) for x in (cells, *pair)))[:, 100:]
                for pair in (ours, (f, v))
            )
            density = ((dos - exact).abs().sum(-1) / exact.sum(-1)).max()
            figures["density of states, relative deviation, worst cell"] = (float(density), None if te else 3e-3)
        return figures


@dataclass(frozen=True)
class Gap:
    """The largest gap by `fine_bands`."""

    polarization: str
    k, n_bands = gap_grid(), GAP_BANDS

    def label(self, cells: np.ndarray) -> None:
        PhotonicGap().gaps(fine_bands(cells, self.k, GAP_BANDS, self.polarization))

    def disc(self, cells: np.ndarray) -> None:
        PhotonicGap(cells.shape[-1], complexity=6, polarization=self.polarization).solve(cells)

    def deviations(self, cells: np.ndarray, theirs: tuple, every: int) -> Figures:
        """Frequencies below 0.02 count absolutely, in units of 0.02."""
        ours = fine_bands(cells, self.k, GAP_BANDS, self.polarization)[:, ::every]
        error = _relative(ours, theirs[0])
        gaps, exact = (PhotonicGap().gaps(frequencies) for frequencies in (ours, theirs[0]))
        return {
            "frequency, largest relative deviation, worst cell": (error.max(), 5e-3),
            "frequency, largest relative deviation, median cell": (np.median(error.max((1, 2))), None),
            "frequency, mean relative deviation, mean over cells": (error.mean(), None),
            "gap over its middle, largest deviation": (np.abs(gaps - exact).max(), None),
        }


LABELS = {"dos": Density, "gap": Gap}


def _relative(ours: np.ndarray, theirs: np.ndarray) -> np.ndarray:
    return np.abs(ours - theirs) / np.maximum(theirs, 0.02)


def cells_to_compare(count: int, seed: int, complexity: int, resolution: int) -> np.ndarray:
    """Random level-set cells; in the first two the contrast is stretched to the extreme, 1 : 20."""
    epsilon, _ = level_set_cells(count, np.random.default_rng(seed), complexity, resolution)
    low, high = epsilon.min((1, 2), keepdims=True), epsilon.max((1, 2), keepdims=True)
    stretched = (1 + 19 * (epsilon - low) / (high - low))[:2]
    stretched[1:] = 21 - stretched[1:]
    epsilon[:2] = stretched
    return epsilon


def seconds_per_cell(work: Callable[[np.ndarray], object], cells: np.ndarray, batch: int) -> float:
    """Processor seconds a cell of `work` on batches of this size."""
    start = time.process_time()
    for first in range(0, len(cells), batch):
        work(cells[first : first + batch])
    return (time.process_time() - start) / len(cells)


def measure(cells: np.ndarray, discs: np.ndarray, label: Density | Gap, every: int) -> tuple[tuple, dict[str, float]]:
    """MPB's bands and the seconds a cell takes with each."""
    label.label(cells[:1])
    names = "MPB", "one cell a call", f"{GROUP} cells a call", "a disc"
    found, seconds = [], []
    for first in range(0, len(cells), GROUP):
        group, some_discs = cells[first : first + GROUP], discs[first : first + GROUP]
        *theirs, mpb_seconds = mpb_reference.reference(group, label.k[::every], label.n_bands, label.polarization)
        mpb_seconds *= len(label.k) / len(label.k[::every])
        ours = [seconds_per_cell(label.label, group, batch) for batch in (1, GROUP)]
        found.append(theirs)
        seconds += [[each, *ours, seconds_per_cell(label.disc, some_discs, GROUP)] for each in mpb_seconds]
        print(
            f"  {first + len(group)} of {len(cells)} cells: MPB {mpb_seconds.mean():.1f} s, ours {1e3 * ours[1]:.0f} ms"
        )
    times = dict(zip(names, np.mean(seconds, 0).tolist(), strict=True))
    times["all cells in one call"] = seconds_per_cell(label.label, cells, len(cells))
    frequencies, velocities = (np.concatenate(part) for part in zip(*found, strict=True))
    return (frequencies, velocities), times


def report(cells: np.ndarray, label: Density | Gap, theirs: tuple, times: dict[str, float], every: int) -> list[Row]:
    """The deviations beside their targets, then the times and their ratios."""
    rows = [
        {"quantity": name, "value": f"{value:.1e}", "target": f"{target:.0e}" if target else ""}
        for name, (value, target) in label.deviations(cells, mpb_reference.lower_of_opposites(*theirs), every).items()
    ]
    opposite = np.abs(theirs[0] - theirs[0][:, ::-1]) / np.maximum(theirs[0], 0.02)
    rows.append({"quantity": "MPB against itself, k and −k, largest", "value": f"{opposite.max():.1e}"})
    mpb = times.pop("MPB")
    rows.append({"quantity": "MPB, s a cell", "value": f"{mpb:.2f}"})
    return rows + [
        {"quantity": f"MPB's time over that of {name}", "value": f"{mpb / seconds:.0f}"}
        for name, seconds in times.items()
    ]


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--label", choices=tuple(LABELS), default="dos")
    parser.add_argument("--cells", type=int, default=24, help="level-set cells to compare (MPB: about 7 s each)")
    parser.add_argument("--seed", type=int, default=0, help="of the cells")
    parser.add_argument("--polarization", choices=tuple(POLARIZATIONS), default="tm")
    parser.add_argument("--complexity", type=int, default=1, help="largest wave number F of the level sets")
    parser.add_argument("--resolution", type=int, default=32, help="pixels along an axis (MPB, 96: minutes a cell)")
    parser.add_argument("--every", type=int, default=1, help="MPB solves each Nth k-point: 1, 2, 4, 6, 8 or 12")
    options = parser.parse_args(arguments)
    for name in ("cells", "complexity", "resolution", "every"):
        if getattr(options, name) < 1:
            parser.error(f"--{name} is {getattr(options, name)}; expected at least 1")
    label = LABELS[options.label](options.polarization)
    if (len(label.k) - 1) % options.every:  # the k-points must be their own reverse
        parser.error(f"--every is {options.every}; expected a divisor of {len(label.k) - 1}")
    if not mpb_reference.available():
        parser.error(mpb_reference.INSTALL)
    torch.set_num_threads(1)
    cells = cells_to_compare(options.cells, options.seed, options.complexity, options.resolution)
    discs, _ = disc_cells(options.cells, np.random.default_rng(options.seed), options.resolution)
    return report(cells, label, *measure(cells, discs, label, options.every), options.every)


if __name__ == "__main__":
    print(markdown(main()))
