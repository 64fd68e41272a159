"""A problem that costs nothing: the mean and the spread of a small image, to test what surrounds the physics."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from sibcl_ray.learning.networks import Architecture, ReferenceEncoder
from sibcl_ray.problems import losses
from sibcl_ray.problems.problem import Problem, Sample
from sibcl_ray.symmetry import Group, PointGroup, Translations

ARCHITECTURE = Architecture(
    encoder=ReferenceEncoder(channels=(4, 8), kernel=3, pools=(2, 4), head=8, latent=8),
    predictor=(8,),
    projector=(8,),
    projection=4,
)


@dataclass(frozen=True)
class Moments(Problem):
    """Mean and standard deviation of an 8 × 8 image; the surrogate family has the left half constant."""

    name = "moments"
    version = 1
    input_units = label_units = "none"

    @property
    def input_shape(self) -> tuple[int, ...]:
        return (8, 8)

    @property
    def label_shape(self) -> tuple[int, ...]:
        return (2,)

    @property
    def symmetries(self) -> Mapping[str, Group]:
        return {"translation": Translations(8), "point_group": PointGroup(2)}

    def sample(self, count: int, rng: np.random.Generator) -> Sample:
        scale = rng.uniform(0.1, 1, (count, 1, 1))
        return Sample((rng.uniform(0, 1, (count, 8, 8)) * scale).astype(np.float32), {"scale": scale[:, 0, 0]})

    def sample_surrogate(self, count: int, rng: np.random.Generator) -> Sample:
        sample = self.sample(count, rng)
        sample.inputs[:, :, :4] = sample.inputs[:, :1, :1]
        return sample

    def solve(self, inputs: np.ndarray) -> np.ndarray:
        return np.stack([inputs.mean((1, 2)), inputs.std((1, 2))], axis=1).astype(np.float32)

    def features(self, inputs: Tensor) -> Tensor:
        return inputs.unsqueeze(1)

    @property
    def offset(self) -> np.ndarray:
        return np.zeros(2, np.float32)

    def surrogate_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return losses.squared(prediction, label)

    def label_loss(self, prediction: Tensor, label: Tensor) -> Tensor:
        return losses.squared(prediction, label)

    def error(self, prediction: Tensor, label: Tensor) -> Tensor:
        return (prediction - label).abs().sum(1) / label.abs().sum(1).clamp(min=torch.finfo().eps)


@dataclass(frozen=True)
class Fragile(Moments):
    """Moments whose solver cannot do every input; ``worse`` is how it ends where it cannot."""

    name = "fragile"
    worse: str = "raises"
    above: float = 0.48  # of the mean

    def solve(self, inputs: np.ndarray) -> np.ndarray:
        labels = super().solve(inputs)
        bad = labels[:, 0] > self.above
        if bad.any() and self.worse == "raises":
            raise ArithmeticError("no convergence")
        if bad.any() and self.worse == "dies":
            os._exit(9)
        labels[bad] = np.nan
        return labels
