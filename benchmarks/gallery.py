"""Pictures for sibcl_ray/problems/README.md: inputs of both families of each built-in problem, and their labels.

python benchmarks/gallery.py [--problem photonic-dos] [--folder sibcl_ray/problems]

Four inputs a family, from the smallest to the largest mean label of 40. Every picture is a PNG of 64 colours.
"""

from __future__ import annotations

import argparse
import io
from collections.abc import Callable
from pathlib import Path

import matplotlib
import numpy as np
from PIL import Image

from sibcl_ray.problems import PROBLEMS
from sibcl_ray.problems.problem import Problem
from sibcl_ray.solvers.density_of_states import EMPTY_LATTICE, FREQUENCIES, k_grid

matplotlib.use("agg")
from matplotlib import pyplot
from matplotlib.axes import Axes
from matplotlib.figure import SubFigure

DRAWN, SHOWN = 40, 4  # inputs of a family
COLOURS = 64
LINE = "#0072B2"


def density(axes: Axes, label: np.ndarray) -> None:
    axes.plot(FREQUENCIES, EMPTY_LATTICE, "--", color="0.6", linewidth=1)
    axes.plot(FREQUENCIES, label, color=LINE, linewidth=1)
    axes.set(xlabel="ω√⟨ε⟩", ylim=(0, 12), yticks=(0, 6, 12))


def band_structure(axes: Axes, label: np.ndarray) -> None:
    line = k_grid().numpy()[:: label.shape[1], 0]
    axes.plot(line, label[:, :, label.shape[2] // 2].T, color=LINE, linewidth=1)
    axes.set(xlabel="$k_x$", ylim=(0, 0.8), xticks=(-0.5, 0, 0.5))


def number(text: str) -> Callable[[Axes, np.ndarray], None]:
    """Writes a label of one number below its input."""

    def write(axes: Axes, label: np.ndarray) -> None:
        axes.set_xlabel(text.format(label.item()))

    return write


PLOTS = {"photonic-dos": density, "photonic-bands": band_structure}  # labels that need axes of their own
NUMBERS = {
    "photonic-gap": number("gap {:.1%}"),
    "schrodinger-2d": number("E₀ = {:.3f}"),
    "schrodinger-3d": number("E₀ = {:.3f}"),
    "magnet-sign": number("sign {:+.0f}"),
}


def family(figure: SubFigure, title: str, problem: Problem, inputs: np.ndarray, labels: np.ndarray, top: float) -> None:
    """Inputs (count, …) of a family, some of them, with their labels below."""
    order = labels.reshape(len(labels), -1).mean(1).argsort(kind="stable")
    chosen = order[np.linspace(0, len(order) - 1, SHOWN).round().astype(int)]
    plot = PLOTS.get(problem.name)
    rows = figure.subplots(
        2 if plot else 1, SHOWN, squeeze=False, sharey="row", height_ratios=(1, 0.8) if plot else None
    )
    figure.suptitle(title, fontsize=9)
    for column, (image, label) in enumerate(zip(inputs[chosen], labels[chosen], strict=True)):
        axes = rows[0, column]
        image = image if image.ndim == 2 else image[len(image) // 2]
        axes.imshow(image.T, origin="lower", cmap="viridis", vmin=inputs.min(), vmax=top)
        axes.set(xticks=(), yticks=())
        axes.spines[:].set_visible(False)
        (plot or NUMBERS[problem.name])(rows[-1, column], label)


def picture(problem: Problem) -> Image.Image:
    """Both families of a problem, beside each other."""
    rng = np.random.default_rng(0)
    target, surrogate = problem.sample(DRAWN, rng), problem.sample_surrogate(DRAWN, rng)
    top = max(target.inputs.max(), surrogate.inputs.max())
    with matplotlib.rc_context({"font.size": 8, "axes.spines.top": False, "axes.spines.right": False}):
        height = 1.55 if problem.name in NUMBERS else 2.6
        figure = pyplot.figure(figsize=(9.0, height if problem.name != "magnet-sign" else 1.2), layout="constrained")
        left, right = figure.subfigures(1, 2, wspace=0.04)
        family(left, "target", problem, target.inputs, problem.solve(target.inputs), top)
        family(right, "surrogate", problem, surrogate.inputs, problem.solve_surrogate(surrogate), top)
        buffer = io.BytesIO()
        figure.savefig(buffer, dpi=140)
        pyplot.close(figure)
    return Image.open(buffer).convert("RGB").quantize(COLOURS)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--problem", choices=PROBLEMS, help="all if not given")
    parser.add_argument("--folder", type=Path, default=Path(__file__).parents[1] / "sibcl_ray" / "problems")
    o = parser.parse_args()
    for name in [o.problem] if o.problem else PROBLEMS:
        file = o.folder / f"{name}.png"
        picture(PROBLEMS[name]).save(file, optimize=True)
        print(f"{file}  {file.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    main()
