"""Tables for the terminal and the learning-curve figure, from the matrix alone."""

import math
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import matplotlib
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, NullLocator
from rich.table import Table
from rich.text import Text

from sibcl_ray.messages import one_line
from sibcl_ray.problems.problem import FRACTION
from sibcl_ray.results.curves import LabelSaving, LearningCurve, label_savings, learning_curves

# Okabe & Ito's colours, distinguishable with every common colour vision; a method keeps its own for ever
COLOURS = {
    "SL": "#000000",
    "SL-I": "#56B4E9",
    "TL": "#8C6D31",
    "TL-I": "#E69F00",
    "SSL": "#0072B2",
    "SSL-I": "#009E73",
    "SIB-CL": "#D55E00",
    "SL-I-delta": "#CC79A7",
    "SSL-I-delta": "#6A3D9A",
}
OTHERS = ("#999999", "#0072B2", "#8C6D31", "#56B4E9")
MARKERS = "os^Dvp*XP"

REASONS, REASON_LENGTH = 3, 500  # of failures that are told, at most; letters of each


def colour(method: str) -> str:
    """The method's colour, #RRGGBB: the same in every figure and in MLflow."""
    return COLOURS.get(method, OTHERS[sum(method.encode()) % len(OTHERS)])


@dataclass(frozen=True)
class Units:
    """How the errors of a matrix are shown: as they are, with their unit if it is known, or fractions in %."""

    name: str  # empty: not known
    scale: float = 1.0
    decimals: int = 0  # at least

    @property
    def bracketed(self) -> str:
        """` (%)`: for titles."""
        return f" ({self.name})" if self.name else ""

    def number(self, error: float, like: float | None = None) -> str:
        """`4.72`: the error to three digits, or to as many decimals as those of another."""
        size = abs(self.scale * (error if like is None else like))
        if size and not 1e-4 <= size < 1e6:
            return f"{self.scale * error:.{3 if like is None else 2}g}"
        return f"{self.scale * error:.{max(self.decimals, 2 - math.floor(math.log10(size)) if size else 0)}f}"

    def in_words(self, error: float) -> str:
        """`4.72 %`"""
        return f"{self.number(error)} {self.name}".strip()


def units_of(matrix: pd.DataFrame) -> Units:
    """The units of a matrix's errors, which its column `error_units` says."""
    name = str(matrix["error_units"].iloc[0]) if len(matrix) else ""
    return Units("%", scale=100.0, decimals=2) if name == FRACTION else Units(name)


def labels_in_words(saving: LabelSaving) -> str:
    """`91`, `at most 25`, `more than 400`: labels for the target error."""
    if saving.labels == 0:
        return f"at most {saving.smallest}"
    return f"more than {saving.largest}" if np.isinf(saving.labels) else f"{saving.labels:.0f}"


def saving_in_words(saving: LabelSaving) -> str:
    """`11×`, `at least 16×`, `less than 1×`: times fewer labels than the baseline."""
    if np.isnan(saving.saving):
        return f"unknown: {saving.baseline} does not improve with labels"
    if np.isinf(saving.saving):
        return f"at least {_times(saving.baseline_labels / saving.smallest)}"
    if saving.saving == 0:
        return f"less than {_times(saving.baseline_labels / saving.largest)}"
    return _times(saving.saving)


def interval_in_words(saving: LabelSaving) -> str:
    """`7.1× to 14×`, with ends off the measured budgets in words."""
    if np.isnan(saving.low) or np.isnan(saving.high):
        return "no interval: one seed"
    low = _times(saving.low) if saving.low > 0 else "below measure"
    high = _times(saving.high) if np.isfinite(saving.high) else "beyond measure"
    return f"{low} to {high}"


def _times(ratio: float) -> str:
    return f"{ratio:.0f}×" if ratio >= 9.95 else f"{ratio:.2g}×"


