"""Tables and words for a matrix of cells, and the colour of each method."""

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import pandas as pd
from rich.table import Column, Table
from rich.text import Text

from sibcl_ray.messages import one_line
from sibcl_ray.problems.problem import FRACTION
from sibcl_ray.results.curves import BASELINE, LabelSaving, LearningCurve, label_savings, learning_curves

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
MARKERS = dict(zip((*COLOURS, "SIB-CL-plain"), "os<vPD^X*h", strict=True))  # of Matplotlib, likewise

UNFINISHED = {"failed": "red", "diverged": "red", "missing": "yellow"}  # how they are shown
REASONS, REASON_LENGTH = 3, 500  # of failures that are told, at most; letters of each


def colour(method: str) -> str:
    """The method's colour, #RRGGBB: the same in every figure and in MLflow."""
    return COLOURS.get(method, OTHERS[sum(method.encode()) % len(OTHERS)])


def marker(method: str) -> str:
    """The method's marker in every figure; methods of one's own share one."""
    return MARKERS.get(method, "p")


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
        return "no interval: one repetition"
    low = _times(saving.low) if saving.low > 0 else "below range"
    high = _times(saving.high) if np.isfinite(saving.high) else "above range"
    return f"{low} to {high}"


def _times(ratio: float) -> str:
    return f"{ratio:.0f}×" if ratio >= 9.95 else f"{ratio:.2g}×"


def matrix_table(matrix: pd.DataFrame) -> Table:
    """Methods by budgets: mean test error ± half the 95 % interval; the best of a budget in bold.

    Cells that are not finished are counted under the number, or stand in its place.
    """
    curves, units = learning_curves(matrix, compared=True), units_of(matrix)
    measured: dict[tuple[str, int], tuple[float, float]] = {}  # error and half its interval
    best: dict[int, float] = {}
    for method, curve in curves.items():
        for budget, error, half in zip(curve.budgets, curve.error, (curve.high - curve.low) / 2, strict=True):
            measured[method, budget] = error, half
            best[budget] = min(error, best.get(budget, np.inf))
    states = matrix.groupby(["method", "budget", "state"]).size()
    budgets = sorted(matrix["budget"].unique())
    columns = (Column(str(budget), justify="right") for budget in budgets)
    title, caption = Text(f"Test error{units.bracketed} by labels"), Text(_caption(matrix, curves, units))
    table = Table("method", *columns, title=title, caption=caption)
    for method in matrix["method"].unique():
        row = []
        for budget in budgets:
            entry = Text()
            if (method, budget) in measured:
                error, half = measured[method, budget]
                number = units.number(error) + (f" ± {units.number(half, like=error)}" if np.isfinite(half) else "")
                entry.append(number, "bold green" if error == best[budget] else "")
            for state, style in UNFINISHED.items():
                if count := states.get((method, budget, state), 0):
                    entry.append(("\n" if entry else "") + f"{count} {state}", style)
            row.append(entry or Text("–", "dim"))
        table.add_row(str(method), *row)
    return table


def _caption(matrix: pd.DataFrame, curves: Mapping[str, LearningCurve], units: Units) -> str:
    """What a reader must know before trusting the numbers."""
    seeds = [int(count) for curve in curves.values() for count in curve.seeds]
    most, least = max(seeds, default=0), min(seeds, default=0)
    notes = [f"mean over {most} repetitions ± half the 95 % bootstrap interval for comparing methods"]
    if most == 1:
        notes = ["one repetition: ± shows the spread over test samples only"]
    if len(curves) > 1:
        common = _half_width(learning_curves(matrix))
        if common > _half_width(curves):
            notes.append(
                f"the test samples move all of them together by about ±\N{NO-BREAK SPACE}{units.in_words(common)}"
            )
    if least < most:
        notes.append(f"some entries have fewer repetitions (at least {least})")
    return "\n".join(notes + _mixed(matrix))


def _half_width(curves: Mapping[str, LearningCurve]) -> float:
    """Half the median interval; 0 if there is none."""
    widths = np.concatenate([curve.high - curve.low for curve in curves.values()])
    return float(np.nanmedian(widths) / 2) if np.isfinite(widths).any() else 0.0


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


def saving_table(matrix: pd.DataFrame) -> Table:
    """Label saving of each method, its 95 % interval, in words where it is censored."""
    savings = label_savings(matrix)
    if not savings:
        return Table(f"No label saving: it needs finished cells of {BASELINE} and of another method")
    largest = matrix.loc[(matrix["method"] == BASELINE) & (matrix["state"] == "done"), "budget"].max()
    error = units_of(matrix).in_words(savings[0].target_error)
    table = Table(
        "method",
        *(Column(header, justify="right") for header in ("labels needed", "label saving", "95 % interval")),
        title=Text(f"Labels for a test error of {error}, {BASELINE}'s at {largest} labels"),
    )
    notes = [f"{BASELINE} itself needs {savings[0].baseline_labels:.0f}"]
    if any("range" in interval_in_words(s) for s in savings):
        notes.append("below, above range: too small, too large to be told with these budgets")
    table.caption = Text("\n".join(notes + _mixed(matrix)))
    for s in savings:
        verdict = "bold green" if s.low > 1 else "red" if s.high < 1 or s.saving == 0 else ""  # by its whole interval
        table.add_row(s.method, labels_in_words(s), Text(saving_in_words(s), verdict), interval_in_words(s))
    return table
