"""The normalised density of states of 2D photonic crystals (Loh et al., Nat. Commun. 13, 4223 (2022))."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sibcl_ray import losses
from sibcl_ray.problems.photonic import PERMITTIVITY, disc_cells, level_set_cells
from sibcl_ray.problems.problem import Problem, Sample
from sibcl_ray.solvers.density_of_states import empty_lattice_dos, photonic_dos
from sibcl_ray.symmetry import Group, PointGroup, Scaling, Translations


@dataclass(frozen=True)
class PhotonicDOS(Problem):
    """ε(r) on n × n pixels to the TM density of states at 400 frequencies.

    The target family are level sets of random Fourier series; the surrogate is one centred disc.
    """

    resolution: int = 32  # pixels along an axis
    complexity: int = 1  # largest wave number F of the level sets

    name = "photonic-dos"
    version = 1
    input_units = "relative permittivity"
    label_units = "density of states, a/2πc per unit cell, divided by √⟨ε⟩, at ω√⟨ε⟩ on linspace(0, 1.2, 500)[:400]"

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (self.resolution, self.resolution)

    @property
    def label_shape(self) -> tuple[int, ...]:
        return (400,)

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
        return np.asarray(photonic_dos(inputs), dtype=np.float32)

    def features(self, inputs: Tensor) -> Tensor:
        low, high = PERMITTIVITY
        return ((inputs - low) / (high - low)).unsqueeze(1)

    @property
    def offset(self) -> np.ndarray:
        return np.asarray(empty_lattice_dos(), dtype=np.float32)

    def surrogate_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return losses.log_absolute(prediction, label)

    def label_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return losses.absolute(prediction, label)

    def error(self, prediction: Tensor, label: Tensor) -> Tensor:
        """Σ|Δ| / Σ|true| over points 100 to 399."""
        prediction, label = prediction[:, 100:], label[:, 100:]
        return (prediction - label).abs().sum(1) / label.abs().sum(1)
