"""Arrays from HDF5: the density of states of electrons in a two-dimensional crystal, over its potential.

Writes spectra.h5 and the problem.toml that names what is in it, as another program or an experiment would:

python studies/my_arrays.py runs/crystals
python studies/label_sweep.py --problem tabulated --data runs/crystals
"""

import sys
from pathlib import Path

import h5py
import numpy as np

PIXELS, ENERGIES, WIDTH = 32, np.linspace(-2, 2, 65), 0.2
PROBLEM = """\
name = "electrons"
target = { file = "spectra.h5", inputs = "target/potential", labels = "target/states", test = 100 }
surrogate = { file = "spectra.h5", inputs = "surrogate/potential", labels = "surrogate/states" }
input = { units = "(h/a)² / 2m", periodic = true }
label = { units = "states per cell and (h/a)² / 2m", offset = "surrogate mean" }
symmetry = { translation = true, point_group = true }
"""


def crystals(count, rng):
    """Potentials (count, 32, 32) of four atoms, periodic Gaussians, anywhere in a square cell."""
    phase = 2 * np.pi * (np.arange(PIXELS) / PIXELS - rng.uniform(0, 1, (2, count, 4, 1)))
    x, y = np.exp(3 * (np.cos(phase) - 1))
    return -np.einsum("ca,cax,cay->cxy", rng.uniform(0, 5, (count, 4)), x, y)


def density_of_states(potentials, cutoff, grid):
    """Spectra (count, 65), from plane waves up to a cutoff along each axis, at grid × grid k-points."""
    waves = np.stack(np.meshgrid(*[np.arange(-cutoff, cutoff + 1)] * 2), -1).reshape(-1, 2)
    line = (np.arange(grid) + 0.5) / grid - 0.5
    half = np.stack(np.meshgrid(line, line[: grid // 2]), -1).reshape(-1, 1, 2)  # of the zone, as E(−k) = E(k)
    kinetic = np.square(half + waves).sum(-1)[..., None] * np.eye(len(waves))
    difference = (waves[:, None] - waves) % PIXELS
    fourier = np.fft.fft2(potentials)[:, difference[..., 0], difference[..., 1]] / PIXELS**2
    energies = np.array([np.linalg.eigvalsh(kinetic + potential) for potential in fourier])
    peaks = [np.exp(-np.square((energy - energies) / WIDTH) / 2).sum(2).mean(1) for energy in ENERGIES]
    return np.stack(peaks, 1) / (WIDTH * np.sqrt(2 * np.pi))


def write(folder, target=500, surrogate=1000):
    """A folder of arrays: expensive labels, and cheap ones with fewer plane waves and k-points."""
    folder.mkdir(parents=True, exist_ok=True)
    rng = np.random.default_rng(0)
    with h5py.File(folder / "spectra.h5", "w") as file:
        for role, count, accuracy in (("target", target, (3, 6)), ("surrogate", surrogate, (2, 4))):
            file[f"{role}/potential"] = potentials = crystals(count, rng)
            file[f"{role}/states"] = density_of_states(potentials, *accuracy)
    (folder / "problem.toml").write_text(PROBLEM, encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1]))
