"""How often a 95 % interval of a label saving holds the truth, in simulated studies whose saving is known.

python benchmarks/intervals.py [--studies 150] [--saving 8]

Power laws under test samples of unequal difficulty and seeds of unequal luck: those of tests/test_curves.py.
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
    parser.add_argument("--saving", type=float, default=8.0)
    options = parser.parse_args(arguments)
    rows = []
    for seeds in (3, 5, 10):
        rng, held = np.random.default_rng(seeds), []
        for _ in range(options.studies):
            [saving] = label_savings(noisy(rng, {"SL": 1, "SIB-CL": options.saving}, seeds))
            held.append(saving.low <= options.saving <= saving.high)
        rows.append({"seeds": str(seeds), "intervals that hold the truth": f"{np.mean(held):.0%}"})
    return rows


if __name__ == "__main__":
    print(markdown(main()))
