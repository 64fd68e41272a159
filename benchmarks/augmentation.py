"""How much faster a whole batch is augmented than sample by sample in Python.

`python benchmarks/augmentation.py`: 768 cells of 32 × 32, each symmetry with probability 0.5, in processor time of one
thread. Twice: against the same functions called for each sample, and against a bare loop of roll, rot90, flip and
multiply.
"""

import argparse
import time

import numpy as np
import torch
from rows import Row, markdown

from sibcl_ray.problems.photonic import PhotonicDOS, level_set_cells
from sibcl_ray.symmetry import augment


def one_by_one(x: torch.Tensor) -> torch.Tensor:
    """The operations of the released code: roll, rotate, flip and scale each sample, half of the time."""
    views = []
    for cell in x:
        if torch.rand(()) < 0.5:
            cell = torch.roll(cell, (int(torch.randint(32, ())), int(torch.randint(32, ()))), (0, 1))
        if torch.rand(()) < 0.5:
            cell = torch.rot90(cell, int(torch.randint(4, ())), (0, 1))
            cell = cell.flip(0) if torch.rand(()) < 0.5 else cell
        if torch.rand(()) < 0.5:
            low, high = 1 / cell.min(), 20 / cell.max()
            cell = cell * (low + (high - low) * torch.rand(()))
        views.append(cell)
    return torch.stack(views)


def main(arguments: list[str] | None = None) -> list[Row]:
    """The ratios of medians of alternating runs."""
    argparse.ArgumentParser(description=__doc__).parse_args(arguments)
    torch.set_num_threads(1)
    torch.empty(8_000_000)  # once such a buffer was freed, as in any training, the C library keeps smaller ones
    x = torch.from_numpy(level_set_cells(768, np.random.default_rng(0))[0])
    groups = PhotonicDOS().symmetries
    probabilities = dict.fromkeys(groups, 0.5)
    generator = torch.Generator().manual_seed(0)
    works = {
        "at once": lambda: augment(x, groups, probabilities, generator),
        "the same, one by one": lambda: torch.cat([augment(c[None], groups, probabilities, generator) for c in x]),
        "a bare loop": lambda: one_by_one(x),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(11):
        for name, work in works.items():
            start = time.process_time()
            work()
            times[name].append(time.process_time() - start)
    medians = {name: np.median(taken) for name, taken in times.items()}
    return [
        {"768 cells": name, "ms": f"{1e3 * median:.2f}", "over at once": f"{median / medians['at once']:.0f}"}
        for name, median in medians.items()
    ]


if __name__ == "__main__":
    print(markdown(main()))
