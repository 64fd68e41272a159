"""How often a 95 % interval of a label saving holds the truth, in simulated studies whose saving is known.

python benchmarks/intervals.py [--studies 150]

Power laws under test samples of unequal difficulty and seeds of unequal luck, 6 % each and 3 % that all methods
share: those of tests/test_curves.py.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
from rows import Row, markdown

from sibcl_ray.results.curves import label_savings

sys.path.append(str(Path(__file__).parents[1] / "tests"))
from test_curves import noisy


def main(arguments: list[str] | None = None) -> list[Row]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--studies", type=int, default=150)
    studies = parser.parse_args(arguments).studies
    rows = []
    for seeds in (3, 5, 10):
        row = {"seeds": str(seeds)}
        for true in (2, 4, 8):
            rng, held = np.random.default_rng(seeds), []
            for _ in range(studies):
                [saving] = label_savings(noisy(rng, {"SL": 1, "SIB-CL": true}, seeds))
                held.append(saving.low <= true <= saving.high)
            row[f"a saving of {true}×"] = f"{np.mean(held):.0%}"
        rows.append(row)
    return rows


if __name__ == "__main__":
    print(markdown(main()))
