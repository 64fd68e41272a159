"""2D photonic crystals, level sets of random Fourier series and discs, and what is learned of them.

The density of states and the bands are those of Loh et al., Nat. Commun. 13, 4223 (2022), the band gap that of
Christensen et al., Nanophotonics 9, 4183 (2020).
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sibcl_ray.problems import losses
from sibcl_ray.problems.level_sets import centres, level_sets
from sibcl_ray.problems.problem import FRACTION, Problem, Sample
from sibcl_ray.solvers.density_of_states import EMPTY_LATTICE, GRID, has_square_symmetry, k_grid, photonic_dos
from sibcl_ray.solvers.fine_bands import fine_bands
from sibcl_ray.solvers.planewave import POLARIZATIONS, bands
from sibcl_ray.symmetry import Equivariance, Group, PointGroup, Scaling, Translations

SAMPLES = 8  # sub-pixel samples along an axis: a pixel holds the mean of 8 × 8
PERMITTIVITY = (1.0, 20.0)

FLOOR = 1e-3  # 2πc/a; the lowest band is far above it everywhere but at k = 0, where it is 0
GAP_GRID = 23  # k-points along an axis of the zone, its edges included: there most gaps have theirs
GAP_BANDS = 6
COARSE_GRID, COARSE_GAP_GRID, COARSE_CUTOFF = 5, 9, 2  # of estimates: k-points along an axis, and plane waves


@dataclass(frozen=True)
class Photonic(Problem):
    """ε(r) on n × n pixels: level sets of random Fourier series, and one centred disc as their surrogate."""

    resolution: int = 32  # pixels along an axis
    complexity: int = 1  # largest wave number F of the level sets

    input_units = "relative permittivity"
    error_units = FRACTION

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.resolution, self.resolution)

    @property
    def symmetries(self) -> Mapping[str, Group]:
        """Those of a number that depends neither on where the cell is, nor how it lies, nor on the unit of ε."""
        return {
            "translation": Translations(self.resolution),
            "point_group": PointGroup(2),
            "scaling": Scaling(*PERMITTIVITY),
        }

    def sample(self, count: int, rng: np.random.Generator) -> Sample:
        return Sample(*level_set_cells(count, rng, self.complexity, self.resolution))

    def sample_surrogate(self, count: int, rng: np.random.Generator) -> Sample:
        return Sample(*disc_cells(count, rng, self.resolution))

    def features(self, inputs: Tensor) -> Tensor:
        low, high = PERMITTIVITY
        return ((inputs - low) / (high - low)).unsqueeze(1)


def level_set_cells(
    count: int, rng: np.random.Generator, complexity: int = 1, resolution: int = 32
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Two-tone cells of `level_sets`, whose inside they are; both permittivities are U(1, 20).

    Returns:
        ε, float32 (count, resolution, resolution), averaged inside each pixel, and the parameters
        `coefficients` complex128 (count, 2F+1, 2F+1), `filling` (count,), `epsilon_inside` and
        `epsilon_outside` (count,).
    """
    masks, parameters = level_sets(count, rng, 2, complexity, resolution * SAMPLES)
    return _two_tone(masks, resolution, rng, parameters)


def disc_cells(count: int, rng: np.random.Generator, resolution: int = 32) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Cells with one centred disc of radius U(0, 0.5] and two permittivities U(1, 20), ``resolution`` pixels wide.

    Returns:
        ε, float32 (count, resolution, resolution), averaged inside each pixel, and the parameters
        `radius` (in a), `epsilon_inside` and `epsilon_outside`, each (count,).
    """
    radius = 0.5 - rng.uniform(0, 0.5, count)
    points = centres(resolution * SAMPLES) - 0.5
    distance = np.hypot(points[:, None], points)
    return _two_tone((distance < r for r in radius), resolution, rng, {"radius": radius})


def _two_tone(
    masks: Iterable[np.ndarray], resolution: int, rng: np.random.Generator, parameters: dict[str, np.ndarray]
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Cells, and their parameters, of masks of their insides on `SAMPLES` times as many points along an axis."""
    coverage = [mask.reshape(resolution, SAMPLES, resolution, SAMPLES).mean((1, 3)) for mask in masks]
    inside, outside = rng.uniform(*PERMITTIVITY, (2, len(coverage)))
    parameters = parameters | {"epsilon_inside": inside, "epsilon_outside": outside}
    inside, outside = inside[:, None, None], outside[:, None, None]
    mixed = outside + (inside - outside) * np.reshape(coverage, (-1, resolution, resolution))
    return mixed.astype(np.float32), parameters


