"""The band gap of 2D photonic crystals (Christensen et al., Nanophotonics 9, 4183 (2020))."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sibcl_ray import losses
from sibcl_ray.problems.photonic import Photonic, grid_bands
from sibcl_ray.solvers.fine_bands import fine_bands
from sibcl_ray.solvers.planewave import POLARIZATIONS, bands

GRID = 23  # k-points along an axis of the zone, its edges included: there most gaps have theirs
N_BANDS = 6
COARSE_GRID, COARSE_CUTOFF = 9, 2  # of the estimate: k-points along an axis, and plane waves


def gap_grid(n: int = GRID) -> np.ndarray:
    """k-points (n², 2) in 2π/a, k = i/(n − 1) − ½: the centre, corners and edges of the zone are among them."""
    line = np.arange(n) / (n - 1) - 0.5
    return np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)


@dataclass(frozen=True)
class PhotonicGap(Photonic):
    """ε(r) to the width of a gap over its middle: 0 where closed, less than 2.

    Give fine features 96 pixels. Most gaps are closed. So networks may say by how much, with numbers below 0 that
    count as 0, and the error is absolute, in the ratio itself: of nothing there are no per cents.
    """

    polarization: str = "tm"  # a name in POLARIZATIONS
    bands: tuple[int, int] | None = None  # neighbours of the gap, the lowest band is 1; None: the largest of five gaps

    name = "photonic-gap"
    version = 1
    spread = 0.1
    label_units = "width of the gap over its middle frequency"

    def __post_init__(self) -> None:
        if self.polarization not in POLARIZATIONS:
            raise ValueError(f"polarization is {self.polarization!r}; expected one of {', '.join(POLARIZATIONS)}")
        if self.bands is not None and not (1 <= self.bands[0] < N_BANDS and self.bands[1] == self.bands[0] + 1):
            raise ValueError(
                f"bands are {self.bands}; expected two neighbours from (1, 2) to ({N_BANDS - 1}, {N_BANDS})"
            )

    @property
    def label_shape(self) -> tuple[int, ...]:
        return (1,)

    def solve(self, inputs: np.ndarray) -> np.ndarray:
        def frequencies(cells: np.ndarray, k: np.ndarray) -> np.ndarray:
            if self.complexity > 1 or self.resolution > 32:
                return fine_bands(cells, k, N_BANDS, self.polarization)
            return bands(cells, k, N_BANDS, self.polarization)[0]  # three times cheaper, and enough for smooth shapes

        return self.gaps(grid_bands(inputs, gap_grid(), frequencies)).astype(np.float32)

    def estimate(self, inputs: np.ndarray) -> np.ndarray:
        """25 plane waves at 9 × 9 k-points."""
        few = bands(inputs, gap_grid(COARSE_GRID), N_BANDS, self.polarization, COARSE_CUTOFF)[0]
        return self.gaps(few).astype(np.float32)

    def gaps(self, frequencies: np.ndarray) -> np.ndarray:
        """Labels (count, 1) of frequencies (count, k-points, 6)."""
        ceiling, floor = frequencies.max(1)[:, :-1], frequencies.min(1)[:, 1:]
        ratios = np.maximum(0, 2 * (floor - ceiling) / (floor + ceiling))
        first = 0 if self.bands is None else self.bands[0] - 1
        last = N_BANDS - 1 if self.bands is None else self.bands[0]
        return ratios[:, first:last].max(1, keepdims=True)

    @property
    def offset(self) -> np.ndarray:
        """Nothing: a uniform cell has no gap."""
        return np.zeros(self.label_shape, np.float32)

    def surrogate_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return losses.censored(prediction, label)

    def label_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return losses.censored(prediction, label)

    def error(self, prediction: Tensor, label: Tensor) -> Tensor:
        """|Δ|, in the ratio."""
        return (prediction.clamp(min=0) - label).abs().flatten(1).mean(1)
