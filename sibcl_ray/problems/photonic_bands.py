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
COARSE_GRID, COARSE_CUTOFF = 5, 2  # of the estimate: k-points along an axis, and plane waves


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
        """25 plane waves at 5 × 5 k-points, and between these the empty lattice of the mean ε, corrected linearly."""
        count = max(self.bands)
        coarse, every = _centred(COARSE_GRID), k_grid().numpy()
        found = bands(inputs, coarse, count, self.polarization, max(COARSE_CUTOFF, count // 4))[0]
        index = np.sqrt(inputs.mean((1, 2), dtype=np.float64))[:, None, None]
        correction = found - _empty_lattice(coarse, count) / index
        return self._label(_empty_lattice(every, count) / index + _between(coarse, every) @ correction)

    @property
    def offset(self) -> np.ndarray:
        """The empty lattice of the families' mean permittivity."""
        vacuum = _empty_lattice(k_grid().numpy(), max(self.bands))
        return self._label(vacuum[None] / np.sqrt(np.mean(PERMITTIVITY)))[0]

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


def _centred(n: int) -> np.ndarray:
    """The n × n k-points (n², 2) in the centres of as many parts of the zone."""
    line = (np.arange(n) - (n - 1) / 2) / n
    return np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)


def _empty_lattice(k: np.ndarray, count: int) -> np.ndarray:
    """The lowest bands of vacuum at k, (K, count)."""
    reach = np.arange(-count, count + 1)
    waves = np.stack(np.meshgrid(reach, reach), -1).reshape(-1, 2)
    return np.sort(np.linalg.norm(k[:, None] + waves, axis=-1), axis=-1)[:, :count]


def _between(coarse: np.ndarray, k: np.ndarray) -> np.ndarray:
    """What reads values at the points of a `_centred` grid linearly at k, (K, points): both are periodic."""
    steps = np.abs((k[:, None] - coarse + 0.5) % 1 - 0.5) * np.sqrt(len(coarse))
    return np.maximum(0, 1 - steps).prod(-1)


def _turn(g: Tensor, labels: Tensor) -> Tensor:
    """ω(k) of the turned cell: the k-grid is symmetric about its middle, and turns as the pixels do."""
    every_band = g.repeat_interleave(labels.shape[1])
    return PointGroup(2).act(every_band, labels.flatten(0, 1)).view_as(labels)


def _slow_down(g: Tensor, labels: Tensor) -> Tensor:
    """ω(k) of g·ε."""
    return labels * g.rsqrt().to(labels)[:, None, None, None]
