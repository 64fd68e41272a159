"""The frequencies of 2D photonic crystals' bands over the Brillouin zone (Loh et al., Nat. Commun. 13, 4223 (2022)).

Only translations of the cell leave ω(k) unchanged. Rotations and reflections of the cell turn the k-grid with
it, and ε → sε makes ω → ω/√s: these are equivariances.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sibcl_ray import losses
from sibcl_ray.problems.photonic import PERMITTIVITY, Photonic, grid_bands
from sibcl_ray.solvers.density_of_states import GRID, k_grid
from sibcl_ray.solvers.planewave import POLARIZATIONS, bands
from sibcl_ray.symmetry import Equivariance, Group, PointGroup, Scaling, Translations

FLOOR = 1e-3  # 2πc/a; the lowest band is far above it everywhere but at k = 0, where it is 0


@dataclass(frozen=True)
class PhotonicBands(Photonic):
    """ε(r) to ω of some bands on the cell-centred 25 × 25 k-points, kx along axis 1 of the label."""

    polarization: str = "tm"  # a name in POLARIZATIONS
    bands: tuple[int, ...] = (1, 2, 3, 4, 5, 6)  # those to learn, one or several, counted from the lowest

    name = "photonic-bands"
    version = 1
    label_units = "frequencies, 2πc/a"

    def __post_init__(self) -> None:
        if self.polarization not in POLARIZATIONS:
            raise ValueError(f"polarization is {self.polarization!r}; expected one of {', '.join(POLARIZATIONS)}")
        if not self.bands or min(self.bands) < 1 or len(set(self.bands)) < len(self.bands):
            raise ValueError(f"bands are {self.bands}; give one or several, each once, counted from 1")

    @property
    def label_shape(self) -> tuple[int, ...]:
        return (len(self.bands), GRID, GRID)

    @property
    def symmetries(self) -> Mapping[str, Group]:
        return {"translation": Translations(self.resolution)}

    @property
    def equivariances(self) -> Mapping[str, Equivariance]:
        return {
            "point_group": Equivariance(PointGroup(2), _turn),
            "scaling": Equivariance(Scaling(*PERMITTIVITY), _slow_down),
        }

    def solve(self, inputs: np.ndarray) -> np.ndarray:
        def frequencies(cells: np.ndarray, k: np.ndarray) -> np.ndarray:
            return bands(cells, k, max(self.bands), self.polarization)[0]

        return self._label(grid_bands(inputs, k_grid().numpy(), frequencies))

    def estimate(self, inputs: np.ndarray) -> np.ndarray:
        """The empty lattice of the cell's mean permittivity: exact for long waves in TM."""
        index = np.sqrt(inputs.mean((1, 2), dtype=np.float64))
        return (self._empty / index[:, None, None, None]).astype(np.float32)

    @property
    def offset(self) -> np.ndarray:
        """The empty lattice of the families' mean permittivity."""
        return (self._empty / np.sqrt(np.mean(PERMITTIVITY))).astype(np.float32)

    @property
    def _empty(self) -> np.ndarray:
        """The bands of vacuum, (*label_shape)."""
        reach = np.arange(-max(self.bands), max(self.bands) + 1)
        waves = np.stack(np.meshgrid(reach, reach), -1).reshape(-1, 2)
        lengths = np.linalg.norm(k_grid().numpy()[:, None] + waves, axis=-1)
        return self._label(np.sort(lengths, axis=-1)[None])[0]

    def _label(self, frequencies: np.ndarray) -> np.ndarray:
        """Of frequencies (count, 625, bands) those to learn, (count, *label_shape)."""
        chosen = frequencies[..., np.array(self.bands) - 1].swapaxes(1, 2)
        return np.ascontiguousarray(chosen, dtype=np.float32).reshape(-1, *self.label_shape)

    def label_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return losses.squared(prediction, label)

    def error(self, prediction: Tensor, label: Tensor) -> Tensor:
        """The mean of |Δ|/|true| over bands and k-points, less the one where ω = 0."""
        counted = (label > FLOOR).to(label)
        relative = counted * (prediction - label).abs() / label.clamp(min=FLOOR)
        return relative.flatten(1).sum(1) / counted.flatten(1).sum(1)


def _turn(g: Tensor, labels: Tensor) -> Tensor:
    """ω(k) of the turned cell: the k-grid is symmetric about its middle, and turns as the pixels do."""
    every_band = g.repeat_interleave(labels.shape[1])
    return PointGroup(2).act(every_band, labels.flatten(0, 1)).view_as(labels)


def _slow_down(g: Tensor, labels: Tensor) -> Tensor:
    """ω(k) of g·ε."""
    return labels * g.rsqrt().to(labels)[:, None, None, None]
