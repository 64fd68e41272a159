"""Learning curves and label savings from the matrix of cells, with paired bootstrap intervals.

The intervals are percentile intervals of a crossed bootstrap (Efron & Tibshirani, *An Introduction to the
Bootstrap*, 1993, chapters 8 and 13): seeds and test samples are both redrawn with replacement, the same
draw for every method and budget, because all cells of a seed share their labels and all cells share the
test split. They are only as good as the number of seeds: resampling three cannot reach beyond the best and
the worst of them. benchmarks/intervals.py measures how often they hold the truth; tests/test_curves.py guards that.
"""

from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

Array = np.ndarray
BASELINE = "SL"  # the method that label savings are against
LOW, HIGH = (1 - 0.95) / 2, (1 + 0.95) / 2  # quantiles of a 95 % interval


@dataclass(frozen=True, kw_only=True, eq=False)
class LearningCurve:
    """Test error of one method against its number of labels; all arrays are (B,), budgets ascending.

    `error`, `low` and `high` are means, in the unit of the matrix's errors. `low` and `high` are NaN where nothing
    can be resampled (one seed and no errors per test sample).
    """

    method: str
    budgets: Array
    error: Array
    low: Array
    high: Array
    seeds: Array  # finished seeds per budget

    def scaled(self, factor: float) -> "LearningCurve":
        """The same with errors in another unit."""
        return replace(self, error=factor * self.error, low=factor * self.low, high=factor * self.high)


@dataclass(frozen=True, kw_only=True)
class LabelSaving:
    """How many labels `method` needs for `target_error`, and how many times fewer that is than `baseline`.

    Numbers off the measured budgets are censored: `labels` is 0 where the target is met at the `smallest` budget
    already, and inf where it is not met by the `largest`. Accordingly `saving` is inf where it is at least
    `baseline_labels / smallest`, and 0 where it is less than `baseline_labels / largest`, so that comparisons such as
    `low >= 4` are never right by accident. `saving` is NaN where the baseline never was worse than at its largest
    budget; the bounds are NaN where nothing can be resampled.
    """

    method: str
    baseline: str
    target_error: float  # the baseline's mean error at its largest budget
    baseline_labels: float  # labels the baseline needs for it, by the same rule
    smallest: int  # budgets at which the method was measured
    largest: int
    labels: float
    saving: float
    low: float
    high: float


def learning_curves(
    matrix: pd.DataFrame, resamples: int = 1000, seed: int = 0, compared: bool = False
) -> dict[str, LearningCurve]:
    """The mean curve over finished cells of each method, in order of first appearance.

    With ``compared`` the intervals leave out what moves all curves alike, such as a test split that happens
    to be hard: they are for comparing methods, not for the absolute error (Cousineau, Tutorials in
    Quantitative Methods for Psychology 1, 42 (2005)). A single method keeps its whole interval.

    A budget without a finished cell is left out of its method's curve, a method without any is left out of
    the answer. Raises ValueError where the matrix holds a cell twice or mixes problems.
    """
    curves = {}
    resampled = _resampled(matrix, resamples, seed)
    common = np.zeros(resamples)
    if compared and len(resampled) > 1:
        common = np.hstack([redrawn - error for _, _, error, redrawn in resampled.values()]).mean(axis=1)
    for method, (budgets, seeds, error, redrawn) in resampled.items():
        low, high = np.quantile(redrawn - common[:, None], (LOW, HIGH), axis=0)
        curves[method] = LearningCurve(method=method, budgets=budgets, error=error, low=low, high=high, seeds=seeds)
    return curves


def label_savings(matrix: pd.DataFrame, resamples: int = 1000, seed: int = 0) -> list[LabelSaving]:
    """The label saving of every other method against `BASELINE`; empty if that has no finished cell.

    The target is the baseline's mean error at its largest budget. Both sides need the smallest number of
    labels from which on their mean curve, linear in log n, stays at or under it: a baseline that stopped
    learning early is charged only the labels it made use of. Every resample sets its own target.
    """
    resampled = _resampled(matrix, resamples, seed)
    if BASELINE not in resampled:
        return []
    budgets, _, error, redrawn = resampled.pop(BASELINE)
    # The mean curve and its resamples go through the same arithmetic: row 0 is the measured one.
    rows = np.vstack([error, redrawn])
    target = rows[:, -1]
    spent_low, spent_high = labels_needed(budgets, rows, target)
    savings = []
    for method, (sizes, _, curve, redrawn) in resampled.items():
        low, high = labels_needed(sizes, np.vstack([curve, redrawn]), target)
        least, most = _ratio(spent_low, high), _ratio(spent_high, low)
        labels = low[0] if low[0] == high[0] else 0.0 if low[0] == 0 else np.inf
        point = np.nan if spent_low[0] == 0 else most[0] if low[0] == 0 else least[0]
        known = np.isfinite(rows).all() and np.isfinite(redrawn).all()
        savings.append(
            LabelSaving(
                method=method,
                baseline=BASELINE,
                target_error=float(target[0]),
                baseline_labels=float(spent_high[0]),
                smallest=int(sizes[0]),
                largest=int(sizes[-1]),
                labels=float(labels),
                saving=float(point),
                # Quantiles are rounded outwards to one of the values, as infinities cannot be interpolated.
                low=float(np.quantile(least[1:], LOW, method="lower")) if known else np.nan,
                high=float(np.quantile(most[1:], HIGH, method="higher")) if known else np.nan,
            )
        )
    return savings


