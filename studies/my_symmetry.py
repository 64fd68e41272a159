"""A symmetry that is not a square's: light among dielectric rods on a hexagonal lattice.

The unit cell is the rhombus of the lattice vectors a1 and a2, 60° apart, and pixel (i, j) of an image is at
(i a1 + j a2) / 32. A rotation by 60° maps this lattice onto itself, so in its coordinates it is a matrix of whole
numbers: python studies/label_sweep.py --problem studies/my_symmetry.py:HexagonalRods
"""

import numpy as np

from sibcl_ray import LatticePointGroup, Sample, Simulation, Translations

PIXELS = 32
ROTATION = (0, -1), (1, 1)  # column by column: a1 becomes a2, and a2 becomes a2 − a1
REFLECTION = (0, 1), (1, 0)  # a1 and a2 change places
METRIC = np.array([[4, -2], [-2, 4]]) / 3  # products of the reciprocal lattice vectors b1 and b2, over (2π/a)²
K = np.array([2, 1]) / 3  # a corner of the Brillouin zone, in b1 and b2


class HexagonalRods(Simulation):
    """ε(r) to the three lowest frequencies at K, two of which are equal in a symmetric crystal, as in graphene."""

    name = "hexagonal-rods"
    input_units, label_units = "relative permittivity", "2πc/a"
    input_shape, label_shape = (PIXELS, PIXELS), (3,)
    symmetries = {"translation": Translations(PIXELS), "point_group": LatticePointGroup((ROTATION, REFLECTION))}
    offset, label_scale = np.array([0.3, 0.4, 0.5], np.float32), 0.1  # networks learn (label − offset) / label_scale
    labels_per_task = 50  # one takes milliseconds

    def sample(self, count, rng):
        """Three rods anywhere in the cell; where they overlap, their permittivities add up."""
        pixel = np.arange(PIXELS) / PIXELS
        x, y = ((pixel - rng.uniform(0, 1, (2, count, 3, 1)) + 0.5) % 1 - 0.5)[..., None]  # from the nearest centre
        y = y.swapaxes(2, 3)
        radius, contrast = rng.uniform(0.1, 0.25, (count, 3, 1, 1)), rng.uniform(1, 10, (count, 3, 1, 1))
        return Sample(1 + (contrast * (x**2 + x * y + y**2 < radius**2)).sum(1).astype(np.float32))

    def features(self, inputs):
        return (inputs.unsqueeze(1) - 1) / 10

    def solve(self, inputs):
        return frequencies(inputs, cutoff=20)

    def estimate(self, inputs):
        """The same with 12 plane waves instead of 54."""
        return frequencies(inputs, cutoff=4)


def frequencies(epsilon, cutoff):
    """The lowest frequencies (count, 3) at K of waves with E out of plane: −∇²E = ω²εE among |K + G|² < cutoff."""
    waves = np.stack(np.meshgrid(*[np.arange(-9, 10)] * 2), -1).reshape(-1, 2)
    squared = np.einsum("gi,ij,gj->g", K + waves, METRIC, K + waves)
    waves, length = waves[squared < cutoff], np.sqrt(squared[squared < cutoff])
    difference = (waves[:, None] - waves) % PIXELS
    fourier = np.fft.fft2(epsilon)[:, difference[..., 0], difference[..., 1]] / PIXELS**2
    return (np.linalg.eigvalsh(fourier / np.outer(length, length))[:, :-4:-1] ** -0.5).astype(np.float32)
