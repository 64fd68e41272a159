"""A problem of your own, in one file: how does a loaded drum sound?

A square membrane, clamped at its edge, carries heavy discs. What is learned from an image of its density are its three
lowest resonances: python studies/label_sweep.py --problem studies/my_problem.py:Drum
"""

import numpy as np

from sibcl_ray import PointGroup, Sample, Simulation

PIXELS = 32
X = (np.arange(PIXELS) + 0.5) / PIXELS


class Drum(Simulation):
    """Density (32, 32) to three frequencies. It sounds the same however it is turned or mirrored."""

    name = "drum"
    input_units, label_units = "density of the bare membrane", "lowest frequency of the bare membrane"
    input_shape, label_shape = (PIXELS, PIXELS), (3,)
    symmetries = {"point_group": PointGroup(2)}
    offset = np.sqrt(np.array([1, 2.5, 2.5], np.float32))  # those of the bare membrane: networks learn the difference
    resources = {"num_cpus": 1}  # of a Ray task that solves
    timeout, retries = 60.0, 1  # seconds for an input, and how often one that failed is tried again

    def sample(self, count, rng):
        """Four discs, each up to ten times as dense as the membrane; where they overlap, they add up."""
        x, y = rng.uniform(0, 1, (2, count, 4, 1, 1))
        radius, load = rng.uniform(0.05, 0.25, (count, 4, 1, 1)), rng.uniform(0, 9, (count, 4, 1, 1))
        discs = (X[:, None] - x) ** 2 + (X - y) ** 2 < radius**2
        return Sample((1 + (load * discs).sum(1)).astype(np.float32))

    def features(self, inputs):
        return (inputs.unsqueeze(1) - 1) / 9

    def solve(self, inputs):
        return resonances(inputs, modes=16)

    def estimate(self, inputs):
        """The cheap stand-in: the same with few modes, hundreds of times faster."""
        return resonances(inputs, modes=3)


def resonances(density, modes):
    """The lowest frequencies (count, 3) by Rayleigh and Ritz: −∇²u = ω²ρu among modes² products of sines."""
    wave = np.arange(1, modes + 1)
    sines = np.sqrt(2) * np.sin(np.pi * np.outer(wave, X))
    pairs = sines[:, None] * sines / PIXELS
    mass = np.einsum("acx,ixy,bdy->iabcd", pairs, density.astype(float), pairs, optimize=True)
    stiffness = np.sqrt((wave[:, None] ** 2 + wave**2) / 2).ravel()
    matrices = mass.reshape(-1, modes**2, modes**2) / np.outer(stiffness, stiffness)
    return (np.linalg.eigvalsh(matrices)[:, :-4:-1] ** -0.5).astype(np.float32)
