"""The learning-curve figure of a matrix of cells."""

import logging
from collections.abc import Sequence
from itertools import cycle, product
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

logging.getLogger("matplotlib").setLevel(logging.ERROR)  # without a home folder it says at length that it does without

import matplotlib  # noqa: E402
from matplotlib.axes import Axes  # noqa: E402
from matplotlib.figure import Figure  # noqa: E402
from matplotlib.lines import Line2D  # noqa: E402
from matplotlib.text import Annotation  # noqa: E402
from matplotlib.ticker import LogLocator, NullLocator  # noqa: E402
from matplotlib.transforms import Bbox  # noqa: E402

from sibcl_ray.results.curves import LabelSaving, LearningCurve, label_savings, learning_curves  # noqa: E402
from sibcl_ray.results.tables import colour, marker, saving_in_words, units_of  # noqa: E402

LINES: tuple[Any, ...] = ("-", "--", ":", "-.", *((0, (5, 1, *(1, 1) * dots)) for dots in range(2, 6)))


def learning_curve_figure(matrices: Sequence[pd.DataFrame], path_stem: Path, title: str) -> list[Path]:
    """Write `path_stem`.png and .svg and return their paths; the same matrices give the same bytes.

    Test error over labels (log) and a band for the 95 % interval. Methods are told apart by colours and markers,
    several studies by their lines. Of one study the largest label saving is an arrow at the target error. Matrices
    without finished cells give empty axes that say so.
    """
    units = units_of(matrices[0])
    every = [learning_curves(matrix, compared=True) for matrix in matrices]
    curves = {m: curve.scaled(units.scale) for found in every for m, curve in found.items()}
    styles = dict(zip(dict.fromkeys(method.partition(" (")[2] for method in curves), cycle(LINES), strict=False))
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for method in sorted(curves):
        name, _, study = method.partition(" (")
        curve, tint = curves[method], colour(name)
        emphasis: dict[str, Any] = {"linewidth": 1.5, "zorder": 2, "linestyle": styles[study]}
        if name == "SIB-CL":
            emphasis |= {"linewidth": 2.4, "zorder": 3}
        axes.fill_between(curve.budgets, curve.low, curve.high, color=tint, alpha=0.12, linewidth=0)
        axes.plot(curve.budgets, curve.error, color=tint, marker=marker(name), markersize=5, **emphasis)
    axes.set(title=title, xlabel="labels")
    axes.set_ylabel(f"mean test error{units.bracketed}", parse_math=False)
    if curves:
        _scale(axes, curves)
        _name(axes, curves)
        if any(styles):
            lines = [Line2D([], [], color="0.3", linestyle=style) for style in styles.values()]
            axes.legend(lines, [study.removesuffix(")") for study in styles], frameon=False, fontsize="small")
        else:
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
    """Each method's name beside the end of its curve, or between those of several studies, apart from the others."""
    to_axes = axes.transData + axes.transAxes.inverted()
    ends: dict[str, list[float]] = {}
    for method, curve in curves.items():
        ends.setdefault(method.partition(" (")[0], []).append(to_axes.transform((1, curve.error[-1]))[1])
    names = sorted(ends, key=lambda name: np.mean(ends[name]))
    heights = np.array([np.mean(ends[name]) for name in names])
    lines = np.arange(len(names)) * min(0.05, 1 / len(names))  # of text, in the axes' height
    placed = np.maximum.accumulate(heights - lines)  # the lowest places above those below
    placed = np.clip(placed - (placed + lines - heights).mean(), 0, 1 - lines[-1]) + lines
    for name, height in zip(names, placed, strict=True):
        where: dict[str, Any] = {"transform": axes.transAxes, "va": "center"}
        axes.text(1.01, height, name, color=colour(name), weight="bold", **where)


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
    words = axes.annotate(
        f"{best.method}: {saving_in_words(best)} fewer labels",
        xy=(1, height),
        xytext=(0, 5),
        textcoords="offset points",
        ha="center",
        va="bottom",
        color="0.15",
        bbox={"facecolor": "white", "alpha": 0.8, "linewidth": 0, "pad": 1.5},
    )
    _place(axes, curves, words, float(np.sqrt(end * best.baseline_labels)))


def _place(axes: Axes, curves: dict[str, LearningCurve], words: Annotation, middle: float) -> None:
    """Put words on their height where they hide as little as possible of curves, and nothing beside the axes."""

    def put(x: float, below: float) -> Bbox:
        words.xy, words.xyann = (x, words.xy[1]), (0, -below)
        words.set(verticalalignment="top" if below > 0 else "bottom")
        return words.get_window_extent()

    figure = axes.get_figure(root=True)
    assert figure is not None
    figure.draw_without_rendering()  # so that the layout is known
    drawn = np.concatenate([_along(axes, curve) for curve in curves.values()])
    hidden = [(0, 0.0, middle, -5)]
    for x, below in product(np.geomspace(*axes.get_xlim(), 41), (-5, 5)):
        box = put(x, below)
        if axes.bbox.x0 <= box.x0 and box.x1 <= axes.bbox.x1:
            hidden.append((box.count_contains(drawn), abs(np.log(x / middle)), x, below))
    put(*min(hidden[1:] or hidden)[2:])


def _along(axes: Axes, curve: LearningCurve) -> np.ndarray:
    """Points of a curve on the screen, close to each other."""
    ends = axes.transData.transform(np.column_stack([curve.budgets, curve.error]))
    at = np.linspace(0, len(ends) - 1, 40 * len(ends))
    return np.column_stack([np.interp(at, np.arange(len(ends)), ends[:, axis]) for axis in (0, 1)])
