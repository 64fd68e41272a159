"""A user's problem whose program has fixed names of files, and takes a while between reading and writing them."""

import subprocess
from pathlib import Path

import numpy as np

from sibcl_ray.problems.problem import Sample
from sibcl_ray.problems.simulation import Simulation

PROGRAM = "read first rest < input.dat; sleep 0.05; echo $first >> output.dat"


class FixedFiles(Simulation):
    """The label is the first pixel, by way of two files."""

    name = "fixed-files"
    input_shape, label_shape = (32, 32), (1,)

    def sample(self, count, rng):
        return Sample(rng.uniform(0.1, 1, (count, 32, 32)).astype(np.float32))

    def solve(self, inputs):
        labels = []
        for x in inputs:
            np.savetxt("input.dat", x)
            subprocess.run(["sh", "-c", PROGRAM], check=True)
            labels.append([float(Path("output.dat").read_text())])  # fails if the file was there before
        return np.array(labels, np.float32)