def grid_bands(
    cells: np.ndarray, k_points: np.ndarray, frequencies: Callable[[np.ndarray, np.ndarray], np.ndarray]
) -> np.ndarray:
    """Frequencies (count, K, bands) on a k-grid that C4v maps onto itself, solved on an eighth where the cell allows.

    Args:
        cells: ε, (count, n, n).
        k_points: the grid, (K, 2), in 2π/a.
        frequencies: the solver: cells (some, n, n) and k-points (H, 2) to (some, H, bands).
    """
    wedge, image = np.unique(np.sort(np.abs(k_points).round(12), axis=1), axis=0, return_inverse=True)
    square = has_square_symmetry(torch.from_numpy(cells)).numpy()
    rows, found = [], []
    for k, every, members in ((wedge, image.reshape(-1), square), (k_points, slice(None), ~square)):
        if members.any():
            rows.append(np.flatnonzero(members))
            found.append(frequencies(cells[members], k)[:, every])
    return np.concatenate(found)[np.argsort(np.concatenate(rows))]


@dataclass(frozen=True)
class PhotonicDOS(Photonic):
    """ε(r) to the TM density of states at 400 frequencies."""

    name = "photonic-dos"
    version = 1
    label_seconds, surrogate_seconds = 0.05, 0.013
    label_shape = (400,)
    label_units = "density of states, a/2πc per unit cell, divided by √⟨ε⟩, at ω√⟨ε⟩ on linspace(0, 1.2, 500)[:400]"

    def solve(self, inputs: np.ndarray) -> np.ndarray:
        return np.asarray(photonic_dos(inputs), dtype=np.float32)

    @property
    def offset(self) -> np.ndarray:
        return EMPTY_LATTICE.astype(np.float32)

    def surrogate_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return losses.log_absolute(prediction, label)

    def label_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return losses.absolute(prediction, label)

    def error(self, prediction: Tensor, label: Tensor) -> Tensor:
        """Σ|Δ| / Σ|true| over points 100 to 399."""
        prediction, label = prediction[:, 100:], label[:, 100:]
        return (prediction - label).abs().sum(1) / label.abs().sum(1)


@dataclass(frozen=True)
class PhotonicBands(Photonic):
    """ε(r) to ω of some bands on the cell-centred 25 × 25 k-points, kx along axis 1 of the label."""

    polarization: str = "tm"  # a name in POLARIZATIONS
    bands: tuple[int, ...] = (1, 2, 3, 4, 5, 6)  # those to learn, one or several, counted from the lowest

    name = "photonic-bands"
    version = 1
    label_seconds, surrogate_seconds = 0.033, 0.01
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
        coarse, every = k_grid(COARSE_GRID).numpy(), k_grid().numpy()
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

    def error(self, prediction: Tensor, label: Tensor) -> Tensor:
        """The mean of |Δ|/|true| over bands and k-points, less the one where ω = 0."""
        counted = (label > FLOOR).to(label)
        relative = counted * (prediction - label).abs() / label.clamp(min=FLOOR)
        return relative.flatten(1).sum(1) / counted.flatten(1).sum(1)


def _empty_lattice(k: np.ndarray, count: int) -> np.ndarray:
    """The lowest bands of vacuum at k, (K, count)."""
    reach = np.arange(-count, count + 1)
    waves = np.stack(np.meshgrid(reach, reach), -1).reshape(-1, 2)
    return np.sort(np.linalg.norm(k[:, None] + waves, axis=-1), axis=-1)[:, :count]


