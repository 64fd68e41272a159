from dataclasses import dataclass

import numpy as np

from sibcl_ray.problems.problem import Sample
from sibcl_ray.problems.simulation import Simulation

GAIN = 2.0


@dataclass(frozen=True)
class Mine(Simulation):
    name = "stored"
    input_shape = (4, 4)
    label_shape = (1,)

    def sample(self, count, rng):
        return Sample(rng.random((count, 4, 4)).astype(np.float32))

    def solve(self, inputs):
        return GAIN * inputs.mean((1, 2))[:, None]

    def features(self, inputs):
        return inputs[:, None] - 0.5