def matrix_table(matrix: pd.DataFrame) -> Table:
    """Methods by budgets: mean test error ± half the 95 % interval; the best of a budget in bold.

    Cells that are not finished are counted under the number, or stand in its place.
    """
    curves = learning_curves(matrix, compared=True)
    budgets, units = sorted(matrix["budget"].unique()), units_of(matrix)
    table = Table(title=Text(f"Test error{units.bracketed} by labels"), caption=Text(_caption(matrix, units)))
    table.add_column("method")
    for budget in budgets:
        table.add_column(str(budget), justify="right")
    errors = {n: [c.error[c.budgets == n].min(initial=np.inf) for c in curves.values()] for n in budgets}
    best = {n: min(values, default=np.inf) for n, values in errors.items()}
    for method in matrix["method"].unique():
        cells = matrix[matrix["method"] == method]
        row = [
            _entry(curves.get(method), budget, best[budget], cells[cells["budget"] == budget], units)
            for budget in budgets
        ]
        table.add_row(str(method), *row)
    return table


def _entry(curve: LearningCurve | None, budget: int, best: float, cells: pd.DataFrame, units: Units) -> Text:
    """One entry of the matrix: the number, and what is not finished."""
    entry = Text()
    if curve is not None and budget in curve.budgets:
        i = int(np.flatnonzero(curve.budgets == budget)[0])
        error, half = curve.error[i], (curve.high[i] - curve.low[i]) / 2
        number = units.number(error) + (f" ± {units.number(half, like=error)}" if np.isfinite(half) else "")
        entry.append(number, "bold green" if error == best else "")
    for state, style in (("failed", "red"), ("diverged", "red"), ("missing", "yellow")):
        count = int((cells["state"] == state).sum())
        if count:
            entry.append(("\n" if entry else "") + f"{count} {state}", style)
    return entry or Text("–", "dim")


def _caption(matrix: pd.DataFrame, units: Units) -> str:
    """What a reader must know before trusting the numbers."""
    done = matrix[matrix["state"] == "done"]
    seeds = done.groupby(["method", "budget"])["seed"].nunique()
    most = int(seeds.max()) if len(seeds) else 0
    notes = [f"mean over {most} seed{'s' * (most != 1)} ± half the 95 % bootstrap interval for comparing methods"]
    if most == 1:
        notes = ["one seed: ± shows the spread over test samples only, not between repetitions"]
    notes += _common_uncertainty(matrix, units)
    if len(seeds) and seeds.min() < most:
        notes.append(f"some entries have fewer seeds (at least {seeds.min()})")
    return "\n".join(notes + _mixed(matrix))


def _mixed(matrix: pd.DataFrame) -> list[str]:
    """Which labels were made by an earlier version of the code, if there are any."""
    return [note for note in dict.fromkeys(matrix.get("labels", ())) if note]


def failures_in_words(matrix: pd.DataFrame) -> Iterator[str]:
    """`4 cells failed: OSError: …`: the most frequent reasons why cells have no result, a line each."""
    ended = matrix[matrix["state"].isin(["failed", "diverged"])]
    counts = ended.groupby(["state", "reason"], sort=False).size().sort_values(ascending=False, kind="stable")
    for (state, reason), count in counts.head(REASONS).items():
        words = one_line(reason)
        cut = f"{words[:REASON_LENGTH]}…" if len(words) > REASON_LENGTH else words
        yield f"{count} cell{'s' * (count > 1)} {state}: {cut}"
    if len(counts) > REASONS:
        yield f"the matrix has {len(counts) - REASONS} more reasons"


def _common_uncertainty(matrix: pd.DataFrame, units: Units) -> list[str]:
    """How far the finite test split may move all methods together."""
    whole, compared = learning_curves(matrix), learning_curves(matrix, compared=True)
    if len(whole) < 2:
        return []
    half = np.nanmedian(np.concatenate([c.high - c.low for c in whole.values()])) / 2
    narrow = np.nanmedian(np.concatenate([c.high - c.low for c in compared.values()])) / 2
    return [f"the test samples move all of them together by about ± {units.number(half)}"] if half > narrow else []