def labels_needed(budgets: Array, error: Array, target: Array) -> tuple[Array, Array]:
    """Bounds (R,), (R,) on the smallest n from which on each of R curves stays at or under its target.

    `budgets` (B,) ascending, `error` (R, B), `target` (R,). The bounds are equal, interpolated linearly in
    log n, where the curve crosses for the last time between two budgets; (0, first budget) where it never
    was above; (last budget, inf) where it still is, or where a value is NaN.
    """
    above = ~(error <= target[:, None] * (1 + 1e-9))  # equal methods differ in their last bits
    last = above.shape[1] - 1 - np.argmax(above[:, ::-1], axis=1)  # index of the last budget above
    left = np.minimum(last, len(budgets) - 2) if len(budgets) > 1 else np.zeros_like(last)
    right = np.minimum(left + 1, len(budgets) - 1)
    row = np.arange(len(error))
    with np.errstate(invalid="ignore", divide="ignore"):
        part = (error[row, left] - target) / (error[row, left] - error[row, right])
        crossing = budgets[left] * (budgets[right] / budgets[left]) ** np.clip(part, 0, 1)
    never, early = above[:, -1], ~above.any(axis=1)
    low = np.select([never, early], [float(budgets[-1]), 0.0], crossing)
    high = np.select([never, early], [np.inf, float(budgets[0])], crossing)
    return low, high


def _ratio(baseline: Array, method: Array) -> Array:
    """baseline / method for bounds in [0, inf]; labels of 0 or inf only ever bound a saving by inf or 0."""
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.select([method == 0, np.isinf(method)], [np.inf, 0.0], baseline / method)


def _resampled(matrix: pd.DataFrame, resamples: int, seed: int) -> dict[str, tuple[Array, Array, Array, Array]]:
    """Per method: budgets (B,), finished seeds (B,), mean error (B,) and its resamples (resamples, B)."""
    done = matrix[matrix["state"] == "done"].sort_values(["budget", "seed"], kind="stable")
    if done["problem"].nunique() > 1:
        raise ValueError(f"one matrix, one problem: got {sorted(done['problem'].unique())}; select one first")
    twice = done[done.duplicated(["method", "budget", "seed"])]
    if len(twice):
        raise ValueError(f"a cell is there twice: {tuple(twice[['method', 'budget', 'seed']].iloc[0])}")
    error, samples = done["error"].to_numpy(float), _sample_errors(done)
    resolved = error[:, None] if samples is None else samples  # (cells, samples)
    size = resolved.shape[1]
    rng = np.random.default_rng(seed)
    draws = rng.random((resamples, max(done["seed"].nunique(), 1)))
    weights = rng.multinomial(size, np.full(size, 1 / size), resamples).T / size  # (samples, resamples)
    redrawn = resolved @ weights  # (cells, resamples)
    cells = done.groupby(["method", "budget"]).indices
    result = {}
    for method in matrix["method"].unique():
        its = {budget: cells[of, budget] for of, budget in sorted(cells) if of == method}
        if its:
            result[str(method)] = (
                np.array(list(its), float),
                np.array([len(seeds) for seeds in its.values()]),
                np.array([error[seeds].mean() for seeds in its.values()]),
                np.stack([_over_seeds(redrawn[seeds], draws, samples is not None) for seeds in its.values()], axis=1),
            )
    return result


def _over_seeds(errors: Array, draws: Array, sampled: bool) -> Array:
    """Mean over redrawn seeds (R,) of `errors` (k, R), with uniforms `draws` (R, S), S ≥ k.

    The k seeds that exist are redrawn from the same uniforms everywhere: the same seeds where the same
    exist, which pairs the methods, and still a bootstrap where some are missing.
    """
    count = len(errors)
    if count == 1 and not sampled:
        return np.full(errors.shape[1], np.nan)  # one number has no spread
    chosen = (draws[:, :count] * count).astype(int)
    return np.take_along_axis(errors.T, chosen, axis=1).mean(axis=1)


def _sample_errors(done: pd.DataFrame) -> Array | None:
    """Errors per test sample (cells, samples), or None unless every cell has them for the same samples."""
    values = list(done["sample_errors"]) if "sample_errors" in done else []
    sizes = {np.shape(value) for value in values}  # () for None and NaN
    return np.array(values, float) if len(sizes) == 1 and sizes != {()} else None
