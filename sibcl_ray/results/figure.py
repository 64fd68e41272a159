"""The learning-curve figure of a matrix of cells."""

import logging
from collections.abc import Sequence
from itertools import cycle
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # without a home folder it says at length that it does without

import matplotlib  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.ticker import LogLocator, NullLocator  # noqa: E402

from sibcl_ray.results.curves import LabelSaving, LearningCurve, label_savings, learning_curves  # noqa: E402
from sibcl_ray.results.tables import colour, saving_in_words, units_of  # noqa: E402

MARKERS = "os^Dvp*XP"
LINES = ("-", "--", ":", "-.")


def learning_curve_figure(matrices: Sequence[pd.DataFrame], path_stem: Path, title: str) -> list[Path]:
    """Write `path_stem`.png and .svg and return their paths; the same matrices give the same bytes.

    Test error over labels (log), a band for the 95 % interval, and, of one matrix, the largest label saving as an
    arrow at the target error. Matrices without finished cells give empty axes that say so.
    """
    units = units_of(matrices[0])
    every = [learning_curves(matrix, compared=True) for matrix in matrices]
    curves = {m: curve.scaled(units.scale) for found in every for m, curve in found.items()}
    styles = dict(zip(dict.fromkeys(method.partition(" (")[2] for method in curves), cycle(LINES), strict=False))
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for method, marker in zip(sorted(curves), cycle(MARKERS)):
        name, _, study = method.partition(" (")  # several studies are told apart by their lines
        curve, tint = curves[method], colour(name)
        emphasis: dict[str, Any] = {"linewidth": 1.5, "zorder": 2, "linestyle": styles[study]}
        if name == "SIB-CL":
            emphasis |= {"linewidth": 2.4, "zorder": 3}
        axes.fill_between(curve.budgets, curve.low, curve.high, color=tint, alpha=0.12, linewidth=0)
        axes.plot(curve.budgets, curve.error, color=tint, marker=marker, markersize=5, **emphasis)
    axes.set(title=title, xlabel="labels")
    axes.set_ylabel(f"mean test error{units.bracketed}", parse_math=False)
    if curves:
        _scale(axes, curves)
        _name(axes, curves)
        if len(matrices) == 1:
            _mark_saving(axes, curves, [s for s in label_savings(matrices[0]) if s.saving > 1], units.scale)
    else:
        axes.text(0.5, 0.5, "no finished cells", ha="center", transform=axes.transAxes)
    paths = [path_stem.with_name(f"{path_stem.name}.{kind}") for kind in ("png", "svg")]
    path_stem.parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context({"svg.hashsalt": "sibcl_ray"}):  # ids from the content, not at random
        for path, metadata in zip(paths, ({}, {"Date": None}), strict=True):
            figure.savefig(path, dpi=150, metadata=metadata)
    return paths


def _scale(axes: Axes, curves: dict[str, LearningCurve]) -> None:
    """Log labels with the budgets as ticks; log error where it spans more than a factor of five."""
    budgets = sorted({float(n) for curve in curves.values() for n in curve.budgets})
    errors = np.concatenate([curve.error for curve in curves.values()])
    axes.set_xscale("log")
    axes.set_xticks(budgets, [f"{n:.0f}" for n in budgets])
    axes.xaxis.set_minor_locator(NullLocator())
    axes.set_xlim(budgets[0] / 1.15, budgets[-1] * 1.15)
    if errors.min() > 0 and errors.max() > 5 * errors.min():
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
        axes.yaxis.set_minor_locator(LogLocator(subs=(2, 5)))
        axes.yaxis.set_minor_formatter("{x:g}")
    axes.grid(alpha=0.25, linewidth=0.6)
    axes.spines[["top", "right"]].set_visible(False)


def _name(axes: Axes, curves: dict[str, LearningCurve]) -> None:
    """Each method's name beside the end of its curve, pushed apart where they would touch."""
    ends = sorted((curve.error[-1], method) for method, curve in curves.items())
    to_axes = axes.transData + axes.transAxes.inverted()
    heights = np.array([to_axes.transform((curves[method].budgets[-1], end))[1] for end, method in ends])
    gap = 0.05  # of the axes' height: one line of text
    placed = heights.copy()
    for i in range(1, len(placed)):
        placed[i] = max(placed[i], placed[i - 1] + gap)
    placed -= max(0.0, (placed - heights).mean())
    for (_, method), height in zip(ends, placed, strict=True):
        axes.text(
            1.01,
            height,
            method,
            transform=axes.transAxes,
            color=colour(method.partition(" (")[0]),
            va="center",
            weight="bold",
        )


def _mark_saving(axes: Axes, curves: dict[str, LearningCurve], savings: list[LabelSaving], scale: float) -> None:
    """An arrow at the target error from the baseline's labels to those of the method that saves most."""
    if not savings:
        return
    # Beyond measure are several alike: then the one with the smallest error at its fewest labels.
    best = max(savings, key=lambda s: (s.saving, -curves[s.method].error[0]))
    height, end = scale * best.target_error, best.labels or best.smallest
    axes.axhline(height, color="0.5", linewidth=0.8, linestyle=":")
    arrow = {"arrowstyle": "-|>", "color": "0.25", "linewidth": 1.4, "shrinkA": 0, "shrinkB": 0}
    axes.annotate("", xy=(end, height), xytext=(best.baseline_labels, height), arrowprops=arrow)
    axes.annotate(
        f"{best.method}: {saving_in_words(best)} fewer labels",
        xy=(np.sqrt(end * best.baseline_labels), height),
        xytext=(0, 5),
        textcoords="offset points",
        ha="center",
        va="bottom",
        color="0.15",
        bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5},
    )