def saving_table(matrix: pd.DataFrame, baseline: str = "SL") -> Table:
    """Label saving of each method against `baseline`, its 95 % interval, in words where it is censored."""
    savings = label_savings(matrix, baseline)
    if not savings:
        return Table(f"No label saving: it needs finished cells of {baseline} and of another method")
    target = savings[0].target_error
    largest = matrix.loc[(matrix["method"] == baseline) & (matrix["state"] == "done"), "budget"].max()
    error = units_of(matrix).in_words(target)
    table = Table(
        title=Text(f"Labels for a test error of {error}, {baseline}'s at {largest} labels"),
        caption=Text("\n".join([f"{baseline} itself needs {savings[0].baseline_labels:.0f}", *_mixed(matrix)])),
    )
    for header in ("method", "labels needed", "label saving", "95 % interval"):
        table.add_column(header, justify="left" if header == "method" else "right")
    for s in savings:
        verdict = "bold green" if s.low > 1 else "red" if s.high < 1 or s.saving == 0 else ""  # by its whole interval
        table.add_row(s.method, labels_in_words(s), Text(saving_in_words(s), verdict), interval_in_words(s))
    return table


def learning_curve_figure(matrix: pd.DataFrame, path_stem: Path | str, title: str, baseline: str = "SL") -> list[Path]:
    """Write `path_stem`.png and .svg and return their paths; the same matrix gives the same bytes.

    Test error over labels (log), a band for the 95 % interval, and the largest label saving as an
    arrow at the target error. A matrix without finished cells gives empty axes that say so.
    """
    units = units_of(matrix)
    curves = {m: curve.scaled(units.scale) for m, curve in learning_curves(matrix, compared=True).items()}
    figure = Figure(figsize=(8, 5), layout="constrained")
    axes = figure.add_subplot()
    for i, method in enumerate(sorted(curves)):
        _draw(axes, curves[method], MARKERS[i % len(MARKERS)])
    axes.set(title=title, xlabel="labels")
    axes.set_ylabel(f"mean test error{units.bracketed}", parse_math=False)
    if curves:
        _scale(axes, curves)
        _name(axes, curves)
        _mark_saving(axes, curves, [s for s in label_savings(matrix, baseline) if s.saving > 1], units.scale)
    else:
        axes.text(0.5, 0.5, "no finished cells", ha="center", transform=axes.transAxes)
    return _write(figure, Path(path_stem))


def _draw(axes: Axes, curve: LearningCurve, marker: str) -> None:
    tint = colour(curve.method)
    strong = curve.method == "SIB-CL"
    axes.fill_between(curve.budgets, curve.low, curve.high, color=tint, alpha=0.12, linewidth=0)
    axes.plot(
        curve.budgets,
        curve.error,
        color=tint,
        marker=marker,
        markersize=5,
        linewidth=2.4 if strong else 1.5,
        zorder=3 if strong else 2,
    )


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
        axes.text(1.01, height, method, transform=axes.transAxes, color=colour(method), va="center", weight="bold")


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


def _write(figure: Figure, stem: Path) -> list[Path]:
    """Save under a temporary name in the same folder, then rename: a reader never sees half a figure."""
    stem.parent.mkdir(parents=True, exist_ok=True)
    paths = [stem.with_name(f"{stem.name}.{kind}") for kind in ("png", "svg")]
    for path in paths:
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        metadata = {"Date": None} if path.suffix == ".svg" else {}
        try:
            with matplotlib.rc_context({"svg.hashsalt": "sibcl_ray"}):  # ids from the content, not at random
                figure.savefig(temporary, format=path.suffix[1:], dpi=150, metadata=metadata)
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
    return paths
