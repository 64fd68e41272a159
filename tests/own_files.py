"""A file with a problem of a user, as it should be and changed."""

from pathlib import Path

FILE = '''
"""A mean."""
import os, time
from functools import lru_cache
import numpy as np
from sibcl_ray.problems.problem import Sample
from sibcl_ray.problems.simulation import Simulation

SHIFT = 0.0

@lru_cache
def factor():
    return 1.0

class Mean(Simulation):
    name = "mean"
    input_shape, label_shape = (8, 8), (1,)
    labels_per_task = 50

    def sample(self, count, rng):
        return Sample(rng.uniform(0.1, 1, (count, 8, 8)).astype(np.float32))

    def solve(self, inputs):
        # BEFORE
        return (factor() * inputs.mean((1, 2)) + SHIFT)[:, None].astype(np.float32)
'''


def written(folder: Path, *changes: tuple[str, str], file="mine.py") -> str:
    """The file, changed, and how it is named."""
    text = FILE
    for old, new in changes:
        assert old in text
        text = text.replace(old, new)
    folder.mkdir(exist_ok=True)
    (folder / file).write_text(text)
    return f"{folder / file}:Mean"


def before(text: str) -> tuple[str, str]:
    """What the solver does first."""
    return "# BEFORE", text
