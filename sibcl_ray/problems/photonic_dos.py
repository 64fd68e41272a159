"""The normalised density of states of 2D photonic crystals (Loh et al., Nat. Commun. 13, 4223 (2022))."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from torch import Tensor

from sibcl_ray import losses
from sibcl_ray.problems.photonic import Photonic
from sibcl_ray.solvers.density_of_states import empty_lattice_dos, photonic_dos


@dataclass(frozen=True)
class PhotonicDOS(Photonic):
    """ε(r) to the TM density of states at 400 frequencies."""

    name = "photonic-dos"
    version = 1
    label_units = "density of states, a/2πc per unit cell, divided by √⟨ε⟩, at ω√⟨ε⟩ on linspace(0, 1.2, 500)[:400]"

    @property
    def label_shape(self) -> tuple[int, ...]:
        return (400,)

    def solve(self, inputs: np.ndarray) -> np.ndarray:
        return np.asarray(photonic_dos(inputs), dtype=np.float32)

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
