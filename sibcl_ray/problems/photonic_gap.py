"""The band gap of 2D photonic crystals (Christensen et al., Nanophotonics 9, 4183 (2020))."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sibcl_ray import losses
from sibcl_ray.problems.photonic import PERMITTIVITY, disc_cells, grid_bands, level_set_cells
from sibcl_ray.problems.problem import Problem, Sample
from sibcl_ray.solvers.fine_bands import fine_bands
from sibcl_ray.solvers.planewave import POLARIZATIONS, bands
from sibcl_ray.symmetry import Group, PointGroup, Scaling, Translations

GRID = 23  # k-points along an axis of the zone, its edges included: there most gaps have theirs
N_BANDS = 6


def gap_grid() -> np.ndarray:
    """k-points (23², 2) in 2π/a, k = i/22 − ½: the centre, corners and edges of the zone are among them."""
    line = np.arange(GRID) / (GRID - 1) - 0.5
    return np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)


@dataclass(frozen=True)
class PhotonicGap(Problem):
    """ε(r) on n × n pixels to the width of a gap over its middle: 0 where closed, less than 2.

    The target family are level sets of random Fourier series; the surrogate is one centred disc. The error is
    absolute, in the ratio itself: half the gaps and more are closed, and of nothing there are no per cents.
    """

    resolution: int = 32  # pixels along an axis; 96 for fine features
    complexity: int = 1  # largest wave number F of the level sets
    polarization: str = "tm"  # a name in POLARIZATIONS
    bands: tuple[int, int] | None = None  # neighbours of the gap, the lowest band is 1; None: the largest of five gaps

    name = "photonic-gap"
    version = 1
    input_units = "relative permittivity"
    label_units = "width of the gap over its middle frequency"

    def __post_init__(self) -> None:
        if self.polarization not in POLARIZATIONS:
            raise ValueError(f"polarization is {self.polarization!r}; expected one of {', '.join(POLARIZATIONS)}")
        if self.bands is not None and not (1 <= self.bands[0] < N_BANDS and self.bands[1] == self.bands[0] + 1):
            raise ValueError(
                f"bands are {self.bands}; expected two neighbours from (1, 2) to ({N_BANDS - 1}, {N_BANDS})"
            )

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.resolution, self.resolution)

    @property
    def label_shape(self) -> tuple[int, ...]:
        return (1,)

    @property
    def symmetries(self) -> Mapping[str, Group]:
        return {
            "translation": Translations(self.resolution),
            "point_group": PointGroup(2),
            "scaling": Scaling(*PERMITTIVITY),
        }

    def sample(self, count: int, rng: np.random.Generator) -> Sample:
        return Sample(*level_set_cells(count, rng, self.complexity, self.resolution))

    def sample_surrogate(self, count: int, rng: np.random.Generator) -> Sample:
        return Sample(*disc_cells(count, rng, self.resolution))

    def solve(self, inputs: np.ndarray) -> np.ndarray:
        def frequencies(cells: np.ndarray, k: np.ndarray) -> np.ndarray:
            if self.complexity > 1 or self.resolution > 32:
                return fine_bands(cells, k, N_BANDS, self.polarization)
            return bands(cells, k, N_BANDS, self.polarization)[0]  # three times cheaper, and enough for smooth shapes

        return self.gaps(grid_bands(inputs, gap_grid(), frequencies)).astype(np.float32)

    def gaps(self, frequencies: np.ndarray) -> np.ndarray:
        """Labels (count, 1) of frequencies (count, k-points, 6)."""
        ceiling, floor = frequencies.max(1)[:, :-1], frequencies.min(1)[:, 1:]
        ratios = np.maximum(0, 2 * (floor - ceiling) / (floor + ceiling))
        first = 0 if self.bands is None else self.bands[0] - 1
        last = N_BANDS - 1 if self.bands is None else self.bands[0]
        return ratios[:, first:last].max(1, keepdims=True)

    def features(self, inputs: Tensor) -> Tensor:
        low, high = PERMITTIVITY
        return ((inputs - low) / (high - low)).unsqueeze(1)

    @property
    def offset(self) -> np.ndarray:
        """Nothing: a uniform cell has no gap."""
        return np.zeros(self.label_shape, np.float32)

    def surrogate_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return losses.squared(prediction, label)

    def label_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return losses.absolute(prediction, label)

    def error(self, prediction: Tensor, label: Tensor) -> Tensor:
        """|Δ|, in the ratio."""
        return (prediction - label).abs().flatten(1).mean(1)