def _between(coarse: np.ndarray, k: np.ndarray) -> np.ndarray:
    """What reads values at the points of a cell-centred grid linearly at k, (K, points): both are periodic."""
    steps = np.abs((k[:, None] - coarse + 0.5) % 1 - 0.5) * np.sqrt(len(coarse))
    return np.maximum(0, 1 - steps).prod(-1)


def _turn(g: Tensor, labels: Tensor) -> Tensor:
    """ω(k) of the turned cell: the k-grid is symmetric about its middle, and turns as the pixels do."""
    every_band = g.repeat_interleave(labels.shape[1])
    return PointGroup(2).act(every_band, labels.flatten(0, 1)).view_as(labels)


def _slow_down(g: Tensor, labels: Tensor) -> Tensor:
    """ω(k) of g·ε."""
    return labels * g.rsqrt().to(labels)[:, None, None, None]


def gap_grid(n: int = GAP_GRID) -> np.ndarray:
    """k-points (n², 2) in 2π/a, k = i/(n − 1) − ½: the centre, corners and edges of the zone are among them."""
    line = np.arange(n) / (n - 1) - 0.5
    return np.stack(np.meshgrid(line, line, indexing="ij"), -1).reshape(-1, 2)


@dataclass(frozen=True)
class PhotonicGap(Photonic):
    """ε(r) to the width of a gap over its middle: 0 where closed, less than 2.

    Give fine features 96 pixels. Most gaps are closed. So networks may say by how much, with numbers below 0 that
    count as 0, and the error is absolute, in the ratio itself: a relative one is undefined at zero.
    """

    polarization: str = "tm"  # a name in POLARIZATIONS
    bands: tuple[int, int] | None = None  # neighbours of the gap, the lowest band is 1; None: the largest of five gaps

    name = "photonic-gap"
    version = 1
    label_seconds, surrogate_seconds = 0.033, 0.01
    label_shape = (1,)
    label_scale = 0.1
    label_units = "width of the gap over its middle frequency"
    error_units = "in the gap-to-midgap ratio"

    def __post_init__(self) -> None:
        if self.polarization not in POLARIZATIONS:
            raise ValueError(f"polarization is {self.polarization!r}; expected one of {', '.join(POLARIZATIONS)}")
        if self.bands is not None and not (1 <= self.bands[0] < GAP_BANDS and self.bands[1] == self.bands[0] + 1):
            raise ValueError(
                f"bands are {self.bands}; expected two neighbours from (1, 2) to ({GAP_BANDS - 1}, {GAP_BANDS})"
            )

    def solve(self, inputs: np.ndarray) -> np.ndarray:
        def frequencies(cells: np.ndarray, k: np.ndarray) -> np.ndarray:
            if self.complexity > 1 or self.resolution > 32:
                return fine_bands(cells, k, GAP_BANDS, self.polarization)
            return bands(cells, k, GAP_BANDS, self.polarization)[0]  # three times cheaper, and enough for smooth shapes

        return self.gaps(grid_bands(inputs, gap_grid(), frequencies)).astype(np.float32)

    def estimate(self, inputs: np.ndarray) -> np.ndarray:
        """25 plane waves at 9 × 9 k-points."""
        few = bands(inputs, gap_grid(COARSE_GAP_GRID), GAP_BANDS, self.polarization, COARSE_CUTOFF)[0]
        return self.gaps(few).astype(np.float32)

    def gaps(self, frequencies: np.ndarray) -> np.ndarray:
        """Labels (count, 1) of frequencies (count, k-points, 6)."""
        ceiling, floor = frequencies.max(1)[:, :-1], frequencies.min(1)[:, 1:]
        ratios = np.maximum(0, 2 * (floor - ceiling) / (floor + ceiling))
        chosen = slice(None) if self.bands is None else [self.bands[0] - 1]
        return ratios[:, chosen].max(1, keepdims=True)

    def label_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return losses.censored(prediction, label)

    def error(self, prediction: Tensor, label: Tensor) -> Tensor:
        """|Δ|, in the ratio."""
        return (prediction.clamp(min=0) - label).abs().flatten(1).mean(1)
