"""Tables and words for a matrix of cells, and the colour of each method."""

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pandas as pd
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
